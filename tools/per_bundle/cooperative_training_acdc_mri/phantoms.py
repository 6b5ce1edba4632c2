"""Cine-MRI short-axis phantoms in the file layout of the ACDC challenge.

Coordinates are millimetres in the image plane (x to the right, y down) and along the slices (z from base to apex), from
the centre of the field of view. Everything anatomical is drawn before anything that depends on the scanner, so one
random state gives one patient in every domain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from tools.data.phantoms import Volume
from tools.data.primitives import TALL, Ellipsoid, Field, Points, Tube, coordinates, smooth_field

RV, MYO, LV = 1, 2, 3
MUSCLE, LUNG, FAT = 0.30, 0.05, 0.85


class Group(NamedTuple):
    """Hearts of one diagnosis: mm at end-diastole, radii of the left ventricle relative to them at end-systole."""

    cavity: float
    wall: float
    right: float
    systole: float


class Scanner(NamedTuple):
    """How a domain looks: contrast (power of the signal) and, as shares of the blood's signal, what disturbs it."""

    contrast: float
    coil: float
    noise: tuple[float, float]
    ghost: float
    blur: float


class Organ(NamedTuple):
    """A structure of the trunk and its signal relative to the blood of the left ventricle."""

    form: Ellipsoid | Tube
    signal: float


class Heart(NamedTuple):
    """One patient's heart; angles in radians, lengths in mm."""

    group: Group
    centre: tuple[float, float]
    septum: float
    length: float
    tilt: tuple[float, float]
    scale: float
    waves: NDArray[np.floating]
    papillary: NDArray[np.floating]


GROUPS = {
    "NOR": Group(cavity=25, wall=9.5, right=1.0, systole=0.66),
    "DCM": Group(cavity=32, wall=8.5, right=1.0, systole=0.88),
    "HCM": Group(cavity=23, wall=15, right=0.9, systole=0.52),
    "MINF": Group(cavity=28, wall=9, right=1.0, systole=0.82),
    "RV": Group(cavity=22, wall=9, right=1.35, systole=0.66),
}
SCANNERS = {
    "source": Scanner(contrast=1.0, coil=0.22, noise=(0.02, 0.05), ghost=0.0, blur=0.6),
    "shifted": Scanner(contrast=0.6, coil=0.55, noise=(0.07, 0.11), ghost=0.18, blur=1.4),
}
# Painted in this order, each over the ones before it; `HEART` organs move with the heart.
TRUNK = (
    Organ(Ellipsoid((15, 10, 0), (172, 182, TALL)), 1.0),
    Organ(Ellipsoid((20, 12, 0), (152, 164, TALL)), MUSCLE),
    Organ(Ellipsoid((24, 14, 0), (138, 148, TALL)), 0.65),
    Organ(Ellipsoid((28, -42, 0), (128, 88, TALL)), LUNG),
    Organ(Ellipsoid((-42, 104, 30), (92, 74, 100)), 0.36),
    Organ(Ellipsoid((-58, 100, 40), (12, 17, 40)), 0.95),
    Organ(Ellipsoid((62, 84, 20), (46, 34, 60)), 0.30),
    Organ(Ellipsoid((58, 104, 10), (34, 12, 50)), 0.80),
    Organ(Ellipsoid((128, 72, -10), (30, 38, 60)), 0.55),
    Organ(Ellipsoid((88, 140, 10), (34, 24, 60)), 0.50),
    Organ(Ellipsoid((86, 142, 10), (16, 9, 50)), 0.80),
    Organ(Ellipsoid((20, 150, 0), (26, 20, TALL)), 0.42),
    Organ(Ellipsoid((118, 30, 0), (25, 22, TALL)), 0.28),
    Organ(Ellipsoid((140, 34, 0), (8, 7, TALL)), 0.95),
    Organ(Tube((80, 10, -100), (72, 34, 100), (11, 10)), 0.95),
    Organ(Tube((20, 70, -100), (-20, 84, 100), (10, 7)), 0.65),
)


def case(
    rng: np.random.Generator,
    *,
    shape: Sequence[int] | None = None,
    spacing: Sequence[float] | None = None,
    domain: str = "source",
) -> dict[str, Volume | str]:
    """Draw one patient at end-diastole and at end-systole.

    Args:
        rng: source of everything random.
        shape: voxels along x, y, z. Default: a patient's own, 7 to 12 slices of 200 to 300 pixels a side.
        spacing: voxel size in mm along x, y, z. Default: a patient's own, 1.2 to 1.8 mm in plane and 8 or 10 mm.
        domain: `source`, or `shifted` for a scanner with another contrast, more noise, shading, ghosts and blur.

    Returns:
        File name below the data folder to volume or text: `patient<NNN>/Info.cfg` and, for each frame,
        `patient<NNN>_frame<FF>.nii.gz` (int16) and `..._gt.nii.gz` (1 RV, 2 MYO, 3 LV).

    Raises:
        ValueError: there is no such domain.
    """
    if domain not in SCANNERS:
        raise ValueError(f"domain must be one of {', '.join(SCANNERS)}, got {domain!r}")
    diagnosis = str(rng.choice(list(GROUPS)))
    heart = draw_heart(rng, GROUPS[diagnosis])
    frames, systole = int(rng.integers(14, 36)), int(rng.integers(5, 9))
    voxel = tuple(spacing or (*[round(float(rng.uniform(1.2, 1.8)), 5)] * 2, float(rng.choice([8, 10]))))
    field = (*rng.uniform(300, 380, 2), heart.length + rng.uniform(-4, 10))
    grid = tuple(shape or [round(f / v) for f, v in zip(field, voxel, strict=True)])

    extent = [n * s for n, s in zip(grid, voxel, strict=True)]
    waves = [4.0 * smooth_field(rng, grid, extent=extent, step=40) for _ in range(2)]
    texture = [smooth_field(rng, grid, extent=extent, step=step) for step in (6, 9)]
    x, y, z = coordinates(grid, spacing=voxel)
    trunk = paint_trunk((x + waves[0], y + waves[1], z + 0 * waves[0]), vessels=texture[0])
    scenes = [paint_heart(trunk, heart, points=(x, y, z), contraction=c, texture=texture[0]) for c in (0.0, 1.0)]

    scanner = SCANNERS[domain]
    coil = np.exp(
        scanner.coil * smooth_field(rng, grid, extent=extent, step=170) - rng.uniform(0.0005, 0.0025) * (x + y)
    )
    brightness = rng.uniform(150, 350)
    info = {"ED": 1, "ES": 1 + systole, "Group": diagnosis, "Height": 170.0, "NbFrame": frames, "Weight": 70.0}
    folder = "patient{number:03d}"
    files: dict[str, Volume | str] = {f"{folder}/Info.cfg": "".join(map("{0[0]}: {0[1]}\n".format, info.items()))}
    for frame, (signal, label) in zip((1, 1 + systole), scenes, strict=True):
        scan = acquire(rng, signal * (1 + 0.05 * texture[1]), scanner=scanner, coil=coil, spacing=voxel)
        name = f"{folder}/{folder}_frame{frame:02d}"
        files[f"{name}.nii.gz"] = Volume(np.rint(brightness * scan).astype(np.int16), voxel)
        files[f"{name}_gt.nii.gz"] = Volume(label, voxel)
    return files


def draw_heart(rng: np.random.Generator, group: Group) -> Heart:
    """Draw a patient's heart of a diagnosis."""
    varied = Group(*(value * spread for value, spread in zip(group, rng.uniform(0.9, 1.1, 4), strict=True)))
    return Heart(
        group=varied._replace(systole=min(varied.systole, 0.95)),
        centre=(float(rng.normal(-22, 9)), float(rng.normal(0, 10))),
        septum=float(rng.normal(2.85, 0.25)),
        length=float(rng.uniform(74, 90)),
        tilt=(float(rng.normal(0, 0.08)), float(rng.normal(0, 0.08))),
        scale=float(np.exp(rng.normal(0.1, 0.06))),
        waves=rng.normal(0, 0.018, (2, 4)),
        papillary=rng.uniform((0.2, 0.50, 0.16), (0.8, 0.68, 0.26), (4, 3)),
    )


def cover(signal: Field, distance: Field, *, value: float | Field) -> None:
    """Paint `value` inside `distance` < 0 (mm), with a partial-volume edge of 2 mm."""
    signal += np.clip(0.5 - distance / 2, 0, 1) * (value - signal)


def paint_trunk(points: Points, *, vessels: Field) -> Field:
    """Noise-free signal `(X, Y, Z)` of everything but the heart (blood of the left ventricle = 1)."""
    signal = np.zeros_like(vessels)
    for organ in TRUNK:
        cover(signal, organ.form.distance(points), value=organ.signal)
    lung = np.isclose(signal, LUNG, atol=0.02)
    return np.asarray(signal + lung * np.clip(vessels - 1.5, 0, 0.6) + (~lung & (signal > 0)) * 0.06 * vessels)


def paint_heart(
    trunk: Field, heart: Heart, *, points: Points, contraction: float, texture: Field
) -> tuple[Field, NDArray[np.uint8]]:
    """Add the heart to the noise-free signal of the trunk.

    Args:
        trunk: signal `(X, Y, Z)`.
        heart: the heart.
        points: coordinates of the voxels in mm.
        contraction: 0 at end-diastole, 1 at end-systole.
        texture: smooth unit-normal field `(X, Y, Z)` for trabeculae and moving blood.

    Returns:
        The signal, and the labels `(X, Y, Z)` of the ventricles.
    """
    x, y, z = points
    # 0 at the base, 1 at the apex; the base moves towards the apex.
    top = -heart.length / 2 + contraction * 14 * (1 - heart.group.systole) / 0.34
    along = (z - top) / (heart.length / 2 - top)
    x, y = x - heart.centre[0] - heart.tilt[0] * z, y - heart.centre[1] - heart.tilt[1] * z
    angle, reach = np.arctan2(y, x), np.hypot(x, y) / heart.scale
    inner, outer = left_ventricle(heart, angle, along=along, contraction=contraction)
    right = right_ventricle(heart, (x / heart.scale, y / heart.scale, along), contraction=contraction)

    signal = trunk.copy()
    cavity, wall = reach - inner + 0 * z, reach - outer + 0 * z
    cover(signal, np.minimum(wall - 6, right - 7) + 0 * z, value=FAT * (0.8 + 0.1 * texture))
    cover(signal, right - 3, value=MUSCLE)
    cover(signal, right, value=0.78 + 0.09 * texture - 0.35 * np.clip(texture - 0.9, 0, 1))
    cover(signal, wall, value=MUSCLE + 0.02 * texture)
    cover(signal, cavity, value=1.0 + 0.04 * texture)
    for phase, distance, size in heart.papillary:
        turn = heart.septum + np.pi * (0.5 + phase)
        muscle = np.hypot(x - distance * inner * np.cos(turn), y - distance * inner * np.sin(turn)) - size * inner
        cover(signal, muscle + np.where((along > 0.2) & (along < 0.8), 0, TALL), value=MUSCLE)
    atria = np.minimum(np.hypot(x - 6, y + 4) - 24, np.hypot(x + 26, y - 6) - 21)
    cover(signal, atria + np.where(along < 0, 0, TALL), value=0.95 + 0.1 * texture)

    label = np.zeros(signal.shape, np.uint8)
    within = (along >= 0) & (along < 1)
    label[within & (right < 0)] = RV
    label[within & (wall < 0)] = MYO
    label[within & (cavity < 0)] = LV
    return signal, label


def left_ventricle(heart: Heart, angle: Field, *, along: Field, contraction: float) -> tuple[Field, Field]:
    """Radii in mm of the cavity and of the epicardium, by angle around the axis and place along it (0 base, 1 apex)."""
    group = heart.group
    order = np.arange(2, 2 + heart.waves.shape[1])
    turns = np.multiply.outer(angle, order)
    ripple = np.cos(turns) @ heart.waves[0] + np.sin(turns) @ heart.waves[1]
    depth = np.clip(along, 0, 1)
    taper = np.sqrt(1 - depth**2.4)
    shrink = 1 + contraction * (group.systole - 1)
    cavity = group.cavity * shrink * taper * (1 + ripple)
    # The area of the wall stays the same while it contracts, but for the shortening along the axis.
    area = 1.1**contraction * ((group.cavity + group.wall) ** 2 - group.cavity**2)
    wall = np.sqrt((group.cavity * shrink) ** 2 + area) - group.cavity * shrink
    epicardium = (group.cavity * shrink * taper + wall * (0.45 + 0.55 * taper)) * (1 + 0.7 * ripple)
    return np.where(depth < 0.93, cavity, 0), epicardium * (depth < 1)


def right_ventricle(heart: Heart, points: Points, *, contraction: float) -> Field:
    """Distance in mm to the crescent before the left ventricle is cut out of it; the third coordinate is the place."""
    x, y, along = points
    group, depth = heart.group, np.clip(along, 0, 1)
    size = np.sqrt(np.clip(1 - (depth / 0.85) ** 2.2, 0, 1)) * (1 - contraction * 0.7 * (1 - group.systole))
    outer = group.cavity + group.wall
    forward = np.cos(heart.septum) * x + np.sin(heart.septum) * y - (0.55 + 0.37 * size) * outer
    across = -np.sin(heart.septum) * x + np.cos(heart.septum) * y
    radii = [np.maximum(factor * outer * group.right * size, 1e-3) for factor in (0.74, 1.08)]
    ratio = np.sqrt((forward / radii[0]) ** 2 + (across / radii[1]) ** 2)
    return np.asarray((ratio - 1) * np.minimum(*radii) + np.where(size > 0.2, 0, TALL))


def acquire(
    rng: np.random.Generator, signal: Field, *, scanner: Scanner, coil: Field, spacing: Sequence[float]
) -> Field:
    """What a scanner makes of a signal `(X, Y, Z)`: contrast, blur, ghost along y, shading and Rician noise."""
    sharp = np.clip(signal, 0, None) ** scanner.contrast
    blurred = gaussian_filter(sharp, [scanner.blur / spacing[0], scanner.blur / spacing[1], 0])
    ghost = scanner.ghost * np.roll(blurred, round(signal.shape[1] * rng.uniform(0.3, 0.7)), axis=1)
    noise = rng.uniform(*scanner.noise)
    real, imaginary = (noise * rng.standard_normal(signal.shape, dtype=np.float32) for _ in range(2))
    return np.asarray(np.hypot((blurred + ghost) * coil + real, imaginary))

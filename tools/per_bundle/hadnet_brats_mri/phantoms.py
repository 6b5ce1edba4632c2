"""Four-sequence phantoms of brain tumours in the file layout of BraTS 2019.

Coordinates are millimetres in LPS order (x to the left, y to the back, z to the head) from the centre of the field of
view. Everything anatomical is drawn before anything that depends on the grid, so one random state gives one patient at
any resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from tools.data.phantoms import Volume
from tools.data.primitives import TALL, Ellipsoid, Field, Points, Tube, blend, coordinates, smooth_field

SHAPE = (48, 56, 44)
SPACING = (3.5, 3.5, 3.5)

NECROSIS, OEDEMA, ENHANCING = 1, 2, 4
SEQUENCES = ("flair", "t1ce", "t1", "t2")
Draw = Callable[[float], Field]


class Signal(NamedTuple):
    """Signal of a tissue in each sequence, white matter in T1 = 1."""

    flair: float
    t1ce: float
    t1: float
    t2: float


class Organ(NamedTuple):
    """A structure of the average brain and its tissue."""

    form: Ellipsoid | Tube
    tissue: Signal


class Patient(NamedTuple):
    """One patient; lengths in mm.

    Attributes:
        scale: size of the brain relative to the average.
        widening: how far the walls of the ventricles lie outside the average ones.
        core: tumour core before it is made irregular.
        rind: mean thickness of its enhancing rind, 0 for none.
        gap: direction from the centre of the core in which the rind is open.
        opening: cosine of the half angle of the gap.
        oedema: mean thickness of the oedema around the core.
    """

    scale: float
    widening: float
    core: Ellipsoid
    rind: float
    gap: NDArray[np.floating]
    opening: float
    oedema: float


WHITE = Signal(flair=0.75, t1ce=1.00, t1=1.00, t2=0.55)
GREY = Signal(flair=0.90, t1ce=0.82, t1=0.78, t2=0.80)
FLUID = Signal(flair=0.25, t1ce=0.38, t1=0.35, t2=1.60)
VESSEL = Signal(flair=0.45, t1ce=1.60, t1=0.70, t2=0.60)
PLEXUS = Signal(flair=0.65, t1ce=1.50, t1=0.65, t2=1.10)
# Without contrast agent the enhancing part lies between its neighbours, closer than the texture of a tumour.
SWELLING = Signal(flair=1.35, t1ce=0.72, t1=0.72, t2=1.08)
NECROTIC = Signal(flair=0.95, t1ce=0.52, t1=0.53, t2=1.38)
ENHANCED = Signal(flair=1.06, t1ce=1.60, t1=0.60, t2=1.28)
TEXTURE = Signal(flair=0.22, t1ce=0.13, t1=0.13, t2=0.20)

LOBES = (
    Ellipsoid((0, 0, 14), (68, 84, 50)),
    Ellipsoid((-40, -6, -22), (26, 42, 24)),
    Ellipsoid((40, -6, -22), (26, 42, 24)),
    Tube((0, 14, -20), (0, 22, -52), (15, 11)),
    Ellipsoid((-22, 48, -38), (30, 28, 25)),
    Ellipsoid((22, 48, -38), (30, 28, 25)),
)
VENTRICLES = (
    Tube((7, -34, 12), (11, -6, 20), (4.5, 5.5)),
    Tube((11, -6, 20), (19, 28, 16), (5.5, 6.5)),
    Tube((19, 28, 16), (21, 48, 10), (6.5, 3.0)),
    Tube((19, 28, 16), (34, 4, -16), (5.0, 2.5)),
)
# What bounds the cleft between the hemispheres from within.
CALLOSUM = Ellipsoid((0, 2, 2), (TALL, 46, 28))
NUCLEI = (
    Organ(Ellipsoid((11, 10, 4), (8, 14, 9)), GREY),
    Organ(Ellipsoid((26, -6, 4), (6, 17, 10)), GREY),
    Organ(Ellipsoid((12, -24, 10), (5, 10, 8)), GREY),
)
ENHANCERS = (
    Organ(Tube((18, 24, 15), (22, 34, 12), (3.0, 2.5)), PLEXUS),
    Organ(Tube((10, -8, -24), (46, -14, -14), (1.8, 1.5)), VESSEL),
    Organ(Tube((46, -14, -14), (58, 22, 12), (1.5, 1.2)), VESSEL),
    Organ(Tube((2, -20, -14), (2, -50, 10), (1.5, 1.5)), VESSEL),
    Organ(Tube((2, 44, 6), (2, 58, 24), (2.2, 1.8)), VESSEL),
)


def case(
    rng: np.random.Generator, *, shape: Sequence[int] = SHAPE, spacing: Sequence[float] = SPACING
) -> dict[str, Volume | str]:
    """Draw one patient.

    Args:
        rng: source of everything random.
        shape: voxels along x, y, z.
        spacing: voxel size in mm along x, y, z. BraTS has 240x240x155 voxels of 1 mm.

    Returns:
        File name below the data folder to volume: `BraTS19_PHANTOM_<NNN>/BraTS19_PHANTOM_<NNN>_<sequence>.nii.gz`
        (int16, 0 outside the brain) and `..._seg.nii.gz` (1 necrotic and non-enhancing core, 2 oedema, 4 enhancing).
    """
    patient = draw_patient(rng)
    extent = [n * s for n, s in zip(shape, spacing, strict=True)]

    def draw(step: float) -> Field:
        return smooth_field(rng, shape, extent=extent, step=step)

    x, y, z = coordinates(shape, spacing=spacing)
    points: Points = (x + 2.5 * draw(40), y + 2.5 * draw(40), z + 2.5 * draw(40))
    edge = max(1.0, float(np.mean(spacing)))
    signal, depth, fluid = paint_brain(draw, patient, points=points, edge=edge)
    label = paint_tumour(draw, patient, points=points, signal=signal, depth=depth, fluid=fluid, edge=edge)
    scans = acquire(rng, signal, draw=draw, spacing=spacing)

    stem = "BraTS19_PHANTOM_{number:03d}/BraTS19_PHANTOM_{number:03d}"
    inside = depth > 0
    files: dict[str, Volume | str] = {
        f"{stem}_{name}.nii.gz": Volume(np.where(inside, np.maximum(np.rint(scan), 1), 0).astype(np.int16), spacing)
        for name, scan in zip(SEQUENCES, scans, strict=True)
    }
    return {**files, f"{stem}_seg.nii.gz": Volume(label, spacing)}


def draw_patient(rng: np.random.Generator) -> Patient:
    """Draw the size of a brain and a tumour in one of its hemispheres; one tumour in eight does not enhance."""
    scale = float(rng.uniform(0.94, 1.05))
    radius = float(rng.uniform(18, 24))
    oedema = float(rng.uniform(6, min(14, 31 - radius)))
    direction, gap = (v / np.linalg.norm(v) for v in rng.standard_normal((2, 3)))
    room = scale * (np.array(LOBES[0].radii) - radius - 6)
    x, y, z = room * direction * rng.uniform(0.3, 1) + LOBES[0].centre
    a, b, c = radius * np.exp(rng.uniform(-0.15, 0.15, 3))
    rind = radius * rng.uniform(0.3, 0.4)
    return Patient(
        scale=scale,
        widening=float(rng.uniform(-1.5, 1.5)),
        core=Ellipsoid((float(np.copysign(max(abs(x), 18), x)), float(y), float(z)), (float(a), float(b), float(c))),
        rind=float(rind) if rng.random() > 1 / 8 else 0.0,
        gap=gap.astype(np.float32),
        opening=float(rng.uniform(-0.3, 0.1)),
        oedema=oedema,
    )


def cover(signal: Field, distance: Field, *, tissue: Signal | NDArray[np.floating], edge: float) -> None:
    """Paint `tissue` into `signal` `(4, X, Y, Z)` inside `distance` < 0, with a partial-volume edge of `edge` mm."""
    weight = np.clip(0.5 - distance / edge, 0, 1)
    for channel, value in zip(signal, tissue, strict=True):
        channel += weight * (value - channel)


def paint_brain(draw: Draw, patient: Patient, *, points: Points, edge: float) -> tuple[Field, Field, Field]:
    """Paint the brain as it is without the tumour.

    Args:
        draw: unit-normal field `(X, Y, Z)` that is smooth over the given mm.
        patient: the patient.
        points: coordinates of the voxels in mm.
        edge: width of partial-volume edges in mm.

    Returns:
        Signal `(4, X, Y, Z)`, depth below the surface of the brain in mm (negative outside) and signed distance in mm
        to the ventricles and the cleft between the hemispheres, both `(X, Y, Z)`.
    """
    scale = patient.scale
    x, y, z = (p / scale for p in points)
    mirrored: Points = (np.abs(x), y, z)
    outside = LOBES[0].distance((x, y, z))
    for lobe in LOBES[1:]:
        outside = blend(outside, lobe.distance((x, y, z)), radius=2)
    depth = 1.2 * draw(16) - scale * outside

    # Folds are the sheets on which a smooth field is zero.
    folds = np.maximum(9 * np.abs(draw(20)), depth - 16)
    cleft = scale * np.maximum(np.maximum(np.abs(x), -CALLOSUM.distance((x, y, z))), -15 - z)
    cortex = np.minimum(np.minimum(depth, folds), cleft)
    ventricles = scale * np.minimum.reduce([v.distance(mirrored) for v in VENTRICLES]) - patient.widening

    signal = np.zeros((len(SEQUENCES), *depth.shape), np.float32)
    cover(signal, -depth, tissue=FLUID, edge=edge)
    cover(signal, 1.2 - cortex, tissue=GREY, edge=edge)
    cover(signal, 4.5 - cortex, tissue=WHITE, edge=edge)
    for organ in NUCLEI:
        cover(signal, scale * organ.form.distance(mirrored), tissue=organ.tissue, edge=edge)
    cover(signal, ventricles, tissue=FLUID, edge=edge)
    for organ in ENHANCERS:
        cover(signal, scale * organ.form.distance(mirrored), tissue=organ.tissue, edge=edge)
    veins = np.maximum(cortex - 2, 10 * (0.7 - draw(25)))
    cover(signal, veins, tissue=VESSEL, edge=edge)
    return signal, depth, np.minimum(ventricles, cleft)


def paint_tumour(
    draw: Draw, patient: Patient, *, points: Points, signal: Field, depth: Field, fluid: Field, edge: float
) -> NDArray[np.uint8]:
    """Paint the tumour over the brain.

    Args:
        draw: unit-normal field `(X, Y, Z)` that is smooth over the given mm.
        patient: the patient.
        points: coordinates of the voxels in mm.
        signal: signal `(4, X, Y, Z)` of the brain, changed in place.
        depth: depth below the surface of the brain in mm.
        fluid: signed distance in mm to fluid that oedema does not enter.
        edge: width of partial-volume edges in mm.

    Returns:
        The labels `(X, Y, Z)`.
    """
    core = np.maximum(patient.core.distance(points) + 2.0 * draw(15), 3 - depth)
    spread = np.clip(patient.oedema * (1 + 0.45 * draw(20)), 4, 20)
    # Oedema stays in its hemisphere, off the surface and out of fluid.
    bound = np.maximum(np.maximum(3 - depth, 1.5 - fluid), -np.sign(patient.core.centre[0]) * points[0])
    oedema = np.maximum(core - spread, bound)
    rind = np.clip(patient.rind * (1 + 0.25 * draw(18)), 5, 11)
    offsets = [p - c for p, c in zip(points, patient.core.centre, strict=True)]
    reach = np.sqrt(sum(o**2 for o in offsets))
    towards = sum(o * g for o, g in zip(offsets, patient.gap, strict=True))
    enhancing = np.maximum(np.maximum(core, -core - rind), towards - reach * patient.opening)

    mixed = draw(6)
    flair, t1, t2 = (0.6 * mixed + 0.8 * draw(6) for _ in range(3))
    texture = np.stack([s * f for s, f in zip(TEXTURE, (flair, t1, t1, t2), strict=True)])
    shape = (-1, 1, 1, 1)
    cover(signal, oedema, tissue=np.reshape(SWELLING, shape) + 0.4 * texture, edge=edge)
    cover(signal, core, tissue=np.reshape(NECROTIC, shape) + texture, edge=edge)
    label = np.zeros(core.shape, np.uint8)
    label[oedema < 0] = OEDEMA
    label[core < 0] = NECROSIS
    if patient.rind > 0:
        cover(signal, enhancing, tissue=np.reshape(ENHANCED, shape) + texture, edge=edge)
        label[enhancing < 0] = ENHANCING
    return label


def acquire(rng: np.random.Generator, signal: Field, *, draw: Draw, spacing: Sequence[float]) -> Field:
    """What a scanner makes of a signal `(4, X, Y, Z)`: texture, blur, shading, noise and a scale for each sequence."""
    shading = [0.12 * draw(120) for _ in signal]
    grain = 1 + 0.05 * draw(8)
    scale, noise = rng.uniform(150, 900, len(signal)), rng.uniform(0.03, 0.06, len(signal))
    blurred = gaussian_filter(signal * grain, [0, *(1.2 / s for s in spacing)])
    scans = [
        factor * (channel * np.exp(shade) + level * rng.standard_normal(channel.shape, dtype=np.float32))
        for channel, shade, factor, level in zip(blurred, shading, scale, noise, strict=True)
    ]
    return np.stack(scans)

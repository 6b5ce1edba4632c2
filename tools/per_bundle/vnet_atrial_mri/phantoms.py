"""Late-enhancement chest phantoms in the file layout of the 2018 left-atrium challenge.

Coordinates are millimetres in LPS order (x to the left, y to the back, z to the head) from the centre of the field of
view. Everything anatomical is drawn before anything that depends on the grid, so one random state gives one patient at
any resolution.
"""

import string
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from tools.data.phantoms import Volume
from tools.data.primitives import TALL, Ellipsoid, Field, Points, Tube, Vector, blend, coordinates, smooth_field

SHAPE = (160, 160, 44)
SPACING = (2.5, 2.5, 1.25)

WALL_MM = 2.5
LUNG = 0.05


class Organ(NamedTuple):
    """A structure and its signal relative to the blood of the left atrium; blood pools vary from patient to patient."""

    form: Ellipsoid | Tube
    signal: float
    pool: bool = False


# Painted in this order, each over the ones before it. Myocardium is nulled in late-enhancement MRI, hence nearly black.
CHEST = (
    Organ(Ellipsoid((0, -15, 0), (172, 116, TALL)), 0.38),
    Organ(Ellipsoid((0, -13, 0), (156, 100, TALL)), 0.50),
    Organ(Ellipsoid((0, -12, 0), (136, 84, TALL)), 0.24),
    Organ(Ellipsoid((-88, -8, 0), (48, 76, TALL)), LUNG),
    Organ(Ellipsoid((92, -4, 0), (45, 72, TALL)), LUNG),
    Organ(Ellipsoid((-82, -15, -78), (62, 70, 60)), 0.62),
    Organ(Ellipsoid((0, 58, 0), (23, 19, TALL)), 0.12),
    Organ(Ellipsoid((0, 86, 0), (11, 8, TALL)), 0.75),
    Organ(Ellipsoid((0, -108, 0), (19, 8, TALL)), 0.15),
)
HEART = (
    Organ(Ellipsoid((0, -36, -8), (80, 50, 70)), 0.22),
    Organ(Ellipsoid((50, -43, -20), (36, 31, 33)), 0.12),
    Organ(Ellipsoid((50, -43, -20), (26, 21, 24)), 0.95, pool=True),
    Organ(Ellipsoid((4, -68, -26), (36, 19, 34)), 0.90, pool=True),
    Organ(Ellipsoid((-47, -32, -14), (22, 24, 28)), 0.95, pool=True),
    Organ(Tube((-42, -23, 5), (-42, -25, 60), (10, 10)), 0.95, pool=True),
    Organ(Tube((26, -46, -30), (20, -40, 60), (13, 14)), 0.95, pool=True),
    Organ(Tube((-6, -38, -60), (-10, -40, 60), (17, 17)), 0.20),
    Organ(Tube((-6, -38, -60), (-10, -40, 60), (15, 15)), 1.0, pool=True),
    Organ(Tube((8, 29, -60), (6, 30, 60), (6, 6)), 0.40),
    Organ(Tube((32, 40, -60), (30, 41, 60), (14, 14)), 0.20),
    Organ(Tube((32, 40, -60), (30, 41, 60), (12, 12)), 1.0, pool=True),
)
ATRIUM = Ellipsoid((0, 0, 0), (28, 19, 15.5))
APPENDAGE = Ellipsoid((27, -14, 4), (10, 8, 8))
VEINS = (
    Tube((-18, -3, 6), (-47, -8, 9), (7.5, 5.0)),
    Tube((18, -3, 7), (45, -11, 10), (7.5, 5.0)),
    Tube((-18, 6, -5), (-43, 17, -9), (7.0, 4.5)),
    Tube((18, 7, -2), (42, 21, 1), (6.5, 4.5)),
)


def case(
    rng: np.random.Generator, *, shape: Sequence[int] = SHAPE, spacing: Sequence[float] = SPACING
) -> dict[str, Volume]:
    """Draw one patient.

    Args:
        rng: source of everything random.
        shape: voxels along x, y, z.
        spacing: voxel size in mm along x, y, z. The challenge has 576x576x88 or 640x640x88 voxels of 0.625 mm.

    Returns:
        File name below the data folder to volume: `<id>/lgemri.nrrd` in 0..255, `<id>/laendo.nrrd` in
        {0, 255}.
    """
    name = "".join(rng.choice(list(string.ascii_uppercase + string.digits), 20))
    extent = [n * s for n, s in zip(shape, spacing, strict=True)]
    x, y, z = coordinates(shape, spacing=spacing)
    waves = [3.0 * smooth_field(rng, shape, extent=extent, step=35) for _ in range(3)]
    chest: Points = (x + waves[0], y + waves[1], z + waves[2])
    heart, scale = heart_frame(rng, chest)
    signal, label = paint(rng, chest, heart=heart, scale=scale, spacing=spacing)

    texture = 1 + 0.06 * smooth_field(rng, shape, extent=extent, step=9)
    coil = np.exp(0.22 * smooth_field(rng, shape, extent=extent, step=200) - rng.uniform(0, 0.002) * y)
    brightness, noise = rng.uniform(60, 140), rng.uniform(0.07, 0.14)
    real, imaginary = (noise * rng.standard_normal(tuple(shape), dtype=np.float32) for _ in range(2))
    scan = brightness * np.hypot(signal * texture * coil + real, imaginary)
    return {
        f"{name}/lgemri.nrrd": Volume(np.clip(np.rint(scan), 0, 255).astype(np.uint8), spacing),
        f"{name}/laendo.nrrd": Volume(np.where(label, 255, 0).astype(np.uint8), spacing),
    }


def heart_frame(rng: np.random.Generator, points: Points) -> tuple[Points, float]:
    """Coordinates `points` seen from this patient's left atrium, and the size of the heart (1 = average)."""
    shift = rng.uniform((-18, -14, -3), (18, 14, 3))
    turn = Rotation.from_euler("zyx", rng.uniform((-16, -5, -5), (4, 5, 5)), degrees=True).as_matrix()
    scale = float(np.exp(rng.uniform(-0.15, 0.15)))
    centred = [p - s for p, s in zip(points, shift.astype(np.float32), strict=True)]
    rows = (turn.T / scale).astype(np.float32)
    x, y, z = (sum(r * c for r, c in zip(row, centred, strict=True)) for row in rows)
    return (np.asarray(x), np.asarray(y), np.asarray(z)), scale


def paint(
    rng: np.random.Generator, chest: Points, *, heart: Points, scale: float, spacing: Sequence[float]
) -> tuple[Field, NDArray[np.bool_]]:
    """Noise-free signal `(X, Y, Z)` (blood of the left atrium = 1) and the mask of its cavity."""
    signal = np.zeros_like(chest[0])
    blur = max(1.0, float(np.mean(spacing)))
    shape, extent = signal.shape, [n * s for n, s in zip(signal.shape, spacing, strict=True)]

    def cover(distance: Field, value: float | Field) -> None:
        """Paint `value` inside `distance` < 0, with a partial-volume edge one voxel wide."""
        signal[...] += np.clip(0.5 - distance / blur, 0, 1) * (value - signal)

    for organ in CHEST:
        cover(organ.form.distance(chest), organ.signal)
    vessels = smooth_field(rng, shape, extent=extent, step=7) - 1.3
    signal += np.where(np.isclose(signal, LUNG, atol=0.02), 0.5 * np.clip(vessels, 0, 1), 0)
    for organ in HEART:
        cover(scale * organ.form.distance(heart), organ.signal * (rng.uniform(0.9, 1.15) if organ.pool else 1))

    cavity, veins = left_atrium(rng, heart)
    cavity *= scale
    scar = 1 / (1 + np.exp(-6 * (smooth_field(rng, shape, extent=extent, step=14) - rng.uniform(0.3, 1.2))))
    cover(cavity - WALL_MM, 0.2 + 1.1 * scar)
    cover(cavity, 1.0)
    for vein in veins:
        cover(scale * vein.beyond(rng.uniform(6, 14)).distance(heart), 1.0)
    return signal, cavity < 0


def left_atrium(rng: np.random.Generator, heart: Points) -> tuple[Field, list[Tube]]:
    """Signed distance (heart frame) to the cavity with its appendage and vein stubs, and the three or four veins."""

    def vary(vector: Vector, spread: float) -> Vector:
        x, y, z = np.add(vector, rng.uniform(-spread, spread, 3))
        return float(x), float(y), float(z)

    widths = rng.uniform(0.85, 1.15, len(VEINS))
    veins = [
        Tube(v.start, vary(v.end, 4), (v.radii[0] * w, v.radii[1] * w)) for v, w in zip(VEINS, widths, strict=True)
    ]
    if rng.random() < 0.25:
        del veins[rng.integers(len(veins))]
    cavity = Ellipsoid(ATRIUM.centre, vary(ATRIUM.radii, 2)).distance(heart)
    parts: list[Ellipsoid | Tube] = [Ellipsoid(vary(APPENDAGE.centre, 2), APPENDAGE.radii), *veins]
    for part in parts:
        cavity = blend(cavity, part.distance(heart), radius=5)
    return cavity, veins

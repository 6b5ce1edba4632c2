"""Abdominal CT phantoms in the file layout of KiTS19; `synthetic_ct.py` draws the same around real labels.

Coordinates are millimetres in LPS order (x to the left, y to the back, z to the head) from the middle between the
kidneys. One random state gives one patient at any resolution.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tools.data.phantoms import Volume
from tools.data.primitives import TALL, Ellipsoid, Field, Points, Tube, coordinates, smooth_field

SHAPE = (128, 96, 64)
SPACING = (3.0, 3.0, 3.0)

AIR, GAS = -1000.0, -800.0
# Painted in this order, each over the ones before it, in HU in the portal venous phase.
BODY: tuple[tuple[Ellipsoid | Tube, float], ...] = (
    (Ellipsoid((0, -30, 0), (175, 122, TALL)), -100.0),  # fat
    (Ellipsoid((0, -28, 0), (158, 106, TALL)), 55.0),  # muscle
    (Ellipsoid((0, -34, 0), (142, 90, TALL)), -95.0),  # fat of the abdomen
    (Ellipsoid((-38, 32, 0), (24, 26, TALL)), 58.0),  # psoas
    (Ellipsoid((38, 32, 0), (24, 26, TALL)), 58.0),
    (Ellipsoid((0, 34, 0), (24, 20, TALL)), 260.0),  # spine
    (Ellipsoid((0, 62, 0), (9, 8, TALL)), 35.0),
    (Tube((12, 4, -300), (10, 6, 300), (10, 10)), 185.0),  # aorta
    (Tube((-18, 2, -300), (-20, 0, 300), (11, 12)), 150.0),  # inferior vena cava
    (Ellipsoid((-76, -46, 62), (66, 62, 78)), 112.0),  # liver
    (Ellipsoid((98, 2, 62), (28, 44, 50)), 125.0),  # spleen
    (Ellipsoid((38, -62, 40), (46, 32, 34)), 40.0),  # stomach
    (Ellipsoid((30, -40, -58), (52, 34, 40)), 45.0),  # bowel
    (Ellipsoid((-52, -50, -66), (30, 26, 32)), 38.0),
)
POCKETS = (Ellipsoid((38, -76, 44), (22, 9, 16)), Ellipsoid((-52, -62, -64), (14, 8, 12)))
KIDNEY, TUMOUR = 178.0, 82.0


def case(
    rng: np.random.Generator, *, shape: Sequence[int] = SHAPE, spacing: Sequence[float] = SPACING
) -> dict[str, Volume]:
    """Draw one patient.

    Args:
        rng: source of everything random.
        shape: voxels along x, y, z.
        spacing: voxel size in mm along x, y, z.

    Returns:
        File name below the data folder to volume: `case_NNNNN/imaging.nii.gz` in HU, `case_NNNNN/segmentation.nii.gz`
        with 1 for kidney and 2 for tumour.
    """
    points = coordinates(shape, spacing=spacing)
    label = kidneys(rng, points)
    image = paint(rng, label, points=points, spacing=spacing)
    name = "case_{number:05d}"
    return {
        f"{name}/imaging.nii.gz": Volume(image, spacing),
        f"{name}/segmentation.nii.gz": Volume(label, spacing),
    }


def kidneys(rng: np.random.Generator, points: Points) -> NDArray[np.uint8]:
    """Label map `(X, Y, Z)` of two kidneys and one or two tumours in or at them."""
    label: NDArray[np.uint8] = np.zeros(np.broadcast_shapes(*(p.shape for p in points)), dtype=np.uint8)
    centres = []
    for side in (-1, 1):
        centre = np.array([62.0 * side, 8, 4 * side]) + rng.uniform(-7, 7, 3)
        length, tilt = rng.uniform(48, 60), 12 * side
        pole = np.array([tilt, 0, 27 - length])
        x, y, z = (centre + pole).tolist()
        u, v, w = (centre - pole).tolist()
        form = Tube((x, y, z), (u, v, w), (float(rng.uniform(23, 28)), float(rng.uniform(23, 28))))
        pelvis = Ellipsoid((float(centre[0]) - 22.0 * side, float(centre[1]) - 4, float(centre[2])), (16, 12, 15))
        label[(form.distance(points) < 0) & (pelvis.distance(points) > 0)] = 1
        centres.append((centre, side))
    for _ in range(rng.integers(1, 3)):
        centre, side = centres[rng.integers(2)]
        radius = float(rng.uniform(13, 25))
        place = np.array([side * rng.uniform(6, 24), rng.uniform(-16, 10), rng.uniform(-34, 34)])
        x, y, z = (centre + place).tolist()
        label[Ellipsoid((x, y, z), (radius, radius, radius * float(rng.uniform(0.8, 1.2)))).distance(points) < 0] = 2
    return label


def paint(
    rng: np.random.Generator, label: NDArray[np.uint8], *, points: Points, spacing: Sequence[float]
) -> NDArray[np.int16]:
    """CT in HU around, and in, the kidneys and tumours of a label map.

    Args:
        rng: source of everything random.
        label: `(X, Y, Z)`, 1 kidney, 2 tumour.
        points: where its voxels lie, see above.
        spacing: their size in mm.

    Returns:
        `(X, Y, Z)`.
    """
    shape, extent = label.shape, [n * s for n, s in zip(label.shape, spacing, strict=True)]
    waves = [6.0 * smooth_field(rng, shape, extent=extent, step=60) for _ in range(3)]
    x, y, z = (p + wave for p, wave in zip(points, waves, strict=True))
    image = np.full(shape, AIR, dtype=np.float32)
    blur = max(1.0, float(np.mean(spacing)))

    def cover(distance: Field, value: float) -> None:
        """Paint inside `distance` < 0, with an edge one voxel wide."""
        image[...] += np.clip(0.5 - distance / blur, 0, 1) * (value - image)

    contrast = float(rng.uniform(0.75, 1.15))
    for form, value in BODY:
        organ = value + float(rng.normal(0, 6))
        cover(form.distance((x, y, z)), organ * (contrast if value > 100 else 1))
    for pocket in POCKETS:
        cover(pocket.distance((x, y, z)), GAS)
    fine = smooth_field(rng, shape, extent=extent, step=9)
    sigma = [0.6 * blur / size for size in spacing]
    kidney = KIDNEY * contrast * float(rng.uniform(0.92, 1.08)) + 9 * fine
    tumour = TUMOUR * float(rng.uniform(0.75, 1.2)) + 16 * smooth_field(rng, shape, extent=extent, step=14)
    for mask, tissue in ((label > 0, kidney), (label == 2, tumour)):
        image += ndimage.gaussian_filter(mask.astype(np.float32), sigma) * (tissue - image)
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), 0.6)
    image += float(rng.uniform(10, 18)) / 0.45 * noise + 5 * fine
    return np.clip(np.rint(image), -1024, 3071).astype(np.int16)

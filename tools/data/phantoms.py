"""Phantom data sets in the folder and file layout of a bundle's real data."""

import importlib
import inspect
import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from tools import REPO
from tools.arguments import check_known
from tools.shared.files import write_text

logger = logging.getLogger(__name__)


class Volume(NamedTuple):
    """Voxels `(X, Y, Z)` and their size in mm along these axes."""

    voxels: NDArray[Any]
    spacing: Sequence[float]


def phantoms(
    bundle: str,
    output: str,
    *,
    cases: int = 8,
    seed: int = 0,
    shape: Sequence[int] | None = None,
    spacing: Sequence[float] | None = None,
    **options: Any,
) -> Path:
    """Make a phantom data set for BUNDLE in the folder OUTPUT, laid out like the real data.

    Case number i of a seed is the same patient, byte for byte, however many cases are made.

    Args:
        bundle: name of a bundle, for example vnet_atrial_mri.
        output: data folder to create or to add to; files of the same name are replaced.
        cases: number of cases.
        seed: number that selects the data set.
        shape: voxels along x, y, z, for example 160,160,44. Default: of the bundle's choice.
        spacing: voxel size in mm along x, y, z, for example 2.5,2.5,1.25. Shape times spacing is the field of view.
        options: what else the bundle's phantoms let one choose, for example --domain shifted.

    Returns:
        The data folder.

    Raises:
        ValueError: the bundle has no phantoms or no such option, or an argument is not positive or not three numbers.
    """
    draw = _recipe(bundle)
    own = {"cases", "seed", *inspect.signature(draw).parameters} - {"rng"}
    check_known(options, own, what=f"phantoms {bundle}: there is no option --{{}}")
    for name, values in (("shape", shape), ("spacing", spacing)):
        if values is not None:
            if len(values) != 3 or min(values) <= 0:
                raise ValueError(f"phantoms {bundle}: {name} must be three positive numbers (x,y,z), got {values}")
            options[name] = tuple(values)
    if cases < 1:
        raise ValueError(f"phantoms {bundle}: cases must be at least 1, got {cases}")

    root = Path(output)
    for index in tqdm(range(cases), desc=f"{bundle} phantoms", unit="case"):
        for name, content in draw(np.random.default_rng([seed, index]), **options).items():
            write(root / name.format(number=index + 1), content)
    logger.info("%d phantom cases in %s", cases, root)
    return root


def write(path: Path, content: Volume | str) -> None:
    """Write a volume or a text; folders are created, the file appears complete or not at all."""
    if isinstance(content, Volume):
        write_volume(path, content.voxels, spacing=content.spacing)
        return
    write_text(path, content)


def write_volume(path: Path, volume: NDArray[Any], *, spacing: Sequence[float]) -> None:
    """Write a volume `(X, Y, Z)`, axes along LPS and origin at its centre, as the format of the suffix of `path`.

    Folders are created; the file appears complete or not at all.
    """
    import itk

    image = itk.image_from_array(np.ascontiguousarray(volume.T))
    image.SetSpacing([float(s) for s in spacing])
    image.SetOrigin([-(n - 1) / 2 * s for n, s in zip(volume.shape, spacing, strict=True)])
    path.parent.mkdir(parents=True, exist_ok=True)
    # A folder and not a temporary name: ITK chooses the format by the suffix.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as scratch:
        partial = Path(scratch) / path.name
        itk.imwrite(image, str(partial), compression=True)
        partial.replace(path)


def _recipe(bundle: str) -> Callable[..., dict[str, Volume | str]]:
    """The function `case` of the bundle's recipe.

    It draws one patient: `case(rng, *, shape, spacing, ...)` returns file name below the data folder to content. In a
    file name `{number:03d}` stands for the number of the case, from 1.
    """
    recipes = REPO / "tools/per_bundle"
    known = sorted(p.parent.name for p in recipes.glob("*/phantoms.py"))
    if bundle not in known:
        raise ValueError(f"no phantoms for bundle {bundle!r}; there are phantoms for: {', '.join(known)}")
    case: Callable[..., dict[str, Volume | str]] = importlib.import_module(f"tools.per_bundle.{bundle}.phantoms").case
    return case

"""A mask as DICOM SEG, with codes for its structures and references to the images that it was made of."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from monai.utils import optional_import
from numpy.typing import NDArray

from tools import REPO
from tools.arguments import require_text
from tools.files import read_json
from tools.shared.dicom import find_series, series_files
from tools.shared.files import atomic_write
from tools.shared.geometry import apart, same_grid
from tools.shared.planes import ordered
from tools.shared.slices import Header, Slice
from tools.shared.volumes import VolumeError, read_volume, voxels_of

__all__ = ["MAKER", "PACKAGES", "needed", "seg", "segmentation"]

logger = logging.getLogger(__name__)

PACKAGES = "needs packages that are not installed: pip install highdicom dicomweb-client python-gdcm"
MAKER = "Segmentation bundles"
LONGEST = 64  # characters of most texts in DICOM
NUMBER = 1000  # is added to a series' number
SCT, DCM = "SCT", "DCM"


def needed(module: str) -> Any:
    """Returns a module of the packages for DICOM.

    Raises:
        ValueError: when it is not installed; it says how to install it.
    """
    found, present = optional_import(module)
    if not present:
        raise ValueError(f"{module} {PACKAGES}")
    return found


def seg(
    mask: str,
    series: str,
    *,
    output: str,
    bundle: str | None = None,
    number: str | int | None = None,
    phase: int | None = None,
) -> None:
    """Makes a DICOM SEG of a mask and the series that it was made of.

    Args:
        mask: NIfTI or NRRD file, as inference writes it.
        series: folder of the series, or `image` of the case in the run's record, or a folder with one series that fits.
        output: the DICOM file; it is replaced.
        bundle: which made the mask; by default the one in the record of a run in a folder above the mask.
        number: of several series, UID or number, as `series` of inference.
        phase: of several images at each position, as in inference.

    Raises:
        ValueError: when the bundle is unknown, the series cannot be read, or the mask has other values than the bundle
            gives or is not on the series' grid.
        OSError: when a file cannot be read or written.
    """
    require_text(mask=mask, series=series, output=output, bundle=bundle)
    name = _known(bundle or _bundle_of(Path(mask).absolute()))
    place = Path(series).absolute()
    if place.exists():
        cases = find_series(place, modality=_modality(_metadata(name)), series=number, phase=phase)
        if len(cases) > 1:
            raise ValueError(f"{series}: holds {len(cases)} studies, name the folder of one")
        place = Path(cases[0]["image"])
    made = segmentation(Path(mask), place, bundle=name)
    with atomic_write(output) as partial:
        made.save_as(partial, enforce_file_format=True)
    logger.info("%s: %d frames of %d structures", output, made.NumberOfFrames, len(made.SegmentSequence))


def _metadata(bundle: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = read_json(REPO / "bundles" / bundle / "configs/metadata.json")
    return found


def _modality(metadata: Mapping[str, Any]) -> str:
    return str(metadata["network_data_format"]["inputs"]["image"]["modality"])


def _known(bundle: str) -> str:
    known = sorted(path.parent.name for path in REPO.glob("tools/per_bundle/*/dicom.yaml"))
    if bundle not in known:
        raise ValueError(f"bundle must be one of {', '.join(known)}, not {bundle!r}")
    return bundle


def _bundle_of(mask: Path) -> str:
    for folder in mask.parents:
        if records := sorted(folder.glob("run_*_*.json")):
            return str(read_json(records[-1])["bundle"]["name"])
    raise ValueError(f"{mask}: no record of a run lies in a folder above it, say --bundle")


def segmentation(mask: Path, series: Path, *, bundle: str) -> Any:
    """Returns a binary `highdicom.seg.Segmentation` with a segment for each structure of the bundle.

    Args:
        mask: the file.
        series: as `dicom.find_series` names it.
        bundle: which made the mask.

    Raises:
        ValueError: as `seg`.
    """
    structures = _structures(bundle)
    try:
        headers, phase = series_files(series)
        slices, affine = ordered(headers, phase=phase)
    except VolumeError as error:
        raise ValueError(f"{series}: {error}") from error
    metadata = _metadata(bundle)
    if headers[0].modality != _modality(metadata):  # an overlay for other scans gives other structures
        raise ValueError(
            f"{series}: is {headers[0].modality}, the structures of {bundle} are those of {_modality(metadata)}"
        )
    shape = (headers[0].size[1], headers[0].size[0], len(slices))
    labels = _labels(mask, structures, affine=affine, shape=shape)
    sources = _sources(headers, slices)
    hd, uids = needed("highdicom"), needed("pydicom.uid")
    made = hd.seg.Segmentation(
        **_references(sources, slices),
        pixel_array=labels.transpose(2, 1, 0),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _description(value, structure, metadata, bundle=bundle) for value, structure in structures.items()
        ],
        series_instance_uid=uids.generate_uid(),
        series_number=NUMBER + (headers[0].number or 0),
        sop_instance_uid=uids.generate_uid(),
        instance_number=1,
        manufacturer=MAKER,
        manufacturer_model_name=bundle,
        software_versions=metadata["version"],
        device_serial_number="1",
        series_description=metadata["name"][:LONGEST],
        content_label="SEGMENTATION",
        content_description=metadata["intended_use"][:LONGEST],
    )
    if len(sources) < len(slices):
        _refer_to_all_frames(made, slices)
    return made


def _references(sources: Sequence[Any], slices: Sequence[Slice]) -> dict[str, Any]:
    """Returns what a SEG refers to; of a stack of several series to the first before the others."""
    first = sources[0].SeriesInstanceUID
    same = [source for source in sources if source.SeriesInstanceUID == first]
    if len(same) == len(sources):
        return {"source_images": same}
    place = needed("highdicom").PlanePositionSequence
    return {
        "source_images": same,
        "further_source_images": [source for source in sources if source.SeriesInstanceUID != first],
        "plane_positions": [place("PATIENT", piece.position) for piece in slices],
    }


def _structures(bundle: str) -> dict[int, Mapping[str, Any]]:
    text = (REPO / "tools/per_bundle" / _known(bundle) / "dicom.yaml").read_text(encoding="utf-8")
    found: dict[int, Mapping[str, Any]] = yaml.safe_load(text)
    return found


def _labels(
    mask: Path, structures: Mapping[int, Any], *, affine: NDArray[np.float64], shape: Sequence[int]
) -> NDArray[np.uint8]:
    """Returns the voxels of a mask, which must be on the series' grid."""
    try:
        image = read_volume(mask, dimensions=[3])
    except VolumeError as error:
        raise ValueError(f"{mask}: {error}") from error
    if image.shape != tuple(shape):
        raise ValueError(f"{mask}: has {image.shape} voxels, the series {tuple(shape)}")
    if not same_grid(affine, image.affine, shape=shape):
        off = apart(affine, image.affine, shape=shape)
        raise ValueError(f"{mask}: is not on the grid of the series, corners are up to {off:.3g} mm apart")
    values = voxels_of(image)
    if unknown := sorted(set(np.unique(values).tolist()) - {0, *structures}):
        raise ValueError(
            f"{mask}: holds the values {unknown[:5]}, the bundle gives 0 and {', '.join(map(str, structures))}"
        )
    return values.astype(np.uint8)


def _sources(headers: Sequence[Header], slices: Sequence[Slice]) -> list[Any]:
    """Returns the source images without pixels; of one file, with none but the frames that were segmented."""
    pydicom = needed("pydicom")
    if len({piece.file for piece in slices}) == len(slices):
        return [pydicom.dcmread(piece.file, stop_before_pixels=True) for piece in slices]
    if len(headers) > 1:
        raise ValueError(
            f"{headers[0].file}: the series has several files of several images, which no SEG can refer to"
        )
    source = pydicom.dcmread(headers[0].file, stop_before_pixels=True)
    source.PerFrameFunctionalGroupsSequence = [source.PerFrameFunctionalGroupsSequence[piece.frame] for piece in slices]
    source.NumberOfFrames = len(slices)
    return [source]


def _refer_to_all_frames(made: Any, slices: Sequence[Slice]) -> None:
    """Counts the frames of a source file as they lie in it, not among those that were segmented."""
    items = {  # each once, segments share them
        id(source): source
        for frame in made.PerFrameFunctionalGroupsSequence
        for derivation in frame.DerivationImageSequence
        for source in derivation.SourceImageSequence
    }
    for source in items.values():
        source.ReferencedFrameNumber = slices[source.ReferencedFrameNumber - 1].frame + 1


def _description(value: int, structure: Mapping[str, Any], metadata: Mapping[str, Any], *, bundle: str) -> Any:
    hd, coding, uids = needed("highdicom"), needed("pydicom.sr.coding"), needed("pydicom.uid")
    algorithm = hd.AlgorithmIdentificationSequence(
        name=metadata["name"][:LONGEST],
        family=coding.Code("123110", DCM, "Artificial Intelligence"),
        version=metadata["version"],
        source=MAKER,
    )
    region = structure.get("region")
    return hd.seg.SegmentDescription(
        segment_number=value,
        segment_label=structure["label"],
        segmented_property_category=_code(coding, structure["category"]),
        segmented_property_type=_code(coding, structure["type"]),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        tracking_uid=uids.generate_uid(),
        tracking_id=f"{bundle} {structure['label']}"[:LONGEST],
        anatomic_regions=[_code(coding, region)] if region else None,
        display_color=hd.color.CIELabColor.from_rgb(*structure["colour"]),
    )


def _code(coding: Any, pair: Sequence[str]) -> Any:
    return coding.Code(pair[0], SCT, pair[1])

"""Series from and to a DICOMweb server, within bounds of size and time."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tools.arguments import require_text
from tools.dicom.seg import needed
from tools.shared.files import atomic_write

__all__ = ["fetch", "store"]

logger = logging.getLogger(__name__)

UID = re.compile(r"[0-9]+(\.[0-9]+)*")
LARGEST = 2**31  # bytes of one answer, and of a file that is stored
MOST = 20_000  # images of one call
ALL = 2**36  # bytes of one call
PAGE = 500  # images that are listed at a time
ANSWER = 60.0  # seconds in which a server must go on
WHOLE = 600.0  # seconds for one answer


def _session() -> Any:
    """Returns a session whose answers may not be larger or take longer than the bounds above."""
    requests = needed("requests")

    class BoundedSession(requests.Session):  # type: ignore[name-defined]
        def send(self, request: Any, **options: Any) -> Any:
            started = time.monotonic()
            response = super().send(request, **{**options, "stream": True, "timeout": ANSWER})
            content = bytearray()
            for block in response.iter_content(2**20):
                content += block
                if len(content) > LARGEST or time.monotonic() - started > WHOLE:
                    response.close()
                    raise OSError(f"{request.url}: the answer has more than {LARGEST} bytes or takes over {WHOLE:g} s")
            response._content = bytes(content)
            return response

    return BoundedSession()


def _client(url: str, token: str | None) -> Any:
    require_text(url=url, token=token)
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url}: the address of a DICOMweb server starts with http:// or https://")
    web = needed("dicomweb_client")
    headers = {"Authorization": f"Bearer {token}"} if token else None
    client = web.DICOMwebClient(url, session=_session(), headers=headers)
    client.set_http_retry_params(retry=False)
    return client


def fetch(url: str, output: str, *, study: str, series: str | None = None, token: str | None = None) -> None:
    """Fetches the images of a study, or of one series of it, into `<output>/<series UID>/<image UID>.dcm`.

    Args:
        url: of the DICOMweb server, for example `http://localhost:8042/dicom-web`.
        output: folder; it is made. What is there of the same images is replaced.
        study: its UID.
        series: UID of one of its series.
        token: for the header `Authorization: Bearer`.

    Raises:
        ValueError: when there is no such study or series, or the server gives something else.
        OSError: when the server cannot be reached, refuses, or does not keep the bounds; or a file cannot be written.
    """
    require_text(output=output, study=study, series=series)
    for name, value in (("study", study), ("series", series)):
        if value is not None and not _is_uid(value):
            raise ValueError(f"--{name} must be a UID, not {value!r}")
    client = _client(url, token)
    listed = list(_listed(client, study, series))
    if not listed:
        raise ValueError(f"{url}: has no image of study {study}" + (f" and series {series}" if series else ""))
    total = 0
    for of_series, image in tqdm(listed, "Fetching", unit="image"):
        dataset = client.retrieve_instance(study, of_series, image)
        if (dataset.get("StudyInstanceUID"), dataset.get("SOPInstanceUID")) != (study, image):
            raise ValueError(f"{url}: gives another image than {image}, which was asked for")
        target = Path(output, of_series, f"{image}.dcm")
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as partial:
            dataset.save_as(partial, enforce_file_format=True)
        total += target.stat().st_size
        if total > ALL:
            raise ValueError(f"{url}: the study has more than {ALL // 2**30} GB, fetch its series one by one")
    logger.info("%s: %d images of %d series", output, len(listed), len({of_series for of_series, _ in listed}))


def _is_uid(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 64 and UID.fullmatch(value) is not None


def _listed(client: Any, study: str, series: str | None) -> Iterator[tuple[str, str]]:
    """Yields the UIDs of series and image of what is to be fetched; they become names of files."""
    seen: set[str] = set()
    while True:
        page = client.search_for_instances(study, series, limit=PAGE, offset=len(seen))
        new = 0
        for entry in page:
            found = [(entry.get(tag, {}).get("Value") or [series])[0] for tag in ("0020000E", "00080018")]
            if not all(map(_is_uid, found)):
                raise ValueError(f"{client.base_url}: lists an image without UIDs of series and image, {found}")
            if found[1] not in seen:
                seen.add(found[1])
                new += 1
                yield found[0], found[1]
        if len(seen) > MOST:
            raise ValueError(f"{client.base_url}: lists more than {MOST} images, fetch the series one by one")
        if not new or len(page) < PAGE:
            return


def store(url: str, *files: str, token: str | None = None) -> None:
    """Stores DICOM files, for example a SEG, on a DICOMweb server.

    Args:
        url: of the server.
        files: the files.
        token: for the header `Authorization: Bearer`.

    Raises:
        ValueError: when no file is given, one is not DICOM or too large, or the server does not take it.
        OSError: when the server cannot be reached or refuses; or a file cannot be read.
    """
    if not files:
        raise ValueError("name the files to store")
    pydicom, client = needed("pydicom"), _client(url, token)
    for file in tqdm(files, "Storing", unit="file"):
        require_text(file=file)
        if Path(file).stat().st_size > LARGEST:
            raise ValueError(f"{file}: has more than {LARGEST // 2**30} GB")
        try:
            dataset = pydicom.dcmread(file)
            image = str(dataset.SOPInstanceUID)
        except (pydicom.errors.InvalidDicomError, AttributeError) as error:
            raise ValueError(f"{file}: is no DICOM file ({error})") from error
        answer = client.store_instances([dataset])
        if image not in {str(item.ReferencedSOPInstanceUID) for item in answer.get("ReferencedSOPSequence", [])}:
            reasons = [hex(item.get("FailureReason", 0)) for item in answer.get("FailedSOPSequence", [])]
            raise ValueError(f"{file}: {url} has not stored it, failure {', '.join(reasons) or 'without a reason'}")
    logger.info("%s: stored %d files", url, len(files))

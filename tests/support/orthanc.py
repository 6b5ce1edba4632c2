"""Starts Orthanc, an archive for DICOM with a DICOMweb server, on loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.distributed import free_port
from tests.support.label_server import needed, wait_until_answering

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@contextmanager
def orthanc(folder: Path) -> Iterator[str]:
    """Yields the address of an empty archive that keeps its files in a folder; its DICOMweb server is `/dicom-web`."""
    program = shutil.which("Orthanc", path=f"{os.environ['PATH']}:/usr/sbin")
    needed(program and PLUGIN.is_file(), "Orthanc with its DICOMweb plugin (Debian: orthanc, orthanc-dicomweb)")
    port = free_port()
    settings = {"HttpPort": port, "RemoteAccessAllowed": False, "DicomServerEnabled": False, "Plugins": [str(PLUGIN)]}
    settings |= {"StorageDirectory": str(folder), "IndexDirectory": str(folder), "AuthenticationEnabled": False}
    (folder / "orthanc.json").write_text(json.dumps(settings))
    log = folder / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen([str(program), str(folder / "orthanc.json")], stdout=output, stderr=output)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_answering(f"{url}/system", process, log)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)

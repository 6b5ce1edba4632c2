"""NRRD files that hold their header and their voxels, read to the end."""

from __future__ import annotations

import bz2
import gzip
import re
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["NrrdError", "read_nrrd"]

TYPES = {
    "i1": "signed char|int8|int8_t",
    "u1": "uchar|unsigned char|uint8|uint8_t",
    "i2": "short|short int|signed short|signed short int|int16|int16_t",
    "u2": "ushort|unsigned short|unsigned short int|uint16|uint16_t",
    "i4": "int|signed int|int32|int32_t",
    "u4": "uint|unsigned int|uint32|uint32_t",
    "i8": "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t",
    "u8": "ulonglong|unsigned long long|unsigned long long int|uint64|uint64_t",
    "f4": "float",
    "f8": "double",
}
KINDS = {name: kind for kind, names in TYPES.items() for name in names.split("|")}
TO_RAS = {
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
}
SPATIAL = {"domain", "space", "???", "none"}
# Any other field is rejected: a program that knows it may take other voxels, or the same ones for others.
NEEDED = {"type", "dimension", "sizes", "encoding"}
UNUSED = {"content", "number", "thicknesses", "centerings", "centers", "measurement frame", "min", "max", "old min"}
UNUSED |= {"old max", "sample units", "labels", "axis mins", "axis maxs"}
KNOWN = NEEDED | UNUSED | {"endian", "space", "space dimension", "space directions", "space origin", "space units"}
KNOWN |= {"units", "kinds", "line skip", "byte skip"}
LONGEST_HEADER = 2**20


class NrrdError(ValueError):
    """What an NRRD file is not, lacks, or has and should not."""


def read_nrrd(path: Path) -> tuple[NDArray[np.generic], NDArray[np.float64]]:
    """Returns the voxels as stored, first axis fastest, and the affine `(4, 4)` to RAS in mm.

    Raises:
        NrrdError: when the voxels are in another file, more or fewer than the header says, or no numbers, the unit is
            not mm, a field is unknown, twice or missing; of a volume that is not 3D the affine says nothing.
        OSError, EOFError, zlib.error: when the file cannot be read or its compressed data are damaged.
    """
    with path.open("rb") as file:
        fields = _fields(file)
        sizes = [int(size) for size in fields["sizes"].split()]
        if len(sizes) != int(fields["dimension"]) or min(sizes) < 1:
            raise NrrdError(f"dimension is {fields['dimension']}, sizes are {fields['sizes']}")
        affine = _affine(fields) if len(sizes) == 3 else np.eye(4)
        dtype = _dtype(fields)
        data = _data(file, fields["encoding"].lower(), dtype.itemsize * int(np.prod(sizes, dtype=object)))
    return np.frombuffer(data, dtype).reshape(sizes, order="F"), affine


def _fields(file: BufferedReader) -> dict[str, str]:
    if not re.match(rb"NRRD000[1-5]\s*$", file.readline(100)):
        raise NrrdError("is no NRRD file")
    fields: dict[str, str] = {}
    while line := file.readline(LONGEST_HEADER).decode("utf-8", "replace").rstrip("\r\n"):
        name, _, value = line.partition(": ")
        if line.startswith("#") or ":=" in name:
            continue
        name = name.strip().lower()
        if name in ("data file", "datafile"):
            raise NrrdError(f"its voxels are in another file, {value.strip()}: header and voxels must be one file")
        if name not in KNOWN or name in fields:
            raise NrrdError(f"field {name!r} is {'there twice' if name in fields else 'unknown'}")
        fields[name] = value.strip()
    _check_fields(fields)
    return fields


def _check_fields(fields: Mapping[str, str]) -> None:
    if missing := sorted(NEEDED - fields.keys()):
        raise NrrdError(f"field {missing[0]!r} is missing")
    if any(fields.get(skip, "0") != "0" for skip in ("line skip", "byte skip")):
        raise NrrdError("bytes between header and voxels are skipped")


def _dtype(fields: Mapping[str, str]) -> np.dtype[np.generic]:
    kind, endian = KINDS.get(fields["type"].lower()), fields.get("endian", "").lower()
    if kind is None:
        raise NrrdError(f"type {fields['type']} is none of whole or floating-point numbers")
    if kind[1] != "1" and endian not in ("little", "big"):
        raise NrrdError(f"endian is {endian or 'missing'}")
    return np.dtype({"big": ">"}.get(endian, "<") + kind)


def _affine(fields: Mapping[str, str]) -> NDArray[np.float64]:
    if missing := {"space", "space directions"} - fields.keys():
        raise NrrdError(f"does not say how it lies in the patient, {' and '.join(sorted(missing))} missing")
    if set(fields.get("kinds", "domain").lower().split()) - SPATIAL:
        raise NrrdError(f"its axes must be those of space, kinds are {fields['kinds']}")
    for name in ("space units", "units"):
        if set(re.findall(r'"([^"]*)"', fields.get(name, ""))) - {"mm", "millimeter", "millimeters", ""}:
            raise NrrdError(f"its unit must be mm, {name} are {fields[name]}")
    flips = TO_RAS.get(fields["space"].lower())
    if flips is None:
        raise NrrdError(f"space {fields['space']} does not say where left, anterior and superior are")
    affine = np.eye(4)
    vectors = re.findall(r"\(([^)]*)\)", fields["space directions"])
    (origin,) = re.findall(r"\(([^)]*)\)", fields.get("space origin", "(0, 0, 0)")) or ("",)
    affine[:3] = np.array([[float(part) for part in vector.split(",")] for vector in (*vectors, origin)]).T
    return affine * np.array([[*flips, 1.0]]).T


def _data(file: BufferedReader, encoding: str, size: int) -> bytes | bytearray:
    if encoding in ("bzip2", "bz2"):
        reader = bz2.BZ2Decompressor()
        packed = reader.decompress(file.read(), max_length=size + 1)
        if len(packed) != size or not reader.eof or reader.unused_data:
            raise NrrdError(f"holds other than the {size} bytes of voxels that its header says")
        return packed
    if encoding not in ("raw", "gzip", "gz"):
        raise NrrdError(f"encoding {encoding} is none of raw, gzip, bzip2")
    stream = file if encoding == "raw" else gzip.GzipFile(fileobj=file)
    data = bytearray(size)
    if (read := stream.readinto(data)) != size or stream.read(1):
        held = f"only {read}" if read != size else "more than"
        raise NrrdError(f"holds {held} of the {size} bytes of voxels that its header says")
    return data

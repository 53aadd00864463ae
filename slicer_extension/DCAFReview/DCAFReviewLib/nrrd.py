"""`Grid`: one slice of numbers with its place in the patient, and how it comes out of an NRRD file.

Format: https://teem.sourceforge.net/nrrd/format.html, as far as the server uses it: attached header, raw or
gzip encoding, three axes (column, row, slice) with one slice, space left-posterior-superior.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field

import numpy as np

_TYPES = {"unsigned char": "u1", "uint8": "u1", "uchar": "u1", "short": "i2", "int16": "i2",
          "unsigned short": "u2", "ushort": "u2", "uint16": "u2", "int": "i4", "int32": "i4",
          "unsigned int": "u4", "uint32": "u4", "float": "f4", "double": "f8"}
_ORDERS = {"little": "<", "big": ">"}
_NUMBER = r"[-+.\deE]+"
_VECTOR = re.compile(rf"\(\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\)")
_ESCAPED = re.compile(r"\\(\\|n)")
_GZIP = 31   # zlib's name for "a gzip header, largest window"


@dataclass(frozen=True)
class Grid:
    """Numbers on a plane of the patient.

    Args:
        values: ``(rows, columns)``, read-only.
        ijk_to_lps: ``(4, 4)``: index ``(column, row, slice, 1)`` of a cell's centre to millimetres,
            left-posterior-superior.
        fields: What the server says beside them: its ``dcaf_*`` header keys without the prefix.
    """

    values: np.ndarray = field(repr=False)
    ijk_to_lps: np.ndarray = field(repr=False)
    fields: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or not self.values.size:
            raise ValueError(f"values: need (rows, columns), got {self.values.shape}.")
        if self.ijk_to_lps.shape != (4, 4) or not np.isfinite(self.ijk_to_lps).all():
            raise ValueError("geometry: need a finite (4, 4) matrix, got another.")
        if abs(np.linalg.det(self.ijk_to_lps[:3, :3])) < 1e-12:
            raise ValueError("geometry: need three independent directions, got fewer.")


def parse_nrrd(data: bytes) -> Grid:
    """The slice in an NRRD file.

    Args:
        data: The whole file.

    Raises:
        ValueError: When it is no such file, or not all of one.
    """
    named, keyed, start = _header(data)
    try:
        sizes = [int(size) for size in named["sizes"].split()]
        kind = np.dtype(_TYPES[named["type"]])
        encoding, space = named["encoding"], named["space"].lower()
        vectors = [[float(number) for number in vector] for vector in
                   _VECTOR.findall(named["space directions"]) + _VECTOR.findall(named["space origin"])]
        order = _ORDERS[named["endian"]] if kind.itemsize > 1 else "|"
    except (KeyError, ValueError) as error:
        raise ValueError("nrrd: need sizes, type, encoding, endian and space, got others.") from error
    if len(sizes) != 3 or sizes[2] != 1 or min(sizes) < 1 or len(vectors) != 4:
        raise ValueError(f"nrrd: need one slice of three axes in space, got sizes {sizes}.")
    if space not in ("left-posterior-superior", "lps"):
        raise ValueError("nrrd: need the space left-posterior-superior, got another.")
    columns, rows, _ = sizes
    raw = _decoded(data[start:], encoding, rows * columns * kind.itemsize)
    matrix = np.eye(4)
    matrix[:3] = np.array(vectors).T
    values = np.frombuffer(raw, kind.newbyteorder(order)).reshape(rows, columns)
    return Grid(values.astype(kind, copy=False), matrix,
                {name[len("dcaf_"):]: text for name, text in keyed.items() if name.startswith("dcaf_")})


def _header(data: bytes) -> tuple[dict[str, str], dict[str, str], int]:
    """The fields, the key/value pairs, and where the numbers begin."""
    end = re.search(rb"\r?\n\r?\n", data[:65536])
    if not data.startswith(b"NRRD000") or end is None:
        raise ValueError("nrrd: need a file with an NRRD header, got something else.")
    named, keyed = {}, {}
    for line in data[:end.start()].decode("utf-8", "replace").splitlines()[1:]:
        found = re.match(r"([^:#]+):(=| )(.*)", line)
        if found is None:
            continue
        name, mark, text = found.groups()
        if mark == "=":
            keyed[name.strip()] = _ESCAPED.sub(lambda hit: "\n" if hit[1] == "n" else "\\", text.strip())
        else:
            named[name.strip().lower()] = text.strip()
    return named, keyed, end.end()


def _decoded(data: bytes, encoding: str, size: int) -> bytes:
    """``size`` bytes; a gzip stream that claims more is not unpacked further than that."""
    if encoding in ("gzip", "gz"):
        try:
            data = zlib.decompressobj(_GZIP).decompress(data, size + 1)
        except zlib.error as error:
            raise ValueError("nrrd: need whole gzip data, got broken data.") from error
    elif encoding != "raw":
        raise ValueError("nrrd: need raw or gzip encoding, got another.")
    if len(data) != size:
        raise ValueError(f"nrrd: need {size} bytes of numbers, got {len(data)}.")
    return data

"""What requests carry and what some answers are made of: JSON, form fields, files (RFC 7578)."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

_BLOCK = 2**20


@dataclass(frozen=True)
class Body:
    """What a request sends: its media type, its length in bytes, and the bytes themselves."""

    kind: str
    size: int
    blocks: bytes | Iterable[bytes]


def json_body(value: dict[str, Any]) -> Body:
    data = json.dumps(value).encode()
    return Body("application/json", len(data), data)


def form_body(params: dict[str, Any]) -> Body:
    data = urlencode({"params": json.dumps(params)}).encode()
    return Body("application/x-www-form-urlencoded", len(data), data)


def upload_body(path: Path, params: dict[str, Any]) -> Body:
    """Form data with a file, which is read while it is sent."""
    boundary = uuid.uuid4().hex
    suffix = "".join(re.findall(r"(?i)(\.nii\.gz|\.[a-z]{2,5})$", path.name))
    head = (f'--{boundary}\r\nContent-Disposition: form-data; name="params"\r\n\r\n{json.dumps(params)}\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="image{suffix}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n").encode()
    tail = f"\r\n--{boundary}--\r\n".encode()
    size = path.stat().st_size
    path.open("rb").close()   # a file that cannot be read is known before anything is sent

    def blocks() -> Iterator[bytes]:
        yield head
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                yield block
        yield tail

    return Body(f"multipart/form-data; boundary={boundary}", len(head) + size + len(tail), blocks())


def parts_of(kind: str, data: bytes) -> dict[str, bytes]:
    """The parts of a ``multipart/form-data`` answer by name."""
    boundary = re.search(r'boundary="?([^";]+)', kind)
    parts = {}
    for piece in data.split(b"--" + boundary[1].encode())[1:-1] if boundary else ():
        head, gap, body = piece.partition(b"\r\n\r\n")
        name = re.search(rb'\bname="([^"]*)"', head)
        if gap and name and body.endswith(b"\r\n"):
            parts[name[1].decode("utf-8", "replace")] = body[:-2]
    return parts

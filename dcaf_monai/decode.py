"""Decoding of compressed pixels in an expendable process.

Native decoders can abort, hang or fill the memory when a file is damaged or malicious, and no
``try`` helps. They therefore run in a worker process with a limit on memory and on time, which is
kept warm between images. A worker that dies is one `ImageError` for one image; the next image gets
a new worker. Before any decoder sees a codestream, the size it declares is compared with the size
the header declares.

The worker is a fresh interpreter, not a fork and not `multiprocessing`: it imports pydicom and
Pillow alone, does not care whether the caller's script has a ``__main__`` guard, and speaks
length-prefixed JSON and raw bytes, never pickle.
"""

from __future__ import annotations

import atexit
import json
import os
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from math import prod
from typing import IO, Any

import numpy as np

from dcaf_monai.image import ImageError

MAX_SAMPLES = 50_000_000
"""Largest picture that is decoded at all: rows x columns x samples."""
MIN_SIDE = 64
"""Smallest number of rows and of columns of a picture that is read."""
_START_S = 60.0
_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32")
_DAMAGED = "The file is damaged; ask its source for an uncompressed copy."
_HEADER = struct.Struct(">II")


class Decoder:
    """Worker processes that decode compressed pixels; safe to call from several threads.

    Args:
        timeout_s: Longest time one image may take; its worker is then killed.
        memory_bytes: Address space of a worker (where the system can limit it).
        workers: How many may run at once; by default one a processor.
    """

    def __init__(self, *, timeout_s: float = 20.0, memory_bytes: int = 4 << 30,
                 workers: int | None = None) -> None:
        self.timeout_s, self.memory_bytes = timeout_s, memory_bytes
        self._workers = workers or os.cpu_count() or 1
        self._idle: list[_Worker] = []
        self._forget()
        # A forked child must not share its parent's pipes.
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)
        atexit.register(self.close)

    def frame(self, codestream: bytes, *, syntax: str, rows: int, columns: int, samples: int,
              bits_allocated: int, bits_stored: int, signed: bool, photometric: str, planar: int = 0,
              reduce: int = 0) -> np.ndarray:
        """One decoded DICOM frame.

        Args:
            codestream: The compressed frame.
            syntax: Transfer Syntax UID.
            rows, columns, samples, bits_allocated, bits_stored, signed, photometric, planar: What
                the DICOM header says.
            reduce: For JPEG 2000: leave out this many resolution levels, each halving the sides.

        Returns:
            ``(rows, columns)`` or, for colour, ``(rows, columns, 3)`` as RGB; divided by
            ``2**reduce`` and rounded up.

        Raises:
            ImageError: ``size_mismatch``, ``no_decoder``, ``decode_failed``, ``decode_crashed`` or
                ``decode_timeout``.
        """
        check_size(codestream, rows, columns)
        reply, pixels = self._ask({
            "task": "frame", "syntax": syntax, "reduce": reduce, "rows": rows, "columns": columns,
            "samples": samples, "bits_allocated": bits_allocated, "bits_stored": bits_stored,
            "signed": signed, "photometric": photometric, "planar": planar}, codestream)
        expected = (-(-rows >> reduce), -(-columns >> reduce)) + ((3,) if samples == 3 else ())
        if pixels.shape != expected:
            raise ImageError("size_mismatch", f"Pixel data: need {expected[:2]} rows and columns, got "
                             f"{pixels.shape[:2]} from the decoder. The file is damaged.")
        return pixels

    def raster(self, data: bytes, *, frame: int | None = None) -> np.ndarray:
        """A PNG, JPEG or TIFF picture: ``(rows, columns)`` grey or ``(rows, columns, 3)`` RGB.

        Args:
            data: The whole file.
            frame: Page of a TIFF, 1-based.

        Raises:
            ImageError: As `frame`, and ``too_large``, ``frame_needed``, ``no_such_frame``,
                ``transparent``.
        """
        return self._ask({"task": "raster", "frame": frame}, data)[1]

    def close(self) -> None:
        """Ends the idle workers; a later image starts a new one."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.end()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(self._workers)
        self._idle = []

    def _ask(self, request: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], np.ndarray]:
        with self._slots:
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            if worker is None or worker.process.poll() is not None:
                worker = _Worker(self.memory_bytes)
            try:
                reply, pixels = worker.ask(request, payload, self.timeout_s)
            except BaseException:
                worker.end()
                raise
            with self._lock:
                self._idle.append(worker)
        if "error" in reply:
            raise ImageError(reply["error"], reply["message"])
        return reply, pixels


class _Worker:
    """One process and its two pipes, seen from the caller's side."""

    def __init__(self, memory_bytes: int) -> None:
        # Isolated start, then exactly our own module path: nothing in the working directory and no
        # environment variable changes what the worker imports.
        start = ("import json, sys; memory, sys.path[:] = json.loads(sys.argv[1]); "
                 "from dcaf_monai.decode import serve; serve(memory)")
        arguments = json.dumps([memory_bytes, [entry or os.getcwd() for entry in sys.path]])
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", start, arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"})
        try:
            self._read_reply(_START_S)
        except ImageError:
            self.end()
            raise

    def ask(self, request: dict[str, Any], payload: bytes, timeout_s: float,
            ) -> tuple[dict[str, Any], np.ndarray]:
        assert self.process.stdin is not None
        try:
            _write(self.process.stdin, {**request, "alarm_s": int(timeout_s) + 10}, payload)
        except OSError:
            pass  # the worker is gone: reading its answer tells so in the one right way
        return self._read_reply(timeout_s)

    def end(self) -> None:
        """Kills the process and waits for it; an idle one has nothing to lose."""
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):  # unsent bytes of a dead worker
                    pipe.close()
        self.process.wait()

    def _read_reply(self, timeout_s: float) -> tuple[dict[str, Any], np.ndarray]:
        assert self.process.stdout is not None
        late = threading.Event()

        def stop() -> None:
            late.set()
            self.process.kill()

        timer = threading.Timer(timeout_s, stop)
        timer.start()
        try:
            reply, raw = _read(self.process.stdout)
        except EOFError:
            if late.is_set():
                raise ImageError("decode_timeout", "Pixel data: need decoding within "
                                 f"{timeout_s:g} s, got no end. {_DAMAGED}") from None
            raise ImageError("decode_crashed", "Pixel data: need a readable stream, got one that ended the "
                             f"decoder. {_DAMAGED}") from None
        finally:
            timer.cancel()
        if "shape" not in reply:
            return reply, raw
        shape, dtype = tuple(reply["shape"]), reply["dtype"]
        if dtype not in _DTYPES or prod(shape) * np.dtype(dtype).itemsize != raw.size:
            raise ImageError("decode_failed", "Pixel data: need whole pixels, got another number of bytes "
                             "from the decoder. The file is damaged.")
        return reply, raw.view(dtype).reshape(shape)


decoder = Decoder()
"""The decoder everything shares; its first use starts a worker."""


def check_size(codestream: bytes, rows: int, columns: int) -> None:
    """Compares the size a codestream declares with the header's, before any decoder sees it.

    Raises:
        ImageError: ``size_mismatch``.
    """
    declared = codestream_size(codestream)
    if declared is not None and declared != (rows, columns):
        raise ImageError("size_mismatch", f"Pixel data: need {(rows, columns)} rows and columns as the "
                         f"header says, got a codestream of {declared}. The file is damaged.")


def codestream_size(codestream: bytes) -> tuple[int, int] | None:
    """``(rows, columns)`` from a JPEG 2000 SIZ or a JPEG / JPEG-LS frame header; None when there is none."""
    start = jpeg2000_start(codestream)
    if start is not None:
        if len(codestream) < start + 24:
            return 0, 0
        right, bottom, left, top = struct.unpack_from(">4I", codestream, start + 8)
        return bottom - top, right - left
    if codestream[:2] != b"\xff\xd8":
        return None
    position = 2
    while position + 9 <= len(codestream) and codestream[position] == 0xFF:
        marker = codestream[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker == 0xF7 or 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            rows, columns = struct.unpack_from(">HH", codestream, position + 5)
            return rows, columns
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:
            position += 2
        else:
            position += 2 + struct.unpack_from(">H", codestream, position + 2)[0]
    return None


def jpeg2000_start(codestream: bytes) -> int | None:
    """Where the JPEG 2000 codestream (SOC, SIZ) starts, also inside a JP2 box; None for other data."""
    if codestream[:4] == b"\xff\x4f\xff\x51":
        return 0
    if codestream[4:8] == b"jP  ":
        found = codestream.find(b"\xff\x4f\xff\x51", 0, 65536)
        return found if found >= 0 else None
    return None


def jpeg2000_levels(codestream: bytes) -> int:
    """How often a JPEG 2000 codestream can be halved without decoding more (COD, Annex A.6.1)."""
    start = jpeg2000_start(codestream)
    if start is None or codestream[start + 16:start + 24] != bytes(8):  # an offset grid is decoded whole
        return 0
    position = start + 2
    while position + 12 <= len(codestream) and codestream[position] == 0xFF:
        marker, length = codestream[position + 1], struct.unpack_from(">H", codestream, position + 2)[0]
        if marker == 0x52:
            return min(codestream[position + 9], 32)
        if marker == 0x90:  # start of a tile: the main header is over
            break
        position += 2 + length
    return 0


def _write(pipe: IO[bytes], header: dict[str, Any], payload: Any = b"") -> None:
    text = json.dumps(header).encode()
    pipe.write(_HEADER.pack(len(text), len(memoryview(payload).cast("B"))))
    pipe.write(text)
    pipe.write(payload)
    pipe.flush()


def _read(pipe: IO[bytes]) -> tuple[dict[str, Any], np.ndarray]:
    prefix = pipe.read(_HEADER.size)
    if len(prefix) < _HEADER.size:
        raise EOFError
    header_size, payload_size = _HEADER.unpack(prefix)
    text = pipe.read(header_size)
    payload = np.empty(payload_size, np.uint8)
    view, filled = memoryview(payload.data), 0
    while filled < payload_size:
        count = pipe.readinto(view[filled:])  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        filled += count
    if len(text) < header_size:
        raise EOFError
    return json.loads(text), payload


def serve(memory_bytes: int) -> None:
    """The worker's whole life: limits, then one answer for each request until the pipe closes."""
    # Native code may print; the answers go through a copy of stdout that it does not know.
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    from dcaf_monai.codecs import answer  # after the redirection: imports may print, too

    alarm = _limit(memory_bytes)
    _write(answers, {"ready": True})
    while True:
        try:
            request, payload = _read(requests)
        except EOFError:
            return
        alarm(request["alarm_s"])  # ends this process even when the parent is gone and native code hangs
        reply, pixels = answer(request, payload.tobytes())
        alarm(0)
        _write(answers, reply, np.ascontiguousarray(pixels).reshape(-1))


def _limit(memory_bytes: int) -> Any:
    """Sets the limits this system has; gives its alarm clock."""
    try:
        import resource
        import signal
    except ImportError:  # Windows: the time limit of the parent remains
        return lambda seconds: 0
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    return signal.alarm

"""The decode worker: right pixels, limits that hold, and one error for one image."""

import os
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image as Pillow
from pydicom.encaps import get_frame
from pydicom.pixels import compress
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from dcaf_monai.decode import Decoder, check_size, codestream_size, decoder, jpeg2000_levels
from dcaf_monai.image import ImageError
from dcaf_monai.phantom import Phantom, film_to_dicom


def _film(shape: tuple[int, int], *, bits: int = 12, signed: bool = False, seed: int = 0) -> np.ndarray:
    """A smooth picture with some grain, using the whole range of its bits."""
    y, x = np.mgrid[0:shape[0], 0:shape[1]] / max(shape)
    value = (np.sin(5 * x + 2) + np.cos(7 * y) + x * y + 2) / 5
    value = np.clip(value + np.random.default_rng(seed).normal(0, 0.002, shape), 0, 1)
    whole = np.rint(value * ((1 << bits) - 1)).astype(np.int32)
    if signed:
        return (whole - (1 << (bits - 1))).astype(np.int16)
    return whole.astype(np.uint16 if bits > 8 else np.uint8)


def _compressed(pixels: np.ndarray, syntax: str, *, bits: int = 12) -> tuple[bytes, dict[str, Any]]:
    """A codestream and the header words the decoder wants."""
    film = film_to_dicom(Phantom(np.zeros((64, 64), np.uint16), "normal", None, 0), name="t", patient="t")
    film.Rows, film.Columns = pixels.shape
    film.BitsAllocated, film.BitsStored, film.HighBit = pixels.itemsize * 8, bits, bits - 1
    film.PixelRepresentation = int(pixels.dtype.kind == "i")
    film.PixelData = pixels.tobytes()
    compress(film, syntax, generate_instance_uid=False)
    return get_frame(film.PixelData, 0, number_of_frames=1), {
        "syntax": syntax, "rows": pixels.shape[0], "columns": pixels.shape[1], "samples": 1,
        "bits_allocated": film.BitsAllocated, "bits_stored": bits, "signed": bool(film.PixelRepresentation),
        "photometric": "MONOCHROME2"}


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (12, False), (16, False), (12, True)])
def test_a_lossless_frame_comes_back_exactly(syntax: str, bits: int, signed: bool) -> None:
    pixels = _film((75, 97), bits=bits, signed=signed)
    codestream, header = _compressed(pixels, syntax, bits=bits)
    decoded = decoder.frame(codestream, **header)
    np.testing.assert_array_equal(decoded, pixels)
    assert decoded.dtype.kind == pixels.dtype.kind


@pytest.mark.parametrize(("bits", "signed"), [(8, False), (12, False), (12, True), (16, True)])
@pytest.mark.parametrize("shape", [(128, 192), (133, 201), (131, 197)])
@pytest.mark.parametrize("reduce", [1, 2, 3])
def test_a_reduced_frame_is_the_whole_seen_from_afar(bits: int, signed: bool, shape: tuple[int, int],
                                                      reduce: int) -> None:
    pixels = _film(shape, bits=bits, signed=signed)
    codestream, header = _compressed(pixels, JPEG2000Lossless, bits=bits)
    reduced = decoder.frame(codestream, reduce=reduce, **header)
    step = 1 << reduce
    assert reduced.shape == (-(-shape[0] // step), -(-shape[1] // step))
    # The low-pass of the 5/3 wavelet is centred on every step-th sample; compare smooth against smooth.
    expected = pixels[::step, ::step].astype(float)
    assert abs(reduced - expected)[1:-1, 1:-1].mean() < 0.01 * (1 << bits)
    assert abs(reduced - expected).max() < 0.06 * (1 << bits)


def test_a_frame_of_colour_comes_back_as_rgb() -> None:
    picture = np.zeros((66, 70, 3), np.uint8)
    picture[..., 0], picture[:33, :, 2] = 200, 90
    file = BytesIO()
    Pillow.fromarray(picture).save(file, "JPEG", quality=95, subsampling=0)
    decoded = decoder.frame(file.getvalue(), syntax="1.2.840.10008.1.2.4.50", rows=66, columns=70, samples=3,
                            bits_allocated=8, bits_stored=8, signed=False, photometric="YBR_FULL_422")
    assert decoded.shape == (66, 70, 3) and abs(decoded.astype(int) - picture)[:, :, 0].mean() < 4


def test_a_size_unlike_the_headers_is_refused_before_decoding() -> None:
    codestream, header = _compressed(_film((75, 97)), JPEG2000Lossless)
    assert codestream_size(codestream) == (75, 97)
    huge = codestream[:8] + struct.pack(">2I", 60000, 60000) + codestream[16:]
    with pytest.raises(ImageError, match="need .75, 97. rows and columns") as caught:
        decoder.frame(huge, **header)
    assert caught.value.code == "size_mismatch"


@pytest.mark.parametrize(("codestream", "size"), [
    (b"\xff\xd8\xff\xe0\x00\x04ab\xff\xc0\x00\x11\x08\x00\x07\x00\x05\x03", (7, 5)),  # after an APP0
    (b"\xff\xd8\xff\xff\xf7\x00\x0b\x08\x00\x07\x00\x05\x01", (7, 5)),  # JPEG-LS after a fill byte
    (b"\xff\xd8\xff\xc4\x00\x02\xff\xc9\x00\x0b\x08\x00\x07\x00\x05\x01", (7, 5)),  # DHT is no frame header
    (b"\xff\x4f\xff\x51\x00\x29\x00\x00" + struct.pack(">4I", 25, 37, 20, 30), (7, 5)),  # offset grid
    (b"\xff\x4f\xff\x51\x00\x29", (0, 0)), (b"\xff\xd8\xff\xe0\x00\x04ab", None), (b"", None),
    (b"RLE", None)])
def test_a_codestream_tells_its_size(codestream: bytes, size: tuple[int, int] | None) -> None:
    assert codestream_size(codestream) == size


def test_a_codestream_without_a_size_is_left_to_the_decoder() -> None:
    check_size(b"RLE has none", 5, 7)


def test_a_codestream_tells_how_often_it_can_be_halved() -> None:
    codestream, _ = _compressed(_film((131, 97)), JPEG2000Lossless)
    assert jpeg2000_levels(codestream) == 5
    assert jpeg2000_levels(codestream[:50]) == 0 and jpeg2000_levels(b"\xff\xd8") == 0


def test_a_broken_frame_is_an_error_and_the_worker_stays() -> None:
    one = Decoder(workers=1)
    pixels = _film((75, 97))
    codestream, header = _compressed(pixels, JPEG2000Lossless)
    one.frame(codestream, **header)
    process = one._idle[0].process.pid
    with pytest.raises(ImageError) as caught:
        one.frame(codestream[:200], **header)
    assert caught.value.code == "decode_failed"
    np.testing.assert_array_equal(one.frame(codestream, **header), pixels)
    assert one._idle[0].process.pid == process
    one.close()


def test_a_syntax_without_decoder_is_said() -> None:
    _, header = _compressed(_film((75, 97)), RLELossless)
    with pytest.raises(ImageError) as caught:
        decoder.frame(b"\xff\xd8", **{**header, "syntax": "1.2.840.10008.1.2.4.100"})
    assert caught.value.code == "no_decoder"


@pytest.fixture(scope="module")
def slow() -> tuple[bytes, dict[str, Any]]:
    """A frame whose decoding takes some tenths of a second."""
    return _compressed(_film((1800, 1700), bits=16), JPEG2000Lossless, bits=16)


def test_a_slow_image_is_one_error_and_the_next_one_is_read(slow: tuple[bytes, dict[str, Any]]) -> None:
    hasty = Decoder(timeout_s=0.1, workers=1)
    pixels = _film((75, 97))
    quick, quick_header = _compressed(pixels, RLELossless)
    with pytest.raises(ImageError, match="within 0.1 s") as caught:
        hasty.frame(slow[0], **slow[1])
    assert caught.value.code == "decode_timeout"
    hasty.timeout_s = 20
    np.testing.assert_array_equal(hasty.frame(quick, **quick_header), pixels)
    hasty.close()


def test_a_worker_that_dies_is_one_error_and_the_next_image_is_read(slow: tuple[bytes, dict[str, Any]],
                                                                    ) -> None:
    one = Decoder(workers=1)
    pixels = _film((75, 97))
    quick, quick_header = _compressed(pixels, RLELossless)
    one.frame(quick, **quick_header)
    worker = one._idle[0].process
    killer = threading.Timer(0.1, worker.kill)
    killer.start()
    with pytest.raises(ImageError) as caught:
        one.frame(slow[0], **slow[1])
    assert caught.value.code == "decode_crashed"
    np.testing.assert_array_equal(one.frame(quick, **quick_header), pixels)
    one._idle[0].process.kill()  # an idle worker may die, too
    one._idle[0].process.wait()
    np.testing.assert_array_equal(one.frame(quick, **quick_header), pixels)
    one.close()


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux")
def test_a_stream_that_wants_too_much_memory_is_an_error_within_bounds() -> None:
    codestream, header = _compressed(_film((75, 97)), JPEG2000Lossless)
    huge = codestream[:8] + struct.pack(">2I", 60000, 60000) + codestream[16:]
    start = time.monotonic()
    with pytest.raises(ImageError) as caught:
        decoder.frame(huge, **{**header, "rows": 60000, "columns": 60000})
    assert caught.value.code in ("decode_failed", "decode_crashed", "decode_timeout")
    assert time.monotonic() - start < 21
    np.testing.assert_array_equal(decoder.frame(codestream, **header).shape, (75, 97))


def test_several_threads_get_each_their_own_picture() -> None:
    two = Decoder(workers=2)
    films = [_film((70 + index, 90), seed=index) for index in range(6)]
    streams = [_compressed(film, RLELossless) for film in films]
    with ThreadPoolExecutor(6) as threads:
        decoded_films = threads.map(lambda stream: two.frame(stream[0], **stream[1]), streams)
        for film, decoded in zip(films, decoded_films, strict=True):
            np.testing.assert_array_equal(decoded, film)
    assert len(two._idle) <= 2
    two.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_has_workers_of_its_own() -> None:
    pixels = _film((75, 97))
    codestream, header = _compressed(pixels, RLELossless)
    decoder.frame(codestream, **header)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if (decoder.frame(codestream, **header) == pixels).all() else 1
            decoder.close()
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(decoder.frame(codestream, **header), pixels)


def test_a_script_without_a_main_guard_decodes(tmp_path: Path) -> None:
    film = film_to_dicom(Phantom(_film((75, 97)), "normal", None, 0), name="t", patient="t")
    compress(film, JPEG2000Lossless, generate_instance_uid=False)
    film.save_as(tmp_path / "film.dcm", enforce_file_format=True)
    (tmp_path / "json.py").write_text("raise SystemExit('a file of the working directory was imported')")
    script = tmp_path / "folder" / "script.py"
    script.parent.mkdir()
    script.write_text("from dcaf_monai.dicom import read_image\nprint(read_image('film.dcm').pixels.shape)\n")
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True,
                          timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("(75, 97)", 0), done.stderr


def test_the_worker_starts_without_torch() -> None:
    question = "import sys, dcaf_monai.codecs; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", question], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize("name", ["fuzz_rle_panic", "fuzz_native_abort", "fuzz_jls_slow_8s"])
def test_a_file_made_to_kill_decoders_is_one_error(name: str, shared_data: Path) -> None:
    header = pydicom.dcmread(shared_data / f"dicom_traps/synth/{name}.dcm")
    careful = Decoder(timeout_s=2, workers=1)
    start = time.monotonic()
    with pytest.raises(ImageError) as caught:
        careful.frame(
            get_frame(header.PixelData, 0, number_of_frames=1), syntax=header.file_meta.TransferSyntaxUID,
            rows=header.Rows, columns=header.Columns, samples=1, bits_allocated=header.BitsAllocated,
            bits_stored=header.BitsStored, signed=bool(header.PixelRepresentation),
            photometric=header.PhotometricInterpretation)
    assert caught.value.code in ("decode_failed", "decode_crashed", "decode_timeout", "size_mismatch")
    if name == "fuzz_jls_slow_8s":
        assert caught.value.code == "decode_timeout" and time.monotonic() - start < 10
    pixels = _film((75, 97))
    codestream, words = _compressed(pixels, RLELossless)
    np.testing.assert_array_equal(careful.frame(codestream, **words), pixels)
    careful.close()

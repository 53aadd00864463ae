"""DICOM to `Image`: hand-made films, and every trap file against its manifest."""

import csv
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, FileDataset
from pydicom.pixels import compress
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    OphthalmicTomographyImageStorage,
    SecondaryCaptureImageStorage,
)

from dcaf_monai.dicom import frame_count, read_header, read_image, read_many, sop_instance_uid
from dcaf_monai.grey import window
from dcaf_monai.image import Image, ImageError
from dcaf_monai.phantom import Phantom, film_to_dicom
from dcaf_monai.tasks import TASKS
from dcaf_monai.transforms import Preprocessing, read_input

SHARED = Path(__file__).resolve().parents[1].parent / "shared/data"
PIXELS = (np.arange(66)[:, None] * 50 + np.arange(70)).astype(np.uint16)


def _film(pixels: np.ndarray = PIXELS, **header: Any) -> FileDataset:
    """A 12-bit film without window; keywords set attributes, None removes one."""
    film = film_to_dicom(Phantom(pixels, "normal", None, 0.0), name="t", patient="t")
    del film.WindowCenter, film.WindowWidth
    for keyword, value in header.items():
        if value is None:
            delattr(film, keyword)
        else:
            setattr(film, keyword, value)
    return film


def _save(film: FileDataset, folder: Path) -> Path:
    path = folder / "film.dcm"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some films here are wrong on purpose
        film.save_as(path, enforce_file_format=True)
    return path


def _read(folder: Path, pixels: np.ndarray = PIXELS, **header: Any) -> Image:
    return read_image(_save(_film(pixels, **header), folder))


def _code(folder: Path, **header: Any) -> str:
    with pytest.raises(ImageError) as caught:
        _read(folder, **header)
    return caught.value.code


def test_a_plain_film_reads_as_stored(tmp_path: Path) -> None:
    film = _film()
    path = _save(film, tmp_path)
    image = read_image(path)
    np.testing.assert_array_equal(image.pixels, PIXELS)
    assert image.uid == film.SOPInstanceUID == sop_instance_uid(path) and len(image.sha256) == 64
    assert image.geometry.shape == (66, 70) and image.modality == "DX" and image.notices == ()
    assert "PixelData" not in image.header and frame_count(path) == 1
    assert "PixelData" not in read_header(path) and read_header(path).Rows == 66


def test_rows_come_before_columns_in_spacing(tmp_path: Path) -> None:
    image = _read(tmp_path, PixelSpacing=[0.25, 0.75])
    assert image.geometry.spacing_mm == (0.25, 0.75) and image.geometry.spacing_known
    np.testing.assert_allclose(image.geometry.point_mm(2, 4), [3, 0.5, 0])


@pytest.mark.parametrize(("header", "spacing", "known"), [
    ({"PixelSpacing": [0, 0]}, (0.8, 0.8), True),
    ({"PixelSpacing": None, "ImagerPixelSpacing": [0.1, 0.2]}, (0.1, 0.2), True),
    ({"PixelSpacing": None, "ImagerPixelSpacing": None, "NominalScannedPixelSpacing": [0.3, 0.4]},
     (0.3, 0.4), True),
    ({"PixelSpacing": None, "ImagerPixelSpacing": None}, (1.0, 1.0), False),
    ({"PixelSpacing": None, "ImagerPixelSpacing": None, "PixelAspectRatio": [3, 2]}, (1.5, 1.0), False)])
def test_spacing_comes_from_the_first_attribute_that_has_it(header: dict, spacing: tuple, known: bool,
                                                            tmp_path: Path) -> None:
    geometry = _read(tmp_path, **header).geometry
    assert (geometry.spacing_mm, geometry.spacing_known) == (spacing, known)


def test_an_image_with_a_plane_lies_in_it(tmp_path: Path) -> None:
    image = _read(tmp_path, ImageOrientationPatient=[0, 1, 0, 0, 0, -1], ImagePositionPatient=[10, 20, 30],
                  PixelSpacing=[2, 3])
    np.testing.assert_allclose(image.geometry.point_mm(2, 3), [10, 29, 26])


@pytest.mark.parametrize(("header", "expected"), [
    ({"RescaleSlope": "2", "RescaleIntercept": "-100"}, PIXELS * 2.0 - 100),
    ({"WindowCenter": "1000", "WindowWidth": "401"}, np.clip(PIXELS, 799.5, 1199.5)),  # C.11.2.1.2.1
    ({"WindowCenter": ["1000", "5"], "WindowWidth": ["401", "9"]}, np.clip(PIXELS, 799.5, 1199.5)),
    ({"WindowCenter": "1000", "WindowWidth": "400", "VOILUTFunction": "LINEAR_EXACT"},
     np.clip(PIXELS, 800, 1200)),
    ({"WindowCenter": "1000", "WindowWidth": "400", "VOILUTFunction": "SIGMOID"},
     1 / (1 + np.exp(-4 * (PIXELS - 1000.0) / 400))),
    ({"PhotometricInterpretation": "MONOCHROME1"}, 3319.0 - PIXELS),
    ({"PixelPaddingValue": 3319, "PhotometricInterpretation": "MONOCHROME1"},
     np.where(PIXELS == 3319, 1, 3319.0 - PIXELS)),
    ({"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 9}, np.where(PIXELS <= 9, 10, PIXELS)),
    ({"BitsStored": 8, "HighBit": 7}, PIXELS & 255)])
def test_stored_values_become_what_the_header_asks_for(header: dict, expected: np.ndarray,
                                                       tmp_path: Path) -> None:
    np.testing.assert_allclose(_read(tmp_path, **header).pixels, expected, atol=1e-3)


def test_signed_values_keep_their_sign_below_unused_bits(tmp_path: Path) -> None:
    signed = PIXELS.astype(np.int16) - 1000
    stored = (signed & 0x0FFF).astype(np.uint16) | 0x5000  # garbage above the 12 stored bits
    np.testing.assert_array_equal(_read(tmp_path, stored, PixelRepresentation=1).pixels, np.where(
        signed > 2047, signed - 4096, signed))


def _lut(first: int, values: list[int]) -> Sequence:
    item = Dataset()
    item.LUTDescriptor = [len(values), first, 16]
    item.add_new("LUTData", "US", values)
    item.ModalityLUTType = "US"
    return Sequence([item])


def test_a_lookup_table_is_applied_and_holds_its_ends(tmp_path: Path) -> None:
    table = [7, 500, 30, 9]
    expected = np.array(table)[np.clip(PIXELS.astype(int) - 100, 0, 3)]
    image = _read(tmp_path, VOILUTSequence=_lut(100, table))
    np.testing.assert_array_equal(image.pixels, expected)
    modality = {"RescaleSlope": None, "RescaleIntercept": None, "RescaleType": None}
    image = _read(tmp_path, ModalityLUTSequence=_lut(100, table), **modality)
    np.testing.assert_array_equal(image.pixels, expected)


@pytest.mark.parametrize("header", [
    {"WindowCenter": "1000", "WindowWidth": "0"}, {"WindowCenter": "1000", "WindowWidth": "0.5"},
    {"WindowCenter": "1000", "WindowWidth": "-4", "VOILUTFunction": "SIGMOID"},
    {"WindowCenter": "1000", "WindowWidth": "400", "VOILUTFunction": "CUBIC"}])
def test_an_invalid_window_is_left_out_and_said(header: dict, tmp_path: Path) -> None:
    image = _read(tmp_path, **header)
    assert [notice.code for notice in image.notices] == ["window_ignored"]
    np.testing.assert_array_equal(image.pixels, PIXELS)


def test_an_empty_lookup_table_falls_back_to_the_window(tmp_path: Path) -> None:
    image = _read(tmp_path, VOILUTSequence=Sequence([]), WindowCenter="1000", WindowWidth="401")
    np.testing.assert_allclose(image.pixels, np.clip(PIXELS, 799.5, 1199.5))


def test_a_window_of_width_one_is_a_threshold() -> None:
    np.testing.assert_array_equal(window(np.array([[1, 2, 3]], np.float32), 2.5, 1), [[0, 0, 1]])


@pytest.mark.parametrize(("header", "code"), [
    ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}, "sop_class"), ({"PixelData": None}, "no_pixels"),
    ({"SOPInstanceUID": "../../etc"}, "bad_uid"), ({"SOPInstanceUID": "1" * 65}, "bad_uid"),
    ({"Rows": 63}, "too_small"), ({"Rows": 65535, "Columns": 65535}, "too_large"),
    ({"HighBit": 15}, "bits"), ({"BitsStored": 17, "HighBit": 16}, "bits"), ({"BitsAllocated": 32}, "bits"),
    ({"PhotometricInterpretation": "PALETTE COLOR"}, "photometric"), ({"SamplesPerPixel": 3}, "photometric"),
    ({"BitsStored": None}, "bad_header"), ({"PixelData": bytes(500)}, "truncated"),
    ({"RescaleSlope": "0"}, "constant"), ({"PixelData": bytes(66 * 70 * 2)}, "constant"),
    ({"PixelSpacing": ["1E308", "1E308"]}, "geometry"), ({"PixelSpacing": ["1E-9", "1E-9"]}, "geometry"),
    ({"PixelSpacing": ["100", "0.1"]}, "geometry"),
    ({"NumberOfFrames": "2"}, "truncated"), ({"NumberOfFrames": "-2"}, "bad_header"),
    ({"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 4095}, "constant")])
def test_a_film_that_cannot_be_right_is_refused_with_its_code(header: dict, code: str,
                                                              tmp_path: Path) -> None:
    assert _code(tmp_path, **header) == code


def test_no_message_holds_what_the_header_says_of_the_patient(tmp_path: Path) -> None:
    secret = {"PatientName": "Muster^Petra", "PatientID": "4711"}
    for wrong in ({"Rows": 63}, {"PhotometricInterpretation": "Muster"}, {"SOPInstanceUID": "Muster"},
                  {"PixelData": None}, {"SOPClassUID": "1.2.4711"}):
        with pytest.raises(ImageError) as caught:
            _read(tmp_path, **secret, **wrong)
        assert "Muster" not in str(caught.value) and "4711" not in str(caught.value)
        assert caught.value.__cause__ is None or "Muster" not in str(caught.value.__cause__)


@pytest.mark.parametrize(("header", "code"), [
    ({"BurnedInAnnotation": "YES"}, "burned_in"),
    ({"PresentationIntentType": "FOR PROCESSING"}, "for_processing"),
    ({"PatientOrientation": ["R", "F"]}, "not_reoriented"),
    ({"PixelData": PIXELS.tobytes() + bytes(8)}, "long_pixel_data")])
def test_what_a_reader_should_know_is_noticed(header: dict, code: str, tmp_path: Path) -> None:
    assert [notice.code for notice in _read(tmp_path, **header).notices] == [code]


def test_a_frame_is_named_and_read_alone(tmp_path: Path) -> None:
    frames = np.stack([PIXELS, PIXELS + 1, PIXELS[::-1]])
    film = _film(SOPClassUID=OphthalmicTomographyImageStorage, Modality="OPT", NumberOfFrames="3")
    film.file_meta.MediaStorageSOPClassUID = OphthalmicTomographyImageStorage
    film.PixelData = frames.tobytes()
    del film.PixelSpacing, film.ImagerPixelSpacing
    film.SharedFunctionalGroupsSequence = [_group("PixelMeasuresSequence", PixelSpacing=[0.004, 0.012])]
    film.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence = _group(
        "PlaneOrientationSequence", ImageOrientationPatient=[1, 0, 0, 0, 0, -1]).PlaneOrientationSequence
    film.PerFrameFunctionalGroupsSequence = [
        _group("PlanePositionSequence", ImagePositionPatient=[0, 0.25 * index, 0]) for index in range(3)]
    path = _save(film, tmp_path)
    uid = film.SOPInstanceUID
    image = read_image(path, frame=3)
    np.testing.assert_array_equal(image.pixels, PIXELS[::-1])
    assert image.uid == f"{uid}:3" == read_image(path, uid=f"{uid}:3").uid and frame_count(path) == 3
    assert image.geometry.spacing_mm == (0.004, 0.012)
    np.testing.assert_allclose(image.geometry.point_mm(10, 0), [0, 0.5, -0.04])
    for arguments, code in (
            ({}, "frame_needed"), ({"frame": 4}, "no_such_frame"), ({"frame": 0}, "no_such_frame"),
            ({"uid": "1.2.3"}, "wrong_uid"), ({"uid": f"{uid}:1", "frame": 2}, "wrong_uid")):
        with pytest.raises(ImageError) as caught:
            read_image(path, **arguments)
        assert caught.value.code == code


@pytest.mark.parametrize(("frames", "code"), [("2147483647", "too_large"), ("4", "truncated")])
def test_more_frames_than_the_file_can_hold_are_refused(frames: str, code: str, tmp_path: Path) -> None:
    path = _save(_film(NumberOfFrames=frames), tmp_path)
    for ask in (frame_count, read_image):
        with pytest.raises(ImageError) as caught:
            ask(path)
        assert caught.value.code == code


def _group(sequence: str, **attributes: Any) -> Dataset:
    inner, outer = Dataset(), Dataset()
    for keyword, value in attributes.items():
        setattr(inner, keyword, value)
    setattr(outer, sequence, Sequence([inner]))
    return outer


def test_colour_is_refused_and_grey_stored_as_colour_is_read(tmp_path: Path) -> None:
    grey = np.repeat((PIXELS >> 4).astype(np.uint8)[..., None], 3, axis=2)
    colour = {"SOPClassUID": SecondaryCaptureImageStorage, "SamplesPerPixel": 3, "PlanarConfiguration": 0,
              "PhotometricInterpretation": "RGB", "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    read = _read(tmp_path, PixelData=grey.tobytes(), **colour)
    np.testing.assert_allclose(read.pixels, PIXELS >> 4, atol=1e-3)
    tinted = (grey * [1.0, 0.9, 0.8]).astype(np.uint8)
    assert _code(tmp_path, PixelData=tinted.tobytes(), **colour) == "colour"


def test_a_jpeg2000_film_is_decoded_no_larger_than_needed(tmp_path: Path) -> None:
    pixels = np.kron(PIXELS, np.ones((3, 4), np.uint16))
    film = _film(pixels)
    compress(film, JPEG2000Lossless, generate_instance_uid=False)
    path = _save(film, tmp_path)
    np.testing.assert_array_equal(read_image(path).pixels, pixels)
    small = read_image(path, max_side=100)
    assert small.pixels.shape == (99, 140) and small.geometry.shape == (198, 280)
    assert small.pixels.shape == read_image(path, max_side=140).pixels.shape
    assert read_image(path, max_side=141).pixels.shape == (198, 280)
    assert abs(small.pixels - pixels[::2, ::2]).mean() < 12


def test_a_deflated_film_is_read_and_a_bomb_given_up(tmp_path: Path) -> None:
    film = _film()
    film.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path = _save(film, tmp_path)
    np.testing.assert_array_equal(read_image(path).pixels, PIXELS)
    whole = path.read_bytes()
    deflater = zlib.compressobj(1, wbits=-15)
    body = [deflater.compress(bytes(1 << 20)) for _ in range(258)]
    path.write_bytes(whole[:whole.index(b"1.2.840.10008.1.2.1.99") + 22] + b"".join(body))
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert caught.value.code == "too_large"


def test_one_bad_file_stops_nothing(tmp_path: Path) -> None:
    good, bad = _save(_film(), tmp_path), tmp_path / "bad.dcm"
    bad.write_bytes(bytes(128) + b"DICM")
    found = list(read_many([bad, good, tmp_path / "missing.dcm"]))
    assert [path for path, _ in found] == [bad, good, tmp_path / "missing.dcm"]
    assert [getattr(result, "code", "read") for _, result in found] == [
        "no_transfer_syntax", "read", "unreadable"]


@pytest.mark.parametrize(("content", "code"), [
    (b"", "not_dicom"), (bytes(200), "not_dicom"), (bytes(128) + b"DICM", "no_transfer_syntax")])
def test_a_header_that_is_none_is_refused(content: bytes, code: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    for ask in (sop_instance_uid, frame_count, read_header):
        with pytest.raises(ImageError) as caught:
            ask(tmp_path / "x")
        assert caught.value.code == code
    with pytest.raises(ImageError) as caught:
        sop_instance_uid(tmp_path / "missing")
    assert caught.value.code == "unreadable"


# --- the trap files ---

def _manifest() -> list[dict[str, str]]:
    path = SHARED / "dicom_traps/manifest.csv"
    if not path.is_file():
        return []
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


needs_traps = pytest.mark.skipif(not _manifest(),
                                 reason="needs ../shared/data/dicom_traps, which is not here")
TRAPS = [pytest.param(row, id=row["file"]) for row in _manifest()]
NAMED = {  # what the manifest leaves open, or where the code matters
    "real/RG1_J2KI.dcm": "", "real/plj_RG1_JLSN.dcm": "", "real/WG04_RG3_J2KR.dcm": "",
    "real/WG04_RG3_JLSN.dcm": "", "real/dwv_gdcm-CR-MONO1-10-chest.dcm": "", "real/vlut_04.dcm": "",
    "real/mlut_18.dcm": "", "real/image_dfl.dcm": "", "synth/many_private_elements.dcm": "",
    "synth/window_zero.dcm": "", "synth/utf8_no_charset.dcm": "", "synth/voi_sigmoid.dcm": "",
    "synth/polyglot_pe.dcm": "", "synth/burned_in_flag_yes.dcm": "", "synth/anisotropic.dcm": "",
    # JPEG lossless and 12-bit JPEG have no decoder with a licence that fits
    "real/WG04_RG3_JPLL.dcm": "no_decoder", "real/fo_CR-ModalitySequenceLUT.dcm": "no_decoder",
    "real/SC_rgb_jpeg_gdcm.dcm": "no_decoder", "real/WG04_RG2_JPLY.dcm": "decode_failed",
    "real/WG04_RG3_JPLY.dcm": "decode_failed",
    "real/SC_rgb_jpeg_dcmtk.dcm": "colour", "real/SC_rgb_dcmtk_+eb+cy+np.dcm": "colour",
    "real/SC_ybr_full_422_uncompressed.dcm": "colour", "real/fo_GH538-jpeg1.dcm": "colour",
    "real/fo_JPEGwithIcon.dcm": "colour", "real/dicomdirtests_77654033_CR1_6154": "too_small",
    "real/SC_rgb_32bit.dcm": "bits", "synth/eq_no_preamble.dcm": "not_an_image",
    "synth/j2k_header_huge.dcm": "size_mismatch", "synth/deflate_bomb_2GB.dcm": "too_large",
    "synth/gz_bomb_1GB.dcm.gz": "archive", "synth/zip_slip_bomb.zip": "archive",
    "synth/huge_declared_dims.dcm": "too_large", "synth/huge_frames.dcm": "too_large",
    "synth/multiframe3.dcm": "frame_needed", "synth/opt_3frames_oct_converter.dcm": "frame_needed",
    "synth/hostile_strings.dcm": "bad_uid", "synth/slope_zero.dcm": "constant",
    "synth/nested_sq_5000.dcm": "damaged", "synth/rle_bad_offset.dcm": "decode_failed",
    "synth/short_pixeldata.dcm": "truncated", "synth/bad_pi.dcm": "photometric",
}
MUST_FAIL = ("clear rejection", "reject", "colour", "rejected by")
MUST_READ = ("same", "classify", "accept with warning")


@needs_traps
@pytest.mark.parametrize("row", TRAPS)
def test_a_trap_file_is_read_or_refused_as_its_manifest_asks(row: dict[str, str]) -> None:
    try:
        image = read_image(SHARED / "dicom_traps" / row["file"], max_side=448)
    except ImageError as error:
        code = error.code
        assert code and ": " in str(error) and len(str(error)) < 250
    else:
        code = ""
        assert np.isfinite(image.pixels).all() and image.pixels.min() < image.pixels.max()
        assert not row["expected"].startswith(MUST_FAIL)
        if row["expected"].startswith("out-of-domain"):
            assert image.notices or TASKS["pneumonia"].notices(image)
    if row["file"] in NAMED:
        assert code == NAMED[row["file"]]
    elif row["expected"].startswith(MUST_READ):
        assert code in ("", "sop_class")


@needs_traps
@pytest.mark.parametrize(("name", "notice"), [
    ("orient_hflip", "not_reoriented"), ("orient_vflip", "not_reoriented"),
    ("orient_rot90", "not_reoriented"), ("burned_in_flag_yes", "burned_in"),
    ("polyglot_pe", "executable_preamble"),
    ("long_pixeldata", "long_pixel_data"), ("window_zero", "window_ignored"), ("view_lateral", "wrong_view"),
    ("bodypart_hand", "wrong_body_part")])
def test_a_trap_that_is_read_says_what_is_wrong(name: str, notice: str) -> None:
    image = read_image(SHARED / f"dicom_traps/synth/{name}.dcm")
    assert notice in [found.code for found in image.notices + TASKS["pneumonia"].notices(image)]


@needs_traps
def test_one_chest_film_in_many_encodings_is_one_model_input() -> None:
    inputs = {}
    for row in _manifest():
        if row["group"] == "chest" and row["file"] != "synth/eq_no_preamble.dcm":  # refused: no preamble
            inputs[row["file"]] = read_input(SHARED / "dicom_traps" / row["file"], Preprocessing())[1]
    assert len(inputs) == 16
    reference = inputs["synth/eq_16bit.dcm"]
    assert {name: float((other - reference).abs().max()) for name, other in inputs.items()
            if (other - reference).abs().max() > 0.005} == {}


@needs_traps
def test_one_film_under_two_codecs_is_close_to_itself() -> None:
    preprocessing = Preprocessing()
    for first, second in (("RG1_J2KI", "plj_RG1_JLSN"), ("WG04_RG3_J2KR", "WG04_RG3_JLSN")):
        one, other = (read_input(SHARED / f"dicom_traps/real/{name}.dcm", preprocessing)[1]
                      for name in (first, second))
        assert (one - other).abs().mean() < 0.01


@needs_traps
def test_a_film_with_a_false_inversion_tag_is_noticed() -> None:
    image = read_image(SHARED / "dicom/chest/xrv_Fake_MONOHR1.dcm")
    assert [notice.code for notice in TASKS["pneumonia"].notices(image)] == ["looks_inverted"]
    for name in ("xrv_rsna_CR_1024", "dwv_gdcm-CR-MONO1-10-chest"):
        image = read_image(SHARED / f"dicom/chest/{name}.dcm")
        assert image.notices + TASKS["pneumonia"].notices(image) == ()

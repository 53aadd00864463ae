"""`read_display` and its NRRD: every value, turned and placed as `read_image` has it, windowed by nobody."""

from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
from PIL import Image as Pillow
from pydicom.pixels import compress
from pydicom.uid import JPEG2000Lossless, OphthalmicTomographyImageStorage

from dcaf_monai.dicom import read_display, read_image
from dcaf_monai.grey import narrow
from dcaf_monai.image import Display, Geometry, ImageError
from dcaf_monai.overlay import display_nrrd
from dcaf_monai.phantom import Phantom, film_to_dicom

PIXELS = (np.arange(66)[:, None] * 50 + np.arange(70)).astype(np.uint16)

INVERTED = {"PhotometricInterpretation": "MONOCHROME1"}


def film(pixels: np.ndarray = PIXELS, **header: Any) -> Any:
    """A 12-bit film without window; keywords set attributes."""
    made = film_to_dicom(Phantom(pixels, "normal", None, 0.0), name="t", patient="t")
    del made.WindowCenter, made.WindowWidth
    for keyword, value in header.items():
        setattr(made, keyword, value)
    return made


def saved(folder: Path, made: Any) -> Path:
    made.save_as(folder / "film.dcm", enforce_file_format=True)
    return folder / "film.dcm"


def unpacked(data: bytes) -> tuple[np.ndarray, dict[str, Any]]:
    """Values ``(rows, columns)`` and header as an independent reader has them."""
    stream = BytesIO(data)
    header = nrrd.read_header(stream)
    return nrrd.read_data(header, stream)[:, :, 0].T, header


@pytest.mark.parametrize(("header", "kind"), [
    ({}, "uint16"), (INVERTED, "uint16"),
    ({"RescaleSlope": "2", "RescaleIntercept": "-100"}, "int16"),
    ({"RescaleSlope": "-3", "RescaleIntercept": "20"}, "int16"),
    ({"RescaleSlope": "10", "RescaleIntercept": "-100"}, "float32"),
    ({"RescaleSlope": "0.5", "RescaleIntercept": "0.25", **INVERTED}, "float32"),
    ({"RescaleSlope": "2", "RescaleIntercept": "-4000", **INVERTED}, "int16"),
    ({"PixelPaddingValue": 3319, **INVERTED}, "uint16"),
    ({"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 9}, "uint16"),
    ({"BitsStored": 8, "HighBit": 7}, "uint16")])
def test_without_a_voi_a_viewer_gets_the_values_the_network_gets(header: dict, kind: str,
                                                                 tmp_path: Path) -> None:
    path = saved(tmp_path, film(**header))
    display = read_display(path)
    np.testing.assert_array_equal(display.values.astype(np.float32), read_image(path).pixels)
    assert display.values.dtype == kind and display.window_source == "percentiles"


def test_signed_values_that_fill_their_type_are_turned_without_overflow(tmp_path: Path) -> None:
    signed = np.linspace(-32768, 32767, 66 * 70).round().astype(np.int16).reshape(66, 70)
    made = film(signed.view(np.uint16), PixelRepresentation=1, BitsStored=16, HighBit=15,
                PhotometricInterpretation="MONOCHROME1")
    values = read_display(saved(tmp_path, made)).values
    np.testing.assert_array_equal(values, -1 - signed.astype(np.int32))
    assert values.dtype == np.int16


def test_the_files_window_is_told_and_not_applied(tmp_path: Path) -> None:
    display = read_display(saved(tmp_path, film(WindowCenter=["1000", "5"], WindowWidth=["401", "9"])))
    assert display.window == (1000, 401) and display.window_source == "dicom"
    np.testing.assert_array_equal(display.values, PIXELS)


def test_the_window_of_an_inverted_film_is_turned_with_its_values(tmp_path: Path) -> None:
    path = saved(tmp_path, film(WindowCenter="1000", WindowWidth="400", VOILUTFunction="LINEAR_EXACT",
                                PhotometricInterpretation="MONOCHROME1"))
    display = read_display(path)
    assert display.window == (3319 - 1000, 400)
    np.testing.assert_array_equal(display.values, 3319 - PIXELS)
    centre, width = display.window
    shown = np.clip(display.values, centre - width / 2, centre + width / 2)     # as a viewer does it
    pixels = read_image(path).pixels
    np.testing.assert_allclose(shown - shown.min(), pixels - pixels.min(), atol=1e-3)


@pytest.mark.parametrize(("centre", "width"), [("", ""), ("5", "0"), ("5", "-1")])
def test_a_file_without_a_valid_window_gets_one_from_its_percentiles(centre: str, width: str,
                                                                     tmp_path: Path) -> None:
    display = read_display(saved(tmp_path, film(WindowCenter=centre, WindowWidth=width)))
    low, high = np.percentile(PIXELS, (0.5, 99.5))
    assert display.window == pytest.approx(((low + high) / 2, high - low))
    assert display.window_source == "percentiles"


def test_a_compressed_film_and_one_of_a_single_value_are_shown(tmp_path: Path) -> None:
    made = film()
    compress(made, JPEG2000Lossless, generate_instance_uid=False)
    np.testing.assert_array_equal(read_display(saved(tmp_path, made)).values, PIXELS)
    flat = read_display(saved(tmp_path, film(np.full_like(PIXELS, 7))))
    assert (flat.values == 7).all() and flat.window == (7, 1)


def test_a_frame_is_named_by_its_number_and_another_file_is_refused(tmp_path: Path) -> None:
    stack = np.stack([PIXELS, PIXELS + 1, PIXELS + 2])
    made = film(SOPClassUID=OphthalmicTomographyImageStorage, NumberOfFrames=3)
    made.file_meta.MediaStorageSOPClassUID = OphthalmicTomographyImageStorage
    made.PixelData = stack.tobytes()
    path = saved(tmp_path, made)
    np.testing.assert_array_equal(read_display(path, uid=f"{made.SOPInstanceUID}:3").values, stack[2])
    for wrong, code in (({"uid": "1.2:3"}, "wrong_uid"), ({}, "frame_needed"),
                        ({"frame": 4}, "no_such_frame")):
        with pytest.raises(ImageError) as caught:
            read_display(path, **wrong)
        assert caught.value.code == code


@pytest.mark.parametrize(("pixels", "kind"), [
    (PIXELS * 19, "uint16"), ((PIXELS >> 4).astype(np.uint8), "uint8")])
def test_a_picture_keeps_its_type(pixels: np.ndarray, kind: str, tmp_path: Path) -> None:
    Pillow.fromarray(pixels).save(tmp_path / "picture.png")
    display = read_display(tmp_path / "picture.png")
    np.testing.assert_array_equal(display.values, pixels)
    assert display.values.dtype == kind


def test_a_grey_picture_stored_as_rgb_is_one_of_bytes(tmp_path: Path) -> None:
    grey = (PIXELS >> 4).astype(np.uint8)
    Pillow.fromarray(np.repeat(grey[..., None], 3, axis=2)).save(tmp_path / "picture.png")
    display = read_display(tmp_path / "picture.png")
    np.testing.assert_array_equal(display.values, grey)
    assert display.values.dtype == np.uint8


def test_a_nifti_slice_keeps_its_type_and_place(tmp_path: Path) -> None:
    affine = np.array([[0, 0, 2, -7], [0.5, 0, 0, 8], [0, -0.25, 0, 9], [0, 0, 0, 1.0]])
    volume = np.stack([PIXELS.T, PIXELS.T + 5], axis=2).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / "v.nii")
    display, image = read_display(tmp_path / "v.nii", frame=2), read_image(tmp_path / "v.nii", frame=2)
    np.testing.assert_array_equal(display.values, PIXELS + 5)
    assert display.values.dtype == np.int16 and display.geometry == image.geometry


def test_the_nrrd_is_what_an_independent_reader_makes_of_it(tmp_path: Path) -> None:
    path = saved(tmp_path, film(PixelSpacing=[0.25, 0.75], PatientOrientation=["L", "F"],
                                ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
                                ImagePositionPatient=[10, 20.125, 30], WindowCenter="999.5",
                                WindowWidth="800"))
    values, header = unpacked(display_nrrd(read_display(path)))
    np.testing.assert_array_equal(values, PIXELS)
    assert header["space"] == "left-posterior-superior" and header["encoding"] == "raw"
    assert header["dcaf_window"] == "999.5 800.0" and header["dcaf_window_source"] == "dicom"
    assert header["dcaf_patient_orientation"] == "L\\F"
    column, row = np.array([header["space directions"][axis] for axis in (0, 1)])
    np.testing.assert_allclose(header["space origin"] + 2 * row + 3 * column,
                               read_image(path).geometry.point_mm(2, 3))


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "float32"])
def test_every_type_of_value_travels_by_nrrd(kind: str) -> None:
    values = (np.arange(35).reshape(5, 7) * 7).astype(kind)
    display = Display(values, Geometry((5, 7)), (3, 5), "percentiles", "x\ny:=z")
    found, header = unpacked(display_nrrd(display))
    np.testing.assert_array_equal(found, values)
    assert found.dtype == kind and "dcaf_patient_orientation" not in header and "y" not in header


def test_values_are_kept_in_the_smallest_lawful_type() -> None:
    for values, kind in (([0, 255], "uint8"), ([-1, 255], "int16"), ([0, 65535], "uint16"),
                         ([-1, 40000], "float32"), ([0.5, 1.0], "float32")):
        found = narrow(np.array([values]))
        assert found.dtype == kind and found.tolist() == [values]


def test_a_display_is_valid_at_birth() -> None:
    with pytest.raises(ValueError, match="values: need"):
        Display(np.zeros((5, 7)), Geometry((5, 7)), (0, 1), "dicom")
    for window in ((0.0, 0.0), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="window: need"):
            Display(np.zeros((5, 7), np.uint8), Geometry((5, 7)), window, "dicom")

"""PNG, JPEG, TIFF and NIfTI: the right way round, the right values, and clear refusals."""

import gzip
import zipfile
from io import BytesIO
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image as Pillow

from dcaf_monai.dicom import read_image
from dcaf_monai.image import ImageError

RAMP = (np.arange(66)[:, None] * 300 + np.arange(70)).astype(np.uint16)


def _code(path: Path, **arguments: int) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(path, **arguments)
    assert "need" in str(caught.value)
    return caught.value.code


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("pixels", [RAMP, (RAMP >> 7).astype(np.uint8)])
def test_a_lossless_picture_keeps_its_values(suffix: str, pixels: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / f"picture.{suffix}"
    Pillow.fromarray(pixels).save(path)
    image = read_image(path)
    np.testing.assert_array_equal(image.pixels, pixels)
    assert image.uid == path.name and image.geometry.shape == (66, 70)
    assert not image.geometry.spacing_known and image.notices == () and image.modality == ""


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    path = tmp_path / "film.dcm"
    Pillow.fromarray(RAMP).save(path, "PNG")
    assert read_image(path, uid="site/film.dcm").uid == "site/film.dcm"


def test_a_jpeg_stored_as_rgb_is_grey_and_a_tinted_one_says_so(tmp_path: Path) -> None:
    grey = np.repeat((RAMP >> 7).astype(np.uint8)[..., None], 3, axis=2)
    Pillow.fromarray(grey).save(tmp_path / "grey.jpg", quality=95)
    tinted = (grey * [1.0, 0.9, 0.7]).astype(np.uint8)
    Pillow.fromarray(tinted).save(tmp_path / "tinted.jpg", quality=95)
    assert read_image(tmp_path / "grey.jpg").notices == ()
    image = read_image(tmp_path / "tinted.jpg")
    assert [notice.code for notice in image.notices] == ["colour"]
    luma = tinted @ [0.299, 0.587, 0.114]
    assert abs(image.pixels - luma).mean() < 1.5


def test_a_photograph_taken_sideways_is_read_upright(tmp_path: Path) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    Pillow.fromarray((RAMP >> 7).astype(np.uint8)).save(tmp_path / "p.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "p.png").pixels, np.rot90(RAMP >> 7, -1))


def test_a_tiff_of_several_pages_needs_a_frame(tmp_path: Path) -> None:
    pages = [Pillow.fromarray((RAMP >> 7).astype(np.uint8) + page) for page in range(3)]
    pages[0].save(tmp_path / "p.tiff", save_all=True, append_images=pages[1:])
    assert _code(tmp_path / "p.tiff") == "frame_needed"
    assert _code(tmp_path / "p.tiff", frame=4) == "no_such_frame"
    image = read_image(tmp_path / "p.tiff", frame=2)
    assert image.uid == "p.tiff:2"
    np.testing.assert_array_equal(image.pixels, (RAMP >> 7) + 1)


def test_a_transparent_picture_is_refused_and_an_opaque_one_read(tmp_path: Path) -> None:
    rgba = np.repeat((RAMP >> 7).astype(np.uint8)[..., None], 4, axis=2)
    Pillow.fromarray(rgba).save(tmp_path / "clear.png")
    assert _code(tmp_path / "clear.png") == "transparent"
    rgba[..., 3] = 255
    Pillow.fromarray(rgba).save(tmp_path / "opaque.png")
    np.testing.assert_allclose(read_image(tmp_path / "opaque.png").pixels, RAMP >> 7, atol=1e-3)


def _nifti(path: Path, values: np.ndarray, affine: np.ndarray) -> Path:
    nibabel.Nifti1Image(values, affine).to_filename(path)
    return path


@pytest.mark.parametrize("name", ["film.nii", "film.nii.gz"])
def test_a_nifti_lies_where_its_affine_says(name: str, tmp_path: Path) -> None:
    # Array axes (i, j) are columns, rows; i runs to the patient's left, j to the feet, 0.5 and 0.25 mm.
    affine = np.array([[-0.5, 0, 0, 10], [0, 0, 1, 20], [0, -0.25, 0, 30], [0, 0, 0, 1.0]])
    values = RAMP.T.astype(np.int16)
    image = read_image(_nifti(tmp_path / name, values, affine))
    np.testing.assert_array_equal(image.pixels, RAMP)
    assert image.geometry.shape == (66, 70) and image.geometry.spacing_mm == (0.25, 0.5)
    row, column = 7, 11
    ras = affine @ [column, row, 0, 1]
    np.testing.assert_allclose(image.geometry.point_mm(row, column), ras[:3] * [-1, -1, 1], atol=1e-5)


def test_a_slice_of_a_nifti_volume_is_a_frame(tmp_path: Path) -> None:
    volume = np.stack([RAMP.T.astype(np.float32) + 1000 * k for k in range(5)], axis=2)
    path = _nifti(tmp_path / "v.nii", volume, np.diag([-1.0, -1.0, 2.0, 1.0]))
    assert _code(path) == "frame_needed" and _code(path, frame=6) == "no_such_frame"
    image = read_image(path, frame=3)
    assert image.uid == "v.nii:3" == read_image(path, frame=3, uid="v.nii:3").uid
    np.testing.assert_array_equal(image.pixels, RAMP + 2000)
    np.testing.assert_allclose(image.geometry.point_mm(1, 2), [2, 1, 4])


def test_a_sheared_nifti_is_refused(tmp_path: Path) -> None:
    sheared = np.array([[1, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    assert _code(_nifti(tmp_path / "s.nii", RAMP.T.astype(np.int16), sheared)) == "geometry"
    for absurd in (np.diag([1e30, 1e30, 1, 1]), np.eye(4) + 1e30 * np.eye(4, k=3)):
        assert _code(_nifti(tmp_path / "a.nii", RAMP.T.astype(np.int16), absurd)) == "geometry"


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content, code in ((b"", "not_an_image"), (b"hello", "not_an_image"),
                          (gzip.compress(b"DICOM" * 900), "archive"), (b"\x1f\x8b", "archive")):
        path.write_bytes(content)
        assert _code(path) == code
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../film.dcm", "x")
    assert _code(path) == "archive"
    assert _code(tmp_path / "missing.png") == "unreadable"


def test_a_damaged_small_or_empty_picture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.png"
    file = BytesIO()
    Pillow.fromarray(np.random.default_rng(0).integers(0, 255, (66, 70)).astype(np.uint8)).save(file, "PNG")
    path.write_bytes(file.getvalue()[:2000])
    assert _code(path) == "decode_failed"
    Pillow.fromarray(RAMP[:63]).save(path)
    assert _code(path) == "too_small"
    Pillow.fromarray(np.full((66, 70), 3, np.uint8)).save(path)
    assert _code(path) == "constant"


def test_a_bomb_is_refused_by_its_size_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Pillow.new("1", (20000, 20000)).save(path)
    assert path.stat().st_size < 100_000
    assert _code(path) == "too_large"
    small = nibabel.Nifti1Image(RAMP.astype(np.int16), np.eye(4)).to_bytes()
    with gzip.open(tmp_path / "bomb.nii.gz", "wb", compresslevel=1) as archive:
        archive.write(small[:352])
        for _ in range(257):
            archive.write(bytes(1 << 20))
    assert _code(tmp_path / "bomb.nii.gz", frame=1) == "too_large"

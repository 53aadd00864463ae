"""The person's own: DICOM films and frames, volumes of the scene, slices written as NIfTI."""

from __future__ import annotations

import json
import stat
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
import slicer
import vtk
from DCAFReviewLib.layout import IMAGE, OVERLAY
from DCAFReviewLib.local import local_files, stated_spacing_mm, stated_window
from DCAFReviewLib.logic import ReviewLogic
from DCAFReviewLib.plane import array_to_matrix
from drawn import PLANES, drawn, grid, node_ids, place, settle
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

SPACING = (0.5, 0.8)
PIXELS = np.arange(35, dtype=np.uint8).reshape(5, 7) * 7
STACK = np.stack([PIXELS + step for step in range(5)])  # 5 slices of 5x7
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
MAIN_PYTHON = Path(__file__).resolve().parents[2] / ".venv/bin/python"
DX, FRAMES = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.7.2"


@pytest.fixture
def logic(application):
    logic = ReviewLogic(slicer.mrmlScene)
    logic.arrange()
    settle()
    yield logic
    logic.clear()
    logic.restore()


def film(path: Path, pixels, photometric="MONOCHROME2", sop_class=DX, left_out=(), **more) -> str:
    """Writes (frames, rows, columns) or (rows, columns) as DICOM; the detector's spacing is another."""
    header = pydicom.Dataset()
    header.SOPClassUID, header.SOPInstanceUID = sop_class, generate_uid()
    header.StudyInstanceUID, header.SeriesInstanceUID = generate_uid(), generate_uid()
    header.Modality, header.PhotometricInterpretation = "DX", photometric
    header.Rows, header.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        header.NumberOfFrames = len(pixels)
    header.PixelSpacing, header.ImagerPixelSpacing = [0.5, 0.8], [0.6, 0.9]
    header.SamplesPerPixel, header.PixelRepresentation = 1, 0
    header.BitsAllocated = header.BitsStored = pixels.itemsize * 8
    header.HighBit = header.BitsStored - 1
    header.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes() + b"\0" * (pixels.nbytes % 2)
    for keyword, value in more.items():
        setattr(header, keyword, value)
    for keyword in left_out:
        delattr(header, keyword)
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.save_as(path, enforce_file_format=True)
    return str(path)


def volume_in_scene(values, ijk_to_lps, name="of the person"):
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    slicer.util.updateVolumeFromArray(volume, values)
    volume.SetIJKToRASMatrix(array_to_matrix(LPS_TO_RAS @ ijk_to_lps))
    volume.CreateDefaultDisplayNodes()
    volume.GetDisplayNode().SetAutoWindowLevel(False)
    volume.GetDisplayNode().SetWindowLevel(255, 127.5)
    return volume


def centres(view) -> np.ndarray:
    """What is seen at the middle of each of the 5x7 pixels, which fill a view of 560 x 250."""
    return drawn(view)[25::50, 40::80, 0]


def read_back(path: Path) -> tuple[np.ndarray, np.ndarray, str]:
    """Values (rows, columns), (column, row, slice) to LPS and type of a NIfTI file, as nibabel reads them."""
    if not MAIN_PYTHON.exists():
        pytest.skip("the environment of the library (.venv) is not there")
    command = """if True:
        import json, nibabel, numpy, sys
        picture = nibabel.load(sys.argv[1])
        values = numpy.asanyarray(picture.dataobj)
        unit = picture.header.get_xyzt_units()[0]
        print(json.dumps([values.tolist(), picture.affine.tolist(), values.dtype.name, unit]))"""
    printed = subprocess.run([MAIN_PYTHON, "-c", command, path], capture_output=True, text=True,
                             check=True).stdout
    values, affine, kind, unit = json.loads(printed)
    assert unit == "mm"
    return np.array(values)[:, :, 0].T, LPS_TO_RAS @ affine, kind


# -- files -----------------------------------------------------------------------------------------


def test_a_local_film_is_shown_with_its_window_and_spacing(logic, tmp_path):
    path = film(tmp_path / "film.dcm", PIXELS.astype(np.uint16) * 100)
    volume = logic.load_local([path], "1.2.3", "case", window=(12000.0, 8000.0), spacing_mm=SPACING)
    assert volume.GetSpacing()[:2] == (0.8, 0.5)
    assert (volume.GetDisplayNode().GetLevel(), volume.GetDisplayNode().GetWindow()) == (12000.0, 8000.0)
    expected = np.clip((PIXELS * 100.0 - 8000) / 8000, 0, 1) * 255
    for view in (IMAGE, OVERLAY):
        assert np.abs(centres(view) - expected).max() <= 4
    assert volume.GetAttribute("DICOM.instanceUIDs") == "1.2.3" and volume.GetName() == "case"


def test_the_reader_itself_turns_a_film_whose_larger_values_are_darker(logic, tmp_path):
    path = film(tmp_path / "film.dcm", PIXELS, "MONOCHROME1")
    logic.load_local([path], "1.2.3", "case", window=(127.5, 255.0), spacing_mm=SPACING)
    local = drawn(IMAGE)
    logic.show_picture(grid(255 - PIXELS, window="127.5 255"), "case")
    assert np.abs(local - drawn(IMAGE)).max() <= 1
    assert local[25, 40, 0] > local[225, 520, 0]


def test_the_chosen_frame_of_a_multi_frame_file_is_shown(logic, tmp_path):
    path = film(tmp_path / "frames.dcm", np.stack([PIXELS * 0, PIXELS, 255 - PIXELS]), sop_class=FRAMES)
    for index, expected in ((1, PIXELS), (2, 255 - PIXELS)):
        logic.load_local([path], "1.2.3:2", "case", window=(127.5, 255.0), spacing_mm=SPACING,
                         slice_index=index)
        assert np.abs(centres(IMAGE) - expected).max() <= 1


def test_a_relative_path_is_read_although_the_scene_has_a_folder(logic, tmp_path, monkeypatch):
    film(tmp_path / "film.dcm", PIXELS)
    slicer.mrmlScene.SetRootDirectory(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert logic.load_local(["film.dcm"], "1.2.3", "case").GetImageData().GetDimensions() == (7, 5, 1)


@pytest.mark.parametrize("content", [b"", b"no film at all" * 20])
def test_a_file_that_is_no_picture_is_refused_and_leaves_nothing(logic, tmp_path, content):
    (tmp_path / "film.dcm").write_bytes(content)
    before = node_ids()
    with pytest.raises(ValueError, match="need a file that Slicer can read"):
        logic.load_local([tmp_path / "film.dcm"], "1.2.3", "case")
    with pytest.raises(ValueError, match="at least one file"):
        logic.load_local([], "1.2.3", "case")
    assert node_ids() == before


def test_a_frame_that_the_file_does_not_have_is_refused_and_leaves_nothing(logic, tmp_path):
    before = node_ids()
    with pytest.raises(ValueError, match="need 1 to 1, got 2"):
        logic.load_local([film(tmp_path / "film.dcm", PIXELS)], "1.2.3", "case", slice_index=1)
    assert node_ids() == before


def test_a_local_film_whose_larger_values_are_darker_is_left_to_the_server(logic, tmp_path):
    for number, photometric in enumerate(("MONOCHROME1", "MONOCHROME2")):
        path = film(tmp_path / f"{number}.dcm", PIXELS, photometric)
        slicer.dicomDatabase.insert(path)
        uid = pydicom.dcmread(path).SOPInstanceUID
        assert local_files(uid) == ([path] if photometric == "MONOCHROME2" else [])
    assert local_files(f"{uid}:2") == local_files("1.2.3.4") == []


@pytest.mark.parametrize(("left_out", "spacing"), [
    ((), (0.5, 0.8)), (("PixelSpacing",), (0.6, 0.9)), (("PixelSpacing", "ImagerPixelSpacing"), None)])
def test_the_stated_spacing_is_the_patients_before_the_detectors(logic, tmp_path, left_out, spacing):
    path = film(tmp_path / "film.dcm", PIXELS, left_out=left_out)
    slicer.dicomDatabase.insert(path)
    assert stated_spacing_mm(path) == spacing


@pytest.mark.parametrize(("centre", "width", "window"), [
    (40.5, 400, (40.5, 400.0)), ([10, 20], [100, 200], (10.0, 100.0)), (None, 400, None), (None, None, None)])
def test_the_stated_window_is_the_first_whole_one(logic, tmp_path, centre, width, window):
    path = film(tmp_path / "film.dcm", PIXELS, WindowCenter=centre, WindowWidth=width)
    slicer.dicomDatabase.insert(path)
    assert stated_window(path) == window


# -- volumes of the scene --------------------------------------------------------------------------


@pytest.mark.parametrize("handed", [1, -1])
@pytest.mark.parametrize("plane", PLANES)
def test_the_chosen_slice_of_a_stack_is_shown(logic, plane, handed):
    stack = STACK * 0
    stack[2] = PIXELS
    logic.adopt(volume_in_scene(stack, place(plane, origin=(5.0, 60.0, -9.0), handed=handed)), 2)
    for view in (IMAGE, OVERLAY):
        assert np.abs(centres(view) - PIXELS).max() <= 1


def test_an_adopted_volume_is_left_as_it_was(logic):
    volume = volume_in_scene(STACK, place("coronal"))
    before = node_ids()
    logic.adopt(volume, 3)
    logic.show_heat(grid(np.ones((5, 7), np.float32), place("coronal")), scale=1.0, unit="", title="Gate")
    logic.justify("point", (1, 2))
    logic.clear()
    assert node_ids() == before
    assert volume.GetSaveWithScene() and not volume.GetHideFromEditors()
    assert volume.GetAttribute("DCAFReview") is None
    assert (volume.GetDisplayNode().GetWindow(), volume.GetDisplayNode().GetLevel()) == (255, 127.5)


def test_an_adopted_volume_that_the_person_removes_leaves_empty_views(logic):
    volume = volume_in_scene(STACK, place())
    logic.adopt(volume, 0)
    slicer.mrmlScene.RemoveNode(volume)
    assert logic.justification() == (None, None)
    logic.arrange()
    with pytest.raises(ValueError, match="picture"):
        logic.justify("point", (0, 0))
    logic.show_picture(grid(PIXELS, window="127.5 255"), "case")
    assert np.abs(centres(IMAGE) - PIXELS).max() <= 1


def test_a_volume_under_a_linear_transform_is_shown_upright(logic):
    volume = volume_in_scene(STACK, place())
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    turned = place("oblique", spacing=(1.0, 1.0), origin=(3, 2, 1))
    transform.SetMatrixTransformToParent(array_to_matrix(turned))
    volume.SetAndObserveTransformNodeID(transform.GetID())
    logic.adopt(volume, 0)
    assert np.abs(centres(IMAGE) - PIXELS).max() <= 1


# -- NIfTI -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "int32", "float32", "float64", "uint32"])
def test_a_written_slice_is_read_back_with_its_pixels_and_place(logic, kind):
    place_of_stack = place("oblique", spacing=(0.5, 0.8), origin=(11.0, -7.0, 40.0))
    place_of_stack[:3, 2] *= 2.5  # millimetres between slices
    volume = volume_in_scene((STACK // 4).astype(kind) * 3, place_of_stack)
    values, ijk_to_lps, stored = read_back(logic.export(volume, 2))
    assert stored == ("float32" if kind == "uint32" else kind)
    assert np.array_equal(values, STACK[2].astype(int) // 4 * 3)
    expected = place_of_stack.copy()
    expected[:3, 3] += 2 * place_of_stack[:3, 2]
    assert np.allclose(ijk_to_lps, expected, atol=1e-5)


def test_a_slice_is_written_where_its_transform_puts_it(logic):
    volume = volume_in_scene(STACK, place())
    moved = place("oblique", spacing=(1.0, 1.0), origin=(30, 20, 10))
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform.SetMatrixTransformToParent(array_to_matrix(LPS_TO_RAS @ moved @ LPS_TO_RAS))
    volume.SetAndObserveTransformNodeID(transform.GetID())
    _, ijk_to_lps, _ = read_back(logic.export(volume, 0))
    assert np.allclose(ijk_to_lps, moved @ place(), atol=1e-5)


def test_values_are_written_as_they_are_whatever_shows_them(logic):
    volume = volume_in_scene(STACK, place())
    volume.GetDisplayNode().SetAndObserveColorNodeID("vtkMRMLColorTableNodeInvertedGrey")
    volume.GetDisplayNode().SetWindowLevel(10, 5)
    values, _, _ = read_back(logic.export(volume, 4))
    assert np.array_equal(values, STACK[4])


def test_an_exported_file_is_private_and_goes_with_clear(logic):
    first, second = (logic.export(volume_in_scene(STACK, place()), 0) for _ in range(2))
    assert first != second and "person" not in first.name
    assert stat.S_IMODE(first.stat().st_mode) == 0o600
    assert stat.S_IMODE(first.parent.stat().st_mode) == 0o700
    logic.clear()
    assert not first.exists() and not first.parent.exists()
    assert logic.export(volume_in_scene(STACK, place()), 0).exists()


def bent(volume):
    grid_transform = vtk.vtkThinPlateSplineTransform()
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode")
    node.SetAndObserveTransformToParent(grid_transform)
    volume.SetAndObserveTransformNodeID(node.GetID())
    return volume


def in_colour():
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLVectorVolumeNode")
    slicer.util.updateVolumeFromArray(volume, np.repeat(STACK[..., None], 3, axis=-1))
    return volume


@pytest.mark.parametrize(("volume", "index", "why"), [
    (lambda: volume_in_scene(STACK, place()), 5, "need 1 to 5, got 6"),
    (lambda: volume_in_scene(STACK, place()), -1, "need 1 to 5, got 0"),
    (lambda: slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode"), 0, "picture, got none"),
    (lambda: bent(volume_in_scene(STACK, place())), 0, "linear transform"),
    (in_colour, 0, "grey values, got colour")])
def test_a_slice_that_cannot_be_written_is_refused_with_the_reason(logic, volume, index, why):
    with pytest.raises(ValueError, match=why):
        logic.export(volume(), index)

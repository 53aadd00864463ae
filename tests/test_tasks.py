"""The questions: valid at birth, lawful, and careful about what image fits."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from pydicom import Dataset

from dcaf_monai.image import Geometry, Image
from dcaf_monai.phantom import phantom
from dcaf_monai.tasks import TASKS, Task, task_from_toml, task_named


def _image(pixels: np.ndarray | None = None, **header: str) -> Image:
    if pixels is None:
        pixels = phantom(1, lesion=False, shape=(96, 80)).pixels
    dataset = Dataset()
    for keyword, value in header.items():
        setattr(dataset, keyword, value)
    return Image("1.2.3", pixels.astype(np.float32), Geometry((pixels.shape[0], pixels.shape[1])), dataset)


def test_no_chest_task_mirrors_an_image() -> None:
    assert {name: task.augmentation.flip_left_right for name, task in TASKS.items()} == {
        "covid19": False, "tuberculosis": False, "pneumonia": False, "oct": True}


def test_a_class_has_its_index_and_a_stranger_none() -> None:
    assert [TASKS["oct"].class_index(label) for label in ("cnv", "dme", "drusen", "normal")] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="label: need one of normal, pneumonia, got 'flu'"):
        TASKS["pneumonia"].class_index("flu")


@pytest.mark.parametrize(("header", "codes"), [
    ({"Modality": "DX", "BodyPartExamined": "CHEST", "ViewPosition": "PA"}, []),
    ({}, []),
    ({"Modality": "MR"}, ["wrong_modality"]),
    ({"Modality": "CR", "BodyPartExamined": "hand"}, ["wrong_body_part"]),
    ({"Modality": "CR", "BodyPartExamined": "CHEST", "ViewPosition": "LL"}, ["wrong_view"]),
    ({"Modality": "OPT", "BodyPartExamined": "EYE"}, ["wrong_modality", "wrong_body_part"])])
def test_a_header_that_does_not_fit_a_chest_task_is_noticed(header: dict[str, str], codes: list[str]) -> None:
    assert [notice.code for notice in TASKS["pneumonia"].notices(_image(**header))] == codes


@pytest.mark.parametrize("seed", range(4))
def test_an_exchanged_grey_scale_is_noticed_on_a_chest_alone(seed: int) -> None:
    film = phantom(seed, lesion=True, shape=(120, 96)).pixels
    assert TASKS["covid19"].notices(_image(film)) == ()
    assert [notice.code for notice in TASKS["covid19"].notices(_image(4095 - film))] == ["looks_inverted"]
    assert TASKS["oct"].notices(_image(4095 - film)) == ()


def test_a_picture_of_one_value_is_not_called_inverted() -> None:
    assert TASKS["covid19"].notices(_image(np.full((70, 80), 5))) == ()


@pytest.mark.parametrize("change", [
    {"classes": ("one",)}, {"classes": ("one", "one")}, {"classes": ("One", "two")},
    {"classes": ("one", "uncertain")}, {"codes": {"three": {"value": "1", "meaning": "m"}}},
    {"name": "Has Space"}, {"colour": "red"}])
def test_an_invalid_task_is_refused(change: dict) -> None:
    with pytest.raises(ValidationError):
        Task.model_validate({"name": "mine", "title": "Mine", "classes": ("one", "two"), **change})


def test_a_task_of_ones_own_comes_from_a_toml_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\ntitle = "Mine"\nclasses = ["a", "b"]\n'
                    "[augmentation]\nrotate_degrees = 3\n")
    task = task_named(str(path))
    assert task.classes == ("a", "b") and task.augmentation.rotate_degrees == 3
    assert task_named("oct") is TASKS["oct"]


@pytest.mark.parametrize(("text", "message"), [
    ("name = ", "is not TOML"), ('name = "mine"\ntitle = "t"\nclasses = ["a"]\n', "classes"),
    ('name = "mine"\ntitle = "t"\nclasses = ["a", "b"]\n'
     '[codes]\nc = {value = "1", meaning = "m"}\n', "codes")])
def test_a_file_that_describes_no_task_is_refused_with_its_fault(text: str, message: str,
                                                                 tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        task_from_toml(path)


def test_an_unknown_task_or_missing_file_is_refused() -> None:
    with pytest.raises(ValueError, match="task: need one of covid19"):
        task_named("flu")
    with pytest.raises(ValueError, match="cannot read nowhere.toml"):
        task_named("nowhere.toml")

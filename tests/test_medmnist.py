"""A small file of MedMNIST+'s layout becomes a cohort with its official splits, and says what ails it."""

import importlib.util
import zipfile

import numpy as np
import pytest
from PIL import Image as Pillow

from dcaf_monai.dicom import read_image
from dcaf_monai.literature import RESULTS, published_results
from dcaf_monai.medmnist import COLLECTIONS, cohort_from_npz, collection_named, fetch_npz, task_of
from dcaf_monai.tasks import TASKS

COUNTS = {"train": 12, "val": 8, "test": 5}


def arrays(classes=2, side=28, seed=0):
    """The arrays of a MedMNIST file, as it lays them out; test holds every class but is of odd number."""
    rng = np.random.default_rng(seed)
    found = {}
    for split, count in COUNTS.items():
        found[f"{split}_images"] = rng.integers(0, 256, (count, side, side), np.uint8)
        found[f"{split}_labels"] = (np.arange(count) % classes)[:, None].astype(np.uint8)
    return found


def write(path, content, **change):
    np.savez_compressed(path, **{**content, **change})
    return path


@pytest.mark.parametrize("name", ["pneumoniamnist", "octmnist"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_file_becomes_a_cohort_with_its_own_splits_labels_and_pixels(name, save, tmp_path):
    collection = collection_named(name)
    task, content = task_of(collection), arrays(len(collection.classes))
    save(tmp_path / f"{name}.npz", **content)
    cohort = cohort_from_npz(tmp_path / f"{name}.npz", task, folder=tmp_path / "png")
    for split, count in COUNTS.items():
        cases = cohort.split(split)
        assert len(cases) == count
        for number, case in enumerate(cases):
            assert case.label == collection.classes[content[f"{split}_labels"][number, 0]]
            stored = np.asarray(Pillow.open(case.path))
            assert stored.shape == (84, 84)
            np.testing.assert_array_equal(stored[2::3, 1::3], content[f"{split}_images"][number])
            assert (stored[::3] == stored[1::3]).all() and (stored[:, ::3] == stored[:, 2::3]).all()
    assert len({case.group for case in cohort.cases}) == len({case.uid for case in cohort.cases}) == 25


def test_images_of_64_pixels_and_more_stay_as_they_are_and_are_read(tmp_path):
    content = arrays(side=64)
    cohort = cohort_from_npz(write(tmp_path / "p.npz", content), TASKS["pneumonia"], folder=tmp_path / "png")
    np.testing.assert_array_equal(read_image(cohort.cases[3].path).pixels, content["train_images"][3])


def test_the_order_of_labels_is_that_of_the_collections():
    """As the package has it: normal, pneumonia; neovascularization, macular edema, drusen, normal."""
    assert COLLECTIONS["pneumoniamnist"].classes == ("normal", "pneumonia")
    assert COLLECTIONS["octmnist"].classes == ("cnv", "dme", "drusen", "normal")
    for collection in COLLECTIONS.values():
        assert set(collection.classes) == set(task_of(collection).classes)


@pytest.mark.skipif(not importlib.util.find_spec("medmnist"), reason="the package medmnist is not installed")
def test_names_numbers_and_labels_are_those_of_the_package():
    from medmnist import INFO

    words = {"choroidal neovascularization": "cnv", "diabetic macular edema": "dme"}
    for name, collection in COLLECTIONS.items():
        labels = [words.get(label, label) for _, label in sorted(INFO[name]["label"].items())]
        assert tuple(labels) == collection.classes
        assert INFO[name]["n_samples"] == dict(collection.images)
        assert INFO[name]["python_class"] == collection.python_class


def test_what_ails_the_files_is_said(tmp_path):
    content = arrays(4)
    content["test_images"][2] = content["train_images"][7]
    cohort = cohort_from_npz(write(tmp_path / "o.npz", content), TASKS["oct"], folder=tmp_path / "png")
    told = {notice.code: notice.message for notice in cohort.notices}
    assert set(told) == {"patient_unknown", "known_leak", "copies", "not_official"}
    assert "names no patient" in told["patient_unknown"] and "OCTMNIST leaks" in told["known_leak"]
    assert "0 in validation, 1 in test" in told["copies"]
    assert "97477, 10832, 1000, this one 12, 8, 5" in told["not_official"]
    other = cohort_from_npz(write(tmp_path / "p.npz", arrays()), TASKS["pneumonia"], folder=tmp_path / "png")
    assert "copies" not in {notice.code for notice in other.notices}


def test_images_are_written_once_and_an_interrupted_writing_is_finished(tmp_path):
    path, task = write(tmp_path / "p.npz", arrays()), TASKS["pneumonia"]
    first = cohort_from_npz(path, task, folder=tmp_path / "png")
    victim, whole = first.cases[0].path, next((tmp_path / "png").rglob("whole.json"))
    before = victim.stat().st_mtime_ns
    again = cohort_from_npz(path, task, folder=tmp_path / "png")
    assert victim.stat().st_mtime_ns == before and again == first
    victim.unlink()
    whole.unlink()
    assert cohort_from_npz(path, task, folder=tmp_path / "png") == first and victim.is_file()
    changed = cohort_from_npz(write(path, arrays(seed=1)), task, folder=tmp_path / "png")
    assert changed.cases[0].path != victim


@pytest.mark.parametrize(("change", "message"), [
    ({"train_images": np.zeros((12, 28, 28, 3), np.uint8)}, "grey uint8 images"),
    ({"train_images": np.zeros((12, 28, 30), np.uint8)}, "grey uint8 images"),
    ({"val_images": np.zeros((8, 28, 28), np.float32)}, "grey uint8 images .* in val"),
    ({"val_images": np.zeros((7, 28, 28), np.uint8)}, "got 8 labels of 7 images in val"),
    ({"test_labels": np.full((5, 1), 2, np.uint8)}, "need labels 0 to 1, got 2 to 2. Is this the file of"),
    ({"test_labels": np.zeros((5, 14), np.uint8)}, "one whole-number label an image"),
    ({"test_labels": np.zeros((5, 1))}, "one whole-number label an image"),
    ({"test_labels": np.array([{}] * 5)}, "plain arrays"),
    ({"train_labels": np.zeros((12, 1), np.uint8)}, "need cases of every class, got none of pneumonia")])
def test_a_file_of_another_kind_is_refused(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        cohort_from_npz(write(tmp_path / "p.npz", arrays(), **change), TASKS["pneumonia"],
                        folder=tmp_path / "png")


def test_a_file_that_is_missing_torn_or_no_archive_is_refused(tmp_path):
    path, task = write(tmp_path / "p.npz", arrays()), TASKS["pneumonia"]
    whole = path.read_bytes()
    with pytest.raises(ValueError, match=r"no\.npz: need a MedMNIST \.npz file, got none"):
        cohort_from_npz(tmp_path / "no.npz", task, folder=tmp_path)
    for content in (whole[:len(whole) // 2], b"no archive"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="got another or a part of one"):
            cohort_from_npz(path, task, folder=tmp_path)
    content = arrays()
    del content["val_labels"]
    with pytest.raises(ValueError, match="got another or a part of one"):
        cohort_from_npz(write(path, content), task, folder=tmp_path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train_labels.npy", b"not an array")
    with pytest.raises(ValueError, match=r"need \.npy arrays inside"):
        cohort_from_npz(path, task, folder=tmp_path)


def test_other_tasks_names_and_sizes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="task: need one of pneumonia, oct, got covid19"):
        cohort_from_npz(write(tmp_path / "p.npz", arrays()), TASKS["covid19"], folder=tmp_path)
    with pytest.raises(ValueError, match="need one of pneumoniamnist, octmnist, got 'chestmnist'"):
        fetch_npz("chestmnist", size=28, folder=tmp_path)
    with pytest.raises(ValueError, match="size: need one of 28, 64, 128, 224, got 100"):
        fetch_npz("octmnist", size=100, folder=tmp_path)


def test_a_file_that_is_there_is_not_downloaded(tmp_path):
    for size, name in ((28, "octmnist.npz"), (224, "octmnist_224.npz")):
        (tmp_path / name).write_bytes(b"here already")
        assert fetch_npz("octmnist", size=size, folder=tmp_path) == tmp_path / name


@pytest.mark.skipif(bool(importlib.util.find_spec("medmnist")), reason="the package medmnist is installed")
def test_without_the_package_the_sentence_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"need the package medmnist, .*dcaf-monai\[medmnist\].*--npz"):
        fetch_npz("octmnist", size=28, folder=tmp_path)


def test_every_published_result_is_a_share_with_its_source_and_known_collection():
    assert len(RESULTS) == len({(result.collection, result.method, result.pixels, result.source)
                                for result in RESULTS}) > 40
    for result in RESULTS:
        assert result.collection in COLLECTIONS and result.source and result.pixels in (28, 224)
        assert all(.5 < value < 1 for value in (result.auroc, result.accuracy) if value is not None)
        assert result.auroc is not None or result.accuracy is not None
    best = max(published_results("pneumoniamnist"), key=lambda result: result.auroc or 0)
    assert (best.method, best.auroc, best.accuracy) == ("Google AutoML Vision", .991, .946)
    assert not all(result.checked for result in published_results("octmnist"))

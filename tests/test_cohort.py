"""Cohorts: what a folder or table means, and splits that never cut a patient and never move."""

import csv
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from stores import write_dicom

from dcaf_monai.cohort import SPLITS, Case, Cohort, cohort_from_labels, read_cohort, write_cohort
from dcaf_monai.phantom import film_to_dicom, phantom
from dcaf_monai.tasks import TASKS

PNEUMONIA, OCT = TASKS["pneumonia"], TASKS["oct"]
DATA = Path(__file__).resolve().parents[1].parent / "shared/data"


def a_folder(root, count=30, start=0, classes=("normal", "pneumonia")):
    """Class folders of small different files; readability does not matter here."""
    for label in classes:
        (root / label).mkdir(parents=True, exist_ok=True)
        for number in range(start, start + count):
            (root / label / f"{number:03d}.png").write_bytes(f"{label} {number}".encode())
    return root


def a_table(path, rows, columns=("file", "task", "label", "split", "group"), write=True):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    for row in rows if write else ():
        (path.parent / row[0]).write_bytes(row[0].encode())
    return path


ROWS = [("a.png", "pneumonia", "normal", "train", "p1"), ("b.png", "pneumonia", "pneumonia", "train", "p1"),
        ("c.png", "pneumonia", "normal", "val", "p2"), ("d.png", "pneumonia", "pneumonia", "val", "p3"),
        ("e.png", "pneumonia", "normal", "test", "p4")]


def test_a_table_is_read_as_it_stands_and_rows_of_other_tasks_are_passed_over(tmp_path):
    table = a_table(tmp_path / "t.csv", [*ROWS, ("f.png", "oct", "cnv", "train", "p1")])
    cohort = read_cohort(table, PNEUMONIA)
    assert cohort.cases[1] == Case("b.png", tmp_path / "b.png", "pneumonia", "train", "p1")
    assert cohort.counts == {"train": {"normal": 1, "pneumonia": 1}, "val": {"normal": 1, "pneumonia": 1},
                             "test": {"normal": 1, "pneumonia": 0}}
    assert [case.uid for case in cohort.split("val")] == ["c.png", "d.png"]
    assert cohort.labels("train").tolist() == [0, 1]
    assert cohort.notices == ()


@pytest.mark.parametrize("row, message", [
    (("x.png", "pneumonia", "cow", "train", "p1"), "label: need one of normal, pneumonia, got 'cow'"),
    (("x.png", "pneumonia", "normal", "train", "p2"), "group p2: need all its images in one split"),
    (("x.png", "pneumonia", "normal", "", "p9"), "line 7: need split train, val, test, got ''"),
    (("x.png", "pneumonia", "normal", "valid", "p9"), "got 'valid'"),
    (("a.png", "pneumonia", "normal", "train", "p1"), "need each image once")])
def test_a_row_with_a_fault_is_named(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        read_cohort(a_table(tmp_path / "t.csv", [*ROWS, row]), PNEUMONIA)


def test_a_file_that_is_missing_is_named_by_its_line(tmp_path):
    table = a_table(tmp_path / "t.csv", ROWS)
    (tmp_path / "c.png").unlink()
    with pytest.raises(ValueError, match=r"t\.csv, line 4: need a file"):
        read_cohort(table, PNEUMONIA)


@pytest.mark.parametrize("keep, message", [
    (lambda row: row[3] != "val", "val split: need cases of every class, got none of normal, pneumonia"),
    (lambda row: row[0] != "b.png", "train split: need cases of every class, got none of pneumonia"),
    (lambda row: False, "need rows of task pneumonia, got none")])
def test_a_split_without_cases_is_refused(tmp_path, keep, message):
    with pytest.raises(ValueError, match=message):
        read_cohort(a_table(tmp_path / "t.csv", [row for row in ROWS if keep(row)]), PNEUMONIA)


@pytest.mark.parametrize("text, message", [
    (b"name,label\n", "need the columns file and label, got name, label"),
    (b"\xff\xfe\x00", "CSV table in UTF-8"),
    (b"", "got none")])
def test_a_file_that_is_no_table_is_refused(tmp_path, text, message):
    (tmp_path / "t.csv").write_bytes(text)
    with pytest.raises(ValueError, match=message):
        read_cohort(tmp_path / "t.csv", PNEUMONIA)


def test_a_frame_number_is_read_and_a_bad_one_refused(tmp_path):
    columns = ("file", "task", "label", "split", "group", "frame")
    rows = [(*row, "") for row in ROWS]
    rows.append(("g.png", "pneumonia", "normal", "train", "p1", "2"))
    table = a_table(tmp_path / "t.csv", rows, columns)
    assert read_cohort(table, PNEUMONIA).cases[-1].frame == 2
    with pytest.raises(ValueError, match="frame number from 1"):
        read_cohort(a_table(tmp_path / "t.csv", [(*ROWS[0], "0")], columns), PNEUMONIA)


def test_neither_folder_nor_table_is_refused(tmp_path):
    with pytest.raises(ValueError, match="need a folder of class folders or a CSV table"):
        read_cohort(tmp_path / "nothing", PNEUMONIA)


def test_a_folder_is_split_by_patient_with_every_class_in_every_split(tmp_path):
    cohort = read_cohort(a_folder(tmp_path, 70), PNEUMONIA)
    shares = {split: len(cohort.split(split)) / 140 for split in SPLITS}
    assert shares["train"] == pytest.approx(5 / 7, abs=.03) and shares["val"] == pytest.approx(1 / 7, abs=.03)
    assert all(count for counts in cohort.counts.values() for count in counts.values())
    assert [notice.code for notice in cohort.notices] == ["patient_unknown"]


def test_the_same_seed_draws_the_same_split_and_another_seed_another(tmp_path):
    a_folder(tmp_path)
    one, two, other = (read_cohort(tmp_path, PNEUMONIA, seed=seed).sha256 for seed in (1, 1, 2))
    assert one == two != other


def test_exact_copies_stay_together_whatever_their_names(tmp_path):
    a_folder(tmp_path)
    for number in range(30):
        original = tmp_path / "normal" / f"{number:03d}.png"
        (tmp_path / "normal" / f"copy {number}.png").write_bytes(original.read_bytes())
    cohort = read_cohort(tmp_path, PNEUMONIA)
    split_of = {}
    for case in cohort.cases:
        content = hashlib.sha256(case.path.read_bytes()).hexdigest()
        assert split_of.setdefault(content, case.split) == case.split


def test_a_frozen_split_never_moves_and_new_patients_join_training(tmp_path):
    frozen = tmp_path / "out" / "split.csv"
    data = a_folder(tmp_path / "data")
    before = {case.uid: case.split for case in read_cohort(data, PNEUMONIA, frozen=frozen).cases}
    a_folder(data, 40, start=100)
    after = read_cohort(data, PNEUMONIA, frozen=frozen, seed=9)
    assert {case.uid: case.split for case in after.cases if case.uid in before} == before
    assert {case.split for case in after.cases if case.uid not in before} == {"train"}
    again = read_cohort(data, PNEUMONIA, frozen=frozen, seed=10)
    assert again.sha256 == after.sha256


def test_a_patient_who_is_away_for_one_reading_comes_back_to_the_same_split(tmp_path):
    frozen, data = tmp_path / "split.csv", a_folder(tmp_path / "data")
    before = read_cohort(data, PNEUMONIA, frozen=frozen)
    away = [case.path for split in SPLITS for case in before.split(split)[:1]]
    for path in away:
        path.rename(tmp_path / path.name)
    assert len(read_cohort(data, PNEUMONIA, frozen=frozen).cases) == len(before.cases) - 3
    assert len(read_cohort(frozen, PNEUMONIA).cases) == len(before.cases) - 3   # the file is a table, too
    for path in away:
        (tmp_path / path.name).rename(path)
    assert read_cohort(data, PNEUMONIA, frozen=frozen).sha256 == before.sha256


def test_a_written_cohort_is_read_back_equal(tmp_path):
    cohort = read_cohort(a_folder(tmp_path / "data"), PNEUMONIA)
    write_cohort(cohort, tmp_path / "elsewhere" / "split.csv")
    back = read_cohort(tmp_path / "elsewhere" / "split.csv", PNEUMONIA)
    assert [(case.path.resolve(), case.label, case.split, case.group) for case in back.cases] == [
        (case.path.resolve(), case.label, case.split, case.group) for case in cohort.cases]


def test_a_frozen_split_of_another_kind_is_refused(tmp_path):
    (tmp_path / "split.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="frozen split with the columns group and split"):
        read_cohort(a_folder(tmp_path / "data"), PNEUMONIA, frozen=tmp_path / "split.csv")


def test_a_folder_that_is_no_class_is_refused(tmp_path):
    a_folder(tmp_path, 3, classes=("normal", "pneumonia", "cows"))
    with pytest.raises(ValueError, match="need folders named normal, pneumonia, got 'cows'"):
        read_cohort(tmp_path, PNEUMONIA)


def test_too_few_patients_for_three_splits_are_refused(tmp_path):
    a_folder(tmp_path, 30, classes=("normal",))
    a_folder(tmp_path, 2, classes=("pneumonia",))
    with pytest.raises(ValueError, match="pneumonia: need images of at least 3 patients"):
        read_cohort(tmp_path, PNEUMONIA)


def test_dicom_films_are_grouped_by_patient_and_named_by_uid(tmp_path):
    for index in range(20):
        film = phantom(index, lesion=index % 2 == 1, shape=(64, 72))
        folder = tmp_path / film.label
        folder.mkdir(exist_ok=True)
        film_to_dicom(film, name=f"n{index}", patient=f"p{index // 4}").save_as(
            folder / f"{index}", enforce_file_format=True)
    cohort = read_cohort(tmp_path, PNEUMONIA)
    by_number = {int(case.path.name): case for case in cohort.cases}
    assert len({case.group for case in cohort.cases}) == 5
    for index, case in by_number.items():
        assert case.group == by_number[index // 4 * 4].group and case.split == by_number[index // 4 * 4].split
        assert case.group.startswith("patient-") and "p" + str(index // 4) not in case.group
        assert set(case.uid) <= set("0123456789.")
    assert cohort.notices == ()


@pytest.mark.parametrize("task, names, groups", [
    (PNEUMONIA, ["person12_bacteria_46", "person12_virus_3", "IM-0115-0001", "NORMAL2-IM-0588-0001",
                 "kermany224__person12_bacteria_9"],
     ["person12", "person12", "IM-0115", "IM-0588", "person12"]),
    (OCT, ["CNV-81630-2", "CNV-81630-10", "DRUSEN-77-1"], ["81630", "81630", "77"])])
def test_documented_file_names_tell_the_patient(tmp_path, task, names, groups):
    labels = []
    for index, label in enumerate(task.classes * 4):
        path = tmp_path / f"base{index}.png"
        path.write_bytes(path.name.encode())
        labels.append((path.name, path, None, label, f"base{index}"))
    for name in names:
        path = tmp_path / f"{name}.jpeg"
        path.write_bytes(name.encode())
        labels.append((path.name, path, None, task.classes[0], None))
    cohort = cohort_from_labels(labels, task)
    assert [case.group for case in cohort.cases[-len(names):]] == [f"name-{group}" for group in groups]
    assert [notice.code for notice in cohort.notices] == ["grouped_by_name"]


def labelled(folder, number, label="normal", group=None):
    path = folder / f"new{number}.png"
    path.write_bytes(f"new {number}".encode())
    return path.name, path, None, label, group


def test_readers_labels_join_training_and_correct_only_training_cases(tmp_path):
    base = read_cohort(a_table(tmp_path / "t.csv", ROWS), PNEUMONIA)
    answers = [labelled(tmp_path, 1, "pneumonia"), labelled(tmp_path, 2, "uncertain"),
               ("a.png", tmp_path / "a.png", None, "pneumonia", "p1"),
               ("b.png", tmp_path / "b.png", None, "normal", "p1"),
               ("c.png", tmp_path / "c.png", None, "pneumonia", "p2")]
    cohort = cohort_from_labels(answers, PNEUMONIA, base=base)
    found = {case.uid: case for case in cohort.cases}
    assert (found["new1.png"].label, found["new1.png"].split) == ("pneumonia", "train")
    assert "new2.png" not in found
    assert (found["a.png"].label, found["b.png"].label) == ("pneumonia", "normal")
    assert found["c.png"] == base.cases[2]
    assert cohort.validation_sha256 == base.validation_sha256 and cohort.sha256 != base.sha256


def test_a_new_image_of_a_validation_patient_does_not_go_to_training(tmp_path):
    base = read_cohort(a_table(tmp_path / "t.csv", ROWS), PNEUMONIA)
    cohort = cohort_from_labels([labelled(tmp_path, 1, group="p3")], PNEUMONIA, base=base)
    assert cohort.cases[-1].split == "val"


def test_a_copy_of_a_validation_image_under_another_name_does_not_go_to_training(tmp_path):
    base = read_cohort(a_table(tmp_path / "t.csv", ROWS), PNEUMONIA)
    copy = tmp_path / "copy.png"
    copy.write_bytes((tmp_path / "d.png").read_bytes())
    cohort = cohort_from_labels([("copy.png", copy, None, "normal", None)], PNEUMONIA, base=base)
    assert cohort.cases == base.cases


def test_an_image_is_known_by_its_file_and_not_by_what_its_folder_calls_it(tmp_path):
    """The studies are a sub-folder of the table's, and two folders hold other pictures of one name."""
    (tmp_path / "studies").mkdir()
    rows = [(f"studies/{name}", *rest) for name, *rest in ROWS[:2]] + ROWS
    base = read_cohort(a_table(tmp_path / "t.csv", rows), PNEUMONIA)
    said = [(name, tmp_path / "studies" / name, None, label, None)
            for name, label in (("a.png", "pneumonia"), ("b.png", "normal"))]
    cohort = cohort_from_labels(said, PNEUMONIA, base=base)
    assert [case.uid for case in cohort.cases] == [case.uid for case in base.cases]
    assert [case.label for case in cohort.cases[:4]] == ["pneumonia", "normal", "normal", "pneumonia"]


def test_dicom_written_anew_is_known_by_its_uid(tmp_path):
    for number, (name, *_) in enumerate(ROWS):
        write_dicom(tmp_path / name, f"1.2.{number}")
    table = a_table(tmp_path / "t.csv", ROWS, write=False)
    film = dcmread(tmp_path / "a.png")
    film.SeriesDescription = "sent again"
    film.save_as(tmp_path / "again.dcm")
    base = read_cohort(table, PNEUMONIA)
    cohort = cohort_from_labels([("1.2.0", tmp_path / "again.dcm", None, "pneumonia", None),
                                 ("1.2.1", tmp_path / "b.png", None, "normal", None)], PNEUMONIA, base=base)
    assert cohort.cases == (replace(base.cases[0], label="pneumonia"),
                            replace(base.cases[1], label="normal"), *base.cases[2:])


def test_a_frozen_split_cannot_overrule_the_base(tmp_path):
    base = read_cohort(a_table(tmp_path / "t.csv", ROWS), PNEUMONIA)
    frozen = tmp_path / "split.csv"
    frozen.write_text("group,split\np3,train\np7,test\n")
    answers = [labelled(tmp_path, 1, group="p3"), labelled(tmp_path, 2, group="p7")]
    cohort = cohort_from_labels(answers, PNEUMONIA, base=base, frozen=frozen)
    assert [case.split for case in cohort.cases[-2:]] == ["val", "test"]
    without = cohort_from_labels(answers[:1], PNEUMONIA, base=base, frozen=frozen)
    assert "p7" not in {case.group for case in without.cases}
    again = cohort_from_labels(answers, PNEUMONIA, base=base, frozen=frozen)
    assert again.cases[-1].split == "test"


def test_labels_alone_are_split_once_and_for_all(tmp_path):
    answers = [labelled(tmp_path, number, PNEUMONIA.classes[number % 2]) for number in range(40)]
    frozen = tmp_path / "split.csv"
    first = cohort_from_labels(answers[:30], PNEUMONIA, frozen=frozen)
    second = cohort_from_labels(answers, PNEUMONIA, frozen=frozen)
    assert second.validation_sha256 == first.validation_sha256
    assert {case.split for case in second.cases[30:]} == {"train"}


def test_the_digest_sees_every_field_but_not_the_order(tmp_path):
    cohort = read_cohort(a_table(tmp_path / "t.csv", ROWS), PNEUMONIA)
    assert Cohort(PNEUMONIA, cohort.cases[::-1]).sha256 == cohort.sha256
    for change in ({"uid": "z"}, {"label": "pneumonia"}, {"group": "p9"}, {"frame": 3}):
        changed = Cohort(PNEUMONIA, (*cohort.cases[:4], replace(cohort.cases[4], **change)))
        assert changed.sha256 != cohort.sha256
        assert changed.validation_sha256 == cohort.validation_sha256


@pytest.mark.skipif(not DATA.is_dir(), reason="the public images are not beside the project")
@pytest.mark.parametrize("name, train, val", [("pneumonia", [1205, 3464], [135, 386]),
                                              ("oct", [252, 86, 67, 331], [37, 13, 10, 48])])
def test_the_public_table_gives_the_counts_its_readme_states(name, train, val):
    cohort = read_cohort(DATA / "index.csv", TASKS[name])
    assert np.bincount(cohort.labels("train")).tolist() == train
    assert np.bincount(cohort.labels("val")).tolist() == val

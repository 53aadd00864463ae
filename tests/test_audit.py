"""The audit finds every fault that is planted, and invents none where there is none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from audit_films import Film, changed, clean_films, with_pixels, write
from PIL import Image as Pillow
from PIL import ImageDraw

from dcaf_monai.audit import Audit, Item, audit_cohort, read_audit, worst
from dcaf_monai.audit_rows import read_rows
from dcaf_monai.cohort import read_cohort
from dcaf_monai.model import load_model
from dcaf_monai.phantom import write_films
from dcaf_monai.tasks import TASKS


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def audited(films: list[Film], folder: Path, cache: Path, **options: object) -> Audit:
    return audit_cohort(write(films, folder), cache=cache, **options)


def item(audit: Audit, name: str) -> Item:
    return next(one for one in audit.items if one.name == name)


def alarms(audit: Audit) -> set[str]:
    return {one.name for one in audit.items if one.verdict == "alarm"}


def test_a_clean_set_passes_every_check(tmp_path: Path, cache: Path) -> None:
    audit = audited(clean_films(), tmp_path, cache)
    assert [(one.name, one.verdict, one.sentence) for one in audit.items if one.verdict != "pass"] == []
    assert {"source", "boxes", "border", "blackout", "thumbnail", "splits", "near_duplicates",
            "black_level"} <= {one.name for one in audit.items}


def test_clean_dicom_films_pass_and_their_headers_are_looked_at(tmp_path: Path, cache: Path) -> None:
    write_films(tmp_path, 80, seed=3, shapes=((128, 112), (112, 124)))
    audit = audit_cohort(tmp_path / "labels.csv", cache=cache)
    assert [(one.name, one.sentence) for one in audit.items if one.verdict != "pass"] == []
    assert "scanner" in {one.name for one in audit.items}


def test_a_patient_in_two_splits_is_an_alarm_with_all_its_pictures_as_evidence(tmp_path: Path,
                                                                              cache: Path) -> None:
    films = clean_films()
    films[4] = replace(films[4], split="test")
    audit = audited(films, tmp_path, cache)
    found = item(audit, "patients")
    assert found.verdict == "alarm" and found.figures["groups_across_splits"] == 1
    names = [audit.rows[place].name for place in found.evidence.cases]
    assert names == [f"film_00{n}.png" for n in (3, 4, 5)]
    assert alarms(audit) == {"patients"}


def test_copies_are_alarms_across_splits_and_with_two_labels(tmp_path: Path, cache: Path) -> None:
    films = clean_films()
    large = np.asarray(Pillow.fromarray(films[8].pixels).resize((190, 203)))
    films += [replace(films[2], name="copy.tif", split="test", group="somebody"),
              replace(films[6], name="again.png", label="pneumonia"),
              replace(films[8], name="large.jpg", pixels=large, split="val", group="another")]
    audit = audited(films, tmp_path, cache)
    exact, near = item(audit, "exact_duplicates"), item(audit, "near_duplicates")
    assert alarms(audit) == {"exact_duplicates", "near_duplicates"}
    assert exact.figures == {"pairs": 2, "across_splits": 1, "two_labels": 1, "across_groups": 1}
    assert [[audit.rows[place].name for place in pair] for pair in exact.evidence.pairs] == [
        ["film_002.png", "copy.tif"], ["film_006.png", "again.png"]]
    # the other pair are two films of one patient in one split, whose anatomy is the same
    assert near.figures == {"pairs": 2, "across_splits": 1, "two_labels": 0, "across_groups": 1}
    assert [[audit.rows[place].name for place in pair] for pair in near.evidence.pairs] == [
        ["film_008.png", "large.jpg"]]


def test_a_copy_with_the_same_label_in_the_same_split_is_looked_at(tmp_path: Path, cache: Path) -> None:
    films = clean_films()[:60]
    films.append(replace(films[6], name="again.png"))
    assert item(audited(films, tmp_path, cache), "exact_duplicates").verdict == "look"


def boxed(film: Film) -> Film:
    pixels = film.pixels.copy()
    rng = np.random.default_rng(int(film.name[5:8]))
    row, column = rng.integers(70, 90), rng.integers(10, 70)
    pixels[row:row + 12, column:column + 30] = 255
    return with_pixels(film, pixels)


def test_white_boxes_in_part_of_one_label_are_found_and_outlined(tmp_path: Path, cache: Path) -> None:
    audit = audited(changed(clean_films(), boxed, share=0.5), tmp_path, cache)
    found = item(audit, "boxes")
    assert found.verdict == "alarm"
    assert found.figures["shares"]["normal"] == {"no": 1.0}
    assert found.figures["shares"]["pneumonia"]["yes"] == pytest.approx(0.5, abs=0.04)
    assert all(audit.marks[place].artefacts.boxes for place in found.evidence.cases)
    assert "Crop them off" in found.sentence


def test_a_tint_in_one_label_is_found_with_its_colour_and_how_well_it_predicts_alone(
        tmp_path: Path, cache: Path) -> None:
    def tinted(film: Film) -> Film:
        return with_pixels(film, (film.pixels[:, :, None] * np.array([1.0, 0.95, 0.75])).astype(np.uint8))

    audit = audited(changed(clean_films(), tinted, share=0.6), tmp_path, cache)
    found = item(audit, "colour")
    assert found.verdict == "alarm" and "yellow" in found.figures["shares"]["pneumonia"]
    assert found.figures["alone"]["label"] == "pneumonia" and found.figures["alone"]["low"] > 0.6


def test_a_tint_taken_out_by_turning_the_picture_grey_is_found_by_its_grey_scale(tmp_path: Path,
                                                                               cache: Path) -> None:
    def photographed(film: Film) -> Film:
        return with_pixels(film, (30 + film.pixels * 0.7).astype(np.uint8))

    audit = audited(changed(clean_films(), photographed), tmp_path, cache)
    assert {"black_level", "white_level"} <= alarms(audit)
    assert "photographed" in item(audit, "black_level").sentence


def test_a_posterised_label_is_found(tmp_path: Path, cache: Path) -> None:
    def posterised(film: Film) -> Film:
        return with_pixels(film, film.pixels // 32 * 32)

    found = item(audited(changed(clean_films(), posterised), tmp_path, cache), "posterised")
    assert found.verdict == "alarm" and found.figures["shares"]["pneumonia"] == {"yes": 1.0}


def test_source_and_label_that_coincide_are_an_alarm_with_their_mutual_information(tmp_path: Path,
                                                                                   cache: Path) -> None:
    films = [replace(film, told={"source": "here" if film.label == "normal" else "there"})
             for film in clean_films()]
    audit = audited(films, tmp_path, cache)
    found = item(audit, "source")
    assert found.verdict == "alarm" and found.figures["effect"] == pytest.approx(1, abs=0.01)
    assert found.figures["mutual_information_nats"] == pytest.approx(np.log(2), abs=1e-3)
    assert alarms(audit) == {"source"}


def test_burned_in_text_in_one_label_is_found(tmp_path: Path, cache: Path) -> None:
    def written(film: Film) -> Film:
        large = Pillow.fromarray(film.pixels).resize((210, 240))
        ImageDraw.Draw(large).text((12, 10), "PORTABLE 12:45", fill=255, font_size=14)
        return with_pixels(film, np.asarray(large))

    def enlarged(film: Film) -> Film:
        return with_pixels(film, np.asarray(Pillow.fromarray(film.pixels).resize((210, 240))))

    films = changed(changed(clean_films(), written), enlarged, label="normal")
    found = item(audited(films, tmp_path, cache), "text")
    assert found.verdict == "alarm" and found.figures["shares"]["normal"] == {"no": 1.0}
    assert found.figures["shares"]["pneumonia"]["yes"] > 0.9


def test_a_black_border_around_one_label_is_found(tmp_path: Path, cache: Path) -> None:
    def bordered(film: Film) -> Film:
        pixels = film.pixels.copy()
        pixels[:, :8] = pixels[:, -8:] = 0
        return with_pixels(film, pixels)

    audit = audited(changed(clean_films(), bordered), tmp_path, cache)
    assert "black_margin" in alarms(audit)


def test_a_marker_in_the_corner_is_found_by_border_and_blackout_alone(tmp_path: Path, cache: Path) -> None:
    def marked(film: Film) -> Film:
        pixels = film.pixels.copy()
        pixels[4:10, -10:-4] = 230
        return with_pixels(film, pixels)

    audit = audited(changed(clean_films(), marked), tmp_path, cache)
    assert {"border", "blackout"} <= alarms(audit)
    assert not alarms(audit) & {"source", "boxes", "text", "colour", "patients"}
    assert item(audit, "border").figures["trained_on_train"]["auroc"] > 0.95


def test_a_label_stored_with_stronger_compression_is_found(tmp_path: Path, cache: Path) -> None:
    films = [with_pixels(film, film.pixels, suffix=".jpg") for film in clean_films()]
    table = write(films, tmp_path)
    for film in films:
        if film.label == "pneumonia":
            Pillow.fromarray(film.pixels).save(tmp_path / film.name, quality=60)
    audit = audit_cohort(table, cache=cache)
    assert item(audit, "compression").verdict == "alarm"


def test_patients_and_pictures_in_two_tasks_are_pointed_out(tmp_path: Path, cache: Path) -> None:
    table = write(clean_films(), tmp_path)
    text = table.read_text().splitlines()
    other = [line.replace(",pneumonia,", ",chest,", 1) for line in text[1:61]]
    table.write_text("\n".join([*text, *other]) + "\n")
    audit = audit_cohort(table, cache=cache)
    found = item(audit, "duplicates_across_tasks")
    assert found.task == "" and found.verdict == "look" and found.figures["pairs"] >= 60
    assert item(audit, "patients_across_tasks").figures["between"] == {"chest and pneumonia": 20}
    assert set(audit.sha256) == {"chest", "pneumonia"}


def test_a_model_looks_too_and_is_asked_for_the_source_within_each_label(tmp_path: Path, cache: Path,
                                                                         tiny_model: Path) -> None:
    films = [replace(film, told={"source": "dark" if index % 4 < 2 else "light"})
             for index, film in enumerate(clean_films())]
    films = [with_pixels(film, 255 - film.pixels) if film.told["source"] == "light" else film
             for film in films]
    audit = audited(films, tmp_path, cache, model=load_model(tiny_model))
    for label in ("normal", "pneumonia"):
        assert item(audit, f"model_source_{label}").verdict == "alarm"
    assert item(audit, "border_model").verdict == item(audit, "blackout_model").verdict == "pass"


def test_where_source_and_label_coincide_the_model_cannot_be_asked_and_that_is_said(
        tmp_path: Path, cache: Path, tiny_model: Path) -> None:
    films = [replace(film, told={"source": film.label}) for film in clean_films()]
    audit = audited(films, tmp_path, cache, model=load_model(tiny_model))
    assert "cannot be asked" in item(audit, "model_source").sentence


def test_a_bad_file_is_counted_and_stops_nothing(tmp_path: Path, cache: Path) -> None:
    table = write(clean_films(), tmp_path)
    (tmp_path / "film_007.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    audit = audit_cohort(table, cache=cache)
    assert len(audit.rows) == 119 and item(audit, "unreadable").figures == {"files": 1}


def test_too_few_pictures_of_a_label_are_said_and_not_guessed_about(tmp_path: Path, cache: Path) -> None:
    audit = audited(clean_films()[:12], tmp_path, cache)
    assert item(audit, "associations").verdict == "look" and audit.worst == "look"


def test_the_digest_is_that_of_the_cohort_an_evaluation_reads(tmp_path: Path, cache: Path) -> None:
    table = write(clean_films()[:24], tmp_path)
    audit = audit_cohort(table, ["pneumonia"], cache=cache)
    assert audit.sha256 == {"pneumonia": read_cohort(table, TASKS["pneumonia"]).sha256}


def test_the_document_is_read_back_and_names_its_data(tmp_path: Path, cache: Path) -> None:
    audit = audited(clean_films()[:24], tmp_path / "films", cache)
    path = tmp_path / "audit.json"
    path.write_text(json.dumps(audit.document(), allow_nan=False))
    document = read_audit(path)
    digest = audit.sha256["pneumonia"]
    assert document["tasks"]["pneumonia"] == {"verdict": audit.worst, "data_sha256": digest}
    assert document["thresholds"]["context"] == [0.7, 0.85]
    assert [one["name"] for one in document["items"]] == [one.name for one in audit.items]


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": "other/1", "tasks": {}}',
                                  '{"schema": "dcaf-audit/1", "tasks": {"oct": {"verdict": "fine"}}}'])
def test_another_file_is_refused_as_an_audit(tmp_path: Path, text: str) -> None:
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError, match="^audit: need"):
        read_audit(tmp_path / "other.json")


def test_the_worst_of_verdicts() -> None:
    assert (worst([]), worst(["pass", "look"]), worst(["look", "alarm", "pass"])) == ("pass", "look", "alarm")


def test_an_audit_stopped_half_way_goes_on_where_it_stopped(tmp_path: Path) -> None:
    table = write(clean_films()[:40], tmp_path / "films")

    def stop(stage: str, done: int, total: int) -> None:
        if done == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit_cohort(table, cache=tmp_path / "cache", progress=stop)
    kept = (tmp_path / "cache/fingerprints.jsonl").read_text().splitlines()
    assert len(kept) >= 29
    audit_cohort(table, cache=tmp_path / "cache")
    assert (tmp_path / "cache/fingerprints.jsonl").read_text().splitlines()[:len(kept)] == kept


def test_a_folder_of_split_folders_is_read_with_its_splits(tmp_path: Path) -> None:
    for name in ("train/normal/a.png", "train/pneumonia/b.png", "test/normal/c.png", "normal/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Pillow.fromarray(np.eye(70, dtype=np.uint8) * 255).save(tmp_path / name)
    assert {(row.name, row.label, row.split) for row in read_rows(tmp_path)} == {
        ("train/normal/a.png", "normal", "train"), ("train/pneumonia/b.png", "pneumonia", "train"),
        ("test/normal/c.png", "normal", "test"), ("normal/d.png", "normal", "")}


@pytest.mark.parametrize(("table", "tasks", "words"), [
    ("image,label\na.png,normal\n", None, "need the columns file and label, got image, label"),
    ("file,label\ngone.png,normal\n", None, "line 2: need a file relative to the table"),
    ("file,label,split\na.png,normal,dev\n", None, "need split train, val, test, got 'dev'"),
    ("file,label,frame\na.png,normal,0\n", None, "need a label, and a frame from 1"),
    ("file,task,label\na.png,oct,normal\n", ["covid19"], "of task covid19, got none"),
    ("file,label\n", None, "need labelled images, got none")])
def test_a_table_that_cannot_be_audited_is_one_sentence(tmp_path: Path, table: str, tasks: list[str] | None,
                                                        words: str) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "table.csv").write_text(table)
    with pytest.raises(ValueError, match=words):
        audit_cohort(tmp_path / "table.csv", tasks, cache=tmp_path / "cache")


def test_no_data_several_tasks_of_a_folder_and_only_bad_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="which is neither"):
        audit_cohort(tmp_path / "nowhere", cache=tmp_path)
    with pytest.raises(ValueError, match="need one for a folder"):
        audit_cohort(tmp_path, ["oct", "covid19"], cache=tmp_path)
    (tmp_path / "data/normal").mkdir(parents=True)
    (tmp_path / "data/normal/bad.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="at least one readable image, got 1"):
        audit_cohort(tmp_path / "data", cache=tmp_path)


def test_a_table_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="need a CSV table in UTF-8"):
        audit_cohort(tmp_path / "table.csv", cache=tmp_path)

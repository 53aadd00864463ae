"""The store: annotations, predictions and MONAI Label's shapes, on SQLite and on PostgreSQL."""

from __future__ import annotations

import json
import uuid
import zipfile
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, update
from stores import TASK, prediction, read, write_dicom

from dcaf_monai.server.annotation import parse_annotation
from dcaf_monai.server.database import StoreError, UnknownImage, annotation_rows
from dcaf_monai.server.store import Store

pytest_plugins = ("postgres",)

# -- annotations ------------------------------------------------------------------------------------

def test_the_smallest_annotation_is_stored_with_time_model_and_prediction(store: Store) -> None:
    store.save_prediction("a.png", prediction("v7", entropy=0.8))
    stored = store.annotate("a.png", parse_annotation('{"label": "normal", "reader": "ana", "comment": ""}'))
    assert stored.created is not None and stored.created.utcoffset().total_seconds() == 0    # type: ignore[union-attr]
    assert stored.model_version == "v7"
    assert stored.prediction == {"label": "covid", "score": 0.7, "predictive_entropy": 0.8}
    assert store.history("a.png") == [stored]


def test_history_is_oldest_first_and_keeps_every_reader(store: Store) -> None:
    for label, reader in (("covid", "ana"), ("normal", "bo"), ("uncertain", "ana")):
        store.annotate("a.png", read(label, reader, comment="line one\nline two", point=(3, 6.5)))
    assert [(a.label, a.reader, a.point) for a in store.history("a.png")] == [
        ("covid", "ana", (3, 6.5)), ("normal", "bo", (3, 6.5)), ("uncertain", "ana", (3, 6.5))]


def test_a_submission_repeated_with_its_key_is_stored_once(store: Store) -> None:
    annotation = read(key=uuid.UUID(int=5))
    first = store.annotate("a.png", annotation)
    assert store.annotate("a.png", annotation) == first
    assert len(store.history("a.png")) == 1
    with pytest.raises(ValueError, match="key: need a new one"):
        store.annotate("a.png", read("normal", key=uuid.UUID(int=5)))
    with pytest.raises(ValueError, match="key: need a new one"):
        store.annotate("d.nii.gz", annotation)


@pytest.mark.parametrize("statement", [
    update(annotation_rows).values(label="normal"), delete(annotation_rows)])
def test_the_database_itself_refuses_to_change_or_delete_an_annotation(
        store: Store, statement: Any) -> None:
    store.annotate("a.png", read())
    with pytest.raises(StoreError), store.database.write() as connection:
        connection.execute(statement)
    assert [a.label for a in store.history("a.png")] == ["covid"]


@pytest.mark.parametrize(("document", "fault"), [
    ('{"label": "covid"}', "reader: Field required"),
    ('{"label": "covid", "reader": "ana", "extra": 1}', "extra"),
    ('{"label": "Covid!", "reader": "ana"}', "label"),
    ('{"label": "covid", "reader": "a\\u0000b"}', "control characters"),
    ('{"label": "covid", "reader": " ana"}', "outer spaces"),
    ('{"label": "covid", "reader": ""}', "reader"),
    ('{"label": "covid", "reader": "%s"}' % ("x" * 65), "reader"),
    ('{"label": "covid", "reader": "ana", "comment": "%s"}' % ("x" * 4001), "comment"),
    ('{"label": "covid", "reader": "ana", "comment": "\\ud800"}', "comment"),
    ('{"label": "covid", "reader": "ana", "comment": "\\u0007"}', "control characters"),
    ('{"label": "covid", "reader": "ana", "confidence": 1.01}', "confidence"),
    ('{"label": "covid", "reader": "ana", "confidence": true}', "confidence"),
    ('{"label": "covid", "reader": "ana", "confidence": NaN}', "confidence"),
    ('{"label": "covid", "reader": "ana", "seconds": -1}', "seconds"),
    ('{"label": "covid", "reader": "ana", "point": [1]}', "point"),
    ('{"label": "covid", "reader": "ana", "point": [1, -9]}', "point"),
    ('{"label": "covid", "reader": "ana", "box": [5, 1, 2, 7]}', "row1 > row0"),
    ('{"label": "covid", "reader": "ana", "shown": {"x": "%s"}}' % ("x" * 5000), "at most 4096"),
    ('{"label": "covid", "reader": "ana", "shown": {"x": NaN}}', "plain JSON"),
    ('{"label": "covid", "reader": "ana", "shown": {"x": "\\u0000"}}', "NUL"),
    ('{"label": "covid", "reader": "ana", "key": "1"}', "key"),
    ('{"label": "covid", "reader": "ana", "created": "2020-01-01T00:00:00Z"}', "set by the server"),
    ("[]", "need a JSON object"), ("{", "need a JSON object"), ("[" * 100_000, "need a JSON object"),
    (b"\xff\xfe\x00", "need a JSON object")])
def test_an_annotation_with_a_fault_is_refused_in_one_sentence(document: str | bytes, fault: str) -> None:
    with pytest.raises(ValueError, match="annotation: ") as caught:
        parse_annotation(document)
    assert fault in str(caught.value) and "\n" not in str(caught.value)


def test_a_label_of_another_task_and_an_unknown_image_are_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="need one of covid, normal, viral_pneumonia, uncertain,"):
        store.annotate("a.png", read("drusen"))
    for unknown in ("nobody.png", "../a.png", "a\0.png", "a\ud800.png", "'; DROP TABLE images; --"):
        with pytest.raises(UnknownImage):
            store.annotate(unknown, read())
        with pytest.raises(UnknownImage):
            store.history(unknown)


def test_only_agreement_or_adjudication_gives_a_label_to_train_on(store: Store) -> None:
    store.annotate("a.png", read("covid", "ana"))
    store.annotate("a.png", read("covid", "bo"))                    # agree
    store.annotate("d.nii.gz", read("covid", "ana"))
    store.annotate("d.nii.gz", read("normal", "bo"))                # disagree
    store.annotate("e.tiff", read("uncertain", "ana"))              # no class
    store.annotate("ward/b.PNG", read("covid", "ana"))
    store.annotate("ward/b.PNG", read("normal", "ana"))             # the reader's last word counts
    assert store.current_labels() == {"a.png": "covid", "ward/b.PNG": "normal"}
    assert store.disagreements() == [{"uid": "d.nii.gz", "labels": {"ana": "covid", "bo": "normal"}}]
    store.annotate("d.nii.gz", read("viral_pneumonia", "chief", role="adjudication"))
    assert store.disagreements() == []
    assert store.current_labels()["d.nii.gz"] == "viral_pneumonia"
    assert store.agreement()["pairs"][0]["images"] == 2


# -- predictions ------------------------------------------------------------------------------------

def test_each_model_version_keeps_its_prediction_and_the_last_one_ranks(store: Store) -> None:
    store.save_prediction("a.png", prediction("v1", entropy=0.2))
    store.save_prediction("a.png", prediction("v2", entropy=0.9))
    store.save_prediction("a.png", prediction("v2", entropy=1.0))   # replaced, not doubled
    assert store.prediction("a.png", "v1") == prediction("v1", entropy=0.2)
    assert store.prediction("a.png") == prediction("v2", entropy=1.0)
    assert store.get_image_info("a.png")["predictive_entropy"] == 1.0
    assert store.rank_by("v1") == 1
    assert store.prediction("a.png") == prediction("v1", entropy=0.2)
    assert store.get_image_info("a.png")["margin"] == pytest.approx(0.5)
    assert store.model_versions() == {"v1": 1}
    assert store.prediction("d.nii.gz") == {}


def test_what_a_new_model_says_otherwise_is_told_largest_change_first(store: Store) -> None:
    full = 1.0986122886681098
    for uid, before, after in (("a.png", (0.5 * full, (0.7, 0.2, 0.1)), (0.4 * full, (0.7, 0.2, 0.1))),
                               ("d.nii.gz", (0.2 * full, (0.7, 0.2, 0.1)), (0.9 * full, (0.2, 0.7, 0.1))),
                               ("e.tiff", (0.3 * full, (0.7, 0.2, 0.1)), (0.5 * full, (0.1, 0.2, 0.7)))):
        for version, (entropy, probabilities) in (("v1", before), ("v2", after)):
            store.save_prediction(uid, prediction(version, entropy=entropy, probabilities=probabilities))
    store.save_prediction("ward/b.PNG", prediction("v1"))               # not predicted by the other
    told = store.changes("v1", "v2", limit=2)
    assert (told["from"], told["to"], told["compared"], told["answers_changed"]) == ("v1", "v2", 3, 2)
    assert told["mean_entropy_before"] == pytest.approx(1 / 3)
    assert told["mean_entropy_after"] == pytest.approx(0.6)
    first, second = told["items"]
    assert first == {"uid": "d.nii.gz", "label_before": "covid", "label_after": "normal",
                     "entropy_before": pytest.approx(0.2), "entropy_after": pytest.approx(0.9)}
    assert (second["uid"], second["label_after"]) == ("e.tiff", "viral_pneumonia")
    store.remove_image("d.nii.gz")
    assert store.changes("v1", "v2")["items"][0]["uid"] == "e.tiff"
    nothing = store.changes("v0", "v2")
    assert nothing["compared"] == 0 and nothing["mean_entropy_before"] is None and nothing["items"] == []
    with pytest.raises(ValueError, match="limit: need 1 to 500"):
        store.changes("v1", "v2", limit=0)


@pytest.mark.parametrize("document", [
    {}, {"prediction": [], "model": {"version": "1"}},
    {"prediction": [{"label": "covid"}], "model": {"version": "1"}},
    {"prediction": [{"label": "covid", "score": 1.0}]}, {**prediction(), "x": float("nan")},
    {**prediction(), "x": "y" * 70_000}])
def test_a_document_that_is_no_prediction_is_refused(store: Store, document: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="prediction: need"):
        store.save_predictions([("d.nii.gz", prediction()), ("a.png", document)])
    assert store.prediction("d.nii.gz") == {}                       # all or none


# -- MONAI Label's shapes ---------------------------------------------------------------------------

def test_status_and_index_have_upstreams_shape(store: Store) -> None:
    store.save_prediction("a.png", prediction())
    store.annotate("a.png", read("normal"))
    assert store.status() == {"total": 5, "completed": 1, "label_tags": {"final": 1, "original": 1}}
    index = json.loads(json.dumps(store.json()))
    assert set(index) == {"name", "description", "images_dir", "labels_dir", "objects"}
    assert set(index["objects"]) == set(store.list_images())
    labels = index["objects"]["a.png"]["labels"]
    assert labels["final"] == {"ext": ".json", "info": {"readings": 1, "label": "normal"}}
    assert labels["original"]["info"]["label"] == "covid"
    assert index["objects"]["d.nii.gz"]["image"]["ext"] == ".nii.gz"
    assert store.datalist() == [{"image": str(store.studies / "a.png"), "label": "normal", "uid": "a.png",
                                 "frame": None}]


def test_labelled_and_unlabelled_images_follow_tag_and_class(store: Store) -> None:
    store.save_prediction("d.nii.gz", prediction())
    store.annotate("a.png", read("normal"))
    assert store.get_labeled_images() == ["a.png"] and "a.png" not in store.get_unlabeled_images()
    assert store.get_labeled_images("final", ["covid"]) == []
    assert store.get_labeled_images("final", ["normal"]) == ["a.png"]
    assert store.get_labeled_images("original", ["normal"]) == []
    assert store.get_labeled_images("original", ["covid"]) == ["d.nii.gz"]
    assert len(store.get_unlabeled_images("original")) == 4
    assert store.get_labels_by_image_id("a.png") == {"final": "a.png"}
    assert store.get_label_by_image_id("a.png", "original") == ""


def test_labels_are_saved_from_and_given_as_json_files(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "label.json"
    file.write_text('{"label": "covid", "reader": "ana", "comment": "opacity"}')
    assert store.save_label("a.png", str(file), "final", {"client_id": "x"}) == "a.png"
    file.write_text(json.dumps(prediction()))
    store.save_label("a.png", str(file), "original", {})
    final = json.loads(Path(store.get_label_uri("a.png", "final")).read_text())
    assert final == store.get_label("a.png", "final") and final["annotations"][0]["comment"] == "opacity"
    assert json.loads(Path(store.get_label_uri("a.png", "original")).read_text()) == prediction()
    assert store.get_label_info("a.png", "final") == {"client_id": "x"}
    assert store.get_label_uri("d.nii.gz", "final") == ""
    with pytest.raises(ValueError, match="tag: need final or original"):
        store.save_label("a.png", str(file), "../../etc", {})
    with pytest.raises(ValueError, match="Submit a new annotation"):
        store.remove_label("a.png", "final")
    with pytest.raises(ValueError, match="one without"):
        store.get_label("d.nii.gz", "final")
    file.write_text("{" * 1_000_000)
    with pytest.raises(ValueError, match="at most"):
        store.save_label("a.png", str(file), "final", {})


def test_image_info_is_merged_and_bounded(store: Store) -> None:
    store.update_image_info("a.png", {"strategy": {"random": {"ts": 1}}})
    store.update_image_info("a.png", {"ward": "7"})
    info = store.get_image_info("a.png")
    assert info["strategy"] == {"random": {"ts": 1}} and info["ward"] == "7"
    for bad in ([1], {"x": float("inf")}, {"x": "y" * 70_000}):
        with pytest.raises(ValueError):
            store.update_image_info("a.png", bad)       # type: ignore[arg-type]
    with pytest.raises(UnknownImage):
        store.update_image_info("nobody", {})


def test_name_and_description_are_kept(store: Store) -> None:
    assert (store.name(), store.description()) == ("DCAF", TASK.title)
    store.set_name("Ward 7")
    store.set_description("Films of May")
    assert (store.name(), store.description()) == ("Ward 7", "Films of May")


def test_the_archive_holds_labelled_images_and_their_labels(store: Store) -> None:
    with pytest.raises(StoreError, match="Annotate first"):
        store.get_dataset_archive(None)
    store.annotate("ward/b.PNG", read("normal"))
    store.annotate("a.png", read("covid"))
    with zipfile.ZipFile(store.get_dataset_archive(None)) as archive:
        assert json.loads(archive.read("labels.json")) == {
            "a.png": {"label": "covid", "image": "image/a.png", "frame": None},
            "ward/b.PNG": {"label": "normal", "image": "image/ward/b.PNG", "frame": None}}
        assert archive.read("image/ward/b.PNG") == b"ward/b.PNG"
    path = store.get_dataset_archive(1)
    assert len(json.loads(zipfile.ZipFile(path).read("labels.json"))) == 1


def test_the_archive_tells_the_frames_of_one_file_apart(store: Store, studies: Path) -> None:
    write_dicom(studies / "scan.dcm", "1.2.5", frames=3)
    store.refresh()
    store.annotate("1.2.5:1", read("normal"))
    store.annotate("1.2.5:3", read("covid"))
    with zipfile.ZipFile(store.get_dataset_archive(None)) as archive:
        labels = json.loads(archive.read("labels.json"))
        assert archive.namelist().count("image/scan.dcm") == 1
    assert labels == {"1.2.5:1": {"label": "normal", "image": "image/scan.dcm", "frame": 1},
                      "1.2.5:3": {"label": "covid", "image": "image/scan.dcm", "frame": 3}}
    assert [case["frame"] for case in store.datalist()] == [1, 3]

"""The studies folder: what is found, what is passed over, what stays when files change."""

from __future__ import annotations

from pathlib import Path

import pytest
from stores import TASK, WRITER, prediction, read, write_dicom

from dcaf_monai.dicom import sop_instance_uid
from dcaf_monai.server.database import UnknownImage
from dcaf_monai.server.store import Store

pytest_plugins = ("postgres",)


def test_images_in_sub_folders_and_of_any_case_are_found_and_nothing_else(store: Store) -> None:
    assert store.list_images() == ["a.png", "d.nii.gz", "e.tiff", "ward/b.PNG", "ward/deep/c.jpeg"]


def test_dicom_is_named_by_its_sop_instance_uid_and_a_frame_by_its_number(tmp_path: Path) -> None:
    write_dicom(tmp_path / "one.DCM", "1.2.3")
    write_dicom(tmp_path / "1.2.4", "1.2.4")                        # no ending but DICOM inside
    write_dicom(tmp_path / "many.dicom", "1.2.5", frames=3)
    store = Store(tmp_path, TASK)
    assert store.refresh().added == 5
    assert store.list_images() == ["1.2.3", "1.2.4", "1.2.5:1", "1.2.5:2", "1.2.5:3"]
    assert store.location("1.2.5:2") == (tmp_path / "many.dicom", 2)
    assert store.location("1.2.3") == (tmp_path / "one.DCM", None)


def test_a_bad_file_is_counted_once_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    (tmp_path / "text.dcm").write_bytes(b"Jane Doe")
    (tmp_path / "good.png").write_bytes(b"x")
    store = Store(tmp_path, TASK)
    for report in (store.refresh(), store.refresh()):
        assert (report.unreadable, report.total) == (2, 1)
    assert sum(store.problems().values()) == 2


def test_the_second_file_with_a_uid_is_reported_and_the_first_kept(tmp_path: Path) -> None:
    write_dicom(tmp_path / "first.dcm", "1.2.3")
    write_dicom(tmp_path / "second.dcm", "1.2.3")
    store = Store(tmp_path, TASK)
    report = store.refresh()
    assert (report.added, report.duplicates, report.total) == (1, 1, 1)
    assert store.location("1.2.3") == (tmp_path / "first.dcm", None)


def test_a_moved_file_keeps_its_annotations(tmp_path: Path) -> None:
    write_dicom(tmp_path / "first.dcm", "1.2.3")
    store = Store(tmp_path, TASK)
    store.refresh()
    store.annotate("1.2.3", read("normal"))
    (tmp_path / "archive").mkdir()
    (tmp_path / "first.dcm").rename(tmp_path / "archive/other.dcm")
    store.refresh()
    assert store.location("1.2.3") == (tmp_path / "archive/other.dcm", None)
    assert store.current_labels() == {"1.2.3": "normal"}


def test_a_file_that_is_gone_is_not_served_but_its_history_stays(store: Store, studies: Path) -> None:
    store.annotate("a.png", read())
    (studies / "a.png").unlink()
    assert store.refresh().missing == 1
    assert "a.png" not in store.list_images() and store.current_labels() == {}
    with pytest.raises(UnknownImage, match="need one of this store's images"):
        store.location("a.png")
    assert [a.label for a in store.history("a.png")] == ["covid"]


def test_a_file_with_other_content_loses_its_prediction_and_is_scored_again(
        store: Store, studies: Path) -> None:
    store.save_predictions([(uid, prediction()) for uid in store.list_images()])
    assert store.unscored("v1") == []
    (studies / "e.tiff").write_bytes(b"other content")
    assert store.refresh().changed == 1
    assert [waiting.uid for waiting in store.unscored("v1")] == ["e.tiff"]
    assert store.prediction("e.tiff") == {}


def test_another_picture_under_the_path_of_one_that_was_gone_is_scored_again(
        store: Store, studies: Path) -> None:
    store.save_predictions([(uid, prediction()) for uid in store.list_images()])
    for name in ("a.png", "e.tiff"):
        (studies / name).rename(studies.parent / name)
    store.refresh()
    (studies / "a.png").write_bytes(b"another picture")
    (studies.parent / "e.tiff").rename(studies / "e.tiff")          # the same as before
    store.refresh()
    assert [waiting.uid for waiting in store.unscored("v1")] == ["a.png"]
    assert store.prediction("a.png") == {} and store.prediction("e.tiff") != {}
    assert store.problems() == {}


def test_answers_about_a_picture_are_not_taken_for_answers_about_another_at_its_path(
        store: Store, studies: Path) -> None:
    first = (studies / "a.png").read_bytes()
    store.annotate("a.png", read("covid"))
    (studies / "a.png").touch()
    store.refresh()
    assert store.current_labels() == {"a.png": "covid"}     # touched, copied back: the same picture
    (studies / "a.png").write_bytes(b"another picture")
    report = store.refresh()
    assert (report.added, report.total) == (1, 5) and store.current_labels() == {}
    second, = [uid for uid in store.list_images() if uid.startswith("a.png")]
    assert second.startswith("a.png#") and store.location(second) == (studies.resolve() / "a.png", None)
    assert [told.label for told in store.history("a.png")] == ["covid"] and store.history(second) == []
    assert second in [item["uid"] for item in store.worklist(status="unread", reader="ana").items]
    store.annotate(second, read("normal"))
    (studies / "a.png").touch()
    store.refresh()
    assert store.current_labels() == {second: "normal"}
    (studies / "a.png").write_bytes(first)
    store.refresh()
    assert store.current_labels() == {"a.png": "covid"} and second not in store.list_images()
    assert [told.label for told in store.history(second)] == ["normal"] and store.problems() == {}


def test_the_copy_of_an_image_takes_its_place_when_the_first_file_goes(tmp_path: Path) -> None:
    for name in ("first", "second", "third"):
        write_dicom(tmp_path / f"{name}.dcm", "1.2.3")
    store = Store(tmp_path, TASK)
    store.refresh()
    (tmp_path / "first.dcm").unlink()
    report = store.refresh()
    assert (report.total, report.duplicates) == (1, 1)
    assert store.location("1.2.3") == (tmp_path / "second.dcm", None)
    write_dicom(tmp_path / "second.dcm", "1.2.4")                   # another image under this path
    assert store.refresh().total == 2 and store.problems() == {}
    assert store.location("1.2.3") == (tmp_path / "third.dcm", None)


def test_a_link_out_of_the_folder_is_not_followed_and_a_loop_ends(tmp_path: Path) -> None:
    inside, outside = tmp_path / "studies", tmp_path / "secret"
    for folder in (inside, outside):
        folder.mkdir()
    (outside / "x.png").write_bytes(b"x")
    (inside / "y.png").write_bytes(b"y")
    (inside / "link.png").symlink_to(outside / "x.png")
    (inside / "door").symlink_to(outside)
    (inside / "loop").symlink_to(inside)
    store = Store(inside, TASK)
    store.refresh()
    assert store.list_images() == ["y.png"]
    (inside / "y.png").unlink()
    (inside / "y.png").symlink_to(outside / "x.png")                # exchanged after it was listed
    with pytest.raises(UnknownImage):
        store.location("y.png")


def test_an_uploaded_image_is_named_by_itself_and_found_again(store: Store, tmp_path: Path) -> None:
    write_dicom(tmp_path / "new.dcm", "1.2.9")
    assert store.add_image("../../evil", str(tmp_path / "new.dcm"), {"ward": "7"}) == "1.2.9"
    path, _ = store.location("1.2.9")
    assert path.is_relative_to(store.studies / "uploads")
    assert store.get_image_info("1.2.9")["ward"] == "7"
    assert store.refresh().added == 0
    with pytest.raises(ValueError, match="need one of .dcm"):
        store.add_image("x", str(WRITER), {})


def test_a_withdrawn_image_stays_withdrawn_and_keeps_its_file(store: Store, studies: Path) -> None:
    store.remove_image("a.png")
    store.refresh()
    assert "a.png" not in store.list_images() and (studies / "a.png").exists()


def test_a_folder_of_hostile_files_is_looked_through(tmp_path: Path, shared_data: Path) -> None:
    traps = shared_data / "dicom_traps"
    store = Store(traps, TASK, tmp_path / "traps.sqlite3")
    report = store.refresh()
    assert report.total == report.added > 60 and report.unreadable > 5
    with pytest.raises(UnknownImage):                               # it says it has 2^31 - 1 frames
        store.location(f"{sop_instance_uid(traps / 'synth/huge_frames.dcm')}:1")

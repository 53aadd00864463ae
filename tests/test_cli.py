"""The command line as a person meets it."""

import csv
import json
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from dcaf_monai.dicom import sop_instance_uid
from dcaf_monai.model import load_model
from dcaf_monai.predict import Predictor

SMALL = ["--mode", "full", "--backbones", "test_efficientnet,test_resnet", "--weights", "none",
         "--size", "64", "--epochs", "2", "--batch-size", "4"]


def test_help_names_every_command_and_says_what_the_software_is_not() -> None:
    said = subprocess.run([sys.executable, "-m", "dcaf_monai.cli", "--help"], capture_output=True, text=True,
                          check=True).stdout
    for command in ("sample-data", "train", "predict", "rank", "serve", "models", "token", "demo"):
        assert command in said
    assert "not a medical device" in " ".join(said.split())


def test_json_is_the_same_document_as_the_predictor_gives(dcaf, tiny_model: Path, films: Path) -> None:
    film = sorted(films.rglob("*.dcm"))[0]
    code, out, _ = dcaf("predict", tiny_model, film, "--json")
    assert code == 0
    assert json.loads(out) == Predictor(load_model(tiny_model)).predict_file(film).document()


def test_a_folder_gives_one_json_document_a_line_and_one_overlay_a_film(dcaf, tiny_model: Path, films: Path,
                                                                        tmp_path: Path) -> None:
    folder = films / "normal"
    count = len(list(folder.glob("*.dcm")))
    code, out, _ = dcaf("predict", tiny_model, folder, "--json", "--overlay", tmp_path / "maps")
    assert code == 0 and dcaf("predict", tiny_model, films)[0] == 0    # labels.csv beside them is no image
    documents = [json.loads(line) for line in out.splitlines()]
    assert len({document["image"]["id"] for document in documents}) == count
    maps = list((tmp_path / "maps").glob("*.png"))
    assert len(maps) == count and all(file.read_bytes().startswith(b"\x89PNG") for file in maps)


def test_what_lies_beside_the_images_of_a_folder_is_no_image(dcaf, tiny_model: Path, films: Path) -> None:
    (films / "normal/notes.txt").write_text("Beside the films.")
    try:
        code, out, err = dcaf("predict", tiny_model, films / "normal", "--json")
        assert code == 0 and "notes.txt" not in err
        assert len(out.splitlines()) == len(list((films / "normal").glob("*.dcm")))
    finally:
        (films / "normal/notes.txt").unlink()


def test_one_bad_image_is_one_sentence_and_exit_code_2(dcaf, tiny_model: Path, films: Path,
                                                       tmp_path: Path) -> None:
    bad = tmp_path / "broken.dcm"
    bad.write_bytes(b"\0" * 200)
    code, out, err = dcaf("predict", tiny_model, bad, sorted(films.rglob("*.dcm"))[0], "--json")
    assert code == 2 and len(out.splitlines()) == 1
    assert "broken.dcm: " in err and "Traceback" not in err


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["predict", "nothing.safetensors", "x.png"], r"nothing\.safetensors: cannot read it"),
    (["train", "--data", "nowhere.csv", "--task", "pneumonia", "--out", "m.safetensors"], r"nowhere\.csv"),
    (["train", "--data", ".", "--task", "fracture", "--out", "m.safetensors"], "task: need one of"),
    (["train", "--data", ".", "--task", "oct", "--out", "m", "--backbones", "one"], "--backbones|data"),
    (["rank", "nothing.safetensors", "nowhere"], "folder: need an existing folder"),
    (["train", "--data", ".", "--task", "oct", "--out", "m", "--device", "cuda:9"], "--device: need cpu, cu"),
    (["medmnist", "octmnist", "--out", "m", "--device", "gpu"], "--device: need cpu, cuda or .* got 'gpu'"),
    (["sample-data", "/proc/films"], "/proc/films.*: need a place that can be read and written, got No such"),
    (["sample-data", "a-file/films"], "a-file/films.*, got Not a directory"),
    (["token", "add", "/proc/nowhere/t", "x"], "/proc/nowhere: need a place"),
    (["rank", "m", ".", "--out", "/proc/nowhere/r.csv"], "/proc/nowhere: need a place"),
    (["models", "list", "nothing.safetensors"], "nothing.safetensors: need a published model"),
    (["predict", "m", "a-file:2", "gone.dcm:1"], "m: cannot read it"),
    (["import", "gone.csv", "--studies", ".", "--task", "oct"], "gone.csv: need a place"),
    (["token", "remove", "a-file", "x"], "reader: need one of the token file's"),
    (["rank", "m", ".", "--out", "."], "need a file that can be written"),
])
def test_a_mistake_is_one_clear_sentence_and_exit_code_2(dcaf, arguments: list[str], sentence: str,
                                                         tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_bytes(b"")
    code, _, err = dcaf(*arguments)
    assert code == 2
    assert re.search(sentence, err), err
    assert "Traceback" not in err


def test_a_job_that_fails_is_one_clear_sentence_and_exit_code_1(dcaf, films: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"")
    given = ["--data", films, "--task", "pneumonia", "--cache", tmp_path / "taken",
             "--backbones", "test_efficientnet,test_resnet", "--weights", "none", "--size", 64]
    for command in (["train", "--out", tmp_path / "m.safetensors"],
                    ["suspects", "--out", tmp_path / "new/folder/s.csv"]):
        code, _, err = dcaf(*command, *given)
        assert code == 1 and "Traceback" not in err and "cache" in err, err
    (tmp_path / "demo/films").mkdir(parents=True)            # as an earlier run left it, with a broken model
    for name in ("training/labels.csv", "truth.csv", "model.safetensors"):
        (tmp_path / "demo" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "demo" / name).write_text("file,label\n")
    code, _, err = dcaf("demo", tmp_path / "demo")
    assert code == 1 and re.search(r"dcaf: server: it ended with code 2\. See .*server\.log", err), err


def test_a_frame_of_a_file_is_named_as_everywhere(dcaf, tiny_model: Path, tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 70 * 66).reshape(70, 66).astype(np.uint8)
    pages = [PIL.Image.fromarray(page) for page in (ramp, ramp.T.copy(), ramp[::-1].copy())]
    pages[0].save(tmp_path / "scan.tif", save_all=True, append_images=pages[1:])
    code, out, _ = dcaf("predict", tiny_model, tmp_path / "scan.tif:2", "--json", "--overlay",
                        tmp_path / "maps")
    document = json.loads(out)
    assert (code, document["image"]["id"], document["image"]["shape"]) == (0, "scan.tif:2", [66, 70])
    assert [file.name for file in (tmp_path / "maps").iterdir()] == ["scan-2.class_activation.png"]
    code, _, err = dcaf("predict", tiny_model, tmp_path / "scan.tif:9")
    assert code == 2 and "scan.tif:9: " in err


def test_annotations_are_imported_and_a_token_removed(dcaf, films: Path, tmp_path: Path) -> None:
    uid = sop_instance_uid(sorted(films.rglob("*.dcm"))[0])
    table = tmp_path / "labels.csv"
    table.write_text(f"uid,label,reader\n{uid},normal,ana\nnobody,normal,ana\n")
    asked = ("import", table, "--studies", films, "--task", "pneumonia", "--database", tmp_path / "d.sqlite3")
    code, out, err = dcaf(*asked)
    assert code == 0 and "1 annotations added, 0 known already, 1 of images" in out, err
    with closing(sqlite3.connect(tmp_path / "d.sqlite3")) as database:
        assert database.execute("SELECT uid, label, reader FROM annotations").fetchall() == [
            (uid, "normal", "ana")]
    table.write_text(f"uid,label,reader\n{uid},cow,ana\n")
    code, _, err = dcaf(*asked)
    assert code == 2 and "import: entry 1" in err
    dcaf("token", "add", tmp_path / "tokens", "dr_lee")
    assert dcaf("token", "remove", tmp_path / "tokens", "dr_lee")[0] == 0
    assert "dr_lee" not in (tmp_path / "tokens").read_text()


def test_rank_writes_the_most_uncertain_first(dcaf, tiny_model: Path, films: Path, tmp_path: Path) -> None:
    code, _, _ = dcaf("rank", tiny_model, films / "normal", "--by", "mutual_information", "--out",
                      tmp_path / "ranking.csv")
    assert code == 0
    with (tmp_path / "ranking.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    values = [float(row["mutual_information"]) for row in rows]
    assert values == sorted(values, reverse=True) and len(rows) == len(list((films / "normal").glob("*.dcm")))


def test_sample_data_trains_publishes_lists_and_rolls_back(dcaf, tmp_path: Path) -> None:
    code, out, _ = dcaf("sample-data", tmp_path / "films", "--count", 24, "--seed", 3)
    assert code == 0 and "labels.csv" in out
    model = tmp_path / "model.safetensors"
    table = tmp_path / "films/labels.csv"
    code, out, err = dcaf("train", "--data", table, "--task", "pneumonia", "--out", model, *SMALL)
    assert code == 0, err
    first = load_model(model)
    assert first.provenance["mode"] == "full" and set(first.operating_points) == {"normal", "pneumonia"}
    code, out, _ = dcaf("models", "list", model)
    assert code == 0 and first.version in out
    code, out, err = dcaf("evaluate", model, "--data", table, "--out", tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert code == 0 and figures["cases"] == 4 and figures["model"] == first.version
    assert 0 <= figures["auroc"]["value"] <= 1 and f"{figures['nll']['value']:.3f}" in out
    code, _, err = dcaf("models", "rollback", model)
    assert code == 2 and "version" in err
    code, _, err = dcaf("models", "publish", model, "no-such-version")
    assert code == 2 and "no-such-version" in err


def test_a_token_is_shown_once_and_kept_only_as_a_hash(dcaf, tmp_path: Path) -> None:
    code, out, _ = dcaf("token", "add", tmp_path / "tokens", "dr_lee")
    token = out.strip()
    assert code == 0 and len(token) >= 32
    kept = (tmp_path / "tokens").read_text()
    assert token not in kept and "dr_lee" in kept
    assert (tmp_path / "tokens").stat().st_mode & 0o077 == 0

"""The page and its pictures, and the command with its exit codes."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import typer
from audit_films import clean_films, write
from PIL import Image as Pillow
from safetensors.torch import save_file
from typer.testing import CliRunner

from dcaf_monai.audit import Audit, audit_cohort, read_audit
from dcaf_monai.audit_pictures import TILE
from dcaf_monai.audit_report import write_audit
from dcaf_monai.cli_audit import audit as command

APP = typer.Typer()
APP.command()(command)


@pytest.fixture(scope="module")
def alarming(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A table with several faults, and a cache."""
    folder = tmp_path_factory.mktemp("alarming")
    films = clean_films()
    for film in films:
        film.told["source"] = film.label
        if film.label == "pneumonia":
            film.pixels[60:75, 20:60] = 255
    films.append(replace(films[3], name="copy <script>.tif", split="test", group="someone"))
    return write(films, folder), folder / "cache"


@pytest.fixture(scope="module")
def found(alarming: tuple[Path, Path]) -> Audit:
    return audit_cohort(alarming[0], cache=alarming[1])


def test_the_page_is_self_contained_warns_of_its_pictures_and_escapes_names(found: Audit,
                                                                          tmp_path: Path) -> None:
    files, page = write_audit(found, tmp_path / "report")
    text = page.read_text()
    assert "contains pictures of patients" in text and "src=\"http" not in text and "href" not in text
    assert "<script>" not in text
    assert sorted(path.name for path in page.parent.iterdir()) == ["audit.html", "audit.json"]
    assert read_audit(files)["verdict"] == "alarm"


def test_each_picture_on_the_page_is_one(found: Audit, tmp_path: Path) -> None:
    _, page = write_audit(found, tmp_path)
    urls = re.findall(r'src="data:image/(?:png|jpeg);base64,([^"]+)"', page.read_text())
    sizes = [Pillow.open(io.BytesIO(base64.b64decode(url))).size for url in urls]
    assert (2 * TILE, TILE) in sizes  # the pair of copies
    assert (10 * TILE, 2 * TILE) in sizes  # twenty pictures with boxes
    words = re.findall(r"<figcaption>([^<]*)", page.read_text())
    assert {"pneumonia pneumonia train | pneumonia pneumonia test", "20 of 61 pictures",
            "Share of each label"} <= set(words)


def test_the_command_says_what_it_found_and_ends_with_1_at_an_alarm(alarming: tuple[Path, Path],
                                                                    tmp_path: Path) -> None:
    result = CliRunner().invoke(APP, ["--data", str(alarming[0]), "--cache", str(alarming[1]),
                                      "--report", str(tmp_path / "out"), "--task", "pneumonia"])
    assert result.exit_code == 1
    assert "Audit of 121 images: alarm" in result.stdout and "Source" in result.stdout
    assert json.loads((tmp_path / "out/audit.json").read_text())["tasks"]["pneumonia"]["verdict"] == "alarm"


def test_the_command_ends_with_0_when_nothing_alarms(tmp_path: Path) -> None:
    table = write(clean_films()[:12], tmp_path / "films")
    result = CliRunner().invoke(APP, ["--data", str(table), "--report", str(tmp_path / "out")])
    assert result.exit_code == 0 and "images: look" in result.stdout
    assert (tmp_path / "out/cache/fingerprints.jsonl").exists()


def test_the_command_looks_with_trunk_weights_from_files(tmp_path: Path) -> None:
    names = ("test_efficientnet", "test_resnet")
    for name in names:
        save_file(timm.create_model(name).state_dict(), tmp_path / f"{name}.safetensors")
    table = write(clean_films()[:36], tmp_path / "films")
    result = CliRunner().invoke(APP, [
        "--data", str(table), "--cache", str(tmp_path / "cache"), "--backbones", ",".join(names),
        "--weights", ",".join(str(tmp_path / f"{name}.safetensors") for name in names)])
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "cache").glob("pooled-*/*")} == {"whole", "border", "blackout"}


@pytest.mark.parametrize(("options", "words"), [
    (["--data", "nowhere.csv"], "which is neither"),
    (["--data", "t.csv", "--model", "m.safetensors", "--weights", "pretrained"], "both. Leave one out"),
    (["--data", "t.csv", "--weights", "one"], "two files FIRST,SECOND"),
    (["--data", "t.csv", "--weights", "a,b", "--backbones", "one"], "two timm names")])
def test_a_callers_mistake_is_one_sentence(options: list[str], words: str) -> None:
    result = CliRunner().invoke(APP, options)
    assert isinstance(result.exception, ValueError) and words in str(result.exception)

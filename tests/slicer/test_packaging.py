"""The extension installs against a stand-in Slicer, and is fit for the Extensions Index."""

from __future__ import annotations

import ast
import json
import re
import shutil
import struct
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
EXTENSION = ROOT / "slicer_extension"
MODULE = EXTENSION / "DCAFReview"
STAND_IN = Path(__file__).resolve().parent / "cmake"
CMAKE = Path(sys.executable).with_name("cmake")
INSTALLED = "lib/Slicer-5.10/qt-scripted-modules"

# Slicer's own configuration needs compilers, a module of scripts does not: none is looked for here.
NO_COMPILER = [f"-DCMAKE_{language}_{setting}" for language in ("C", "CXX") for setting in
               (f"COMPILER={shutil.which('true')}", "COMPILER_FORCED=ON", "COMPILER_ID_RUN=ON")]


def _configure(source: Path, build: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [CMAKE, "-S", source, "-B", build, f"-DSlicer_DIR={STAND_IN}", *NO_COMPILER],
        capture_output=True, text=True, timeout=60, check=False)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _said(result: subprocess.CompletedProcess[str]) -> str:
    """All that CMake said, without the line breaks it puts into messages."""
    return " ".join((result.stdout + result.stderr).split())


def _shipped() -> set[str]:
    """Files of the module that a person needs, relative to its folder."""
    return {path.relative_to(MODULE).as_posix() for path in MODULE.rglob("*")
            if path.is_file() and path.name != "CMakeLists.txt" and "__pycache__" not in path.parts
            and path.relative_to(MODULE).parts[0] != "Testing"}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the extension into which a test plants a fault."""
    folder = tmp_path / "extension"
    shutil.copytree(EXTENSION, folder, ignore=shutil.ignore_patterns("__pycache__", ".pytest_cache"))
    return folder


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of an installed tree."""
    folder = tmp_path_factory.mktemp("packaging")
    configured = _configure(EXTENSION, folder / "build")
    assert configured.returncode == 0, _said(configured)
    result = subprocess.run([CMAKE, "--install", folder / "build", "--prefix", folder / "tree"],
                            capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, _said(result)
    return folder / "tree"


def test_the_installed_tree_holds_every_file_of_the_module_byte_for_byte(installed: Path) -> None:
    tree = installed / INSTALLED
    found = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    assert found == _shipped()
    for name in found:
        assert (tree / name).read_bytes() == (MODULE / name).read_bytes(), name


def test_the_session_is_imported_from_the_installed_tree_without_slicer_and_qt(installed: Path) -> None:
    program = ("import sys; sys.path.insert(0, sys.argv[1]); sys.dont_write_bytecode = True; "
               "import DCAFReviewLib.session as session; print(session.__file__); "
               "print(sorted({'slicer', 'qt', 'ctk', 'vtk', 'dcaf_monai'} & set(sys.modules)))")
    result = subprocess.run([sys.executable, "-I", "-c", program, installed / INSTALLED],
                            capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    file, unwanted = result.stdout.split("\n")[:2]
    assert Path(file).is_relative_to(installed) and unwanted == "[]"


def test_what_the_extensions_manager_reads_is_set(installed: Path) -> None:
    lines = _text(installed / "share/Slicer-5.10/DCAFReview.txt").splitlines()
    told = dict(line.split("=", 1) for line in lines)
    assert told["name"] == told["modules"] == "DCAFReview"
    assert set(told["unittests"].split(";")) == {"DCAFReview.py", "DCAFReviewJournalTest.py"}
    assert "not a medical device" in told["DESCRIPTION"] and told["DEPENDS"] == "NA"


def test_a_listed_file_that_is_missing_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "DCAFReview/DCAFReviewLib/client.py").unlink()
    result = _configure(copy, tmp_path / "build")
    assert result.returncode != 0 and "DCAFReviewLib/client.py is listed and does not exist" in _said(result)


@pytest.mark.parametrize("file", ["DCAFReviewLib/forgotten.py", "Resources/UI/Forgotten.ui", "Other.ui",
                                  "Resources/Icons/Forgotten.png", "Resources/Forgotten.json"])
def test_a_file_that_is_not_listed_is_refused(copy: Path, tmp_path: Path, file: str) -> None:
    (copy / "DCAFReview" / file).write_text("")
    result = _configure(copy, tmp_path / "build")
    assert result.returncode != 0 and f"{file} exists and is not listed" in _said(result)


@pytest.mark.parametrize("value", ["HOMEPAGE", "CONTRIBUTORS", "DESCRIPTION", "ICONURL", "SCREENSHOTURLS",
                                   "DEPENDS"])
def test_a_description_without_one_of_its_values_is_refused(copy: Path, tmp_path: Path, value: str) -> None:
    file = copy / "CMakeLists.txt"
    text, count = re.subn(rf"^set\(EXTENSION_{value} .*\)\n", "", _text(file), flags=re.M)
    assert count == 1
    file.write_text(text, encoding="utf-8")
    result = _configure(copy, tmp_path / "build")
    assert result.returncode != 0 and f"EXTENSION_{value}: need a value" in _said(result)


def test_a_module_whose_folder_is_not_added_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "Second").mkdir()
    (copy / "Second/Second.py").write_text("")
    result = _configure(copy, tmp_path / "build")
    assert result.returncode != 0 and "add_subdirectory(Second)" in _said(result)


def test_the_index_entry_follows_the_schema() -> None:
    entry = json.loads(_text(EXTENSION / "DCAFReview.json"))
    kinds = {"$schema": str, "category": str, "scm_url": str, "scm_revision": str, "scm_type": str,
             "build_dependencies": list, "build_subdirectory": str, "enabled": bool, "tier": int}
    assert {"$schema", "category", "scm_url"} <= set(entry) <= set(kinds)
    assert all(isinstance(value, kinds[key]) for key, value in entry.items())
    assert entry["$schema"].endswith("/slicer-extension-catalog-entry-schema-v1.0.1.json#")
    assert entry["category"] == "Active Learning" and entry.get("tier") in (1, 3, 5)
    assert entry.get("build_dependencies") == []
    assert re.fullmatch(r"https://github\.com/[\w-]+/Slicer\w+\.git", entry["scm_url"])


def test_the_project_is_named_as_its_index_entry_and_not_slicer() -> None:
    (entry,) = EXTENSION.glob("*.json")
    name = re.search(r"^project\((\w+)\)$", _text(EXTENSION / "CMakeLists.txt"), re.M)
    assert name and name[1] == entry.stem == "DCAFReview" and not entry.stem.startswith("Slicer")


def test_every_published_address_is_of_one_repository_and_names_a_file_that_is_here() -> None:
    entry = json.loads(_text(EXTENSION / "DCAFReview.json"))
    repository = entry["scm_url"].removeprefix("https://github.com/").removesuffix(".git")
    texts = [_text(EXTENSION / "CMakeLists.txt"),
             *(_text(path) for path in MODULE.rglob("*.py"))]
    owners = {found for text in texts for found in
              re.findall(r"https://(?:raw\.githubusercontent|github)\.com/([\w-]+/[\w-]+)", text)}
    assert owners == {repository}
    files = {found for text in texts for found in
             re.findall(rf"https://raw\.githubusercontent\.com/{repository}/main/([\w/.-]+)", text)}
    assert "DCAFReview/Resources/Icons/DCAFReview.png" in files
    missing = {name for name in files if not (EXTENSION / name).is_file()}
    if missing == {"Screenshots/DCAFReview.png"} and not (EXTENSION / "Screenshots").exists():
        pytest.skip("Screenshots/DCAFReview.png is made with the tutorial and is not here yet")
    assert not missing


def test_text_files_end_their_lines_with_lf_and_the_checkout_is_small() -> None:
    files = [path for path in EXTENSION.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    text = [path for path in files if path.suffix in {".py", ".ui", ".txt", ".json", ".md", ".svg", ""}]
    assert len(text) > 10
    for path in text:
        data = path.read_bytes()
        assert b"\r" not in data, path.name
        assert not data or data.endswith(b"\n"), path.name
    assert sum(path.stat().st_size for path in files) < 5e6, "far below the index's 100 MB"


def test_the_extension_carries_the_licence_of_the_project() -> None:
    assert (EXTENSION / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize("name", ["DCAFReview.png", "DCAFPhantomFilm.png"])
def test_an_icon_is_a_png_of_128_by_128_pixels(name: str) -> None:
    head = (MODULE / "Resources/Icons" / name).read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", head[16:]) == (128, 128)


def test_the_readme_says_what_the_index_asks_and_its_links_lead_somewhere() -> None:
    text = _text(EXTENSION / "README.md")
    for heading in ("Modules", "Install", "Tutorial", "Privacy", "Tests", "Publishing", "Licence",
                    "Citation"):
        assert re.search(rf"^## .*{heading}", text, re.M), heading
    assert "not been run in the desktop application" in " ".join(text.split())
    links = {link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link}
    not_yet = {"../docs/slicer_tutorial.md", "Screenshots/DCAFReview.png"}
    missing = {link for link in links if not (EXTENSION / link).exists()}
    assert links >= {"LICENSE"} and not missing - not_yet
    if missing:
        pytest.skip(f"not written yet: {', '.join(sorted(missing))}")


def test_the_test_of_slicers_own_python_passes_in_this_one() -> None:
    result = subprocess.run([sys.executable, MODULE / "Testing/Python/DCAFReviewJournalTest.py"],
                            capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0 and "Ran 3 tests" in result.stderr, result.stderr


def test_this_environment_is_the_locked_one() -> None:
    lines = _text(ROOT / "requirements-slicer.lock").splitlines()
    wanted = [Requirement(line) for line in lines if not line.startswith("#")]
    here = [wish for wish in wanted if wish.marker is None or wish.marker.evaluate()]
    assert {"slicer-core", "PySide6_Essentials", "vtk", "numpy", "cmake"} <= {wish.name for wish in here}
    assert [str(wish) for wish in here if version(wish.name) not in wish.specifier] == []


def test_every_registered_sample_names_its_checksum() -> None:
    calls = [node for path in MODULE.rglob("*.py") for node in ast.walk(ast.parse(_text(path)))
             if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("SampleDataSource")]
    assert calls
    for call in calls:
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert "SHA256" in given.get("checksums", ""), f"line {call.lineno}: need a SHA-256"

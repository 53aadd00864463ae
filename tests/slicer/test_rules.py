"""The house rules of the extension, read from its source: what runs inside a radiologist's Slicer."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

EXTENSION = Path(__file__).resolve().parents[2] / "slicer_extension"
MODULE = EXTENSION / "DCAFReview"
SOURCES = sorted(path.relative_to(MODULE).as_posix() for path in MODULE.rglob("*.py"))
LIBRARY = [name for name in SOURCES if name.startswith("DCAFReviewLib/")]

BUNDLED = {"numpy", "vtk", "slicer", "qt", "ctk"}
"""What Slicer brings along and a file may import when it is loaded, beside Python's own library."""
WITHOUT_SLICER = ("client", "journal", "courier", "session")
"""Parts that are pure Python, and run as well outside the application."""
SPEAKS = {"urlopen", "urlretrieve", "create_connection", "socket", "getaddrinfo", "HTTPConnection",
          "HTTPSConnection", "request", "downloadFile", "loadNodesFromURL", "registerCustomSampleDataSource",
          "pip_install", "pip_ensure", "system", "Popen", "run", "check_call", "check_output", "Thread",
          "start", "input", "exec_", "question", "information", "warning"}
"""Names of calls that download, ask a person, open a socket, or start something."""


def _tree(name: str) -> ast.Module:
    return ast.parse((MODULE / name).read_text(encoding="utf-8"))


def _modules(node: ast.AST) -> Iterator[str]:
    """Dotted modules one statement imports; of our own package, and of a relative import, with the names."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        start = ".".join(filter(None, ["DCAFReviewLib" if node.level else "", node.module]))
        yield start
        if start == "DCAFReviewLib":
            yield from (f"{start}.{alias.name}" for alias in node.names)


def _imported(name: str) -> set[str]:
    """Dotted modules a file imports, at its head or inside a function."""
    return {module for node in ast.walk(_tree(name)) for module in _modules(node)}


def _when_loaded(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that Python runs on import: all but the bodies of functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            for part in [*getattr(child, "decorator_list", []), *child.args.defaults,
                         *filter(None, child.args.kw_defaults)]:
                yield part
                yield from _when_loaded(part)
            continue
        yield child
        yield from _when_loaded(child)


def _name(call: ast.Call) -> str:
    """Last word of what is called."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def test_the_rules_have_files_to_hold() -> None:
    assert "DCAFReview.py" in SOURCES and len(LIBRARY) >= 7


@pytest.mark.parametrize("name", SOURCES)
def test_a_file_is_python_3_9(name: str) -> None:
    text = (MODULE / name).read_text(encoding="utf-8")
    ast.parse(text, feature_version=(3, 9))
    assert not [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Match)]


@pytest.mark.parametrize("name", SOURCES)
def test_a_union_with_a_bar_is_never_evaluated(name: str) -> None:
    tree = _tree(name)
    unions = {node for node in ast.walk(tree) if isinstance(node, ast.BinOp)
              and isinstance(node.op, ast.BitOr) and "None" in map(ast.unparse, (node.left, node.right))}
    postponed = any(isinstance(node, ast.ImportFrom) and node.module == "__future__"
                    and "annotations" in {alias.name for alias in node.names} for node in tree.body)
    annotations = [part for node in ast.walk(tree)
                   for part in (getattr(node, "annotation", None), getattr(node, "returns", None)) if part]
    inside = {union for part in annotations for union in ast.walk(part)} & unions if postponed else set()
    assert [node.lineno for node in unions - inside] == []


@pytest.mark.parametrize("name", SOURCES)
def test_a_file_imports_only_what_slicer_brings_along(name: str) -> None:
    foreign = {module for node in _when_loaded(_tree(name)) for module in _modules(node)
               if module.split(".")[0] not in {*sys.stdlib_module_names, *BUNDLED, "DCAFReviewLib"}}
    assert foreign == set()


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_of_the_server_is_imported_and_nothing_is_pickled(name: str) -> None:
    roots = {module.split(".")[0] for module in _imported(name)}
    assert not roots & {"dcaf_monai", "torch", "monai", "monailabel", "requests", "pickle", "shelve"}


@pytest.mark.parametrize("part", WITHOUT_SLICER)
def test_a_part_without_slicer_imports_none_of_it_nor_a_part_that_does(part: str) -> None:
    seen, left = set(), [part]
    while left:
        here = left.pop()
        seen.add(here)
        for module in _imported(f"DCAFReviewLib/{here}.py"):
            assert module.split(".")[0] not in {"slicer", "qt", "ctk", "vtk"}, f"{here} imports {module}"
            if module.startswith("DCAFReviewLib."):
                left += {module.split(".")[1]} - seen


def test_the_scene_is_drawn_without_widgets() -> None:
    assert not {module.split(".")[0] for module in _imported("DCAFReviewLib/logic.py")} & {"qt", "ctk"}


@pytest.mark.parametrize("lower, upper", [
    ("client", {"courier", "session", "widget", "logic"}),
    ("courier", {"session", "widget", "logic"}),
    ("journal", {"courier", "session", "widget", "logic"}),
    ("session", {"widget", "logic"}),
    ("logic", {"widget", "session", "courier", "journal"}),
])
def test_imports_run_one_way_from_the_widget_down_to_the_wire(lower: str, upper: set[str]) -> None:
    assert not _imported(f"DCAFReviewLib/{lower}.py") & {f"DCAFReviewLib.{name}" for name in upper}


@pytest.mark.parametrize("name", SOURCES)
def test_threads_of_qt_are_not_used(name: str) -> None:
    # QThread does not run Python in a second thread inside Slicer; threading and a timer do.
    words = set(re.findall(r"\b(?:QThread|QThreadPool|QRunnable|QtConcurrent)\b",
                           (MODULE / name).read_text(encoding="utf-8")))
    assert words == set()


@pytest.mark.parametrize("name", SOURCES)
def test_loading_a_file_downloads_asks_and_starts_nothing(name: str) -> None:
    calls = {_name(node) for node in _when_loaded(_tree(name)) if isinstance(node, ast.Call)}
    assert not calls & SPEAKS


def test_the_module_file_is_thin() -> None:
    assert len((MODULE / "DCAFReview.py").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("name", SOURCES)
def test_a_file_has_at_most_400_lines_and_says_what_it_is(name: str) -> None:
    assert len((MODULE / name).read_text(encoding="utf-8").splitlines()) <= 400
    assert ast.get_docstring(_tree(name)), "need a docstring that says what the file is"


def test_every_file_of_the_module_is_listed_in_cmake_and_no_other() -> None:
    text = (MODULE / "CMakeLists.txt").read_text(encoding="utf-8").replace("${MODULE_NAME}", "DCAFReview")
    listed = {word for block in re.findall(r"set\(MODULE_PYTHON_(?:SCRIPTS|RESOURCES)\n(.*?)\)", text, re.S)
              for word in block.split()}
    here = {path.relative_to(MODULE).as_posix() for path in MODULE.rglob("*") if path.is_file()
            and "__pycache__" not in path.parts and path.name != "CMakeLists.txt"}
    assert listed == {name for name in here if not name.startswith("Testing/")}
    assert {name for name in here if name.startswith("Testing/")} <= {
        f"Testing/Python/{script}" for script in re.findall(
            r"SCRIPT (\S+)\)", (MODULE / "Testing/Python/CMakeLists.txt").read_text(encoding="utf-8"))}

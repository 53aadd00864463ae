"""The table of modules in DESIGN.md is held against the imports in the source."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FENCED = {"monailabel", "timm", "sqlalchemy", "fastapi", "typer", "nibabel", "nrrd", "sklearn",
          "torchmetrics", "ignite", "safetensors", "starlette"}
EVERYWHERE = {"pydantic", "numpy"}


def _table() -> dict[str, tuple[set[str], str]]:
    """Module -> (our modules it may import, text of the fenced libraries column)."""
    rows = re.findall(r"^\| `([\w/]+)\.py` \| .*? \| (.*?) \| (.*?) \|$",
                      (ROOT / "DESIGN.md").read_text(encoding="utf-8"), re.M)
    return {name: (set(re.findall(r"[\w/*]+", ours)), fenced) for name, ours, fenced in rows}


def _imports(file: Path) -> set[str]:
    """Dotted names a file imports; ``from dcaf_monai import x`` counts as ``dcaf_monai.x``."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            ours = node.module in ("dcaf_monai", "dcaf_monai.server")
            found |= {f"{node.module}.{alias.name}" for alias in node.names} if ours else {node.module}
    return found


MODULES = sorted(path.relative_to(ROOT / "dcaf_monai").with_suffix("").as_posix()
                 for path in (ROOT / "dcaf_monai").rglob("*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_the_table_allows(module: str) -> None:
    table = _table()
    assert module in table, f"DESIGN.md, section 2, has no row for {module}.py"
    allowed, libraries = table[module]
    imported = _imports(ROOT / "dcaf_monai" / f"{module}.py")
    ours = {name.removeprefix("dcaf_monai.").replace(".", "/") for name in imported
            if name.startswith("dcaf_monai.")}
    permitted = set(MODULES) if "all" in allowed else {
        other for other in MODULES
        if other in allowed
        or (other.startswith("server/") and module.startswith("server/")
            and (other.removeprefix("server/") in allowed or "server/*" in allowed))
        or (not other.startswith("server/") and "library" in allowed)}
    assert ours <= permitted, f"{module} imports {sorted(ours - permitted)}"
    foreign = {name.split(".")[0] for name in imported} & FENCED - EVERYWHERE
    stated = {"scikit-learn": "sklearn", "monai.engines": "ignite"}
    words = {stated.get(word, word) for word in re.findall(r"[\w.-]+", libraries)}
    assert foreign <= words, f"{module} imports {sorted(foreign - words)}"


def test_nothing_outside_the_server_imports_monai_label() -> None:
    for module in MODULES:
        if not module.startswith("server/"):
            names = {name.split(".")[0] for name in _imports(ROOT / "dcaf_monai" / f"{module}.py")}
            assert "monailabel" not in names, module


def test_no_file_is_longer_than_the_house_allows() -> None:
    files = [*(ROOT / "dcaf_monai").rglob("*.py"), *(ROOT / "tests").rglob("*.py"),
             *(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "apps").rglob("*.py")]
    long = {file.name: lines for file in files
            if (lines := len(file.read_text(encoding="utf-8").splitlines())) > 400}
    assert not long


def test_no_module_is_a_drawer_for_leftovers() -> None:
    drawers = {"utils", "helpers", "common", "base", "core", "misc"}
    assert not {Path(module).name for module in MODULES} & drawers


def test_the_command_line_starts_without_loading_torch() -> None:
    """`dcaf --help` must answer at once: heavy imports stay inside the commands."""
    tree = ast.parse((ROOT / "dcaf_monai/cli.py").read_text(encoding="utf-8"))
    top = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    top |= {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert not {name for name in top if name.startswith(("torch", "monai"))}

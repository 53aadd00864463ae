"""``dcaf audit``: what in the data could make a model look better than it is."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from dcaf_monai.terminal import console, parse_backbones, progress_bars, teller

if TYPE_CHECKING:
    from dcaf_monai.audit import Audit
    from dcaf_monai.model import Model


_STYLES = {"pass": "green", "look": "yellow", "alarm": "bold red"}


def audit(
    data: Annotated[Path, typer.Option(help="Folder of class folders, or a CSV with "
                                            "file,task,label,split,group and, best, source.")],
    task: Annotated[list[str] | None, typer.Option(help="Only this task (or .toml file); repeatable. "
                                                        "Default: all tasks of the table.")] = None,
    model: Annotated[Path | None, typer.Option(help="A trained model, which looks at the pictures too: near "
                                                    "duplicates, masked pictures, the source.")] = None,
    weights: Annotated[str | None, typer.Option(help="Instead of a model: trunks alone, pretrained or two "
                                                     "local files FIRST,SECOND.")] = None,
    backbones: Annotated[str, typer.Option(help="Two timm names, "
                                                "with --weights.")] = "efficientnet_b4,resnet34",
    report: Annotated[Path | None, typer.Option(help="Folder for audit.json and audit.html. The page holds "
                                                     "pictures of the data.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder that keeps measurements and small copies of the "
                                                    "pictures, so that an audit goes on where it stopped. "
                                                    "Default: in the report folder.")] = None,
    seed: Annotated[int, typer.Option(help="Of permutations and intervals.")] = 0,
) -> None:
    """Look for leaks, copies and shortcuts in a data set. Exit code 0: none alarming, 1: an alarm, 2: bad
    input.

    Interrupted at any moment, the same command goes on where it stopped.
    """
    from dcaf_monai.audit import audit_cohort
    from dcaf_monai.audit_report import write_audit
    from dcaf_monai.features import CacheError
    from dcaf_monai.model import load_model
    from dcaf_monai.tasks import task_from_toml

    if model and weights:
        raise ValueError("--weights: need a model or trunk weights, got both. Leave one out.")
    eyes = load_model(model) if model else _trunks(weights, backbones) if weights else None
    tasks = [task_from_toml(Path(name)) if name.endswith(".toml") else name for name in task or ()]
    with tempfile.TemporaryDirectory() as spare, progress_bars() as bar:
        kept = cache or (report / "cache" if report else Path(spare))
        try:
            found = audit_cohort(data, tasks or None, cache=kept, model=eyes, seed=seed,
                                 progress=teller(bar))
        except CacheError as error:
            raise ValueError(str(error)) from error
    _show(found)
    if report:
        _, page = write_audit(found, report)
        console.print(f"{page} (it contains pictures of the data: keep it where they may be kept)",
                      markup=False, highlight=False, soft_wrap=True)
    if found.worst == "alarm":
        raise typer.Exit(1)


def _trunks(weights: str, backbones: str) -> Model:
    """Trunks of a network nobody trained, to look with."""
    from dcaf_monai.model import Model
    from dcaf_monai.network import DualCrossAttentionFusion
    from dcaf_monai.tasks import TASKS
    from dcaf_monai.transforms import Preprocessing

    files = weights.split(",")
    if weights != "pretrained" and len(files) != 2:
        raise ValueError(f"--weights: need pretrained, or two files FIRST,SECOND, got {weights!r}.")
    network = DualCrossAttentionFusion(2, backbones=parse_backbones(backbones), weights="pretrained"
                                       if weights == "pretrained" else (Path(files[0]), Path(files[1])))
    return Model(network=network.eval(), task=TASKS["pneumonia"], preprocessing=Preprocessing())


def _show(found: Audit) -> None:
    from dcaf_monai.audit_report import title_of

    for name in dict.fromkeys([*found.sha256, ""]):
        items = [item for item in found.items if item.task == name]
        if not items:
            continue
        table = Table("verdict", "check", "what was found", show_lines=True,
                      title=name or ("data" if "" in found.sha256 else "across tasks"))
        passed = 0
        for item in sorted(items, key=lambda item: ("alarm", "look", "pass").index(item.verdict)):
            if item.verdict == "pass":
                passed += 1
            else:
                table.add_row(Text(item.verdict, _STYLES[item.verdict]), title_of(item.name),
                              Text(item.sentence))
        if passed:
            table.add_row("[green]pass[/]", f"{passed} checks", "Nothing found, which is no proof of "
                                                                "absence.")
        console.print(table)
    console.print(f"Audit of {len(found.rows)} images: [{_STYLES[found.worst]}]{found.worst}[/]")

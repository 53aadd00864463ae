"""What every command shares: consoles, progress, the words for weights and backbones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

console = Console()
errors = Console(stderr=True)


def fail(message: str, code: int) -> NoReturn:
    """End the command with one sentence on standard error."""
    errors.print(f"dcaf: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def warn(message: str) -> None:
    """One sentence of caution on standard error."""
    errors.print(message, style="yellow", markup=False, highlight=False, soft_wrap=True)


def progress_bars() -> Progress:
    """Bars on standard error."""
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                    TimeElapsedColumn(), console=errors)


def teller(bar: Progress) -> Callable[..., None]:
    """A progress callback ``(stage, done, total, note)``: bars on a terminal, lines elsewhere."""
    tasks: dict[str, Any] = {}
    told: dict[str, tuple[int, str]] = {}

    def tell(stage: str, done: int, total: int, note: str = "") -> None:
        if not errors.is_terminal:
            news = done * 10 // max(total, 1), note
            if told.get(stage) != news:
                told[stage] = news
                errors.print(f"{stage} {done}/{total} {note}".rstrip(), markup=False, highlight=False,
                             soft_wrap=True)
            return
        if stage not in tasks:
            tasks[stage] = bar.add_task(stage, total=total)
        bar.update(tasks[stage], completed=done, total=total, description=f"{stage} {note}".strip())

    return tell


def parse_weights(text: str) -> str | tuple[Path, Path]:
    """``pretrained``, ``none`` or two files.

    Raises:
        ValueError: For anything else.
    """
    if text in ("pretrained", "none"):
        return text
    parts = text.split(",")
    if len(parts) != 2:
        raise ValueError(f"--weights: need pretrained, none, or two files FIRST,SECOND, got {text!r}.")
    return Path(parts[0]), Path(parts[1])


def parse_backbones(text: str) -> tuple[str, str]:
    """Two timm names.

    Raises:
        ValueError: For another number of names.
    """
    parts = text.split(",")
    if len(parts) != 2:
        raise ValueError(f"--backbones: need two timm names FIRST,SECOND, got {text!r}.")
    return parts[0], parts[1]

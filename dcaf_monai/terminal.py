"""What every command shares: consoles, progress, the words for weights and backbones."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

console = Console()
errors = Console(stderr=True)


def fail(message: str, code: int) -> NoReturn:
    """End the command with one sentence on standard error."""
    complain(message)
    raise typer.Exit(code)


def complain(message: str) -> None:
    """What went wrong, in one sentence on standard error."""
    errors.print(f"dcaf: {message}", style="red", markup=False, highlight=False, soft_wrap=True)


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


def with_folder(file: Path | None) -> Path | None:
    """Callback of a file to write: its folder is made now, so that no work is lost for want of it.

    Raises:
        ValueError: When the file cannot be written there.
        OSError: When the folder cannot be made.
    """
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
            raise ValueError(f"{file}: need a file that can be written, got another. Name another place.")
    return file


def parse_device(text: str) -> str:
    """Callback of a device: ``cpu``, or a GPU that this machine has.

    Raises:
        ValueError: For anything else.
    """
    if text != "cpu":
        import torch

        found = torch.cuda.device_count()
        match = re.fullmatch(r"cuda(?::(\d+))?", text)
        if not match or int(match[1] or 0) >= found:
            gpus = f" (0 to {found - 1})" if found else ""
            raise ValueError(f"--device: need cpu, cuda or cuda:N, got {text!r} on a machine with {found} "
                             f"GPUs{gpus}.")
    return text


Device = Annotated[str, typer.Option(help="cpu, cuda, or cuda:N.", callback=parse_device)]


@contextmanager
def server_parts() -> Iterator[None]:
    """Around imports of what only the extra ``server`` installs.

    Raises:
        ValueError: When it is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(f"server: need the package {error.name}, which is not installed. "
                         "Say pip install 'dcaf-monai[server]'.") from error


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

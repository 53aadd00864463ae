"""``dcaf``: the command line.

Exit codes: 0 done, 1 the job failed, 2 the input was wrong. A mistake of the caller is one
sentence on standard error, never a traceback.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.table import Table

from dcaf_monai.cli_ablate import ablate
from dcaf_monai.cli_admin import import_annotations, models_app, serve, token_app
from dcaf_monai.cli_audit import audit
from dcaf_monai.cli_evaluate import card, evaluate
from dcaf_monai.cli_labels import medmnist, progress, suspects
from dcaf_monai.cli_simulate import simulate
from dcaf_monai.terminal import (
    Device,
    complain,
    console,
    errors,
    fail,
    parse_backbones,
    parse_weights,
    progress_bars,
    server_parts,
    teller,
    warn,
    with_folder,
)

app = typer.Typer(name="dcaf", no_args_is_help=True, add_completion=False,
                  pretty_exceptions_enable=False, rich_markup_mode="markdown",
                  help="Uncertainty-aware image classification: what the model sees, how unsure it "
                       "is, where it looked. Research software, not a medical device.")
app.add_typer(models_app, name="models")
app.add_typer(token_app, name="token")
app.command()(serve)
app.command("import")(import_annotations)
for command in (audit, evaluate, card, ablate, simulate, suspects, progress, medmnist):
    app.command()(command)


class Mode(str, Enum):
    """How the network is trained."""

    frozen = "frozen"
    full = "full"


class Criterion(str, Enum):
    """What an operating point holds."""

    sensitivity = "sensitivity"
    specificity = "specificity"


class Order(str, Enum):
    """What a worklist is sorted by."""

    entropy = "entropy"
    mutual_information = "mutual_information"
    margin = "margin"


ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="A trained .safetensors model.")]


def _images_in(folder: Path) -> list[tuple[None, Path, None]]:
    """Every visible image below a folder, sorted."""
    from dcaf_monai.cohort import is_image

    return [(None, path, None) for path in sorted(folder.rglob("*"))
            if not any(part.startswith(".") for part in path.relative_to(folder).parts)
            and path.is_file() and is_image(path)]


def _frame_of(image: Path) -> tuple[None, Path, int | None]:
    """A file, or ``FILE:FRAME`` of one that has several.

    Raises:
        ValueError: When it is not there.
    """
    stem, _, number = str(image).rpartition(":")
    if not image.exists() and number.isdecimal() and Path(stem).is_file():
        return None, Path(stem), int(number)
    if not image.is_file():
        raise ValueError(f"image: need an existing file, got {image}.")
    return None, image, None


@app.command("sample-data")
def sample_data(
    folder: Annotated[Path, typer.Argument(help="Where the films go; made if it is not there.")],
    count: Annotated[int, typer.Option(min=2, help="How many films.")] = 60,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
) -> None:
    """Write synthetic chest films (DICOM DX) with known lesions, labels and splits."""
    from dcaf_monai.phantom import write_films

    write_films(folder, count, seed=seed)
    table = folder / "labels.csv"
    console.print(f"{count} synthetic films, labels in {table}", markup=False, soft_wrap=True)
    console.print(f"Next: dcaf train --data {table} --task pneumonia --out model.safetensors "
                  "--mode full --backbones test_efficientnet,test_resnet --weights none",
                  markup=False, soft_wrap=True)


@app.command()
def train(
    data: Annotated[Path, typer.Option(help="Folder of class folders, or a CSV with "
                                            "file,task,label,split,group.")],
    out: Annotated[Path, typer.Option(help="The model file to publish to.", callback=with_folder)],
    task: Annotated[str, typer.Option(help="covid19, tuberculosis, pneumonia, oct, or a .toml file.")],
    mode: Annotated[Mode, typer.Option(help="frozen: trunks fixed, their features cached; "
                                            "full: everything trained.")] = Mode.frozen,
    backbones: Annotated[str, typer.Option(help="Two timm names.")] = "efficientnet_b4,resnet34",
    weights: Annotated[str, typer.Option(help="pretrained (timm's), none, or two local files "
                                              "FIRST,SECOND.")] = "pretrained",
    size: Annotated[int, typer.Option(min=64, max=1024, help="Side of the network input, px.")] = 224,
    width: Annotated[int, typer.Option(min=4, help="Channels of the cross-attention.")] = 128,
    fused: Annotated[int, typer.Option(min=4, help="Channels of a fused map.")] = 256,
    epochs: Annotated[int, typer.Option(min=1, help="At most so many epochs.")] = 30,
    batch_size: Annotated[int, typer.Option(min=2)] = 32,
    seed: Annotated[int, typer.Option()] = 0,
    device: Device = "cpu",
    cache: Annotated[Path | None, typer.Option(help="Folder of cached inputs and features; default "
                                                    "beside the model.")] = None,
    criterion: Annotated[Criterion, typer.Option(help="Operating points hold this on validation "
                                                      "...")] = Criterion.sensitivity,
    target: Annotated[float, typer.Option(min=0.5, max=1.0, help="... of at least this.")] = 0.9,
) -> None:
    """Train a model and publish it if it beats the one in place on the same validation split.

    Interrupted at any moment, the same command goes on where it stopped.
    """
    from dcaf_monai.cohort import read_cohort
    from dcaf_monai.tasks import task_named
    from dcaf_monai.train import fit, work_folder
    from dcaf_monai.transforms import Preprocessing

    question = task_named(task)
    cohort = read_cohort(data, question, frozen=work_folder(out) / "data-split.csv", seed=seed)
    for notice in cohort.notices:
        warn(notice.message)
    counts = ", ".join(f"{split} {len(cohort.split(split))}" for split in ("train", "val", "test"))
    errors.print(f"{question.title}: {counts} images", highlight=False)
    with progress_bars() as bar:
        result = fit(cohort, out=out, mode=mode.value, backbones=parse_backbones(backbones),
                     weights=parse_weights(weights), shape={"width": width, "fused": fused},
                     preprocessing=Preprocessing(size=size),
                     epochs=epochs, batch_size=batch_size, seed=seed, device=device,
                     cache=cache, criterion=criterion.value, target=target,
                     progress=teller(bar))
    console.print(result.verdict.reason, markup=False, soft_wrap=True)
    if not result.verdict.published:
        raise typer.Exit(1)


@app.command()
def predict(
    model: ModelFile,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Files, frames of a file as "
                                                                            "FILE:FRAME, or folders.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document a line, as /infer "
                                                         "answers.")] = False,
    overlay: Annotated[Path | None, typer.Option(help="Folder for blended PNG overlays.")] = None,
    kind: Annotated[str, typer.Option(help="Which map: class_activation, attention_first, "
                                           "attention_second, gate, spatial.")] = "class_activation",
    cutoffs: Annotated[Path | None, typer.Option(help="A site's own cut-offs for this model "
                                                      "version.")] = None,
) -> None:
    """Class probabilities, entropy and attention overlay of images."""
    predictor = _predictor(model, cutoffs)
    files = [file for image in images
             for file in (_images_in(image) if image.is_dir() else [_frame_of(image)])]
    if not files:
        raise ValueError("image: need at least one image, the folder holds none.")
    table = Table("image", "prediction", "probability", "entropy", "of maximum", "notices")
    read = 0
    for (_, file, frame), answer in _answered(predictor, files, "predict",
                                              overlays=(kind,) if overlay else ()):
        read += 1
        if overlay:
            _write_overlay(overlay, file, frame, answer, kind)
        if as_json:
            sys.stdout.write(json.dumps(answer.document(), allow_nan=False) + "\n")
        else:
            table.add_row(_name(file, frame), answer.label, f"{answer.probs.max():.3f}",
                          f"{answer.predictive_entropy:.3f}", f"{answer.normalized_entropy:.0%}",
                          ", ".join(notice.code for notice in answer.notices))
    if not as_json and table.row_count:
        console.print(table)
    if read < len(files):
        fail(f"{len(files) - read} of {len(files)} images could not be read.", 2)


def _predictor(model: Path, cutoffs: Path | None = None) -> Any:
    from dcaf_monai.calibration import load_overrides
    from dcaf_monai.model import load_model
    from dcaf_monai.predict import Predictor

    loaded = load_model(model)
    own = load_overrides(cutoffs, loaded.version, loaded.task.classes) if cutoffs else None
    return Predictor(loaded, cutoffs=own)


def _answered(predictor: Any, files: Sequence[tuple[str | None, Path, int | None]], what: str, *,
              overlays: Sequence[str] = ()) -> Iterator[tuple[tuple[str | None, Path, int | None], Any]]:
    """``(file, prediction)`` of each readable file, with progress; says what is wrong with the others."""
    from dcaf_monai.image import ImageError

    answers = predictor.predict_files(files, overlays=overlays)
    with progress_bars() as bar:
        for file, (_, answer) in bar.track(zip(files, answers, strict=True), total=len(files),
                                           description=what):
            if isinstance(answer, ImageError):
                errors.print(f"{_name(*file[1:])}: {answer}", style="red", markup=False, highlight=False,
                             soft_wrap=True)
            else:
                yield file, answer


def _name(file: Path, frame: int | None) -> str:
    return file.name if frame is None else f"{file.name}:{frame}"


def _write_overlay(folder: Path, file: Path, frame: int | None, answer: Any, kind: str) -> None:
    """One blended PNG, named after the file and never after anything in its header."""
    from dcaf_monai.dicom import read_image
    from dcaf_monai.overlay import write_png

    folder.mkdir(parents=True, exist_ok=True)
    stem = file.stem if frame is None else f"{file.stem}-{frame}"
    target = folder / f"{stem}.{kind}.png"
    number = 1
    while target.exists():
        target = folder / f"{stem}.{number}.{kind}.png"
        number += 1
    write_png(read_image(file, frame=frame), answer.heats[kind], target)


@app.command()
def rank(
    model: ModelFile,
    folder: Annotated[Path, typer.Argument(help="Folder of images, searched below.")],
    by: Annotated[Order, typer.Option(help="What makes a case urgent.")] = Order.entropy,
    top: Annotated[int, typer.Option(min=1, help="Show so many.")] = 20,
    out: Annotated[Path | None, typer.Option(help="Write the whole ranking as CSV.",
                                             callback=with_folder)] = None,
) -> None:
    """Order a folder of images for reading, most uncertain first."""
    if not folder.is_dir():
        raise ValueError(f"folder: need an existing folder, got {folder}.")
    predictor = _predictor(model)
    files = _images_in(folder)
    names = {"entropy": "predictive_entropy"}
    rows: list[tuple[float, Path, Any]] = []
    for (_, file, _), answer in _answered(predictor, files, "rank"):
        value = getattr(answer, names.get(by.value, by.value))
        rows.append((-value if by is Order.margin else value, file, answer))
    rows.sort(key=lambda row: (-row[0], row[1]))
    table = Table("rank", "image", by.value, "prediction", "probability")
    for number, (value, file, answer) in enumerate(rows[:top], 1):
        table.add_row(str(number), str(file.relative_to(folder)), f"{abs(value):.3f}", answer.label,
                      f"{answer.probs.max():.3f}")
    console.print(table)
    if out:
        with out.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["rank", "file", by.value, "label", "probability"])
            for number, (value, file, answer) in enumerate(rows, 1):
                writer.writerow([number, file.relative_to(folder).as_posix(), abs(value),
                                 answer.label, float(answer.probs.max())])
    if not rows:
        raise ValueError("folder: need at least one readable image, got none.")
    if len(rows) < len(files):
        errors.print(f"{len(files) - len(rows)} of {len(files)} files could not be read.", style="yellow")


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where everything goes.")] = Path("demo"),
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """The whole loop on synthetic films: train, serve, predict, correct, retrain, re-rank, report."""
    with server_parts():
        from dcaf_monai.demo import DemoError, run

    try:
        run(folder, seed=seed)
    except DemoError as error:
        fail(str(error), 1)


def main() -> None:
    """Entry point: turns the errors a person can cause into one sentence."""
    try:
        app()
    except SystemExit:  # how every command ends: nothing below need be loaded to know it
        raise
    except KeyboardInterrupt:
        errors.print("dcaf: stopped.", style="yellow")
        sys.exit(130)
    except ValueError as error:
        _end(str(error), 2)
    except OSError as error:  # a path the person gave, or a full disk
        theirs = (FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError, IsADirectoryError)
        _end(f"{error.filename or 'file'}: need a place that can be read and written, got "
             f"{error.strerror or type(error).__name__}.", 2 if isinstance(error, theirs) else 1)
    except _bad_input() as error:
        _end(str(error), 2)
    except _failed_job() as error:
        _end(str(error), 1)


def _end(sentence: str, code: int) -> NoReturn:
    complain(sentence)
    sys.exit(code)


def _bad_input() -> tuple[type[Exception], ...]:
    """Asked for only when something was raised: these modules take seconds to load."""
    from dcaf_monai.image import ImageError
    from dcaf_monai.model import ModelError
    from dcaf_monai.weights import WeightsError

    return ImageError, ModelError, WeightsError


def _failed_job() -> tuple[type[Exception], ...]:
    from dcaf_monai.checkpoint import TrainError
    from dcaf_monai.features import CacheError

    return TrainError, CacheError


if __name__ == "__main__":
    main()

"""``dcaf suspects``, ``dcaf progress`` and ``dcaf medmnist``: labels checked, curves, published results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from dcaf_monai.terminal import (
    Device,
    console,
    parse_backbones,
    parse_weights,
    progress_bars,
    teller,
    warn,
    with_folder,
)

if TYPE_CHECKING:
    from dcaf_monai.cohort import Cohort
    from dcaf_monai.image import Notice
    from dcaf_monai.network import DualCrossAttentionFusion
    from dcaf_monai.predict import Prediction
    from dcaf_monai.transforms import Preprocessing


Backbones = Annotated[str, typer.Option(help="Two timm names.")]
Weights = Annotated[str, typer.Option(help="pretrained (timm's), none, or two local files FIRST,SECOND.")]


def suspects(
    data: Annotated[Path, typer.Option(help="Folder of class folders, or a CSV with "
                                            "file,task,label,split,group.")],
    task: Annotated[str, typer.Option(help="covid19, tuberculosis, pneumonia, oct, or a .toml file.")],
    out: Annotated[Path, typer.Option(help="Write the suspects as CSV.", callback=with_folder)],
    model: Annotated[Path | None, typer.Option(help="Take trunks and preprocessing of this model instead of "
                                                    "--backbones and --weights.")] = None,
    backbones: Backbones = "efficientnet_b4,resnet34",
    weights: Weights = "pretrained",
    size: Annotated[int, typer.Option(min=64, max=1024, help="Side of the network input, px.")] = 224,
    cache: Annotated[Path | None, typer.Option(help="Folder of cached inputs and vectors; default beside "
                                                    "the table.")] = None,
    folds: Annotated[int, typer.Option(min=2, max=20)] = 5,
    seed: Annotated[int, typer.Option(help="Of the folds.")] = 0,
    top: Annotated[int, typer.Option(min=1, help="Show so many.")] = 20,
) -> None:
    """Labels that are likely wrong, the least believable first, for a second reading.

    Every label is judged by a cheap learner that saw neither the image nor its patient.
    """
    from dcaf_monai.cohort import read_cohort
    from dcaf_monai.features import input_cache
    from dcaf_monai.suspects import find_suspects, out_of_fold, write_suspects
    from dcaf_monai.tasks import task_named
    from dcaf_monai.vectors import pooled_trunk_features

    cohort = read_cohort(data, task_named(task), seed=seed)
    network, preprocessing, taught = _trunks(model, cohort, backbones, weights, size)
    folder = cache or out.parent / f"{out.stem}.cache"
    with progress_bars() as bar:
        tell = teller(bar)
        vectors = pooled_trunk_features(
            cohort, network, preprocessing=preprocessing, cache=folder,
            progress=lambda done, total: tell("vectors", done, total))
    _tell([*vectors.notices, *taught])
    cases = input_cache(cohort.cases, preprocessing, folder).cases
    answers = out_of_fold(vectors.values, vectors.labels, vectors.groups, folds=folds, seed=seed)
    # a uid names a file; a frame of it is named beside it
    names = [case.uid if case.frame is None or case.uid.endswith(f":{case.frame}")
             else f"{case.uid}:{case.frame}" for case in cases]
    found, noise = find_suspects(names, vectors.labels, answers.probs, cohort.task.classes)
    write_suspects(found, out, splits=dict(zip(names, vectors.split.tolist(), strict=True)))
    table = Table("rank", "file", "given", "suggested", "probability of given", "of suggested")
    for suspect in found[:top]:
        table.add_row(str(suspect.rank), suspect.uid, suspect.given, suspect.suggested,
                      f"{suspect.probability_given:.3f}", f"{suspect.probability_suggested:.3f}")
    if found:
        console.print(table)
    _say(f"{len(found)} of {len(names)} labels are suspect; estimated share of wrong labels "
         f"{noise.share:.1%}. {noise.caveat}")
    _say(f"Judged out of fold by patient; loss of the labels given {answers.nll:.3f} nats. Table: {out}")


def progress(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The published .safetensors file.")],
    data: Annotated[Path | None, typer.Option(help="The data whose validation split judged the rounds, or "
                                                   "a split.csv: rounds without losses of single images "
                                                   "are measured on it.")] = None,
    margin: Annotated[float, typer.Option(help="A gain in validation NLL (nats) worth labelling "
                                               "for.")] = 0.02,
    figure: Annotated[Path | None, typer.Option(help="Draw the curve as PNG.", callback=with_folder)] = None,
    out: Annotated[Path | None, typer.Option(help="Write everything as JSON.", callback=with_folder)] = None,
) -> None:
    """What the labels have brought so far, and whether more of them are likely to help."""
    from dcaf_monai.cohort import read_cohort
    from dcaf_monai.model import describe_model
    from dcaf_monai.progress import BASIS, draw_progress, judge_progress
    from dcaf_monai.rounds import measure_rounds, rounds
    from dcaf_monai.tasks import Task
    from dcaf_monai.train import work_folder

    described = describe_model(model)
    if data:
        # the split `dcaf train` drew, so that no case the model learnt from judges it
        frozen = work_folder(model) / "data-split.csv"
        cohort = read_cohort(data, Task.model_validate(described["task"]),
                             frozen=frozen if frozen.exists() else None)
        with progress_bars() as bar:
            tell = teller(bar)
            measured = measure_rounds(model, cohort,
                                      notify=lambda done, total: tell("measure", done, total))
        _say(f"{measured} rounds were measured on {len(cohort.split('val'))} validation images.")
    found = judge_progress(rounds(model), margin=margin)
    table = Table("training labels", "version", "published", "validation NLL", "AUROC")
    for point in found.points:
        table.add_row(str(point.labels), point.version,
                      {True: "yes", False: "refused", None: ""}[point.published],
                      *(_figure(value.value, value.low, value.high) for value in (point.nll, point.auroc)))
    console.print(table)
    _tell(found.notices)
    _say(f"{found.answer[0].upper()}{found.answer[1:]}. {found.why}")
    _say(BASIS)
    if figure:
        figure.write_bytes(draw_progress(found))
    if out:
        out.write_text(json.dumps(found.document(), indent=1) + "\n", encoding="utf-8")


def medmnist(
    collection: Annotated[str, typer.Argument(metavar="COLLECTION", help="pneumoniamnist or octmnist.")],
    out: Annotated[Path, typer.Option(help="The model file to publish to.", callback=with_folder)],
    size: Annotated[int, typer.Option(help="Side of the images, px: 28, 64, 128 or 224.")] = 224,
    npz: Annotated[Path | None, typer.Option(help="The file, where it was downloaded already.")] = None,
    mode: Annotated[str, typer.Option(help="frozen or full, as for train.")] = "frozen",
    backbones: Backbones = "efficientnet_b4,resnet34",
    weights: Weights = "pretrained",
    epochs: Annotated[int, typer.Option(min=1, help="At most so many epochs.")] = 30,
    batch_size: Annotated[int, typer.Option(min=2)] = 32,
    width: Annotated[int, typer.Option(min=4, help="Channels of the cross-attention.")] = 128,
    fused: Annotated[int, typer.Option(min=4, help="Channels of a fused map.")] = 256,
    seed: Annotated[int, typer.Option()] = 0,
    device: Device = "cpu",
    report: Annotated[Path | None, typer.Option(help="Write the figures as JSON.",
                                                callback=with_folder)] = None,
) -> None:
    """Train on a MedMNIST+ collection, test on its official split, and show what others have published."""
    from dcaf_monai.medmnist import CITATION, cohort_from_npz, collection_named, fetch_npz, task_of
    from dcaf_monai.model import load_model
    from dcaf_monai.train import fit, work_folder
    from dcaf_monai.transforms import Preprocessing

    if mode not in ("frozen", "full"):
        raise ValueError(f"--mode: need frozen or full, got {mode!r}.")
    known = collection_named(collection)
    folder = work_folder(out)
    file = npz or fetch_npz(collection, size=size, folder=folder)
    cohort = cohort_from_npz(file, task_of(known), folder=folder / "images")
    _tell(cohort.notices)
    with progress_bars() as bar:
        result = fit(cohort, out=out, mode="full" if mode == "full" else "frozen",
                     backbones=parse_backbones(backbones), weights=parse_weights(weights),
                     shape={"width": width, "fused": fused}, preprocessing=Preprocessing(size=max(size, 64)),
                     epochs=epochs, batch_size=batch_size, seed=seed, device=device, progress=teller(bar))
    _say(result.verdict.reason)
    # the published model answers, whether this training made it or an earlier one that was better
    figures = _tested(load_model(out), cohort)
    _compare(collection, size, figures)
    _say(CITATION)
    if report:
        document = {"collection": collection, "pixels": size, "split": "test", **figures,
                    "notices": [notice.message for notice in cohort.notices]}
        report.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _trunks(model: Path | None, cohort: Cohort, backbones: str, weights: str, size: int,
            ) -> tuple[DualCrossAttentionFusion, Preprocessing, list[Notice]]:
    """A network for its trunks, and what speaks against them as judges of these labels."""
    from dcaf_monai.image import Notice
    from dcaf_monai.model import load_model
    from dcaf_monai.network import DualCrossAttentionFusion
    from dcaf_monai.transforms import Preprocessing

    if model is None:
        network = DualCrossAttentionFusion(len(cohort.task.classes), weights=parse_weights(weights),
                                           backbones=parse_backbones(backbones)).eval()
        return network, Preprocessing(size=size), []
    loaded = load_model(model)
    taught = [] if loaded.provenance.get("mode") == "frozen" else [Notice(
        "taught_trunks", "The trunks of this model were trained with labels. If with these, they may have "
        "learnt wrong ones by heart, which then look right here. Prefer a model of mode frozen, or none.")]
    return loaded.network, loaded.preprocessing, taught


def _tested(model: Any, cohort: Cohort) -> dict[str, Any]:
    """Figures of the official test split, with intervals."""
    import numpy as np

    from dcaf_monai.image import ImageError
    from dcaf_monai.metrics import report
    from dcaf_monai.predict import Predictor

    cases = cohort.split("test")
    answers = Predictor(model).predict_files([(case.uid, case.path, case.frame) for case in cases])
    read: list[tuple[Any, Prediction]] = []
    for case, (_, answer) in zip(cases, answers, strict=True):
        if isinstance(answer, ImageError):
            raise ValueError(f"test split: need every image, got one that cannot be read: {answer}")
        read.append((case, answer))
    labels = np.array([cohort.task.class_index(case.label) for case, _ in read])
    figures = report(np.stack([answer.probs for _, answer in read]), labels, [case.group for case, _ in read],
                     cohort.task.classes)
    return {"model": model.version, **figures}


def _compare(collection: str, size: int, figures: dict[str, Any]) -> None:
    from dcaf_monai.literature import published_results

    ours = [figures[name]["value"] for name in ("auroc", "accuracy")]
    table = Table(Column("method", no_wrap=True), "px", Column("AUROC", no_wrap=True),
                  Column("accuracy", no_wrap=True), "note",
                  title=f"{collection}, official test split, {figures['cases']} images")
    table.add_row("this model", str(size), *(_figure(value, None, None) for value in ours), "", style="bold")
    notes: list[str] = []
    for result in published_results(collection):
        note = "; ".join(filter(None, (result.source, result.caveat)))
        notes += [] if note in notes else [note]
        mark = "" if result.checked else " ?"
        table.add_row(result.method, str(result.pixels), *(
            "" if value is None else f"{value:.3f}" + ("" if sd is None else f" ± {sd:.3f}") + mark
            for value, sd in ((result.auroc, result.auroc_sd), (result.accuracy, result.accuracy_sd))),
            str(notes.index(note) + 1))
    console.print(table)
    for number, note in enumerate(notes, start=1):
        _say(f"{number}  {note}")
    _say(f"This model, 95 % intervals over images: AUROC {_figure(**figures['auroc'])}, accuracy "
         f"{_figure(**figures['accuracy'])}. Figures with ? were handed down and not read in their source. "
         "Published figures are of other networks, weights and recipes: a difference says nothing of the "
         "fusion by itself.")


def _figure(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" + ("" if low is None else f" ({low:.3f} to {high:.3f})")


def _tell(notices: Sequence[Notice]) -> None:
    for notice in notices:
        warn(notice.message)


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)

"""``dcaf simulate``: how many labels active learning would have saved on a labelled cohort."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from dcaf_monai.terminal import (
    console,
    parse_backbones,
    parse_device,
    parse_weights,
    progress_bars,
    teller,
    warn,
)


def simulate(
    data: Annotated[Path, typer.Option(help="Folder of class folders, or a CSV with "
                                            "file,task,label,split,group.")],
    report: Annotated[Path, typer.Option(help="Folder for JSON, CSV, figure and finished runs.")],
    task: Annotated[str | None, typer.Option(help="covid19, tuberculosis, pneumonia, oct, or a .toml file; "
                                                  "not needed with a model.")] = None,
    model: Annotated[Path | None, typer.Option(help="Take a trained model's pooled vectors. They know the "
                                                    "labels it was trained on; without one the trunks' "
                                                    "vectors are taken, which know none.")] = None,
    backbones: Annotated[str, typer.Option(help="Two timm names.")] = "efficientnet_b4,resnet34",
    weights: Annotated[str, typer.Option(help="pretrained (timm's), none, or two local files "
                                              "FIRST,SECOND.")] = "pretrained",
    size: Annotated[int, typer.Option(min=64, max=1024, help="Side of the network input, px.")] = 224,
    strategies: Annotated[str, typer.Option(help="Comma-separated, or all.")] = "all",
    batch_size: Annotated[str, typer.Option(help="Images between two trainings, comma-separated.")] = "10,20",
    seeds: Annotated[int, typer.Option(min=2, help="Repetitions.")] = 5,
    budget: Annotated[float, typer.Option(min=0.01, max=1, help="Share of the training images at which a "
                                                                "run ends.")] = 0.5,
    start: Annotated[int | None, typer.Option(min=1, help="Images before the first training; default one "
                                                          "batch.")] = None,
    cold_start: Annotated[str, typer.Option(help="How these are chosen: random or typiclust.")] = "random",
    random_share: Annotated[float, typer.Option(min=0, max=1, help="Share of each batch drawn at "
                                                                   "random.")] = 0.0,
    components: Annotated[int, typer.Option(min=0, help="Principal components learnt on; 0: all "
                                                        "units.")] = 128,
    whiten: Annotated[float, typer.Option(min=0, max=1, help="0 leaves the components their variances, 1 "
                                                             "makes them equal.")] = 0.0,
    judge: Annotated[str, typer.Option(help="Whose curve is told. Choose settings on val, look at test "
                                            "once.")] = "test",
    cache: Annotated[Path | None, typer.Option(help="Folder of cached inputs and vectors; default in the "
                                                    "report's.")] = None,
    device: Annotated[str, typer.Option(help="Where the trunks run: cpu, cuda, or cuda:N.",
                                        callback=parse_device)] = "cpu",
) -> None:
    """Replay active learning on a labelled cohort: curves, labels needed, savings against random.

    Interrupted at any moment, the same command goes on where it stopped.
    """
    from dcaf_monai.acquire import STRATEGIES
    from dcaf_monai.learning_curves import write_report
    from dcaf_monai.simulate import Plan
    from dcaf_monai.simulate import simulate as replay

    plan = Plan(strategies=STRATEGIES if strategies == "all" else tuple(strategies.split(",")),
                batch_sizes=_whole_numbers(batch_size), seeds=seeds, budget=budget, start=start,
                cold_start=cold_start,  # type: ignore[arg-type]  # checked by Plan, with a sentence
                random_share=random_share, components=components, whiten=whiten,
                judge=judge)  # type: ignore[arg-type]
    vectors = _vectors(data, task=task, model=model, backbones=backbones, weights=weights, size=size,
                       cache=cache or report / "cache", device=device)
    for notice in vectors.notices:
        warn(notice.message)
    with progress_bars() as bar:
        found = replay(vectors, plan, runs=report / "runs.jsonl", progress=teller(bar))
    document = write_report(found, report, notices=vectors.notices)
    _show(document)
    console.print(f"Curves: {report / 'simulation.png'}", markup=False, highlight=False, soft_wrap=True)


def _vectors(data: Path, *, task: str | None, model: Path | None, backbones: str, weights: str, size: int,
             cache: Path, device: str) -> Any:
    import torch

    from dcaf_monai.cohort import read_cohort
    from dcaf_monai.model import load_model
    from dcaf_monai.network import DualCrossAttentionFusion
    from dcaf_monai.tasks import task_named
    from dcaf_monai.transforms import Preprocessing
    from dcaf_monai.vectors import pooled_model_features, pooled_trunk_features

    if model is None and task is None:
        raise ValueError("--task: need one when there is no --model, got none.")
    trained = load_model(model) if model else None
    question = trained.task if trained else task_named(task or "")
    cohort = read_cohort(data, question, frozen=cache / "data-split.csv")
    with progress_bars() as bar:
        tell = teller(bar)

        def seen(done: int, total: int) -> None:
            tell("vectors", done, total)

        if trained:
            return pooled_model_features(cohort, trained.network, preprocessing=trained.preprocessing,
                                         cache=cache, device=device, progress=seen)
        torch.manual_seed(0)  # random weights, too, are the same whenever the command goes on
        network = DualCrossAttentionFusion(len(question.classes), backbones=parse_backbones(backbones),
                                           weights=parse_weights(weights))
        return pooled_trunk_features(cohort, network, preprocessing=Preprocessing(size=size),
                                     cache=cache, device=device, progress=seen)


def _whole_numbers(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"--batch-size: need whole numbers, comma-separated, got {text!r}.")
    return tuple(int(part) for part in parts)


def _show(document: dict[str, Any]) -> None:
    full, judge = document["full_auroc"], document["plan"]["judge"]
    console.print(f"All {document['training_images']} labels ({document['training_patients']} patients): "
                  f"macro AUROC {full['mean']:.3f} on {document['judged_images']} {judge} "
                  f"images (sd over seeds {full['sd']:.3f})", highlight=False, soft_wrap=True)
    for size, strategies in document["batch_sizes"].items():
        table = Table("strategy", "area", "over random", "labels for 95 %", "ratio", "labels for 99 %",
                      "ratio", title=f"batches of {size} images")
        ranked = sorted(strategies.items(), key=lambda item: -item[1]["area"]["mean"])
        for name, told in ranked:
            cells = [name, f"{told['area']['mean']:.4f}", _figure(told["area_over_random"], "+.4f")]
            for level in told["reach"].values():
                bound = "" if level["random_reached"] else "<= "
                ratio = "" if level["ratio_to_random"]["value"] is None else \
                    bound + _figure(level["ratio_to_random"], ".2f")
                cells += [_figure(level["labels"], ".0f"), ratio]
            table.add_row(*cells)
        console.print(table)
        if chosen := document["chosen_on_validation"][size]:
            console.print(f"Best on validation, and so free of the luck of the best of many: {chosen}.",
                          highlight=False, soft_wrap=True)


def _figure(figure: dict[str, float | None], form: str) -> str:
    if figure["value"] is None:
        return "not reached"
    low, high = (("?" if figure[end] is None else format(figure[end], form)) for end in ("low", "high"))
    return f"{figure['value']:{form}} ({low} to {high})"

"""``dcaf ablate``: what each part of the network is worth, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markdown import Markdown

from dcaf_monai.terminal import console, parse_backbones, parse_weights, progress_bars, teller, warn


def ablate(
    data: Annotated[Path, typer.Option(help="Folder of class folders, or a CSV with "
                                            "file,task,label,split,group.")],
    task: Annotated[str, typer.Option(help="covid19, tuberculosis, pneumonia, oct, or a .toml file.")],
    report: Annotated[Path, typer.Option(help="Folder of the models and the table; what stands there is "
                                              "not trained again.")],
    backbones: Annotated[str, typer.Option(help="Two timm names.")] = "efficientnet_b4,resnet34",
    weights: Annotated[str, typer.Option(help="pretrained (timm's), none, or two local files "
                                              "FIRST,SECOND.")] = "pretrained",
    variants: Annotated[str, typer.Option(help="Some of dcaf, first_only, second_only, concat_only, no_gate, "
                                               "no_refine; all by default.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="So many seeds, from 0.")] = 3,
    epochs: Annotated[int, typer.Option(min=1)] = 8,
    size: Annotated[int, typer.Option(min=64, max=1024, help="Side of the network input, px.")] = 224,
    cache: Annotated[Path | None, typer.Option(help="Folder of cached inputs and features; default in the "
                                                    "report folder.")] = None,
) -> None:
    """Train the network and its ablated variants on the same cached features; compare them on test.

    Also compares ways of being unsure: softmax, temperature, MC-dropout in the head and in the fusion,
    last-layer Laplace and an ensemble of heads. Interrupted, the same command goes on where it stopped.
    """
    from dcaf_monai.ablate import VARIANTS, ablate
    from dcaf_monai.ablation_tables import ablation_table, write_ablation
    from dcaf_monai.cohort import read_cohort
    from dcaf_monai.tasks import task_named
    from dcaf_monai.transforms import Preprocessing

    cohort = read_cohort(data, task_named(task), frozen=report / "data-split.csv")
    for notice in cohort.notices:
        warn(notice.message)
    with progress_bars() as bar:
        document = ablate(cohort, folder=report, cache=cache or report / "cache",
                          backbones=parse_backbones(backbones), weights=parse_weights(weights),
                          variants=tuple(variants.split(",")) if variants else tuple(VARIANTS),
                          seeds=tuple(range(seeds)), epochs=epochs,
                          preprocessing=Preprocessing(size=size), progress=teller(bar))
    write_ablation(document, report)
    console.print(Markdown(ablation_table(document)))
    console.print(f"{report / f'ablation-{cohort.task.name}.json'}, {document['minutes']} minutes, at most "
                  f"{document['peak_memory_mib']} MiB", markup=False, soft_wrap=True)

"""``dcaf evaluate`` and ``dcaf card``: how good a model is, and what to tell those who may use it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from dcaf_monai.terminal import Device, console, errors, fail, progress_bars, teller, with_folder

SHOWN = ("auroc", "aupr", "accuracy", "nll", "ece")
"""Figures of the table on the terminal."""


def evaluate(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="Trained .safetensors models of "
                                                 "one task; the first is compared with each other.")],
    data: Annotated[Path, typer.Option(help="As for train; the split column says what is tested.")],
    split: Annotated[str, typer.Option(help="Which split.")] = "test",
    out: Annotated[Path | None, typer.Option(help="Write the figures of the table as JSON.",
                                             callback=with_folder)] = None,
    report: Annotated[Path | None, typer.Option(help="Folder for evaluation.json, figures.csv, cases.csv, "
                                                "plots and report.html.")] = None,
    prevalence: Annotated[str, typer.Option(help="Tell PPV and NPV at CLASS=SHARE,...")] = "",
    audit: Annotated[Path | None, typer.Option(help="The audit.json of dcaf audit on the same data.")] = None,
    outside: Annotated[list[Path] | None, typer.Option(help="Folder or CSV of pictures that are none of the "
                                                       "task; may be given again.")] = None,
    masks: Annotated[Path | None, typer.Option(help="Folder of masks named as the images, FILM.png or "
                                               "FILM.nrrd, such as of the lungs: tells the share of each "
                                               "map's heat inside.")] = None,
    shifts: Annotated[int, typer.Option(min=0, help="How many images each shift is tried on; 0 for "
                                        "none.")] = 100,
    explain: Annotated[bool, typer.Option("--explain/--no-explain",
                                          help="Check the explanations too.")] = True,
    mark: Annotated[bool, typer.Option("--mark", help="Write into the model files which maps failed the "
                                       "randomisation test: overlay menus then say so.")] = False,
    gallery: Annotated[bool, typer.Option("--gallery/--no-gallery", help="Show the most uncertain cases in "
                                          "the report: images of the data.")] = True,
    seed: Annotated[int, typer.Option(help="Of the bootstrap and the shifts.")] = 0,
    resamples: Annotated[int, typer.Option(min=20, help="Bootstrap draws.")] = 1000,
    device: Device = "cpu",
) -> None:
    """How good models are on a split, with 95 % intervals over patients; with --report, everything about it.

    An AUROC above 0.995 is told only beside the verdict of an audit of the same data.
    """
    from dcaf_monai import evaluate as work
    from dcaf_monai.audit import read_audit
    from dcaf_monai.cohort import read_cohort
    from dcaf_monai.evaluation_page import GALLERY, write_evaluation
    from dcaf_monai.evaluation_parts import EXPLAINED
    from dcaf_monai.faithful import failed_kinds
    from dcaf_monai.headline import audit_verdict, labels_of
    from dcaf_monai.model import load_model, save_model
    from dcaf_monai.outside import outside_files
    from dcaf_monai.pointing import mask_files
    from dcaf_monai.predict import Predictor
    from dcaf_monai.publish import shelf

    if outside and not report:
        raise ValueError("--outside: need --report FOLDER beside it, got none. The table on the terminal has "
                         "no such pictures.")
    if masks and not (report and explain):
        raise ValueError("--masks: need --report and a check of the explanations, got one without.")
    if mark and not (report and explain):
        raise ValueError("--mark: need --report and a check of the explanations, got one without.")
    labels = labels_of(models)
    loaded = [load_model(path) for path in models]
    task = loaded[0].task
    cohort = read_cohort(data, task)
    shares = _shares(prevalence)
    unknown = sorted(set(shares) - set(task.classes))
    if unknown:
        raise ValueError(f"--prevalence: need classes among {', '.join(task.classes)}, got {unknown[0]!r}.")
    audited = read_audit(audit) if audit else None
    if audited:
        audit_verdict(audited, cohort)  # an audit of other data is refused before the hours, not after
    known = mask_files(masks, cohort.split(split)) if masks else None
    others = _titled([(path, outside_files(path)) for path in outside or ()])
    settings = work.Settings(split=split, prevalence=shares, resamples=resamples, seed=seed,
                             shift_images=shifts if report else 0,
                             explain=EXPLAINED if report and explain else 0)
    with progress_bars() as bar:
        notify = teller(bar)
        examined = [work.examine(Predictor(model, device=device), cohort, label=label, split=split,
                                 validation=report is not None, notify=notify)
                    for model, label in zip(loaded, labels, strict=True)]
        found = work.evaluate(examined, cohort, settings=settings, outside=others, audit=audited,
                              masks=known, notify=notify)
        if report:
            page = write_evaluation(found, report, gallery=GALLERY if gallery else 0)
    if mark:
        for path, model, told in zip(models, loaded, found.document["models"], strict=True):
            failed = failed_kinds(told["explanations"])
            marked = replace(model, unfaithful=failed)
            save_model(marked, path)
            if (kept := shelf(path) / f"{model.version}.safetensors").exists():   # else a rollback unmarks it
                save_model(marked, kept)
            console.print(f"{path}: maps that fail the randomisation test: {', '.join(failed) or 'none'}",
                          markup=False, soft_wrap=True)
    for name, reason in examined[0].test.refused:
        errors.print(f"{name}: {reason}", style="red", markup=False, highlight=False, soft_wrap=True)
    _print_tables(found.document)
    if out:
        out.write_text(json.dumps(_short(found.document), indent=1) + "\n", encoding="utf-8")
    if report:
        console.print(f"Report: {page}", markup=False, soft_wrap=True)
    withheld = found.document["headline"]["withheld"]
    if withheld:
        fail(withheld, 1)
    unreadable = found.document["data"]["unreadable"]
    if unreadable:
        fail(f"{unreadable} of {len(found.cases)} images could not be read.", 2)


def card(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The model the card is of.")],
    evaluation: Annotated[Path, typer.Option(help="Its evaluation.json.")],
    data_notes: Annotated[Path, typer.Option(help="What a person knows of the data: .toml or .md.")],
    out: Annotated[Path, typer.Option(help="The Markdown file to write.", callback=with_folder)],
) -> None:
    """Write a model card: what the model is, how good, on what data, and what it is not for."""
    from dcaf_monai.card import model_card, read_evaluation, read_notes
    from dcaf_monai.model import describe_model, write_atomically

    text = model_card(describe_model(model), read_evaluation(evaluation), notes=read_notes(data_notes))
    write_atomically(out, text.encode("utf-8"))
    console.print(f"{out}", markup=False, soft_wrap=True)


def _shares(text: str) -> dict[str, float]:
    """``class=0.05,other=0.2`` as numbers."""
    found: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        try:
            share = float(value)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1 or name.strip() in found:
            raise ValueError("--prevalence: need CLASS=SHARE,... with each class once and shares from 0 to "
                             f"1, got {part!r}.")
        found[name.strip()] = share
    return found


def _titled(sources: Sequence[tuple[Path, Any]]) -> dict[str, Any]:
    """Files under the name of their folder or table; a number sets equal names apart."""
    found: dict[str, Any] = {}
    for path, files in sources:
        name = path.stem if path.is_file() else path.resolve().name
        title, number = name, 2
        while title in found:
            title, number = f"{name} ({number})", number + 1
        found[title] = files
    return found


def _print_tables(document: Mapping[str, Any]) -> None:
    """One table a model; an AUROC that needs an audit shows none."""
    from dcaf_monai.headline import is_too_good

    data, audit = document["data"], document["audit"]
    for model in document["models"]:
        figures = model["discrimination"]
        whose = f" ({model['label']})" if len(document["models"]) > 1 else ""
        table = Table("figure", "value", "95 % interval", title=f"{document['title']}{whose}: "
                      f"{data['split']}, {figures['cases']} images, {figures['patients']} patients or groups")
        for name in SHOWN:
            value = figures[name]
            told = "" if value["value"] is None else f"{value['value']:.3f}"
            interval = "" if value["low"] is None else f"{value['low']:.3f} to {value['high']:.3f}"
            if name == "auroc" and is_too_good(value["value"]):
                told, interval = (told, f"{interval}; audit: {audit['verdict']}") if audit \
                    else ("withheld", "")
            table.add_row(name, told, interval)
        console.print(table)
    for row in document["comparisons"]:
        found = row["figures"]["auroc"]
        if found["difference"] is not None:
            within = "" if found["low"] is None else f" ({found['low']:+.3f} to {found['high']:+.3f})"
            console.print(f"auroc, {row['a']} minus {row['b']}: {found['difference']:+.3f}{within}",
                          markup=False, highlight=False, soft_wrap=True)
    if audit:
        console.print(f"Audit of these data: {audit['verdict']}.", markup=False, highlight=False)


def _short(document: Mapping[str, Any]) -> dict[str, Any]:
    """What --out holds: figures of the one model or of each, without the AUROCs that are withheld."""
    from dcaf_monai.headline import without_areas

    split, models = document["data"]["split"], document["models"]
    audit, withheld = document["headline"]["audit"], document["headline"]["withheld"]
    beside = {"split": split, "audit": audit, "withheld": withheld}
    told = [{"model": model["version"], **(without_areas(model["discrimination"]) if withheld
                                           else model["discrimination"])} for model in models]
    if len(models) == 1:
        return {**beside, **told[0]}
    return {**beside, "models": [{"label": model["label"], **each}
                                 for model, each in zip(models, told, strict=True)],
            "comparisons": document["comparisons"], "seeds": document["seeds"]}

"""An evaluation written down: ``evaluation.json``, ``figures.csv``, ``cases.csv``, plots, and one HTML page.

The page is one file that fetches nothing. Only its gallery shows images of the data; tables and plots
name cases by their row in the split and patients by a running number.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from dcaf_monai import figures
from dcaf_monai.conformal import ALPHAS
from dcaf_monai.dicom import read_image
from dcaf_monai.evaluate import SUMMARY, Evaluation, Examined
from dcaf_monai.evaluation_tables import case_rows, figure_rows, to_csv
from dcaf_monai.faithful_figures import faithfulness_png
from dcaf_monai.headline import is_too_good
from dcaf_monai.metrics import Reliability
from dcaf_monai.model import write_atomically
from dcaf_monai.overlay import blend
from dcaf_monai.selective import RISK, risk_coverage

TEMPLATE = "templates/evaluation.html.j2"
GALLERY = 12
_TILE_PIXELS = 512
TITLES = {
    "auroc": "AUROC", "aupr": "AUPR", "accuracy": "Accuracy", "balanced_accuracy": "Balanced accuracy",
    "f1": "F1", "nll": "NLL", "brier": "Brier", "ece": "ECE", "adaptive_ece": "Adaptive ECE", "aurc": "AURC",
    "excess_aurc": "Excess AURC", "augrc": "AUGRC", "risk_at_80_coverage": "Error at 80 % coverage",
    "coverage_at_5_risk": "Coverage at 5 % error", "failure_auroc": "Failure AUROC"}
SELECTIVE = ("aurc", "excess_aurc", "augrc", "risk_at_80_coverage", "coverage_at_5_risk", "failure_auroc")
COMPARED = ("auroc", "aupr", "accuracy", "balanced_accuracy", "nll", "brier", "ece", "aurc", "augrc")
SCORES = {"softmax": "softmax without dropout", "max_probability": "largest mean probability",
          "entropy": "entropy", "mutual_information": "mutual information", "drift": "distance of features"}
WAYS = (("before", "before temperature"), ("after", "after temperature, as the model answers"),
        ("without_dropout", "after temperature, without dropout"))
WORDS = (
    ("AUROC, AUPR", "How well probabilities order cases of a class before the others: area under the ROC "
     "curve (0.5 is chance) and average precision (the share of the class is chance)."),
    ("NLL, Brier", "How good probabilities are as probabilities; smaller is better."),
    ("ECE", "Mean gap between how sure the model says it is and how often it is right; adaptive: over bins "
     "of equally many cases. By chance: what a perfectly calibrated model would have on so few cases."),
    ("AURC, AUGRC", "Error left when the least certain cases are given away, averaged over all shares given "
     "away; AUGRC counts silent failures among all cases and is fairer between models."),
    ("Failure AUROC", "How well a score puts wrong answers before right ones."),
    ("Entropy, mutual information", "All doubt of an answer, and the part of it in which the dropout "
     "samples disagree, in nats."),
    ("Conformal set", "The classes that cannot be ruled out at the promised coverage. LAC, APS and RAPS are "
     "ways to rank them."),
    ("FPR95", "Share of the other pictures still taken for test images when 95 % of the test images are "
     "kept; 0 is best, 0.95 is chance."),
    ("Deletion, insertion, ROAD", "Whether the answer falls when the hot places of a map are taken away, "
     "rises when they are put back, and how the two orders differ."))


def write_evaluation(evaluation: Evaluation, folder: Path, *, gallery: int = GALLERY) -> Path:
    """Write everything into a folder.

    Args:
        evaluation: From `evaluate`.
        folder: Made when missing; files of an earlier report are replaced.
        gallery: How many of the most uncertain cases the page shows; 0 for a page without any image.

    Returns:
        The page.

    Raises:
        ModelError: When the folder cannot be written.
    """
    folder = Path(folder)
    document = json.dumps(evaluation.document, indent=1, allow_nan=False) + "\n"
    plots = draw(evaluation)
    shown = {one.label: gallery_figure(one, evaluation, most=gallery) for one in evaluation.examined} \
        if gallery else {}
    write_atomically(folder / "evaluation.json", document.encode())
    write_atomically(folder / "figures.csv", to_csv(figure_rows(evaluation.document)))
    write_atomically(folder / "cases.csv", to_csv(case_rows(evaluation)))
    for name, png in plots.items():
        write_atomically(folder / "figures" / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}.png", png)
    write_atomically(folder / "report.html", page(evaluation.document, plots, shown).encode())
    return folder / "report.html"


def draw(evaluation: Evaluation) -> dict[str, bytes]:
    """Every plot by name, ``label:plot``, and ``forest`` when models are compared; none shows an image."""
    document, plots = evaluation.document, {}
    for one, told in zip(evaluation.examined, document["models"], strict=True):
        for name, png in _plots(one, told, document):
            plots[f"{one.label}:{name}"] = png
    if document["comparisons"]:
        plots["forest"] = figures.forest(
            [(f"{row['a']} − {row['b']}", row["figures"]["auroc"]) for row in document["comparisons"]],
            label="difference of the AUROC, mean over classes")
    return plots


def _plots(one: Examined, told: Mapping[str, Any],
           document: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    test = one.test
    per_class = told["discrimination"]["per_class"]
    yield "curves", figures.roc_and_precision_recall(
        test.probs, test.labels, test.classes,
        told={name: ("withheld" if _hidden(document, found["auroc"]) else _in_words(found["auroc"]),
                     _in_words(found["aupr"])) for name, found in per_class.items()})
    yield "confusion", figures.confusion(test.labels, test.predicted, test.classes)
    before, after = (_reliability(told["calibration"]["diagrams"][way]) for way in ("before", "after"))
    yield "reliability", figures.reliability_diagram(
        before, after, ece=(told["calibration"]["before"]["ece"]["value"],
                            told["calibration"]["after"]["ece"]["value"]))
    settings = document["settings"]
    yield "risk_coverage", figures.risk_coverage_curves(
        {SCORES[name]: risk_coverage(test.labels, test.predicted, doubt, test.groups, seed=settings["seed"],
                                     resamples=settings["resamples"]) for name, doubt in test.doubt.items()},
        risk=RISK)
    yield "entropy", figures.entropy_histogram(test.predictive_entropy, test.correct,
                                               classes=len(test.classes))
    for alpha in ALPHAS:
        tables = {f"{row['method'].upper()} {'per class' if row['conditional'] else 'for all'}": row
                  for row in told["conformal"]["tables"] if row["alpha"] == alpha}
        if tables:
            yield f"coverage_{round(100 * (1 - alpha))}", figures.coverage_of_sets(tables, alpha=alpha)
    if told["outside"]:
        yield "outside", figures.outside_plot(told["outside"], scores=list(told["outside"][0]["scores"]))
    if told["explanations"]:
        yield "explanations", faithfulness_png(told["explanations"], dpi=90)


def gallery_figure(one: Examined, evaluation: Evaluation, *, most: int = GALLERY) -> bytes:
    """The most uncertain cases beside their class activation: images of the data.

    Args:
        one: A model with its answers.
        evaluation: That the answers are of.
        most: How many cases.
    """
    test = one.test
    place_of = {case.uid: place for place, case in enumerate(evaluation.cases)}
    order = np.argsort(-test.predictive_entropy, kind="stable")[:most]
    ceiling, tiles = np.log(len(test.classes)), []
    for place in order:
        number = place_of[test.uids[place]]
        case = evaluation.cases[number]
        answer = one.predictor.predict_file(case.path, uid=case.uid, frame=case.frame,
                                            overlays=("class_activation",))
        image = read_image(case.path, uid=case.uid, frame=case.frame, max_side=_TILE_PIXELS)
        heat = answer.heats["class_activation"]
        right = bool(test.correct[place])
        entropy = test.predictive_entropy[place]
        tiles.append(figures.Tile(
            blend(image, heat, opacity=0)[..., 0], blend(image, heat),
            (f"case {number + 1}: {'right' if right else 'wrong'}",
             f"says {answer.label} ({answer.probs.max():.2f}), label {case.label}",
             f"entropy {entropy:.2f} nats ({entropy / ceiling:.0%}), "
             f"MI {test.mutual_information[place]:.3f}"),
            right))
    return figures.gallery(tiles)


def page(document: Mapping[str, Any], plots: Mapping[str, bytes], gallery: Mapping[str, bytes]) -> str:
    """The page as text.

    Args:
        document: Of the evaluation.
        plots: From `draw`.
        gallery: By label of the model, images of the data; empty for none.
    """
    template = resources.files("dcaf_monai").joinpath(TEMPLATE).read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(template).render(
        doc=document, pictures={name: _data_url(png) for name, png in plots.items()},
        gallery={name: _data_url(png) for name, png in gallery.items()}, titles=TITLES, summary=SUMMARY,
        selective=SELECTIVE, compared=COMPARED, scores=SCORES, ways=WAYS, words=WORDS, facts=_facts,
        families=_families, hidden=lambda area: _hidden(document, area))


def _hidden(document: Mapping[str, Any], area: Mapping[str, Any]) -> bool:
    """Whether this AUROC may not be shown: too good, and no audit of these data was given."""
    return document["audit"] is None and is_too_good(area["value"])


def _families(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over the rows of each family, for a table that can be taken in at a glance."""
    found = []
    for family in dict.fromkeys(row["family"] for row in rows):
        own = [row for row in rows if row["family"] == family]
        known = [row["accuracy"] for row in own if row["accuracy"] is not None]
        found.append({
            "family": family, "rows": len(own), "warned": float(np.mean([row["warned"] for row in own])),
            "scores": {name: float(np.mean([row["scores"][name]["auroc"]["value"] for row in own]))
                       for name in own[0]["scores"]},
            "accuracy": float(np.mean(known)) if known else None})
    return found


def _facts(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where a model comes from, in words."""
    provenance, network = model["provenance"], model["network"]
    network = {**network, "backbones": " + ".join(network["backbones"])}
    shape = ", ".join(f"{name} {value}" for name, value in network.items() if name != "classes")
    recipe = ", ".join(f"{name} {value}" for name, value in (provenance.get("recipe") or {}).items())
    facts = {
        "Version": model["version"], "File digest": model["sha256"][:16], "Born": provenance.get("created"),
        "Trained": provenance.get("mode"), "Trunk weights": provenance.get("weights"),
        "Started from": provenance.get("init_from"), "Seed": provenance.get("seed"), "Network": shape,
        "Recipe": recipe, "Epochs": f"{provenance.get('epochs')}, the best {provenance.get('best_epoch')}",
        "Input": ", ".join(f"{name} {value}" for name, value in model["preprocessing"].items()),
        "Remarks": " ".join(provenance.get("remarks") or ())}
    return [(name, str(value)) for name, value in facts.items() if value not in (None, "")]


def _reliability(told: Mapping[str, Sequence[float | None]]) -> Reliability:
    return Reliability(**{name: np.array([np.nan if value is None else value for value in values])
                          for name, values in told.items()})


def _in_words(found: Mapping[str, float | None]) -> str:
    if found["value"] is None:
        return "–"
    value = f"{found['value']:.3f}"
    return value if found["low"] is None else f"{value} ({found['low']:.3f} to {found['high']:.3f})"


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")

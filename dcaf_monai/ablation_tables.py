"""What an ablation found, as JSON and as the tables people read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dcaf_monai.conformal import ALPHAS
from dcaf_monai.headline import LIMIT, is_too_good

TITLES = {"auroc": "AUROC", "aupr": "AUPR", "accuracy": "accuracy", "nll": "NLL", "brier": "Brier",
          "ece": "ECE", "aurc": "AURC", "augrc": "AUGRC", "failure_auroc": "failures: softmax",
          "failure_auroc_entropy": "entropy", "failure_auroc_mutual_information": "mutual information",
          "ece_held_out_validation": "ECE, calibration half of validation",
          "ece_held_out_by_chance": "by chance there"}
NAMES = {"dcaf": "DCAF", "first_only": "{first} only", "second_only": "{second} only",
         "concat_only": "concatenation only", "no_gate": "no gate", "no_refine": "no refined attention",
         "logit_average": "logit average of both branches", "softmax": "softmax",
         "softmax_temperature": "softmax, temperature", "head_dropout": "MC-dropout, head, T = 50",
         "head_dropout_temperature": "MC-dropout, head, T = 50, temperature",
         "head_dropout_20_temperature": "MC-dropout, head, T = 20, temperature",
         "head_dropout_200_temperature": "MC-dropout, head, T = 200, temperature",
         "full_dropout_temperature": "MC-dropout, head and fusion, T = 20, temperature",
         "laplace_temperature": "last-layer Laplace, temperature",
         "head_ensemble_temperature": "ensemble of 5 heads, temperature"}


def write_ablation(document: Mapping[str, Any], folder: Path) -> None:
    """``ablation-TASK.json``, and its tables as ``ablation-TASK.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"ablation-{document['task']}"
    (folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(ablation_table(document), encoding="utf-8")


def ablation_table(document: Mapping[str, Any]) -> str:
    """All tables in Markdown: variants, paired differences, ways of being unsure, conformal coverage."""
    first, second = document["backbones"]
    test = sum(document["counts"]["test"].values())

    def name(key: str) -> str:
        return NAMES[key].format(first=first, second=second)

    def figures(kinds: Iterable[str], rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
        return _table(("", *(TITLES[kind] for kind in kinds)), (
            (name(key), *(_mean_sd(found[kind]) for kind in kinds)) for key, found in rows.items()))

    compared = ("auroc", "accuracy", "nll", "brier")
    text = [f"## {document['task']}", "",
            f"Trunks {first} and {second}, frozen, of {document['weights']}. {len(document['seeds'])} seeds, "
            f"{document['epochs']} epochs, {test} test images. Mean ± standard deviation over seeds.", "",
            *figures(("auroc", "aupr", "accuracy", "nll", "ece", "aurc"),
                     {key: found["figures"] for key, found in document["variants"].items()}),
            *_alarm(document), "", "DCAF minus the variant, with its 95 % interval over patients and seeds; "
            "p after Holm for all rows of a column.", "",
            *_table(("", *(f"{TITLES[kind]}{more}" for kind in compared for more in ("", ", p"))),
                    ((name(key), *(cell for kind in compared for cell in
                                   (_with_interval(found[kind]), _p(found[kind]["p_holm"]))))
                     for key, found in document["differences"].items())),
            "", "Ways to be unsure, on the features of the DCAF networks. *Failures* is the AUROC of "
            "telling wrong from right answers by that score.", "",
            *figures(("nll", "brier", "ece", "ece_held_out_validation", "ece_held_out_by_chance", "aurc",
                      "augrc", "failure_auroc", "failure_auroc_entropy", "failure_auroc_mutual_information"),
                     document["ways"])]
    return "\n".join([*text, "", *_coverage(document)]) + "\n"


def _alarm(document: Mapping[str, Any]) -> list[str]:
    """What near-perfect figures mean."""
    high = any(is_too_good(found["figures"]["auroc"]["mean"]) for found in document["variants"].values())
    return ["", f"An AUROC above {LIMIT} is an alarm, not a result: see what `dcaf audit` says of these "
            "data."] if high else []


def _coverage(document: Mapping[str, Any]) -> list[str]:
    """Coverage of conformal sets (LAC) of the DCAF networks, with the calibration cases of every class."""
    own, cases = document["ways"]["head_dropout_temperature"], document["calibration_cases"]
    rows = []
    for alpha in ALPHAS:
        for kind, words in (("marginal", "one for all"), ("class", "one a class")):
            place = f"{kind}_{alpha}"
            rows.append((f"{1 - alpha:.2f}", words, _mean_sd(own[f"coverage_{place}"]),
                         *(_mean_sd(own.get(f"coverage_{place}_{name}")) for name in cases),
                         _mean_sd(own[f"size_{place}"])))
    head = ("nominal", "threshold", "all", *(f"{name} ({number})" for name, number in cases.items()),
            "classes in a set")
    return ["Conformal sets (LAC) after MC-dropout and temperature: share of test cases whose set holds the "
            "label. In brackets the calibration cases of the class.", "", *_table(head, rows)]


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = tuple(head)
    return ["| " + " | ".join(cells) + " |" for cells in (head, ("---",) * len(head), *rows)]


def _mean_sd(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "–"
    return f"{value['mean']:.3f}" + ("" if value["sd"] is None else f" ± {value['sd']:.3f}")


def _with_interval(value: Mapping[str, Any]) -> str:
    if value["low"] is None:
        return "–" if value["value"] is None else f"{value['value']:+.3f}"
    return f"{value['value']:+.3f} ({value['low']:+.3f} to {value['high']:+.3f})"


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"

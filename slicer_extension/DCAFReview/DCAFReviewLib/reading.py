"""What a prediction document says, in plain words and as bars. Pure Python: no slicer, no qt.

The words follow the two parts of predictive entropy (nats; divided by ln(classes) it lies in 0..1):
mutual information is what the model's samples disagree about, the rest is what each of them finds
unclear in the image itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SURE, UNSURE = 0.3, 0.7
"""Normalised entropy below which an answer is called clear, and from which it is called open."""
DISAGREEMENT = 0.2
"""Share of the entropy that is disagreement between samples, from which it is said so."""


@dataclass(frozen=True)
class Bar:
    """One class's probability as it is drawn.

    Args:
        label: Class name.
        title: Class name to read.
        probability: Mean over the samples, 0..1.
        sd: Standard deviation over the samples.
        cutoff: Operating point, or None.
        positive: Whether the probability reaches the operating point; None without one.
        in_set: Whether the conformal set holds the class; None when the model carries none.
    """

    label: str
    title: str
    probability: float
    sd: float
    cutoff: float | None
    positive: bool | None
    in_set: bool | None


def bars(document: Mapping, titles: Mapping[str, str]) -> tuple[Bar, ...]:
    """The classes of a prediction, the most probable first."""
    sd = document["uncertainty"].get("std", {})
    points = document.get("operating_points", {})
    held = document.get("conformal", {}).get("set")
    return tuple(Bar(label=answer["label"], title=titles.get(answer["label"], answer["label"]),
                     probability=answer["score"], sd=sd.get(answer["label"], 0.0),
                     cutoff=points.get(answer["label"], {}).get("cutoff"),
                     positive=points.get(answer["label"], {}).get("positive"),
                     in_set=None if held is None else answer["label"] in held)
                 for answer in document["prediction"])


def verdict(document: Mapping, titles: Mapping[str, str]) -> str:
    """How sure the model is and, when it is not, of what kind its doubt is: one or two sentences."""
    first, second = (titles.get(answer["label"], answer["label"]) for answer in document["prediction"][:2])
    told = document["uncertainty"]
    entropy = told["normalized_entropy"]
    if entropy < SURE:
        return f"The model is clear: {first}. A clear answer can still be wrong."
    share = told["mutual_information"] / max(told["predictive_entropy"], 1e-12)
    doubt = "The model's samples disagree: have a second look." if share >= DISAGREEMENT else \
        "Each of its samples finds the image itself ambiguous."
    if entropy < UNSURE:
        return f"The model hesitates between {first} and {second}. {doubt}"
    return f"The model does not know. {doubt}"


def figures(document: Mapping) -> str:
    """Predictive entropy and mutual information with their units, one line."""
    told = document["uncertainty"]
    return (f"Entropy {told['predictive_entropy']:.2f} nats ({told['normalized_entropy']:.0%} of its "
            f"maximum), mutual information {told['mutual_information']:.3f} nats, {told['samples']} samples")


def conformal(document: Mapping, titles: Mapping[str, str]) -> str:
    """The conformal set in words and what it is worth; empty when the model carries none."""
    told = document.get("conformal")
    if not told:
        return ""
    held = [titles.get(label, label) for label in told["set"]]
    sure = f"{1 - told['alpha']:.0%}"
    if not held:
        return f"At {sure} no class fits: the model is less sure here than where it was calibrated."
    if len(held) == len(document["prediction"]):
        left = f"Nothing can be ruled out: {', '.join(held)}."
    else:
        left = f"Only {held[0]} is left." if len(held) == 1 else f"Left are {', '.join(held)}."
    whose = "of the cases of each class" if told.get("conditional") else "of all cases"
    how = f" ({told['method'].upper()})" if told.get("method") else ""
    return (f"{left} Sets made like this hold the right class in {sure} {whose}, for images like those the "
            f"model was calibrated on{how}.")


def warnings(document: Mapping) -> tuple[str, ...]:
    """What speaks against believing the answer, in the server's sentences: the image, then the set."""
    told = [*document.get("warnings", ()), *document.get("conformal", {}).get("warnings", ())]
    return tuple(dict.fromkeys(warning["message"] for warning in told))

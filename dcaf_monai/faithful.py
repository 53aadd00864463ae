"""Whether heat maps explain: every kind measured, judged, and told apart from maps that know nothing.

Each figure stands beside what ignorance would give: a random order of cells as coarse as the maps, a Gaussian
in the middle, the area of a mask, the share of a grid that would be a hit. Intervals are over patients.

The verdict is about one thing only: does the map depend on what the network learned, and on the image? A kind
fails when

- every weight was made untrained and its maps still look the same: mean size of the rank correlation above
  `RANK_LIMIT`; or they changed less than they do from one image to the next: structural similarity above
  that between different images, by an interval that excludes 0; or
- it looks the same for all images: mean rank correlation between them above `SAME_FOR_ALL`.

Passing means no more than that: whether the hot places matter to the answer is for deletion, insertion and
ROAD to say (Adebayo et al. 2018; see `erasure`, `randomise` and `pointing` for sources).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dcaf_monai import erasure, randomise
from dcaf_monai.explainer import (
    BATCH,
    Explainer,
    centre_prior,
    class_probabilities,
    explainer_for,
    on_input,
)
from dcaf_monai.metrics import group_weights, interval
from dcaf_monai.network import DualCrossAttentionFusion, optimised
from dcaf_monai.pointing import Lesions, Pointing, energy_inside, pointing_game

SCHEMA = "dcaf-faithfulness/1"
LIMIT = 50
"""Cases looked at by default: intervals are then narrow enough to judge by, and the rest would cost hours."""
RANK_LIMIT = 0.5
SAME_FOR_ALL = 0.9
CONTROLS = ("random", "centre")
_BETTER_HIGH = {"deletion": -1, "insertion": 1, "road": 1}

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Faithfulness:
    """What was measured, case by case; `document` sums it up.

    Args:
        kinds: Kinds of map.
        groups: Patient of each case.
        curves: Of every kind and of the controls ``random`` and ``centre``.
        similarities: By kind.
        energy: By kind and of the control ``centre``, share of the heat inside the mask, ``(cases,)``, NaN
            without a mask or without heat; empty when no case has a mask.
        mask_area: Share of the input inside the mask, ``(cases,)``, NaN without one.
        pointing: Of the pointing game, when one was played.
        settings: Size, temperature, seed and draws, as plain JSON.
    """

    kinds: tuple[str, ...]
    groups: tuple[str, ...]
    curves: erasure.Curves
    similarities: Mapping[str, randomise.Similarity]
    energy: Mapping[str, np.ndarray]
    mask_area: np.ndarray
    pointing: Pointing | None
    settings: Mapping[str, Any]

    def document(self, *, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
        """All of it as plain JSON, each figure ``{"value", "low", "high"}`` with its 95 % interval.

        ``kinds`` holds for each kind its figures, ``passes`` and ``why``; ``controls`` the figures of the
        orders that know nothing. A gain is how much better a kind is than a control, positive for better,
        whichever way the figure itself runs. What was not measured is None.

        Args:
            resamples: Bootstrap draws of patients.
            seed: Of the draws.
        """
        weights = group_weights(self.groups, resamples=resamples, seed=seed)
        patients = len(set(self.groups))

        def figure(values: np.ndarray) -> dict[str, float | None]:
            return mean_interval(values, weights, patients)

        def played(kind: str) -> dict[str, Any] | None:
            if self.pointing is None:
                return None
            films = len(self.pointing.recognised)
            every = group_weights([str(film) for film in range(films)], resamples=resamples, seed=seed)
            hit = self.pointing.hits[kind].astype(float)
            known = np.where(self.pointing.recognised, hit, np.nan)
            return {"hits": mean_interval(hit, every, films),
                    "hits_of_recognised": mean_interval(known, every, films),
                    "chance": float(self.pointing.chance[kind].mean())}

        def energy(kind: str) -> dict[str, Any] | None:
            if kind not in self.energy:
                return None
            return {"inside": figure(self.energy[kind]), "area": figure(self.mask_area),
                    "gain_over_area": figure(self.energy[kind] - self.mask_area)}

        def order(name: str) -> dict[str, Any]:
            areas = self.curves.areas(name)
            found: dict[str, Any] = {each: figure(values) for each, values in areas.items()}
            found["curves"] = {each: [figure(column) for column in getattr(self.curves, each)[name].T]
                               for each in ("deletion", "insertion", "morf", "lerf")}
            return found

        def kind(name: str) -> dict[str, Any]:
            own = self.curves.areas(name)
            gains = {each: {f"over_{control}": figure((own[each] - self.curves.areas(control)[each]) * way)
                            for control in CONTROLS} for each, way in _BETTER_HIGH.items()}
            shown = self._randomisation(name, figure)
            passes, why = _verdict(shown)
            return {**order(name), "gains": gains, "pointing": played(name), "energy": energy(name),
                    "randomisation": shown, "passes": passes, "why": f"{why} {_worth(gains)}"}

        return {
            "schema": SCHEMA, "cases": len(self.groups), "patients": patients, "resamples": resamples,
            **self.settings, "fractions": list(self.curves.fractions),
            "road_fractions": list(self.curves.road_fractions), "stages": list(randomise.STAGES),
            "limits": {"rank": RANK_LIMIT, "same_for_all": SAME_FOR_ALL},
            "batch_norms": "estimated anew on the checked inputs in every untrained stage",
            "phantoms": None if self.pointing is None else {
                "films": len(self.pointing.recognised), "source": self.pointing.source,
                "recognised": float(self.pointing.recognised.mean()), "tolerance_cells": 0.5},
            "kinds": {name: kind(name) for name in self.kinds},
            "controls": {"random": order("random"), "centre": {
                **order("centre"), "pointing": played("centre"), "energy": energy("centre")}}}

    def _randomisation(self, kind: str,
                       figure: Callable[[np.ndarray], dict[str, float | None]]) -> dict[str, Any]:
        found = self.similarities[kind]
        return {"rank": [figure(row) for row in found.rank],
                "signed_rank": [figure(row) for row in found.signed_rank],
                "ssim": [figure(row) for row in found.ssim],
                "between_images": {"rank": figure(found.rank_between), "ssim": figure(found.ssim_between)},
                "ssim_over_between": figure(found.ssim[-1] - found.ssim_between)}


def check_explanations(network: DualCrossAttentionFusion, inputs: torch.Tensor, *,
                       classes: Sequence[int] | None = None, groups: Sequence[str] | None = None,
                       masks: Sequence[np.ndarray | None] | None = None, lesions: Lesions | None = None,
                       kinds: Sequence[str] | None = None, explainer: Explainer | None = None,
                       temperature: float = 1.0, limit: int = LIMIT, draws: int = 3, seed: int = 0,
                       batch_size: int = BATCH, progress: Progress | None = None) -> Faithfulness:
    """Every kind of map measured on the same images.

    Probabilities are those of one pass without dropout.

    Args:
        network: Trained, in eval mode; it stays as it is.
        inputs: ``(cases, 1, size, size)`` in [0, 1], preprocessed as for the network.
        classes: Index of the class to explain, one a case; by default the most probable one.
        groups: Patient of each case, over whom intervals are drawn; by default every case is one.
        masks: For each case where heat should lie, ``(size, size)`` bool (see `pointing.masks_on_input`), or
            None.
        lesions: For the pointing game, such as `pointing.phantom_lesions`.
        kinds: Some of `heat.KINDS`; by default all that the network has.
        explainer: Gives other maps in their place.
        temperature: Divides logits before the softmax.
        limit: Most cases to look at; a seeded choice of them when there are more.
        draws: Untrained networks in the randomisation test.
        seed: Of every choice; the same seed gives the same figures.
        batch_size: Inputs that go through the network at once.
        progress: Told a stage (``randomisation``, ``erasure``, ``pointing``), what is done, and of how much.

    Raises:
        ValueError: For inputs of another shape, a network in training mode, classes, groups or masks that do
            not fit, a kind the network does not have, or ``limit`` or ``draws`` not positive.
    """
    chosen = _choose(network, inputs, classes, groups, masks, limit, seed)
    size = inputs.shape[-1]
    inputs = inputs[torch.from_numpy(chosen)].to(next(network.parameters()).device)
    members = [str(case) if groups is None else str(groups[case]) for case in chosen]
    fast = optimised(network)
    probs = class_probabilities(fast, inputs, temperature=temperature, batch_size=batch_size)
    explained = [int(each) for each in probs.argmax(1)] if classes is None else [classes[c] for c in chosen]
    explain = explainer or explainer_for(network, kinds)
    tell = progress or (lambda stage, done, total: None)

    similarities = randomise.similarities(
        network, inputs, classes=explained, explainer=explain, groups=members, draws=draws, seed=seed,
        batch_size=batch_size, progress=lambda done, total: tell("randomisation", done, total))
    maps = dict(explain(network, inputs, explained))
    grid = max((found.shape[1:] for found in maps.values()), key=lambda shape: shape[0] * shape[1])
    by_chance = np.random.default_rng([seed, 1]).random((len(chosen), *grid))
    orders = {kind: on_input(found, size) for kind, found in {**maps, "random": by_chance}.items()}
    orders["centre"] = np.repeat(centre_prior(size)[None], len(chosen), axis=0)

    def answer(pictures: np.ndarray, case: int) -> np.ndarray:
        made = torch.from_numpy(pictures)[:, None].to(inputs.device)
        told = class_probabilities(fast, made, temperature=temperature, batch_size=batch_size)
        return told[:, explained[case]]

    curves = erasure.curves(answer, inputs[:, 0].cpu().numpy(), orders=orders, seed=seed,
                            progress=lambda done, total: tell("erasure", done, total))
    kept = [None if masks is None else masks[case] for case in chosen]
    energy = {kind: np.array([np.nan if mask is None else energy_inside(heat, mask)
                              for heat, mask in zip(orders[kind], kept, strict=True)])
              for kind in (*maps, "centre")} if any(mask is not None for mask in kept) else {}
    pointing = None
    if lesions is not None:
        pointing = pointing_game(network, lesions, explainer=explain, batch_size=batch_size)
        tell("pointing", len(lesions.boxes), len(lesions.boxes))
    return Faithfulness(
        kinds=tuple(maps), groups=tuple(members), curves=curves, similarities=similarities, energy=energy,
        mask_area=np.array([np.nan if mask is None else np.mean(mask) for mask in kept]), pointing=pointing,
        settings={"size": size, "temperature": float(temperature), "draws": draws, "seed": seed})


def failed_kinds(document: Mapping[str, Any]) -> tuple[str, ...]:
    """Kinds of map that fail the randomisation test, from a `Faithfulness.document`.

    Raises:
        ValueError: For a document of another schema.
    """
    if document.get("schema") != SCHEMA:
        raise ValueError(f"document: need schema {SCHEMA}, got {document.get('schema')!r}. "
                         "Check the explanations again.")
    return tuple(kind for kind, found in document["kinds"].items() if not found["passes"])


def mean_interval(values: np.ndarray, weights: np.ndarray, patients: int) -> dict[str, float | None]:
    """Mean over the cases that have a value, with its interval.

    Args:
        values: ``(cases,)``, NaN where there is none.
        weights: From `metrics.group_weights`.
        patients: How many there are.
    """
    has = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return interval((weights @ np.where(has, values, 0)) / (weights @ has), patients)


def _verdict(shown: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether a kind passes the randomisation test, and why, from its part of the document."""
    rank, ssim = shown["rank"][-1]["value"], shown["ssim"][-1]["value"]
    same, apart = shown["between_images"]["rank"]["value"], shown["between_images"]["ssim"]["value"]
    over = shown["ssim_over_between"]["low"]
    if same is not None and same > SAME_FOR_ALL:
        return False, ("Not faithful: maps of different images are alike (rank correlation "
                       f"{same:.2f}, limit {SAME_FOR_ALL:.2f}), so they do not tell of the image.")
    if rank > RANK_LIMIT:
        return False, ("Not faithful: with every weight untrained the maps stay alike (rank correlation "
                       f"{rank:.2f}, limit {RANK_LIMIT:.2f}), so they do not tell of what was learned.")
    if over is not None and over > 0:
        return False, (f"Not faithful: making every weight untrained changes the maps less (structural "
                       f"similarity {ssim:.2f}) than going to another image ({apart:.2f}).")
    beside = "" if apart is None else f", structural similarity {ssim:.2f} against {apart:.2f} between images"
    return True, (f"Passes: with every weight untrained the maps change (rank correlation {rank:.2f}, limit "
                  f"{RANK_LIMIT:.2f}{beside}).")


def _worth(gains: Mapping[str, Any]) -> str:
    """By which of the erasure figures the kind is better or worse than a random order, as a sentence."""
    told: dict[str, list[str]] = {"better": [], "worse": [], "no different": []}
    for each, words in (("deletion", "deletion"), ("insertion", "insertion"), ("road", "ROAD")):
        low, high = (gains[each]["over_random"][end] for end in ("low", "high"))
        way = "no different" if low is None or low <= 0 <= high else "better" if low > 0 else "worse"
        told[way].append(words)
    parts = [f"{way} by {', '.join(names)}" for way, names in told.items() if names]
    return f"Against a random order: {'; '.join(parts)}."


def _choose(network: DualCrossAttentionFusion, inputs: torch.Tensor, classes: Sequence[int] | None,
            groups: Sequence[str] | None, masks: Sequence[np.ndarray | None] | None, limit: int,
            seed: int) -> np.ndarray:
    """Which cases are looked at; everything the caller gave is checked here."""
    shape = tuple(inputs.shape)
    if len(shape) != 4 or shape[1] != 1 or shape[2] != shape[3] or not shape[0]:
        raise ValueError(f"inputs: need (cases, 1, size, size) with at least one case, got {shape}.")
    if network.training:
        raise ValueError("network: need one in eval mode, got one in training mode. Call network.eval().")
    for name, given in (("classes", classes), ("groups", groups), ("masks", masks)):
        if given is not None and len(given) != shape[0]:
            raise ValueError(f"{name}: need one a case ({shape[0]}), got {len(given)}.")
    count = network.config.classes
    if classes is not None and not all(0 <= each < count for each in classes):
        raise ValueError(f"classes: need indices 0 to {count - 1}, got {sorted(set(classes))}.")
    for mask in masks or ():
        if mask is not None and mask.shape != shape[2:]:
            raise ValueError(f"masks: need shape {shape[2:]}, got {mask.shape}. "
                             "Use pointing.masks_on_input.")
    if limit < 1:
        raise ValueError(f"limit: need at least 1 case, got {limit}.")
    if shape[0] <= limit:
        return np.arange(shape[0])
    return np.sort(np.random.default_rng([seed, 0]).choice(shape[0], limit, replace=False))

"""The whole answer beside one plain forward of the same trunks, and what others pay for the same.

Ours is everything but reading: trunks, fusion, 50 sampled heads with their entropies, a
class-activation and an attention map as arrays. Random weights, default pair, 224 px. Contenders
take turns in one process; medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from monai.visualize import GradCAM

from dcaf_monai.heat import heats
from dcaf_monai.image import Geometry, Placement
from dcaf_monai.network import DualCrossAttentionFusion, optimised
from dcaf_monai.uncertainty import dropout_masks, sample_logits, summarize

SIDE, SAMPLES = 224, 50
ROUNDS = {1: 21, 8: 9}
GOALS = {1: "<= 1.15", 8: "<= 1.10"}


def rows() -> list[dict]:
    """One row a comparison: what, ours_ms, peer, peer_ms, ratio (ours over peer), goal."""
    torch.manual_seed(0)
    network = DualCrossAttentionFusion(3).eval()
    return [row for batch in ROUNDS for row in _rows(network, batch)]


def _rows(network: DualCrossAttentionFusion, batch: int) -> list[dict]:
    x = torch.rand(batch, 1, SIDE, SIDE)
    fast, masks = optimised(network), dropout_masks(network.head, samples=SAMPLES)
    places = [(Placement(SIDE, (0.0, 0.0), (9.0, 9.0)), Geometry((2016, 2016)))] * batch
    whole = GradCAM(nn_module=network, target_layers="level_2")

    def trunks() -> None:
        with torch.inference_mode():
            network.trunks(x)

    def forward() -> None:
        with torch.inference_mode():
            network(x)

    def answer() -> None:
        with torch.inference_mode():
            explained = fast.explain(fast.trunks(x))
            found = summarize(sample_logits(fast.head, explained.pooled, masks))
        heats(fast.head, explained, classes=found.probs.argmax(1).tolist(), places=places,
              kinds=("class_activation", "attention_first"))

    def entropy_only() -> None:
        with torch.inference_mode():
            summarize(sample_logits(fast.head, fast.fuse(fast.trunks(x)).pooled, masks))

    def gradcam() -> None:
        whole(x, class_idx=0)

    took = medians({"trunks": trunks, "forward": forward, "answer": answer, "entropy": entropy_only,
                    "gradcam": gradcam}, rounds=ROUNDS[batch])
    naive = SAMPLES * took["forward"]  # the same pass 50 times over
    return [
        row(f"whole answer, batch {batch}", took["answer"], "plain forward of the cut trunks", took["trunks"],
            GOALS[batch]),
        row(f"whole answer, batch {batch}", took["answer"], f"{SAMPLES} stochastic passes", naive),
        row(f"whole answer, batch {batch}", took["answer"], "Grad-CAM by full backward, no entropy",
            took["gradcam"]),
        row(f"entropy without maps, batch {batch}", took["entropy"], "plain forward of the whole network",
            took["forward"])]


def medians(contenders: dict[str, Callable[[], None]], *, rounds: int) -> dict[str, float]:
    """Median milliseconds of each, taken in turns after one unmeasured round."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            if number:
                times[name].append((time.perf_counter() - started) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def row(what: str, ours_ms: float, peer: str, peer_ms: float, goal: str | None = None) -> dict:
    """One line of a table."""
    return {"what": what, "ours_ms": ours_ms, "peer": peer, "peer_ms": peer_ms, "ratio": ours_ms / peer_ms,
            "goal": goal}

"""Choosing among 10,000 cached vectors: sampling the head (T = 50) and ranking by a batch strategy."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import dcaf_monai  # noqa: F401  (before torch: it says how OpenMP waits)

# isort: split
import numpy as np
import torch
from torch import nn

from dcaf_monai.acquire import Pool, acquire
from dcaf_monai.uncertainty import dropout_masks, sample_logits

CASES, UNITS, CLASSES, SAMPLES, DEPTH = 10_000, 512, 4, 50, 500
LIMIT_MS = 60_000.0
BLOCK = 500


def rows() -> list[dict[str, Any]]:
    """One dictionary per figure: what, ours_ms, peer, peer_ms, ratio (ours over peer), goal."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.LayerNorm(UNITS), nn.Dropout(0.3), nn.Linear(UNITS, 256), nn.GELU(),
                         nn.Dropout(0.3), nn.Linear(256, CLASSES)).eval()
    pooled = torch.randn(CASES, UNITS)
    logits, sampling_ms = _timed(lambda: _sampled(head, pooled))
    pool = Pool(pooled.numpy(), logits, labelled=np.random.default_rng(0).normal(size=(500, UNITS)))

    def ranked(strategy: str, count: int) -> float:
        return _timed(lambda: acquire(strategy, pool, count=count, seed=0))[1]

    told = [("sampling alone", sampling_ms),
            ("sampled and all ranked by badge", sampling_ms + ranked("badge", CASES)),
            *((f"sampled and the first {DEPTH} ranked by {strategy}", sampling_ms + ranked(strategy, DEPTH))
              for strategy in ("badge", "coreset", "typiclust", "powerbald")),
            ("sampled and a batch of 20 by batchbald", sampling_ms + ranked("batchbald", 20))]
    return [{"what": f"{CASES} vectors, T = {SAMPLES}: {what}", "ours_ms": ours_ms, "peer": "limit",
             "peer_ms": LIMIT_MS, "ratio": ours_ms / LIMIT_MS, "goal": "<= 1"} for what, ours_ms in told]


def _sampled(head: nn.Sequential, pooled: torch.Tensor) -> torch.Tensor:
    masks = dropout_masks(head, SAMPLES)
    with torch.no_grad():
        return torch.cat([sample_logits(head, part, masks) for part in pooled.split(BLOCK)], dim=1)


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    answer = call()
    return answer, (time.perf_counter() - start) * 1000


if __name__ == "__main__":
    for row in rows():
        print(json.dumps(row))

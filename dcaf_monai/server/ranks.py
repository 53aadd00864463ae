"""Ranks: orders that cannot be had from one column, worked out once per scoring for the unread pool.

A batch strategy weighs a case against those before it, so its order is worked out beforehand and kept as
places; handing out a case then walks an index. Only the first `DEPTH` places are worked out, among at most
`POOL` unread images (a fixed random part of a larger pool): after so many labels a new model is due, which
ranks anew. On the server each image is a unit of its own: it keeps no patients' names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sqlalchemy import Row, and_, delete, select, text

from dcaf_monai.server.database import Database, evidence, images, predictions, ranks
from dcaf_monai.server.worklist import BATCH_ORDERS

DEPTH, POOL, LABELLED = 500, 10_000, 2_000
SCORES = {"entropy": "entropy", "mutual_information": "bald", "margin": "margin"}
"""Orders that a column gives, by the strategy's name; they have places only to mix a random share in."""


class Ranks:
    """The part of the store that holds the orders worked out beforehand."""

    database: Database

    def rank_pool(self, model_version: str, *, temperature: float = 1.0, random_share: float = 0.0,
                  hidden: Callable[[np.ndarray], np.ndarray] | None = None) -> int:
        """Works out the order of every strategy anew, from one model's evidence on the unread images.

        Args:
            model_version: Whose evidence; images it has scored without evidence get no place.
            temperature: That model's.
            random_share: Share of the places that go to images drawn at random from the whole unread
                pool; they are marked. Above 0 the orders of single scores have places, too.
            hidden: Pooled vectors ``(cases, units)`` to what that model's last layer reads of them, for
                ``badge``; without it the pooled vectors stand in.

        Returns:
            How many unread images were compared.

        Raises:
            ValueError: For a share outside [0, 1].
            StoreError: When the database fails.
        """
        # Here, for they bring torch and scikit-learn: a process that opens a store need not wait for them.
        import torch

        from dcaf_monai import acquire

        if not 0 <= random_share <= 1:
            raise ValueError(f"random_share: need 0 to 1, got {random_share}.")
        unread = self._evidence(model_version, read=False, limit=POOL)
        orders = {name: name for name in BATCH_ORDERS} | (SCORES if random_share else {})
        found: list[dict[str, Any]] = []
        if unread:
            sampled = torch.from_numpy(_numbers(unread, "sampled")).unflatten(1, (unread[0].samples, -1))
            pooled = _numbers(unread, "pooled")
            pool = acquire.Pool(
                pooled, sampled.transpose(0, 1), temperature=temperature,
                hidden=hidden(pooled) if hidden else None,
                labelled=_numbers(self._evidence(model_version, read=True, limit=LABELLED), "pooled",
                                  units=len(unread[0].pooled) // 2))
            seed = int.from_bytes(hashlib.sha256(model_version.encode()).digest()[:4], "big")
            for order, strategy in orders.items():
                got = acquire.acquire(strategy, pool, count=DEPTH, seed=seed, random_share=random_share)
                found += [{"strategy": order, "place": place, "uid": unread[case].uid,
                           "model_version": model_version, "random": bool(random)}
                          for place, (case, random) in enumerate(zip(got.cases, got.random, strict=True))]
        with self.database.write() as connection:
            if not self.database.is_sqlite:     # two scoring runs that end at once: one after the other
                connection.execute(text("LOCK TABLE ranks IN EXCLUSIVE MODE"))
            connection.execute(delete(ranks))
            if found:
                connection.execute(ranks.insert(), found)
        return len(unread)

    def _evidence(self, model_version: str, *, read: bool, limit: int) -> Sequence[Row]:
        """``uid, pooled, sampled, samples`` of present images, a fixed random part of too many."""
        query = (select(evidence.c.uid, evidence.c.pooled, evidence.c.sampled, evidence.c.samples)
                 .join(images, images.c.uid == evidence.c.uid)
                 # a file with other content loses its predictions, and what was evidence with them
                 .join(predictions, and_(predictions.c.uid == evidence.c.uid,
                                         predictions.c.model_version == evidence.c.model_version))
                 .where(evidence.c.model_version == model_version, images.c.state == "present",
                        images.c.readings > 0 if read else images.c.readings == 0)
                 .order_by(images.c.shuffle).limit(limit))
        with self.database.read() as connection:
            return connection.execute(query).all()


def _numbers(rows: Sequence[Row], name: str, *, units: int = 0) -> np.ndarray:
    """``(rows, numbers)`` float32; ``(0, units)`` without rows."""
    if not rows:
        return np.empty((0, units), np.float32)
    return np.stack([np.frombuffer(getattr(row, name), "<f2") for row in rows]).astype(np.float32)

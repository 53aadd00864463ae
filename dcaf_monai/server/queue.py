"""The queue in MONAI Label's words: strategies that hand out cases, scoring that ranks the pool."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

# These two need no `compat`; monailabel.app does.
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy

from dcaf_monai.image import ImageError
from dcaf_monai.server.scores import Evidence
from dcaf_monai.server.store import Store
from dcaf_monai.server.worklist import LEASE_S, ORDERS

logger = logging.getLogger(__name__)

NOBODY_NAMED = "reader"
"""Who reads when a stock client names nobody: the single reader of a loopback server."""

SAVE_EVERY = 32
"""Predictions per transaction while scoring: what a killed run has to do again, at most."""


class NextCase(Strategy):
    """Hands out the next case of one order, leased to the reader.

    Args:
        order: One of `worklist.ORDERS`.
        description: What a person reads in ``/info/``.

    Raises:
        ValueError: For an unknown order.
    """

    def __init__(self, order: str, description: str) -> None:
        if order not in ORDERS:
            raise ValueError(f"order: need one of {', '.join(ORDERS)}, got {order!r}.")
        super().__init__(description)
        self.order = order

    def __call__(self, request: Mapping[str, Any], datastore: Store) -> dict[str, Any]:
        """The next case.

        Args:
            request: ``reader`` (or a stock client's ``client_id``) says who asks; ``image`` asks
                for this very case; ``lease_s`` for how long; ``model_version`` for one model's
                scores only.
            datastore: The store.

        Returns:
            ``{id, order, reader, lease_expires, random, prediction}``, the prediction as stored (empty
            when the case is not scored yet), ``random`` when the random share brought the case; empty
            when nothing is left for this reader.

        Raises:
            ValueError: For a bad value in the request, or a case another reader holds.
            UnknownImage: When ``image`` is none of the store's.
        """
        reader = request.get("reader") or request.get("client_id") or NOBODY_NAMED
        lease_s = request.get("lease_s", LEASE_S)
        if isinstance(lease_s, bool) or not isinstance(lease_s, (int, float)):
            raise ValueError("lease_s: need a number of seconds, got something else.")
        if request.get("image"):
            lease = datastore.lease(_text(request, "image"), reader, lease_s=lease_s)
        else:
            version = _text(request, "model_version") if request.get("model_version") else None
            found = datastore.next_case(reader, self.order, model_version=version, lease_s=lease_s)
            if found is None:
                return {}
            lease = found
        return {"id": lease.uid, "order": self.order, "reader": lease.reader,
                "lease_expires": lease.expires.isoformat(), "random": lease.random,
                "prediction": datastore.prediction(lease.uid)}


def strategies() -> dict[str, Strategy]:
    """All strategies by the name clients use; ``random`` is MONAI Label's default and must be there."""
    entropy = NextCase("entropy", "Most uncertain first: highest predictive entropy")
    information = NextCase("mutual_information", "Where samples of the model differ most")
    return {"entropy": entropy, "uncertain": entropy,
            "mutual_information": information, "bald": information,
            "margin": NextCase("margin", "Smallest distance between the two best answers"),
            "powerbald": NextCase("powerbald", "A draw in proportion to how much the samples differ"),
            "badge": NextCase("badge", "Uncertain cases that would teach the model different things"),
            "coreset": NextCase("coreset", "Cases far from everything read so far"),
            "typiclust": NextCase("typiclust", "A typical case of every kind not read yet"),
            "random": NextCase("random", "A fixed random order")}


class Scorer(Protocol):
    """What scoring needs of a `dcaf_monai.predict.Predictor`."""

    @property
    def model(self) -> Any:
        """Has a ``version`` and a ``temperature``."""

    def predict_files(self, files: Iterable[tuple[str | None, Path, int | None]]
                      ) -> Iterator[tuple[str | None, Any]]:
        """``(uid, Prediction | ImageError)`` for each ``(uid, path, frame)``."""

    def hidden(self, pooled: np.ndarray) -> np.ndarray:
        """What the last layer reads of pooled vectors."""


class PoolScoring(ScoringMethod):
    """Scores every image of the pool that the present model has not scored.

    Never scored images come first, then those scored by another model. Results are saved every few
    images, so a stopped run goes on where it was. An image that cannot be read is recorded as a
    failure of this model version and not tried again until asked.

    Every run ends by working out the orders of the batch strategies.

    Args:
        predictor: Gives the present predictor; asked once per run.
        random_share: Share of the cases handed out that is drawn at random, 0 to 1.

    Raises:
        ValueError: For another share.
    """

    def __init__(self, predictor: Callable[[], Scorer], *, random_share: float = 0.0) -> None:
        if not 0 <= random_share <= 1:
            raise ValueError(f"random_share: need 0 to 1, got {random_share}.")
        super().__init__("Predictive entropy, mutual information and margin of every image in the pool")
        self._predictor, self._random_share = predictor, random_share

    def __call__(self, request: Mapping[str, Any], datastore: Store) -> dict[str, Any]:
        """Runs until nothing is left or the limit is reached.

        Args:
            request: ``max_samples`` stops after so many images (0: none); ``retry`` tries failed
                images again.
            datastore: The store.

        Returns:
            ``{model_version, scored, failed, reranked, compared, remaining}``; reranked images had this
            model's prediction already, compared are those that the batch strategies chose from,
            remaining says whether any image still waits.
        """
        limit = request.get("max_samples") or 0
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
            raise ValueError("max_samples: need a whole number from 0, got something else.")
        predictor = self._predictor()
        version = predictor.model.version
        if request.get("retry"):
            datastore.forget_failures(version)
        reranked = datastore.rank_by(version)
        waiting = datastore.unscored(version, limit=limit or None)
        answers = predictor.predict_files((image.uid, image.path, image.frame) for image in waiting)
        scored = failed = 0
        good: list[tuple[str, Mapping[str, Any]]] = []
        proofs: dict[str, Evidence] = {}
        for done, (image, (_, answer)) in enumerate(zip(waiting, answers, strict=True), 1):
            if isinstance(answer, ImageError):
                datastore.save_failure(image.uid, version, answer)
                failed += 1
            else:
                good.append((image.uid, answer.document()))
                proofs[image.uid] = Evidence(answer.pooled, answer.sampled)
            if len(good) == SAVE_EVERY or done == len(waiting):
                scored += datastore.save_predictions(good, proofs)
                good.clear()
                proofs.clear()
                logger.info("scoring with model %s: %d of %d done, %d failed",
                            version, done, len(waiting), failed)
        compared = datastore.rank_pool(version, temperature=predictor.model.temperature,
                                       random_share=self._random_share, hidden=predictor.hidden)
        return {"model_version": version, "scored": scored, "failed": failed, "reranked": reranked,
                "compared": compared, "remaining": bool(datastore.unscored(version, limit=1))}


def _text(request: Mapping[str, Any], name: str) -> str:
    value = request[name]
    if not isinstance(value, str):
        raise ValueError(f"{name}: need text, got {type(value).__name__}.")
    return value

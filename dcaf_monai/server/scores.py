"""Scores: each image's prediction per model version, and the numbers the worklist is ordered by.

An image is *ranked by* one model version at a time, the one that scored it last. Scoring visits
images that were never scored first, then those still ranked by another version.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import delete, func, select, update

from dcaf_monai.image import ImageError
from dcaf_monai.server.annotation import finite, plain_json
from dcaf_monai.server.database import SCORES, Database, evidence, failures, images, predictions, ranks
from dcaf_monai.server.readings import require_image

DOCUMENT_LIMIT = 65536
"""Longest prediction document, in characters of JSON."""


@dataclass(frozen=True)
class Pending:
    """An image that waits for a score: what a Predictor needs to read it."""

    uid: str
    path: Path
    frame: int | None


@dataclass(frozen=True)
class Evidence:
    """What a batch strategy compares two images by, beside their scores.

    Kept as float16: strategies compare distances and entropies, for which three digits are enough.

    Args:
        pooled: ``(units,)``, what the model's head reads.
        sampled: ``(samples, classes)``, logits of every dropout sample, before the temperature.

    Raises:
        ValueError: For other shapes.
    """

    pooled: np.ndarray
    sampled: np.ndarray

    def __post_init__(self) -> None:
        if self.pooled.ndim != 1 or self.sampled.ndim != 2 or not self.pooled.size or not self.sampled.size:
            raise ValueError(f"evidence: need pooled (units,) and sampled (samples, classes), got "
                             f"{self.pooled.shape} and {self.sampled.shape}.")

    def row(self) -> dict[str, Any]:
        """As columns of the table."""
        return {"pooled": _bytes(self.pooled), "sampled": _bytes(self.sampled), "samples": len(self.sampled)}


class Scores:
    """The part of the store that holds predictions."""

    database: Database
    studies: Path

    def save_prediction(self, uid: str, document: Mapping[str, Any],
                        evidence: Evidence | None = None) -> None:
        """Stores one prediction and ranks the image by it; see `save_predictions`."""
        self.save_predictions([(uid, document)], {} if evidence is None else {uid: evidence})

    def save_predictions(self, many: Iterable[tuple[str, Mapping[str, Any]]],
                         proofs: Mapping[str, Evidence] | None = None) -> int:
        """Stores predictions, all or none; an earlier one of the same model version is replaced.

        Args:
            many: ``(uid, document)``; the document is a Prediction's JSON, with at least
                ``prediction: [{label, score}]`` and ``model: {version}``.
            proofs: Evidence of some of them, by uid; what is kept already of the same model version stays
                for the others. An image without any has no place in the batch strategies' orders.

        Returns:
            How many were stored.

        Raises:
            ValueError: When a document is not a prediction.
            UnknownImage: For an unknown image.
            StoreError: When the database fails.
        """
        rows = sorted((_prediction_row(uid, document) for uid, document in many), key=lambda row: row["uid"])
        with self.database.write() as connection:
            for row in rows:                                # in uid order: two writers cannot deadlock
                require_image(connection, row["uid"])
                insert = self.database.insert(predictions).values(**row)
                connection.execute(insert.on_conflict_do_update(
                    index_elements=["uid", "model_version"],
                    set_={name: insert.excluded[name] for name in row
                          if name not in ("uid", "model_version")}))
                connection.execute(update(images).where(images.c.uid == row["uid"]).values(
                    ranked_by=row["model_version"], **{name: row[name] for name in SCORES}))
                if proofs and row["uid"] in proofs:
                    proof = self.database.insert(evidence).values(
                        uid=row["uid"], model_version=row["model_version"], **proofs[row["uid"]].row())
                    connection.execute(proof.on_conflict_do_update(
                        index_elements=["model_version", "uid"],
                        set_={name: proof.excluded[name] for name in ("pooled", "sampled", "samples")}))
        return len(rows)

    def prediction(self, uid: str, model_version: str | None = None) -> dict[str, Any]:
        """The stored prediction of an image, as the document that was saved.

        Args:
            uid: The image.
            model_version: Which model's; None for the one the image is ranked by.

        Returns:
            The document; empty when the image has no such prediction.

        Raises:
            UnknownImage: For an unknown image.
        """
        with self.database.read() as connection:
            image = require_image(connection, uid)
            found = connection.execute(select(predictions.c.document).where(
                predictions.c.uid == uid,
                predictions.c.model_version == (model_version or image.ranked_by))).scalar_one_or_none()
        return dict(found or {})

    def unscored(self, model_version: str, limit: int | None = None) -> list[Pending]:
        """Images to score with this model: never scored first, then those ranked by another version.

        Images on which this version failed are left out (`forget_failures` lets them in again).
        """
        failed = select(failures.c.uid).where(failures.c.model_version == model_version)
        query = (select(images.c.uid, images.c.path, images.c.frame)
                 .where(images.c.state == "present", images.c.uid.not_in(failed),
                        images.c.ranked_by.is_distinct_from(model_version))
                 .order_by(images.c.ranked_by.is_not(None), images.c.shuffle).limit(limit))
        with self.database.read() as connection:
            rows = connection.execute(query).all()
        return [Pending(uid, self.studies / path, frame) for uid, path, frame in rows]

    def rank_by(self, model_version: str) -> int:
        """Ranks images by a version's stored predictions without predicting again (after a roll-back).

        Places of the batch strategies that another version gave are then forgotten; see `Ranks.rank_pool`.

        Returns:
            How many images changed.
        """
        theirs = (select(predictions.c.model_version)
                  .where(predictions.c.uid == images.c.uid, predictions.c.model_version == model_version)
                  .correlate(images))
        with self.database.write() as connection:
            changed = connection.execute(update(images).where(
                images.c.ranked_by.is_distinct_from(model_version),
                images.c.uid.in_(select(predictions.c.uid)
                                 .where(predictions.c.model_version == model_version))).values(
                ranked_by=model_version, **{name: theirs.with_only_columns(predictions.c[name])
                                            .scalar_subquery() for name in SCORES}))
            if changed.rowcount:
                connection.execute(delete(ranks).where(ranks.c.model_version != model_version))
        return changed.rowcount

    def changes(self, since: str, now: str, *, limit: int = 50) -> dict[str, Any]:
        """How the answers of one model version differ from another's, on images both have predicted.

        Args:
            since: The earlier version.
            now: The later one.
            limit: Items to give, 1 to 500.

        Returns:
            ``from``, ``to``, ``compared`` images, ``answers_changed`` among them,
            ``mean_entropy_before`` and ``mean_entropy_after`` (null when nothing is compared), and
            ``items`` of ``{uid, label_before, label_after, entropy_before, entropy_after}``, the
            largest change of entropy first. Entropies are normalized, 0 to 1.

        Raises:
            ValueError: For a limit out of range.
        """
        if not 1 <= limit <= 500:
            raise ValueError(f"limit: need 1 to 500, got {limit}.")
        old, new = predictions.alias("old"), predictions.alias("new")
        before, after = old.c.normalized_entropy, new.c.normalized_entropy
        both = (select(old.c.uid, old.c.label.label("label_before"), new.c.label.label("label_after"),
                       before.label("entropy_before"), after.label("entropy_after"))
                .join(new, new.c.uid == old.c.uid).join(images, images.c.uid == old.c.uid)
                .where(old.c.model_version == since, new.c.model_version == now,
                       images.c.state == "present"))
        compared = both.subquery()
        other = compared.c.label_before != compared.c.label_after
        with self.database.read() as connection:
            count, changed, mean_before, mean_after = connection.execute(select(
                func.count(), func.count().filter(other), func.avg(compared.c.entropy_before),
                func.avg(compared.c.entropy_after)).select_from(compared)).one()
            items = connection.execute(both.order_by(
                func.abs(after - before).desc().nulls_last(), old.c.uid).limit(limit)).mappings().all()
        return {"from": since, "to": now, "compared": count, "answers_changed": changed,
                "mean_entropy_before": mean_before, "mean_entropy_after": mean_after,
                "items": [dict(item) for item in items]}

    def save_failure(self, uid: str, model_version: str, error: ImageError) -> None:
        """Records that this model could not score this image, so that a run goes on and can resume."""
        with self.database.write() as connection:
            require_image(connection, uid)
            insert = self.database.insert(failures).values(
                uid=uid, model_version=model_version, created=time.time(), code=error.code,
                message=str(error)[:500])
            connection.execute(insert.on_conflict_do_update(
                index_elements=["uid", "model_version"],
                set_={name: insert.excluded[name] for name in ("created", "code", "message")}))

    def failures(self, model_version: str) -> list[dict[str, str]]:
        """``[{"uid", "code", "message"}]`` of the images this version could not score, by uid."""
        with self.database.read() as connection:
            rows = connection.execute(select(failures.c.uid, failures.c.code, failures.c.message).where(
                failures.c.model_version == model_version).order_by(failures.c.uid)).mappings().all()
        return [dict(row) for row in rows]

    def forget_failures(self, model_version: str) -> int:
        """Lets this version's failed images be tried again; says how many."""
        with self.database.write() as connection:
            return connection.execute(failures.delete().where(
                failures.c.model_version == model_version)).rowcount

    def model_versions(self) -> dict[str, int]:
        """How many present images are ranked by each model version."""
        with self.database.read() as connection:
            rows = connection.execute(select(images.c.ranked_by, func.count()).where(
                images.c.state == "present", images.c.ranked_by.is_not(None))
                .group_by(images.c.ranked_by)).all()
        return dict(rows)       # type: ignore[arg-type]


def _bytes(values: np.ndarray) -> bytes:
    """As float16; what is larger becomes the largest it holds."""
    most = np.finfo(np.float16).max
    return np.clip(np.nan_to_num(values), -most, most).astype("<f2").tobytes()


def _prediction_row(uid: str, document: Mapping[str, Any]) -> dict[str, Any]:
    try:
        answers = sorted(((float(a["score"]), str(a["label"])) for a in document["prediction"]), reverse=True)
        model = document["model"]
        version, sha256 = str(model["version"]), str(model.get("sha256", ""))
        uncertainty = document.get("uncertainty") or {}
        plain = plain_json(dict(document), limit=DOCUMENT_LIMIT)
        entropy, information = uncertainty.get("predictive_entropy"), uncertainty.get("mutual_information")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError("prediction: need prediction: [{label, score}] and model: {version} in plain "
                         f"JSON, got a fault at {str(error)[:80]}.") from error
    if not answers or not version:
        raise ValueError("prediction: need at least one answer and a model version, got none.")
    entropy, several = finite(entropy), len(answers) > 1
    return {"uid": uid, "model_version": version, "model_sha256": sha256, "created": time.time(),
            "label": answers[0][1], "score": answers[0][0], "entropy": entropy,
            "normalized_entropy": entropy / log(len(answers)) if entropy is not None and several else None,
            "mutual_information": finite(information),
            "margin": answers[0][0] - answers[1][0] if several else None, "document": plain}

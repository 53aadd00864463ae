"""The queue: orders, leases, skips, scoring; two readers at one moment never get one case."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from stores import WRITER, prediction, read

from dcaf_monai.image import ImageError
from dcaf_monai.server.database import UnknownImage
from dcaf_monai.server.queue import NextCase, PoolScoring, strategies
from dcaf_monai.server.store import Store
from dcaf_monai.server.worklist import CaseTaken

pytest_plugins = ("postgres",)

A, B, C, D, E = "a.png", "d.nii.gz", "e.tiff", "ward/b.PNG", "ward/deep/c.jpeg"


@pytest.fixture
def scored(store: Store) -> Store:
    """Three scored images, ranked differently by each order, and two without a score."""
    store.save_predictions([
        (A, prediction(entropy=0.9, information=0.1, probabilities=(0.5, 0.3, 0.2))),      # margin 0.2
        (B, prediction(entropy=0.5, information=0.3, probabilities=(0.4, 0.35, 0.25))),    # margin 0.05
        (C, prediction(entropy=0.7, information=0.2, probabilities=(0.9, 0.06, 0.04)))])   # margin 0.84
    return store


def drain(store: Store, reader: str, order: str = "entropy", **more: Any) -> list[str]:
    """The cases a reader gets until none is left, reading each."""
    got = []
    while lease := store.next_case(reader, order, **more):
        got.append(lease.uid)
        store.annotate(lease.uid, read(reader=reader))
    return got


@pytest.mark.parametrize(("order", "first"), [
    ("entropy", [A, C, B]), ("badge", [A, C, B]), ("mutual_information", [B, C, A]), ("margin", [B, A, C])])
def test_the_most_uncertain_case_comes_first_and_unscored_ones_last(
        scored: Store, order: str, first: list[str]) -> None:
    got = drain(scored, "ana", order)
    assert got[:3] == first and set(got[3:]) == {D, E}


def test_without_any_score_every_case_still_comes_in_one_fixed_order(store: Store) -> None:
    got = drain(store, "ana")
    assert sorted(got) == store.list_images()
    assert drain(store, "bo", "random") == got


def test_scores_of_another_model_version_count_as_none_when_one_is_named(scored: Store) -> None:
    scored.save_prediction(B, prediction("v2", entropy=0.01))
    assert scored.next_case("ana", model_version="v2").uid == B        # type: ignore[union-attr]
    assert len(drain(scored, "ana", model_version="v2")) == 5


def test_a_case_is_leased_to_one_reader_until_it_is_read_released_skipped_or_late(scored: Store) -> None:
    def next_uid(reader: str, lease_s: float = 100) -> str:
        lease = scored.next_case(reader, lease_s=lease_s)
        assert lease is not None and lease.reader == reader
        return lease.uid

    assert [next_uid("ana"), next_uid("ana"), next_uid("bo")] == [A, A, C]
    scored.annotate(A, read(reader="ana"))
    assert next_uid("cy") == A                                          # read by one, open to others
    assert scored.release(A, "bo") is False and scored.release(A, "cy") is True
    assert next_uid("dan", lease_s=0.05) == A
    time.sleep(0.1)
    assert next_uid("eva") == A
    scored.skip(A, "eva", "unclear view")
    assert next_uid("eva") == B and next_uid("cy") == A                 # skipped by one only


def test_a_named_case_is_given_unless_another_reader_holds_it(scored: Store) -> None:
    assert scored.lease(C, "ana").uid == C
    assert scored.lease(C, "ana").uid == C
    with pytest.raises(CaseTaken, match="another reader holds"):
        scored.lease(C, "bo")
    scored.annotate(C, read(reader="ana"))
    scored.skip(C, "bo")
    assert scored.lease(C, "bo").uid == C                               # skipped, but asked for by name
    assert scored.next_case("bo").uid == A                              # type: ignore[union-attr]
    scored.remove_image(D)
    for unknown in ("nobody", D):
        with pytest.raises(UnknownImage):
            scored.lease(unknown, "ana")


def test_an_empty_queue_says_so_plainly(scored: Store) -> None:
    assert len(drain(scored, "ana")) == 5
    assert scored.next_case("ana") is None
    assert strategies()["entropy"]({"reader": "ana"}, scored) == {}


@pytest.mark.parametrize("call", [
    lambda s: s.next_case("ana", "newest"), lambda s: s.next_case(""), lambda s: s.next_case("a\nb"),
    lambda s: s.next_case("ana", lease_s=0), lambda s: s.next_case("ana", lease_s=float("nan")),
    lambda s: s.lease(A, "ana", lease_s=1e9), lambda s: s.skip(A, "ana", "x" * 501),
    lambda s: s.skip(A, "ana", "\0"),
    lambda s: s.next_case("ana", model_version="\0") and s.prediction(A, "\ud800")])
def test_a_bad_request_is_the_callers_mistake(scored: Store, call: Any) -> None:
    with pytest.raises(ValueError):
        call(scored)


# -- at one moment ----------------------------------------------------------------------------------

def test_threads_that_ask_at_once_never_get_one_case(store: Store) -> None:
    for turn in range(4):
        with ThreadPoolExecutor(8) as threads:
            leases = list(threads.map(store.next_case, [f"reader{turn}.{n}" for n in range(8)]))
        uids = [lease.uid for lease in leases if lease]
        assert len(uids) == 5 and set(uids) == set(store.list_images())         # three found none
        for lease in filter(None, leases):
            store.release(lease.uid, lease.reader)


def test_processes_that_ask_at_once_never_hold_one_case(studies: Path, store: Store) -> None:
    for number in range(60):
        (studies / f"{number}.png").write_bytes(b"x")
    store.refresh()
    address = store.database.engine.url.render_as_string(hide_password=False)
    command = [sys.executable, str(WRITER), "lease", str(studies), address]
    started = [subprocess.Popen([*command, f"reader{n}", "25"], stdout=subprocess.PIPE, text=True)
               for n in range(2)]
    got = [process.communicate(timeout=60)[0].split() for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert [len(uids) for uids in got] == [25, 25]
    assert not set(got[0]) & set(got[1])


# -- MONAI Label's words ----------------------------------------------------------------------------

def test_a_strategy_gives_the_case_its_prediction_and_the_lease(scored: Store) -> None:
    case = strategies()["uncertain"]({"strategy": "uncertain", "client_id": "ana"}, scored)
    assert case["id"] == A and case["reader"] == "ana" and case["prediction"] == scored.prediction(A)
    assert strategies()["margin"]({"reader": "bo"}, scored)["id"] == B
    named = strategies()["random"]({"reader": "cy", "image": E}, scored)
    assert {name: named[name] for name in ("id", "order", "prediction")} == {
        "id": E, "order": "random", "prediction": {}}
    assert datetime.now(timezone.utc) < datetime.fromisoformat(named["lease_expires"])
    with pytest.raises(CaseTaken):
        strategies()["random"]({"reader": "ana", "image": E}, scored)
    for bad in ({"image": 5}, {"lease_s": "1"}, {"lease_s": True}, {"reader": 7}, {"model_version": 1}):
        with pytest.raises(ValueError):
            strategies()["entropy"](bad, scored)
    with pytest.raises(ValueError, match="order"):
        NextCase("newest", "")


@dataclass(frozen=True)
class Answer:
    """What scoring asks of a Prediction: its document, its pooled vector and its sampled logits."""

    uid: str
    version: str
    pooled = np.array([1.0, 2, 3])
    sampled = np.zeros((4, 3))

    def document(self) -> dict[str, Any]:
        return prediction(self.version, entropy=len(self.uid) / 100)


class FileScorer:
    """A scorer of our own with the contract of `Predictor`: entropy from the file's name."""

    def __init__(self, version: str, *, bad: tuple[str, ...] = (), stop_after: int = 1000) -> None:
        self.model = SimpleNamespace(version=version, temperature=1.0)
        self.hidden = np.abs
        self.bad, self.stop_after, self.asked = bad, stop_after, []     # type: ignore[var-annotated]

    def predict_files(self, files: Iterable[tuple[str | None, Path, int | None]]
                      ) -> Iterator[tuple[str | None, Any]]:
        for uid, path, frame in files:
            if len(self.asked) == self.stop_after:
                raise KeyboardInterrupt
            assert uid and path.is_file() and frame is None
            self.asked.append(uid)
            yield uid, ImageError("colour", "Image: need grey, got colour.") if uid in self.bad else \
                Answer(uid, self.model.version)


def test_scoring_fills_the_pool_and_records_a_bad_image_as_a_failure(store: Store) -> None:
    scorer = FileScorer("v1", bad=(C,))
    assert PoolScoring(lambda: scorer)({}, store) == {
        "model_version": "v1", "scored": 4, "failed": 1, "reranked": 0, "compared": 4, "remaining": False}
    assert store.failures("v1") == [{"uid": C, "code": "colour", "message": "Image: need grey, got colour."}]
    assert store.next_case("ana").uid == E                              # type: ignore[union-attr]
    scorer.asked.clear()
    assert PoolScoring(lambda: scorer)({}, store)["scored"] == 0 and scorer.asked == []
    assert PoolScoring(lambda: FileScorer("v1"))({"retry": True}, store)["scored"] == 1
    assert store.failures("v1") == []


def test_scoring_visits_never_scored_images_before_stale_ones_and_resumes(scored: Store) -> None:
    stopped = FileScorer("v2")
    done = PoolScoring(lambda: stopped)({"max_samples": 3}, scored)
    assert (done["scored"], done["remaining"]) == (3, True)
    assert set(stopped.asked[:2]) == {D, E} and stopped.asked[2] in {A, B, C}
    rest = FileScorer("v2")
    assert PoolScoring(lambda: rest)({}, scored)["scored"] == 2
    assert not set(rest.asked) & set(stopped.asked)
    assert scored.model_versions() == {"v2": 5}


def test_a_run_stopped_in_the_middle_keeps_what_was_saved(
        store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcaf_monai.server.queue.SAVE_EVERY", 2)
    with pytest.raises(KeyboardInterrupt):
        PoolScoring(lambda: FileScorer("v1", stop_after=3))({}, store)
    assert store.model_versions() == {"v1": 2}


def test_after_a_roll_back_stored_predictions_rank_again_without_predicting(scored: Store) -> None:
    PoolScoring(lambda: FileScorer("v2"))({}, scored)
    back = FileScorer("v1")
    done = PoolScoring(lambda: back)({}, scored)
    assert done["reranked"] == 3 and set(back.asked) == {D, E}
    assert scored.get_image_info(A)["predictive_entropy"] == 0.9


@pytest.mark.parametrize("limit", [-1, "3", True, 1.5])
def test_a_limit_that_is_no_count_is_refused(store: Store, limit: Any) -> None:
    with pytest.raises(ValueError, match="max_samples: need a whole number"):
        PoolScoring(lambda: FileScorer("v1"))({"max_samples": limit}, store)

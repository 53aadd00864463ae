"""Batch strategies in the queue: places, fallback, the random share, and what becomes of stale places."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sqlalchemy import func, select
from stores import prediction, read

from dcaf_monai import acquire
from dcaf_monai.server import ranks as ranking
from dcaf_monai.server.database import evidence, monitored, ranks
from dcaf_monai.server.queue import PoolScoring, strategies
from dcaf_monai.server.scores import Evidence
from dcaf_monai.server.store import Store
from dcaf_monai.server.worklist import BATCH_ORDERS

pytest_plugins = ("postgres",)

MANY = 40


@pytest.fixture
def pool(store: Store, studies: Path) -> Store:
    """Forty-five images; forty scored with evidence, some by entropies of their own."""
    for number in range(MANY):
        (studies / f"x{number:02}.png").write_bytes(f"{number}".encode())
    store.refresh()
    made = np.random.default_rng(0)
    store.save_predictions(
        [(f"x{number:02}.png", prediction(entropy=(number * 7 % MANY) / MANY)) for number in range(MANY)],
        {f"x{number:02}.png": Evidence(made.normal(size=6), made.normal(size=(5, 3)) * 2)
         for number in range(MANY)})
    return store


def kept(store: Store) -> tuple[list[str], acquire.Pool]:
    """The evidence as it lies in the database, in the order of the pool."""
    with store.database.read() as connection:
        rows = {row.uid: row for row in connection.execute(select(evidence))}
    uids = [uid for uid in fixed_order(store) if uid in rows]
    pooled = np.stack([np.frombuffer(rows[uid].pooled, "<f2") for uid in uids]).astype(np.float32)
    sampled = np.stack([np.frombuffer(rows[uid].sampled, "<f2").reshape(5, 3) for uid in uids])
    return uids, acquire.Pool(pooled, torch.from_numpy(sampled.astype(np.float32)).transpose(0, 1))


def fixed_order(store: Store) -> list[str]:
    return [item["uid"] for item in store.worklist("random", limit=500).items]


def drain(store: Store, order: str, count: int, **more: Any) -> list[str]:
    got = []
    for _ in range(count):
        lease = store.next_case("ana", order, **more)
        assert lease is not None
        store.annotate(lease.uid, read(reader="ana"))
        got.append(lease.uid)
    return got


@pytest.mark.parametrize("order", BATCH_ORDERS)
def test_cases_come_in_the_order_acquire_gives_and_the_uncertain_after_them(
        pool: Store, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "DEPTH", 9)
    uids, known = kept(pool)
    seed = int.from_bytes(bytes.fromhex("3bfc2695"), "big")     # sha256 of "v1"
    expected = [uids[case] for case in acquire.acquire(order, known, count=9, seed=seed).cases]
    assert pool.rank_pool("v1") == MANY
    entropies = [item["uid"] for item in pool.worklist(limit=500).items if item["uid"] not in expected]
    listed = [item["uid"] for item in pool.worklist(order, limit=500).items]
    assert listed == expected + entropies and listed[9:] != sorted(listed[9:])
    assert drain(pool, order, 14) == listed[:14]


def test_pages_of_a_batch_order_join_and_turn_round(pool: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "DEPTH", 9)
    pool.rank_pool("v1")
    for more in ({}, {"descending": True}, {"status": "unread"}, {"label": "covid", "descending": True}):
        whole = [item["uid"] for item in pool.worklist("badge", limit=500, **more).items]
        pages = [item["uid"] for offset in range(0, 60, 7)
                 for item in pool.worklist("badge", offset=offset, limit=7, **more).items]
        assert pages == whole and len(set(whole)) == len(whole) == pool.worklist("badge", **more).total
    up, down = ([item["uid"] for item in pool.worklist("badge", descending=way, limit=500).items]
                for way in (False, True))
    assert down[:9] == up[8::-1] and down[9:] == up[9:]


def test_without_places_a_batch_order_is_that_of_entropy(pool: Store) -> None:
    assert drain(pool, "badge", 3) == [item["uid"] for item in pool.worklist(limit=3).items]


def test_only_unread_present_images_are_compared_and_read_ones_repel(pool: Store) -> None:
    gone, done = "x03.png", "x05.png"
    pool.remove_image(gone)
    pool.annotate(done, read())
    assert pool.rank_pool("v1") == MANY - 2 and pool.rank_pool("v9") == 0
    pool.rank_pool("v1")
    with pool.database.read() as connection:
        placed = set(connection.execute(select(ranks.c.uid)).scalars())
    assert placed == {f"x{number:02}.png" for number in range(MANY)} - {gone, done}
    uids, known = kept(pool)
    at = uids.index(done)
    rest = [case for case, uid in enumerate(uids) if uid not in (gone, done)]
    first = acquire.acquire("coreset", acquire.Pool(known.pooled[rest], labelled=known.pooled[[at]]), count=1,
                            seed=0).cases[0]
    assert pool.next_case("bo", "coreset").uid == uids[rest[first]]         # type: ignore[union-attr]


def test_a_large_pool_is_compared_in_part(pool: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "POOL", 12)
    assert pool.rank_pool("v1") == 12
    with pool.database.read() as connection:
        placed = set(connection.execute(select(ranks.c.uid)).scalars())
    assert placed == set(kept(pool)[0][:12])


@pytest.mark.parametrize("order", ["entropy", "mutual_information", "margin", "badge"])
def test_a_random_share_is_mixed_into_every_order_and_marked_for_good(pool: Store, order: str) -> None:
    pool.rank_pool("v1", random_share=0.25)
    with pool.database.read() as connection:
        drawn = set(connection.execute(select(ranks.c.uid).where(ranks.c.strategy == order,
                                                                 ranks.c.random)).scalars())
    assert len(drawn) == MANY // 4
    got = [strategies()[order]({"reader": "ana"}, pool)]
    for _ in range(MANY - 1):
        pool.annotate(got[-1]["id"], read(reader="ana"))
        got.append(strategies()[order]({"reader": "ana"}, pool))
    assert {case["id"] for case in got if case["random"]} == drawn
    assert all(sum(case["random"] for case in got[start:start + 4]) == 1 for start in range(0, MANY, 4))
    again = strategies()[order]({"reader": "ana"}, pool)
    assert (again["id"], again["random"]) == (got[-1]["id"], got[-1]["random"])
    pool.rank_pool("v1")                                    # the next ranking, without a share
    marked = {item["uid"] for item in pool.worklist(limit=500).items if item["random"]}
    assert marked == drawn
    with pool.database.read() as connection:
        assert set(connection.execute(select(monitored.c.uid)).scalars()) == drawn
        assert not connection.execute(select(ranks.c.uid).where(ranks.c.strategy == "entropy")).first()


def test_the_drawn_images_are_the_same_for_every_strategy_of_a_ranking(pool: Store) -> None:
    pool.rank_pool("v1", random_share=0.3)
    with pool.database.read() as connection:
        drawn = [frozenset(connection.execute(select(ranks.c.uid).where(
            ranks.c.strategy == order, ranks.c.random)).scalars()) for order in (*BATCH_ORDERS, "entropy")]
    assert len(set(drawn)) == 1 and len(drawn[0]) == 12


def test_places_count_for_their_model_version_only_when_one_is_named(pool: Store) -> None:
    pool.rank_pool("v1")
    place = [item["uid"] for item in pool.worklist("coreset", limit=MANY).items]
    pool.save_predictions([(uid, prediction("v2", entropy=0.5)) for uid in (place[0], place[7])])
    assert drain(pool, "coreset", 2, model_version="v1") == place[1:3]      # the first is v2's now
    assert set(drain(pool, "coreset", 2, model_version="v2")) == {place[0], place[7]}
    assert drain(pool, "coreset", 1) == place[3:4]


def test_badge_compares_by_what_the_last_layer_reads(pool: Store) -> None:
    uids, known = kept(pool)

    def hidden(pooled: np.ndarray) -> np.ndarray:
        return np.tanh(pooled[:, :2] * 3)

    seed = int.from_bytes(hashlib.sha256(b"v1").digest()[:4], "big")
    expected = [[uids[case] for case in acquire.acquire("badge", replace(known, hidden=how), count=MANY,
                                                        seed=seed).cases]
                for how in (hidden(known.pooled), None)]
    pool.rank_pool("v1", hidden=hidden)
    assert drain(pool, "badge", 10) == expected[0][:10] != expected[1][:10]


def test_a_roll_back_forgets_the_places_of_the_version_taken_back(pool: Store) -> None:
    pool.save_predictions([("x00.png", prediction("v2", entropy=0.5))])
    pool.rank_pool("v1")

    def places() -> int:
        with pool.database.read() as connection:
            return connection.execute(select(func.count()).select_from(ranks)).scalar_one()

    assert places() == (MANY * len(BATCH_ORDERS)) and pool.rank_by("v2") == 0 and places()
    assert pool.rank_by("v1") == 1 and places()             # its own stay
    assert pool.rank_by("v2") == 1 and places() == 0


def test_a_prediction_saved_again_keeps_its_evidence_until_the_file_changes(pool: Store,
                                                                            studies: Path) -> None:
    pool.save_prediction("x00.png", prediction())
    assert pool.rank_pool("v1") == MANY
    (studies / "x00.png").write_bytes(b"another picture")
    pool.refresh()
    pool.save_prediction("x00.png", prediction())
    assert pool.rank_pool("v1") == MANY - 1
    pool.save_prediction("x00.png", prediction(), Evidence(np.zeros(6), np.zeros((5, 3))))
    assert pool.rank_pool("v1") == MANY
    assert kept(pool)[1].pooled[kept(pool)[0].index("x00.png")].tolist() == [0] * 6


def test_evidence_is_kept_as_float16_and_nothing_overflows() -> None:
    row = Evidence(np.array([1.0, -1e9, np.nan]), np.array([[0.1, 70000.0]])).row()
    assert np.frombuffer(row["pooled"], "<f2").tolist() == [1.0, -65504.0, 0.0]
    assert np.frombuffer(row["sampled"], "<f2").tolist() == [np.float16(0.1), 65504.0] and row["samples"] == 1
    for pooled, sampled in ((np.zeros((2, 2)), np.zeros((2, 2))), (np.zeros(2), np.zeros(2)),
                            (np.zeros(0), np.zeros((2, 2)))):
        with pytest.raises(ValueError, match="evidence: need pooled"):
            Evidence(pooled, sampled)


def test_scoring_ends_by_ranking_the_pool(pool: Store) -> None:
    class Nothing:
        model = SimpleNamespace(version="v1", temperature=2.0)
        hidden = staticmethod(np.abs)

        def predict_files(self, files: Any) -> Any:
            made = np.random.default_rng(9)
            for uid, *_ in files:
                yield uid, SimpleNamespace(document=prediction, pooled=made.normal(size=6),
                                           sampled=made.normal(size=(5, 3)))

    done = PoolScoring(Nothing, random_share=0.5)({}, pool)
    assert done["scored"] == 5 and done["compared"] == MANY + 5
    assert sum(item["random"] for item in pool.worklist(limit=500).items) in (22, 23)
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match="random_share: need 0 to 1"):
            PoolScoring(Nothing, random_share=share)
        with pytest.raises(ValueError, match="random_share: need 0 to 1"):
            pool.rank_pool("v1", random_share=share)


def test_every_strategy_of_the_queue_has_a_name_clients_use() -> None:
    assert set(strategies()) == {"entropy", "uncertain", "mutual_information", "bald", "margin", "random",
                                 "powerbald", "badge", "coreset", "typiclust"}
    assert strategies()["bald"].order == "mutual_information"          # type: ignore[attr-defined]

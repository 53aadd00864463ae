"""The worklist in pages: every order both ways, every filter, and what each item tells."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select
from stores import prediction, read

from dcaf_monai.server.database import images
from dcaf_monai.server.listing import ORDERS, STATUSES
from dcaf_monai.server.readings import disagreeing
from dcaf_monai.server.store import Store

pytest_plugins = ("postgres",)

A, B, C, D, E = "a.png", "d.nii.gz", "e.tiff", "ward/b.PNG", "ward/deep/c.jpeg"


@pytest.fixture
def scored(store: Store) -> Store:
    """Three scored images, ranked differently by each order, and two without a score."""
    store.save_predictions([
        (A, prediction(entropy=0.9, information=0.1, probabilities=(0.5, 0.3, 0.2))),      # covid, margin 0.2
        (B, prediction(entropy=0.5, information=0.3, probabilities=(0.35, 0.4, 0.25))),    # normal, 0.05
        (C, prediction(entropy=0.7, information=0.2, probabilities=(0.9, 0.06, 0.04)))])   # covid, 0.84
    return store


def uids(store: Store, *asked: Any, **more: Any) -> list[str]:
    page = store.worklist(*asked, **more)
    assert page.total == len(page.items)
    return [item["uid"] for item in page.items]


@pytest.mark.parametrize(("order", "first"), [
    ("entropy", [A, C, B]), ("mutual_information", [B, C, A]), ("margin", [B, A, C]), ("score", [B, A, C]),
    ("case", [A, B, C])])
def test_an_order_goes_its_own_way_or_the_one_asked_for_and_the_unscored_come_last(
        scored: Store, order: str, first: list[str]) -> None:
    natural = uids(scored, order)
    assert natural[:3] == first and set(natural[3:]) == {D, E}
    assert uids(scored, order, descending=ORDERS[order]) == natural
    other = uids(scored, order, descending=not ORDERS[order])
    expected = natural[::-1] if order == "case" else first[::-1] + other[3:]
    assert other == expected and sorted(other) == scored.list_images()


def test_by_answer_the_classes_stand_together(scored: Store) -> None:
    up, down = uids(scored, "label"), uids(scored, "label", descending=True)
    assert set(up[:2]) == {A, C} and up[2] == B and set(up[3:]) == {D, E}
    assert down[0] == B and down[1:3] == up[1::-1] and set(down[3:]) == {D, E}


def test_the_random_order_is_the_one_in_which_cases_are_handed_out(scored: Store) -> None:
    assert uids(scored, "random")[0] == scored.next_case("ana", "random").uid       # type: ignore[union-attr]
    assert uids(scored, "random", descending=True) == uids(scored, "random")[::-1]


def test_the_worklist_pages_in_order_with_one_total(scored: Store) -> None:
    scored.annotate(C, read("normal", "ana"))
    scored.lease(A, "bo")
    scored.lease(B, "ana")
    page = scored.worklist(reader="ana", limit=2)
    rest = scored.worklist(reader="ana", offset=2, limit=500)
    assert page.total == rest.total == 5 and len(rest.items) == 3 and rest.offset == 2
    assert [item["uid"] for item in (*page.items, *rest.items)][:3] == [A, C, B]
    first, second = page.items
    assert first == {
        "uid": A, "label": "covid", "score": 0.5, "predictive_entropy": 0.9,
        "normalized_entropy": pytest.approx(0.9 / 1.0986122886681098), "mutual_information": 0.1,
        "margin": pytest.approx(0.2), "model_version": "v1", "random": False, "readers": 0, "read_by": [],
        "read_by_me": False, "leased_by_me": False, "leased_by_other": True, "status": "leased"}
    assert second["read_by_me"] and second["readers"] == 1 and second["read_by"] == ["ana"]
    assert second["status"] == "read"
    assert rest.items[0]["leased_by_me"] and rest.items[0]["status"] == "leased"
    scores = ("label", "score", "predictive_entropy", "normalized_entropy", "mutual_information", "margin")
    assert all(rest.items[2][name] is None for name in scores) and rest.items[2]["status"] == "unread"


def test_each_filter_of_the_worklist_gives_its_cases(scored: Store) -> None:
    scored.annotate(A, read("normal", "ana"))
    scored.annotate(A, read("covid", "bo"))
    scored.annotate(C, read("covid", "bo"))
    scored.skip(B, "ana")
    scored.lease(D, "ana")

    def found(status: str, reader: str | None, **more: Any) -> set[str]:
        return set(uids(scored, "random", status, reader=reader, **more))

    assert found("all", "ana") == {A, B, C, D, E}
    assert found("read", "ana") == found("mine", "ana") == {A} and found("unread", "ana") == {C, D, E}
    assert found("unread", "bo") == {B, D, E}       # what another skipped waits for this one
    assert found("read", None) == {A, C} and found("unread", None) == {D, E}
    for reader in ("ana", "bo", None):
        assert scored.worklist("random", "unread", reader=reader).total == len(found("unread", reader))
    assert found("disagreement", "ana") == {A} and found("unscored", None) == {D, E}
    assert found("skipped", "ana") == {B} and found("skipped", "bo") == set() == found("leased", None) - {D}
    assert found("leased", "bo") == {D}
    assert found("all", None, label="covid") == {A, C} and found("unread", "ana", label="covid") == {C}
    assert found("read", "bo", label="normal") == set() and found("all", None, label="unheard") == set()


def test_an_item_has_the_first_status_that_holds(scored: Store) -> None:
    scored.annotate(A, read("normal", "ana"))
    scored.annotate(A, read("covid", "bo"))
    scored.annotate(C, read("covid", "bo"))
    scored.skip(C, "bo")
    scored.skip(B, "ana")
    scored.lease(B, "bo")
    scored.lease(D, "ana")

    def statuses(reader: str | None) -> dict[str, str]:
        return {item["uid"]: item["status"] for item in scored.worklist(reader=reader).items}

    assert statuses("ana") == {A: "disagreement", B: "skipped", C: "unread", D: "leased", E: "unread"}
    assert statuses("bo") == {A: "disagreement", B: "leased", C: "read", D: "leased", E: "unread"}
    assert statuses(None) == {A: "disagreement", B: "skipped", C: "read", D: "leased", E: "unread"}


def test_what_is_in_dispute_is_what_the_annotations_say_after_each_of_them(store: Store) -> None:
    said = [(A, "covid", "ana", "read"), (A, "normal", "bo", "read"), (B, "covid", "ana", "read"),
            (B, "covid", "bo", "read"), (B, "uncertain", "bo", "read"), (A, "normal", "ana", "read"),
            (C, "normal", "cy", "adjudication"), (C, "covid", "ana", "read"), (C, "normal", "bo", "read"),
            (B, "normal", "cy", "adjudication"), (A, "covid", "cy", "read")]
    expected = [set(), {A}, {A}, {A}, {A, B}, {B}, {B}, {B}, {B}, set(), {A}]
    for (uid, label, reader, role), disputed in zip(said, expected, strict=True):
        store.annotate(uid, read(label, reader, role=role))
        with store.database.read() as connection:
            derived = set(connection.execute(disagreeing()).scalars())
            kept = set(connection.execute(select(images.c.uid).where(images.c.disputed.is_(True))).scalars())
        assert derived == kept == {item["uid"] for item in store.disagreements()} == disputed


def test_the_worklist_follows_the_model_and_forgets_scores_of_other_content(scored: Store) -> None:
    scored.save_prediction(A, prediction("v2", entropy=0.2, probabilities=(0.1, 0.1, 0.8)))
    item = scored.worklist(label="viral_pneumonia").items[0]
    assert (item["uid"], item["score"], item["model_version"]) == (A, 0.8, "v2")
    scored.rank_by("v1")
    assert scored.worklist(label="viral_pneumonia").total == 0
    assert scored.worklist("score", label="covid").items[0]["score"] == 0.5
    (scored.studies / A).write_bytes(b"another picture")
    scored.refresh()
    assert set(uids(scored, status="unscored")) == {A, D, E}


@pytest.mark.parametrize(("asked", "word"), [
    ({"order": "newest"}, "order"), ({"status": "lost"}, "status"), ({"status": "mine"}, "reader"),
    ({"offset": -1}, "page"), ({"limit": 0}, "page"), ({"limit": 501}, "page"),
    ({"reader": "a\nb"}, "reader")])
def test_a_bad_request_is_the_callers_mistake(store: Store, asked: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=f"{word}: need"):
        store.worklist(**asked)
    assert STATUSES[0] == "all"

"""Active learning replayed: it finishes, goes on after a kill, looks at no label it has not paid for."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import typer
from PIL import Image as Picture
from torch import nn
from typer.testing import CliRunner

from dcaf_monai import simulate as simulating
from dcaf_monai.acquire import STRATEGIES
from dcaf_monai.cli_simulate import simulate as command
from dcaf_monai.cohort import Case, Cohort, write_cohort
from dcaf_monai.image import Notice
from dcaf_monai.learner import Recipe, fit_heads
from dcaf_monai.learning_curves import curves, interval, labels_to_reach, summary, write_report
from dcaf_monai.network import DualCrossAttentionFusion
from dcaf_monai.simulate import Plan, represented, simulate
from dcaf_monai.tasks import TASKS
from dcaf_monai.transforms import Preprocessing, read_input
from dcaf_monai.uncertainty import penultimate
from dcaf_monai.vectors import Vectors, pooled_model_features, pooled_trunk_features

QUICK = Recipe(hidden=8, learning_rate=0.02, steps=12, batch_size=16, samples=6)
PLAN = Plan(strategies=("entropy", "badge", "coreset"), batch_sizes=(7,), seeds=2, budget=0.4, components=4,
            recipe=QUICK)


def planted(seed=0):
    """Three separable classes of unequal size; patients of one to three images in one split each."""
    made = np.random.default_rng(seed)
    sizes = made.integers(1, 4, 110)
    groups = np.repeat([f"p{number}" for number in range(110)], sizes)
    split = np.repeat(np.repeat(["train", "val", "test"], [70, 18, 22]), sizes)
    labels = np.repeat(made.choice(3, 110, p=(0.6, 0.3, 0.1)), sizes)
    values = np.eye(3)[labels] @ made.normal(size=(3, 6)) * 1.5 + made.normal(size=(len(labels), 6))
    return Vectors(values.astype(np.float32), labels, groups, split, ("a", "b", "c"))


@pytest.fixture(scope="module")
def vectors():
    return planted()


@pytest.fixture(scope="module")
def replayed(vectors, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs") / "runs.jsonl"
    return simulate(vectors, PLAN, runs=runs), runs


def chosen(simulation):
    return {(run.strategy, run.batch_size, run.seed): run.chosen for run in simulation.runs}


def test_every_run_ends_at_the_budget_with_whole_patients_each_labelled_once(vectors, replayed):
    simulation, _ = replayed
    train = vectors.split == "train"
    groups = vectors.groups[train]
    assert simulation.images == train.sum() and simulation.patients == 70
    assert set(chosen(simulation)) == {(name, 7, seed) for name in ("random", "entropy", "badge", "coreset")
                                       for seed in (0, 1)}
    for run in simulation.runs:
        assert len(set(run.chosen)) == len(run.chosen) == run.labels[-1]
        assert run.labels[-2] < int(0.4 * train.sum()) <= run.labels[-1]
        assert run.patients[-1] == len(set(groups[list(run.chosen)]))
        taken = np.isin(np.arange(train.sum()), run.chosen)
        assert all(len(set(taken[groups == patient])) == 1 for patient in groups)
        assert all(7 <= after - before < 7 + 3 for before, after in zip(run.labels[:-1], run.labels[1:],
                                                                         strict=True))
    assert np.mean(simulation.full) > 0.9


def test_strategies_start_from_the_same_patients_and_seeds_from_others(replayed):
    first = {key: cases[:7] for key, cases in chosen(replayed[0]).items()}
    assert len({cases for (_, _, seed), cases in first.items() if seed == 0}) == 1
    assert first["entropy", 7, 0] != first["entropy", 7, 1]


def test_what_is_chosen_does_not_depend_on_a_judged_label(vectors, replayed, tmp_path):
    judged = vectors.split != "train"
    shuffled = vectors.labels.copy()
    shuffled[judged] = np.random.default_rng(1).permutation(shuffled[judged])
    again = simulate(replace(vectors, labels=shuffled), PLAN, runs=tmp_path / "runs.jsonl")
    assert chosen(again) == chosen(replayed[0])
    assert [run.auroc for run in again.runs] != [run.auroc for run in replayed[0].runs]


def test_what_is_chosen_does_not_depend_on_a_label_that_is_not_paid_for(vectors, replayed, tmp_path):
    """The next batch of every run stays the same when the labels after it change."""
    run = next(run for run in replayed[0].runs if (run.strategy, run.seed) == ("badge", 0))
    train = np.flatnonzero(vectors.split == "train")
    unpaid = np.delete(train, run.chosen[:run.labels[1]])
    changed = vectors.labels.copy()
    changed[unpaid] = (changed[unpaid] + 1) % 3
    again = simulate(replace(vectors, labels=changed), replace(PLAN, strategies=("badge",)),
                     runs=tmp_path / "runs.jsonl")
    same = next(other for other in again.runs if (other.strategy, other.seed) == ("badge", 0))
    assert same.chosen[:run.labels[2]] == run.chosen[:run.labels[2]]
    assert same.chosen != run.chosen


def test_which_split_is_told_changes_neither_the_runs_nor_the_file(vectors, replayed, monkeypatch):
    simulation, runs = replayed
    before = runs.read_bytes()
    monkeypatch.setattr(simulating, "fit_heads", None)  # a training would fail
    on_val = simulate(vectors, replace(PLAN, judge="val"), runs=runs)
    assert on_val.runs == simulation.runs and runs.read_bytes() == before
    assert on_val.judged == (vectors.split == "val").sum() and on_val.full != simulation.full


def test_a_simulation_stopped_in_the_middle_of_a_run_goes_on_with_the_same_result(
        vectors, replayed, tmp_path, monkeypatch):
    runs, told = tmp_path / "runs.jsonl", []

    def stopped(*args, **more):
        if told[-1][1] == 3:  # the job after all labels, random and entropy
            raise KeyboardInterrupt
        return fit_heads(*args, **more)

    monkeypatch.setattr(simulating, "fit_heads", stopped)
    with pytest.raises(KeyboardInterrupt):
        simulate(vectors, PLAN, runs=runs, progress=lambda *news: told.append(news))
    monkeypatch.undo()
    kept = runs.read_text().splitlines()
    assert len(kept) == 2 * 3
    runs.write_text("\n".join(kept)[:-40])  # and the last line torn
    assert simulate(vectors, PLAN, runs=runs).runs == replayed[0].runs
    assert runs.read_text().startswith("\n".join(kept[:-1]))


def test_a_larger_plan_keeps_what_a_smaller_one_has_done(vectors, replayed, tmp_path, monkeypatch):
    runs = tmp_path / "runs.jsonl"
    runs.write_bytes(replayed[1].read_bytes())
    trained = []
    monkeypatch.setattr(simulating, "fit_heads",
                        lambda *args, seeds, **more: trained.append(len(seeds)) or fit_heads(
                            *args, seeds=seeds, **more))
    larger = simulate(vectors, replace(PLAN, seeds=3), runs=runs)
    assert set(trained) == {1}  # only the third seed
    assert [run for run in larger.runs if run.seed < 2] == list(replayed[0].runs)
    alone = simulate(vectors, replace(PLAN, seeds=3), runs=tmp_path / "other.jsonl")
    assert chosen(alone) == chosen(larger)


def test_another_setting_or_another_label_shares_no_run(vectors, replayed):
    keys = {simulating._Bench(vectors, plan).key for plan in (
        PLAN, replace(PLAN, whiten=1.0), replace(PLAN, budget=0.3), replace(PLAN, cold_start="typiclust"),
        replace(PLAN, recipe=replace(QUICK, dropout=0.5)))}
    changed = vectors.labels.copy()
    changed[0] = (changed[0] + 1) % 3
    keys.add(simulating._Bench(replace(vectors, labels=changed), PLAN).key)
    assert len(keys) == 6
    larger = replace(PLAN, seeds=4, batch_sizes=(3,), strategies=("bald",), judge="val")
    assert simulating._Bench(vectors, larger).key in keys


@pytest.mark.parametrize("cold_start", ["random", "typiclust"])
def test_every_strategy_runs_from_either_cold_start(vectors, tmp_path, cold_start):
    plan = replace(PLAN, strategies=STRATEGIES, budget=0.15, cold_start=cold_start, seeds=2,
                   random_share=0.2, recipe=replace(QUICK, steps=3))
    found = simulate(vectors, plan, runs=tmp_path / "runs.jsonl")
    assert {run.strategy for run in found.runs} == set(STRATEGIES)
    first = {run.strategy: run.chosen[:7] for run in found.runs if run.seed == 0}
    assert (first["random"] == first["entropy"]) == (cold_start == "random")


@pytest.mark.parametrize(("change", "message"), [
    ({"strategies": ("newest",)}, "strategies: need some of random"), ({"strategies": ()}, "got none"),
    ({"batch_sizes": (0,)}, "batch_sizes: need whole numbers from 1"), ({"seeds": 1}, "need at least 2"),
    ({"budget": 0.0}, "budget: need a share"), ({"start": 0}, "start: need at least 1"),
    ({"whiten": 2.0}, "whiten"), ({"components": -1}, "components"), ({"random_share": -0.1}, "random_share"),
    ({"cold_start": "best"}, "cold_start"), ({"judge": "train"}, "judge: need")])
def test_a_plan_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(PLAN, **change)


def test_vectors_that_cannot_be_replayed_are_refused(vectors, tmp_path):
    with pytest.raises(ValueError, match="budget: need room for the first 7 images"):
        simulate(vectors, replace(PLAN, budget=0.02), runs=tmp_path / "runs.jsonl")
    no_test = replace(vectors, split=np.where(vectors.split == "test", "val", vectors.split))
    with pytest.raises(ValueError, match="vectors: need a training case of every class and a test split"):
        simulate(no_test, PLAN, runs=tmp_path / "runs.jsonl")


# -- the learner --------------------------------------------------------------------------------------

def test_heads_side_by_side_equal_heads_trained_alone(vectors):
    values, sets = represented(vectors.values, vectors.split == "train", components=0, whiten=0), [
        np.arange(9), np.arange(20, 60)]
    def heads_of(which):
        return fit_heads(values, vectors.labels, [sets[number] for number in which], 3,
                         seeds=[40 + number for number in which], recipe=QUICK)

    together, alone = heads_of([0, 1]), [heads_of([number])[0] for number in (0, 1)]
    for head, other in zip(together, alone, strict=True):
        for one, two in zip(head.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("seeds", "at_least"), [(5, 0.89), (10, 0.93)])
def test_an_interval_over_seeds_covers_about_as_often_as_it_says(seeds, at_least):
    rng, covered, percentile = np.random.default_rng(0), 0, 0
    draws = np.concatenate([np.arange(seeds)[None], rng.integers(seeds, size=(2000, seeds))])
    for _ in range(400):
        means = rng.normal(size=seeds)[draws].mean(1)
        told = interval(means, seeds)
        covered += told["low"] <= 0 <= told["high"]
        percentile += np.quantile(means[1:], .025) <= 0 <= np.quantile(means[1:], .975)
    assert at_least * 400 < covered < 0.98 * 400
    assert percentile < covered - 0.02 * 400   # why it is not the plain one


def test_a_head_of_one_step_follows_adamw_by_hand():
    """Without dropout's noise (p so small that nothing is dropped) one step is PyTorch's own."""
    values, labels = np.random.default_rng(0).normal(size=(1, 5)).astype(np.float32), np.array([2])
    recipe = Recipe(hidden=4, dropout=1e-9, learning_rate=0.1, steps=1, batch_size=3, weight_decay=0.5)
    head, found = (fit_heads(values, labels, [np.array([0])], 3, seeds=[7], recipe=own)[0]
                   for own in (replace(recipe, learning_rate=0.0), recipe))
    head.requires_grad_(True)
    optimiser = torch.optim.AdamW(head.parameters(), lr=0.1, weight_decay=0.5)
    nn.functional.cross_entropy(head(torch.from_numpy(values)), torch.from_numpy(labels)).backward()
    optimiser.step()
    for one, two in zip(found.parameters(), head.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)
    vector = torch.from_numpy(values)
    torch.testing.assert_close(head[-1](penultimate(head, vector)), head(vector))


def test_components_are_measured_on_the_training_split_alone(vectors):
    train = vectors.split == "train"
    other = vectors.values.copy()
    other[~train] += 100
    found = [represented(values, train, components=3, whiten=1.0) for values in (vectors.values, other)]
    np.testing.assert_allclose(found[0][train], found[1][train])
    assert found[0].shape == (len(train), 3)
    np.testing.assert_allclose(np.cov(found[0][train].T, bias=True), np.eye(3), atol=1e-4)
    plain = represented(vectors.values, train, components=6, whiten=0.0)
    full = represented(vectors.values, train, components=0, whiten=0.0)
    np.testing.assert_allclose(plain[:9] @ plain[:9].T, full[:9] @ full[:9].T, atol=1e-3)  # a rotation


# -- what is told -------------------------------------------------------------------------------------

def test_labels_to_reach_a_level_on_a_curve_worked_by_hand():
    labels = np.array([10.0, 20, 30, 40])
    assert labels_to_reach(labels, np.array([0.5, 0.7, 0.8, 0.9]), 0.75) == pytest.approx(25)
    # the lucky 0.9 and the 0.7 after it become 0.8 each: 0.82 is reached two fifths behind 30
    assert labels_to_reach(labels, np.array([0.5, 0.9, 0.7, 0.85]), 0.82) == pytest.approx(34)
    assert labels_to_reach(labels, np.array([0.5, 0.6, 0.7, 0.8]), 0.5) == 10
    assert labels_to_reach(labels, np.array([0.5, 0.6, 0.7, 0.8]), 0.81) == float("inf")


def test_the_summary_gives_ratios_to_random_and_says_what_is_not_reached(replayed):
    simulation, _ = replayed
    def run(strategy, seed, last):
        areas = tuple(np.linspace(0.5, last, 5).tolist())
        return simulating.Run(strategy, 10, seed, (10, 20, 30, 40, 50), (5, 9, 14, 20, 25),
                              {"test": areas}, {"test": areas}, ())

    planned = replace(simulation, plan=replace(PLAN, batch_sizes=(10,), strategies=("entropy", "bald")),
                      full=(1.0, 1.0), runs=tuple(
        run(strategy, seed, last) for strategy, last in (("random", 0.96), ("entropy", 1.42), ("bald", 0.9))
        for seed in (0, 1)))
    told = summary(planned)["batch_sizes"]["10"]
    # random 0.5 -> 0.96 over 40 labels: 0.95 at 10 + 40 * 0.45 / 0.46; entropy over 0.92
    assert told["random"]["reach"]["0.95"]["labels"]["value"] == pytest.approx(10 + 40 * 0.45 / 0.46)
    assert told["entropy"]["reach"]["0.95"]["ratio_to_random"] == {name: pytest.approx(
        (10 + 40 * 0.45 / 0.92) / (10 + 40 * 0.45 / 0.46)) for name in ("value", "low", "high")}
    assert told["bald"]["reach"]["0.95"]["labels"]["value"] is None
    ninety_nine = told["entropy"]["reach"]["0.99"]
    assert ninety_nine["random_reached"] is False
    assert ninety_nine["ratio_to_random"]["value"] == pytest.approx((10 + 40 * 0.49 / 0.92) / 50)
    assert told["entropy"]["area_over_random"]["value"] == pytest.approx((1.42 - 0.96) / 2)


def test_the_strategy_is_chosen_where_it_is_not_judged(replayed):
    simulation, _ = replayed

    def run(strategy, seed, val, test):
        areas = {name: tuple(np.linspace(0.5, last, 5).tolist())
                 for name, last in (("val", val), ("test", test))}
        return simulating.Run(strategy, 10, seed, (10, 20, 30, 40, 50), (5, 9, 14, 20, 25), areas, areas, ())

    ends = {"random": (.7, .7), "entropy": (.9, .8), "bald": (.8, .95)}
    planned = replace(simulation, plan=replace(PLAN, batch_sizes=(10,), strategies=("entropy", "bald")),
                      full=(1.0, 1.0), runs=tuple(run(name, seed, *ends[name]) for name in ends
                                                  for seed in (0, 1)))
    assert summary(planned)["chosen_on_validation"] == {"10": "entropy"}
    on_val = replace(planned, plan=replace(planned.plan, judge="val"))
    assert summary(on_val)["chosen_on_validation"] == {"10": None}


def test_a_report_is_plain_json_csv_and_a_picture(replayed, tmp_path):
    simulation, _ = replayed
    told = write_report(simulation, tmp_path, notices=[Notice("labels_in_vectors", "They know.")])
    read = json.loads((tmp_path / "simulation.json").read_text())
    assert read == json.loads(json.dumps(told)) and read["notices"][0]["code"] == "labels_in_vectors"
    rows = list(csv.DictReader((tmp_path / "simulation.csv").open()))
    assert len(rows) == sum(len(run.labels) for run in simulation.runs)
    first = simulation.runs[0]
    assert (rows[0]["strategy"], float(rows[0]["auroc"])) == ("random", first.auroc["test"][0])
    with Picture.open(tmp_path / "simulation.png") as picture:
        assert picture.format == "PNG" and picture.width > 500
    curve = curves(simulation, 7)["badge"]
    assert curve.auroc.shape == (2, len(curve.labels)) and (np.diff(curve.labels) > 0).all()


# -- vectors ------------------------------------------------------------------------------------------

@pytest.fixture
def cohort(tmp_path):
    made, cases = np.random.default_rng(0), []
    for number in range(8):
        path = tmp_path / f"films/{number}.png"
        path.parent.mkdir(exist_ok=True)
        Picture.fromarray(made.integers(0, 255, (70, 90 + number), np.uint8)).save(path)
        label, split = ("normal", "pneumonia")[number % 2], ("train", "val", "test", "train")[number // 2]
        cases.append(Case(path.name, path, label, split, f"g{number}"))
    return Cohort(TASKS["pneumonia"], tuple(cases))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return DualCrossAttentionFusion(2, backbones=("test_efficientnet", "test_resnet"), width=8, heads=2,
                                    fused=16, hidden=12).eval()


def test_a_trunk_vector_is_the_mean_of_each_map_and_computed_once(cohort, network, tmp_path):
    small, asked = Preprocessing(size=64), []
    found = pooled_trunk_features(cohort, network, preprocessing=small, cache=tmp_path, batch_size=3,
                                  progress=lambda *told: asked.append(told))
    features = network.trunks(read_input(cohort.cases[5].path, small)[1][None])
    expected = torch.cat([maps.mean((2, 3)) for maps in (features.first_8, features.first_16,
                                                         features.second_8, features.second_16)], 1)
    np.testing.assert_allclose(found.values[5], expected[0].detach(), atol=0.02)
    assert asked == [(3, 8), (6, 8), (8, 8)] and found.labels.tolist() == [0, 1] * 4
    assert found.groups[3] == "g3" and found.split.tolist() == [case.split for case in cohort.cases]
    cohort.cases[6].path.write_bytes(b"no image")
    again = pooled_trunk_features(cohort, network, preprocessing=small, cache=tmp_path,
                                  progress=lambda *told: asked.append(told))
    assert len(asked) == 3 and np.array_equal(again.values, np.delete(found.values, 6, 0))
    assert again.notices[-1].code == "unreadable" and again.labels.tolist() == [0, 1, 0, 1, 0, 1, 1]


def test_vectors_of_a_trained_network_say_that_labels_are_in_them(cohort, network, tmp_path):
    found = pooled_model_features(cohort, network, preprocessing=Preprocessing(size=64), cache=tmp_path)
    x = read_input(cohort.cases[2].path, Preprocessing(size=64))[1][None]
    np.testing.assert_allclose(found.values[2], network.fuse(network.trunks(x)).pooled[0].detach(), atol=0.02)
    assert found.notices[0].code == "labels_in_vectors"


# -- the command --------------------------------------------------------------------------------------

def test_the_command_replays_reports_and_goes_on(cohort, tmp_path):
    table = tmp_path / "cohort.csv"
    write_cohort(cohort, table)
    app = typer.Typer()
    app.command()(command)
    asked = ["--data", str(table), "--task", "pneumonia", "--backbones", "test_efficientnet,test_resnet",
             "--weights", "none", "--size", "64", "--report", str(tmp_path / "report"), "--strategies",
             "badge,typiclust", "--batch-size", "1,2", "--seeds", "2", "--budget", "1"]
    done = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert done.exit_code == 0 and "batches of 2 images" in done.output and "macro AUROC" in done.output
    told = json.loads((tmp_path / "report/simulation.json").read_text())
    assert set(told["batch_sizes"]["1"]) == {"random", "badge", "typiclust"}
    assert told["training_images"] == 4 and told["judged_images"] == 2
    runs = (tmp_path / "report/runs.jsonl").read_bytes()
    assert CliRunner().invoke(app, [*asked, "--judge", "val"], catch_exceptions=False).exit_code == 0
    assert (tmp_path / "report/runs.jsonl").read_bytes() == runs
    for wrong, message in ((["--batch-size", "1,x"], "--batch-size: need whole numbers"),
                           (["--weights", "a"], "--weights: need pretrained, none, or two files"),
                           (["--strategies", "newest"], "strategies: need some of"),
                           (["--judge", "train"], "judge: need")):
        with pytest.raises(ValueError, match=message):
            CliRunner().invoke(app, [*asked, *wrong], catch_exceptions=False)
    with pytest.raises(ValueError, match="--task: need one when there is no --model"):
        CliRunner().invoke(app, [*asked[:2], *asked[4:]], catch_exceptions=False)

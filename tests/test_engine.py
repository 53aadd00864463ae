"""The training loop on a toy: order, shares, rates, early stop, and kills that change nothing."""

import math
import multiprocessing
import os
import socket

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from dcaf_monai.checkpoint import Checkpoint, TrainError, load_checkpoint, save_checkpoint
from dcaf_monai.engine import EpochSampler, Loop, Recipe, RunningAverage, TrainStopped, rate_factor

torch.set_num_threads(1)


class Points:
    """Two overlapping clouds in the plane, class 1 rare: answers batches by (epoch, numbers)."""

    def __init__(self, cases, seed, share=.1):
        generator = torch.Generator().manual_seed(seed)
        self.labels = (torch.rand(cases, generator=generator) < share).long()
        self.points = torch.randn(cases, 2, generator=generator) + 1.2 * self.labels[:, None]

    def __getitem__(self, batch):
        return self.points[batch[1]], self.labels[batch[1]]


def a_network(dropout=.2):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Dropout(dropout), nn.Linear(8, 2))


def a_loop(folder, *, network=None, **changes):
    recipe = Recipe(epochs=6, batch_size=16, learning_rate=5e-3, patience=50)
    train, held = Points(300, 1), Points(200, 2)
    batches = [(0, list(range(start, start + 50))) for start in range(0, 200, 50)]
    options = {"network": network or a_network(), "training": train, "labels": train.labels,
               "validation": DataLoader(held, sampler=batches, batch_size=None), "classes": 2,
               "recipe": recipe, "checkpoint": folder / "checkpoint.safetensors", "run": "one"}
    return Loop(**{**options, **changes})


def same(one, other):
    return one.history == other.history and one.best_epoch == other.best_epoch and all(
        torch.equal(one.best[name], other.best[name]) for name in one.best)


def test_the_rate_rises_straight_and_falls_as_a_cosine():
    factors = [rate_factor(step, 100, .1) for step in range(100)]
    assert factors[0] == pytest.approx(.1) and factors[9] == pytest.approx(1)
    assert factors[55] == pytest.approx(.5) and factors[99] < .001
    assert all(a >= b for a, b in zip(factors[10:], factors[11:], strict=False))


@pytest.mark.parametrize("balance, quotas", [(0, [90, 10]), (.5, [75, 25]), (1, [50, 50])])
def test_classes_are_drawn_with_exact_known_shares(balance, quotas):
    labels = torch.tensor([0] * 90 + [1] * 10)
    sampler = EpochSampler(labels, 2, Recipe(balance=balance, batch_size=10), seed=0)
    drawn = torch.tensor([case for _, cases in sampler for case in cases])
    assert torch.bincount(labels[drawn]).tolist() == quotas
    expected = [math.log(quota / 100 / share) for quota, share in zip(quotas, (.9, .1), strict=True)]
    assert sampler.adjustment.tolist() == pytest.approx(expected, abs=1e-6)


def test_without_evening_every_case_is_seen_once_an_epoch():
    sampler = EpochSampler(torch.arange(35) % 3, 3, Recipe(balance=0, batch_size=5), seed=0)
    assert sorted(case for _, cases in sampler for case in cases) == list(range(35))


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        sampler = EpochSampler(torch.arange(35) % 3, 3, Recipe(batch_size=5), seed=seed)
        sampler.epoch = epoch
        return list(sampler)

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3) and order(1, 2) != order(2, 2)


def test_processes_share_every_batch_out_without_overlap():
    labels = torch.arange(40) % 2
    alone = list(EpochSampler(labels, 2, Recipe(batch_size=10), seed=0))
    shared = [list(EpochSampler(labels, 2, Recipe(batch_size=10), seed=0, rank=rank, world=2))
              for rank in (0, 1)]
    for (_, whole), (_, one), (_, two) in zip(alone, *shared, strict=True):
        assert len(one) == len(two) == 5 and sorted(one + two) == sorted(whole)


@pytest.mark.parametrize("balance", [0, .5, 1])
def test_evened_classes_do_not_bend_the_probabilities(tmp_path, balance):
    train = Points(4000, 5)
    recipe = Recipe(epochs=12, batch_size=100, learning_rate=1e-2, balance=balance, patience=50, ema=.9)
    loop = a_loop(tmp_path, network=a_network(0), training=train, labels=train.labels, recipe=recipe)
    network = a_network(0)
    network.load_state_dict(loop.train().best)
    with torch.no_grad():
        mean = network.eval()(train.points).softmax(1)[:, 1].mean().item()
    assert mean == pytest.approx(train.labels.float().mean().item(), abs=.02)


def test_the_average_follows_the_weights_and_copies_the_buffers():
    network = a_network()
    average = RunningAverage(network, .5)
    before = average.twin[0].weight.clone()
    with torch.no_grad():
        network[0].weight += 1
        network[1].running_mean += 3
    average.update(network, step=1000)
    assert torch.allclose(average.twin[0].weight, before + .5, atol=1e-6)
    assert torch.equal(average.twin[1].running_mean, network[1].running_mean)


def test_the_average_of_the_first_steps_is_young():
    network = a_network()
    average = RunningAverage(network, .999)
    with torch.no_grad():
        network[0].bias += 1
    average.update(network, step=1)
    assert torch.allclose(average.twin[0].bias, network[0].bias - .1, atol=1e-6)


def test_training_lowers_the_loss_and_gives_the_best_epoch(tmp_path):
    outcome = a_loop(tmp_path).train()
    likelihoods = [entry["validation_nll"] for entry in outcome.history]
    assert [entry["epoch"] for entry in outcome.history] == [1, 2, 3, 4, 5, 6]
    assert likelihoods[outcome.best_epoch - 1] == min(likelihoods) < likelihoods[0]


def test_the_same_seed_gives_the_same_network_and_another_seed_another(tmp_path):
    one = a_loop(tmp_path / "a").train()
    torch.rand(7)  # the world's random numbers do not matter
    assert same(one, a_loop(tmp_path / "b").train())
    assert not same(one, a_loop(tmp_path / "c", seed=1).train())


def test_norms_and_biases_have_no_weight_decay_and_trunks_their_own_rate(tmp_path):
    network = a_network()
    loop = a_loop(tmp_path, network=network, trunk=frozenset(map(id, network[0].parameters())),
                  recipe=Recipe(learning_rate=1e-3, trunk_learning_rate=1e-5))
    found = {id(parameter): (group["lr"], group.get("weight_decay")) for group in loop._parameter_groups()
             for parameter in group["params"]}
    assert found[id(network[0].weight)] == (1e-5, None) and found[id(network[0].bias)] == (1e-5, 0.0)
    assert found[id(network[1].weight)] == (1e-3, 0.0) and found[id(network[4].weight)] == (1e-3, None)


def test_it_stops_early_when_validation_does_not_improve(tmp_path):
    recipe = Recipe(epochs=40, batch_size=16, learning_rate=.3, patience=2)
    outcome = a_loop(tmp_path, recipe=recipe).train()
    assert len(outcome.history) == outcome.best_epoch + 2 < 40


@pytest.mark.parametrize("step", [1, 30, 54])
def test_a_stopped_training_goes_on_to_the_same_end(tmp_path, step):
    whole = a_loop(tmp_path / "whole").train()
    asked = []
    with pytest.raises(TrainStopped, match="stopped as asked in epoch"):
        a_loop(tmp_path / "cut", stop=lambda: asked.append(0) or len(asked) == step).train()
    assert same(a_loop(tmp_path / "cut").train(), whole)


def test_a_training_killed_after_its_early_stop_does_not_train_on(tmp_path):
    recipe = Recipe(epochs=40, batch_size=16, learning_rate=.3, patience=2)
    whole = a_loop(tmp_path, recipe=recipe).train()
    told = []
    again = a_loop(tmp_path, recipe=recipe, learned=lambda history: told.append(list(history))).train()
    assert same(again, whole) and told == [list(whole.history)]     # the epochs of before are told, too


def test_another_run_s_checkpoint_is_not_used(tmp_path):
    a_loop(tmp_path).train()
    other = a_loop(tmp_path, run="two", seed=4).train()
    assert same(other, a_loop(tmp_path / "fresh", seed=4).train())


def killed_at(folder, step):
    steps = []

    def stop():
        steps.append(0)
        if len(steps) == step:
            os.kill(os.getpid(), 9)
        return False

    a_loop(folder, stop=stop).train()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_a_process_killed_again_and_again_ends_where_an_undisturbed_one_does(tmp_path):
    whole = a_loop(tmp_path / "whole").train()
    for step in (25, 3, 40):
        victim = multiprocessing.get_context("fork").Process(target=killed_at, args=(tmp_path / "cut", step))
        victim.start()
        victim.join(60)
        assert victim.exitcode == -9
    assert same(a_loop(tmp_path / "cut").train(), whole)


def test_a_loss_that_is_not_a_number_ends_the_training(tmp_path):
    train = Points(300, 1)
    train.points[7] = float("nan")
    with pytest.raises(TrainError, match="need a finite loss"):
        a_loop(tmp_path, training=train).train()


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(Checkpoint({"a": torch.ones(3)}, {"epoch": 1}), path, run="one")
    assert load_checkpoint(path, run="one").document == {"epoch": 1}
    assert load_checkpoint(path, run="two") is None
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(TrainError, match="Delete it to begin anew"):
        load_checkpoint(path, run="one")


def one_of_two(rank, port, folder, answers):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    outcome = a_loop(folder).train()
    answers.put((rank, outcome.history, {name: tensor.tolist() for name, tensor in outcome.best.items()}))
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
def test_two_processes_train_one_network_and_agree_on_every_epoch(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
    answers = context.Queue()
    both = [context.Process(target=one_of_two, args=(rank, port, tmp_path, answers)) for rank in (0, 1)]
    for process in both:
        process.start()
    (_, history, best), (_, other_history, other_best) = sorted(answers.get(timeout=120) for _ in both)
    for process in both:
        process.join(60)
    nll, other = ([entry["validation_nll"] for entry in each] for each in (history, other_history))
    assert nll == pytest.approx(other) and len(nll) == 6
    assert all(best[name] == other_best[name] for name in best if "num_batches" not in name)
    assert min(nll) < nll[0]

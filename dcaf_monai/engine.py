"""The loop of a training: MONAI's trainer and evaluator, and what `Recipe` asks of them.

Recipe after common practice for fine-tuning (AdamW, cosine with warm-up, running average of the
weights, plain cross-entropy). Class imbalance is met without bending probabilities: batches are
drawn with mildly evened class shares, and the log of the share a class was given over the share it
has is added to its logit inside the loss only (Menon et al. 2021, "logit adjustment", used here in
the direction that keeps the data's own prior). What the network itself then says are probabilities
at the prevalence of the training data.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping
from ignite.metrics import Loss
from monai.engines import IterationEvents, SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, ValidationHandler
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, Sampler

from dcaf_monai.checkpoint import (
    Checkpoint,
    TrainError,
    load_checkpoint,
    named,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
    unnamed,
)
from dcaf_monai.processes import agreed, process_place

Notify = Callable[[str, int, int, str], None]
Learned = Callable[[Sequence[Mapping[str, float]]], None]
"""Told every epoch so far, ``{"epoch", "train_loss", "validation_nll"}`` each, after each of them."""


class TrainStopped(TrainError):
    """The caller asked to stop; the last whole epoch is kept, and the same call goes on from there."""


class Recipe(BaseModel):
    """How a network is trained.

    Args:
        epochs: At most so many.
        batch_size: Cases a step, over all processes.
        learning_rate: Peak, of new layers.
        trunk_learning_rate: Peak, of pretrained trunks.
        weight_decay: Of weights; norms and biases have none.
        warmup: Share of all steps during which the rate rises.
        ema: Largest decay of the running average; it starts lower, so that short trainings have one too.
        clip: Largest norm of the gradient.
        balance: 0 draws classes as often as they are, 1 equally often.
        patience: Epochs without a better validation NLL before it stops.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    epochs: int = Field(default=30, ge=1)
    batch_size: int = Field(default=32, ge=2)
    learning_rate: float = Field(default=5e-4, gt=0)
    trunk_learning_rate: float = Field(default=1e-4, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    ema: float = Field(default=0.999, ge=0, lt=1)
    clip: float = Field(default=1.0, gt=0)
    balance: float = Field(default=0.5, ge=0, le=1)
    patience: int = Field(default=8, ge=1)


FROM_SCRATCH = Recipe(learning_rate=3e-3, trunk_learning_rate=3e-3, patience=20)
"""For a network of which nothing is pretrained: there is nothing to protect, and the validation NLL
stays at that of a coin for many epochs before it falls."""


@dataclass(frozen=True)
class Outcome:
    """What a finished loop leaves: the best running average, and how it went.

    Args:
        best: State of the network with the smallest validation NLL.
        best_epoch: Its epoch, from 1.
        history: One ``{"epoch", "train_loss", "validation_nll"}`` an epoch.
    """

    best: dict[str, torch.Tensor]
    best_epoch: int
    history: tuple[dict[str, float], ...]


class EpochSampler(Sampler[tuple[int, list[int]]]):
    """Batches ``(epoch, case numbers)`` that depend on (seed, epoch) alone; each process takes its share.

    Every class gets a whole-number quota, its cases taken in turn from a shuffled deck, so that the
    shares given are exact and known.

    Args:
        labels: ``(cases,)`` class indices.
        classes: Number of classes.
        recipe: Its ``balance`` and ``batch_size``.
        seed: Of the shuffles.
        rank, world: Which process of how many.

    Attributes:
        adjustment: ``(classes,)`` log of the share given over the share a class has.
    """

    def __init__(self, labels: torch.Tensor, classes: int, recipe: Recipe, *, seed: int, rank: int = 0,
                 world: int = 1) -> None:
        self.seed, self.epoch, self.rank, self.world = seed, 0, rank, world
        self.members = [torch.nonzero(labels == index)[:, 0] for index in range(classes)]
        counts = torch.tensor([len(members) for members in self.members], dtype=torch.float64)
        evened = counts ** (1 - recipe.balance) * (counts > 0)
        self.quotas = (evened / evened.sum() * len(labels)).round().clamp(min=1).long() * (counts > 0)
        self.adjustment = torch.where(counts > 0, torch.log(self.quotas / self.quotas.sum())
                                      - torch.log(counts / counts.sum()), 0.0).float()
        self.batch_size = max(1, min(recipe.batch_size, int(self.quotas.sum())) // world)

    def __len__(self) -> int:
        return int(self.quotas.sum()) // (self.batch_size * self.world)

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        drawn = []
        for members, quota in zip(self.members, self.quotas.tolist(), strict=True):
            while quota > 0:
                deck = members[torch.randperm(len(members), generator=generator)][:quota]
                drawn.append(deck)
                quota -= len(deck)
        cases = torch.cat(drawn)
        cases = cases[torch.randperm(len(cases), generator=generator)]
        step = self.batch_size * self.world
        for start in range(0, len(self) * step, step):
            yield self.epoch, cases[start + self.rank:start + step:self.world].tolist()


class RunningAverage:
    """Exponential average of a network's weights in a twin; buffers are copied."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.twin = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take in the weights after step number ``step``, from 1."""
        decay = min(self.decay, step / (step + 9))
        pairs = zip(self.twin.parameters(), network.parameters(), strict=True)
        own: list[torch.Tensor] = []
        new: list[torch.Tensor] = []
        for mine, learnt in pairs:
            if learnt.requires_grad:
                own.append(mine)
                new.append(learnt.detach())
        torch._foreach_lerp_(own, new, 1 - decay)
        for buffer, other in zip(self.twin.buffers(), network.buffers(), strict=True):
            buffer.copy_(other)


@dataclass
class Loop:
    """A training of one network, from its first or its last whole epoch to the end.

    Args:
        network: Maps one batch of ``data`` to logits; trained in place.
        training: ``dataset[epoch, case numbers]`` gives (network input, labels).
        labels: ``(cases,)`` labels of ``training``.
        validation: Batches of (network input, labels) with the same network input.
        classes: Number of classes.
        recipe: How.
        trunk: Ids of the parameters that learn at the trunk's rate.
        seed: Of order, augmentation and dropout.
        device: Where.
        checkpoint: File of the state between epochs.
        run: Fingerprint of everything that decides the result; another run's checkpoint is not used.
        notify: Told of every epoch.
        stop: Asked after every step; True stops.
        workers: Processes that prepare batches.
    """

    network: nn.Module
    training: Dataset
    labels: torch.Tensor
    validation: DataLoader
    classes: int
    recipe: Recipe
    checkpoint: Path
    run: str
    trunk: frozenset[int] = frozenset()
    seed: int = 0
    device: torch.device = torch.device("cpu")
    notify: Notify | None = None
    learned: Learned | None = None
    stop: Callable[[], bool] | None = None
    workers: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    best_epoch: int = 0

    def train(self, *, resume: bool = True) -> Outcome:
        """Run to the end and give the best state.

        Raises:
            TrainStopped: When ``stop`` said so.
            TrainError: When the loss is not a number, or a checkpoint is damaged.
        """
        rank, world = process_place()
        recipe = self.recipe
        self.network.to(self.device)
        sampler = EpochSampler(self.labels, self.classes, recipe, seed=self.seed, rank=rank, world=world)
        if not len(sampler):
            raise TrainError(f"training: need at least {world} cases for {world} processes, got fewer.")
        loader = DataLoader(self.training, sampler=sampler, batch_size=None, num_workers=self.workers,
                            pin_memory=self.device.type == "cuda")
        adjustment = sampler.adjustment.to(self.device)
        optimizer = torch.optim.AdamW(self._parameter_groups(), weight_decay=recipe.weight_decay, fused=True)
        steps = recipe.epochs * len(sampler)
        schedule = LambdaLR(optimizer, lambda step: rate_factor(step, steps, recipe.warmup))
        average = RunningAverage(self.network, recipe.ema)
        kept = load_checkpoint(self.checkpoint, run=self.run) if resume else None

        learner = self.network
        if world > 1:
            learner = DistributedDataParallel(self.network, device_ids=[self.device.index]
                                              if self.device.type == "cuda" else None)
        evaluator = SupervisedEvaluator(
            device=self.device, val_data_loader=self.validation, network=average.twin, decollate=False,
            prepare_batch=to_device, amp=self.device.type == "cuda",
            key_val_metric={"nll": Loss(nn.functional.cross_entropy, output_transform=lambda output: (
                output["pred"].float(), output["label"]))})
        trainer = SupervisedTrainer(
            device=self.device, max_epochs=recipe.epochs, train_data_loader=loader, epoch_length=len(sampler),
            network=learner, optimizer=optimizer, decollate=False, prepare_batch=to_device,
            loss_function=lambda logits, labels: nn.functional.cross_entropy(
                logits.float() + adjustment, labels),
            amp=self.device.type == "cuda", optim_set_to_none=True,
            train_handlers=[LrScheduleHandler(schedule, print_lr=False, epoch_level=False)])  # type: ignore
        early = EarlyStopping(recipe.patience, lambda engine: -engine.state.metrics["nll"], trainer)
        for told in (early, trainer, evaluator):
            told.logger.setLevel(logging.CRITICAL)  # ``notify`` and exceptions tell what there is to tell
        self._attach(trainer, evaluator, sampler, optimizer, average, early, rank)
        if kept:
            self._restore(kept, trainer, schedule, optimizer, average, early)
        if trainer.state.epoch < recipe.epochs and not (kept and kept.document["finished"]):
            trainer.run()
        return Outcome(self.best, self.best_epoch, tuple(self.history))

    def _attach(self, trainer: SupervisedTrainer, evaluator: SupervisedEvaluator, sampler: EpochSampler,
                optimizer: torch.optim.Optimizer, average: RunningAverage, early: EarlyStopping,
                rank: int) -> None:
        """Everything that happens around the steps, in the order in which it happens."""
        losses: list[torch.Tensor] = []

        @trainer.on(Events.EPOCH_STARTED)
        def choose_cases(engine: Engine) -> None:
            sampler.epoch = engine.state.epoch
            losses.clear()

        @trainer.on(Events.ITERATION_STARTED)
        def make_step_repeatable(engine: Engine) -> None:
            torch.manual_seed((self.seed * 1_000_003 + engine.state.iteration) * 64 + rank)

        @trainer.on(IterationEvents.BACKWARD_COMPLETED)
        def clip(engine: Any) -> None:
            if engine.scaler is not None:
                engine.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)

        @trainer.on(Events.ITERATION_COMPLETED)
        def take_in(engine: Engine) -> None:
            average.update(self.network, engine.state.iteration)
            losses.append(engine.state.output["loss"].detach())  # type: ignore[index,call-overload]
            if agreed(self.stop is not None and self.stop(), self.device):
                raise TrainStopped(f"training: stopped as asked in epoch {engine.state.epoch}. "
                                   "Start it again to go on.")

        @trainer.on(Events.EPOCH_COMPLETED)
        def share_statistics(engine: Engine) -> None:
            for buffer in average.twin.buffers():  # each process saw other cases; all must judge alike
                if process_place()[1] > 1:
                    dist.broadcast(buffer, 0)

        evaluator.add_event_handler(Events.COMPLETED, early)
        ValidationHandler(interval=1, validator=evaluator).attach(trainer)

        @trainer.on(Events.EPOCH_COMPLETED)
        def keep(engine: Engine) -> None:
            loss, nll = float(torch.stack(losses).mean()), float(evaluator.state.metrics["nll"])
            if not (math.isfinite(loss) and math.isfinite(nll)):
                raise TrainError(f"training: need a finite loss, got {loss} in epoch {engine.state.epoch}. "
                                 "Lower the learning rate.")
            if not self.history or nll < min(entry["validation_nll"] for entry in self.history):
                self.best = {name: tensor.detach().cpu().clone()
                             for name, tensor in average.twin.state_dict().items()}
                self.best_epoch = engine.state.epoch
            self.history.append({"epoch": engine.state.epoch, "train_loss": loss, "validation_nll": nll})
            if rank == 0:
                self._save(engine, optimizer, average, early)
            if self.learned:
                self.learned(self.history)
            if self.notify:
                self.notify("train", engine.state.epoch, self.recipe.epochs, f"validation NLL {nll:.4f}")

    def _save(self, engine: Engine, optimizer: torch.optim.Optimizer, average: RunningAverage,
              early: EarlyStopping) -> None:
        tensors = {**named("network", self.network.state_dict()), **named("best", self.best),
                   **named("average", average.twin.state_dict()), **optimizer_tensors(optimizer)}
        document = {"epoch": engine.state.epoch, "best_epoch": self.best_epoch, "history": self.history,
                    "early": dict(early.state_dict()), "finished": engine.should_terminate is not False}
        save_checkpoint(Checkpoint(tensors, document), self.checkpoint, run=self.run)

    def _restore(self, kept: Checkpoint, trainer: SupervisedTrainer, schedule: LambdaLR,
                 optimizer: torch.optim.Optimizer, average: RunningAverage, early: EarlyStopping) -> None:
        self.network.load_state_dict(unnamed("network", kept.tensors))
        average.twin.load_state_dict(unnamed("average", kept.tensors))
        restore_optimizer(optimizer, kept.tensors)
        early.load_state_dict(kept.document["early"])
        self.best, self.best_epoch = unnamed("best", kept.tensors), kept.document["best_epoch"]
        self.history = list(kept.document["history"])
        if self.learned:
            self.learned(self.history)
        trainer.state.epoch = kept.document["epoch"]
        trainer.state.iteration = trainer.state.epoch * trainer.state.epoch_length
        schedule.last_epoch = trainer.state.iteration
        for group, peak in zip(optimizer.param_groups, schedule.base_lrs, strict=True):
            group["lr"] = peak * schedule.lr_lambdas[0](trainer.state.iteration)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Two rates, each with and without weight decay."""
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for parameter in self.network.parameters():
            if parameter.requires_grad:
                groups.setdefault((id(parameter) in self.trunk, parameter.ndim > 1), []).append(parameter)
        rates = {True: self.recipe.trunk_learning_rate, False: self.recipe.learning_rate}
        return [{"params": parameters, "lr": rates[of_trunk], **({} if decays else {"weight_decay": 0.0})}
                for (of_trunk, decays), parameters in sorted(groups.items())]


def rate_factor(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate at a step: a straight rise, then half a cosine down to zero."""
    rising = max(1, round(steps * warmup))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1, steps - rising))))


def to_device(batch: Any, device: torch.device, non_blocking: bool = False,
              **_: Any) -> tuple[Any, torch.Tensor]:
    """A batch (input, labels) on a device; the input is a tensor or several."""
    inputs, labels = batch
    moved = inputs.to(device, non_blocking=non_blocking) if isinstance(inputs, torch.Tensor) \
        else tuple(part.to(device, non_blocking=non_blocking) for part in inputs)
    return moved, labels.to(device, non_blocking=non_blocking)

"""`fit`: from a cohort to a calibrated, judged and, if it is better, published model.

Two modes. ``frozen`` keeps the trunks as they are, computes their features once per image and trains
fusion and head on the cached features. ``full`` trains everything on augmented images. The
validation split chooses the epoch, fits the cut-offs and is the gate's measure; one half of its patients fits
the temperature, the other calibrates the conformal sets. The test split is never opened here.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import monai
import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Dataset

from dcaf_monai import metrics
from dcaf_monai.appraise import (
    Source,
    heat_scales,
    mean_probs,
    negative_log_likelihood,
    pooled_vectors,
    sampled_logits,
    trunk_source,
)
from dcaf_monai.batches import FusionAndHead, OnFeatures, OnInputs
from dcaf_monai.calibration import Criterion, fit_operating_points, fit_temperature
from dcaf_monai.checkpoint import TrainError
from dcaf_monai.cohort import Case, Cohort
from dcaf_monai.conformal import digests, fit_conformal, validation_roles
from dcaf_monai.drift import FEWEST, Reference, fit_reference
from dcaf_monai.engine import (
    FROM_SCRATCH,
    Learned,
    Loop,
    Notify,
    Outcome,
    Recipe,
    TrainStopped,
)
from dcaf_monai.features import CachedFeatures, CacheError, Inputs, feature_cache, input_cache
from dcaf_monai.model import Model, ModelError, load_model, new_version, weights_sha256
from dcaf_monai.network import DualCrossAttentionFusion
from dcaf_monai.processes import join_processes, peak_memory_mib, process_place, torch_device
from dcaf_monai.publish import Verdict, publish
from dcaf_monai.rounds import record_round
from dcaf_monai.transforms import Preprocessing, training_augmentation

__all__ = ["FROZEN_POOL", "FitResult", "Recipe", "TrainError", "TrainStopped", "fit", "origin_of",
           "work_folder"]

Mode = Literal["frozen", "full"]
FEW = 30
"""Fewer cases than this and a cut-off is remarked upon."""
FROZEN_POOL = 2
"""Frozen trunks' maps are averaged over squares of this side: a fifth of the work, a quarter of the cache."""


@dataclass(frozen=True)
class FitResult:
    """What a training gives.

    Args:
        model: The candidate, whether published or not.
        verdict: What the gate said.
        history: ``{"epoch", "train_loss", "validation_nll"}`` of every epoch.
        minutes: From start to verdict.
        peak_memory_mib: Of this process.
    """

    model: Model
    verdict: Verdict
    history: tuple[dict[str, float], ...]
    minutes: float
    peak_memory_mib: float


def work_folder(out: Path) -> Path:
    """Where the training of a model file keeps caches and its checkpoint."""
    return Path(out).parent / f"{Path(out).stem}.training"


def fit(cohort: Cohort, *, out: Path, mode: Mode = "frozen",
        backbones: tuple[str, str] = ("efficientnet_b4", "resnet34"),
        weights: str | tuple[str | Path, str | Path] = "pretrained",
        shape: Mapping[str, Any] | None = None, preprocessing: Preprocessing | None = None,
        recipe: Recipe | None = None, epochs: int | None = None, batch_size: int | None = None,
        samples: int = 50, seed: int = 0, device: str = "cpu", cache: Path | None = None,
        criterion: Criterion = "sensitivity", target: float = 0.9, resume: bool = True,
        init_from: Model | None = None, progress: Notify | None = None, learned: Learned | None = None,
        stop: Callable[[], bool] | None = None) -> FitResult:
    """Train, calibrate, judge, and publish if better. The same call after a kill goes on where it was.

    Under ``torchrun`` every process calls this; the first one writes.

    Args:
        cohort: Whose training split teaches and whose validation split judges: half of its patients choose
            the epoch, fit the temperature and decide at the gate, the others calibrate conformal sets
            and have no say in anything before.
        out: The published model file; versions and working files stand beside it.
        mode: ``frozen`` or ``full``.
        backbones: Two timm names.
        weights: Of the trunks: ``"pretrained"``, ``"none"`` or two local files.
        shape: Other fields of `NetworkConfig`, such as width or dropout. ``pool`` is `FROZEN_POOL` in
            frozen mode and 1 in full mode unless given.
        preprocessing: How an image becomes an input.
        recipe: How to train; by default `Recipe`, or `FROM_SCRATCH` in full mode without any
            pretrained weights.
        epochs: Overrides the recipe's.
        batch_size: Overrides the recipe's.
        samples: Dropout masks of the model.
        seed: Of initial weights, order, augmentation, dropout and the model's masks.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        cache: Folder of inputs and features; by default in `work_folder`. Trainings may share one.
        criterion: What the operating points hold ...
        target: ... and how much of it.
        resume: Whether to go on from a checkpoint of the same training.
        init_from: Start from this model's weights, network and preprocessing; ``backbones``,
            ``weights``, ``shape`` and ``preprocessing`` are then not used.
        progress: Told (stage, done, total, note); stages are read, features, train and check.
        learned: Told the history so far (see `FitResult`) after every epoch, before ``progress`` is, and
            when training goes on from a checkpoint.
        stop: Asked after every step; True ends the training with `TrainStopped`.

    Raises:
        ValueError: For settings that do not fit.
        WeightsError: When the trunk weights cannot be had.
        TrainError: When too few images can be read, the disk is too small, the loss is not a number,
            or the place of publication holds something else.
        TrainStopped: When ``stop`` said so; the last whole epoch is kept.
    """
    started = time.monotonic()
    out = Path(out)
    if mode not in ("frozen", "full"):
        raise ValueError(f"mode: need frozen or full, got {mode!r}.")
    if samples < 2:
        raise ValueError(f"samples: need at least 2 dropout masks, got {samples}.")
    changes = {"epochs": epochs, "batch_size": batch_size}
    scratch = init_from is None and weights == "none" and mode == "full"
    recipe = Recipe.model_validate((recipe or (FROM_SCRATCH if scratch else Recipe())).model_dump() | {
        key: value for key, value in changes.items() if value is not None})
    joined = join_processes(device)
    notify = progress if progress and process_place()[0] == 0 else _silent
    try:
        _require_free_place(out, cohort)
        job = _Job(cohort, out, mode, recipe, seed, torch_device(device),
                   cache or work_folder(out) / "cache", notify)
        coarse = {"pool": FROZEN_POOL} if mode == "frozen" else {}
        network = _start(init_from, cohort, backbones, weights, {**coarse, **(shape or {})}, seed)
        job.read(init_from.preprocessing if init_from else preprocessing or Preprocessing())
        outcome = job.train(network, resume=resume, stop=stop,
                            learned=learned if process_place()[0] == 0 else None)
        model = job.calibrate(network, outcome, samples=samples, criterion=criterion, target=target,
                              weights=weights, init_from=init_from, started=started)
        verdict = job.judge(model)
    except (CacheError, ModelError) as error:
        raise TrainError(str(error)) from error
    finally:
        if joined:
            dist.destroy_process_group()
    return FitResult(model, verdict, outcome.history, (time.monotonic() - started) / 60, peak_memory_mib())


@dataclass
class _Job:
    """One call of `fit`, step by step."""

    cohort: Cohort
    out: Path
    mode: Mode
    recipe: Recipe
    seed: int
    device: torch.device
    cache: Path
    notify: Notify

    def read(self, preprocessing: Preprocessing) -> None:
        """Inputs of the training and validation cases, those that can be read."""
        self.preprocessing = preprocessing
        cases = (*self.cohort.split("train"), *self.cohort.split("val"))
        self.inputs = self._inputs(cases, preprocessing)
        read = self.inputs.cases
        self.labels = np.array([self.cohort.task.class_index(case.label) for case in read], np.int64)
        self.training = np.flatnonzero([case.split == "train" for case in read])
        self.validation = np.flatnonzero([case.split == "val" for case in read])
        for name, part in (("training", self.training), ("validation", self.validation)):
            lost = sorted(set(self.cohort.task.classes) - {read[index].label for index in part})
            if lost:
                refused = self.inputs.refused
                raise TrainError(f"{name} split: need readable images of every class, got none of "
                                 f"{', '.join(lost)}; {len(refused)} files cannot be read. The first: "
                                 f"{refused[0][1]}")
        self.groups = [read[index].group for index in self.validation]
        self.fits, self.calibrates = validation_roles(self.groups, self.labels[self.validation])

    def train(self, network: DualCrossAttentionFusion, *, resume: bool, learned: Learned | None,
              stop: Callable[[], bool] | None) -> Outcome:
        """Train in place; afterwards the network holds the best state and is in eval mode."""
        run, choosing = self._fingerprint(network), self.validation[self.fits]
        learner: nn.Module
        if self.mode == "frozen":
            network.freeze_trunks()
            cached = self._features(self.inputs, network)
            learner = FusionAndHead(network)
            data: Dataset = OnFeatures(cached, self.labels, self.training)
            held: Dataset = OnFeatures(cached, self.labels, choosing)
        else:
            learner = network
            data = OnInputs(self.inputs, self.labels, self.training,
                             training_augmentation(self.cohort.task, self.seed), self.seed)
            held = OnInputs(self.inputs, self.labels, choosing)
        trunk = {id(parameter) for part in (network.first, network.second) for parameter in part.parameters()}
        size = self.recipe.batch_size
        batches = [(0, list(range(start, min(start + size, len(choosing)))))
                   for start in range(0, len(choosing), size)]
        loop = Loop(learner, data, torch.from_numpy(self.labels[self.training]),
                    DataLoader(held, sampler=batches, batch_size=None), len(self.cohort.task.classes),
                    self.recipe, self._checkpoint, run, trunk=frozenset(trunk), seed=self.seed,
                    device=self.device, notify=self.notify, learned=learned, stop=stop,
                    workers=2 if self.mode == "full" and self.device.type == "cuda" else 0)
        outcome = loop.train(resume=resume)
        network.load_state_dict({**network.state_dict(), **outcome.best})
        network.to(self.device).eval().requires_grad_(False)
        self.source: Source = trunk_source(network, self.inputs, self.device)
        if self.mode == "frozen":
            self.source = lambda cases: cached.features(cases, self.device)
        return outcome

    def calibrate(self, network: DualCrossAttentionFusion, outcome: Outcome, *, samples: int,
                  criterion: Criterion, target: float, weights: str | tuple[str | Path, str | Path],
                  init_from: Model | None, started: float) -> Model:
        """The model: temperature, cut-offs, heat scales and figures from the validation split."""
        classes, labels = self.cohort.task.classes, self.labels[self.validation]
        self.notify("check", 0, 2, "calibration")
        pooled = pooled_vectors(network, self.source, self.validation)
        logits = sampled_logits(network, pooled, samples=samples, seed=self.seed)
        groups, fits, calibrates = self.groups, self.fits, self.calibrates
        temperature = fit_temperature(logits[:, fits], torch.from_numpy(labels[fits]))
        self.probs = probs = mean_probs(logits, temperature)
        sets = None
        if len(calibrates):
            sets = fit_conformal(probs[calibrates], labels[calibrates], [groups[case] for case in calibrates],
                                 classes, fit_groups=[groups[case] for case in fits])
        points = fit_operating_points(probs, labels, classes, criterion=criterion, target=target)
        self.notify("check", 1, 2, "heat scales")
        scales = heat_scales(network, self.source, self.validation, size=self.preprocessing.size)
        remarks = [f"{name}: its {criterion} cut-off rests on {point.n} cases."
                   for name, point in points.items() if point.n < FEW]
        remarks += [f"{name}: no cut-off reaches a {criterion} of {target} on validation."
                    for name in classes if name not in points]
        if self.inputs.refused:
            remarks.append(f"{len(self.inputs.refused)} files could not be read and were left out.")
        remarks += [notice.message for notice in (*self.cohort.notices, *(sets.notices() if sets else ()))]
        self.notify("check", 2, 2, "done")
        met = init_from.provenance.get("training_patients", ()) if init_from else ()
        provenance = {
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"), "mode": self.mode,
            "seed": self.seed, "weights": "" if init_from else origin_of(weights),
            "init_from": init_from.version if init_from else "",
            "cohort_sha256": self.cohort.sha256, "validation_sha256": self.cohort.validation_sha256,
            "training_patients": sorted({*met, *digests(self.inputs.cases[index].group
                                                        for index in self.training)}),
            "counts": self.cohort.counts, "recipe": self.recipe.model_dump(mode="json"),
            "epochs": len(outcome.history), "best_epoch": outcome.best_epoch,
            "minutes": round((time.monotonic() - started) / 60, 2),
            "validation_nll": negative_log_likelihood(probs[fits], labels[fits]),
            "validation_nll_cases": len(fits),
            "validation": metrics.report(probs, labels, groups, classes, seed=self.seed),
            "versions": {"python": platform.python_version(), "torch": torch.__version__,
                         "monai": monai.__version__}, "remarks": remarks}
        return Model(network.cpu(), self.cohort.task, self.preprocessing, version=new_version(network),
                     samples=samples, seed=self.seed, temperature=temperature, operating_points=points,
                     heat_scales=scales, conformal=sets, drift=self._reference(network, pooled),
                     provenance=provenance)

    def _reference(self, network: DualCrossAttentionFusion, held_out: torch.Tensor) -> Reference | None:
        """What ordinary features look like; None when there are too few training cases to tell.

        ``held_out`` are the pooled vectors of the validation cases.
        """
        if len(self.training) < FEWEST:
            return None
        return fit_reference(pooled_vectors(network, self.source, self.training).cpu(), held_out.cpu())

    def judge(self, model: Model) -> Verdict:
        """The gate; the first process decides and the others hear it."""
        nll, verdict = model.provenance["validation_nll"], None
        rank, world = process_place()
        if rank == 0:
            verdict = publish(model, self.out, candidate_nll=nll, published_nll=self._standing_nll)
            record_round(self.out, model, probs=self.probs, published=verdict.published,
                         cases=[self.inputs.cases[index] for index in self.validation])
            self._checkpoint.unlink(missing_ok=True)
        if world == 1 and verdict:
            return verdict
        said = (float(verdict.published), verdict.published_nll or 0.0) if verdict else (0.0, 0.0)
        heard = torch.tensor(said, dtype=torch.float64, device=self.device)
        dist.broadcast(heard, 0)
        return verdict or Verdict(bool(heard[0]), "Decided by the first process.", nll,
                                  float(heard[1]) or None)

    def _standing_nll(self, standing: Model) -> float:
        """NLL of the model in place on the cases that choose: recorded for the same ones, or measured."""
        recorded = standing.provenance.get("validation_nll")
        if recorded is not None and not self.inputs.refused and \
                standing.provenance.get("validation_nll_cases") == len(self.fits) and \
                standing.provenance.get("validation_sha256") == self.cohort.validation_sha256:
            return float(recorded)
        choosing = self.validation[self.fits]
        cases = [self.inputs.cases[index] for index in choosing]
        inputs = self._inputs(tuple(cases), standing.preprocessing)
        network = standing.network.to(self.device)
        pooled = pooled_vectors(network, trunk_source(network, inputs, self.device), np.arange(len(cases)))
        logits = sampled_logits(network, pooled, samples=standing.samples, seed=standing.seed)
        return negative_log_likelihood(mean_probs(logits, standing.temperature), self.labels[choosing])

    @property
    def _checkpoint(self) -> Path:
        return work_folder(self.out) / "checkpoint.safetensors"

    def _inputs(self, cases: tuple[Case, ...], preprocessing: Preprocessing) -> Inputs:
        return input_cache(cases, preprocessing, self.cache,
                           progress=lambda done, total: self.notify("read", done, total, ""))

    def _features(self, inputs: Inputs, network: DualCrossAttentionFusion) -> CachedFeatures:
        return feature_cache(inputs, network, self.cache, device=self.device,
                             progress=lambda done, total: self.notify("features", done, total, ""))

    def _fingerprint(self, network: DualCrossAttentionFusion) -> str:
        """Digest of everything that decides the result of the loop."""
        decides = [self.cohort.sha256, self.inputs.keys, self.mode, self.recipe.model_dump(),
                   self.preprocessing.model_dump(), network.config.model_dump(),
                   weights_sha256(network.state_dict()), self.seed, process_place()[1], self.device.type]
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


def _start(init_from: Model | None, cohort: Cohort, backbones: tuple[str, str], weights: Any,
           shape: Mapping[str, Any], seed: int) -> DualCrossAttentionFusion:
    """The network to train, its last bias at the logs of the class shares: no class starts unheard."""
    classes = cohort.task.classes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if init_from is None:
            network = DualCrossAttentionFusion(len(classes), backbones=backbones, weights=weights, **shape)
            shares = np.bincount(cohort.labels("train"), minlength=len(classes)) / len(cohort.split("train"))
            with torch.no_grad():
                last = network.head[-1]
                assert isinstance(last, nn.Linear)
                last.bias.copy_(torch.from_numpy(np.log(shares)))
            return network
        if init_from.task.classes != classes:
            raise ValueError(f"init_from: need a model of classes {', '.join(classes)}, got one of "
                             f"{', '.join(init_from.task.classes)}.")
        options = init_from.network.config.model_dump()
        network = DualCrossAttentionFusion(options.pop("classes"), weights="none", **options)
        network.load_state_dict(init_from.network.state_dict())
        return network


def origin_of(weights: str | tuple[str | Path, str | Path]) -> str:
    """Where the trunks' first weights came from, in words for the provenance; files with a digest of each."""
    if isinstance(weights, str):
        return weights
    return "; ".join(f"{Path(file).name} sha256 {hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]}"
                     for file in weights)


def _require_free_place(out: Path, cohort: Cohort) -> None:
    """Find out before hours of training that the gate could not judge."""
    if not out.exists():
        return
    standing = load_model(out)
    if standing.task.classes != cohort.task.classes:
        raise TrainError(f"{out.name}: need a model of task {cohort.task.name} or none at all, got one of "
                         f"task {standing.task.name}. Choose another file.")


def _silent(stage: str, done: int, total: int, note: str) -> None:
    """No progress wanted."""

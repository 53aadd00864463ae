"""Other ways to be unsure, on the features of one trained network: what MC-dropout is compared with.

Every way gives logits ``(samples, cases, classes)`` like `uncertainty.sample_logits`, so that one temperature
fit and one set of figures serves them all: the plain softmax (one sample), dropout of the head with fixed
masks (what a model does), dropout of the fused channels as well (one fusion a sample), a last-layer Laplace
approximation (MacKay 1992; the full Gauss-Newton matrix, as the last layer has few weights) and an ensemble
of heads.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from dcaf_monai.appraise import Source
from dcaf_monai.calibration import fit_temperature
from dcaf_monai.network import DualCrossAttentionFusion
from dcaf_monai.uncertainty import dropout_masks, sample_logits

FUSION_DROPOUT = 0.1
"""Share of fused channels dropped beside the head's units by `full_dropout_logits`."""
BATCH = 32
PRIOR_PRECISIONS = tuple(float(value) for value in np.logspace(-2, 6, 17))


@torch.no_grad()
def softmax_logits(head: nn.Sequential, pooled: torch.Tensor) -> torch.Tensor:
    """Logits with dropout off, ``(1, cases, classes)``."""
    return _silent(head)(pooled)[None]


@torch.no_grad()
def head_dropout_logits(head: nn.Sequential, pooled: torch.Tensor, *, samples: int = 50,
                        seed: int = 0) -> torch.Tensor:
    """Logits under the fixed dropout masks of a model, ``(samples, cases, classes)``."""
    return sample_logits(head, pooled, dropout_masks(head, samples=samples, seed=seed))


@torch.no_grad()
def full_dropout_logits(network: DualCrossAttentionFusion, source: Source, cases: np.ndarray, *,
                        samples: int = 50, seed: int = 0) -> torch.Tensor:
    """Logits with dropout of fused channels and of the head, ``(samples, cases, classes)``.

    The network was not trained with dropout in its fusion. Masks are fixed and shared by all cases.
    """
    head_masks = dropout_masks(network.head, samples=samples, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    kept = torch.rand(samples, 2, network.config.fused, generator=generator) >= FUSION_DROPOUT
    channels = kept.float() / (1 - FUSION_DROPOUT)
    found = []
    for start in range(0, len(cases), BATCH):
        features = source(cases[start:start + BATCH])
        rows = []
        for sample in range(samples):
            pooled = network.fuse(features, (channels[sample, 0], channels[sample, 1])).pooled
            one = type(head_masks)(head_masks.places, tuple(v[sample:sample + 1] for v in head_masks.values))
            rows.append(sample_logits(network.head, pooled, one))
        found.append(torch.cat(rows))
    return torch.cat(found, dim=1)


@dataclass(frozen=True)
class Laplace:
    """A Gaussian over the weights of the last linear layer, around what was trained.

    Args:
        head: The trained head; its last layer must be linear.
        covariance: Of the last layer's weights and biases, flattened class by class,
            ``(classes * (units + 1),) * 2``, float64.
        prior_precision: Of the isotropic prior.
    """

    head: nn.Sequential
    covariance: torch.Tensor
    prior_precision: float

    @torch.no_grad()
    def logits(self, pooled: torch.Tensor, *, samples: int = 200, seed: int = 0) -> torch.Tensor:
        """Logits ``(samples, cases, classes)``, drawn from their Gaussian of every case.

        A linear last layer makes the logits of a case exactly Gaussian; all cases share the same draws.
        """
        units = penultimate(self.head, pooled).double()
        mean = _silent(self.head)(pooled).double()
        classes = mean.shape[1]
        blocks = self.covariance.unflatten(0, (classes, -1)).unflatten(2, (classes, -1))
        spread = torch.einsum("nu,aubv,nv->nab", units, blocks, units)
        factor = torch.linalg.cholesky(spread + 1e-9 * torch.eye(classes, dtype=torch.float64))
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(samples, classes, generator=generator, dtype=torch.float64)
        return mean + torch.einsum("nab,sb->sna", factor, noise)


def fit_laplace(head: nn.Sequential, pooled: torch.Tensor, *, prior_precision: float) -> Laplace:
    """Last-layer Laplace approximation of a trained head.

    The Gauss-Newton matrix of the training cross-entropy, ``sum over cases of (diag(p) - p p') x (h h')``,
    plus the prior precision on the diagonal, inverted.

    Args:
        head: Trained.
        pooled: ``(training cases, units)``.
        prior_precision: Of the prior.
    """
    return _laplace(head, *_curvature(head, pooled), prior_precision)


def tune_laplace(head: nn.Sequential, pooled: torch.Tensor,
                 held: tuple[torch.Tensor, torch.Tensor]) -> Laplace:
    """`fit_laplace` with the precision that, with its temperature, has the least NLL on held-out cases.

    The evidence would choose among `PRIOR_PRECISIONS` without held-out cases, but where the training cases
    are separated it prefers a posterior so wide that answers come near chance.

    Args:
        head: Trained.
        pooled: ``(training cases, units)``.
        held: Pooled vectors and class indices of cases that may choose.
    """
    eigenvalues, vectors = _curvature(head, pooled)

    def nll(fitted: Laplace) -> float:
        logits = fitted.logits(held[0])
        log_probs = torch.log_softmax(logits / fit_temperature(logits, held[1]), dim=2)
        return float(F.nll_loss(torch.logsumexp(log_probs, dim=0) - np.log(len(logits)), held[1]))

    return min((_laplace(head, eigenvalues, vectors, precision) for precision in PRIOR_PRECISIONS), key=nll)


def _laplace(head: nn.Sequential, eigenvalues: torch.Tensor, vectors: torch.Tensor,
             prior_precision: float) -> Laplace:
    return Laplace(head, (vectors / (eigenvalues + prior_precision)) @ vectors.T, prior_precision)


@torch.no_grad()
def _curvature(head: nn.Sequential, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues and eigenvectors of the Gauss-Newton matrix of the last layer."""
    if not isinstance(head[-1], nn.Linear):
        raise ValueError(f"head: need a linear last layer, got {type(head[-1]).__name__}.")
    units = penultimate(head, pooled).double()
    probs = _silent(head)(pooled).double().softmax(1)
    curvature = torch.diag_embed(probs) - probs[:, :, None] * probs[:, None, :]
    numbers = probs.shape[1] * units.shape[1]
    matrix = torch.einsum("nab,nu,nv->aubv", curvature, units, units).reshape(numbers, numbers)
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    return eigenvalues.clamp(min=0), vectors


def penultimate(head: nn.Sequential, pooled: torch.Tensor) -> torch.Tensor:
    """What the last layer sees, dropout off, with a 1 for its bias: ``(cases, units + 1)``."""
    units = _silent(head)[:-1](pooled)
    return torch.cat((units, torch.ones(len(units), 1)), dim=1)


def head_ensemble_logits(head: nn.Sequential, training: tuple[torch.Tensor, torch.Tensor],
                         held: tuple[torch.Tensor, torch.Tensor], cases: Sequence[torch.Tensor], *,
                         members: int = 5, epochs: int = 30, seed: int = 0) -> list[torch.Tensor]:
    """Logits of several heads trained afresh on the same pooled vectors, dropout off when they answer.

    Args:
        head: Whose shape they take; its weights are not used.
        training: Pooled vectors and labels to learn from.
        held: The same of cases that may choose; each head keeps its best epoch there.
        cases: Pooled vectors to answer about, any number of sets.
        members: How many heads.
        epochs: At most so many each.
        seed: Of their first weights and order.

    Returns:
        For each of ``cases`` logits ``(members, cases, classes)``.
    """
    found: list[list[torch.Tensor]] = [[] for _ in cases]
    for member in range(members):
        fresh = _trained_head(head, training, held, epochs=epochs, seed=seed * members + member)
        for answers, vectors in zip(found, cases, strict=True):
            answers.append(softmax_logits(fresh, vectors)[0])
    return [torch.stack(answers) for answers in found]


def _trained_head(head: nn.Sequential, training: tuple[torch.Tensor, torch.Tensor],
                  held: tuple[torch.Tensor, torch.Tensor], *, epochs: int, seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = copy.deepcopy(head).requires_grad_(True)
        for layer in fresh:
            if isinstance(layer, (nn.Linear, nn.LayerNorm)):
                layer.reset_parameters()
        vectors, labels = training
        optimizer = torch.optim.AdamW(fresh.parameters(), lr=1e-3, weight_decay=0.05)
        best, least = copy.deepcopy(fresh.state_dict()), float("inf")
        for _ in range(epochs):
            fresh.train()
            for batch in torch.randperm(len(vectors)).split(BATCH):
                optimizer.zero_grad()
                F.cross_entropy(fresh(vectors[batch]), labels[batch]).backward()
                optimizer.step()
            nll = float(F.cross_entropy(softmax_logits(fresh, held[0])[0], held[1]))
            if nll < least:
                best, least = copy.deepcopy(fresh.state_dict()), nll
        fresh.load_state_dict(best)
    return fresh.eval().requires_grad_(False)


def _silent(head: nn.Sequential) -> nn.Sequential:
    """The head without its dropouts, sharing its weights."""
    return nn.Sequential(*(layer for layer in head if not isinstance(layer, nn.Dropout)))

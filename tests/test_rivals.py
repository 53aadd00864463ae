"""Ways of being unsure: each against an independent computation."""

import copy

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torch import nn
from torch.nn import functional as F

from dcaf_monai import rivals
from dcaf_monai.calibration import fit_temperature
from dcaf_monai.network import DualCrossAttentionFusion, Features

CLASSES, UNITS, HIDDEN, CASES = 3, 6, 4, 21


def head(seed: int = 0, classes: int = CLASSES) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.LayerNorm(UNITS), nn.Dropout(0.3), nn.Linear(UNITS, HIDDEN), nn.GELU(),
                         nn.Dropout(0.3), nn.Linear(HIDDEN, classes))


@pytest.fixture(scope="module")
def pooled() -> torch.Tensor:
    return torch.randn(CASES, UNITS, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def labels() -> torch.Tensor:
    return torch.arange(CASES) % CLASSES


def test_the_softmax_is_the_head_in_eval_mode(pooled):
    network = head()
    torch.testing.assert_close(rivals.softmax_logits(network.train(), pooled)[0], network.eval()(pooled))


def test_the_curvature_is_the_hessian_of_the_cross_entropy_by_the_last_layer(pooled, labels):
    network = head().eval()
    units = rivals.penultimate(network, pooled).double().detach()
    start = torch.cat((network[-1].weight, network[-1].bias[:, None]), dim=1).double().detach()

    def loss(flat: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(units @ flat.view(CLASSES, -1).T, labels, reduction="sum")

    hessian = torch.autograd.functional.hessian(loss, start.reshape(-1))
    fitted = rivals.fit_laplace(network, pooled, prior_precision=2.0)
    numbers = CLASSES * (HIDDEN + 1)
    torch.testing.assert_close(torch.linalg.inv(fitted.covariance), hessian + 2 * torch.eye(numbers).double(),
                               atol=1e-6, rtol=1e-5)


def test_drawn_logits_have_the_mean_and_covariance_of_the_linearised_model(pooled):
    network = head().eval()
    fitted = rivals.fit_laplace(network, pooled, prior_precision=0.5)
    drawn = fitted.logits(pooled[:2], samples=40_000, seed=1)
    jacobian = torch.stack([torch.kron(torch.eye(CLASSES).double(), unit[None])
                            for unit in rivals.penultimate(network, pooled[:2]).double()])
    expected = jacobian @ fitted.covariance @ jacobian.transpose(1, 2)
    for case in range(2):
        torch.testing.assert_close(drawn[:, case].mean(0).float(), network(pooled[case:case + 1])[0],
                                   atol=0.03, rtol=0.03)
        torch.testing.assert_close(torch.cov(drawn[:, case].T), expected[case], atol=0.05, rtol=0.05)


def test_the_chosen_prior_tells_the_held_out_cases_best(pooled, labels):
    network, held = head().eval(), torch.randn(40, UNITS, generator=torch.Generator().manual_seed(5))
    told = network(held).argmax(1)   # what the head answers itself, but for one in ten
    told[::10] = (told[::10] + 1) % CLASSES

    def nll(precision: float) -> float:
        logits = rivals.fit_laplace(network, pooled, prior_precision=precision).logits(held)
        probs = (logits / fit_temperature(logits, told)).softmax(2).mean(0).numpy()
        return float(log_loss(told, probs, labels=range(CLASSES)))

    chosen = rivals.tune_laplace(network, pooled, (held, told)).prior_precision
    assert nll(chosen) == pytest.approx(min(map(nll, rivals.PRIOR_PRECISIONS)), abs=1e-9)
    assert nll(chosen) < nll(rivals.PRIOR_PRECISIONS[0])


def test_laplace_is_less_sure_far_from_what_it_was_fitted_on(pooled):
    network = nn.Sequential(nn.Linear(UNITS, CLASSES))
    fitted = rivals.fit_laplace(network, pooled, prior_precision=1.0)
    near, far = (fitted.logits(pooled * factor, seed=0).std(0).mean() for factor in (1, 10))
    assert far > 5 * near


def test_a_head_without_a_linear_end_is_refused(pooled):
    with pytest.raises(ValueError, match="head: need a linear last layer, got GELU"):
        rivals.fit_laplace(nn.Sequential(nn.Linear(UNITS, 3), nn.GELU()), pooled, prior_precision=1.0)


def test_members_of_a_head_ensemble_learn_differ_and_leave_the_head_alone():
    torch.manual_seed(1)
    vectors = torch.randn(600, UNITS)
    labels = (vectors[:, 0] > vectors.mean(1)).long()  # what a layer norm leaves to see
    original = head(classes=2).eval()
    before = copy.deepcopy(original.state_dict())
    answers, = rivals.head_ensemble_logits(original, (vectors, labels), (vectors, labels), [vectors],
                                           members=3)
    assert answers.shape == (3, 600, 2)
    shares = [float((member.argmax(1) == labels).float().mean()) for member in answers]
    assert min(shares) > 0.9, shares
    assert not torch.allclose(answers[0], answers[1])
    torch.testing.assert_close(original.state_dict(), before)


def test_dropout_in_the_fusion_adds_to_the_spread_and_repeats_itself():
    torch.manual_seed(0)
    network = DualCrossAttentionFusion(2, backbones=("test_efficientnet", "test_resnet"), width=8, heads=2,
                                       fused=12, hidden=8)
    network.train()
    x = torch.rand(5, 1, 64, 64)
    with torch.no_grad():
        network(x)
        features = network.eval().trunks(x)

    def source(cases: np.ndarray) -> Features:
        return Features(*(getattr(features, name)[cases]
                          for name in ("first_8", "first_16", "second_8", "second_16")))

    cases = np.arange(5)
    full = rivals.full_dropout_logits(network, source, cases, samples=40, seed=2)
    again = rivals.full_dropout_logits(network, source, cases[3:], samples=40, seed=2)
    with torch.no_grad():
        pooled = network.fuse(features).pooled
        head_only = rivals.head_dropout_logits(network.head, pooled, samples=40, seed=2)
    assert full.shape == head_only.shape == (40, 5, 2)
    assert not torch.allclose(full, head_only)
    torch.testing.assert_close(full[:, 3:], again, atol=1e-5, rtol=1e-4)

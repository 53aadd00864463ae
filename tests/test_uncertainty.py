import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy
from torch import nn

from dcaf_monai.uncertainty import dropout_masks, sample_logits, summarize


def make_head(p: float = 0.3, p_last: float = 0.5) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.LayerNorm(10), nn.Dropout(p), nn.Linear(10, 7), nn.GELU(), nn.Dropout(p_last),
                         nn.Linear(7, 3))


def test_cached_samples_equal_one_pass_a_mask():
    head, pooled = make_head(), torch.randn(5, 10)
    masks = dropout_masks(head, samples=9, seed=4)
    passes = []
    for first, second in zip(*masks.values, strict=True):
        hidden = head[3](head[2](head[0](pooled) * first))
        passes.append(head[5](hidden * second))
    torch.testing.assert_close(sample_logits(head, pooled, masks), torch.stack(passes), atol=1e-5, rtol=0)


def test_samples_follow_the_law_of_pytorchs_own_dropout():
    head, pooled = make_head(), torch.randn(1, 10)
    ours = sample_logits(head, pooled, dropout_masks(head, samples=20_000, seed=1))[:, 0]
    torch.manual_seed(2)
    theirs = head.train()(pooled.expand(20_000, -1))
    torch.testing.assert_close(ours.mean(0), theirs.mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(ours.std(0), theirs.std(0), atol=0.02, rtol=0)


def test_masks_hold_zero_or_the_inverse_of_what_is_kept_at_the_stated_rate():
    masks = dropout_masks(make_head(0.3, 0.5), samples=4000)
    assert masks.samples == 4000
    assert [tuple(values.shape) for values in masks.values] == [(4000, 10), (4000, 7)]
    for values, p in zip(masks.values, (0.3, 0.5), strict=True):
        assert set(values.unique().tolist()) == {0.0, torch.tensor(1 / (1 - p)).item()}
        assert (values == 0).float().mean().item() == pytest.approx(p, abs=0.015)


def test_the_same_seed_gives_the_same_masks_and_another_seed_others():
    head = make_head()
    again = [dropout_masks(head, seed=seed).values for seed in (5, 5, 6)]
    assert all(torch.equal(a, b) for a, b in zip(again[0], again[1], strict=True))
    assert not torch.equal(again[0][0], again[2][0])


def test_drawing_masks_leaves_the_global_generator_alone():
    head = make_head()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    dropout_masks(head)
    assert torch.equal(torch.rand(3), expected)


def test_an_answer_does_not_depend_on_the_batch_or_the_mode_of_the_head():
    head, pooled = make_head(), torch.randn(5, 10)
    masks = dropout_masks(head)
    together = sample_logits(head.train(), pooled, masks)
    alone = torch.cat([sample_logits(head.eval(), row[None], masks) for row in pooled], dim=1)
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_a_head_without_active_dropout_is_refused():
    with pytest.raises(ValueError, match="need a dropout with p > 0"):
        dropout_masks(make_head(0.0, 0.0))
    with pytest.raises(ValueError, match="need a dropout with p > 0"):
        dropout_masks(nn.Sequential(nn.Linear(10, 3)))


def test_a_head_with_one_active_dropout_is_sampled_there_alone():
    head = make_head(0.0, 0.5)
    masks = dropout_masks(head, samples=6)
    assert masks.places == (4,)
    assert sample_logits(head, torch.randn(2, 10), masks).shape == (6, 2, 3)


def test_masks_of_another_head_are_refused():
    with pytest.raises(ValueError, match="masks: need masks for the dropouts"):
        sample_logits(make_head(0.3, 0.5), torch.randn(2, 10), dropout_masks(make_head(0.0, 0.5)))


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="samples: need at least 1, got 0"):
        dropout_masks(make_head(), samples=0)


def test_every_quantity_equals_an_independent_reference():
    torch.manual_seed(0)
    logits, temperature = torch.randn(11, 5, 3) * 3, 1.7
    found = summarize(logits, temperature)
    scaled = np.exp(logits.double().numpy() / temperature)
    sampled = scaled / scaled.sum(-1, keepdims=True)
    mean = sampled.mean(0)
    np.testing.assert_allclose(found.probs, mean, atol=1e-12)
    np.testing.assert_allclose(found.std, sampled.std(0), atol=1e-12)
    np.testing.assert_allclose(found.predictive_entropy, entropy(mean, axis=-1), atol=1e-12)
    np.testing.assert_allclose(found.expected_entropy, entropy(sampled, axis=-1).mean(0), atol=1e-12)
    np.testing.assert_allclose(found.normalized_entropy, entropy(mean, axis=-1, base=3), atol=1e-12)


def test_two_certain_samples_that_disagree_are_all_mutual_information():
    found = summarize(torch.tensor([[[200.0, 0.0]], [[0.0, 200.0]]]))
    assert found.predictive_entropy.item() == pytest.approx(math.log(2))
    assert found.mutual_information.item() == pytest.approx(math.log(2))
    assert found.expected_entropy.item() == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(found.std, [[0.5, 0.5]])


def test_samples_that_agree_on_doubt_have_no_mutual_information():
    found = summarize(torch.zeros(4, 1, 3))
    assert found.expected_entropy.item() == pytest.approx(math.log(3))
    assert found.mutual_information.item() == pytest.approx(0, abs=1e-12)
    assert found.normalized_entropy.item() == pytest.approx(1)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), samples=st.integers(1, 12), batch=st.integers(1, 5),
       classes=st.integers(2, 6), size=st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e4]),
       temperature=st.floats(0.05, 20))
def test_the_laws_of_entropy_hold(seed, samples, batch, classes, size, temperature):
    torch.manual_seed(seed)
    found = summarize(torch.randn(samples, batch, classes) * size, temperature)
    torch.testing.assert_close(found.probs.sum(-1), torch.ones(batch, dtype=torch.float64))
    assert (found.probs >= 0).all() and (found.std >= 0).all() and (found.std <= 0.5 + 1e-12).all()
    assert (found.mutual_information >= 0).all() and (found.expected_entropy >= 0).all()
    assert (found.predictive_entropy <= math.log(classes) + 1e-9).all()
    torch.testing.assert_close(found.expected_entropy + found.mutual_information, found.predictive_entropy)


@pytest.mark.parametrize(("logits", "temperature", "message"), [
    (torch.zeros(5, 3), 1.0, r"logits: need \(samples, batch, classes\), got \(5, 3\)"),
    (torch.tensor([[[0.0, math.nan]]]), 1.0, "logits: need finite numbers"),
    (torch.zeros(2, 1, 3), 0.0, "temperature: need a positive number, got 0.0"),
    (torch.zeros(2, 1, 3), math.nan, "temperature: need a positive number, got nan"),
])
def test_what_cannot_be_summarized_is_refused(logits, temperature, message):
    with pytest.raises(ValueError, match=message):
        summarize(logits, temperature)

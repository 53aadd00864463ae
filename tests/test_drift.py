"""The distance to the training images: planted outliers, independent references, round trips; its figures."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score, roc_curve

from dcaf_monai.drift import FEWEST, Reference, fit_reference, ood_auroc_fpr95, ood_figures
from dcaf_monai.image import Geometry, Image
from dcaf_monai.network import DualCrossAttentionFusion
from dcaf_monai.phantom import phantom
from dcaf_monai.shifts import shifted
from dcaf_monai.transforms import Preprocessing, image_to_input


def features(cases, seed=0, size=30):
    """Correlated, uneven, off-centre features of one population."""
    mixing = np.random.default_rng(99).normal(size=(size, size)) * np.linspace(.2, 3, size)
    drawn = np.random.default_rng(seed).normal(size=(cases, size))
    return (drawn @ mixing + np.linspace(-5, 5, size)).astype(np.float32)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return fit_reference(features(400), features(300, seed=1), directions=8)


def test_with_all_directions_it_is_the_mahalanobis_distance_of_scikit_learn():
    known, new = features(200), features(50, seed=2)
    found = fit_reference(known, features(40, seed=1), directions=30).distance(new)
    squared = LedoitWolf().fit(known.astype(np.float64)).mahalanobis(new.astype(np.float64))
    assert found == pytest.approx(np.sqrt(squared / 30), rel=1e-4)


def test_with_few_directions_it_is_the_distance_under_their_covariance_plus_one_variance_for_the_rest():
    known, new = features(2000).astype(np.float64), features(50, seed=2).astype(np.float64)
    found = fit_reference(known, features(40, seed=1), directions=5).distance(new)
    peer = PCA(n_components=5, svd_solver="full").fit(known)
    squared = np.einsum("ci,ij,cj->c", new - peer.mean_, peer.get_precision(), new - peer.mean_)
    assert found == pytest.approx(np.sqrt(squared / 30), rel=.02)  # PCA does not shrink


def test_ordinary_cases_lie_near_one_and_about_one_in_a_hundred_beyond_the_threshold(reference):
    away = reference.distance(features(5000, seed=3))
    assert np.sqrt((away**2).mean()) == pytest.approx(1, abs=.1)
    assert .002 < (away > reference.threshold).mean() < .03


@pytest.mark.parametrize("shift", ["mean", "rare direction", "scale"])
def test_planted_outliers_are_found(reference, shift):
    ordinary, planted = features(200, seed=4), features(200, seed=5)
    if shift == "mean":
        planted = planted + 25
    elif shift == "rare direction":  # a change where ordinary cases hardly vary at all
        thin = np.linalg.svd(ordinary - ordinary.mean(0))[2][-1]
        planted = planted + 60 * thin
    else:
        planted = planted * 4
    area, passed = ood_auroc_fpr95(reference.distance(ordinary), reference.distance(planted))
    assert area > .95 and passed < .25
    assert np.mean([reference.notice(row) is not None for row in planted]) > .6


def test_the_notice_says_what_is_so_and_an_ordinary_image_has_none(reference):
    notice = reference.notice(torch.from_numpy(features(1, seed=6)[0] + 100))
    assert notice.code == "unlike_training"
    assert notice.message == ("Likeness: this picture is farther from the training images than 99 in 100 "
                              "pictures of their kind. Do not trust the answer.")
    assert reference.notice(reference.mean) is None


@pytest.mark.parametrize("held_out, place", [(150, 150), (198, 198), (199, 198), (40, 40)])
def test_the_threshold_is_the_held_out_distance_at_the_place_of_the_percentile(held_out, place):
    others = features(held_out, seed=1)
    found = fit_reference(features(100), others)
    assert found.threshold == np.sort(found.distance(others))[place - 1]
    assert (found.cases, found.held_out, found.percentile) == (100, held_out, 99.0)


def test_a_reference_survives_safetensors_and_json_with_the_same_distances(reference):
    tensors = reference.tensors()
    assert {name: (value.dtype, tuple(value.shape)) for name, value in tensors.items()} == {
        "mean": (torch.float32, (30,)), "axes": (torch.float32, (8, 30)), "scale": (torch.float32, (8,))}
    document = json.loads(json.dumps(reference.document(), allow_nan=False))
    again = Reference.from_tensors(load(save(tensors)), document)
    new = features(20, seed=7)
    assert np.array_equal(again.distance(new), reference.distance(torch.from_numpy(new)))
    assert again.document() == reference.document()


@pytest.mark.parametrize("constant", ["one feature", "every feature", "zero"])
def test_features_that_never_vary_give_finite_distances_and_notice_a_change(constant):
    known, others = features(60), features(40, seed=1)
    for pooled in (known, others):
        pooled[:, 3] = 7
        if constant != "one feature":
            pooled[:] = pooled[0] if pooled is known else known[0]
        if constant == "zero":
            pooled[:] = 0
    found = fit_reference(known, others)
    assert np.isfinite(found.distance(others)).all() and found.notice(others[0]) is None
    changed = others[:1].copy()
    changed[0, 3] += 100
    assert np.isfinite(found.distance(changed)).all() and found.notice(changed[0]) is not None


def test_more_features_than_cases_are_no_trouble():
    found = fit_reference(features(30, size=90), features(25, seed=1, size=90))
    assert found.axes.shape == (64, 90)
    ordinary, planted = features(40, seed=2, size=90), features(40, seed=3, size=90) + 60
    assert ood_auroc_fpr95(found.distance(ordinary), found.distance(planted))[0] > .95


@pytest.mark.parametrize("change, message", [
    ({"pooled": features(FEWEST - 1)}, "at least 20 training cases"),
    ({"held_out": features(0)}, "at least 20 training cases and one held-out"),
    ({"held_out": features(9, size=29)}, r"got \(60, 30\) and \(9, 29\)"),
    ({"pooled": features(60)[0]}, "pooled: need finite"),
    ({"held_out": np.full((9, 30), np.inf)}, "held_out: need finite"),
    ({"directions": 0}, "directions, percentile"), ({"percentile": 100.0}, "directions, percentile")])
def test_cases_or_settings_that_give_no_reference_are_refused(change, message):
    given = {"pooled": features(60), "held_out": features(9, seed=1)} | change
    with pytest.raises(ValueError, match=message):
        fit_reference(given.pop("pooled"), given.pop("held_out"), **given)


@pytest.mark.parametrize("pooled", [np.zeros((3, 29)), np.zeros(30), np.full((3, 30), np.nan)])
def test_features_of_another_network_are_refused(reference, pooled):
    with pytest.raises(ValueError, match="pooled: need"):
        reference.distance(pooled)


@pytest.mark.parametrize("name, value, message", [
    ("mean", torch.zeros(29), "drift: need a mean"), ("scale", torch.zeros(8), "positive scale"),
    ("scale", torch.full((8,), float("nan")), "finite"), ("axes", torch.ones(8, 30), "orthonormal"),
    ("axes", None, "tensors mean, axes and scale"), ("residual", 0.0, "drift: residual"),
    ("threshold", float("nan"), "drift: threshold"), ("threshold", "far", "drift: threshold"),
    ("percentile", 100.0, "drift: percentile"), ("cases", 3, "drift: cases"), ("more", 1, "drift: more")])
def test_a_stored_reference_with_a_fault_is_refused(reference, name, value, message):
    tensors, document = reference.tensors(), reference.document()
    if value is None:
        del tensors[name]
    else:
        (tensors if name in tensors else document)[name] = value
    with pytest.raises(ValueError, match=message):
        Reference.from_tensors(tensors, document)


def test_films_upside_down_inverted_or_blurred_are_unlike_those_a_reference_was_made_of():
    torch.manual_seed(5)
    network = DualCrossAttentionFusion(2, backbones=("test_efficientnet", "test_resnet"), width=16, heads=2,
                                       fused=24, hidden=20).eval()

    def inputs(seeds):
        return [image_to_input(Image(str(seed), phantom(seed, lesion=seed % 2 == 0, shape=(72, 64)).pixels
                                     .astype(np.float32), Geometry((72, 64))), Preprocessing(size=64))[0]
                for seed in seeds]

    def pooled(pictures):
        with torch.no_grad():
            return network.fuse(network.trunks(torch.stack(pictures))).pooled

    found = fit_reference(pooled(inputs(range(60))), pooled(inputs(range(60, 90))))
    ordinary = inputs(range(90, 102))
    inside = found.distance(pooled(ordinary))
    for kind, severity in (("rotated_180", 1), ("inverted", 1), ("gaussian_blur", 5)):
        changed = [shifted(picture, kind, severity=severity) for picture in ordinary]
        assert ood_auroc_fpr95(inside, found.distance(pooled(changed)))[0] > .95, kind
        assert all(found.notice(row) is not None for row in pooled(changed)), kind
    assert sum(found.notice(row) is not None for row in pooled(ordinary)) <= 2


# Figures

@pytest.mark.parametrize("ties", [False, True])
def test_auroc_and_fpr95_are_those_of_scikit_learn_with_inside_as_the_positive_class(ties):
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(size=137), rng.normal(1.2, 1.5, size=89)
    if ties:
        inside, outside = inside.round(), outside.round()
    area, passed = ood_auroc_fpr95(inside, outside)
    is_inside = np.repeat([1, 0], [137, 89])
    away = np.concatenate([inside, outside])
    assert area == pytest.approx(roc_auc_score(1 - is_inside, away))
    false_rates, true_rates, _ = roc_curve(is_inside, -away, drop_intermediate=False)
    assert passed == pytest.approx(false_rates[np.argmax(true_rates >= .95)])


def test_fpr95_of_a_few_scores_is_that_counted_by_hand():
    inside = np.arange(20.0)  # 19 of 20 are 95 %: the cut-off is 18
    assert ood_auroc_fpr95(inside, np.array([17.0, 18.0, 18.5, 30.0]))[1] == .5
    assert ood_auroc_fpr95(inside, np.array([25.0, 30.0])) == (1.0, 0.0)
    assert ood_auroc_fpr95(inside, np.array([-1.0])) == (0.0, 1.0)


def test_intervals_hold_the_figure_and_know_that_patients_come_whole():
    rng = np.random.default_rng(0)
    inside = np.repeat(rng.normal(size=15), 8)  # eight copies of fifteen patients
    outside = np.repeat(rng.normal(1.0, 1.0, size=15), 8)
    groups = [str(number // 8) for number in range(120)]
    few = ood_figures(inside, outside, inside_groups=groups, outside_groups=groups, resamples=300)
    many = ood_figures(inside, outside, resamples=300)
    for name, value in zip(("auroc", "fpr95"), ood_auroc_fpr95(inside, outside), strict=True):
        assert few[name]["value"] == many[name]["value"] == value
        assert few[name]["low"] < many[name]["low"] <= value <= many[name]["high"] < few[name]["high"]


def test_a_patient_on_both_sides_is_drawn_on_both():
    rng = np.random.default_rng(1)
    inside = rng.normal(size=40) * 3
    groups = [str(number) for number in range(40)]
    together = ood_figures(inside, inside + 2, inside_groups=groups, outside_groups=groups)["auroc"]
    apart = ood_figures(inside, inside + 2)["auroc"]
    assert together["high"] - together["low"] < .8 * (apart["high"] - apart["low"])


@pytest.mark.parametrize("inside, outside, groups, message", [
    ([], [1.0], None, "at least one case"), ([1.0], [], None, "at least one case"),
    ([1.0], [float("nan")], None, "none of them nan"), ([[1.0]], [1.0], None, r"got \(1, 1\)"),
    ([1.0, 2.0], [1.0], ["a"], "need one for each of 3 cases, got 2")])
def test_scores_that_give_no_figure_are_refused(inside, outside, groups, message):
    with pytest.raises(ValueError, match=message):
        ood_figures(np.array(inside), np.array(outside), inside_groups=groups)

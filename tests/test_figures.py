"""Figures: PNGs that show what they were given, the same bytes for the same numbers, fit for every eye."""

import io

import numpy as np
import pytest
from PIL import Image as Picture

from dcaf_monai import conformal, figures, metrics, selective

CLASSES = ("cnv", "dme", "viral_pneumonia")


@pytest.fixture(scope="module")
def answers():
    rng = np.random.default_rng(4)
    labels = rng.choice(3, 70, p=[.6, .3, .1])
    logits = rng.normal(size=(70, 3)) + 1.5 * np.eye(3)[labels]
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probs, labels, [str(number // 2) for number in range(70)]


@pytest.fixture(scope="module")
def drawn(answers):
    """Every figure once, by name."""
    probs, labels, groups = answers
    entropy = -(probs * np.log(probs)).sum(1)
    predicted = probs.argmax(1)
    sets = {f"{method} {conditional}": conformal.coverage(
        conformal.fit_conformal(probs, labels, groups, CLASSES, method=method,
                                conditional=conditional).sets(probs),
        labels, CLASSES, groups, resamples=20) for method in ("lac", "aps") for conditional in (False, True)}
    area = {"value": .7, "low": .6, "high": .8}
    tile = figures.Tile(np.full((31, 47), 90, np.uint8), np.full((31, 47, 3), (200, 90, 10), np.uint8),
                        ("case 3: wrong", "says dme (0.51)"), False)
    return {
        "reliability": figures.reliability_diagram(metrics.reliability(probs, labels),
                                                   metrics.reliability(probs, labels), ece=(.12, .03)),
        "risk": figures.risk_coverage_curves({name: selective.risk_coverage(
            labels, predicted, entropy, groups, resamples=20) for name in ("entropy", "other")}, risk=.05),
        "entropy": figures.entropy_histogram(entropy, predicted == labels, classes=3),
        "curves": figures.roc_and_precision_recall(probs, labels, CLASSES,
                                                   told={name: ("0.9", "0.8") for name in CLASSES}),
        "confusion": figures.confusion(labels, predicted, CLASSES),
        "sets": figures.coverage_of_sets(sets, alpha=.1),
        "outside": figures.outside_plot(
            [{"title": title, "severity": severity, "scores": {"entropy": {"auroc": area}}}
             for title, severity in (("blank", 0), ("blur", 3))], scores=("entropy",)),
        "forest": figures.forest([("a − b", {"difference": .02, "low": .01, "high": .03}),
                                  ("a − c", {"difference": None, "low": None, "high": None})], label="d"),
        "gallery": figures.gallery([tile] * 5)}


def test_every_figure_is_a_png_with_something_on_it(drawn):
    for name, png in drawn.items():
        pixels = np.asarray(Picture.open(io.BytesIO(png)).convert("RGB"))
        assert min(pixels.shape[:2]) > 100, name
        assert .01 < (pixels != 255).any(-1).mean() < .97, name


def test_the_same_numbers_give_the_same_bytes_and_no_trace_of_the_software(answers):
    probs, labels, _ = answers
    one, two = (figures.confusion(labels, probs.argmax(1), CLASSES) for _ in range(2))
    assert one == two and b"atplotlib" not in one


def colours_of(png):
    pixels = np.asarray(Picture.open(io.BytesIO(png)).convert("RGB")).reshape(-1, 3)
    found, counts = np.unique(pixels, axis=0, return_counts=True)
    return {tuple(map(int, colour)): int(count) for colour, count in zip(found, counts, strict=True)}


def rgb(hexadecimal):
    return tuple(int(hexadecimal[place:place + 2], 16) for place in (1, 3, 5))


def test_right_and_wrong_answers_stand_in_colours_that_differ_in_lightness_too():
    """Red-green blindness leaves lightness: the two must not be equally bright."""
    brightness = [np.dot(rgb(colour), (.299, .587, .114)) for colour in (figures.BLUE, figures.VERMILION)]
    assert abs(brightness[0] - brightness[1]) > 25


def test_a_model_that_is_never_wrong_has_no_bar_of_wrong_answers():
    entropy = np.linspace(.05, .6, 40)
    with_errors = colours_of(figures.entropy_histogram(entropy, np.arange(40) % 4 > 0, classes=2))
    without = colours_of(figures.entropy_histogram(entropy, np.full(40, True), classes=2))
    assert with_errors.get(rgb(figures.VERMILION), 0) > 100 and rgb(figures.VERMILION) not in without
    assert without[rgb(figures.BLUE)] > with_errors[rgb(figures.BLUE)] > 100


def test_a_difference_is_coloured_only_when_its_interval_excludes_zero():
    def drawn_colours(low, high):
        row = {"difference": (low + high) / 2, "low": low, "high": high}
        return colours_of(figures.forest([("a", row)], label="d"))

    assert rgb(figures.BLUE) in drawn_colours(.01, .05)
    assert rgb(figures.VERMILION) in drawn_colours(-.05, -.01)
    unsure = drawn_colours(-.01, .05)
    assert rgb(figures.BLUE) not in unsure and rgb(figures.VERMILION) not in unsure


def test_a_class_without_a_case_is_left_out_of_the_curves(answers):
    probs, labels, _ = answers
    two = np.where(labels == 2, 0, labels)
    told = {name: ("", "") for name in CLASSES}
    with_three = colours_of(figures.roc_and_precision_recall(probs, labels, CLASSES, told=told))
    with_two = colours_of(figures.roc_and_precision_recall(probs, two, CLASSES, told=told))
    third = rgb(figures.COLOURS[2])
    assert with_three.get(third, 0) > 50 and third not in with_two


def test_a_value_without_interval_is_drawn_and_one_that_does_not_exist_is_not():
    found = {"LAC": {"coverage": {"value": .9, "low": None, "high": None},
                     "per_class": {"a": {"coverage": {"value": None, "low": None, "high": None}}},
                     "per_size": {"0": {"cases": 0, "coverage": {"value": None, "low": None, "high": None}},
                                  "1": {"cases": 4, "coverage": {"value": .75, "low": .5, "high": 1.0}}}}}
    assert rgb(figures.BLUE) in colours_of(figures.coverage_of_sets(found, alpha=.1))


def test_pictures_keep_their_proportions_in_the_gallery():
    wide = figures._on_square(np.full((40, 100, 3), 255, np.uint8), 50)
    assert wide.shape == (50, 50, 3)
    assert (wide[:, 25] == 255).all(-1).sum() == 20 and (wide[25] == 255).all()


def test_a_gallery_holds_every_case_however_few():
    def tile(grey):
        return figures.Tile(np.full((20, 20), grey, np.uint8), np.full((20, 20, 3), grey, np.uint8), ("x",),
                            True)

    for count in (1, 3, 9):
        greys = [40 + 20 * number for number in range(count)]
        shown = colours_of(figures.gallery([tile(grey) for grey in greys]))
        assert all(shown.get((grey,) * 3, 0) > 500 for grey in greys)

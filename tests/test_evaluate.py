"""`dcaf evaluate`, whole: its figures recomputed from cases.csv, its page taken apart."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as Picture
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from small_evaluation import QUICK, TASK, Taken, a_model, a_table

from dcaf_monai.answers import answer_files
from dcaf_monai.cohort import read_cohort
from dcaf_monai.evaluate import Settings, evaluate, examine
from dcaf_monai.evaluation_page import page, write_evaluation
from dcaf_monai.predict import Predictor


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return a_table(tmp_path_factory.mktemp("films"))


@pytest.fixture(scope="module")
def cohort(table):
    return read_cohort(table, TASK)


@pytest.fixture(scope="module")
def examined(cohort):
    """Two seeds of one configuration."""
    return [examine(Predictor(a_model(seed)), cohort, label=f"seed{seed}") for seed in (3, 4)]


@pytest.fixture(scope="module")
def evaluation(examined, cohort, films):
    files = [(None, path, None) for path in sorted(films.rglob("*.dcm"))[:3]]
    told = []
    found = evaluate(examined, cohort, settings=QUICK, outside={"phantoms": files},
                     notify=lambda what, done, total: told.append((what, done, total)))
    assert {"seed3: phantoms", "seed4: shifts", "seed3: erasure"} <= {what for what, _, _ in told}
    return found


@pytest.fixture(scope="module")
def report(evaluation, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_evaluation(evaluation, folder, gallery=5)
    return folder


@pytest.fixture(scope="module")
def rows(report):
    with (report / "cases.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["model"] == "seed3"]


@pytest.fixture(scope="module")
def told(report):
    return json.loads((report / "evaluation.json").read_text())["models"][0]


def columns(rows, *names):
    return np.array([[float(row[name]) for name in names] for row in rows]).squeeze()


def test_figures_in_the_json_are_those_scikit_learn_finds_from_cases_csv(rows, told):
    labels = np.array([TASK.classes.index(row["label"]) for row in rows])
    probs = columns(rows, "prob_normal", "prob_pneumonia")
    before = columns(rows, "uncalibrated_normal", "uncalibrated_pneumonia")
    found = told["discrimination"]
    assert found["auroc"]["value"] == pytest.approx(roc_auc_score(labels, probs[:, 1]))
    assert found["accuracy"]["value"] == pytest.approx(accuracy_score(labels, probs.argmax(1)))
    assert [row["predicted"] for row in rows] == [TASK.classes[column] for column in probs.argmax(1)]
    for way, values in (("before", before), ("after", probs)):
        assert told["calibration"][way]["nll"]["value"] == pytest.approx(log_loss(labels, values))
        brier = ((values - np.eye(2)[labels]) ** 2).sum(1).mean()
        assert told["calibration"][way]["brier"]["value"] == pytest.approx(brier)
    wrong = probs.argmax(1) != labels
    scores = told["selective"]["scores"]
    for score, column in (("entropy", "predictive_entropy"), ("mutual_information", "mutual_information"),
                          ("softmax", "softmax_doubt")):
        area = roc_auc_score(wrong, columns(rows, column))
        assert scores[score]["failure_auroc"]["value"] == pytest.approx(area)


def test_entropies_follow_from_the_probabilities_and_each_other(rows):
    probs = columns(rows, "prob_normal", "prob_pneumonia")
    entropy, expected, mutual = columns(rows, "predictive_entropy", "expected_entropy",
                                        "mutual_information").T
    assert entropy == pytest.approx(-(probs * np.log(probs)).sum(1))
    assert mutual == pytest.approx(entropy - expected) and mutual.min() >= 0 and mutual.max() > 1e-6


def test_coverage_in_the_json_is_that_of_the_sets_in_cases_csv(rows, told):
    table = next(row for row in told["conformal"]["tables"]
                 if (row["method"], row["alpha"], row["conditional"]) == ("lac", .1, True))
    sets = [row["set"].split("|") if row["set"] else [] for row in rows]
    inside = np.array([row["label"] in names for row, names in zip(rows, sets, strict=True)])
    assert table["coverage"]["value"] == pytest.approx(inside.mean())
    assert table["mean_size"]["value"] == pytest.approx(np.mean([len(names) for names in sets]))
    for label in TASK.classes:
        own = [held for held, row in zip(inside, rows, strict=True) if row["label"] == label]
        assert table["per_class"][label]["coverage"]["value"] == pytest.approx(np.mean(own))
    assert len(told["conformal"]["tables"]) == 12
    assert told["conformal"]["roles"] == {"fit": 30, "calibrate": 30, "test": 24}
    assert any("100 calibration cases" in notice for notice in told["conformal"]["notices"])


def test_figures_csv_says_what_the_json_says_once(report, told):
    with (report / "figures.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    names = [(row["model"], row["figure"]) for row in found]
    assert len(names) == len(set(names))
    assert {row["model"] for row in found} == {"seed3", "seed4", "seed3 minus seed4"}
    by_name = {row["figure"]: row for row in found if row["model"] == "seed3"}
    for path, value in (("discrimination.auroc", told["discrimination"]["auroc"]),
                        ("discrimination.per_class.normal.f1",
                         told["discrimination"]["per_class"]["normal"]["f1"]),
                        ("outside.gaussian_noise_3.scores.entropy.auroc",
                         next(row for row in told["outside"] if row["kind"] == "gaussian_noise")
                         ["scores"]["entropy"]["auroc"])):
        assert [float(by_name[path][edge]) for edge in ("value", "low", "high")] == list(value.values())
    assert "conformal.tables.raps_per_class_0.05.coverage" in by_name and "cost.ms_per_image" in by_name


def test_no_file_of_the_report_names_a_file_or_a_patient(report):
    for path in report.rglob("*"):
        if path.suffix in (".json", ".csv", ".html"):
            text = path.read_text()
            assert "secretname" not in text and "doe1" not in text, path.name
    assert {path.name for path in report.iterdir()} == {
        "evaluation.json", "figures.csv", "cases.csv", "figures", "report.html"}


@pytest.fixture(scope="module")
def taken(report):
    return Taken((report / "report.html").read_text())


def test_the_page_is_whole_and_fetches_nothing(taken, report):
    assert not taken.faults and not taken.open
    assert not taken.tags & {"script", "link", "iframe"}
    assert all(one.startswith(("data:image/png;base64,", "#")) for one in taken.references)
    assert {one[1:] for one in taken.references if one.startswith("#")} <= taken.ids
    text = (report / "report.html").read_text()
    assert "@import" not in text and "url(" not in text


def test_every_picture_of_the_page_is_a_png_with_words_for_those_who_do_not_see_it(taken):
    names = [name for name, _ in taken.pictures]
    for name, data in taken.pictures:
        picture = Picture.open(io.BytesIO(data))
        picture.load()
        assert picture.format == "PNG" and min(picture.size) > 90 and name
    assert sum("Gallery" in name for name in names) == 2
    for words in ("ROC and precision", "Confusion", "Reliability", "Risk-coverage", "Histogram of entropy",
                  "90 percent", "Deletion"):
        assert sum(words in name for name in names) == 2, words


def test_the_page_shows_the_figures_and_says_what_it_is(taken, told):
    area = told["discrimination"]["auroc"]
    assert f"{area['value']:.3f}" in taken.words and f"{area['low']:.3f} to {area['high']:.3f}" in taken.words
    assert "not a medical device" in taken.words
    assert "contains images of the data" in taken.words
    assert "No audit of these data was given" in taken.words
    assert "as stated" in taken.words and "None" not in taken.words


def test_ppv_and_npv_are_those_at_the_stated_prevalence(told):
    point = told["discrimination"]["operating_points"]["pneumonia"]
    sensitivity, specificity = point["sensitivity"]["value"], point["specificity"]["value"]
    found, missed = .05 * sensitivity, .05 * (1 - sensitivity)
    alarms, clear = .95 * (1 - specificity), .95 * specificity
    assert (point["prevalence"], point["prevalence_from"], point["cutoff"]) == (.05, "stated", .5)
    assert point["ppv"]["value"] == pytest.approx(found / (found + alarms))
    assert point["npv"]["value"] == pytest.approx(clear / (clear + missed))


def test_without_a_gallery_the_page_says_so(evaluation):
    bare = Taken(page(evaluation.document, {}, {}))
    assert "contains no image of the data" in bare.words and "contains images" not in bare.words
    assert not bare.pictures and not bare.faults and not bare.open


def test_a_name_that_looks_like_markup_stays_a_name(evaluation):
    document = {**evaluation.document, "title": "<script>x</script>"}
    found = Taken(page(document, {}, {}))
    assert "script" not in found.tags and "<script>x</script>" in found.words


def test_models_are_compared_on_the_same_cases_and_seeds_are_summed_up(evaluation):
    document = evaluation.document
    areas = [model["discrimination"]["auroc"]["value"] for model in document["models"]]
    row = document["comparisons"][0]
    assert (row["a"], row["b"]) == ("seed3", "seed4")
    assert row["figures"]["auroc"]["difference"] == pytest.approx(areas[0] - areas[1])
    seeds = document["seeds"][0]
    assert seeds["models"] == ["seed3", "seed4"] and seeds["seeds"] == [3, 4]
    assert seeds["figures"]["auroc"]["mean"] == pytest.approx(np.mean(areas))
    assert seeds["figures"]["auroc"]["sd"] == pytest.approx(np.std(areas, ddof=1))


def test_models_of_another_configuration_or_the_same_seed_are_no_seeds_of_one(examined, cohort):
    quiet = Settings(resamples=20, shift_images=0, explain=0)
    other = replace(examined[1], predictor=Predictor(a_model(4, samples=7)))
    assert not evaluate([examined[0], other], cohort, settings=quiet).document["seeds"]
    twin = replace(examined[0], label="twin")
    found = evaluate([examined[0], twin], cohort, settings=quiet).document
    assert not found["seeds"] and found["comparisons"][0]["figures"]["nll"]["difference"] == 0
    assert found["models"][0]["explanations"] is None and found["models"][0]["outside"] == []
    with pytest.raises(ValueError, match="a label of its own"):
        evaluate([examined[0], examined[0]], cohort, settings=quiet)


def test_other_pictures_are_told_apart_as_scikit_learn_says(examined, evaluation, films):
    inside = examined[0].test
    files = [(None, path, None) for path in sorted(films.rglob("*.dcm"))[:3]]
    outside = answer_files(examined[0].predictor, files)
    row = evaluation.document["models"][0]["outside"][0]
    both = np.concatenate([inside.predictive_entropy, outside.predictive_entropy])
    assert row["scores"]["entropy"]["auroc"]["value"] == pytest.approx(
        roc_auc_score(np.arange(len(both)) >= len(inside), both))
    assert (row["title"], row["images"], row["accuracy"]) == ("phantoms", 3, None)
    assert "drift" in row["scores"]


def test_shifts_come_once_a_severity_and_a_blank_picture_is_warned_of(evaluation):
    found = {(row["kind"], row["severity"]): row for row in evaluation.document["models"][0]["outside"]}
    assert ("blank", 0) in found and ("jpeg", 3) in found and ("jpeg", 1) not in found
    assert found["blank", 0]["warned"] == 1 and found["blank", 0]["accuracy"] is None
    assert found["mirrored", 0]["images"] == 3 and found["mirrored", 0]["accuracy"] is not None
    assert found["blank", 0]["notices"]["few_grey_levels"] == 1

"""Model cards: the same text for the same inputs, every figure from the evaluation, the notes as given."""

import copy
import json

import pytest

from dcaf_monai.card import Notes, model_card, read_evaluation, read_notes

NOTES = Notes(data="Two hospitals.", licence="CC BY 4.0", faults=("Half are tinted.", "No ages."),
              population="Adults.", intended=("Teaching.",), not_intended=("Children.",), caveats=("Small.",))


def figure(value, low=None, high=None):
    return {"value": value, "low": low, "high": high}


def an_evaluation():
    """What `dcaf evaluate` writes, cut to what a card needs, with figures that differ from each other."""
    whole = {name: figure(.1 + .01 * place, .05, .3) for place, name in enumerate(
        ("aupr", "accuracy", "balanced_accuracy", "f1", "nll", "brier", "ece", "adaptive_ece"))}
    calibration = {name: whole[name] for name in ("nll", "brier", "ece", "adaptive_ece")}
    per_class = {name: {"cases": 20 + place, "auroc": figure(.81), "aupr": figure(.7), "recall": figure(.6),
                        "f1": figure(None)} for place, name in enumerate(("normal", "pneumonia"))}
    point = {"cutoff": .25, "prevalence": .05, "prevalence_from": "stated",
             **{name: figure(.5, .4, .6) for name in ("sensitivity", "specificity", "ppv", "npv")}}
    table = {"method": "lac", "alpha": .1, "conditional": True, "coverage": figure(.9, .8, 1.0),
             "mean_size": figure(1.25, 1.1, 1.4),
             "per_class": {"normal": {"coverage": figure(.95)}, "pneumonia": {"coverage": figure(.85)}}}
    blank = {"title": "one grey", "family": "gross", "severity": 0, "images": 30, "warned": 1.0,
             "scores": {"entropy": {"auroc": figure(.99)}, "drift": {"auroc": figure(.97)}}}
    model = {
        "label": "m", "version": "v1", "sha256": "ab" * 32, "parameters": 1234567,
        "discrimination": {"auroc": figure(.8123, .75, .87), **whole, "per_class": per_class,
                           "operating_points": {"pneumonia": point}},
        "calibration": {"before": calibration, "after": calibration},
        "selective": {"scores": {"entropy": {name: figure(.04) for name in (
            "aurc", "augrc", "risk_at_80_coverage", "failure_auroc")}}},
        "conformal": {"tables": [table]}, "outside": [blank, {**blank, "title": "blur", "family": "blur"}],
        "explanations": {"kinds": {"class_activation": {"passes": True}, "gate": {"passes": False}}}}
    return {"schema": "dcaf-evaluation/1", "title": "Pneumonia on chest X-ray",
            "classes": ["normal", "pneumonia"],
            "data": {"split": "test", "images": 41, "patients": 33, "unreadable": 2,
                     "data_sha256": "cd" * 32},
            "settings": {"resamples": 500, "seed": 7}, "audit": None, "models": [model]}


DESCRIBED = {
    "name": "dcaf", "version": "v1", "sha256": "ab" * 32, "samples": 50, "seed": 3, "temperature": 1.5,
    "network": {"backbones": ["efficientnet_b4", "resnet34"], "classes": 2, "width": 128},
    "preprocessing": {"size": 224}, "task": {"classes": ["normal", "pneumonia"]},
    "provenance": {"created": "2026-01-01T00:00:00+00:00", "mode": "frozen", "seed": 3, "weights": "none",
                   "init_from": "", "cohort_sha256": "cd" * 32, "recipe": {"epochs": 30}, "epochs": 12,
                   "best_epoch": 9, "minutes": 4.2, "versions": {"torch": "2.6"}, "remarks": ["Few cases."],
                   "counts": {"train": {"normal": 5, "pneumonia": 17}}}}


@pytest.fixture(scope="module")
def card():
    return model_card(DESCRIBED, an_evaluation(), notes=NOTES)


def test_a_card_has_the_headings_of_mitchell_et_al_and_says_what_it_is_not(card):
    headings = [line[3:] for line in card.splitlines() if line.startswith("## ")]
    assert headings == ["Model details", "Intended use", "Factors", "Metrics", "Training data",
                        "Evaluation data", "Quantitative analyses", "Known shortcuts and faults",
                        "Ethical considerations", "Caveats and recommendations"]
    assert card.startswith("# Model card: Pneumonia on chest X-ray\n\n"
                           "**Research software, not a medical device.**")


def section(card, name):
    return card.split(f"## {name}\n")[1].split("\n## ")[0]


def test_what_a_person_knows_stands_where_it_belongs(card):
    assert "- Half are tinted.\n- No ages." in section(card, "Known shortcuts and faults")
    use = section(card, "Intended use")
    places = [use.index(words) for words in ("Teaching.", "Not intended", "Diagnosis", "Children.")]
    assert places == sorted(places)
    assert "Population: Adults." in section(card, "Factors")
    assert "Two hospitals." in card and "Licence: CC BY 4.0" in section(card, "Training data")
    assert "- Small." in card and "- Few cases." in section(card, "Caveats and recommendations")


def test_counts_and_figures_are_those_of_the_files(card):
    assert "| train | 5 | 17 |" in section(card, "Training data")
    tested = section(card, "Evaluation data")
    assert "41 images of 33 patients" in tested and "2 more could not be read" in tested
    assert "the same collection" in tested
    told = section(card, "Quantitative analyses")
    assert "| AUROC | 0.812 (0.750 to 0.870) |" in told
    assert "| NLL, after temperature | 0.140 (0.050 to 0.300) |" in told
    assert "| normal | 20 | 0.810 | 0.700 | 0.600 | – |" in told
    assert "| pneumonia | 0.250 | 0.500 (0.400 to 0.600) |" in told and "0.050 (stated)" in told
    assert "| LAC, per class | 90% | 0.900 (0.800 to 1.000) | pneumonia 0.850 | 1.25 (1.10 to 1.40) |" in told
    assert "| one grey | 30 | 0.990 | 0.970 | 100% |" in told and "blur" not in told
    assert "| gate | **fails** |" in told and "1,234,567" in section(card, "Model details")


def test_every_table_has_as_many_cells_in_each_line(card):
    tables = [part.splitlines() for part in card.split("\n\n") if part.startswith("|")]
    assert len(tables) == 8
    for table in tables:
        assert len({line.count("|") for line in table}) == 1 and set(table[1]) <= set("|- ")


def test_the_same_inputs_give_the_same_text(card):
    assert model_card(copy.deepcopy(DESCRIBED), json.loads(json.dumps(an_evaluation())), notes=NOTES) == card


def test_another_collection_is_said_to_be_another():
    other = {**DESCRIBED, "provenance": {**DESCRIBED["provenance"], "cohort_sha256": "ef" * 32}}
    assert "another collection" in section(model_card(other, an_evaluation(), notes=NOTES), "Evaluation data")


def test_a_perfect_auroc_needs_an_audit_in_the_card_too():
    evaluation = an_evaluation()
    evaluation["models"][0]["discrimination"]["auroc"] = figure(.9991, .998, 1.0)
    alone = model_card(DESCRIBED, evaluation, notes=NOTES)
    assert "0.999" not in alone and "withheld" in alone and "No audit of these data was given" in alone
    evaluation["audit"] = {"verdict": "look", "passed": 9,
                           "items": [{"name": "tint", "verdict": "look", "sentence": "Some are tinted."}]}
    beside = model_card(DESCRIBED, evaluation, notes=NOTES)
    assert "0.999 (0.998 to 1.000)" in beside and "withheld" not in beside
    assert "**look**, 9 checks passed" in beside and "- look: Some are tinted." in beside


def test_an_evaluation_of_another_model_is_refused():
    with pytest.raises(ValueError, match="need one of model version v2, got one of v1"):
        model_card({**DESCRIBED, "version": "v2", "sha256": "00" * 32}, an_evaluation(), notes=NOTES)


def test_notes_in_toml_and_in_markdown_say_the_same(tmp_path):
    (tmp_path / "n.toml").write_text('data = "Two hospitals."\nlicence = "CC BY 4.0"\n'
                                     'population = "Adults."\nfaults = ["Half are tinted.", "No ages."]\n'
                                     'intended = ["Teaching."]\n'
                                     'not_intended = ["Children."]\ncaveats = ["Small."]\n')
    (tmp_path / "n.md").write_text("# Data\nTwo\nhospitals.\n\n## Licence\nCC BY 4.0\n"
                                   "## Population\nAdults.\n## Faults\n- Half are\n  tinted.\n- No ages.\n"
                                   "\n## Intended\n- Teaching.\n## Not intended\n* Children.\n\n"
                                   "## Caveats\n- Small.\n")
    assert read_notes(tmp_path / "n.toml") == read_notes(tmp_path / "n.md") == NOTES


@pytest.mark.parametrize("name, text, message", [
    ("a.toml", 'data = "x"\nlicence = "y"\n', "faults"),
    ("a.toml", 'data = "x"\nlicence = "y"\nfaults = []\n', "faults"),
    ("a.toml", 'data = "x"\nlicence = "y"\nfaults = ["z"]\ncolour = "red"\n', "colour"),
    ("a.toml", "data = ", "not TOML"),
    ("a.md", "## Data\nx\n## Licence\ny\n", "faults")])
def test_notes_that_lack_what_a_card_needs_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_notes(tmp_path / name)
    with pytest.raises(ValueError, match="cannot read"):
        read_notes(tmp_path / "none.toml")


def test_a_file_that_is_no_evaluation_is_refused(tmp_path):
    for text, message in (("{", "not JSON"), ("{}", "schema"), ('{"schema": "dcaf-audit/1"}', "schema")):
        (tmp_path / "e.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_evaluation(tmp_path / "e.json")
    with pytest.raises(ValueError, match="cannot read"):
        read_evaluation(tmp_path / "none.json")

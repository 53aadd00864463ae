"""Model cards: what a model is, how good, on what data, and what it is not for.

Headings follow Mitchell et al., "Model Cards for Model Reporting" (FAT* 2019). Numbers come from the model
file and from ``evaluation.json``; what no file can know (where the data are from, under which licence, what
is wrong with them, what the model is meant for) a person says in the notes. The same inputs give the same
text.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dcaf_monai.headline import LIMIT, is_too_good

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCHEMA = "dcaf-evaluation/1"
Figure = Mapping[str, float | None]


class Notes(BaseModel):
    """What a person knows of the data and the purpose.

    Args:
        data: Where the images and labels come from.
        licence: Under which terms.
        population: Who was imaged, where and how, as far as known.
        faults: Known shortcuts and faults; say so in words when none is known.
        intended: Uses the model is meant for.
        not_intended: Uses it is not meant for, beside those that hold for every model here.
        ethics: What else to weigh.
        caveats: What to know before using it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    data: str = Field(min_length=1)
    licence: str = Field(min_length=1)
    faults: tuple[str, ...] = Field(min_length=1)
    population: str = "Not stated."
    intended: tuple[str, ...] = ()
    not_intended: tuple[str, ...] = ()
    ethics: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()


_LISTS = ("faults", "intended", "not_intended", "ethics", "caveats")
_INTENDED = ("Research on uncertainty, active learning and reading with a model beside the reader, on images "
             "like those it was trained on.",)
_NOT_INTENDED = (
    "Diagnosis, triage or any other decision about a patient.",
    "Images of another modality, another part of the body, or other patients than those below.",
    "Use at another site without a new evaluation there: cut-offs, calibration and the promise of conformal "
    "sets hold for data like the calibration data only.")
_ETHICS = (
    "The model file holds counts and digests of its data, no image and no name; digests of patients are "
    "pseudonyms.",
    "Whether it treats groups of people alike was not examined unless it is said above: age, sex and origin "
    "are often not known in public collections.")
_CAVEATS = (
    "Attention is not attribution: a map that looks convincing is no proof (see the check of explanations).",
    "Uncertainty finds no error the model is sure of; figures on shifted pictures show how far it can be "
    "trusted to notice.")


def read_notes(path: Path) -> Notes:
    """Notes from a ``.toml`` file (keys as in `Notes`) or a ``.md`` file (a heading each, lists as bullets).

    Raises:
        ValueError: When the file cannot be read, lacks data, licence or faults, or holds anything else.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        found = tomllib.loads(text) if path.suffix == ".toml" else _sections(text)
        return Notes.model_validate(found)
    except OSError as error:
        raise ValueError(f"notes: cannot read {path.name}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"notes: {path.name} is not TOML or text in UTF-8: {error}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"notes: {path.name}: {place or 'file'}: {first['msg']}. It needs data, licence and "
                         "faults, and may have population, intended, not_intended, ethics, caveats."
                         ) from error


def _sections(text: str) -> dict[str, Any]:
    """Sections of a Markdown file under the words of their headings, lists where `Notes` has lists."""
    found: dict[str, Any] = {}
    parts = re.split(r"^#+[ \t]+(.+?)[ \t]*$", text, flags=re.M)
    for heading, body in zip(parts[1::2], parts[2::2], strict=True):
        name = re.sub(r"[^a-z]+", "_", heading.lower()).strip("_")
        if name in _LISTS:
            items = re.split(r"^[-*][ \t]+", body.strip(), flags=re.M)
            found[name] = tuple(" ".join(item.split()) for item in items if item.strip())
        else:
            found[name] = " ".join(body.split())
    return found


def read_evaluation(path: Path) -> dict[str, Any]:
    """The content of an ``evaluation.json``.

    Raises:
        ValueError: When the file cannot be read or is none.
    """
    path = Path(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"evaluation: cannot read {path.name}: {error.strerror}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"evaluation: {path.name} is not JSON: {error}.") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise ValueError(f"evaluation: need an evaluation.json of schema {SCHEMA}, got another file. "
                         "Write one with dcaf evaluate --report.")
    return found


def model_card(described: Mapping[str, Any], evaluation: Mapping[str, Any], *, notes: Notes) -> str:
    """The card as Markdown.

    Args:
        described: From `model.describe_model`.
        evaluation: From `read_evaluation`; holds the model, by its digest.
        notes: From `read_notes`.

    Raises:
        ValueError: When the evaluation is of other models.
    """
    # a file that was only marked since is of the same version
    own = [model for model in evaluation["models"] if model["sha256"] == described["sha256"]
           or model["version"] and model["version"] == described["version"]]
    if not own:
        raise ValueError(f"evaluation: need one of model version {described['version']}, got one of "
                         f"{', '.join(model['version'] or 'no version' for model in evaluation['models'])}. "
                         "Evaluate this model.")
    model = own[0]
    parts = [
        f"# Model card: {evaluation['title']}",
        "**Research software, not a medical device.** Not for use on patients.",
        "## Model details", _details(described, model),
        "## Intended use", _bullets(notes.intended or _INTENDED),
        "Not intended:", _bullets((*_NOT_INTENDED, *notes.not_intended)),
        "## Factors", _factors(evaluation, notes),
        "## Metrics", _metrics(evaluation),
        "## Training data", _data(described, notes),
        "## Evaluation data", _tested(evaluation, described),
        "## Quantitative analyses", *_analyses(model, evaluation),
        "## Known shortcuts and faults", _bullets(notes.faults), _audit(evaluation),
        "## Ethical considerations", _bullets((*_ETHICS, *notes.ethics)),
        "## Caveats and recommendations",
        _bullets((*notes.caveats, *_CAVEATS, *described["provenance"]["remarks"]))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _details(described: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    network, provenance = described["network"], described["provenance"]
    recipe = provenance["recipe"]
    rows = [
        ("Name and version", f"{described['name']} {described['version']}"),
        ("File", f"SHA-256 `{described['sha256']}`"),
        ("Kind", "Dual cross-attention fusion of two convolutional trunks with Monte-Carlo dropout on the "
                 "head: independent implementation of a published idea (arXiv 2503.11851), no reproduction"),
        ("Trunks", f"{' + '.join(network['backbones'])}; weights before training: "
                   f"{provenance['weights'] or 'none'}"),
        ("Network", ", ".join(f"{name} {value}" for name, value in network.items()
                              if name not in ("backbones", "classes"))),
        ("Parameters", f"{model['parameters']:,}"),
        ("Input", ", ".join(f"{name} {value}" for name, value in described["preprocessing"].items())),
        ("Answer", f"{len(described['task']['classes'])} probabilities, mean over {described['samples']} "
                   f"dropout masks (seed {described['seed']}) at temperature {described['temperature']:.3f}"),
        ("Training", f"{provenance['mode'] or 'unknown'} mode, seed {provenance['seed']}, best epoch "
                     f"{provenance['best_epoch']} of {provenance['epochs']}, "
                     f"{provenance['minutes']:.0f} minutes"),
        ("Recipe", ", ".join(f"{name} {value}" for name, value in recipe.items())),
        ("Started from", provenance["init_from"]), ("Born", provenance["created"]),
        ("Software", ", ".join(f"{name} {value}" for name, value in provenance["versions"].items())),
        ("Licence of the code", "Apache-2.0; trunk weights and data have their own")]
    return _table(("", ""), [(name, value) for name, value in rows if value])


def _factors(evaluation: Mapping[str, Any], notes: Notes) -> str:
    return _bullets((f"Classes: {', '.join(evaluation['classes'])}.", f"Population: {notes.population}",
                     "Not examined: device, site, age and sex, unless said under faults."))


def _metrics(evaluation: Mapping[str, Any]) -> str:
    settings = evaluation["settings"]
    return ("AUROC and AUPR are one class against the rest, means over the classes. Intervals are 95 %, from "
            f"{settings['resamples']} bootstrap draws of whole patients (seed {settings['seed']}). Cut-offs "
            "and temperature were fixed before the test images were opened.")


def _data(described: Mapping[str, Any], notes: Notes) -> str:
    counts = described["provenance"]["counts"]
    table = _table(("Split", *described["task"]["classes"]),
                   [(split, *(str(row.get(name, 0)) for name in described["task"]["classes"]))
                    for split, row in counts.items()])
    digest = described["provenance"]["cohort_sha256"]
    return "\n\n".join(filter(None, (notes.data, f"Licence: {notes.licence}", table if counts else "",
                                     f"Digest of the rows: `{digest}`" if digest else "")))


def _tested(evaluation: Mapping[str, Any], described: Mapping[str, Any]) -> str:
    data = evaluation["data"]
    same = data["data_sha256"] == described["provenance"]["cohort_sha256"]
    where = "the same collection as the training data; no patient or group is in both" if same else \
        "another collection than the training data"
    unread = f" {data['unreadable']} more could not be read." if data["unreadable"] else ""
    return (f"The {data['split']} split: {data['images']} images of {data['patients']} patients or groups, "
            f"of {where}.{unread} Digest of the rows: `{data['data_sha256']}`")


def _analyses(model: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[str]:
    """Tables of figures with their intervals."""
    audited = evaluation["audit"] is not None
    found = model["discrimination"]

    def area(figure: Figure) -> str:
        return f"withheld: above {LIMIT} without an audit" if is_too_good(figure["value"]) and not audited \
            else _told(figure)

    rows = [("AUROC", area(found["auroc"]))]
    rows += [(title, _told(found[name])) for title, name in (
        ("AUPR", "aupr"), ("Accuracy", "accuracy"), ("Balanced accuracy", "balanced_accuracy"), ("F1", "f1"))]
    for way, words in (("before", "before temperature"), ("after", "after temperature")):
        rows += [(f"{title}, {words}", _told(model["calibration"][way][name]))
                 for title, name in (("NLL", "nll"), ("Brier", "brier"), ("ECE", "ece"))]
    doubt = model["selective"]["scores"]["entropy"]
    rows += [(f"{title}, by entropy", _told(doubt[name])) for title, name in (
        ("AURC", "aurc"), ("AUGRC", "augrc"), ("Error at 80 % coverage", "risk_at_80_coverage"),
        ("Failure AUROC", "failure_auroc"))]
    parts = [_table(("Figure", "Value (95 % interval)"), rows),
             _table(("Class", "Cases", "AUROC", "AUPR", "Recall", "F1"),
                    [(name, str(one["cases"]), area(one["auroc"]),
                      *(_told(one[kind]) for kind in ("aupr", "recall", "f1")))
                     for name, one in found["per_class"].items()])]
    if found["operating_points"]:
        parts.append(_table(
            ("Class", "Cut-off", "Sensitivity", "Specificity", "Prevalence", "PPV", "NPV"),
            [(name, f"{one['cutoff']:.3f}", _told(one["sensitivity"]), _told(one["specificity"]),
              f"{one['prevalence']:.3f} ({one['prevalence_from']})", _told(one["ppv"]), _told(one["npv"]))
             for name, one in found["operating_points"].items()]))
    if model["conformal"]["tables"]:
        parts.append(_table(
            ("Conformal sets", "Promise", "Coverage", "Lowest coverage of a class", "Mean size"),
            [(f"{row['method'].upper()}, {'per class' if row['conditional'] else 'one threshold'}",
              f"{1 - row['alpha']:.0%}", _told(row["coverage"]), _lowest(row["per_class"]),
              _told(row["mean_size"], 2)) for row in model["conformal"]["tables"]]))
    if model["outside"]:
        parts.append(_table(
            ("Other pictures", "Images", "AUROC by entropy", "AUROC by distance of features", "Warned of"),
            [(row["title"], str(row["images"]), _told(row["scores"]["entropy"]["auroc"]),
              _told(row["scores"]["drift"]["auroc"]) if "drift" in row["scores"] else "–",
              f"{row['warned']:.0%}")
             for row in model["outside"] if row["family"] in ("gross", "other data")]))
    if model["explanations"]:
        parts.append(_table(("Map", "Randomisation test"),
                            [(name.replace("_", " "), "passes" if one["passes"] else "**fails**")
                             for name, one in model["explanations"]["kinds"].items()]))
    return parts


def _lowest(per_class: Mapping[str, Mapping[str, Any]]) -> str:
    known = [(one["coverage"]["value"], name) for name, one in per_class.items()
             if one["coverage"]["value"] is not None]
    return f"{min(known)[1]} {_told(per_class[min(known)[1]]['coverage'])}" if known else "–"


def _audit(evaluation: Mapping[str, Any]) -> str:
    audit = evaluation["audit"]
    if audit is None:
        return "No audit of these data was given: shortcuts, leaks and duplicates are not excluded."
    head = f"Audit of these data: **{audit['verdict']}**, {audit['passed']} checks passed."
    items = _bullets(f"{item['verdict']}: {item['sentence']}" for item in audit["items"])
    return f"{head}\n\n{items}" if items else head


def _told(figure: Figure, digits: int = 3) -> str:
    if figure["value"] is None:
        return "–"
    value = f"{figure['value']:.{digits}f}"
    return value if figure["low"] is None else \
        f"{value} ({figure['low']:.{digits}f} to {figure['high']:.{digits}f})"


def _bullets(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {' '.join(sentence.split())}" for sentence in sentences)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)

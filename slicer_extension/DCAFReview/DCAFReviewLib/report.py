"""A case and the readers' agreement as text, and a session's annotations as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any

from .reading import conformal, warnings
from .state import Case, Connection, Sent

COLUMNS = ("image", "label", "reader", "role", "confidence", "comment", "seconds", "blind", "point", "box",
           "first_choice", "model_version", "state", "key")


def case_text(case: Case, connection: Connection) -> str:
    """What is known of a case, for a person to read: as far as it may be seen."""
    titles, document = dict(connection.classes), case.document
    lines = [f"{connection.task_title or 'Case'}: {case.name}"]
    if document:
        told, points = document["uncertainty"], document.get("operating_points", {})
        for entry in document["prediction"]:
            label, point = entry["label"], points.get(entry["label"])
            mark = "" if point is None else (
                f"  ({'reaches' if point['positive'] else 'below'} the cut-off of {point['cutoff']:.1%})")
            lines.append(f"  {titles.get(label, label)}: {entry['score']:.1%} "
                         f"\u00b1 {told.get('std', {}).get(label, 0.0):.1%}{mark}")
        lines += [f"  Predictive entropy {told['predictive_entropy']:.3f} nats "
                  f"({told['normalized_entropy']:.0%} of its maximum)",
                  f"  Mutual information {told['mutual_information']:.3f} nats, {told['samples']} samples"]
        lines += [f"  {words}" for words in (conformal(document, titles),) if words]
        lines += [f"  Warning: {message}" for message in warnings(document)]
        model = document["model"]
        lines.append(f"  Model {model['name']} {model['version']}. Research software, not a medical device.")
    if case.choice:
        lines.append(f"Reader {connection.reader}: {titles.get(case.choice, case.choice)}")
    if case.comment:
        lines.append(f"Comment: {case.comment}")
    lines += [f"{entry['reader']} ({entry['role']}, {entry['created']}): "
              f"{titles.get(entry['label'], entry['label'])}" for entry in case.history]
    return "\n".join(lines) + "\n"


def agreement_text(told: dict[str, Any]) -> str:
    """How far the readers agree, as lines: kappa is 1 for the same answers, 0 for what chance would give."""
    lines = [f"{told['images_with_two_readers']} of {told['images']} images have two readers or more."]
    lines += [f"{' and '.join(pair['readers'])}: {pair['agreed']} of {pair['images']} alike, "
              f"Cohen's kappa {_kappa(pair['kappa'])}." for pair in told["pairs"]]
    if len(told["pairs"]) > 1:
        lines.append(f"All readers: Fleiss' kappa {_kappa(told.get('fleiss_kappa'))}.")
    return "\n".join(lines)


def sent_csv(sent: Iterable[Sent], waiting: set[str], refused: set[str]) -> str:
    """A table of annotations; its ``state`` is ``sent``, ``waiting`` or ``refused``.

    Args:
        sent: The annotations, in the order of the rows.
        waiting: Keys the server has not acknowledged.
        refused: Keys it refused.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\r\n")   # RFC 4180
    table.writerow(COLUMNS)
    for item in sent:
        said = item.document
        state = "waiting" if item.key in waiting else "refused" if item.key in refused else "sent"
        shown = said.get("shown", {})
        row = {**said, "image": item.uid, "state": state, "point": _numbers(said.get("point")),
               "box": _numbers(said.get("box")), "first_choice": shown.get("first_choice"),
               "model_version": shown.get("model_version")}
        table.writerow([_harmless(row.get(name)) for name in COLUMNS])
    return text.getvalue()


def _kappa(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.2f}"


def _numbers(values: tuple[float, ...] | None) -> str:
    return " ".join(f"{value:g}" for value in values or ())


def _harmless(value: object) -> object:
    """A cell that no spreadsheet takes for a formula."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return value

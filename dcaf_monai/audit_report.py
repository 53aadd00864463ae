"""An audit written down: ``audit.json``, and ``audit.html``, one self-contained page with the evidence."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import jinja2

from dcaf_monai import audit_pictures as pictures
from dcaf_monai.audit import Audit, Item
from dcaf_monai.audit_checks import ALARM, LOOK, PASS

_PNG = b"\x89PNG"
_OUTLINES = {"boxes": "boxes", "text": "texts"}

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>DCAF audit</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
 body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1150px; padding: 0 1rem;
        color: #1b2733; background: #fff; }
 h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
 h3 { font-size: 1rem; margin: 0 0 .3rem } .note { color: #56657a; max-width: 95ch }
 .warning { background: #fff4e5; border-left: 4px solid #d98300; padding: .5rem .8rem; max-width: 95ch }
 table { border-collapse: collapse; width: 100% } th { text-align: left; font-weight: 600; color: #56657a }
 td, th { padding: .35rem .6rem; border-bottom: 1px solid #e3e8ee; vertical-align: top }
 .item { border-left: 4px solid #ccc; padding: .2rem .9rem .6rem; margin: 1.1rem 0 }
 .item.alarm { border-color: #b3261e } .item.look { border-color: #d98300 }
 .tag { border-radius: 3px; padding: .05rem .45rem; font-size: .82em; color: #fff; white-space: nowrap }
 .tag.alarm { background: #b3261e } .tag.look { background: #a86500 } .tag.pass { background: #2e7d4f }
 .evidence { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; margin-top: .5rem }
 .evidence figure { margin: 0 } figcaption { font-size: .8rem; color: #56657a }
 .evidence img { max-width: 100%; display: block } code { font-size: .85em; overflow-wrap: anywhere }
</style></head><body>
<h1>DCAF audit: <span class="tag {{ audit.worst }}">{{ audit.worst }}</span></h1>
<p>{{ audit.rows|length }} images. {{ counts.alarm }} alarms, {{ counts.look }} to look at,
{{ counts.pass }} passed.</p>
<p class="warning">This page contains pictures of patients. Keep it where the data may be kept.</p>
<p class="note">pass: nothing found, which is no proof of absence. look: a person should. alarm: figures from
this data cannot be taken at their face value. Associations count when they are more than chance (permutation
of labels between patients, Holm's correction over all checks of a task, level {{ thresholds.alpha }}) and
strong enough; the thresholds are at the end. Research software, not a medical device.</p>
{% for task in tasks %}<h2>{{ task.title }}
<span class="tag {{ task.verdict }}">{{ task.verdict }}</span></h2>
{% if task.sha256 %}<p class="note">Data digest <code>{{ task.sha256 }}</code></p>{% endif %}
{% for item in task.found %}<div class="item {{ item.verdict }}">
<h3><span class="tag {{ item.verdict }}">{{ item.verdict }}</span> {{ item.title }}</h3>
<div>{{ item.sentence }}</div>
<div class="evidence">{% for picture in item.pictures %}<figure><img alt="{{ picture.words }}"
src="{{ picture.url }}"><figcaption>{{ picture.words }}</figcaption></figure>{% endfor %}</div></div>
{% endfor %}
{% if task.passed %}<table><tr><th>Passed</th><th></th></tr>{% for item in task.passed %}
<tr><td>{{ item.title }}</td><td>{{ item.sentence }}</td></tr>{% endfor %}</table>{% endif %}
{% endfor %}
<h2>Thresholds</h2>
<table><tr><th>Kind of check</th><th>look from</th><th>alarm when the interval's lower bound reaches</th></tr>
{% for name, pair in kinds %}<tr><td>{{ name }}</td><td>{{ pair[0] }}</td><td>{{ pair[1] }}</td></tr>
{% endfor %}
</table>
</body></html>
"""
_KINDS = {"table": "category that cannot be the disease (source, box, tint), Cramér's V",
          "artefact": "property that cannot be the disease (size, compression, margins), AUROC",
          "content": "property that could be the disease in part; split or source of a picture, AUROC",
          "context": "picture without its middle, AUROC", "picture": "thumbnail, AUROC"}


def write_audit(audit: Audit, folder: Path) -> tuple[Path, Path]:
    """Write ``audit.json`` and ``audit.html`` into a folder, each whole or not at all.

    The page holds pictures of patients.

    Args:
        audit: From `audit.audit_cohort`.
        folder: Made when missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    document = audit.document()
    tasks = [_task(audit, name, document["tasks"][name]["verdict"]) for name in audit.sha256]
    across = [item for item in audit.items if not item.task and "" not in audit.sha256]
    if across:
        tasks.append(_section(audit, across, "Across tasks", "", ""))
    page = jinja2.Environment(autoescape=True).from_string(_PAGE).render(
        audit=audit, tasks=tasks, thresholds=document["thresholds"],
        kinds=[(words, document["thresholds"][name]) for name, words in _KINDS.items()],
        counts={verdict: sum(item.verdict == verdict for item in audit.items)
                for verdict in (ALARM, LOOK, PASS)})
    written = folder / "audit.json", folder / "audit.html"
    for path, text in zip(written, (json.dumps(document, indent=1) + "\n", page), strict=True):
        partial = path.with_name(path.name + ".part")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    return written


def _task(audit: Audit, name: str, verdict: str) -> dict:
    own = [item for item in audit.items if item.task == name]
    return _section(audit, own, name or "Data", verdict, audit.sha256[name])


def _section(audit: Audit, items: list[Item], title: str, verdict: str, sha256: str) -> dict:
    order = sorted((item for item in items if item.verdict != PASS), key=lambda item: item.verdict != ALARM)
    return {"title": title, "sha256": sha256, "verdict": verdict or (order[0].verdict if order else PASS),
            "found": [{"verdict": item.verdict, "title": title_of(item.name), "sentence": item.sentence,
                       "pictures": _evidence(audit, item)} for item in order],
            "passed": [{"title": title_of(item.name), "sentence": item.sentence}
                       for item in items if item.verdict == PASS]}


def title_of(name: str) -> str:
    """A check's name for a person."""
    return name.replace("_", " ").capitalize()


def _evidence(audit: Audit, item: Item) -> list[dict[str, str]]:
    evidence = item.evidence
    found: list[tuple[bytes, str]] = []
    if evidence.cases:
        label = f", surest of {item.figures['label']}" if evidence.scores and "label" in item.figures else ""
        found.append((pictures.montage(audit.rows, audit.marks, evidence.cases,
                                       outline=_OUTLINES.get(item.name, "")),
                      f"{min(len(evidence.cases), pictures.MOST_TILES)} of {len(evidence.cases)} pictures"
                      f"{label}"))
    found += pictures.pairs(audit.rows, audit.marks, evidence)
    if evidence.shares:
        found.append((pictures.shares(evidence), "Share of each label"))
    if evidence.scores:
        found.append((pictures.distribution(evidence), f"Distribution of {evidence.axis}"))
    if evidence.mask:
        own = [(row, mark) for row, mark in zip(audit.rows, audit.marks, strict=True)
               if row.task == item.task]
        found.append((pictures.mean_pictures([row for row, _ in own], [mark for _, mark in own], evidence),
                      "Mean picture of each label as the probe sees it"))
    return [{"url": f"data:image/{'png' if picture[:4] == _PNG else 'jpeg'};base64,"
             + base64.b64encode(picture).decode("ascii"), "words": words} for picture, words in found]

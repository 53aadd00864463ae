"""``make bench``: run every table and write ``docs/performance.md``."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
from datetime import date
from pathlib import Path

from rich.console import Console
from rich.table import Table

import dcaf_monai  # noqa: F401  (before torch: it says how OpenMP waits)

# isort: split
import torch

TABLES = {
    "answer": "Whole answer (T = 50 entropy and overlay) over one plain forward of the cut trunks",
    "training": "Frozen-mode epoch over a full fine-tuning epoch",
    "reading": "File to network input",
    "serving": "Over HTTP",
    "store": "Store",
    "worklist": "Worklist",
    "acquiring": "Choosing what to label next",
    "viewer": "3D Slicer module (the tests' fixture, software rendering)",
}
REMARKS = {
    "answer": "The 50 stochastic passes are the time of one, fifty times over.",
    "training": "A smaller epoch has a worse ratio, as what it costs at least weighs more: 64 + 16 cases in "
                "batches of 16 gave 0.033 (2026-11-27).",
    "viewer": "A case chosen by hand is fetched from nothing; a reader goes on by the button, and that case "
              "has been fetched ahead. Viewer, software rendering and server share two cores: over several "
              "days the first ratio was 1.2 to 1.7.",
}
DOC = Path(__file__).resolve().parents[1] / "docs/performance.md"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _machine() -> str:
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.processor())
    return f"{os.cpu_count()} x {cpu}, Python {platform.python_version()}, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("tables", nargs="*", default=list(TABLES), help=f"any of {', '.join(TABLES)}")
    wanted = parser.parse_args().tables
    console = Console()
    text = ["# Performance", "", "Ratios measured side by side in one process, contenders interleaved, "
            "medians. Read the ratios, not the milliseconds.", "",
            f"Machine: {_machine()}. Date: {date.today()}. Command: `make bench`.", ""]
    for name in wanted:
        rows = importlib.import_module(f"benchmarks.{name}").rows()
        table = Table("what", "ours (ms)", "beside", "(ms)", "ratio", "goal", title=TABLES[name])
        text += [f"## {TABLES[name]}", "", *((REMARKS[name], "") if name in REMARKS else ()),
                 "| what | ours (ms) | beside | (ms) | ratio | goal |",
                 "|---|---|---|---|---|---|"]
        for row in rows:
            cells = [row["what"], _number(row["ours_ms"]), row["peer"], _number(row["peer_ms"]),
                     _number(row["ratio"]), row["goal"] or ""]
            table.add_row(*cells)
            text.append("| " + " | ".join(cells) + " |")
        text.append("")
        console.print(table)
        if wanted == list(TABLES):  # after each table: a stopped run keeps what it has measured
            DOC.write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()

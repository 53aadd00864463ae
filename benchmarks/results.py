"""``make results``: every experiment of ``docs/results.md`` again, from the images to the tables.

Each step is a ``dcaf`` command that goes on where it was stopped, and so does the whole. Without
``--backbones`` and ``--weights`` the trunks are the default pair with timm's ImageNet weights, which a
connected machine downloads.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

TASKS = {"oct": 8, "pneumonia": 3, "tuberculosis": 5, "covid19": 5}
"""Task to epochs."""
NOTES = Path(__file__).resolve().parents[1] / "docs/data_notes"
TITLE = ("# Tables of the ablations\n\n"
         "Written by `make results`; what they mean is in [results.md](results.md).\n\n")
ALARM = 1
"""Exit code of an audit that found something, which is a result and no failure."""


def run(*arguments: object, accept: tuple[int, ...] = (0,)) -> None:
    """One ``dcaf`` command; ends everything when it fails."""
    words = [str(argument) for argument in arguments]
    print("dcaf " + " ".join(words), flush=True)
    code = subprocess.run([sys.executable, "-m", "dcaf_monai.cli", *words]).returncode
    if code not in accept:
        raise SystemExit(code)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the table of all images: index.csv")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of everything")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), help=f"any of {', '.join(TASKS)}")
    parser.add_argument("--backbones", default="efficientnet_b4,resnet34")
    parser.add_argument("--weights", default="pretrained", help="pretrained, none, or two files FIRST,SECOND")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--epochs", type=int, help="for all tasks")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--replays", type=int, default=10, help="seeds of the replay of active learning")
    parser.add_argument("--simulate", nargs="*", default=["oct"], help="tasks to replay active learning on")
    asked = parser.parse_args()
    data, out, cache = asked.data, asked.out, asked.out / "cache"
    trunks = ("--backbones", asked.backbones, "--weights", asked.weights)
    sized = (*trunks, "--size", asked.size, "--cache", cache)

    tasks = [word for task in asked.tasks for word in ("--task", task)]
    run("audit", "--data", data, "--report", out / "audit", *tasks,
        *(trunks if asked.weights != "none" else ()), accept=(0, ALARM))
    for task in asked.tasks:
        run("ablate", "--data", data, "--task", task, "--report", out / "ablation", *sized,
            "--epochs", asked.epochs or TASKS[task], "--seeds", asked.seeds)
        model, report = out / f"ablation/{task}-dcaf-0.safetensors", out / f"report-{task}"
        run("evaluate", model, "--data", data, "--report", report, "--audit", out / "audit/audit.json",
            "--mark")
        run("card", model, "--evaluation", report / "evaluation.json", "--data-notes", NOTES / f"{task}.toml",
            "--out", out / f"model_card_{task}.md")
    for task in asked.simulate:
        run("simulate", "--data", data, "--task", task, "--report", out / f"simulation-{task}", *sized,
            "--seeds", asked.replays)
    tables = [(out / f"ablation/ablation-{task}.md").read_text(encoding="utf-8") for task in asked.tasks]
    (out / "results_tables.md").write_text(TITLE + "\n".join(tables), encoding="utf-8")
    print(out / "results_tables.md")


if __name__ == "__main__":
    main()

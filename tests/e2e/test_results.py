"""The one command that makes every experiment again, on a few synthetic films and a tiny network."""

import json
import os
import subprocess
import sys
from pathlib import Path

from dcaf_monai.phantom import write_films

ROOT = Path(__file__).resolve().parents[2]


def test_one_command_makes_audit_ablation_report_card_simulation_and_tables(tmp_path):
    write_films(tmp_path / "films", 80, seed=4)
    out = tmp_path / "results"
    made = subprocess.run(
        [sys.executable, "-m", "benchmarks.results", "--data", tmp_path / "films/labels.csv", "--out", out,
         "--tasks", "pneumonia", "--simulate", "pneumonia", "--backbones", "test_efficientnet,test_resnet",
         "--weights", "none", "--size", "64", "--epochs", "1", "--seeds", "2", "--replays", "2"],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=900)
    assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
    tables = (out / "results_tables.md").read_text()
    assert "## pneumonia" in tables and "frozen, of none. 2 seeds, 1 epochs, 16 test images" in tables
    assert json.loads((out / "report-pneumonia/evaluation.json").read_text())["audit"]["verdict"]
    assert (out / "model_card_pneumonia.md").read_text().startswith("# ")
    told = json.loads((out / "simulation-pneumonia/simulation.json").read_text())
    assert told["plan"]["seeds"] == 2 and told["chosen_on_validation"]["10"]

"""From a file to a fine-tuned, compared model by one command: the two pipelines that come along, with little training."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent


def run_pipeline(cwd, *arguments):
    done = subprocess.run([BIN / "llmops", "pipeline", "run", *map(str, arguments), "--json"], cwd=cwd, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return json.loads(done.stdout)


def check_run(told):
    "Every step finished and left a notebook that is small; the report needs nothing from anywhere."
    assert told["status"] == "FINISHED"
    assert [step["step"] for step in told["steps"]] == ["explore", "prepare", "before", "finetune", "after", "compare", "monitor"]
    for step in told["steps"]:
        assert step["status"] == "FINISHED"
        assert Path(step["notebook"]).stat().st_size < 1_000_000
    report = Path(told["report"]).read_text(encoding="utf-8")
    assert "<script" not in report and "<h2>Scores</h2>" in report and report.count("data:image/") >= 5
    assert len(report) < 5_000_000
    return pd.DataFrame(told["scores"])


def change_of(scores, task, metric):
    "Value before and value after; the systems' columns stand in that order."
    row = scores[(scores["task"] == task) & (scores["metric"] == metric)].iloc[0]
    before, after = [name for name in scores if name not in ("task", "metric", "change", "verdict")]
    assert before == "starter" and after.startswith("starter-") and "/" not in after
    return row[before], row[after]


def test_real_input_with_several_references(shared_data, workspace, tmp_path):
    "Meaning representations become sentences, by parameters alone; half a minute of training is enough to be better than before."
    told = run_pipeline(tmp_path, "e2e", "-p", "dataset", shared_data / "e2e" / "devset.csv", "-p", "max_minutes", 0.5, "-p", "n_examples", 40)
    scores = check_run(told)
    for metric in ("bleu", "rougeL"):
        before, after = change_of(scores, "sentence", metric)
        assert after > before, (metric, before, after)
    # Several references a question, and no meaning representation on two sides.
    from llmops_workbench.datasets import read_dataset
    from llmops_workbench.store import open_store
    steps = {step["step"]: step["run_id"] for step in told["steps"]}
    outputs = open_store().get_run(steps["prepare"]).outputs
    sides = {name: set(read_dataset(reference).frame["prompt"]) for name, reference in outputs.items()}
    assert not sides["train"] & sides["test"] and not sides["train"] & sides["validation"] and not sides["validation"] & sides["test"]
    grid = open_store().get_run(steps["after"]).frame()
    assert grid["references"].map(len).max() > 3
    assert len(grid) == 40 and not grid["example_id"].duplicated().any()

"""What the whole life cycle reaches: both pipelines with their full training, the figures before and after, and what they are held to.

Runs `llmops pipeline run` as a user does, in a workspace of its own. `python benchmarks/lifecycle.py [--e2e FILE] [--output FILE]`; without a file
of the E2E NLG challenge (columns mr and ref) only the help desk is run. The figures depend on how busy the machine is, because training is
given minutes and not steps.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

METRICS = ("valid_json", "json_match", "json_field_f1", "rougeL", "chrf", "bleu")
# (pipeline, task, metric) -> the least it has to reach after fine-tuning.
WANTED = {("helpdesk", "query", "valid_json"): 0.95, ("helpdesk", "query", "json_match"): 0.70, ("helpdesk", "summary", "rougeL"): 0.60,
          ("e2e", "sentence", "bleu"): 45.0}
REAL_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "e2e" / "devset.csv"


def run_pipeline(name, workspace, *arguments):
    "Figures of one run: a row a metric."
    began = time.perf_counter()
    done = subprocess.run([Path(sys.executable).parent / "llmops", "pipeline", "run", name, *map(str, arguments), "--json"],
                          env={**os.environ, "LLMOPS_WORKSPACE": str(workspace)}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    told = json.loads(done.stdout)
    seconds = {step["step"]: round(step["duration_s"], 1) for step in told["steps"]}
    return told["scores"], {"seconds": round(time.perf_counter() - began, 1), "steps": seconds, "report": told["report"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--e2e", default=str(REAL_DATA) if REAL_DATA.is_file() else None, help="file of the E2E NLG challenge")
    parser.add_argument("--output", help="JSON file for the figures")
    parser.add_argument("--workspace", help="folder to work in; a temporary one by default")
    given = parser.parse_args()
    workspace, figures, short = given.workspace or tempfile.mkdtemp(), {}, []
    for name, arguments in [("helpdesk", ()), *([("e2e", ("-p", "dataset", given.e2e))] if given.e2e else [])]:
        scores, facts = run_pipeline(name, workspace, *arguments)
        figures[name] = {**facts, "scores": scores}
        print(f"{name}: {facts['seconds']:.0f} s in all; {', '.join(f'{step} {s:.0f} s' for step, s in facts['steps'].items())}")
        before, after = [column for column in scores[0] if column not in ("task", "metric", "change", "verdict")]
        for row in [row for row in scores if row["metric"] in METRICS]:
            wanted = WANTED.get((name, row["task"], row["metric"]))
            verdict = "" if wanted is None else f"   wanted {wanted:g}: {'reached' if row[after] >= wanted else 'NOT reached'}"
            if wanted is not None and row[after] < wanted:
                short.append((name, row["task"], row["metric"]))
            print(f"  {row['task']:10} {row['metric']:14} {row[before]:8.3f} -> {row[after]:8.3f}{verdict}")
    if given.output:
        Path(given.output).write_text(json.dumps(figures, indent=1))
    return bool(short)


if __name__ == "__main__":
    sys.exit(main())

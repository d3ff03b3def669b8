"""`make bench` runs every script as it is: each measures what it can, says what it left out, and leaves the figures of a whole run alone."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
SCRIPTS = sorted(FOLDER.glob("*.py"))
SMALL = {"text_profile.py": ["--rows", "300", "--repeats", "1"], "near_duplicates.py": ["--docs", "300", "--repeats", "1"],
         "endpoints.py": ["--cells", "60", "--repeats", "1", "--without-sequential"]}


def test_no_benchmark_has_the_name_of_a_module_of_python():
    "The folder of a script comes first on its path: torch found profile.py in place of Python's own, and so would everything else."
    assert not {path.stem for path in SCRIPTS} & set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_benchmark_needs_no_arguments(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"]
    assert not [call.args[0].value for call in calls if not call.args[0].value.startswith("-") or any(k.arg == "required" for k in call.keywords)]


@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_runs_beside_the_peers_that_are_there(name, tmp_path):
    output, kept = tmp_path / "figures.json", FOLDER / "results" / name.replace(".py", ".json")
    before = kept.read_bytes()
    done = subprocess.run([sys.executable, FOLDER / name, *SMALL[name], "--output", str(output)], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "PYTHONPATH": str(FOLDER.parent)})
    assert done.returncode == 0, done.stderr
    assert output.exists() == ("Left out: " not in done.stdout) and kept.read_bytes() == before
    assert "ours" in done.stdout

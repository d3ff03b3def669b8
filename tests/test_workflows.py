"""Explore, freeze, run: the workflow notebooks are their stages, and give headlessly what the panel gave."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import find_chromium

from llmops_workbench.catalogue import workflow_folder
from llmops_workbench.finetuning import MEASURED
from llmops_workbench.params import parameters_cell

BIN = Path(sys.executable).parent

# Workflow -> parameters other than the defaults, small enough for a test and telling enough that a lost one would show.
CASES = {
    "explore": {"signals": ["lengths", "tokens", "language"], "max_length_tokens": 100, "columns": ["channel", "query"]},
    "prepare": {"split": {"train": 0.7, "validation": 0.1, "test": 0.2}, "steps": ["drop_empty", {"filter_length": {"minimum": 60}}], "seed": 3},
    "prompt": {"prompts": {"short": "Query as JSON: {text}", "as prepared": "{prompt}"}, "n_examples": 4, "max_new_tokens": 24, "task": "query"},
    "optimize": {"n_validation": 12, "n_test": 24, "max_trials": 2, "n_shots": 0, "max_new_tokens": 32, "task": "summary", "seed": 1},
    "finetune": {"max_steps": 3, "learning_rate": 0.001, "eval_samples": 12, "sample_completions": 2, "max_length": 256},
    "compare": {"systems": ["yardstick:nearest", "yardstick:commonest"], "baseline": "yardstick:commonest", "max_examples": 60, "n_resamples": 200, "seed": 2},
    "feedback": {"rows": ["HD-000003", "HD-000001", 4], "labels": ["broken", "wanted"], "queue": "broken or wanted", "order": "given"},
    "monitor": {"window": "M", "thresholds": {"text.words": 0.2}, "n_permutations": 20, "max_rows": 200, "columns": ["channel", "text"]},
}


def panel_class(name):
    module = importlib.import_module(f"llmops_workbench.widgets.{name}")
    return getattr(module, f"{name.capitalize()}Panel")


def notebook_of(name):
    return json.loads((workflow_folder() / f"{name}.ipynb").read_text(encoding="utf-8"))


def source(cell):
    return "".join(cell["source"])


def comparable(summary):
    "A summary without what no two runs share, as it is after a trip through JSON."
    return json.loads(json.dumps({name: value for name, value in summary.items() if name not in MEASURED}))


def all_outputs(notebook):
    return [output.get("data", {}) for cell in notebook["cells"] if cell["cell_type"] == "code" for output in cell["outputs"]]


def check_reads_well(path):
    "Small, without widget state of any weight, with tables and pictures that need no script."
    assert path.stat().st_size < 1_000_000
    notebook = json.loads(path.read_text(encoding="utf-8"))
    pages = ["".join(data["text/html"]) for data in all_outputs(notebook) if "text/html" in data]
    assert any("<table" in page for page in pages)
    assert any('src="data:image/' in page for page in pages)
    assert not any("<script" in page for page in pages)
    return notebook


def test_every_workflow_has_a_case():
    assert set(CASES) == {path.stem for path in workflow_folder().glob("*.ipynb")} - {"home"}


@pytest.mark.parametrize("name", CASES)
def test_the_parameters_cell_is_the_signature(name):
    "The stage's signature is the only schema; the cell is generated from it and must not drift away."
    cells = notebook_of(name)["cells"]
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", ())]
    assert len(tagged) == 1
    assert source(tagged[0]) == parameters_cell(panel_class(name)().function)


@pytest.mark.parametrize("name", CASES)
def test_a_workflow_is_short_and_defines_nothing(name):
    cells = notebook_of(name)["cells"]
    code = "\n".join(source(cell) for cell in cells if cell["cell_type"] == "code")
    assert 8 <= len(cells) <= 20
    assert "def " not in code and "class " not in code
    # Every parameter reaches the panel under its own name.
    for parameter in panel_class(name)().declared:
        assert f"{parameter}={parameter}" in code


def check_export(notebook, browser, picture):
    "Plain nbconvert, opened in a browser with no network: every table is there, every picture has been decoded, and nothing came from elsewhere."
    from lab import browser_page
    subprocess.run([BIN / "jupyter", "nbconvert", "--to", "html", notebook], cwd=notebook.parent, check=True, capture_output=True)
    pages = [page for data in all_outputs(json.loads(notebook.read_text(encoding="utf-8"))) if (page := "".join(data.get("text/html", "")))]
    tables, pictures = (sum(page.count(sign) for page in pages) for sign in ("<table", 'src="data:image/'))
    with browser_page(browser, offline=True) as page:
        page.goto(notebook.with_suffix(".html").as_uri())
        assert page.locator("table:visible").count() >= tables > 0
        widths = page.eval_on_selector_all("img", "images => images.map(image => image.complete ? image.naturalWidth : 0)")
        assert len(widths) >= pictures > 0 and all(width > 100 for width in widths), widths
        # nbconvert's own template asks for these on every page, and the page is whole without them. What draws widgets is not asked for.
        assert not [url for url in page.refused if not any(name in url.lower() for name in ("mathjax", "require"))], page.refused
        page.screenshot(path=str(picture), full_page=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_explore_freeze_run(name, workspace, tmp_path, artefacts, monkeypatch):
    """What the panel shows, frozen as YAML and run headlessly by the command and by plain papermill, has the same summary.

    The executed notebooks read well, and so does what plain nbconvert makes of the one that the plain papermill command made.
    """
    # Sums of floats depend on the number of threads, and on a busy machine each process would find another number the best.
    monkeypatch.setenv("LLMOPS_THREADS", "1")
    panel = panel_class(name)(**CASES[name])
    shown = comparable(panel.run().summary)
    (tmp_path / "frozen.yaml").write_text(panel.to_yaml(), encoding="utf-8")

    done = subprocess.run([BIN / "llmops", "run", name, "-f", "frozen.yaml", "--output", "ours.ipynb", "--json"],
                          cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert comparable(told["summary"]) == shown
    ours = check_reads_well(tmp_path / "ours.ipynb")
    assert "widgets" not in ours["metadata"]
    assert not any("application/vnd.jupyter.widget-view+json" in data for data in all_outputs(ours))

    # A run opened in the form again has the parameters it was run with.
    assert panel_class(name).from_run(told["run_id"]).params == panel.params

    done = subprocess.run([BIN / "papermill", workflow_folder() / f"{name}.ipynb", "plain.ipynb", "-f", "frozen.yaml"],
                          cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    plain = check_reads_well(tmp_path / "plain.ipynb")
    run_id = next(text.strip("'") for data in reversed(all_outputs(plain)) if (text := "".join(data.get("text/plain", ""))))
    from llmops_workbench.store import open_store
    record = open_store().get_run(run_id)
    assert comparable(record.summary) == shown

    if browser := find_chromium():
        check_export(tmp_path / "plain.ipynb", browser, artefacts / f"export-{name}.png")

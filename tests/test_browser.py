"""A real JupyterLab in a real Chromium: run all, click Launch, watch the curve, restart the kernel, change a comparison."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lab import Lab, browser_page, jupyter_lab

from llmops_workbench.catalogue import workflow_folder

pytestmark = [pytest.mark.browser, pytest.mark.slow]

POINTS = """() => Math.max(0, ...[...document.querySelectorAll('.js-plotly-plot')]
    .flatMap(chart => (chart.data || []).filter(trace => trace.name === 'batch').map(trace => trace.x.length)))"""


def change_parameters(path, **values):
    "Set parameters in a copy of a workflow, as a person edits the cell."
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cell = next(cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", ()))
    source = "".join(cell["source"])
    for name, value in values.items():
        source, n = re.subn(rf"^({name}: [^=]+) = .*$", lambda found, value=value: f"{found[1]} = {value!r}", source, flags=re.M)
        assert n == 1, name
    cell["source"] = source
    path.write_text(json.dumps(notebook), encoding="utf-8")


@pytest.fixture
def project(tmp_path):
    "The workflows in a folder of their own, as `llmops init` lays them down."
    for path in workflow_folder().glob("*.ipynb"):
        shutil.copy(path, tmp_path / path.name)
    return tmp_path


def job_folders(workspace):
    return [path.parent for path in (workspace / "jobs").glob("*/job.json")]


def test_finetune_is_launched_watched_and_found_again(project, workspace, chromium, artefacts):
    change_parameters(project / "finetune.ipynb", max_steps=150, eval_samples=24, sample_completions=2, learning_rate=0.001)
    with jupyter_lab(project, LLMOPS_WORKSPACE=str(workspace), LLMOPS_THREADS="1") as (address, token), browser_page(chromium) as page:
        lab = Lab(page, address, token)
        lab.open("finetune.ipynb")
        lab.run_all()
        assert not lab.errors()
        launch = page.get_by_role("button", name="Launch", exact=True)
        launch.wait_for(timeout=60_000)
        assert not job_folders(workspace), "nothing starts before somebody says so"
        page.screenshot(path=str(artefacts / "finetune-1-form.png"))

        launch.click()
        page.wait_for_function(f"({POINTS})() > 3", timeout=120_000)
        first = page.evaluate(POINTS)
        page.wait_for_function(f"({POINTS})() > {first + 5}", timeout=60_000)
        page.screenshot(path=str(artefacts / "finetune-2-running.png"))
        assert len(job_folders(workspace)) == 1

        # The kernel goes, the job stays, and the page finds it again.
        lab.restart_kernel()
        status = json.loads((job_folders(workspace)[0] / "status.json").read_text())
        assert status["state"] == "running", status
        lab.run_all()
        page.wait_for_function(f"({POINTS})() > {first}", timeout=60_000)
        page.screenshot(path=str(artefacts / "finetune-3-found-again.png"))
        assert len(job_folders(workspace)) == 1, "a restart never starts a second job"

        page.locator("b:visible", has_text="Answers to held-out prompts").first.wait_for(timeout=240_000)
        status = json.loads((job_folders(workspace)[0] / "status.json").read_text())
        assert status["state"] == "completed" and len(job_folders(workspace)) == 1
        page.locator(".llmops-rows tbody tr").first.click()
        page.get_by_text("Answer, as it differs from the reference").first.wait_for(timeout=30_000)
        launch.scroll_into_view_if_needed()
        page.wait_for_timeout(1000)
        page.screenshot(path=str(artefacts / "finetune-4-done.png"))
        assert not lab.errors()

        lab.save()
        saved = project / "finetune.ipynb"
        assert saved.stat().st_size < 1_000_000
        text = saved.read_text(encoding="utf-8")
        assert "Answers to held-out prompts" in text, "the saved page shows the result to readers without a kernel"
        # Nobody but loopback was asked for anything.
        assert not page.refused, page.refused


def test_a_comparison_follows_what_is_changed(project, workspace, chromium, artefacts):
    change_parameters(project / "compare.ipynb", max_examples=60, n_resamples=200)
    with jupyter_lab(project, LLMOPS_WORKSPACE=str(workspace)) as (address, token), browser_page(chromium) as page:
        lab = Lab(page, address, token)
        lab.open("compare.ipynb")
        lab.run_all()
        assert not lab.errors()
        baseline = page.get_by_label("baseline").last
        baseline.wait_for(timeout=60_000)
        page.locator("td:visible", has_text="▲ better").first.wait_for()
        page.screenshot(path=str(artefacts / "compare-1.png"))

        baseline.select_option("yardstick:nearest")
        # The hidden static face has the same words, and comes first in the page.
        page.locator("td:visible", has_text="▼ worse").first.wait_for(timeout=60_000)
        assert page.locator("td:visible", has_text="▲ better").count() == 0
        lab.wait_until_idle()
        page.get_by_role("tab", name="Examples", exact=True).click()
        page.locator(".llmops-rows tbody tr").first.click()
        page.get_by_text("as it differs from yardstick:nearest").first.wait_for(timeout=30_000)
        page.screenshot(path=str(artefacts / "compare-2-other-baseline.png"))
        assert not lab.errors()

        # No chart offers to upload itself.
        assert page.locator(".modebar-btn[data-title*='cloud' i], .modebar-btn[data-title*='share' i]").count() == 0
        assert not page.refused, page.refused


def test_home_leads_to_every_workflow(project, workspace, chromium, artefacts):
    with jupyter_lab(project, LLMOPS_WORKSPACE=str(workspace)) as (address, token), browser_page(chromium) as page:
        lab = Lab(page, address, token)
        lab.open("home.ipynb")
        lab.run_all()
        assert not lab.errors()
        names = [path.stem for path in workflow_folder().glob("*.ipynb") if path.stem != "home"]
        for name in names:
            assert page.locator(f".jp-RenderedHTMLCommon a[href*='{name}.ipynb']").count() >= 1, name
        page.screenshot(path=str(artefacts / "home.png"))
        page.locator(".jp-RenderedHTMLCommon a[href*='explore.ipynb']").first.click()
        page.get_by_role("tab", name="explore.ipynb").wait_for(timeout=30_000)


def test_texts_are_brushed_sorted_searched_and_read(project, workspace, chromium, artefacts):
    with jupyter_lab(project, LLMOPS_WORKSPACE=str(workspace), LLMOPS_THREADS="1") as (address, token), browser_page(chromium) as page:
        lab = Lab(page, address, token)
        lab.open("explore.ipynb")
        lab.run_all()
        assert not lab.errors()
        count, keys = page.locator(".llmops-count:visible"), page.locator(".llmops-rows:visible tbody tr")
        count.wait_for(timeout=60_000)

        def shown(pattern):
            page.wait_for_function("([css, text]) => [...document.querySelectorAll(css)].some(node => node.offsetParent && new RegExp(text).test(node.textContent))",
                                   arg=[".llmops-count", pattern], timeout=30_000)
            return count.inner_text()
        assert shown("1–10 of 6,000")

        # A drag over bars keeps their rows; the bars of the other columns follow, its own stay.
        bars = page.locator('[data-focus="bars tokens"]:visible')
        bars.scroll_into_view_if_needed()
        box = bars.bounding_box()
        page.mouse.move(box["x"] + box["width"]*0.3, box["y"] + 20)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"]*0.45, box["y"] + 20, steps=4)
        page.mouse.up()
        brushed = shown(r"of [\d,]+ of 6,000")
        assert page.locator(".llmops-chips button:visible").count() == 1
        page.screenshot(path=str(artefacts / "explore-1-brushed.png"))

        # With the keyboard: the second bar over `channel` joins in.
        page.locator('[data-focus="bars channel"]:visible').focus()
        for key in ("ArrowRight", "ArrowRight", "Enter"): page.keyboard.press(key)
        page.wait_for_function("() => [...document.querySelectorAll('.llmops-chips button')].filter(node => node.offsetParent).length === 2", timeout=30_000)
        both = count.inner_text()
        assert both != brushed
        page.locator("button[title=undo]:visible").click()
        assert shown(re.escape(brushed)) == brushed

        # Sorted down, the longest come first; what is searched for is in every row; a row is read with the arrow keys.
        for _ in range(2):
            page.locator('[data-focus="sort tokens"]:visible').click()
            page.wait_for_timeout(500)
        tokens = [int(row.locator("td").nth(3).inner_text()) for row in keys.all()]
        assert tokens == sorted(tokens, reverse=True)
        search = page.locator(".llmops-bar input:visible")
        search.fill("printer")
        search.press("Enter")
        page.wait_for_function("() => [...document.querySelectorAll('.llmops-chips button')].some(node => node.offsetParent && /printer/.test(node.textContent))", timeout=30_000)
        keys.first.click()
        page.locator("div[style*='border-left']:visible", has_text=re.compile("printer", re.I)).first.wait_for(timeout=30_000)
        first = keys.first.get_attribute("data-key")
        keys.first.focus()
        page.keyboard.press("ArrowDown")
        page.wait_for_function("key => { const row = document.querySelector('.llmops-rows tr[aria-selected=\"true\"]'); return row && row.dataset.key !== key; }", arg=first, timeout=30_000)
        page.screenshot(path=str(artefacts / "explore-2-read.png"))
        assert not lab.errors() and not page.refused


def wait_for_text(page, css, pattern):
    "Until a node that can be seen says something."
    page.wait_for_function("([css, text]) => [...document.querySelectorAll(css)].some(node => node.offsetParent && new RegExp(text).test(node.textContent))", arg=[css, pattern], timeout=30_000)


def test_findings_map_reader_and_rows_to_keep(project, workspace, chromium, artefacts):
    "What is clicked in one place is seen in all others; what is picked becomes a dataset."
    change_parameters(project / "explore.ipynb", signals=["lengths", "tokens", "characters", "language", "personal", "duplicates", "topics"])
    with jupyter_lab(project, LLMOPS_WORKSPACE=str(workspace), LLMOPS_THREADS="1") as (address, token), browser_page(chromium) as page:
        lab = Lab(page, address, token)
        lab.open("explore.ipynb")
        lab.run_all()
        assert not lab.errors()
        page.locator(".llmops-map:visible").wait_for(timeout=60_000)

        # A finding selects its rows in the table and on the map, and the cut-off counts only these.
        page.get_by_role("button", name="4,797 rows").click()
        wait_for_text(page, ".llmops-count", "of 4,797 of 6,000")
        wait_for_text(page, ".llmops-map-count", "4,797 of 6,000")
        wait_for_text(page, "[role=status]", "of 4,797 texts")
        page.get_by_role("button", name="+ redact").click()
        page.locator("textarea[aria-label='steps for prepare']").wait_for(timeout=30_000)
        assert page.locator("textarea[aria-label='steps for prepare']").input_value() == '["redact"]'
        page.locator("button[title=undo]:visible").click()
        wait_for_text(page, ".llmops-count", "1–10 of 6,000")

        # The lasso.
        drawn = page.locator(".llmops-map:visible")
        drawn.scroll_into_view_if_needed()
        page.wait_for_timeout(500)
        box = drawn.bounding_box()
        at = lambda x, y: (box["x"] + box["width"] * x, box["y"] + box["height"] * y)
        page.mouse.move(*at(0.3, 0.2))
        page.mouse.down()
        for x, y in ((0.7, 0.2), (0.7, 0.8), (0.3, 0.8)): page.mouse.move(*at(x, y), steps=3)
        page.mouse.up()
        wait_for_text(page, ".llmops-chips button", "picked rows")
        wait_for_text(page, ".llmops-count", r"of [\d,]+ of 6,000")
        page.screenshot(path=str(artefacts / "explore-3-lasso.png"))
        page.get_by_role("button", name="show all").click()
        wait_for_text(page, ".llmops-count", "1–10 of 6,000")

        # With the keyboard alone: a topic from the legend, a pattern, a bad pattern, likeness.
        legend = page.locator(".llmops-legend button:visible").first
        legend.focus()
        page.keyboard.press("Enter")
        wait_for_text(page, ".llmops-chips button", "topic is")
        page.locator("button[title=undo]:visible").click()
        search, mode = page.locator(".llmops-bar input:visible"), page.locator(".llmops-bar select:visible")
        mode.select_option("pattern")
        search.fill(r"LT-\d{4}")
        search.press("Enter")
        wait_for_text(page, ".llmops-chips button", "matches")
        search.fill("(")
        search.press("Enter")
        wait_for_text(page, ".llmops-wrong", "cannot be read")
        mode.select_option("similar")
        search.fill("the printer has no toner")
        search.press("Enter")
        wait_for_text(page, ".llmops-chips button", "similar to")
        assert "toner" in page.locator(".llmops-rows:visible tbody tr").first.inner_text().lower() or "print" in page.locator(".llmops-rows:visible tbody tr").first.inner_text().lower()

        # A row is read, pinned, and the next one compared with it.
        rows = page.locator(".llmops-rows:visible tbody tr")
        rows.first.click()
        page.get_by_role("button", name="Pin this row").click()
        rows.first.focus()
        page.keyboard.press("ArrowDown")
        page.get_by_text("as it differs from HD-").first.wait_for(timeout=30_000)
        page.screenshot(path=str(artefacts / "explore-4-pinned.png"))

        # The rows become a dataset, which knows where it comes from.
        page.get_by_role("button", name="Keep these rows").click()
        page.wait_for_function("() => [...document.querySelectorAll('textarea[aria-label=dataset]')].some(node => node.value.startsWith('picked@'))", timeout=30_000)
        reference = page.locator("textarea[aria-label=dataset]").input_value()
        assert list((workspace / "snapshots").glob(f"{reference}*.parquet")) and list((workspace / "snapshots").glob(f"{reference}*.origin"))
        page.get_by_role("button", name="Prepare", exact=True).click()
        link = page.locator("a:visible", has_text="prepare-picked.ipynb")
        link.wait_for(timeout=30_000)
        for theme in ("Dark", "Light"):
            page.evaluate("name => window.jupyterapp.commands.execute('apputils:change-theme', { theme: `JupyterLab ${name}` })", theme)
            page.wait_for_function("light => document.body.dataset.jpThemeLight === light", arg=str(theme == "Light").lower(), timeout=30_000)
            page.get_by_role("button", name="Keep these rows").scroll_into_view_if_needed()
            page.wait_for_timeout(1000)
            page.screenshot(path=str(artefacts / f"explore-6-kept-{theme.lower()}.png"))
        page.get_by_role("tab", name="Duplicates").click()
        page.locator(".llmops-rows:visible tbody tr").first.click()
        page.get_by_text("is kept").first.wait_for(timeout=30_000)
        page.screenshot(path=str(artefacts / "explore-5-duplicates.png"))
        assert not lab.errors() and not page.refused

        # What was kept goes on: the link opens the notebook in JupyterLab, with these rows in its parameters.
        page.get_by_role("tab", name="Texts").click()
        link.click()
        page.get_by_role("tab", name="prepare-picked.ipynb").wait_for(timeout=30_000)
        page.locator(".jp-NotebookPanel:visible .jp-Cell", has_text=reference).first.wait_for(timeout=30_000)
        assert page.get_by_role("tab", name="explore.ipynb").count() == 1


def test_a_recipe_is_clicked_together_undone_frozen_and_run_headlessly(project, workspace, chromium, artefacts):
    with jupyter_lab(project, LLMOPS_WORKSPACE=str(workspace), LLMOPS_THREADS="1") as (address, token), browser_page(chromium) as page:
        lab = Lab(page, address, token)
        lab.open("prepare.ipynb")
        lab.run_all()
        assert not lab.errors()
        menu, add = page.locator("select:visible").filter(has_text="personal data: redact").first, page.get_by_role("button", name="Add", exact=True)
        menu.wait_for(timeout=60_000)
        for step in ("personal data: redact", "filter: filter length", "clean: normalise whitespace"):
            menu.select_option(label=step)
            add.click()
            page.wait_for_timeout(400)
        # The last goes up, redact is switched off and on again, one step too many is undone; the options of another are typed.
        page.get_by_title("Move normalise_whitespace up").click()
        page.get_by_title("Switch redact off").click()
        page.get_by_title("Switch redact on").wait_for(timeout=30_000)
        page.get_by_role("button", name="↶", exact=True).first.click()
        page.get_by_title("Switch redact off").wait_for(timeout=30_000)
        page.get_by_title("Options of filter_length").click()
        field = page.get_by_label("minimum").last
        field.fill("60")
        field.press("Tab")
        page.get_by_text("minimum: 60").first.wait_for(timeout=30_000)
        page.get_by_role("button", name="Run", exact=True).click()
        page.get_by_title("Show what redact did").wait_for(timeout=90_000)
        page.get_by_title("Show what redact did").click()
        page.get_by_text("What redact did").wait_for(timeout=30_000)
        page.screenshot(path=str(artefacts / "prepare-1-recipe.png"))

        # The example as the trainer sees it.
        page.locator("select:visible").filter(has_text="starter").first.select_option("starter")
        page.locator(".llmops-rows:visible tbody tr").first.click()
        page.get_by_text(re.compile("^learnt: ")).first.wait_for(timeout=60_000)
        page.screenshot(path=str(artefacts / "prepare-2-mask.png"))
        snapshots = {path.stem for path in (workspace / "snapshots").glob("*.parquet")}

        # Frozen, the same recipe gives the same snapshots without a screen.
        page.get_by_text("Freeze: repeat this run without the panel").click()
        frozen = page.get_by_label("YAML").last
        frozen.wait_for(timeout=30_000)
        (project / "frozen.yaml").write_text(frozen.input_value(), encoding="utf-8")
        assert not lab.errors() and not page.refused
    other = workspace.parent / "elsewhere"
    done = subprocess.run([Path(sys.executable).parent / "llmops", "run", "prepare", "-f", "frozen.yaml", "--output", "done.ipynb"], cwd=project, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "LLMOPS_WORKSPACE": str(other), "LLMOPS_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    again = {path.stem for path in (other / "snapshots").glob("*.parquet") if path.stem.startswith("helpdesk.")}
    assert len(again) == 3 and again <= snapshots


def test_rows_are_labelled_by_keyboard_and_gone_on_with_after_a_restart(project, workspace, chromium, artefacts):
    change_parameters(project / "feedback.ipynb", guidelines="Printers and screens are hardware.\nWhen two things are broken, take the first.", annotator="ann")
    with jupyter_lab(project, LLMOPS_WORKSPACE=str(workspace)) as (address, token), browser_page(chromium) as page:
        lab = Lab(page, address, token)
        lab.open("feedback.ipynb")
        lab.run_all()
        assert not lab.errors()
        desk = page.locator(".llmops-desk:visible")
        desk.wait_for(timeout=60_000)
        wait_for_text(page, ".llmops-desk", "0 of 50 decided · row 1")
        cells = "() => window.jupyterapp.shell.currentWidget.content.widgets.map(cell => cell.model.type + cell.model.sharedModel.getSource())"
        before = page.evaluate(cells)
        desk.scroll_into_view_if_needed()
        page.screenshot(path=str(artefacts / "feedback-1-first.png"))

        # Digits answer, and turn no cell into a heading; in the comment they are text; the way back shows what was said.
        desk.focus()
        page.keyboard.press("1")
        wait_for_text(page, ".llmops-desk", "1 of 50 decided · row 2")
        page.keyboard.press("c")
        page.keyboard.type("3 things")
        page.keyboard.press("Escape")
        page.keyboard.press("2")
        wait_for_text(page, ".llmops-desk", "2 of 50 decided · row 3")
        page.keyboard.press("s")
        wait_for_text(page, ".llmops-desk", "3 of 50 decided · row 4")
        page.keyboard.press("ArrowLeft")
        wait_for_text(page, ".llmops-desk", "You skipped it: cannot tell")
        page.keyboard.press("ArrowLeft")
        wait_for_text(page, ".llmops-desk", "You said: software")
        assert page.locator(".llmops-comment input:visible").input_value() == "3 things"
        page.get_by_text("So far", exact=True).click()
        page.locator("td:visible", has_text="cannot tell").first.wait_for(timeout=30_000)
        desk.scroll_into_view_if_needed()
        for theme in ("Dark", "Light"):
            page.evaluate("name => window.jupyterapp.commands.execute('apputils:change-theme', { theme: `JupyterLab ${name}` })", theme)
            page.wait_for_function("light => document.body.dataset.jpThemeLight === light", arg=str(theme == "Light").lower(), timeout=30_000)
            page.wait_for_timeout(1000)
            page.screenshot(path=str(artefacts / f"feedback-2-said-{theme.lower()}.png"))
        assert page.evaluate(cells) == before

        # Nothing was saved by hand, and nothing is lost.
        lab.restart_kernel()
        lab.run_all()
        wait_for_text(page, ".llmops-desk", "3 of 50 decided · row 4")
        assert not lab.errors() and not page.refused
        page.get_by_role("button", name="Take back").wait_for(timeout=30_000)
        lab.save()
        assert "2 of 50 rows" in (project / "feedback.ipynb").read_text(encoding="utf-8"), "the saved page shows how far it is to readers without a kernel"

        # A correction is typed over what the answer was, digits and all, and kept without leaving the keyboard.
        shutil.copy(workflow_folder() / "feedback.ipynb", project / "mend.ipynb")
        change_parameters(project / "mend.ipynb", kind="correction", output_column="summary", queue="summaries")
        lab.open("mend.ipynb")
        lab.run_all()
        wait_for_text(page, ".llmops-desk", "0 of 50 decided · row 1")
        page.locator(".llmops-desk:visible").focus()
        page.keyboard.press("e")
        page.keyboard.press("Control+A")
        page.keyboard.type("It takes 1 of 2 steps.")
        page.keyboard.press("Control+Enter")
        wait_for_text(page, ".llmops-desk", "1 of 50 decided · row 2")
        page.keyboard.press("Escape")
        page.keyboard.press("ArrowLeft")
        wait_for_text(page, ".llmops-desk", "You said: It takes 1 of 2 steps.")
        page.screenshot(path=str(artefacts / "feedback-3-corrected.png"))
        assert not lab.errors()

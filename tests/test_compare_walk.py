"""The compare panel as a person walks through it: two tuned runs and a baseline, another baseline, a system left out, regressions read and sent on, axes brushed, the table exported."""

import pandas as pd
import pytest
from lab import Lab, browser_page, jupyter_lab
from test_browser import change_parameters, project  # noqa: F401  a fixture
from test_compare_panel import HOSTILE, answers

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_three_runs_are_compared_read_brushed_and_exported(project, workspace, chromium, artefacts):  # noqa: F811
    for name, frame in answers(n=60, base=0.6, tuned=0.3, other=0.35).items():
        pd.DataFrame({"id": frame["id"], "input": frame["input"], "prediction": frame["prediction"], "references": frame["references"].str[0], "latency_s": frame["latency_s"]}).to_csv(project / f"{name}.csv", index=False)
    change_parameters(project / "compare.ipynb", systems=["base.csv", "tuned.csv", "other.csv"], metrics=["rougeL", "chrf"], n_resamples=300)
    with jupyter_lab(project, LLMOPS_WORKSPACE=str(workspace), LLMOPS_THREADS="1") as (address, token), browser_page(chromium, width=1500, height=2000) as page:
        lab = Lab(page, address, token)
        lab.open("compare.ipynb")
        lab.run_all()
        markup = page.locator(".llmops-markup:visible")
        markup.first.wait_for(timeout=60_000)
        assert not lab.errors()

        # Only what differs, the best marked, the baseline first; keys that are pressed stay in the table.
        assert "• baseline" in markup.locator("thead th").nth(1).inner_text() and "★" in markup.inner_text()
        markup.get_by_role("button", name="Hold the others against tuned").focus()
        page.keyboard.press("Enter")
        page.wait_for_function("() => [...document.querySelectorAll('.llmops-markup thead th')].some(e => e.offsetParent && e.innerText.includes('tuned') && e.innerText.includes('• baseline'))", timeout=60_000)
        lab.wait_until_idle()
        markup.get_by_label("Include base in the comparison").click()
        markup.get_by_text("Left out:").wait_for(timeout=60_000)
        page.screenshot(path=str(artefacts / "compare-walk-1-left-out.png"))
        markup.get_by_role("button", name="Take base back in").click()
        markup.get_by_text("Left out:").wait_for(state="detached", timeout=60_000)

        # Worse than production: the largest loss first, read word by word, sent to be labelled.
        page.get_by_role("tab", name="Examples", exact=True).click()
        page.get_by_role("button", name="Worse than tuned").click()
        page.locator(".llmops-chips button", has_text="change is").wait_for()
        page.locator(".llmops-rows:visible tbody tr").first.click()
        page.get_by_text("as it differs from tuned").first.wait_for()
        page.get_by_role("button", name="the reference", exact=True).click()
        page.get_by_text("as it differs from the reference").first.wait_for()
        page.get_by_role("button", name="Keep these rows").click()
        page.get_by_role("button", name="Label", exact=True).click()
        page.get_by_role("link", name="feedback-picked.ipynb").wait_for(timeout=30_000)
        assert (project / "feedback-picked.ipynb").is_file() and page.locator("img[src=x]").count() == 0 and HOSTILE
        page.screenshot(path=str(artefacts / "compare-walk-2-regressions.png"))

        # A brush by the pointer, another by the keyboard.
        page.get_by_role("tab", name="Runs", exact=True).click()
        strip = page.locator(".llmops-par-strip").first
        strip.wait_for()
        box = strip.bounding_box()
        page.mouse.move(box["x"] + 16, box["y"] + 6)
        page.mouse.down()
        page.mouse.move(box["x"] + 16, box["y"] + box["height"]*0.3, steps=4)
        page.mouse.up()
        page.get_by_text("of 3 systems are within the brushes").wait_for()
        page.get_by_role("button", name="Clear brushes").click()
        page.locator(".llmops-par-axis").first.focus()
        for key in ("ArrowUp", "Shift+ArrowUp", "Enter"): page.keyboard.press(key)
        page.get_by_text("1 of 3 systems are within the brushes").wait_for()
        page.screenshot(path=str(artefacts / "compare-walk-3-brushed.png"))

        page.get_by_role("tab", name="Export", exact=True).click()
        assert "| system |" in page.get_by_label("Markdown", exact=True).locator("visible=true").input_value()
        page.get_by_text("A page for somebody without a notebook").click()
        page.get_by_role("button", name="Write a page").click()
        page.get_by_role("link", name="comparison.html").wait_for(timeout=60_000)
        page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
        page.get_by_role("tab", name="Overview", exact=True).click()
        page.wait_for_timeout(1500)
        page.screenshot(path=str(artefacts / "compare-walk-4-dark.png"))
        assert not lab.errors() and not page.refused, page.refused

    written = (workspace / "reports" / "comparison.html").read_text(encoding="utf-8")
    assert "<script" not in written and "won / tied / lost" in written

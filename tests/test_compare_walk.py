"""The compare panel as a person walks through it: two fine-tuned runs and the model they came from, another baseline, a system left out, regressions read and sent on, curves, axes brushed, the table exported."""

import pytest
from lab import Lab, browser_page, jupyter_lab
from test_browser import change_parameters, project  # noqa: F401  a fixture

from llmops_workbench.datasets import make_dataset, save_snapshot
from llmops_workbench.examples import read_examples
from llmops_workbench.finetuning import launch_finetune
from llmops_workbench.widgets.finetune import FinetunePanel
from llmops_workbench.widgets.prompt import PromptPanel

pytestmark = [pytest.mark.browser, pytest.mark.slow]
HOSTILE = "<img src=x onerror=alert(1)> $\\href{javascript:alert(1)}{x}$"


@pytest.fixture
def runs(workspace, monkeypatch):
    "Two fine-tuning runs of another learning rate and seed, and a prompt run of the model they came from, on the same examples."
    monkeypatch.setenv("LLMOPS_THREADS", "1")
    frame = read_examples("helpdesk").frame
    frame = frame[frame["task"] == "summary"].reset_index(drop=True)
    asked = frame[:12].assign(prompt=[f"{prompt} {HOSTILE if k == 0 else ''}" for k, prompt in enumerate(frame["prompt"][:12])])
    train, held_out = save_snapshot(make_dataset(frame[12:112].reset_index(drop=True), "tickets")), save_snapshot(make_dataset(asked, "held-out"))
    same = {"dataset": train, "eval_dataset": held_out, "max_steps": 8, "per_device_train_batch_size": 4, "eval_samples": 12, "sample_completions": 12}
    tuned = [FinetunePanel(**same, learning_rate=rate, seed=seed) for rate, seed in ((1e-3, 0), (5e-3, 1))]
    for panel in tuned: launch_finetune(**panel.params)
    asking = PromptPanel(models=["starter"], dataset=held_out, split="all", n_examples=0)
    for panel in (*tuned, asking): panel.run()
    return [f"run:{panel.log()}" for panel in (*tuned, asking)]


def test_two_tuned_runs_and_their_base_are_compared_read_brushed_and_exported(runs, project, workspace, chromium, artefacts):  # noqa: F811
    change_parameters(project / "compare.ipynb", systems=runs, metrics=["rougeL", "chrf"], n_resamples=300)
    with jupyter_lab(project, LLMOPS_WORKSPACE=str(workspace), LLMOPS_THREADS="1") as (address, token), browser_page(chromium, width=1500, height=2000) as page:
        lab = Lab(page, address, token)
        picture = lambda name: page.screenshot(path=str(artefacts / f"compare-walk-{name}.png"))
        def dark(name, holds=lambda: True):
            "The same in the other theme, and whether something holds there."
            change = lambda theme: page.evaluate("theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})", theme)
            change("JupyterLab Dark")
            page.wait_for_timeout(700)
            picture(name)
            assert holds(), name
            change("JupyterLab Light")
            page.wait_for_timeout(300)
        lab.open("compare.ipynb")
        lab.run_all()
        markup = page.locator(".llmops-markup:visible")
        markup.first.wait_for(timeout=60_000)
        assert not lab.errors()

        # Only what differs: what the runs were made with, nothing of what only one kind of run has.
        rows = markup.locator("tbody th").all_inner_texts()
        assert {"learning_rate", "seed", "stage"} <= set(rows) and not {"lora_r", "temperature", "max_steps", "clean_only"} & set(rows), rows
        assert "• baseline" in markup.locator("thead th").nth(1).inner_text()
        markup.first.evaluate("e => e.scrollIntoView({block: 'end'})")
        picture("1-overview")
        dark("1-overview-dark")

        # Runs of both kinds are offered.
        page.get_by_role("button", name="Stored runs…").click()
        page.locator("option", has_text="fine-tuning run").nth(1).wait_for(state="attached", timeout=30_000)
        assert page.locator("option", has_text="prompt run").count() == 1

        # The base becomes the baseline by a key; a run is left out and comes back.
        held = "starter · as prepared"
        markup.get_by_role("button", name=f"Hold the others against {held}").focus()
        page.keyboard.press("Enter")
        page.wait_for_function("name => [...document.querySelectorAll('.llmops-markup thead th')].some(e => e.offsetParent && e.innerText.includes(name) && e.innerText.includes('• baseline'))", arg=held, timeout=60_000)
        lab.wait_until_idle()
        markup.get_by_label("in the comparison").first.click()
        markup.get_by_text("Left out:").wait_for(timeout=60_000)
        picture("2-left-out")
        markup.get_by_role("button", name="back in").click()
        markup.get_by_text("Left out:").wait_for(state="detached", timeout=60_000)
        markup.get_by_label("all rows").click()
        markup.get_by_text("lora_r", exact=True).wait_for()
        markup.get_by_label("all rows").click()
        markup.get_by_text("lora_r", exact=True).wait_for(state="detached")

        # Worse than the base: the largest loss first, read word by word, sent to be labelled.
        page.get_by_role("tab", name="Examples", exact=True).click()
        page.get_by_role("button", name=f"Worse than {held}").click()
        page.locator(".llmops-chips button", has_text="change is").wait_for()
        page.locator(".llmops-rows:visible tbody tr").first.click()
        page.get_by_text(f"as it differs from {held}").first.wait_for()
        page.get_by_role("button", name="the reference", exact=True).click()
        page.get_by_text("as it differs from the reference").first.wait_for()
        page.get_by_role("button", name="Keep these rows").click()
        page.get_by_role("button", name="Label", exact=True).click()
        page.get_by_role("link", name="feedback-picked.ipynb").wait_for(timeout=30_000)
        assert (project / "feedback-picked.ipynb").is_file() and page.locator("img[src=x]").count() == 0
        picture("3-regressions")
        dark("3-regressions-dark")

        # The losses of both runs; a brush by the pointer, another by the keyboard.
        page.get_by_role("tab", name="Runs", exact=True).click()
        strip = page.locator(".llmops-par-strip").first
        strip.wait_for()
        page.get_by_role("heading", name="Curves").scroll_into_view_if_needed()
        page.get_by_text("loss over step").wait_for(timeout=30_000)
        page.wait_for_timeout(800)
        lowest, top = page.evaluate("""() => [Math.max(...[...document.querySelectorAll('.llmops-par-line')].flatMap(line => [...line.points].map(point => point.y))),
                                              [...document.querySelectorAll('.llmops-par-tick')].find(tick => tick.textContent === 'not set').getBBox().y]""")
        assert lowest + 2 <= top  # no line through the words
        picture("4-curves")
        words = lambda: page.locator(".gtitle:visible").last.evaluate("e => getComputedStyle(e).fill")
        black = words()
        dark("4-curves-dark", lambda: words() != black)
        # Hovering waits until the page stands still; charts are laid out anew when the theme changes.
        page.wait_for_timeout(700)
        strip.hover(position={"x": 16, "y": 6})
        box = strip.bounding_box()
        page.mouse.down()
        page.mouse.move(box["x"] + 16, box["y"] + box["height"]*0.3, steps=4)
        page.mouse.up()
        page.get_by_text("of 3 systems are within the brushes").wait_for()
        picture("5-brushed")
        dark("5-brushed-dark")
        page.get_by_role("button", name="Clear brushes").click()
        page.locator(".llmops-par-axis").last.focus()
        for key in ("ArrowUp", "Shift+ArrowUp", "Enter"): page.keyboard.press(key)
        page.get_by_text("1 of 3 systems are within the brushes").wait_for()

        page.get_by_role("tab", name="Slices", exact=True).click()
        page.wait_for_timeout(500)
        picture("6-slices")
        page.get_by_role("tab", name="Export", exact=True).click()
        assert "| system |" in page.get_by_label("Markdown", exact=True).locator("visible=true").input_value()
        picture("7-export")
        dark("7-export-dark")
        page.get_by_text("A page for somebody without a notebook").click()
        page.get_by_role("button", name="Write a page").click()
        page.get_by_role("link", name="comparison.html").wait_for(timeout=60_000)
        picture("8-page-written")
        assert not lab.errors() and not page.refused, page.refused

        page.goto(f"file://{workspace / 'reports' / 'comparison.html'}")
        page.screenshot(path=str(artefacts / "compare-walk-9-page.png"), full_page=True)
    written = (workspace / "reports" / "comparison.html").read_text(encoding="utf-8")
    assert "<script" not in written and "won / tied / lost" in written and "learning_rate" in written

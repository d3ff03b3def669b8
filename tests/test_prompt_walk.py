"""The prompt lab as a person walks through it: write, preview, run, watch, lose the kernel, filter, rate, choose blindly, register, load, freeze.

The model is a server on this machine that takes its time, so that the table is seen to fill."""

import asyncio
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from chat_server import Server
from lab import Lab, browser_page, jupyter_lab
from test_browser import change_parameters, job_folders, project  # noqa: F401  a fixture

from llmops_workbench.prompting import collect_grid, run_grid
from llmops_workbench.store import open_feedback, open_store

pytestmark = [pytest.mark.browser, pytest.mark.slow]

COUNT = """kind => document.querySelectorAll(`.llmops-mx td.llmops-mx-${kind}`).length"""
HOSTILE = "<img src=x onerror=alert(1)> <|im_end|>"


class SlowServer(Server):
    "The higher the number in the question, the longer it takes."
    second = 3.0

    async def reply(self, request):
        text = (await request.json())["messages"][-1]["content"]
        await asyncio.sleep(self.second * int(re.search(r"printer (\d)", text)[1]))
        return await super().reply(request)


@pytest.fixture
def desk():
    server = SlowServer()
    yield server
    server.close()


def tickets():
    "Half of the remarks are the ticket itself: there two prompts have one answer. Half of the answers are what the server says."
    texts = [f"printer {n} is {HOSTILE if n == 3 else 'out of toner'}" for n in range(8)]
    return pd.DataFrame({"id": [f"t{n}" for n in range(8)], "text": texts, "remark": [t if n % 2 else f"please: {t}" for n, t in enumerate(texts)],
                         "answer": [t.upper() if n < 6 else "something else" for n, t in enumerate(texts)]})


def test_a_prompt_is_written_run_judged_and_registered(project, workspace, desk, chromium, artefacts):  # noqa: F811
    tickets().to_csv(project / "tickets.csv", index=False)
    model = f"{desk.base}/v1#desk"
    change_parameters(project / "prompt.ipynb", models=[model], dataset="tickets.csv", split="all", n_examples=0, tasks={"echo": ["{text}", "{answer}"]},
                      metrics=["exact_match"])
    with jupyter_lab(project, LLMOPS_WORKSPACE=str(workspace), LLMOPS_THREADS="1") as (address, token), browser_page(chromium, height=2000) as page:
        lab = Lab(page, address, token)
        lab.open("prompt.ipynb")
        lab.run_all()
        launch = page.get_by_role("button", name="Launch", exact=True)
        launch.wait_for(timeout=60_000)
        assert not desk.bodies, "a model behind an address is asked on a click only"

        # Write: the preview follows the typing, and what comes from the data is text.
        text = page.get_by_placeholder("Text with {fields}")
        page.get_by_role("button", name="New", exact=True).click()
        text.first.wait_for()
        text.first.fill("{text")
        page.get_by_role("alert").filter(has_text="{text").first.wait_for()
        launch.click()
        page.get_by_role("alert").filter(has_text="The prompt 'prompt'").first.wait_for()
        assert not desk.bodies, "an unfinished prompt is not asked, nor the one before it"
        text.first.fill("{text}")
        page.locator("span[data-kind=value]", has_text="printer").first.wait_for()
        for _ in range(8):
            if page.locator("span[data-kind=value]", has_text="onerror").count():
                break
            before = page.get_by_text(re.compile(r"example \d of 8")).first.inner_text()
            page.get_by_title("The next example").click()
            page.wait_for_function("before => ![...document.querySelectorAll('.jp-RenderedHTMLCommon')].some(e => e.textContent.includes(before))", arg=before)
        page.get_by_role("note").filter(has_text="They lose their power there").first.wait_for()
        assert page.locator("img[src=x]").count() == 0

        # Another wording: a field that is no column says so, and is bound.
        page.get_by_role("button", name="Duplicate", exact=True).click()
        page.wait_for_function("() => [...document.querySelectorAll('input')].some(e => e.value === 'prompt 2')")
        lab.wait_until_idle()  # the copy's wording comes after its name
        text.first.fill("{comment}")
        page.get_by_role("alert").filter(has_text="has no column 'comment'").first.wait_for()
        page.locator(".widget-dropdown", has_text="{comment}").locator("select").select_option("remark")
        page.locator("span[data-kind=value]", has_text="printer").first.wait_for()
        page.get_by_text(re.compile("^16 calls: .* no price known")).first.wait_for(timeout=30_000)
        page.screenshot(path=str(artefacts / "prompt-1-written.png"))

        # Run, watch it fill; the kernel goes, the job stays, and is found again.
        launch.click()
        page.wait_for_function(f"() => ({COUNT})('pending') > 0 && ({COUNT})('right') + ({COUNT})('wrong') > 0", timeout=90_000)
        page.screenshot(path=str(artefacts / "prompt-2-filling.png"))
        lab.restart_kernel()
        lab.run_all()
        page.get_by_role("tab", name="Blind comparison").wait_for(timeout=120_000)
        assert len(job_folders(workspace)) == 1 and not lab.errors()
        assert len({json.dumps(body["messages"]) for body in desk.bodies}) == len(desk.bodies) == 12, "every question is asked once, also what two prompts ask alike"
        assert page.evaluate("() => [...document.querySelectorAll('input')].some(e => e.value === 'prompt')"), "the prompts are those of the job"
        page.screenshot(path=str(artefacts / "prompt-3-done.png"))

        # Different only, read, rate, correct.
        page.get_by_role("button", name="answered differently (4)").click()
        page.wait_for_function("() => document.querySelectorAll('.llmops-mx tbody tr').length === 4")
        cell = page.locator(".llmops-mx td[data-cell='0,1']")
        cell.focus()
        page.keyboard.press("+")
        page.locator(".llmops-mx td[data-cell='0,1']", has_text="rated +").wait_for()
        page.keyboard.press("Enter")
        page.get_by_text("Answer, as it differs from the reference").first.wait_for()
        page.keyboard.press("c")
        better = page.get_by_label("as it should be")
        better.wait_for()
        better.fill("The toner is empty")
        page.get_by_role("button", name="Keep", exact=True).click()
        page.get_by_text("Kept: it can be read back and trained on").wait_for()
        page.screenshot(path=str(artefacts / "prompt-4-rated.png"))

        # Two answers without names.
        page.get_by_role("tab", name="Blind comparison").click()
        page.get_by_label("blind comparison").locator("visible=true").first.focus()
        page.screenshot(path=str(artefacts / "prompt-5-blind.png"))
        page.keyboard.press("ArrowLeft")
        wait_until(lambda: "preference" in set(open_feedback().read()["kind"]))

        # Register the second wording and look at it again.
        page.get_by_text("Registry: load, register, compare versions").click()
        page.locator(".widget-dropdown", has_text="prompt").locator("select").first.select_option("prompt 2")
        page.wait_for_function("() => [...document.querySelectorAll('input')].some(e => e.value === 'prompt-2')")
        page.get_by_label("what changed").fill("from the remark")
        page.get_by_label("alias").fill("production")
        page.get_by_role("button", name="Register", exact=True).click()
        page.get_by_text("Registered as prompt-2 version 1").wait_for(timeout=60_000)
        page.screenshot(path=str(artefacts / "prompt-6-registered.png"))
        page.get_by_text("Freeze: repeat this run without the panel").first.click()
        frozen = page.get_by_label("YAML", exact=True).locator("visible=true").first
        frozen.wait_for()
        (project / "frozen.yaml").write_text(frozen.input_value(), encoding="utf-8")
        page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
        page.wait_for_timeout(1500)
        page.screenshot(path=str(artefacts / "prompt-7-dark.png"))
        assert not lab.errors() and not page.refused, page.refused

    said = open_feedback().read()
    assert {"thumb", "correction", "preference"} <= set(said["kind"])
    assert "The toner is empty" in said["value"].astype("str").tolist()

    # By its alias in code, frozen and run headlessly: the completions that the panel showed.
    assert open_store().load_prompt("prompt-2", "production").wording == {"template": "{comment}", "bind": {"comment": "remark"}}
    shown = collect_grid(job_folders(workspace)[0].name).frame
    desk.second, before = 0.0, len(desk.bodies)
    by_alias = run_grid([model], str(project / "tickets.csv"), {"prompt 2": "prompt:prompt-2@production"}, split="all", n_examples=0, tasks={"echo": ["{text}", "{answer}"]},
                        metrics=["exact_match"], cache=False)
    assert by_alias.frame["completion"].tolist() == shown.loc[shown["prompt_name"] == "prompt 2", "completion"].tolist()
    assert len(desk.bodies) == before + 8 and "prompt:prompt-2@1" in (project / "frozen.yaml").read_text(encoding="utf-8")
    done = subprocess.run([Path(sys.executable).parent / "llmops", "run", "prompt", "-f", "frozen.yaml", "--output", "done.ipynb"], cwd=project, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    page = (project / "done.ipynb").read_text(encoding="utf-8")
    assert "16 calls" in page and "<img src=x" not in page


def wait_until(what, seconds=30):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)

"""The prompt panel without a browser: a run is a job, an unfinished prompt is not asked, and what is written meanwhile stays."""

import threading
import time

import pandas as pd
import pytest
from chat_server import Server

from llmops_workbench.jobs import list_jobs
from llmops_workbench.prompting import run_grid
from llmops_workbench.prompts import Prompt
from llmops_workbench.store import open_store
from llmops_workbench.widgets.panel import Live
from llmops_workbench.widgets.prompt import PromptPanel

HOSTILE = "<img src=x onerror=alert(1)> \u202e"
QUESTIONS = pd.DataFrame({"id": [f"q{i}" for i in range(6)], "task": "echo", "prompt": [*"abcde", HOSTILE], "completion": ["a", "x", "y", "z", "e", HOSTILE],
                          "split": ["test"]*6})
GIVEN = {"models": ["fake:echo"], "dataset": QUESTIONS, "n_examples": 0, "metrics": ["exact_match"]}


@pytest.fixture(autouse=True)
def somebody(monkeypatch): monkeypatch.setenv("LLMOPS_LIVE", "1")


@pytest.fixture
def opened():
    panels = []
    def make(**params):
        panel = PromptPanel(**{**GIVEN, **params})
        panel.poll_s = 0.05
        panel.live = Live(panel)
        panel.editor.delay_s = 0
        panels.append(panel)
        return panel
    yield make
    for panel in panels: panel.close()


def until(what, seconds=60):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def text_of(widget):
    "Everything a widget shows as markup."
    return str(getattr(widget, "value", "")) + "".join(text_of(child) for child in getattr(widget, "children", ()))


def test_a_click_runs_a_job_and_the_panel_of_another_kernel_finds_its_end(opened):
    panel = opened(prompts={"plain": "{prompt}", "polite": "Please: {prompt}"})
    panel.live.button.click()
    assert panel.live.button.disabled
    result = panel.wait(60)
    assert result.summary["n_calls"] == 12 and list_jobs()["state"].tolist() == ["completed"]
    matrix = panel.live.kept["matrix"]
    assert matrix.judged["outcome"].value_counts().to_dict() == {"wrong": 9, "right": 3}
    assert "<img src" not in text_of(panel.live.widget) and "\u202e" not in text_of(panel.live.widget)
    later = opened(prompts={"plain": "{prompt}", "polite": "Please: {prompt}"})
    later.opened()
    until(lambda: "Done before" in later.live.status.value)
    assert later.result.summary == result.summary


def test_an_unfinished_prompt_is_not_asked_and_neither_is_the_one_before_it(opened):
    panel = opened(prompts={"plain": "{prompt}"})
    panel.editor.messages[0].text.value = "{prompt"
    panel.live.button.click()
    assert "The prompt 'plain'" in panel.error and not len(list_jobs()) and panel.params["prompts"] == {"plain": "{prompt}"}
    panel.editor.messages[0].text.value = "So: {prompt}"
    assert panel.params["prompts"] == {"plain": "So: {prompt}"} and panel.editor.error == ""


def test_form_and_editor_are_one(opened):
    panel = opened()
    assert panel.editor.name is None
    panel.live.form.fields["prompts"].control.value = '{"a": "{prompt}", "b": "B {prompt}"}'
    assert panel.editor.pick.options == ("a", "b") and panel.editor.messages[0].text.value == "{prompt}"
    panel.editor.drop.click()
    assert panel.params["prompts"] == {"b": "B {prompt}"}
    assert PromptPanel(**GIVEN, prompts={"x": Prompt("x", "{prompt}", task="echo")}).params["prompts"] == {"x": {"template": "{prompt}", "task": "echo"}}


def test_what_is_written_during_a_run_is_not_overwritten_by_its_end(opened):
    server = Server()
    server.latency_s = 1.0
    try:
        panel = opened(models=[f"{server.base}/v1#desk"], prompts={"plain": "{prompt}"})
        panel.live.button.click()
        until(lambda: server.bodies)
        panel.editor.messages[0].text.value = "Later: {prompt}"
        result = panel.wait(60)
    finally:
        server.close()
    assert result.frame["prompt"].tolist() == result.frame["question"].tolist(), "what was launched is what was asked"
    assert panel.params["prompts"] == {"plain": "Later: {prompt}"} and panel.editor.messages[0].text.value == "Later: {prompt}"
    assert panel.ran_with["prompts"] == {"plain": "{prompt}"} and "changed since" in panel.live.status.value


def test_what_is_typed_while_the_preview_is_drawn_counts(opened):
    panel, drawing, done = opened(prompts={"plain": "{prompt}"}), threading.Event(), threading.Event()
    def draw():
        panel.editor._writing = True
        drawing.set()
        done.wait(20)
    thread = threading.Thread(target=draw)
    thread.start()
    drawing.wait(20)
    panel.editor.messages[0].text.value = "So: {prompt}"
    done.set()
    thread.join()
    assert panel.params["prompts"] == {"plain": "So: {prompt}"}


def test_versions_stand_beside_their_scores(opened):
    store = open_store()
    store.register_prompt("plain", "{prompt}", "<b>first</b>")
    grid = run_grid(["fake:echo"], QUESTIONS, {"mine": "prompt:plain@1"}, n_examples=0, metrics=["exact_match"])
    grid.log(stage="prompt")
    panel = opened()
    panel.editor.stored.value = "plain@1"
    panel.editor.load.click()
    until(lambda: "Versions of plain" in panel.editor.told.value)
    assert "echo: exact_match" in panel.editor.told.value and "<b>first" not in panel.editor.told.value and "0.5" in panel.editor.told.value
    assert panel.params["prompts"] == {"plain": "prompt:plain@1"}


@pytest.mark.parametrize("params,waits", [({}, False), ({"models": ["http://127.0.0.1:9/v1#m"]}, True),
                                          ({"judge": {"model": "https://example.org/v1#m", "rubric": {"question": "Good?", "scale": [1, 5]}}}, True)])
def test_a_model_behind_an_address_is_asked_on_a_click_only(params, waits):
    assert PromptPanel(**{**GIVEN, **params}).waits_for_click is waits


def test_feedback_names_the_version_of_the_prompt(opened):
    open_store().register_prompt("plain", "{prompt}")
    panel = opened(prompts={"mine": "prompt:plain@1"})
    panel.live.button.click()
    panel.wait(60)
    matrix = panel.live.kept["matrix"]
    matrix.handle({"type": "rate", "row": 0, "system": 0, "value": True})
    said = open_store().read_feedback()
    assert said[["kind", "prompt_name", "prompt_version"]].iloc[0].tolist() == ["thumb", "plain", 1]
    # The rating belongs to this answer: another answer in its place is not rated.
    assert [cell["rating"] for row in matrix.view.page["rows"] for cell in row["cells"]].count("rated +") == 1
    matrix.show(matrix.judged.assign(completion="other"))
    assert [cell["rating"] for row in matrix.view.page["rows"] for cell in row["cells"]].count("rated +") == 0


def test_stop_keeps_what_was_answered_and_run_asks_only_the_rest(opened):
    server = Server()
    server.latency_s = 0.3
    questions = pd.DataFrame({"id": [f"q{i}" for i in range(200)], "task": "echo", "prompt": [f"ticket {i}" for i in range(200)], "completion": "x", "split": "test"})
    try:
        panel = opened(models=[f"{server.base}/v1#desk"], dataset=questions, prompts={"plain": "{prompt}"})
        panel.live.button.click()
        until(lambda: len(server.bodies) > 20)
        panel.buttons["stop"].click()
        stopped = panel.wait(60)
        answered = stopped.frame["completion"].notna()
        assert 0 < answered.sum() < 200 and stopped.frame.loc[~answered, "error"].ne("").all(), "what was not asked is a row that says so"
        before = len(server.bodies)
        panel.live.button.click()
        whole = panel.wait(60)
    finally:
        server.close()
    assert whole.frame["completion"].notna().all() and len(list_jobs()) == 1
    assert len(server.bodies) - before == 200 - answered.sum() and whole.frame["cached"].sum() == answered.sum()

"""The fine-tune panel without a browser: one job however often it is asked for, found again, stopped, resumed, failed, killed."""

import os
import threading
import time

import pandas as pd
import pytest
from tiny_models import save_model

from llmops_workbench.errors import UserError
from llmops_workbench.finetuning import FineTuned, find_finetune
from llmops_workbench.jobs import attach_job, list_jobs
from llmops_workbench.readiness import Preflight
from llmops_workbench.widgets import finetune as finetune_module
from llmops_workbench.widgets import panel as panel_module
from llmops_workbench.widgets.finetune import FinetunePanel
from llmops_workbench.widgets.following import say_progress

os.environ.setdefault("LLMOPS_THREADS", "1")
HOSTILE = "<img src=x onerror=alert(1)> $\\href{javascript:alert(1)}{x}$ \u202e"
EXAMPLES = pd.DataFrame([{"id": f"t{n}", "row": n, "task": task, "prompt": f"{task} of ticket {n}: the printer on floor {n} is broken",
                          "completion": f"printer {n}"} for n in range(40) for task in ("query", "summary")])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(save_model(tmp_path_factory.mktemp("model")/"tiny"))


@pytest.fixture(autouse=True)
def somebody(monkeypatch):
    monkeypatch.setenv("LLMOPS_LIVE", "1")
    monkeypatch.setenv("LLMOPS_THREADS", "1")


@pytest.fixture
def show(monkeypatch):
    "A function that shows a panel and says hello as a browser would. Jobs that are left over are killed."
    shown, opened = [], []
    monkeypatch.setattr(panel_module, "display", lambda data, raw, display_id=None, update=False: shown.append(data))
    def display(**params):
        panel = FinetunePanel(**params)
        panel.poll_s = 0.1
        panel.faces = shown
        panel._ipython_display_()
        opened.append(panel)
        panel.beacon._handle_custom_msg({"kind": "hello"}, [])
        return panel
    yield display
    for panel in opened:
        panel.close()
    for job_id in list_jobs()["job_id"]:
        attach_job(job_id).kill(grace_s=0.1)


def until(what, seconds=60):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def looked(panel):
    "Wait for the look that a panel takes when it is shown."
    until(lambda: not any(thread.name == f"look-{panel.key}" for thread in threading.enumerate()))


def steps(panel):
    figures = panel.live.figures
    return list(figures["loss"].source.data[0].x) if "loss" in figures else []


def text_of(widget):
    "Everything a widget shows as markup."
    return str(getattr(widget, "value", "")) + "".join(text_of(child) for child in getattr(widget, "children", ()))


def params_of(tiny, **more):
    return {"model_name_or_path": tiny, "dataset": EXAMPLES, "max_steps": 20000, "per_device_train_batch_size": 2, "lora_r": 2, "dtype": "float32",
            "eval_samples": 4, "sample_completions": 2, "save_steps": 100, **more}


def test_one_job_is_launched_found_again_stopped_and_resumed(tiny, show):
    first = show(**params_of(tiny))
    looked(first)
    assert not len(list_jobs()) and "Not launched yet" in first.words()[0]
    first.live.button.click()
    first.live.button.click()
    assert first.live.button.disabled
    until(lambda: len(steps(first)) > 5)
    assert list_jobs()["state"].tolist() == ["running"]
    job_id, seen = first.job.job_id, len(steps(first))
    assert "Training as job" in first.words()[0] and f"Training as job {job_id}" in first.faces[-1]["text/html"]
    began = time.monotonic()
    assert first.wait() is None and time.monotonic() - began < 1, "a kernel that waits hears no click on Stop"

    # A second panel of the same parameters: nobody clicks, and a click would start nothing either.
    second = show(**params_of(tiny))
    until(lambda: steps(second))
    assert second.job.job_id == job_id and second.params["dataset"] is EXAMPLES and second.live.button.disabled
    second.live.button.click()
    until(lambda: second.job)

    # The kernel of the first is gone: it reads nothing any more, and the job does not care.
    follower = first._thread
    first.close()
    follower.join(10)
    assert not follower.is_alive() and first.job is None

    # A panel of other parameters takes over what is running; what it takes over is the same run, although the data was never a name.
    third = show()
    until(lambda: len(steps(third)) > seen)
    assert third.job.job_id == job_id and isinstance(third.params["dataset"], str)
    assert find_finetune(**third.params).job_id == job_id
    assert third.live.form.fields["max_steps"].control.value == "20000"
    assert len(list_jobs()) == 1

    third.buttons["stop"].click()
    third.buttons["stop"].click()
    assert third.buttons["stop"].disabled
    stopped = third.wait(60)
    assert second.wait(60).summary == stopped.summary and stopped.summary["ended_by"] == "request"
    assert third.buttons["stop"].disabled and third.buttons["kill"].layout.display == "none" and not third.live.button.disabled
    assert "Launch goes on from there" in third.live.status.value and third.error == ""

    second.close()
    third.live.button.click()
    until(lambda: steps(third) and steps(third)[-1] > stopped.summary["steps"])
    assert third.job.job_id == job_id and third.job.status()["attempt"] == 2 and len(list_jobs()) == 1
    assert steps(third)[0] == 1, "the curve begins where the first attempt began"
    third.stop()
    assert third.wait(60).summary["steps"] > stopped.summary["steps"] and len(list_jobs()) == 1


def test_a_run_that_is_done_is_shown_again(tiny, show):
    params = params_of(tiny, max_steps=2)
    done = FinetunePanel(**params).run()
    panel = show(**params)
    until(lambda: panel.result)
    looked(panel)
    assert panel.result.summary == done.summary and "Done before: showing the run of" in panel.live.status.value and len(list_jobs()) == 1
    assert "loss" in panel.live.figures and not panel.live.button.disabled and panel.buttons["stop"].disabled


def test_a_failing_job_is_one_line(tiny, show):
    panel = show(**params_of(tiny, max_length=8))
    looked(panel)
    panel.live.button.click()
    assert panel.wait(60) is None
    assert "has its answer within max_length=8" in panel.error and "\n" not in panel.error
    head, _, details = panel.live.strip.value.partition("<details>")
    assert "Raise max_length" in head and "Traceback" not in head and "Traceback" in details, "the log is there for those who ask"
    assert not panel.live.button.disabled and panel.buttons["stop"].disabled and not panel.buttons["check"].disabled and panel.job is None


def test_a_killed_job_is_one_line(tiny, show):
    panel = show(**params_of(tiny))
    looked(panel)
    panel.live.button.click()
    until(lambda: panel.job)
    panel.kill()
    assert panel.wait(60) is None
    assert "It was killed before it had finished" in panel.error and list_jobs()["state"].tolist() == ["cancelled"]
    # Shown again, a run that left nothing is not shown as a result.
    again = show(**params_of(tiny))
    looked(again)
    assert again.result is None and "Stopped before" in again.live.status.value


def test_what_was_asked_for_in_vain_is_one_line(tiny, show):
    panel = show(model_name_or_path="no-such-model", dataset=EXAMPLES)
    looked(panel)
    assert "Not ready to launch" in panel.live.status.value and panel.live.strip.value == "" and panel.error == ""
    panel.live.button.click()
    assert panel.wait(20) is None and "no-such-model" in panel.error and not panel.live.button.disabled and not len(list_jobs())


def test_looking_neither_blocks_nor_breaks_nor_overrules_a_click(tiny, show, monkeypatch):
    gate = threading.Event()
    def slow(**params):
        gate.wait(20)
        raise UserError("The workspace cannot be read.")
    monkeypatch.setattr(finetune_module, "find_finetune", slow)
    monkeypatch.setattr(finetune_module, "active_finetunes", lambda: (_ for _ in ()).throw(RuntimeError(HOSTILE)))
    began = time.monotonic()
    panel, other = show(**params_of(tiny)), show(**params_of(tiny))
    assert time.monotonic() - began < 10 and panel.live is not None
    other._token += 1
    gate.set()
    looked(panel)
    looked(other)
    assert "RuntimeError" in panel.error and "<img" not in panel.live.strip.value and not panel.live.button.disabled
    assert other.error == "" and other.live.strip.value == "", "somebody had clicked meanwhile"


def test_a_check_launches_nothing_and_comes_too_late_after_a_launch(tiny, show, monkeypatch):
    gate = threading.Event()
    def preflight(**params):
        gate.wait(20)
        frame = pd.DataFrame({"check": ["data"], "status": ["warning"], "found": [HOSTILE], "todo": [HOSTILE]})
        seen = pd.DataFrame({"id": [HOSTILE], "task": ["t"], "n_tokens": [1], "read": [HOSTILE], "learned": [HOSTILE]})
        return Preflight({"ready": True}, frame, seen)
    monkeypatch.setattr(finetune_module, "preflight", preflight)
    panel = show(**params_of(tiny))
    looked(panel)
    panel.buttons["check"].click()
    assert panel.buttons["check"].disabled
    gate.set()
    until(lambda: not panel.buttons["check"].disabled)
    shown = text_of(panel.live.view)
    assert "Before the run" in shown and "<img" not in shown and "\\href" not in shown and "\u202e" not in shown
    assert panel.result is None and not len(list_jobs())

    gate.clear()
    panel.buttons["check"].click()
    panel._token += 1
    panel.checked = None
    panel.live.view.children = []
    gate.set()
    until(lambda: not panel.buttons["check"].disabled)
    assert panel.checked is None and panel.live.view.children == ()


def test_text_from_data_and_models_is_text(tiny, show):
    panel = show(**params_of(tiny))
    looked(panel)
    samples = pd.DataFrame([{"id": HOSTILE, "task": HOSTILE, "prompt": HOSTILE, "reference": "x", "completion": HOSTILE}]*2)
    summary = {"base": HOSTILE, "dataset": HOSTILE, "method": "lora", "steps": 1, "epochs": 0.1, "tokens": 9, "train_s": 1.0, "tokens_per_s": 9.0, "n_trainable": 1,
               "n_parameters": 2, "ended_by": "steps", "eval_loss": None}
    history = pd.DataFrame({"step": [1], "name": ["loss"], "value": [1.0]})
    panel._accept(panel._token, panel.params, FineTuned(summary, history, samples, {"model": HOSTILE}))
    rows = panel.live.kept["answers"]
    rows.table.opened = "0"
    panel.live.say(*say_progress({"state": "running", "done": 0, "total": None, "message": HOSTILE, "eta_s": None}))
    for shown in (text_of(panel.live.widget), panel.static_html()):
        assert "onerror" in shown and "<img src" not in shown and "\\href" not in shown and "\u202e" not in shown
    rows.table.ticked = ["1"]
    assert panel.selection == [HOSTILE]
    # No answers is not an empty table.
    panel._accept(panel._token, panel.params, FineTuned(summary, history, samples[:0], {"model": "m"}))
    assert "No answers were written" in text_of(panel.live.view)

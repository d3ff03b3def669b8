"What no page should show of feedback and labelling: many writers, killed writers, a store that is away, other addresses, hostile text, the circle."
import json
import math
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from IPython.utils.capture import capture_output

from llmops_workbench import store as store_module
from llmops_workbench.catalogue import read_workflow
from llmops_workbench.errors import ParameterValueError, UserError, WorkspaceError
from llmops_workbench.feedback import feedback_frame
from llmops_workbench.labeling import agreement, cohen_kappa, decide, feedback_dataset, label
from llmops_workbench.outbox import Outbox, read_outboxes
from llmops_workbench.settings import Settings
from llmops_workbench.store import Store, open_feedback, open_store
from llmops_workbench.widgets.explore import ExplorePanel
from llmops_workbench.widgets.feedback import FeedbackPanel

HOSTILE = ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "{text} {0.__class__}", "'; DROP TABLE params; --", "\u202egnp.exe", "nul\0byte", "a\u2028b\nc\rd", "$\\href{javascript:x}{y}$",
           "{{ 7*7 }}", "=cmd|' /C calc'!A0", "🙂" * 50, "x" * 30_000]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    "A store without anything in it, made once: making the tables is the slow part."
    folder = tmp_path_factory.mktemp("template")
    Store(Settings(folder, f"sqlite:///{folder/'store'/'mlflow.db'}"))
    return folder


@pytest.fixture(autouse=True)
def own_store(template, workspace):
    "Each test has a copy of it, and no thread that outlives the test."
    shutil.copytree(template / "store", workspace / "store")
    yield
    open_feedback().outbox.close()


def tickets(n=6):
    return pd.DataFrame({"id": [f"T-{i}" for i in range(n)], "text": [f"Ticket number {i} is open." for i in range(n)]})


# ---- the store ----

def _write_many(number):
    log = open_feedback()
    for at in range(200):
        log.add("category", f"label {at % 3}", annotator=f"writer {number}", queue="race", row_id=f"row {at}", input="a text")
    return log.outbox.close()


def test_eight_processes_write_at_once_and_every_record_is_there_once():
    store_module._import_mlflow()  # before the fork, or eight imports would be what is measured
    with multiprocessing.get_context("fork").Pool(8) as pool:
        pool.map(_write_many, range(8), chunksize=1)
    frame = open_store().read_feedback()
    assert len(frame) == 1600 and frame["feedback_id"].is_unique
    assert (frame.groupby("annotator").size() == 200).all()
    # Opening the store has carried what a busy database had refused meanwhile.
    assert read_outboxes(open_feedback().outbox.folder) == []


@pytest.mark.slow
def test_what_a_killed_writer_was_told_is_kept():
    "Killed while its thread carries records: each id that it has printed is read back, by whoever opens the store next."
    writer = subprocess.Popen([sys.executable, "-c", textwrap.dedent("""
        from llmops_workbench.store import open_feedback, open_store
        open_store()
        log = open_feedback()
        log.outbox.every_s = 0.02
        for at in range(100_000): print(log.add("category", "x", annotator="ann", row_id=f"row {at}", input="a text").feedback_id, flush=True)
        """)], stdout=subprocess.PIPE, text=True)
    told = [writer.stdout.readline().strip() for _ in range(300)]
    os.kill(writer.pid, signal.SIGKILL)
    told += [line.strip() for line in writer.stdout if line.endswith("\n")]
    writer.wait()
    writer.stdout.close()
    there = open_feedback().read()
    assert set(told) <= set(there["feedback_id"]) and len(there) <= len(told) + 1
    assert there["feedback_id"].is_unique
    assert read_outboxes(open_feedback().outbox.folder) == []


def test_a_record_waits_for_no_store(monkeypatch, caplog):
    "Nobody answers at the address: what is said is kept all the same, and carried once somebody does."
    monkeypatch.setenv("LLMOPS_STORE", "http://127.0.0.1:9")
    log, opened = open_feedback(), []
    def away(settings):
        opened.append(True)
        raise WorkspaceError("away")
    monkeypatch.setattr(store_module, "open_store", away)
    log.outbox.every_s = 60
    for at in range(20): log.add("thumb", True, row_id=str(at))
    assert not opened
    with pytest.raises(WorkspaceError): log.outbox.flush()
    assert len(read_outboxes(log.outbox.folder)) == 20 and log.outbox.close() == 20
    assert "stays in" in caplog.text


def test_a_forked_child_has_an_outbox_of_its_own(tmp_path):
    stored = tmp_path / "stored"
    outbox = Outbox(tmp_path / "box", lambda lines: stored.open("a").write("".join(f"{line}\n" for line in lines)), every_s=60)
    outbox.append("parent 1")
    child = os.fork()
    if not child:
        outbox.append("child")
        outbox.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    outbox.append("parent 2")
    assert stored.read_text() == "child\n"
    assert outbox.close() == 0 and sorted(stored.read_text().split("\n"))[1:] == ["child", "parent 1", "parent 2"]


def test_texts_come_back_as_they_were_given():
    store = open_store()
    for at, text in enumerate(HOSTILE):
        store.add_feedback("correction", text, annotator=text[:50], comment=text, row_id=str(at), input=text, output=text, queue=text[:50])
    for _ in range(2):  # from the outbox, then from the store
        frame = store.read_feedback()
        assert frame["value"].tolist() == HOSTILE and frame["input"].tolist() == HOSTILE and frame["comment"].tolist() == HOSTILE
        assert len(store.read_feedback(queue=HOSTILE[3][:50])) == 1
        store.feedback.outbox.flush()
    assert len(store._fetch_feedback()) == len(HOSTILE)


def test_runs_stay_what_people_look_at():
    "Records are kept in runs of an experiment of their own, which no list of runs shows."
    store = open_store()
    store.add_feedback("thumb", True, row_id="a")
    store.feedback.outbox.flush()
    assert store.list_runs().empty
    assert open_store().read_feedback().dtypes.equals(feedback_frame([]).dtypes)


def test_a_record_in_the_store_is_never_changed():
    store = open_store()
    said = store.add_feedback("thumb", True, row_id="a")
    store.feedback.outbox.flush()
    run = store.client.search_runs([store._feedback_experiment()])[0]
    with pytest.raises(ParameterValueError, match="not allowed"):
        store._log_params(run.info.run_id, {f"{said.feedback_id}.0.1": "something else"})


def _check_address(settings):
    store = Store(settings)
    first = store.add_feedback("correction", "x" * 20_000 + "\0é", annotator="ann", row_id="a", input="a text")
    store.feedback.outbox.flush()
    store.add_feedback("correction", "y", annotator="ann", row_id="a", input="a text", replaces=first.feedback_id)
    store.feedback.outbox.flush()
    assert read_outboxes(store.feedback.outbox.folder) == []
    assert store.read_feedback(history=True)["value"].tolist() == ["x" * 20_000 + "\0é", "y"] and store.read_feedback()["value"].tolist() == ["y"]
    assert store.feedback.outbox.close() == 0


@pytest.mark.slow
def test_feedback_on_a_server(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    server = subprocess.Popen([sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", address.rpartition(":")[2], "--workers", "1",
                               "--backend-store-uri", f"sqlite:///{tmp_path/'server.db'}", "--artifacts-destination", str(tmp_path/"served")],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=1).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, "the server did not start"
                time.sleep(0.3)
        _check_address(Settings(tmp_path / "w", address))
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("LLMOPS_TEST_POSTGRES"), reason="name an empty PostgreSQL database in LLMOPS_TEST_POSTGRES")
def test_feedback_on_postgresql(tmp_path):
    _check_address(Settings(tmp_path / "w", os.environ["LLMOPS_TEST_POSTGRES"]))


# ---- agreement ----

@pytest.mark.parametrize("seed", range(20))
def test_alpha_and_kappa_are_those_of_others(seed):
    "Krippendorff's alpha of nltk and by pairs from the definition, Cohen's kappa of scikit-learn, on answers with gaps."
    from nltk.metrics.agreement import AnnotationTask
    from sklearn.metrics import cohen_kappa_score
    random = np.random.default_rng(seed)
    n_rows, who, values = int(random.integers(3, 40)), "abcd"[:int(random.integers(2, 5))], "xyz"
    answers = [(row, name, values[int(random.integers(0, 3)) if random.random() < 0.6 else row % 3]) for row in range(n_rows) for name in who if random.random() < 0.7]
    several = {row for row in range(n_rows) if sum(r == row for r, *_ in answers) > 1}
    shared = [answer for answer in answers if answer[0] in several]
    if len({value for *_, value in shared}) < 2: pytest.skip("all the same")
    alpha = agreement(pd.DataFrame(answers, columns=["row_id", "annotator", "value"]))
    assert alpha == pytest.approx(AnnotationTask(data=[(name, row, value) for row, name, value in shared]).alpha())
    # By hand: disagreement within rows against disagreement of any two answers.
    within = [(1/(sum(r == one[0] for r, *_ in shared) - 1), one[2] != other[2]) for one in shared for other in shared if one[0] == other[0] and one[1] != other[1]]
    among = [one[2] != other[2] for i, one in enumerate(shared) for j, other in enumerate(shared) if i != j]
    assert alpha == pytest.approx(1 - sum(weight*differ for weight, differ in within)/len(shared)/(sum(among)/len(among)))
    first, second = (random.choice(list(values), 30).tolist() for _ in range(2))
    assert cohen_kappa(first, second) == pytest.approx(cohen_kappa_score(first, second))
    assert cohen_kappa(first, second) == pytest.approx(cohen_kappa(second, first))


def test_guessing_has_an_alpha_of_nothing_and_agreeing_of_one():
    random = np.random.default_rng(0)
    rows, half = np.repeat(np.arange(4000), 2), np.tile(["a", "b"], 4000)
    frame = pd.DataFrame({"row_id": rows, "annotator": half, "value": random.choice(list("xyz"), 8000)})
    assert abs(agreement(frame)) < 0.05
    assert agreement(frame.assign(value=rows % 3)) == 1
    assert math.isnan(agreement(frame.head(0)))


# ---- labelling ----

def test_a_row_changes_its_answer_as_often_as_somebody_likes():
    labels = label(tickets(3), labels=["x", "y"], order="given", annotator="ann")
    for value in "xyxyx": labels = decide(labels, "T-1", value)
    labels = decide(decide(labels, "T-1", "cannot tell", skip=True), "T-1", "y")
    again = label(tickets(3), labels=["x", "y"], order="given", annotator="ann")
    assert again.summary == labels.summary and again.summary["distribution"] == {"x": 0, "y": 1} and again.summary["n_answers"] == 1
    assert len(open_feedback().read(history=True)) == 7
    pd.testing.assert_frame_equal(again.frame, labels.frame)


def test_queues_and_people_are_kept_apart():
    for queue, who, value in (("one", "ann", "x"), ("one", "ben", "y"), ("two", "ann", "y")):
        decide(label(tickets(2), labels=["x", "y"], queue=queue, annotator=who), "T-0", value)
    one = label(tickets(2), labels=["x", "y"], queue="one", annotator="carl")
    assert one.done() == set() and one.answered.empty and "T-0" not in one.static_html() and one.summary["n_disputed"] == 1 and one.summary["alpha"] == 0.0
    assert label(tickets(2), labels=["x", "y"], queue="two").summary["distribution"] == {"x": 0, "y": 1}
    assert feedback_dataset("category", queue="one").rejected["reason"].tolist() == ["T-0: annotators disagree"]
    assert feedback_dataset("category", queue="two", n_annotators=2).rejected["reason"].tolist() == ["T-0: only 1 of 2 annotators"]


def test_every_row_asked_is_accounted_for():
    frame = pd.DataFrame({"text": ["a", "", None, " ", "b", "c"], "answer": ["x", "y", "z", "w", None, "v"]})
    labels = label(frame, kind="thumb", output_column="answer", n_rows=0)
    assert labels.summary["n_rows"] + labels.summary["n_rejected"] == len(frame) and labels.summary["n_rows"] == 2
    assert labels.rejected["reason"].notna().all()


BAD = {
    "no such row": ({"rows": ["T-99"]}, "rows names 'T-99'"),
    "no such position": ({"rows": [99]}, "rows names 99"),
    "no rows": ({"rows": []}, "rows is empty"),
    "no such column": ({"text_column": "txt"}, "Did you mean 'text'?"),
    "one label": ({"labels": ["x"]}, "two or more different texts"),
    "the same label twice": ({"labels": ["x", "x"]}, "two or more different texts"),
    "nothing to prefer": ({"kind": "preference", "output_column": "text"}, "other_column is not given"),
    "no queue": ({"queue": " "}, "queue is empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_explained_in_a_line(case):
    options, message = BAD[case]
    with pytest.raises(UserError) as caught: label(**{"dataset": tickets(), **options})
    assert message in str(caught.value) and "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_what_is_labelled_can_be_trained_on():
    "Corrections are examples for fine-tuning as they come out; nothing of a row is lost on the way."
    from llmops_workbench.examples import read_examples
    frame = tickets(3).assign(answer=["a", "b", "c"])
    labels = label(frame, kind="correction", output_column="answer", order="given")
    for row_id, text in (("T-0", "A"), ("T-1", "b")): labels = decide(labels, row_id, text)
    labels = decide(labels, "T-2", "not readable", skip=True)
    made = feedback_dataset("correction", queue="tickets")
    assert len(made) + len(made.rejected) == 3
    examples = read_examples(made)
    assert examples.frame["completion"].tolist() == ["A", "b"] and len(examples.rejected) == 1
    assert set(made.frame["feedback_ids"]) <= set(open_feedback().read()["feedback_id"])


# ---- the panel ----

def live(panel):
    "The panel as a browser that says hello gets it."
    with capture_output():
        panel._ipython_display_()
        panel.beacon._handle_custom_msg({"kind": "hello"}, [])
    return panel.desk


def panel_on(frame, **params):
    return FeedbackPanel(dataset=frame, labels=["broken", "wanted"], order="random", seed=3, **params)


def test_a_panel_is_driven_left_and_gone_on_with():
    panel = panel_on(tickets(), annotator="ann")
    desk = live(panel)
    order = desk.order
    assert order != tickets()["id"].tolist() and sorted(order) == tickets()["id"].tolist()
    desk.buttons[0].click()
    desk.comment.value = "it says so"
    desk.press("2")
    desk.reason.value = "too short"
    desk.skip_button.click()
    assert desk.row_id == order[3] and "3 of 6" in desk.progress.value
    assert panel.result.summary == label(**panel.params).summary
    assert open_feedback().read(row_id=order[1])["comment"].tolist() == ["it says so"] and set(open_feedback().read()["source"]) == {"panel"}
    panel._timer.cancel()
    panel._update_static()
    assert "2 of 6 rows" in panel.static_html()
    panel.close()
    # Another kernel, the same person: on with the fourth row. Somebody else begins at the first, and sees nothing of the others.
    code = """
        import json, sys
        import pandas as pd
        from llmops_workbench.labeling import label
        from llmops_workbench.widgets.feedback import Desk
        for who in ("ann", "ben"):
            desk = Desk(label(pd.read_json(sys.argv[1]), labels=["broken", "wanted"], order="random", seed=3, annotator=who), print)
            print(json.dumps([desk.row_id, desk.comment.value, desk.status.value, [button.button_style for button in desk.buttons]]))
        """
    path = Path(os.environ["LLMOPS_WORKSPACE"]) / "tickets.json"
    tickets().to_json(path)
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ann, ben = map(json.loads, done.stdout.splitlines())
    assert ann == [order[3], "", "", ["", ""]] and ben == [order[0], "", "", ["", ""]]


def test_a_disk_that_is_full_is_said_and_the_row_stays(monkeypatch):
    panel = panel_on(tickets())
    desk = live(panel)
    first = desk.row_id
    def full(line): raise WorkspaceError("The disk is full <b>now</b>.")
    monkeypatch.setattr(open_feedback().outbox, "append", full)
    desk.press("1")
    assert desk.row_id == first and "The disk is full &lt;b&gt;" in desk.status.value and panel.result.summary["n_left"] == 6
    monkeypatch.undo()
    desk.press("1")
    assert desk.row_id != first
    panel.close()


def test_hostile_text_is_shown_and_never_obeyed():
    frame = pd.DataFrame({"id": HOSTILE, "text": HOSTILE, "answer": HOSTILE})
    panel = FeedbackPanel(dataset=frame, labels=HOSTILE[:9], question=HOSTILE[0], guidelines=HOSTILE[1], output_column="answer", annotator=HOSTILE[1], queue=HOSTILE[0], order="given")
    desk = live(panel)
    desk.comment.value = HOSTILE[1]
    for key in "12": desk.press(key)
    desk.reason.value = HOSTILE[0]
    desk.press("skip")
    desk.press("back")
    panel._timer.cancel()
    shown = [panel.static_html(), panel._found.value, *(getattr(desk, name).value for name in ("progress", "question", "text", "status", "guidelines"))]
    for page in shown:
        assert "<script" not in page and "<img src=x" not in page and "\u202e" not in page
    assert "\u202e" not in "".join(button.description for button in desk.buttons)
    assert "$" not in panel.result.figure().to_json() and "<img" not in panel.result.figure().to_json()
    assert panel.result.summary["n_labelled"] == 2 and panel.result.summary["skip_reasons"] == {HOSTILE[0]: 1}
    panel.close()


def test_rows_picked_in_explore_go_on_to_labelling(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    panel = ExplorePanel(dataset=tickets(80), tokenizer=None, signals=["lengths"])
    panel.run()
    picked = panel.selection = [f"T-{i}" for i in range(0, 80, 1) if i % 4]
    path = panel.send("feedback", "picked")
    params = {name: parameter.default for name, parameter in read_workflow(path).parameters.items()}
    assert params["dataset"].startswith("picked@") and params["text_column"] == "text"
    sent = label(**params)
    assert sorted(sent.frame["row_id"]) == sorted(picked)
    # The ids of a selection can be passed on as they are, and what was said of the one counts for the other: it is the same text.
    decide(sent, picked[0], "network")
    direct = label(tickets(80), rows=panel.selection, n_rows=0)
    assert sorted(direct.frame["row_id"]) == sorted(picked) and direct.summary["n_labelled"] == 1


@pytest.mark.slow
def test_answers_given_on_a_panel_are_found_headlessly(tmp_path):
    panel = FeedbackPanel(dataset="helpdesk", n_rows=6, annotator="ann")
    desk = live(panel)
    for key in "1312": desk.press(key)
    desk.press("skip")
    panel._timer.cancel()
    (tmp_path / "frozen.yaml").write_text(panel.to_yaml(), encoding="utf-8")
    done = subprocess.run([Path(sys.executable).parent / "llmops", "run", "feedback", "-f", "frozen.yaml", "--output", "done.ipynb", "--json"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert told["summary"] == json.loads(json.dumps(panel.result.summary)) and told["summary"]["n_left"] == 1
    assert FeedbackPanel.from_run(told["run_id"]).params == panel.params
    panel.close()

"What no page should show of pipelines: broken files, steps that fail, resuming, hostile text in the report."
import json
import re
import socket
import textwrap

import nbformat
import pandas as pd
import pytest

from llmops_workbench import pipeline as pipeline_module
from llmops_workbench.errors import (MissingColumnError, ParameterValueError, RunFailedError, SourceFormatError, SourceNotFoundError,
                                     UnknownParameterError)
from llmops_workbench.pipeline import find_pipeline, plan_pipeline, read_pipeline, run_pipeline
from llmops_workbench.settings import Settings
from llmops_workbench.store import Store

LOG = """
from types import SimpleNamespace
import pandas as pd
from llmops_workbench.store import open_store
result = SimpleNamespace(summary={"value": value}, outputs={"value": str(value)}, words=lambda: [f"It is {value}."], frame=pd.DataFrame({"value": [value]}))
open_store().log_result(result, "step")
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    store = Store(Settings(folder, f"sqlite:///{folder/'store'/'mlflow.db'}"))
    yield store
    store.journal.close()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "Two workflows and a pipeline of them; the second fails for a negative number."
    def workflow(name, parameters, code):
        cells = [nbformat.v4.new_markdown_cell(f"# {name.title()}\n\nA step."), nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
                 nbformat.v4.new_code_cell(textwrap.dedent(code) + LOG)]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path/f"{name}.ipynb")
    workflow("double", 'number: int = 1\nfile: str = ""', "value = 2*number")
    workflow("root", 'of: str = "4"', """
        if int(of) < 0:
            from llmops_workbench.errors import MissingColumnError
            raise MissingColumnError(f"There is no root of {of}.")
        value = 1/(int(of) - 100) if int(of) >= 100 else int(of)**0.5""")
    write(tmp_path, BASIC)
    monkeypatch.chdir(tmp_path)
    return tmp_path


BASIC = """
name: roots
params: {number: 8, file: data.csv}
steps:
  - {id: twice, workflow: double.ipynb, params: {number: "${params.number}", file: "${params.file}"}}
  - {id: root, workflow: root.ipynb, params: {of: "${steps.twice.outputs.value}"}}
"""


def write(folder, text, name="p.yaml"):
    (folder/name).write_text(text)
    return folder/name


STEP = "{id: a, workflow: double.ipynb}"
BAD = [
    ("steps: [", SourceFormatError, "no valid YAML"),
    ("- 1", SourceFormatError, "is no mapping"),
    ("", SourceFormatError, "is no mapping"),
    ("name: x", SourceFormatError, "has no 'steps'"),
    ("steps: []", SourceFormatError, "has no 'steps'"),
    ("steps: {a: 1}", SourceFormatError, "It is a list"),
    (f"stepps: []\nsteps: [{STEP}]", SourceFormatError, "Did you mean 'steps'"),
    ("steps: [explore]", SourceFormatError, "Step 1 of"),
    ("steps: [{id: a}]", SourceFormatError, "has no 'workflow'"),
    ("steps: [{id: 'a b', workflow: double.ipynb}]", SourceFormatError, "An id has letters"),
    (f"steps: [{STEP}, {STEP}]", SourceFormatError, "more than one step 'a'"),
    ("steps: [{id: a, workflow: doubel.ipynb}]", SourceNotFoundError, "Step 'a'"),
    ("steps: [{id: a, workflow: double.ipynb, params: {number: '${params.n}'}}]", UnknownParameterError, "'${params.n}'"),
    ("steps: [{id: a, workflow: double.ipynb, params: {number: '${step.n}'}}]", SourceFormatError, "A reference is params.NAME"),
    ("steps: [{id: a, workflow: double.ipynb, params: {number: '${steps.a.summary.n}'}}]", SourceFormatError, "A reference is params.NAME"),
    ("steps: [{id: a, workflow: double.ipynb, params: {number: '${steps.b.run_id}'}}]", UnknownParameterError, "The steps are: a"),
    ("steps: [{id: a, workflow: double.ipynb, params: {file: '${steps.a.run_id}'}}]", SourceFormatError, "in a circle"),
    ("steps: [{id: a, workflow: double.ipynb, needs: [b]}, {id: b, workflow: double.ipynb, needs: [a]}]", SourceFormatError, "in a circle"),
    ("steps: [{id: a, workflow: double.ipynb, needs: [c]}]", UnknownParameterError, "needs 'c'"),
    ("params: {'a b': 1}\nsteps: [{id: a, workflow: double.ipynb}]", UnknownParameterError, "cannot be a parameter"),
    ("params: {a: 2026-01-01}\nsteps: [{id: a, workflow: double.ipynb}]", SourceFormatError, "in quotes"),
    ("steps: [{id: a, workflow: double.ipynb, params: {numbr: 1}}]", UnknownParameterError, "Step 'a': double has no parameter 'numbr'"),
    ("steps: [{id: a, workflow: double.ipynb, params: {number: many}}]", ParameterValueError, "Step 'a'"),
]


@pytest.mark.parametrize("text, error, says", BAD, ids=[says for _, _, says in BAD])
def test_a_broken_file_is_one_line_before_anything_runs(folder, monkeypatch, text, error, says):
    monkeypatch.setattr(pipeline_module, "run_workflow", lambda *args, **kwargs: pytest.fail("it ran"))
    monkeypatch.setattr(pipeline_module, "open_store", lambda *args: pytest.fail("it opened the store"))
    with pytest.raises(error, match=re.escape(says)) as caught: run_pipeline(write(folder, text, "bad.yaml"))
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_steps_run_after_what_they_need_and_otherwise_as_written(folder):
    text = """
        steps:
          - {id: last, workflow: root.ipynb, params: {of: "${steps.first.outputs.value}"}}
          - {id: free, workflow: double.ipynb}
          - {id: first, workflow: double.ipynb, needs: [free]}
    """
    assert [step.id for step in read_pipeline(write(folder, text)).steps] == ["free", "first", "last"]


def test_the_plan_shows_values_and_where_the_others_come_from(folder):
    plan = plan_pipeline(folder/"p.yaml", {"number": "5"})
    assert plan["params"].tolist() == [{"number": 5, "file": "data.csv"}, {"of": "<outputs.value of twice>"}]
    with pytest.raises(ParameterValueError, match="roots"): plan_pipeline(folder/"p.yaml", {"number": "five"})


def test_an_unknown_pipeline_lists_those_there_are():
    with pytest.raises(SourceNotFoundError, match="Those that come with the workbench are"): find_pipeline("helpdeks")


def test_a_whole_run(folder, store, monkeypatch):
    seen = []
    run = run_pipeline(folder/"p.yaml", store=store, on_progress=lambda done, total, text: seen.append((done, total, text)))
    assert run.steps["status"].tolist() == ["FINISHED"]*2 and run.status == "FINISHED"
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen) and seen[-1][0] == seen[-1][1] == 6
    assert seen[0][2].startswith("twice: ") and seen[-1][2].startswith("root: ")
    record = store.get_run(run.run_id)
    assert (record.stage, record.status) == ("pipeline", "FINISHED")
    assert record.outputs == dict(zip(run.steps["step"], run.steps["run_id"]))
    assert record.text("report.html") == run.report.read_text()
    last = store.get_run(run.steps["run_id"][1])
    assert last.summary == {"value": 4.0} and last.tags["llmops.pipeline"] == run.run_id and last.notebook.exists()
    for path in run.steps["notebook"]: nbformat.validate(nbformat.read(path, 4))
    page = run.report.read_text()
    for text in ("It is 4.0.", "Double", "Root", run.steps["run_id"][0], "FINISHED", "Where things lie"): assert text in page
    assert not re.search(r"<script|https?://|<link|@import", page)


def test_it_stops_at_the_first_failure_and_says_how_to_go_on(folder, store):
    with pytest.raises(MissingColumnError) as caught: run_pipeline(folder/"p.yaml", {"number": -3}, store=store)
    message = str(caught.value)
    assert "Step 'root' of roots stopped: There is no root of -6." in message and "-p number -3 --resume" in message and "\n" not in message
    run = store.get_run(store.list_runs("pipeline", 1)["run_id"][0])
    assert run.status == "FAILED" and "There is no root" in run.error and set(run.outputs) == {"twice", "root"}
    assert "FAILED" in run.text("report.html") and "There is no root of -6." in run.text("report.html")
    with pytest.raises(RunFailedError, match="ZeroDivisionError"): run_pipeline(folder/"p.yaml", {"number": 50}, store=store)


def statuses(run): return run.steps["status"].tolist()


def test_resume_skips_what_has_not_changed_and_nothing_else(folder, store):
    (folder/"data.csv").write_text("a")
    def again(**params): return statuses(run_pipeline(folder/"p.yaml", {"number": 11, **params}, resume=True, store=store))
    assert again() == ["FINISHED", "FINISHED"]
    assert again() == ["REUSED", "REUSED"]
    assert statuses(run_pipeline(folder/"p.yaml", {"number": 11}, store=store)) == ["FINISHED", "FINISHED"]  # only when asked for
    (folder/"data.csv").write_text("b")  # an input: the first step is another, the second gets the same value from it
    assert again() == ["FINISHED", "REUSED"]
    assert again(number=12) == ["FINISHED", "FINISHED"]
    notebook = json.loads((folder/"root.ipynb").read_text())
    notebook["cells"][0]["source"] = "# Root\n\nChanged."
    (folder/"root.ipynb").write_text(json.dumps(notebook))
    assert again() == ["REUSED", "FINISHED"]


def test_a_step_that_failed_is_not_taken_for_done(folder, store):
    for _ in range(2):
        with pytest.raises(MissingColumnError): run_pipeline(folder/"p.yaml", {"number": -5}, resume=True, store=store)
    last = store.get_run(store.list_runs("pipeline", 1)["run_id"][0])
    assert "done before" in last.text("report.html")


def test_an_output_that_the_step_does_not_give_is_named(folder, store):
    path = write(folder, BASIC.replace("outputs.value", "outputs.valeu"))
    with pytest.raises(ParameterValueError, match="It takes output 'valeu' of step 'twice'. That step gave: value. Did you mean 'value'"):
        run_pipeline(path, store=store)


def test_an_interrupt_leaves_a_report_and_a_killed_run(folder, store):
    def stop(done, total, text):
        if text.startswith("root"): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): run_pipeline(folder/"p.yaml", store=store, on_progress=stop)
    run = store.get_run(store.list_runs("pipeline", 1)["run_id"][0])
    assert run.status == "KILLED" and "It is 16." in run.text("report.html")


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> $\\href{javascript:alert(3)}{x}$ \x1b[31m \u202e"


def test_hostile_text_is_text_in_the_report(folder, store, monkeypatch):
    def refuse(*args): raise OSError("no network here")
    text = BASIC.replace("name: roots", "name: " + json.dumps(HOSTILE) + "\ndescription: " + json.dumps(HOSTILE))
    text = text.replace("file: data.csv", "file: " + json.dumps(HOSTILE))
    notebook = json.loads((folder/"root.ipynb").read_text())
    notebook["cells"][0]["source"] = f"# {HOSTILE}\n\n{HOSTILE}"
    notebook["cells"][2]["source"] += f"\nfrom llmops_workbench.store import open_store\nopen_store().open_run(__import__('os').environ['LLMOPS_RUN_ID']).log_text('face.html', {HOSTILE!r})"
    (folder/"root.ipynb").write_text(json.dumps(notebook))
    monkeypatch.setattr(socket, "create_connection", refuse)
    page = run_pipeline(write(folder, text), store=store).report.read_text()
    assert "<script" not in page and "<img" not in page and "$\\href" not in page and "\x1b" not in page and "\u202e" not in page
    assert page.count("&lt;script&gt;alert(1)") >= 4 and "It is 4.0." in page


def test_scores_are_found_in_a_comparison(folder, store):
    compared = {"system": ["run:RUN", "tuned"], "task": ["query"]*2, "metric": ["bleu"]*2, "value": [10.0, 45.0], "delta": [None, 35.0], "verdict": ["baseline", "better"]}
    code = f"value = 1\nimport pandas as pd\nframe = {compared!r}\nframe['system'][0] = 'run:' + before\n" + LOG.replace('pd.DataFrame({"value": [value]})', "pd.DataFrame(frame)")
    cells = [nbformat.v4.new_markdown_cell("# Compare\n\nWhich?"), nbformat.v4.new_code_cell('before: str = ""', metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(code)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder/"compare.ipynb")
    run = run_pipeline(write(folder, BASIC + '  - {id: judge, workflow: compare.ipynb, params: {before: "${steps.root.run_id}"}}\n'), store=store)
    expected = pd.DataFrame({"task": ["query"], "metric": ["bleu"], "root": [10.0], "tuned": [45.0], "change": [35.0], "verdict": ["better"]})
    pd.testing.assert_frame_equal(run.scores, expected, check_dtype=False, check_names=False)
    assert "45.000" in run.report.read_text()


@pytest.mark.parametrize("name", ["helpdesk", "e2e"])
def test_the_pipelines_that_come_along_fit_their_workflows(name):
    plan = plan_pipeline(name)
    assert plan["step"].tolist() == ["explore", "prepare", "before", "finetune", "after", "compare", "monitor"]

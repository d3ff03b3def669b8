"What no page should show of the runner: hostile parameters, dead kernels, killed runs, widgets, odd paths, the papermill command."
import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from papermill.clientwrap import PapermillNotebookClient

from llmops_workbench import runner
from llmops_workbench.errors import (MissingDependencyError, OutputInUseError, ParameterValueError, RunFailedError, SourceFormatError,
                                     SourceNotFoundError, UnknownParameterError, UserError, WorkspaceError)
from llmops_workbench.runner import run_workflow
from llmops_workbench.settings import Settings
from llmops_workbench.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    store = Store(Settings(folder, f"sqlite:///{folder/'store'/'mlflow.db'}"))
    yield store
    store.journal.close()


@pytest.fixture
def make(tmp_path):
    "Write a workflow: a parameters cell and code cells."
    def make(name, parameters, *cells, kernelspec=True, tags=("parameters",)):
        cells = [nbformat.v4.new_markdown_cell("# Title\n\nPurpose."), nbformat.v4.new_code_cell(parameters, metadata={"tags": [*tags]}),
                 *(nbformat.v4.new_code_cell(textwrap.dedent(cell).strip()) for cell in cells)]
        notebook = nbformat.v4.new_notebook(cells=cells)
        if kernelspec: notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        path = tmp_path/name
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, path)
        return path
    return make


def texts(path):
    "Everything that the code cells printed or showed."
    outputs = [output for cell in nbformat.read(path, 4).cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs)


def until(condition, limit_s=60):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def test_what_comes_late_is_waited_for(make, store):
    "On a busy machine a kernel's last word on a cell came more than 4 s after its reply, which failed the run; a kernel that took a minute to start was given up."
    started = []

    class Client(PapermillNotebookClient):
        def __init__(self, *args, **options):
            started.append(options["startup_timeout"])
            super().__init__(*args, **options)
    path = make("late.ipynb", "a: int = 1", """
        import sys, time
        sys.stdout.flush_timeout = sys.stderr.flush_timeout = 0.1
        get_ipython().kernel.iopub_thread.io_loop.add_callback(time.sleep, 6)
        print("a word")
    """)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("papermill.clientwrap.PapermillNotebookClient", Client)
        done = run_workflow(path, store=store)
    assert done.status == "FINISHED" and min(started) >= 300


HOSTILE = ["a\nimport os", "a=1;marker", "__class__.x", "class", "a b", "", "1a", "a.b", "a-b", "é\u200b", "a#", "lambda", None, 7, "name\r\nmarker"]


@pytest.mark.parametrize("name", HOSTILE, ids=repr)
def test_a_name_that_is_code_never_reaches_papermill(make, store, tmp_path, monkeypatch, name):
    path = make("a.ipynb", "a: int = 1", f"open({str(tmp_path/'marker')!r}, 'w')")
    monkeypatch.setattr(runner, "_call_papermill", lambda *args, **kwargs: pytest.fail("it reached papermill"))
    before = len(store.list_runs())
    with pytest.raises(UnknownParameterError) as caught: run_workflow(path, {name: "open('marker')"}, store=store)
    assert "\n" not in str(caught.value) and len(store.list_runs()) == before and not (tmp_path/"marker").exists()


@pytest.mark.parametrize("values, error", [({"number": "three"}, ParameterValueError), ({"number": 1.5}, ParameterValueError),
                                           ({"text": "x"*1_000_000}, ParameterValueError), ({"nummer": 3}, UnknownParameterError)])
def test_a_wrong_value_stops_before_anything_is_made(make, store, values, error):
    path, runs = make("a.ipynb", 'number: int = 1\ntext: str = ""', "1/0"), store.settings.workspace/"runs"
    before = (len(store.list_runs()), sorted(runs.glob("*")))
    with pytest.raises(error): run_workflow(path, values, store=store)
    assert (len(store.list_runs()), sorted(runs.glob("*"))) == before


@pytest.mark.parametrize("tags", [(), ("parameter",)])
def test_without_exactly_one_tagged_cell_nothing_runs(make, store, tags):
    with pytest.raises(SourceFormatError, match="tag `parameters`"): run_workflow(make("a.ipynb", "a: int = 1", "1/0", tags=tags), store=store)


def test_values_arrive_exactly_as_they_were_given(make, store):
    values = {"text": "it's \"quoted\" \\ {x} $y\n#=é😀", "number": -3, "rate": 1e-9, "flag": True, "names": ["a", "b'"], "table": {"k": [1, None]}, "maybe": None}
    path = make("odd {name} it's é.ipynb", 'text: str = ""\nnumber: int = 0\nrate: float = 0.0\nflag: bool = False\nnames: list = []\n'
                'table: dict = {}\nmaybe: "Optional[str]" = "x"', "import json\nprint(json.dumps([text, number, rate, flag, names, table, maybe]))")
    run = run_workflow(path, values, store=store)
    assert json.loads(texts(run.output)) == list(values.values())
    assert store.get_run(run.run_id).params == values


def test_the_kernel_knows_its_run_its_folder_and_that_nobody_watches(make, store, monkeypatch):
    path = make("sub/a.ipynb", "a: int = 1", """
        import os
        print(*(os.environ.get(name) for name in ("LLMOPS_RUN_ID", "LLMOPS_LIVE", "OMP_WAIT_POLICY", "LLMOPS_STORE")), os.getcwd(), sep="|", end="")
    """)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.chdir(path.parent.parent)
    run = run_workflow(path, store=store)
    assert texts(run.output).split("|") == [run.run_id, "0", "PASSIVE", store.address, str(path.parent.parent)]
    assert os.getcwd() == str(path.parent.parent)


def test_no_widget_state_and_no_widget_view_in_the_output(make, store):
    path = make("a.ipynb", "a: int = 1", """
        import ipywidgets, plotly.graph_objects as go
        from IPython.display import display
        display({"text/html": "<b>static</b>", "text/plain": "static"}, raw=True)
        ipywidgets.VBox([ipywidgets.IntSlider(), go.FigureWidget([go.Bar(y=[1, 2])])])
    """)
    run = run_workflow(path, store=store)
    content = run.output.read_text()
    assert "widgets" not in json.loads(content)["metadata"] and "widget-view" not in content
    assert "<b>static</b>" in content and len(content) < 20_000


def test_two_runs_on_one_output_path(make, store, tmp_path):
    path = make("slow.ipynb", "flag: str = ''", "import pathlib, time\nwhile not pathlib.Path(flag).exists(): time.sleep(0.05)")
    first = threading.Thread(target=run_workflow, args=(path, {"flag": str(tmp_path/"go")}, tmp_path/"out.ipynb"), kwargs={"store": store})
    first.start()
    try:
        until(lambda: (tmp_path/"out.ipynb").exists())
        before = len(store.list_runs())
        with pytest.raises(OutputInUseError, match="Another run is writing"): run_workflow(path, output=tmp_path/"out.ipynb", store=store)
        assert len(store.list_runs()) == before
    finally:
        (tmp_path/"go").write_text("")
        first.join()
    again = run_workflow(path, {"flag": str(tmp_path/"go")}, tmp_path/"out.ipynb", store=store)  # the output of an earlier run is replaced
    assert again.status == "FINISHED" and not (tmp_path/".out.ipynb.lock").exists()


def test_the_source_is_never_written_over(make, store, tmp_path, monkeypatch):
    path = make("a.ipynb", "a: int = 1")
    (tmp_path/"link.ipynb").symlink_to(path)
    monkeypatch.chdir(tmp_path)
    before = path.read_bytes()
    for output in (path, "a.ipynb", "link.ipynb"):
        with pytest.raises(OutputInUseError, match="was not written by a run"): run_workflow(path, output=output, store=store)
    with pytest.raises(ParameterValueError, match="is no notebook"): run_workflow(path, output="report.html", store=store)
    assert path.read_bytes() == before


def test_a_failing_cell_keeps_what_was_before_it(make, store):
    path = make("a.ipynb", "a: int = 1", "print('before')", "raise ValueError('line one\\nline two')", "print('after')")
    with pytest.raises(RunFailedError, match="stopped in cell .* with ValueError: line one") as caught: run_workflow(path, store=store)
    run = caught.value.run
    assert (run.status, texts(run.output)) == ("FAILED", "before\n") and "\n" not in str(caught.value)
    record = store.get_run(run.run_id)
    assert (record.status, record.error) == ("FAILED", str(caught.value)) and record.notebook.read_bytes() == run.output.read_bytes()


@pytest.mark.parametrize("name, kind", [("SourceNotFoundError", SourceNotFoundError), ("MissingDependencyError", MissingDependencyError),
                                        ("UserError", UserError)])
def test_a_user_error_inside_comes_out_as_itself(make, store, name, kind):
    path = make("a.ipynb", "a: int = 1", f"from llmops_workbench.errors import {name}\nraise {name}(\"There is no file 'x.csv'.\")")
    with pytest.raises(kind) as caught: run_workflow(path, store=store)
    assert (str(caught.value), caught.value.exit_code) == ("There is no file 'x.csv'.", 2)


def test_a_kernel_that_dies_is_a_failed_run(make, store):
    path = make("a.ipynb", "a: int = 1", "print('before')", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(RunFailedError, match="kernel died") as caught: run_workflow(path, store=store)
    assert texts(caught.value.run.output) == "before\n" and store.get_run(caught.value.run.run_id).status == "FAILED"


def test_an_unknown_kernel_is_one_line(make, store):
    path = make("a.ipynb", "a: int = 1")
    notebook = json.loads(path.read_text())
    notebook["metadata"]["kernelspec"]["name"] = "fortran77"
    path.write_text(json.dumps(notebook))
    with pytest.raises(RunFailedError, match="fortran77"): run_workflow(path, store=store)


def test_a_notebook_without_kernelspec_runs(make, store):
    assert run_workflow(make("a.ipynb", "a: int = 1", kernelspec=False), store=store).status == "FINISHED"


def test_a_disk_that_fills_up_during_the_run(make, store, monkeypatch):
    write, calls = runner.write_atomically, []
    def full(path, content):
        calls.append(path)
        if len(calls) > 4: raise WorkspaceError("Cannot write: the disk is full.")
        return write(path, content)
    monkeypatch.setattr(runner, "write_atomically", full)
    with pytest.raises(WorkspaceError, match="disk is full") as caught: run_workflow(make("a.ipynb", "a: int = 1", "1", "2", "3"), store=store)
    nbformat.validate(nbformat.read(caught.value.run.output, 4))
    assert store.get_run(caught.value.run.run_id).status == "FAILED"


def test_it_runs_where_an_event_loop_runs(make, store):
    async def main(): return run_workflow(make("a.ipynb", "a: int = 1"), store=store)
    assert asyncio.run(main()).status == "FINISHED"


def _start_cli_like(path, store, output):
    # What a shell runs in the background starts with Ctrl-C ignored.
    code = "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\nfrom llmops_workbench.runner import run_workflow\nrun_workflow(sys.argv[1], output=sys.argv[2])"
    environment = {**os.environ, "LLMOPS_WORKSPACE": str(store.settings.workspace), "LLMOPS_STORE": store.address}
    return subprocess.Popen([sys.executable, "-c", code, str(path), str(output)], env=environment, stderr=subprocess.PIPE)


@pytest.mark.parametrize("number, status", [(signal.SIGKILL, "LOST"), (signal.SIGINT, "KILLED")])
def test_a_run_that_is_killed_leaves_a_readable_notebook_and_no_kernel(make, store, tmp_path, number, status):
    path = make(f"kill{number}.ipynb", "a: int = 1", f"import os\nopen({str(tmp_path/'pid')!r}, 'w').write(str(os.getpid()))\nprint('before')",
                f"import time\nopen({str(tmp_path/'inside')!r}, 'w')\ntime.sleep(100)")
    process = _start_cli_like(path, store, tmp_path/"out.ipynb")
    until((tmp_path/"inside").exists)
    kernel = psutil.Process(int((tmp_path/"pid").read_text()))
    process.send_signal(number)
    process.communicate()
    assert process.returncode != 0
    until(lambda: not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE)
    nbformat.validate(nbformat.read(tmp_path/"out.ipynb", 4))
    assert texts(tmp_path/"out.ipynb") == "before\n"
    run = store.list_runs(f"kill{number}").iloc[0]
    assert run["status"] == status


def _papermill(*args):
    command = Path(sys.executable).parent/"papermill"
    return subprocess.run([command, *map(str, args)], capture_output=True, text=True)


def test_the_papermill_command_can_use_the_engine(make, tmp_path):
    path = make("a.ipynb", "count: int = 1", "import os, ipywidgets\nprint(os.environ['LLMOPS_LIVE'], count)", "ipywidgets.IntSlider()")
    done = _papermill("--engine", "llmops", path, tmp_path/"out.ipynb", "-p", "count", "3")
    assert done.returncode == 0, done.stderr
    assert texts(tmp_path/"out.ipynb").startswith("0 3") and "widget-state" not in (tmp_path/"out.ipynb").read_text()
    misspelt = _papermill("--engine", "llmops", path, tmp_path/"out2.ipynb", "-p", "cuont", "3")
    assert misspelt.returncode != 0 and "has no parameter 'cuont'" in misspelt.stderr

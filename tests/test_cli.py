"What no page should show of the command: exit codes, one-line errors, light start, signals, terminals."
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time

import nbformat
import pytest

from llmops_workbench import cli
from llmops_workbench.locks import try_lock

CODE = """
from types import SimpleNamespace
import pandas as pd
from llmops_workbench.store import open_store
if number < 0:
    from llmops_workbench.errors import MissingColumnError
    raise MissingColumnError(f"There is no column '{number}'.")
value = 100/number
result = SimpleNamespace(summary={"value": value, "file": file}, outputs={"value": str(value)}, words=lambda: [f"It is {value} \\x1b[31mred."], frame=pd.DataFrame({"value": [value]}))
open_store().log_result(result, "divide")
"""


@pytest.fixture(scope="module")
def shared_workspace(tmp_path_factory):
    "One store for all tests of this file: making one takes a second."
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def project(tmp_path, monkeypatch, shared_workspace):
    "A project with one workflow, where one stands."
    cells = [nbformat.v4.new_markdown_cell("# Divide\n\nHow often?"), nbformat.v4.new_code_cell('number: int = 4  # By what\nfile: str = ""', metadata={"tags": ["parameters"]}),
             nbformat.v4.new_code_cell(CODE)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path/"divide.ipynb")
    (tmp_path/"settings.ini").write_text("# of the workbench\n[workbench]\n")
    monkeypatch.setenv("LLMOPS_WORKSPACE", str(shared_workspace))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def llmops(capsys):
    def llmops(*args):
        "Exit code, output, errors."
        try: code = cli.main([str(arg) for arg in args])
        except SystemExit as ended: code = ended.code
        said = capsys.readouterr()
        return code, said.out, said.err
    return llmops


def test_looking_loads_nothing_heavy(project):
    code = """
        import contextlib, io, sys
        from llmops_workbench.cli import main
        for args in (["--help"], ["--version"], ["list"], ["list", "--json"], ["show", "divide.ipynb"], ["run", "--help"], ["pipeline", "plan", "--help"], ["nonsense"]):
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit): main(args)
        heavy = "torch transformers datasets evaluate mlflow plotly scipy sklearn pandas numpy matplotlib papermill nbformat IPython ipywidgets numba yaml.bogus".split()
        print([name for name in heavy if name in sys.modules])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_a_run_from_a_terminal(project, llmops):
    code, out, err = llmops("run", "divide.ipynb", "-p", "number", "8", "--output", "out.ipynb")
    assert code == 0 and "It is 12.5 ␛[31mred." in out and "\x1b" not in out + err
    assert str(project/"out.ipynb") in out and "divide.ipynb" not in out and "Divide" in err
    code, out, _ = llmops("runs")
    assert code == 0 and "divide" in out and "finished" in out


def test_parameters_of_the_command_line_win_over_those_of_the_file(project, llmops):
    (project/"p.yaml").write_text("number: 2\nfile: x\n")
    code, out, err = llmops("run", "divide.ipynb", "-f", "p.yaml", "-p", "number", "5", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["summary"] == {"value": 20.0, "file": "x"}


def test_a_file_is_meant_from_where_one_stands(project, llmops, monkeypatch):
    (project/"sub").mkdir()
    (project/"sub"/"data.csv").write_text("a")
    monkeypatch.chdir(project/"sub")
    _, out, _ = llmops("run", "../divide.ipynb", "-p", "file", "data.csv", "--json")
    assert json.loads(out)["summary"]["file"] == str(project/"sub"/"data.csv")


def newer_store(project, monkeypatch):
    monkeypatch.setenv("LLMOPS_WORKSPACE", str(project/"newer"))
    from llmops_workbench.settings import load_settings
    from llmops_workbench.store import Store
    Store(load_settings()).journal.close()
    with sqlite3.connect(project/"newer"/"store"/"mlflow.db") as database: database.execute("UPDATE alembic_version SET version_num = 'fff1'")


def blocked_workspace(project, monkeypatch):
    (project/"file").write_text("")
    monkeypatch.setenv("LLMOPS_WORKSPACE", str(project/"file"/"below"))


def busy_output(project, monkeypatch): monkeypatch.setattr(cli, "_held", try_lock(project/".busy.ipynb.lock"), raising=False)


BAD = [
    (["run", "divide.ipynb", "-p", "nubmer", "3"], None, "UnknownParameterError: divide has no parameter 'nubmer'. It declares: number, file. Did you mean 'number'?"),
    (["run", "divide.ipynb", "-p", "number", "three"], None, "ParameterValueError"),
    (["run", "divide.ipynb", "-p", "a\nimport os", "3"], None, "UnknownParameterError"),
    (["run", "nowhere.ipynb"], None, "SourceNotFoundError: There is no notebook 'nowhere.ipynb'"),
    (["run", "exploer"], None, "SourceNotFoundError: There is no workflow 'exploer'"),
    (["run", "divide.ipynb", "-f", "none.yaml"], None, "There is no file 'none.yaml'"),
    (["run", "divide.ipynb", "-f", "divide.ipynb"], None, "UnknownParameterError"),
    (["run", "divide.ipynb", "-f", "latin.yaml"], None, "is no text in UTF-8"),
    (["run", "divide.ipynb", "--output", "divide.ipynb"], None, "OutputInUseError"),
    (["run", "divide.ipynb", "--output", "out.html"], None, "is no notebook"),
    (["run", "divide.ipynb", "--engine", "warm"], None, "The engines are: local"),
    (["run", "divide.ipynb", "-p", "number", "-1"], None, "MissingColumnError: There is no column '-1'."),
    (["run", "divide.ipynb", "--output", "busy.ipynb"], busy_output, "Another run is writing"),
    (["run", "divide.ipynb"], blocked_workspace, "WorkspaceError"),
    (["run", "divide.ipynb"], newer_store, "was written by a newer MLflow"),
    (["runs", "--stage", "a' OR"], None, "is no name of a stage"),
    (["show", "settings.ini"], None, "There is no workflow 'settings.ini'"),
    (["freeze", "settings.ini"], None, "is no notebook"),
    (["pipeline", "plan", "helpdeks"], None, "There is no pipeline 'helpdeks'"),
    (["pipeline", "run", "settings.ini"], None, "There is no pipeline 'settings.ini'"),
    (["lab", "empty"], None, "Make a project with: llmops init"),
    (["run", "divide.ipynb", "--nonsense"], None, "unrecognized arguments"),
    (["nonsense"], None, "invalid choice"),
    ([], None, "required"),
]


@pytest.mark.parametrize("args, prepare, says", BAD, ids=[" ".join(args)[:60].replace("\n", " ") or "nothing" for args, _, _ in BAD])
def test_a_mistake_is_one_line_and_exit_code_2(project, llmops, monkeypatch, args, prepare, says):
    (project/"latin.yaml").write_bytes("number: é".encode("latin-1"))
    if prepare: prepare(project, monkeypatch)
    before = (project/"divide.ipynb").read_bytes()
    code, out, err = llmops(*args)
    progress = [line for line in err.splitlines() if line.startswith("[")]
    lines = [line for line in err.splitlines() if line not in progress]
    assert code == 2 and len(lines) == 1 and says in lines[0] and out == ""
    assert (project/"divide.ipynb").read_bytes() == before


def test_a_failure_inside_is_exit_code_3_and_says_where(project, llmops):
    code, out, err = llmops("run", "divide.ipynb", "-p", "number", "0", "--json")
    assert code == 3 and "ZeroDivisionError" in json.loads(out)["error"] and json.loads(out)["exit_code"] == 3
    assert len(err.splitlines()) == 1 and "to see where" in err


def test_an_unexpected_error_is_a_line_unless_one_wants_to_see_it(project, llmops, monkeypatch):
    monkeypatch.setattr(cli, "workflows", lambda: 1/0)
    code, out, err = llmops("list")
    assert code == 3 and err == "ZeroDivisionError: division by zero (LLMOPS_DEBUG=1 shows where)\n"
    monkeypatch.setenv("LLMOPS_DEBUG", "1")
    with pytest.raises(ZeroDivisionError): llmops("list")


PIPELINE = "name: two\nsteps:\n  - {id: a, workflow: divide.ipynb, params: {number: 5}}\n  - {id: b, workflow: divide.ipynb, params: {file: '${steps.a.run_id}', number: %s}}\n"


def test_a_pipeline_is_planned_run_and_resumed(project, llmops):
    (project/"two.yaml").write_text(PIPELINE % "0")
    code, out, _ = llmops("pipeline", "plan", "two.yaml")
    assert code == 0 and "<run_id of a>" in out
    code, out, err = llmops("pipeline", "run", "two.yaml")
    assert code == 3 and "llmops pipeline run two.yaml --resume" in err.splitlines()[-1]
    (project/"two.yaml").write_text(PIPELINE % "4")
    code, out, err = llmops("pipeline", "run", "two.yaml", "--resume")
    assert code == 0 and "reused" in out and ".html" in out and "llmops lab" in out and "b: done" in err
    code, out, _ = llmops("pipeline", "run", "two.yaml", "--resume", "--json")
    assert [step["status"] for step in json.loads(out)["steps"]] == ["REUSED", "REUSED"]


def test_init_makes_a_project_and_keeps_what_is_there(project, llmops):
    (project/"new").mkdir()
    (project/"new"/"README.md").write_text("mine")
    code, out, _ = llmops("init", "new")
    assert code == 0 and "1 kept" in out and (project/"new"/"README.md").read_text() == "mine"
    from llmops_workbench.settings import load_settings
    settings = load_settings(project/"new")
    assert settings.source == project/"new"/"settings.ini" and (project/"new"/"home.ipynb").is_file()
    assert json.loads(llmops("init", "new", "--json")[1])["made"] == []


def test_lab_opens_the_home_page_and_asks_nobody_for_news(project, llmops, monkeypatch):
    started = []
    monkeypatch.setattr(os, "execv", lambda path, args: started.append(args) or (_ for _ in ()).throw(SystemExit(0)))
    (project/"home.ipynb").write_text("{}")
    assert llmops("lab", "--no-browser", "--port", "8899")[0] == 0
    assert str(project/"home.ipynb") in started[0] and "--LabApp.news_url=None" in started[0] and "--port=8899" in started[0]


def test_freeze_leaves_the_static_face(project, llmops):
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/html": "<b>kept</b>", "text/plain": "x"}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", outputs=[nbformat.v4.new_output("display_data", view)])], metadata={"widgets": {"a": "b"*10_000}})
    nbformat.write(notebook, project/"heavy.ipynb")
    code, out, _ = llmops("freeze", "heavy.ipynb", "--output", "light.ipynb", "--json")
    light = (project/"light.ipynb").read_text()
    assert code == 0 and json.loads(out)["bytes_after"] < 1000 and "<b>kept</b>" in light and "widget" not in light
    nbformat.validate(nbformat.reads(light, 4))


def test_doctor_says_no_in_its_exit_code(project, llmops, monkeypatch):
    monkeypatch.setenv("LLMOPS_DEFAULT_MODEL", "fake:echo")
    code, out, _ = llmops("doctor", "--json")
    assert code == 0, out
    assert [row["check"] for row in json.loads(out)] == list(cli.CHECKS)
    monkeypatch.setenv("LLMOPS_DEFAULT_MODEL", "/no/such/model")
    code, out, _ = llmops("doctor")
    assert code == 1 and [line for line in out.splitlines() if line.startswith("model")][0].split()[1] == "NO"


def test_a_terminal_gets_one_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self): return True
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with cli._Progress() as progress:
        for done in range(4): progress(done, 4, f"step\x1b[2J {done}")
    assert "step␛[2J" in screen.getvalue() and "\x1b[2J" not in screen.getvalue() and "75%" in screen.getvalue()


def test_a_run_that_is_told_to_end_says_so(project, shared_workspace, llmops):
    source = nbformat.read(project/"divide.ipynb", 4)
    source.cells[2].source = f"open({str(project/'inside')!r}, 'w')\nimport time\ntime.sleep(100)"
    nbformat.write(source, project/"sleepy.ipynb")
    process = subprocess.Popen([os.path.join(os.path.dirname(sys.executable), "llmops"), "run", "sleepy.ipynb"],
                               stderr=subprocess.PIPE, text=True)
    while not (project/"inside").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 130 and err.splitlines()[-1] == "Interrupted."
    assert "killed" in llmops("runs", "--stage", "sleepy")[1]


def test_the_command_runs_in_a_thread_too(project, llmops):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(cli.main(["list"])))
    thread.start()
    thread.join()
    assert codes == [0]


def test_the_command_leaves_the_process_as_it_was(llmops):
    "A handler that stayed would be inherited by every process that is forked later, which could then not be ended."
    before = signal.getsignal(signal.SIGTERM)
    assert llmops("list")[0] == 0 and llmops("nonsense")[0] != 0
    assert signal.getsignal(signal.SIGTERM) is before

"What no page should show of the store: many first starts, killed writers, other schemas, full disks, moved folders, a server."
import json
import multiprocessing
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
import time
import urllib.request
from types import SimpleNamespace

import pandas as pd
import pytest

from llmops_workbench import store as store_module
from llmops_workbench.errors import MissingDependencyError, ParameterValueError, SourceNotFoundError, WorkspaceError
from llmops_workbench.settings import Settings
from llmops_workbench.store import Store, open_store


@pytest.fixture(autouse=True)
def no_outer_run(monkeypatch): monkeypatch.delenv("LLMOPS_RUN_ID", raising=False)


def settings_in(folder): return Settings(folder, f"sqlite:///{folder/'store'/'mlflow.db'}")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    "A store with one run, made once: making the tables is the slow part."
    folder = tmp_path_factory.mktemp("template")
    store = Store(settings_in(folder))
    with store.start_run("explore", params={"a": 1}) as run: run.log_frame("f", pd.DataFrame({"x": [1]}))
    store.journal.close()
    return folder


@pytest.fixture
def workspace(template, tmp_path):
    import shutil
    return shutil.copytree(template, tmp_path/"work space's")


@pytest.fixture
def store(workspace):
    store = Store(settings_in(workspace))
    yield store
    store.journal.close()


def python(code, *args, **kwargs):
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code), *map(str, args)], capture_output=True, text=True, **kwargs)


def set_schema(workspace, version):
    with sqlite3.connect(workspace/"store"/"mlflow.db") as database: database.execute("UPDATE alembic_version SET version_num = ?", (version,))


def _first_start(folder, number):
    store = open_store(settings_in(folder))
    with store.start_run("race", params={"number": number}) as run:
        for value in range(50): run.log_metric("value", value)
    return len(store.metric_history(run.run_id, "value"))


def test_eight_processes_start_on_an_empty_workspace_and_lose_nothing(tmp_path):
    store_module._import_mlflow()  # before the fork, or eight imports would be what is measured
    with multiprocessing.get_context("fork").Pool(8) as pool: counts = pool.starmap(_first_start, [(tmp_path, n) for n in range(8)], chunksize=1)
    assert counts == [50]*8
    store = Store(settings_in(tmp_path))
    runs = store.list_runs("race")
    assert sorted(store.get_run(run_id).params["number"] for run_id in runs["run_id"]) == list(range(8))
    assert set(runs["status"]) == {"FINISHED"}
    with sqlite3.connect(tmp_path/"store"/"mlflow.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("SELECT count(*) FROM experiments WHERE name = ?", (store_module.EXPERIMENT,)).fetchone() == (1,)


def test_metrics_acknowledged_before_kill_9_are_in_the_store_after_the_next_opening(workspace):
    code = """
        import os, sys
        from pathlib import Path
        from llmops_workbench.settings import Settings
        from llmops_workbench.store import Store
        folder = Path(sys.argv[1])
        run = Store(Settings(folder, f"sqlite:///{folder/'store'/'mlflow.db'}")).start_run("finetune")
        print(run.run_id, flush=True)
        value = 0
        while True:
            run.log_metric("loss", value)
            os.write(1, b"%d\\n" % value)
            value += 1
    """
    writer = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), str(workspace)], stdout=subprocess.PIPE, text=True)
    run_id = writer.stdout.readline().strip()
    lines = [writer.stdout.readline() for _ in range(1500)]  # at least one batch has been on its way
    writer.send_signal(signal.SIGKILL)
    lines += writer.stdout.read().split("\n")[:-1]
    writer.stdout.close()
    writer.wait()
    store = Store(settings_in(workspace))
    values = store.metric_history(run_id, "loss")["value"].tolist()
    assert values[:len(lines)] == [float(n) for n in range(len(lines))] and len(values) <= len(lines) + 1
    assert store.get_run(run_id).status == "LOST" and store.list_runs("finetune")["status"].tolist() == ["LOST"]


def test_a_batch_given_twice_counts_once(store):
    with store.start_run("test") as run:
        points = [store.journal.append(run.run_id, "loss", value) for value in (1.0, 1.0, float("nan"), float("inf"))]
        store.journal.flush()
        store._take_points(run.run_id, points)
    assert len(store.metric_history(run.run_id, "loss")) == 4


def test_a_newer_schema_is_refused_and_left_alone(workspace):
    set_schema(workspace, "fffffffffff1")
    before = (workspace/"store"/"mlflow.db").read_bytes()
    with pytest.raises(WorkspaceError, match="written by a newer MLflow than") as caught: Store(settings_in(workspace))
    assert "\n" not in str(caught.value) and (workspace/"store"/"mlflow.db").read_bytes() == before


def test_an_older_schema_says_how_to_migrate(workspace):
    set_schema(workspace, "27a6a02d2cf1")
    with pytest.raises(WorkspaceError, match="Make a copy of it, then run: mlflow db upgrade"): Store(settings_in(workspace))


@pytest.mark.parametrize("address, error, says", [
    ("sqlite:///{broken}", WorkspaceError, "file is not a database"),
    ("sqlite:///{file}/below/mlflow.db", WorkspaceError, "Cannot make the lock file"),
    ("nowhere://x", WorkspaceError, "It is sqlite:///FILE"),
    ("postgresql://me:secret@localhost/x", MissingDependencyError, "which is not installed"),
    ("http://127.0.0.1:9", WorkspaceError, "http://127.0.0.1:9"),
])
def test_an_address_that_cannot_be_opened_is_one_line(tmp_path, monkeypatch, address, error, says):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path/"broken.db").write_bytes(b"no database"*500)
    (tmp_path/"file").write_text("")
    address = address.format(broken=tmp_path/"broken.db", file=tmp_path/"file")
    with pytest.raises(error, match=says) as caught: Store(Settings(tmp_path/"w", address))
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value) and caught.value.exit_code == 2


def test_a_full_disk_is_one_line_and_the_store_goes_on_when_there_is_space(workspace):
    code = """
        import resource, signal, sqlite3, sys
        from pathlib import Path
        from llmops_workbench.errors import WorkspaceError
        from llmops_workbench.settings import Settings
        from llmops_workbench.store import Store
        folder = Path(sys.argv[1])
        store = Store(Settings(folder, f"sqlite:///{folder/'store'/'mlflow.db'}"))
        first = store.start_run("before")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        size = (folder/"store"/"mlflow.db").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20_000, resource.RLIM_INFINITY))
        said = None
        try:
            for number in range(300): store.client.set_tag(first.run_id, f"tag{number}", "x"*4000)
        except WorkspaceError as error: said = str(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert said and "\\n" not in said, said
        with store.start_run("after") as run: run.log_metric("loss", 1)
        assert list(store.metric_history(run.run_id, "loss")["value"]) == [1.0]
        assert sqlite3.connect(folder/"store"/"mlflow.db").execute("PRAGMA integrity_check").fetchone() == ("ok",)
        print(said)
    """
    done = python(code, workspace)
    assert done.returncode == 0, done.stderr
    assert "failed" in done.stdout and "Traceback" not in done.stderr


def test_the_first_start_is_quiet_and_asks_nobody(tmp_path):
    code = """
        import socket, sys
        asked = []
        def refuse(self, address, *rest):
            asked.append(address)
            raise OSError("no network here")
        socket.socket.connect = socket.socket.connect_ex = refuse
        from pathlib import Path
        from llmops_workbench.settings import Settings
        from llmops_workbench.store import Store
        folder = Path(sys.argv[1])
        store = Store(Settings(folder, f"sqlite:///{folder/'store'/'mlflow.db'}"))
        with store.start_run("explore") as run: run.log_metric("loss", 1)
        store.register_prompt("p", "{x}")
        assert store.load_prompt("p").template == "{x}" and not asked, asked
    """
    done = python(code, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_copied_workspace_does_not_write_into_the_original(workspace, template):
    before = sorted(path.name for path in (template/"store"/"artifacts").iterdir())
    store = Store(settings_in(workspace))
    with store.start_run("explore") as run: run.log_text("note.txt", "in the copy")
    assert store.get_run(run.run_id).text("note.txt") == "in the copy"
    assert sorted(path.name for path in (template/"store"/"artifacts").iterdir()) == before


def test_a_moved_workspace_keeps_its_files_readable(tmp_path):
    first = Store(settings_in(tmp_path/"a"))
    with first.start_run("explore", params={"a": 2}) as run: run.log_text("note.txt", "hello")
    first.journal.close()
    (tmp_path/"a").rename(tmp_path/"b")
    record = Store(settings_in(tmp_path/"b")).get_run(run.run_id)
    assert (record.params, record.text("note.txt")) == ({"a": 2}, "hello")


class Result:
    summary, outputs = {"n": 2, "nested": {"x": 1.5, "y": float("nan")}, "flag": True}, {"train": "t@1"}
    frame = pd.DataFrame({"x": [1, 2]})
    def words(self): return ["Two <b>rows</b>."]
    def _repr_mimebundle_(self, include=None, exclude=None): return {"text/html": "<p>face</p>", "text/plain": "face"}


@pytest.mark.parametrize("frames", [None, {"more": pd.DataFrame({"y": [3]})}, lambda: {"more": pd.DataFrame({"y": [3]})}])
def test_a_result_is_kept_whole(store, frames):
    result = Result()
    if frames: result.frames = frames
    run_id = store.log_result(result, "explore", {"p": None, "list": [1]}, [SimpleNamespace(name="d", digest="0"*64)])
    record = store.get_run(run_id)
    assert record.summary["nested"]["x"] == 1.5 and record.summary["flag"] is True
    assert set(record.metrics) == {"n", "nested.x", "nested.y"}
    assert (record.outputs, record.words, record.text("face.html")) == (result.outputs, result.words(), "<p>face</p>")
    assert record.frames == (["frame", "more"] if frames else ["frame"])
    assert record.params == {"p": None, "list": [1]} and record.datasets == {"d": "0"*64}
    assert record.environment["packages"]["mlflow"] and record.notebook is None


def test_a_run_that_is_interrupted_is_killed_not_failed(store):
    with pytest.raises(KeyboardInterrupt):
        with store.start_run("explore") as run: raise KeyboardInterrupt
    assert store.get_run(run.run_id).status == "KILLED"
    assert not list((store._folder/"running").iterdir())


def test_long_and_odd_parameters_come_back_exactly(store):
    params = {"long": "x"*20_000, "weird name!": "a\nb", "none": None, "many": {str(n): n for n in range(300)}}
    with store.start_run("explore", params=params) as run: pass
    assert store.get_run(run.run_id).params == params


@pytest.mark.parametrize("bad", ["", "zz", "a' OR 'a' = 'a", "%", "../x", "0"*31])
def test_an_id_that_is_none_is_not_searched_for(store, bad):
    with pytest.raises(SourceNotFoundError, match="No run begins with"): store.get_run(bad)


def test_a_full_id_that_is_unknown_says_so(store):
    with pytest.raises(SourceNotFoundError, match="not found"): store.get_run("0"*32)
    with pytest.raises(ParameterValueError): store.list_runs("a' OR 1")


def test_the_environment_is_json_and_names_the_commit_of_the_folder(tmp_path, monkeypatch):
    from llmops_workbench import records
    monkeypatch.chdir(tmp_path)
    assert records._git_commit() is None
    git = ["git", "-c", "user.email=a@b", "-c", "user.name=a"]
    for args in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]): subprocess.run([*git, *args], check=True, cwd=tmp_path)
    assert len(records._git_commit()["commit"]) == 40
    json.dumps(records.environment())


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_a_server_is_a_matter_of_the_address(tmp_path, capfd):
    port = _free_port()
    log = open(tmp_path/"server.log", "wb")
    server = subprocess.Popen([sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
                               "--backend-store-uri", f"sqlite:///{tmp_path/'server.db'}", "--artifacts-destination", str(tmp_path/"served")],
                              stdout=log, stderr=log, env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"},
                              start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, (tmp_path/"server.log").read_text()
                time.sleep(0.3)
        store = Store(Settings(tmp_path/"w", f"http://127.0.0.1:{port}"))
        with store.start_run("explore") as run:
            for value in range(5): run.log_metric("loss", value)
        run_id = store.log_result(Result(), "explore", {"a": [1]})
        assert run.run_id not in capfd.readouterr().out
        record = store.get_run(run_id[:10])
        assert (record.outputs, record.params, record.text("face.html")) == (Result.outputs, {"a": [1]}, "<p>face</p>")
        assert record.frame()["x"].tolist() == [1, 2] and record.text("no.txt") is None and record.notebook is None
        assert store.metric_history(run.run_id, "loss")["value"].tolist() == [0, 1, 2, 3, 4]
        assert store.register_prompt("p", "{x}") == 1 and store.load_prompt("p").template == "{x}"
        assert store.register_prompt("p", {"template": "{x}\0"*30_000, "schema": {"type": "object"}}) == 2
        store.set_prompt_alias("p", "production", 2)
        store.link_prompts(run_id, [("p", "production", "mine")])
        versions = store.prompt_versions("p").set_index("version")
        assert (versions.loc[2, "aliases"], versions["n_runs"].tolist(), len(store.alias_history("p"))) == (["production"], [1, 0], 1)
        assert store.load_prompt("p", "production").template == "{x}\0"*30_000 and store.get_run(run_id).prompts == {"p": {2: ["mine"]}}
        assert store.prompts()["name"].tolist() == ["p"] and len(store.traces_of_prompt("p")) == 0
        (tmp_path/"weights").write_bytes(b"123")
        assert store.register_model("m", tmp_path/"weights") == 1 and store.get_model("m").version == 1
        store.journal.close()
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        log.close()


@pytest.mark.parametrize("name", ["http://127.0.0.1:8000/v1#desk · plain", "../../etc/passwd", "/root", "a//b", "..", ".", "x/./y", "plain.ok/fine"])
def test_numbers_of_a_system_called_like_an_address_or_a_path_are_kept(store, name):
    result = Result()
    result.summary = {"scores": {name: {"query": {"exact_match": 0.5}}}}
    run_id = store.log_result(result, "prompt", {})
    assert list(store.get_run(run_id).metrics.values()) == [0.5]

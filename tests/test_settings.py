"Settings: where they come from, what stops them, and files that are written whole or not at all."
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmops_workbench.errors import (ParameterValueError, SourceFormatError, SourceNotFoundError, UnknownParameterError, UserError,
                                     WorkspaceError)
from llmops_workbench.settings import Settings, load_settings, workspace_dir, write_atomically


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch, tmp_path):
    for name in [n for n in os.environ if n.startswith("LLMOPS_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_no_file_means_defaults_beside_the_current_folder(tmp_path):
    settings = load_settings()
    assert settings == Settings(tmp_path / "workspace", f"sqlite:///{tmp_path}/workspace/store/mlflow.db", "starter", True, None)
    assert not settings.workspace.exists()


def test_the_nearest_file_with_a_section_wins(tmp_path):
    (tmp_path / "settings.ini").write_text("[workbench]\nworkspace = outer\n")
    inner = tmp_path / "inner" / "deep"
    inner.mkdir(parents=True)
    (tmp_path / "inner" / "settings.ini").write_text("[DEFAULT]\nlib_name = something else\n")
    settings = load_settings(inner)
    assert settings.workspace == tmp_path / "outer" and settings.source == tmp_path / "settings.ini"


def test_the_files_of_nbdev_2_do_not_leak_in(tmp_path):
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nlib_name = x\nversion = %(broken)s\n[workbench]\nstore = sqlite:///here.db\n")
    assert load_settings().store == f"sqlite:///{tmp_path}/here.db"


def test_variables_override_and_paths_are_meant_from_where_they_are_written(tmp_path, monkeypatch):
    (tmp_path / "settings.ini").write_text("[workbench]\nworkspace = data\nstore = db/runs.db\noffline = no\n")
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert load_settings().store == f"sqlite:///{tmp_path}/db/runs.db"
    monkeypatch.setenv("LLMOPS_WORKSPACE", "mine")
    monkeypatch.setenv("LLMOPS_OFFLINE", "1")
    monkeypatch.setenv("LLMOPS_DEFAULT_MODEL", "")
    settings = load_settings()
    assert settings.workspace == tmp_path / "sub" / "mine" and settings.offline is True and settings.default_model == "starter"
    monkeypatch.setenv("LLMOPS_SETTINGS", str(tmp_path / "settings.ini"))
    monkeypatch.chdir("/")
    assert load_settings().source == tmp_path / "settings.ini"


@pytest.mark.parametrize("address", ["postgresql://user:p%40ss#x@db/llmops", "http://127.0.0.1:5000", "https://store.example/ml"])
def test_addresses_of_servers_stay_as_they_are(tmp_path, address):
    (tmp_path / "settings.ini").write_text(f"[workbench]\nstore = {address}\n")
    assert load_settings().store == address


@pytest.mark.parametrize("content,error,text", [
    ("[workbench]\nworkspase = x\n", UnknownParameterError, "Did you mean 'workspace'?"),
    ("[workbench]\nsource = x\n", UnknownParameterError, "sets 'source', which is no setting"),
    ("[workbench]\noffline = maybe\n", ParameterValueError, "Setting 'offline' is 'maybe'"),
    ("[workbench]\nworkspace = a\nworkspace = b\n", SourceFormatError, "cannot be read"),
    ("workspace = a\n[workbench]\n", SourceFormatError, "cannot be read"),
    ("[workbench]\n\x00\n", SourceFormatError, "cannot be read"),
])
def test_a_wrong_file_stops_in_one_line(tmp_path, content, error, text):
    (tmp_path / "settings.ini").write_text(content)
    with pytest.raises(error, match="(?s).*") as caught:
        load_settings()
    assert text in str(caught.value) and "\n" not in str(caught.value) and isinstance(caught.value, UserError)


def test_a_file_in_another_encoding(tmp_path):
    (tmp_path / "settings.ini").write_bytes("[workbench]\nworkspace = caf\xe9\n".encode("latin-1"))
    with pytest.raises(SourceFormatError):
        load_settings()


def test_a_named_file_that_is_not_there(monkeypatch):
    monkeypatch.setenv("LLMOPS_SETTINGS", "/nowhere/settings.ini")
    with pytest.raises(SourceNotFoundError, match="which is no file"):
        load_settings()


def test_folders_are_made_on_use_and_stay_inside(tmp_path):
    settings = load_settings()
    assert workspace_dir(settings, "jobs", "a b").is_dir()
    for names in (("..",), ("jobs", "../../x"), ("/tmp",)):
        with pytest.raises(WorkspaceError, match="outside the workspace"):
            workspace_dir(settings, *names)


def test_a_file_where_the_workspace_should_be(tmp_path):
    (tmp_path / "workspace").write_text("x")
    with pytest.raises(WorkspaceError, match="a file stands where a folder is needed"):
        workspace_dir(load_settings(), "jobs")
    with pytest.raises(WorkspaceError, match="a file stands where a folder is needed"):
        write_atomically(tmp_path / "workspace" / "notes.txt", "x")


@pytest.mark.parametrize("name", ["a b.txt", "it's \"quoted\".txt", "ünï 名前 🙂.txt", "-rf", "$HOME;ls", "line\nbreak", "x" * 250])
def test_odd_names(tmp_path, name):
    path = write_atomically(tmp_path / "new folder" / name, "content")
    assert path.read_text() == "content" and [p.name for p in path.parent.iterdir()] == [name]


def test_a_name_that_is_too_long_leaves_nothing(tmp_path):
    with pytest.raises(WorkspaceError, match="the name is too long"):
        write_atomically(tmp_path / ("x" * 300), "content")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_where_the_file_should_be(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(WorkspaceError, match="a folder stands where a file is needed"):
        write_atomically(tmp_path / "there", "x")
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize("code,words", [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "quota"), (errno.EROFS, "read-only"),
                                        (errno.EACCES, "permission is denied"), (errno.EIO, "the disk reports an error")])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_fault_at_each_step_keeps_the_old_file(tmp_path, monkeypatch, code, words, call):
    path = write_atomically(tmp_path / "file", b"old")
    def fault(*args): raise OSError(code, os.strerror(code))
    monkeypatch.setattr(os, call, fault)
    with pytest.raises(WorkspaceError, match=words) as caught:
        write_atomically(path, b"new" * 1000)
    monkeypatch.undo()
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    assert "\n" not in str(caught.value) and isinstance(caught.value, OSError)
    assert write_atomically(path, b"new").read_bytes() == b"new"


def test_a_disk_that_is_really_full(tmp_path):
    "The file size limit of the process stands in for the disk: the kernel itself refuses the bytes in the middle of the write."
    pytest.importorskip("resource")
    code = ("import resource, signal, sys; from llmops_workbench.settings import write_atomically\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
            "try: write_atomically(sys.argv[1], b'n' * 1_000_000)\n"
            "except OSError as error: print(type(error).__name__, error)")
    path = write_atomically(tmp_path / "file", "old")
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.stdout.startswith("WorkspaceError Could not write"), done
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_an_error_of_the_writer_is_its_own_and_leaves_nothing(tmp_path):
    def writer(file):
        file.write(b"half")
        raise ValueError("mine")
    with pytest.raises(ValueError, match="mine"):
        write_atomically(tmp_path / "file", writer)
    assert list(tmp_path.iterdir()) == []


def test_a_writer_may_use_the_name_and_the_file_gets_ordinary_permissions(tmp_path):
    previous = os.umask(0o022)
    try:
        path = write_atomically(tmp_path / "file", lambda file: Path(file.name).write_bytes(b"by name"))
    finally:
        os.umask(previous)
    assert path.read_bytes() == b"by name" and path.stat().st_mode & 0o777 == 0o644


def test_the_file_of_this_repository_says_what_it_is():
    text = (Path(__file__).parent.parent / "settings.ini").read_text()
    assert "workbench" in text.splitlines()[0] and "pyproject.toml" in text.splitlines()[0]
    assert load_settings(Path(__file__).parent.parent).source is not None

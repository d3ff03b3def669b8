"""Bad input, end to end: the command as a process, one line that says what was given, what is allowed and what to do, exit code 2,
nothing lost and nothing half written. And the input that only looks bad, where the right answer is no error."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest

from llmops_workbench import errors
from llmops_workbench.settings import Settings
from llmops_workbench.store import Store

LLMOPS = Path(sys.executable).parent / "llmops"

TICKETS = [(1, "The printer on floor two is broken", "printer", "2025-01-06"), (2, "I cannot log in to the mail", "mail", "2025-01-13"),
           (3, "The VPN does not connect from home", "vpn", "2025-01-20"), (4, "Please reset my password today", "password", "2025-01-27"),
           (5, "My screen stays black in the morning", "screen", "2025-02-03"), (6, "The invoice of May is missing", "invoice", "2025-02-10")]
CSV = "id,text,label,time\n" + "".join(",".join(map(str, row)) + "\n" for row in TICKETS)
ASK = 'tasks={"label": ["{text}", "{label}"]}'


@contextmanager
def opened(workspace):
    store = Store(Settings(workspace, f"sqlite:///{workspace/'store'/'mlflow.db'}"))
    try: yield store
    finally: store.journal.close()


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    "A workspace with a store and no run, to be copied: making one takes a second or two."
    folder = tmp_path_factory.mktemp("empty")
    with opened(folder): (folder / "store" / "artifacts").mkdir()
    return folder


class Place:
    "Where one case happens: a folder somebody stands in, a workspace, the environment of the command."
    def __init__(self, folder, template, at_the_end):
        self.project, self.workspace, self.template, self.at_the_end, self.variables = folder / "project", folder / "workspace", template, at_the_end, {}
        self.write("tickets.csv", CSV)
        earlier = nbformat.v4.new_notebook(metadata={"papermill": {}}, cells=[nbformat.v4.new_markdown_cell("Of an earlier run")])
        self.write("earlier.ipynb", nbformat.writes(earlier))

    def write(self, name, content):
        path = self.project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def make_store(self): shutil.copytree(self.template, self.workspace, dirs_exist_ok=True)

    def mount(self, name, size="8m"):
        "A small disk of its own; the case is skipped where mounting is not permitted."
        folder = self.project.parent / name
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True)
        if done.returncode: pytest.skip(f"a small disk needs the right to mount one: {done.stderr.strip()}")
        self.at_the_end(lambda: subprocess.run(["umount", "-l", folder], check=True))
        return folder

    def environment(self):
        "Of a shell of its own: nothing that an earlier test may have set."
        kept = {name: value for name, value in os.environ.items() if not name.startswith("LLMOPS_")}
        return {**kept, "LLMOPS_WORKSPACE": str(self.workspace), **self.variables}

    def llmops(self, *args):
        done = subprocess.run([LLMOPS, *map(str, args)], cwd=self.project, env=self.environment(), capture_output=True, text=True, timeout=300)
        return done.returncode, done.stdout, [line for line in done.stderr.splitlines() if not re.match(r"\[ *\d+ of \d+\] ", line)]

    def content(self):
        return {path.relative_to(self.project): path.read_bytes() for path in self.project.rglob("*") if path.is_file()}

    def half_written(self):
        "Files under a name that is meant for a moment, and locks that nobody holds any longer."
        names = re.compile(r".*\.(tmp|part|new|lock)|.*-journal|.*\.incomplete")
        kept = re.compile(r"(mlflow|open)\.lock")  # what openers of the store take turns by
        return [path for folder in (self.project, self.workspace) if folder.is_dir() for path in folder.rglob("*")
                if names.fullmatch(path.name) and not kept.fullmatch(path.name)]


@pytest.fixture
def place(tmp_path, empty_store, request): return Place(tmp_path, empty_store, request.addfinalizer)


def fill(folder, leave_bytes):
    "Use a disk up, but for so many bytes; returns how to free it again."
    disk, filler = os.statvfs(folder), folder / "filler"
    filler.write_bytes(bytes(disk.f_bavail * disk.f_frsize - leave_bytes))
    return filler.unlink


# What makes a place bad. Each may return how to undo it, so that the store can be looked at afterwards.

def below_a_file(place): place.workspace = place.write("taken", "") / "workspace"

def read_only_disk(place):
    place.workspace = place.mount("disk")
    place.make_store()
    remount = lambda mode: subprocess.run(["mount", "-o", f"remount,{mode}", place.workspace], check=True)
    remount("ro")
    return lambda: remount("rw")

def read_only_output(place):
    folder = place.mount("disk")
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)

def full_before_the_store_is_made(place):
    place.workspace = place.mount("disk")
    return fill(place.workspace, 300_000)

def full_before_the_run(place):
    place.workspace = place.mount("disk")
    place.make_store()
    return fill(place.workspace, 4096)

def full_while_the_run_starts(place):
    place.workspace = place.mount("disk")
    place.make_store()
    return fill(place.workspace, 60_000)

def full_during_the_run(place):
    place.workspace = place.mount("disk")
    place.make_store()
    return fill(place.workspace, 190_000)

def full_output(place): fill(place.mount("disk"), 4096)

def newer_store(place):
    place.make_store()
    def set_version(text):
        with sqlite3.connect(place.workspace / "store" / "mlflow.db") as database:
            (before,), = database.execute("SELECT version_num FROM alembic_version")
            database.execute("UPDATE alembic_version SET version_num = ?", (text,))
        database.close()
        return before
    before = set_version("ffff0000ffff")
    return lambda: set_version(before)

def no_database(place): place.write("notes.txt", "Not a database, but long enough to be read as one.\n" * 40)

def adapter_without_base(place):
    place.write("adapter/adapter_config.json", json.dumps({"peft_type": "LORA", "base_model_name_or_path": "lab/base-model"}))
    place.write("adapter/adapter_model.safetensors", len(b"{}").to_bytes(8, "little") + b"{}")

def no_network(place):
    place.variables = {"LLMOPS_OFFLINE": "no", "HF_HUB_OFFLINE": "0", "HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9",
                       "HF_HOME": str(place.workspace / "hub")}

def prepared(place):
    place.write("examples.csv", "id,prompt,completion\n" + "".join(f"{n},{text},{label}\n" for n, text, label, _ in TICKETS))

def writes(name, content): return lambda place: place.write(name, content) and None

def sets(**variables): return lambda place: place.variables.update(variables)


@dataclass(frozen=True)
class Case:
    name: str
    args: list              # Of `llmops`; "name=value" after a workflow stands for -p name value
    kind: str               # What the line begins with
    given: str              # Words of the line: what was given,
    allowed: str            # what is allowed ("" where nothing can be listed),
    todo: str               # what to do
    bad: object = None      # Makes the place bad
    begun: bool = False     # Whether a run was begun; a kernel is started then

    def words(self): return self.given, self.allowed, self.todo


def run(workflow, *values, **options):
    args = ["run", workflow]
    for value in values: args += ["-p", *value.split("=", 1)]
    for name, value in options.items(): args += ["-f" if name == "f" else f"--{name}", value]
    return args


BEFORE = [  # What is found before a run is begun
    Case("unknown parameter", run("explore", "datset=tickets.csv"), "UnknownParameterError", "explore has no parameter 'datset'",
         "It declares: dataset, text_column", "Did you mean 'dataset'?"),
    Case("name that is code", run("explore", "a;import os=1"), "UnknownParameterError", "'a;import os' cannot be a parameter",
         "letters, digits and underscores only", "Take it out"),
    Case("text for a number", run("explore", "similarity=high"), "ParameterValueError", "'similarity' was given 'high'",
         "Allowed is a number", "Leave it out to get 0.4"),
    Case("fraction for a whole number", run("prepare", "seed=1.5"), "ParameterValueError", "'seed' was given '1.5'", "a whole number",
         "Leave it out"),
    Case("text for a dict", run("prepare", "split=all"), "ParameterValueError", "'split' was given 'all'", "a dict", "Leave it out to get {'train': 0.8"),
    Case("number out of range", run("explore", "max_length_tokens=0"), "ParameterValueError", "'max_length_tokens' was given '0'",
         "a whole number of 1 or more", "Leave it out to get 512"),
    Case("none of the choices", run("prompt", "split=tset"), "ParameterValueError", "'split' was given 'tset'",
         "'test', 'validation', 'train' or 'all'", "Did you mean 'test'?"),
    Case("text for true or false", run("prompt", "clean_only=maybe"), "ParameterValueError", "'clean_only' was given 'maybe'", "true or false", "Leave it out"),
    Case("fine-tune with a text for a number", run("finetune", "max_steps=many"), "ParameterValueError", "'max_steps' was given 'many'", "a whole number from -1 to 1e+07 or None",
         "Leave it out"),
    Case("parameters that are far too large", run("explore", f"text_column={'x'*120_000}"), "ParameterValueError", "take 120,", "They may take 100,000",
         "Save the data and pass its path"),
    Case("no file of parameters", run("explore", f="none.yaml"), "SourceNotFoundError", "There is no file 'none.yaml'", "", "Give a YAML file of parameters"),
    Case("broken file of parameters", run("explore", f="p.yaml"), "SourceFormatError", "'p.yaml': The parameters are no valid YAML: line 2", "`name: value`",
         "Correct it", writes("p.yaml", "text_column: text\ncolumns: a: b\n")),
    Case("file of parameters in another encoding", run("explore", f="p.yaml"), "SourceFormatError", "'p.yaml' is no text in UTF-8", "",
         "Give a YAML file of parameters", writes("p.yaml", "text_column: café".encode("latin-1"))),
    Case("list for a text in a file of parameters", run("explore", f="p.yaml"), "ParameterValueError", "'text_column' was given ['text']", "text",
         "Leave it out to get 'text'", writes("p.yaml", "text_column: [text]\n")),
    Case("unknown option", [*run("explore"), "--outptu", "x.ipynb"], "llmops", "--outptu", "", "See: llmops"),
    Case("unknown workflow", run("exploer"), "SourceNotFoundError", "There is no workflow 'exploer'", "The workflows are: explore, prepare",
         "Did you mean 'explore'?"),
    Case("no such notebook", run("mine/none.ipynb"), "SourceNotFoundError", "There is no notebook 'mine/none.ipynb'", "", "`llmops list`"),
    Case("file that is no notebook", run("./empty.ipynb"), "SourceFormatError", "empty.ipynb' is no notebook", "JSON with `cells`", "Open it in JupyterLab",
         writes("empty.ipynb", "")),
    Case("notebook without parameters cell", run("./plain.ipynb"), "SourceFormatError", "has no cell with the tag `parameters`", "has exactly one",
         "Set the tag", writes("plain.ipynb", nbformat.writes(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])))),
    Case("unknown engine", run("explore", engine="spark"), "ParameterValueError", "no engine 'spark'", "The engines are: local", "Leave it out"),
    Case("output that is no notebook", run("explore", output="out.html"), "ParameterValueError", "'out.html' is no notebook", "ends in .ipynb", "Write out.ipynb"),
    Case("output over somebody's notebook", run("explore", output="mine.ipynb"), "OutputInUseError", "mine.ipynb' was not written by a run",
         "Only the output of an earlier run", "Choose another output", writes("mine.ipynb", nbformat.writes(nbformat.v4.new_notebook()))),
    Case("output below a file", run("explore", output="tickets.csv/out.ipynb"), "WorkspaceError", "tickets.csv/out.ipynb' cannot be written: a file stands",
         "", "folder that you may write to"),
    Case("output on a read-only disk", run("explore", output="../disk/out.ipynb"), "WorkspaceError", "cannot be written: the file system is read-only",
         "", "folder that you may write to", read_only_output),
    Case("unknown setting", run("explore"), "UnknownParameterError", "sets 'worskpace', which is no setting", "The settings are: workspace, store",
         "Did you mean 'workspace'?", writes("settings.ini", "[workbench]\nworskpace = here\n")),
    Case("wrong value of a setting", run("explore"), "ParameterValueError", "Setting 'offline' is 'maybe'", "Allowed is one of: 1, yes", "Change it",
         sets(LLMOPS_OFFLINE="maybe")),
    Case("settings file that is not there", run("explore"), "SourceNotFoundError", "LLMOPS_SETTINGS names 'none.ini'", "", "Correct the variable or unset it",
         sets(LLMOPS_SETTINGS="none.ini")),
    Case("workspace below a file", run("explore"), "WorkspaceError", "taken/workspace", "a file stands where a folder is needed", "LLMOPS_WORKSPACE", below_a_file),
    Case("workspace on a read-only disk", run("explore"), "WorkspaceError", "/disk/", "the file system is read-only", "LLMOPS_WORKSPACE", read_only_disk),
    Case("store of a newer version", run("explore"), "WorkspaceError", "was written by a newer MLflow", "", "Upgrade mlflow, or name another store", newer_store),
    Case("store that is no database", run("explore"), "WorkspaceError", "notes.txt", "sqlite:///FILE, postgresql://", "Correct `store` in settings.ini or LLMOPS_STORE",
         lambda place: (no_database(place), sets(LLMOPS_STORE="notes.txt")(place))[1]),
    Case("disk full before the store is made", run("explore"), "WorkspaceError", "mlflow.db' failed: the disk is full", "", "Free some space and try again",
         full_before_the_store_is_made),
    Case("disk full before the run", run("explore"), "WorkspaceError", "mlflow.db' failed: the disk is full", "", "Free some space and try again",
         full_before_the_run),
    Case("unknown pipeline", ["pipeline", "run", "helpdeks"], "SourceNotFoundError", "There is no pipeline 'helpdeks'", "helpdesk", "Did you mean 'helpdesk'?"),
    Case("pipeline with an unknown parameter", ["pipeline", "run", "two.yaml"], "UnknownParameterError", "Step 'b': explore has no parameter 'txt_column'",
         "It declares: dataset", "Did you mean 'text_column'?",
         writes("two.yaml", "steps:\n- {id: a, workflow: explore}\n- {id: b, workflow: explore, params: {txt_column: x}}\n")),
    Case("pipeline that is no pipeline", ["pipeline", "run", "two.yaml"], "SourceFormatError", "'two.yaml' has a key 'stpes'", "name, description, params, steps",
         "Did you mean 'steps'?", writes("two.yaml", "stpes: []\n")),
]

INSIDE = [  # What only the stage can find: a run was begun, and is kept as failed
    Case("disk full while the run starts", run("explore", "dataset=tickets.csv"), "WorkspaceError", "the disk is full", "", "Free some space and try again",
         full_while_the_run_starts, begun=True),
    Case("missing file", run("explore", "dataset=tikets.csv"), "SourceNotFoundError", "There is no file or dataset 'tikets.csv'", "Samples: helpdesk",
         "Did you mean 'tickets.csv'?", begun=True),
    Case("missing column", run("explore", "dataset=tickets.csv", "text_column=txet"), "MissingColumnError", "'tickets.csv' has no column 'txet' (text_column)",
         "Its columns are: id, text, label, time", "Did you mean 'text'?", begun=True),
    Case("empty file", run("explore", "dataset=empty.csv"), "SourceFormatError", "'empty.csv' is empty", "At least one row is needed",
         "Check how it was exported", writes("empty.csv", ""), begun=True),
    Case("header without rows", run("prepare", "dataset=header.csv"), "SourceFormatError", "'header.csv' has a header and no rows", "At least one row",
         "Check how it was exported", writes("header.csv", "id,text,query,summary\n"), begun=True),
    Case("no row that fits the header", run("explore", "dataset=tickets.csv"), "SourceFormatError", "None of the 2 rows of 'tickets.csv' fits", "was taken to be a",
         "Mend the header", writes("tickets.csv", "id,text\n1,a,b\n2,c,d\n"), begun=True),
    Case("wrong encoding", run("explore", "dataset=latin.csv"), "SourceFormatError", "'latin.csv' is not utf-8: byte 0xe9 at offset 13 (line 2)",
         "UTF-8 is read", "Save the file as UTF-8", writes("latin.csv", "id,text\n1,caf\xe9 late\n".encode("latin-1")), begun=True),
    Case("damaged file", run("monitor", "reference=t.parquet"), "SourceFormatError", "'t.parquet' is not a Parquet file that can be read", "", "Export it again",
         writes("t.parquet", b"PAR1 and then something else PAR1"), begun=True),
    Case("template with an unknown column", run("prepare", "dataset=tickets.csv", 'tasks={"label": ["{txet}", "{label}"]}'), "MissingColumnError",
         "'tickets.csv' has no column 'txet' ({txet} in a template", "Its columns are: id, text, label, time", "Did you mean 'text'?", begun=True),
    Case("unknown model", run("prompt", "dataset=examples.csv", "split=all", "models=startr"), "ModelNotFoundError", "The model 'startr' is unknown or not on disk while the network is off",
         "On this machine: starter", "Did you mean 'starter'?", prepared, begun=True),
    Case("model not on disk and no network", run("prompt", "dataset=examples.csv", "split=all", "models=lab/base-model"), "ModelNotFoundError",
         "'lab/base-model' is unknown or not on disk, nor to be had from the Hub", "On this machine: starter", "try again where the Hub can be reached",
         lambda place: (prepared(place), no_network(place))[1], begun=True),
    Case("adapter without its base", run("prompt", "dataset=examples.csv", "split=all", "models=adapter"), "ModelNotFoundError",
         "The adapter 'adapter' needs its base model 'lab/base-model', which is not here", "On this machine: starter", "write its folder as base_model into workbench.json",
         lambda place: (prepared(place), adapter_without_base(place))[1], begun=True),
    Case("systems with nothing in common", run("compare", "systems=a.csv, b.csv"), "ParameterValueError", "no scored example", "paired by example id",
         "Run them on the same dataset", lambda place: [place.write(f"{name}.csv", f"id,prediction,references\n{name},x,x\n") for name in "ab"] and None, begun=True),
    Case("run that is not in the store", run("compare", "systems=run:abcdef"), "SourceNotFoundError", "No run begins with 'abcdef'", "", "See `llmops runs`", begun=True),
    Case("missing time column", run("monitor", "reference=tickets.csv", "time_column=tmie"), "MissingColumnError", "has no column 'tmie' (time_column)",
         "Its columns are: id, text, label, time", "Did you mean 'time'?", begun=True),
    Case("model to fine-tune that is unknown", run("finetune", "model_name_or_path=startr"), "ModelNotFoundError", "The model 'startr' is unknown",
         "On this machine: starter", "Did you mean 'starter'?", begun=True),
    Case("rows to fine-tune on without an answer", run("finetune", "dataset=tickets.csv"), "MissingColumnError", "'tickets' has no columns prompt and completion",
         "Its columns are: id, text, label, time", "Prepare it first, or pass tasks", begun=True),
    Case("fine-tune into a folder that is not empty", run("finetune", "dataset=tickets.csv", ASK, "output_dir=."), "OutputInUseError", "output_dir='", "A model gets a folder of its own",
         "Name another, or leave it out", begun=True),
    Case("disk full during the run", run("explore", "dataset=tickets.csv", "tokenizer=None"), "WorkspaceError", "the disk is full", "", "Free some space and try again",
         full_during_the_run, begun=True),
    Case("disk full where the output goes", run("explore", "dataset=tickets.csv", output="../disk/out.ipynb"), "WorkspaceError",
         "/disk/out.ipynb': the disk is full", "", "Free some space and try again", full_output, begun=True),
]

SPECIAL = (full_before_the_store_is_made, full_before_the_run, full_while_the_run_starts, full_during_the_run, read_only_disk, below_a_file, newer_store)


def check_store(place, case, line):
    "Nothing begun leaves no run; what was begun is kept as failed, with what was said and a notebook that opens."
    with opened(place.workspace) as store:
        runs = store.list_runs()
        assert list(runs["status"]) == (["FAILED"] if case.begun else [])
        assert [f"{case.kind}: {error}" for error in runs["error"]] == ([line] if case.begun else [])
        for path in [*place.workspace.glob("runs/**/*.ipynb"), *filter(None, runs["notebook"])]: nbformat.validate(nbformat.read(path, 4))


def happen(case, place):
    "Make the place bad and run the command in it."
    if case.bad not in SPECIAL: place.make_store()
    undo = case.bad(place) if case.bad else None
    before = place.content()
    own = "--output" in case.args or case.begun or case.args[0] != "run"
    return place, before, undo, place.llmops(*case.args, *([] if own else ["--output", "earlier.ipynb"]))


@pytest.fixture(scope="module")
def happened(request, tmp_path_factory, empty_store):
    "What came of each case that is asked for, by name; two at a time, since a command spends half its life waiting for its kernel."
    asked = [item.callspec.params["case"] for item in request.session.items if item.path == request.path and "case" in getattr(item, "fixturenames", ())]
    places = [Place(tmp_path_factory.mktemp("case"), empty_store, request.addfinalizer) for _ in asked]
    with ThreadPoolExecutor(2) as pool: yield {case.name: pool.submit(happen, case, place) for case, place in zip(asked, places, strict=True)}


@pytest.mark.parametrize("case", [*(pytest.param(case, id=case.name.replace(" ", "-")) for case in BEFORE),
                                  *(pytest.param(case, id=case.name.replace(" ", "-"), marks=pytest.mark.slow) for case in INSIDE)])
def test_bad_input_is_one_line_and_nothing_is_half_written(happened, case):
    place, before, undo, (code, out, lines) = happened[case.name].result()
    assert (code, out, len(lines)) == (2, "", 1), (code, out, lines)
    line = lines[0]
    assert line.startswith(f"{case.kind}: ") and (case.kind == "llmops" or issubclass(getattr(errors, case.kind), errors.UserError)), line
    assert all(words in line for words in case.words()), line
    assert "Traceback" not in line and "?." not in line and len(line) < 1000, line
    if undo: undo()
    assert place.content() == before
    assert place.half_written() == []
    if place.workspace.is_dir(): check_store(place, case, line)


SLOW = """import pathlib, time
pathlib.Path("inside").touch()
while not pathlib.Path("go").exists(): time.sleep(0.05)"""


@pytest.mark.slow
def test_two_runs_on_one_output_path(place):
    "The second is told so, and neither the first one's notebook nor its run is touched."
    place.make_store()
    cells = [nbformat.v4.new_markdown_cell("# Slow"), nbformat.v4.new_code_cell("n: int = 1", metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(SLOW)]
    place.write("slow.ipynb", nbformat.writes(nbformat.v4.new_notebook(cells=cells)))
    first = subprocess.Popen([LLMOPS, "run", "./slow.ipynb", "--output", "out.ipynb"], cwd=place.project, env=place.environment(),
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (place.project / "inside").exists():
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        before = place.content()
        code, out, lines = place.llmops("run", "explore", "--output", "out.ipynb")
        assert (code, out, len(lines)) == (2, "", 1), lines
        assert all(words in lines[0] for words in ("OutputInUseError: Another run is writing '", "/out.ipynb'", "One path belongs to one run at a time",
                                                   "Wait for it, or choose another output"))
        assert place.content() == before
        with opened(place.workspace) as store: assert list(store.list_runs()["status"]) == ["RUNNING"]
    finally: (place.project / "go").touch()
    assert first.wait(120) == 0
    first.communicate()
    assert len(nbformat.read(place.project / "out.ipynb", 4).cells) == 3 and place.half_written() == []
    with opened(place.workspace) as store: assert list(store.list_runs()[["stage", "status"]].itertuples(index=False, name=None)) == [("slow", "FINISHED")]


# Input that only looks bad. A row that cannot be read costs itself and nothing else; texts come out as they were meant.

def broken_csv():
    rows = CSV.splitlines(keepends=True)
    return "".join([*rows[:3], "7,one,cell,too,many\n", *rows[3:]]).encode()

def broken_jsonl():
    rows = [json.dumps({"id": n, "text": text, "label": label}) + "\n" for n, text, label, _ in TICKETS]
    return "".join([*rows[:3], '{"id": 7, "text": "cut o\n', *rows[3:]]).encode()

def without_a_label():
    rows = CSV.splitlines(keepends=True)
    return "".join([*rows[:3], "7,Nobody has answered this,,2025-01-20\n", *rows[3:]]).encode()


@pytest.mark.slow
@pytest.mark.parametrize("name, content, step, row, reason", [
    ("broken.csv", broken_csv(), "read", "row 3", "line 4: 5 cells where the header has 4"),
    ("broken.jsonl", broken_jsonl(), "read", "row 4", "not JSON: "),
    ("gap.csv", without_a_label(), "examples", "7", "empty completion"),
], ids=["a-csv", "a-jsonl", "a-row-without-an-answer"])
def test_a_broken_row_in_the_middle_is_rejected_with_its_reason(place, name, content, step, row, reason):
    place.make_store()
    place.write(name, content)
    code, out, lines = place.llmops(*run("prepare", f"dataset={name}", ASK, 'split={"train": 0.5, "test": 0.5}'), "--json")
    assert (code, lines) == (0, [])
    told = json.loads(out)
    with opened(place.workspace) as store: rejected = store.get_run(told["run_id"]).frame("rejected")
    assert len(rejected) == 1
    found = rejected.iloc[0]
    assert (found["id"], found["step"]) == (row, step) and found["reason"].startswith(reason)
    assert len(TICKETS) + 1 == told["summary"]["n_rows_kept"] + told["summary"]["n_rejected"]
    assert told["summary"]["n_rows_kept"] == told["summary"]["n_train"] + told["summary"]["n_test"] == len(TICKETS)


@pytest.mark.slow
def test_a_file_in_utf_16_is_read_as_it_was_meant(place):
    "Spreadsheets write such files; no character changes and no mark sticks to the first column's name."
    place.make_store()
    place.write("marked.csv", "id,text\n1,Der Drücker klemmt 😀 für alle\n2,Le café est fermé\n".encode("utf-16"))
    code, out, lines = place.llmops(*run("explore", "dataset=marked.csv", "tokenizer=None"), "--json")
    assert (code, lines) == (0, [])
    told = json.loads(out)
    with opened(place.workspace) as store: kept = store.get_run(told["run_id"]).frame("frame")
    assert (list(kept["id"]), list(kept["characters"]), list(kept["damaged"])) == (["1", "2"], [29, 17], [0, 0])
    assert (told["summary"]["n_rows"], told["summary"]["n_read_rejected"]) == (2, 0)

"The panel without a browser: clicks, wrong input, races, re-display, and what papermill and nbconvert make of it."
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Optional

import ipywidgets
import nbformat
import pytest
from pandas import DataFrame

from llmops_workbench import params as kit
from llmops_workbench.display import Result
from llmops_workbench.errors import ParameterValueError, UnknownParameterError, UserError
from llmops_workbench.params import Between
from llmops_workbench.widgets import panel as panel_module
from llmops_workbench.widgets.panel import Panel, load_stage

ROOT = Path(__file__).parent.parent
HOSTILE = "<img src=x onerror=alert(1)> $\\href{javascript:alert(1)}{x}$"
CALLS, GATES = [], {}


@dataclass(frozen=True)
class Toy(Result):
    summary: dict
    frame: DataFrame
    def words(self): return [f"Said: {self.frame['text'].iloc[0]}"]
    def figures(self): return ("bars", "more")
    def figure(self, name=None):
        import plotly.graph_objects as go
        return go.Figure(go.Bar(x=["a", "b"], y=[self.summary["number"], 1], name=name))


def toy(
    text: str = "hello",                             # What to say
    number: Annotated[int, Between(0, 9)] = 3,       # How often
    mode: Literal["fast", "exact"] = "fast",         # How
    items: list[str] = ("a", "b"),                   # Items
    table: dict = {"k": 1},                          # A table  # noqa: B006
    maybe: Optional[float] = None,                   # A number, if any
    flag: bool = True,                               # Whether
    data: str | DataFrame = "helpdesk",              # Data
    on_progress=None,                                # Hook
) -> Toy:
    "A toy."
    CALLS.append((text, number, threading.current_thread().name))
    if text in GATES:
        GATES[text].wait(20)
    if on_progress:
        on_progress(1, 2, "half")
    if text == "wrong":
        raise UserError("The text is wrong. Allowed is another. Type one.")
    if text == "broken":
        raise RuntimeError(HOSTILE)
    return Toy({"number": number}, DataFrame({"text": [text] * max(number, 1)}))


class ToyPanel(Panel):
    stage, workflow, title, purpose = toy, "toy", "Toy", "Says something."
    first_fields = ("text", "number")


class CostlyPanel(ToyPanel):
    waits_for_click = True


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("LLMOPS_LIVE", "0")
    CALLS.clear()
    GATES.clear()


@pytest.fixture
def show(monkeypatch):
    "Display a panel as the last line of a cell would; optionally say hello as a browser would. Returns the panel and what was shown."
    outputs, opened = [], []
    monkeypatch.setattr(panel_module, "display", lambda data, raw, display_id=None, update=False: outputs.append(data))
    def display(panel, hello=True):
        panel._ipython_display_()
        opened.append(panel)
        if hello:
            panel.beacon._handle_custom_msg({"kind": "hello"}, [])
        return panel, outputs
    yield display
    for panel in opened:
        panel.wait(20)
        panel.close()


def control(panel, name): return panel.live.form.fields[name].control


def test_a_panel_without_a_screen():
    panel = ToyPanel(number="4")
    assert panel.params == {**kit.defaults_of(toy), "number": 4} and panel.result is None
    assert panel.run(text="x").summary == {"number": 4} and panel.params["text"] == "x"
    with pytest.raises(UserError, match="The text is wrong"):
        panel.run(text="wrong")
    assert panel.result.frame["text"].iloc[0] == "x" and panel.params["text"] == "x"
    with pytest.raises(RuntimeError):
        panel.run(text="broken")
    with pytest.raises(UnknownParameterError, match="ToyPanel has no parameter 'txt'"):
        panel.run(txt="x")
    with pytest.raises(ParameterValueError):
        ToyPanel(number=10)


def test_a_stage_may_be_named():
    class Named(Panel):
        stage = f"{__name__}.toy"
    sys.modules.setdefault(__name__, sys.modules[toy.__module__])
    assert load_stage(f"{__name__}.toy") is toy and Named().function is toy


def test_explore_freeze_run():
    panel = ToyPanel(text="line one\nline two", items=["x, y", "z"], table={"a": [1, None]}, maybe=0.5, flag=False)
    panel.run()
    assert ToyPanel(**kit.from_yaml(panel.to_yaml())).run().frame.equals(panel.result.frame)
    assert panel.to_command().startswith("llmops run toy -p text 'line one\nline two'")
    scope = {}
    exec(panel.to_code().replace(f"from {toy.__module__} import toy", ""), {"toy": toy}, scope)  # noqa: S102 (the code is ours, and running it is the point)
    assert scope["result"].summary == panel.result.summary


def test_from_run_and_log_go_through_the_store():
    class Store:
        kept = None
        def log_result(self, result, stage, params, dataset=None, run_id=None):
            self.kept = (stage, params, dataset)
            return "run1"
        def get_run(self, run_id): return type("Record", (), {"params": {k: json.dumps(v) if isinstance(v, (list, dict)) else v for k, v in self.kept[1].items()}})
    store, panel = Store(), ToyPanel(number=2)
    with pytest.raises(UserError, match="Not run yet"):
        panel.log(store)
    panel.run()
    assert panel.log(store) == "run1" and store.kept[0] == "toy" and store.kept[2] is None
    assert ToyPanel.from_run("run1", store).params == panel.params
    panel.run(data=DataFrame({"a": [1, 2]}))
    panel.log(store)
    assert store.kept[1]["data"] == "a DataFrame of 2 rows"


def test_headless_it_runs_at_once_and_shows_a_static_face(show):
    panel, outputs = show(CostlyPanel(text=HOSTILE), hello=False)
    assert CALLS[0][2] == "MainThread" and panel.live is None and panel.box.children == (panel.beacon,)
    face, box = outputs
    assert set(face) == {"text/html", "text/plain"} and f'data-llmops="{panel.key}"' in face["text/html"]
    assert "<table" in face["text/html"] and face["text/html"].count("<img alt=") == 2 and "<img src=x" not in face["text/html"]
    assert box["text/plain"].startswith("Run this cell in JupyterLab")


def test_headless_an_error_stops_the_notebook(show):
    for text, error in (("wrong", UserError), ("broken", RuntimeError)):
        with pytest.raises(error):
            show(CostlyPanel(text=text))


def test_with_somebody_there_a_costly_stage_waits_for_the_click(show, monkeypatch):
    monkeypatch.setenv("LLMOPS_LIVE", "1")
    panel, outputs = show(CostlyPanel())
    assert not CALLS and panel.wait() is None and "Not launched yet: press Launch above" in panel.words()[0]
    assert "Not launched yet" in outputs[0]["text/html"]
    panel.live.button.click()
    assert panel.wait(20).summary == {"number": 3} and CALLS[0][2] != "MainThread"
    assert panel.words() == ["Said: hello"] and "Done in" in panel.live.status.value


def test_with_somebody_there_a_wrong_input_leaves_the_form_to_mend_it(show, monkeypatch):
    monkeypatch.setenv("LLMOPS_LIVE", "1")
    panel, outputs = show(ToyPanel(text="wrong"))
    assert "The text is wrong" in panel.live.strip.value and "The text is wrong" in outputs[0]["text/html"]
    control(panel, "text").value = "right"
    panel.live.button.click()
    assert panel.wait(20).summary == {"number": 3} and panel.live.strip.value == "" and panel.error == ""


def test_every_field_reads_back_what_it_shows(show):
    given = {"text": "two\nlines", "number": 5, "mode": "exact", "items": ["x, y", ""], "table": {"a": {"b": [1]}}, "maybe": 0.25, "flag": False}
    panel, _ = show(ToyPanel(**given))
    assert panel.live.form.read() == {**kit.defaults_of(toy), **given}
    panel.run(**kit.defaults_of(toy))
    assert panel.live.form.read() == kit.defaults_of(toy)
    kinds = {name: type(field.control).__name__ for name, field in panel.live.form.fields.items()}
    assert kinds == {"text": "Textarea", "number": "BoundedIntText", "mode": "Dropdown", "items": "Text", "table": "Textarea",
                     "maybe": "Text", "flag": "Checkbox", "data": "Text"}
    for name, field in panel.live.form.fields.items():
        assert field.control.description == name and field.control.tooltip.startswith(kit.parameters_of(toy)[name].help)


@pytest.mark.parametrize("name,value,words", [("items", '["a"', "'items'"), ("table", "[1]", "Allowed is a dict"), ("maybe", "much", "Allowed is a number or None"),
                                              ("table", "{" * 5000, "'table'")])
def test_a_wrong_field_is_one_line_and_runs_nothing(show, name, value, words):
    panel, _ = show(ToyPanel())
    before = len(CALLS)
    control(panel, name).value = value
    assert words in re.sub("&#x27;", "'", panel.live.strip.value)
    panel.live.button.click()
    assert panel.wait(20) is not None and len(CALLS) == before and words in panel.error and "\n" not in panel.error


def test_what_a_stage_throws_is_text(show):
    panel, _ = show(ToyPanel())
    control(panel, "text").value = "broken"
    panel.live.button.click()
    panel.wait(20)
    strip = panel.live.strip.value
    assert "RuntimeError" in strip and "<details>" in strip and "<img" not in strip and "\\href" not in strip
    assert panel.result is not None


def test_freezing_follows_the_form(show):
    panel, _ = show(ToyPanel())
    control(panel, "number").value = 7
    yaml, command, code = (copy.text for copy in panel.live.copies)
    assert "number: 7" in yaml and command == "llmops run toy -p number 7" and "number=7" in code
    assert "Changed since the last run" in panel.live.status.value and panel.ran_with["number"] == 3
    control(panel, "number").value = 3
    assert "Changed" not in panel.live.status.value


def test_a_frame_from_python_stays_until_a_name_is_typed(show):
    frame = DataFrame({"text": ["a"]})
    panel, _ = show(ToyPanel(data=frame))
    assert panel.live.form.read()["data"] is frame and "DataFrame" in control(panel, "data").placeholder
    assert "cannot be frozen" in panel.live.copies[0].text
    control(panel, "data").value = "other"
    assert panel.params["data"] == "other"


def test_of_two_runs_the_later_one_is_shown(show):
    panel, _ = show(ToyPanel())
    GATES["slow"] = threading.Event()
    control(panel, "text").value = "slow"
    panel.live.button.click()
    slow = panel._thread
    control(panel, "text").value = "quick"
    panel.live.button.click()
    panel.wait(20)
    assert panel.result.frame["text"].iloc[0] == "quick"
    GATES["slow"].set()
    slow.join(20)
    assert panel.result.frame["text"].iloc[0] == "quick" and panel.ran_with["text"] == "quick" and [c[0] for c in CALLS[1:]] == ["slow", "quick"]


def test_a_costly_run_cannot_be_started_twice_and_the_button_comes_back(show, monkeypatch):
    monkeypatch.setenv("LLMOPS_LIVE", "1")
    for text in ("slow", "wrong", "broken"):
        GATES[text] = threading.Event()
        panel, _ = show(CostlyPanel(text=text))
        panel.live.button.click()
        assert panel.live.button.disabled and panel.words() == ["Still running: run this cell again when it is done"]
        GATES[text].set()
        panel.wait(20)
        assert panel.live.button.disabled is False


def test_two_browsers_share_the_controls(show):
    panel, _ = show(ToyPanel())
    live, sent = panel.live, []
    panel.beacon.send = lambda content, buffers=None: sent.append(content)
    panel.beacon._handle_custom_msg({"kind": "hello"}, [])
    panel.beacon._handle_custom_msg({"kind": "other"}, [])
    assert panel.live is live and sent == [{"kind": "live"}] and len(panel.box.children) == 3


def test_a_chart_keeps_its_widget_from_one_result_to_the_next(show):
    panel, _ = show(ToyPanel())
    before = dict(panel.live.figures)
    panel.run(number=9)
    assert panel.live.figures == before and list(panel.live.figures["bars"].source.data[0].y) == [9, 1]
    assert all(figure.config["showSendToCloud"] is False for figure in before.values())


def test_each_result_brings_the_static_face_up_to_date(show):
    panel, outputs = show(ToyPanel())
    panel.run(text="the latest")
    assert "the latest" in outputs[-1]["text/html"] and f'data-llmops="{panel.key}"' in outputs[-1]["text/html"]


def test_the_selection_can_be_watched_and_linked():
    import traitlets
    one, two, seen = ToyPanel(), ToyPanel(), []
    traitlets.link((one, "selection"), (two, "selection"))
    two.observe(lambda change: seen.append(change["new"]), "selection")
    one.selection = ["T1", "T2"]
    assert seen == [["T1", "T2"]] and two.selection == ["T1", "T2"]


def test_closing_gives_every_widget_back(show):
    before = set(ipywidgets.widget._instances)
    panel, _ = show(ToyPanel())
    assert len(set(ipywidgets.widget._instances) - before) > 30
    panel.close()
    left = [ipywidgets.widget._instances[i] for i in set(ipywidgets.widget._instances) - before]
    assert {type(w).__name__ for w in left} <= {"LayoutModel", "Layout", "DescriptionStyle", "ButtonStyle", "TextStyle", "HTMLStyle", "CheckboxStyle"}
    panel._on_message(None, {"kind": "hello"}, [])
    assert panel.live is None and panel.result is not None


def test_running_a_cell_again_closes_the_panel_it_showed(show, monkeypatch):
    class Kernel:
        parent = {}
        def get_parent(self): return self.parent
    kernel = Kernel()
    monkeypatch.setattr(panel_module, "get_ipython", lambda: type("Shell", (), {"kernel": kernel})())
    kernel.parent = {"metadata": {"cellId": "c1"}, "header": {"msg_id": "m1"}}
    first, second = show(ToyPanel())[0], show(ToyPanel())[0]
    assert first.box and second.box, "two panels in one cell live side by side"
    kernel.parent = {"metadata": {"cellId": "c1"}, "header": {"msg_id": "m2"}}
    third = show(ToyPanel())[0]
    assert first.box is None and second.box is None and third.box


def test_a_stage_reports_its_progress(show):
    panel, _ = show(ToyPanel())
    said = []
    panel.live.say = lambda text, share=None: said.append((text, share))
    panel.live.button.click()
    panel.wait(20)
    assert ("1 of 2 half", 0.5) in said and said[-1][0].startswith("Done in")


NOTEBOOK = [
    "from dataclasses import dataclass\nfrom pandas import DataFrame\nfrom llmops_workbench.display import Result\n"
    "from llmops_workbench.widgets.panel import Panel",
    "number: int = 3  # How many",
    "@dataclass(frozen=True)\nclass Toy(Result):\n    summary: dict\n    frame: DataFrame\n    def words(self): return ['Some words']\n"
    "    def figures(self): return ('bars',)\n    def figure(self, name=None):\n        import plotly.graph_objects as go\n"
    "        return go.Figure(go.Bar(y=list(self.frame['n'])))\n"
    "def toy(number: int = 3) -> Toy:\n    if number < 0: raise ValueError('negative')\n    return Toy({'n': number}, DataFrame({'n': range(number)}))\n"
    "class ToyPanel(Panel):\n    stage, workflow, title, purpose, waits_for_click = toy, 'toy', 'Toy', 'A toy.', True",
    "panel = ToyPanel(number=number)\npanel",
    "panel.wait().summary",
]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    "The notebook run by the plain papermill command, with widget state stored as it does by default."
    folder = tmp_path_factory.mktemp("papermill")
    cells = [nbformat.v4.new_code_cell(source) for source in NOTEBOOK]
    cells[1].metadata["tags"] = ["parameters"]
    metadata = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), folder / "in.ipynb")
    environment = {k: v for k, v in os.environ.items() if k not in ("LLMOPS_LIVE", "JPY_SESSION_NAME")}
    done = {}
    for number in (5, -1):
        command = [sys.executable, "-m", "papermill", "in.ipynb", f"out{number}.ipynb", "-p", "number", str(number)]
        done[number] = subprocess.run(command, cwd=folder, env={**environment, "PYTHONPATH": os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])},
                                      capture_output=True, text=True)
    return folder, done


def test_papermill_keeps_a_small_notebook_that_reads_well(executed):
    folder, done = executed
    assert done[5].returncode == 0, done[5].stderr[-2000:]
    path = folder / "out5.ipynb"
    notebook = nbformat.read(path, 4)
    state = notebook.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {}).get("state", {})
    assert path.stat().st_size < 100_000 and len(json.dumps(state)) < 8_000
    assert "FigureModel" not in json.dumps(state) and len(state) <= 4
    face = notebook.cells[-2].outputs[0].data["text/html"]
    assert "<table" in face and "data:image/svg+xml;base64," in face and "Some words" in face and "number = 5" in face
    assert notebook.cells[-1].outputs[0].data["text/plain"] == "{'n': 5}"


def test_a_failing_stage_fails_papermill(executed):
    _, done = executed
    assert done[-1].returncode != 0 and "ValueError: negative" in done[-1].stderr


def test_nbconvert_shows_table_and_picture_and_loads_nothing_of_ours(executed):
    from nbconvert import HTMLExporter
    folder, _ = executed
    notebook = nbformat.read(folder / "out5.ipynb", 4)
    page, _ = HTMLExporter().from_notebook_node(notebook)
    bare = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("x")], metadata=notebook.metadata)
    plain, _ = HTMLExporter().from_notebook_node(bare)
    def sources(text): return set(re.findall(r'<script[^>]*\bsrc="([^"]+)"', text)) | set(re.findall(r'<link[^>]*\bhref="([^"]+)"', text))
    assert sources(page) == sources(plain)
    assert "<table" in page and "data:image/svg+xml;base64," in page and "newPlot" not in page

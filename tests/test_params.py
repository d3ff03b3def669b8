"Parameters: the round trips through papermill, YAML, a shell and Python, and every value that must be refused."
import ast
import json
import shlex
from typing import Annotated, Literal, Optional

import nbformat
import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from pandas import DataFrame, Timestamp

from llmops_workbench.errors import ParameterValueError, SourceFormatError, UnknownParameterError, UserError
from llmops_workbench.params import (Between, check_parameters, check_value, defaults_of, from_yaml, parameters_cell, parameters_in_cell,
                                     parameters_of, to_code, to_command, to_yaml)

PROMPT = 'Ticket: {text}\n# answer = JSON, like {"a": "b=c"} \\= "quoted" \'single\'\u2028end'


def toy_stage(
    dataset: str | DataFrame = "helpdesk",                # Name, path or name@digest; must be != ""
    prompt: str = PROMPT,                                  # Template with {fields} = columns # and a hash
    share: Annotated[float, Between(0, 1)] = 5e-05,        # type: of share, >= 0
    rows: Optional[int] = None,                            # None reads all
    repeats: Annotated[int, Between(1, None)] = 1,         # How often
    mode: Literal["fast", "exact"] = "fast",               # How to count
    flag: bool = True,                                     # Whether to count at all
    models: list[str] = ("starter", "a=b#c"),              # Names of models
    weights: Annotated[list[float], Between(0, 1)] = (),   # One a model
    tasks: dict = {"query": ["{text}", "{query}=#"]},      # Task -> templates  # noqa: B006
    split_at: Optional[str] = None,                        # A date
    systems: list[str] | dict = ("run:1",),                # Runs, or name -> predictions
    *,
    seed: int = 0,                                         # Same seed, same result
    on_progress=None,                                      # A hook: no parameter of a frozen run
) -> dict:
    "A stage with every kind of parameter."
    return {k: v for k, v in locals().items() if k != "on_progress"}


def notebook_with(source, path):
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})
    metadata = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}, "language_info": {"name": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=metadata), path)
    return str(path)


def test_papermill_reads_every_line_of_the_cell(tmp_path):
    import papermill
    found = papermill.inspect_notebook(notebook_with(parameters_cell(toy_stage), tmp_path / "w.ipynb"))
    declared = parameters_of(toy_stage)
    assert list(found) == list(declared) and "on_progress" not in declared
    for name, parameter in declared.items():
        assert ast.literal_eval(found[name]["default"]) == parameter.default, name
        assert found[name]["help"], name
        assert found[name]["inferred_type_name"].removeprefix("Optional[").startswith(parameter.type), name
    assert found["rows"]["inferred_type_name"] == "Optional[int]"
    assert found["repeats"]["help"].endswith("(a whole number of 1 or more)")


def test_the_cell_runs_and_gives_the_defaults():
    scope = {}
    exec(parameters_cell(toy_stage), scope)  # noqa: S102 (the code is ours, and running it is the point)
    assert {name: scope[name] for name in parameters_of(toy_stage)} == defaults_of(toy_stage)


def test_the_cell_is_read_back():
    declared, read = parameters_of(toy_stage), parameters_in_cell(parameters_cell(toy_stage))
    assert list(read) == list(declared)
    for name in declared:
        assert (read[name].type, read[name].item_type, read[name].default, read[name].optional, read[name].required) == (
            declared[name].type, declared[name].item_type, declared[name].default, declared[name].optional, False), name


def test_a_cell_written_by_somebody_else():
    read = parameters_in_cell("%matplotlib inline\nimport os\nfrom typing import *\n"
                              "a = 1  # how many\nb: 'str | None' = None\nc: Optional[List[int]] = [1]\nhome = os.getcwd()\n"
                              "d: typing.Union[str, int] = 'x'\ne: Literal['p', 'q'] = 'p'\nf: Path = 'x'\nx, y = 1, 2\ng: int\n")
    assert {n: (p.type, p.optional) for n, p in read.items()} == {
        "a": ("int", False), "b": ("str", True), "c": ("list", True), "home": ("str", True), "d": ("str", False), "e": ("str", False),
        "f": ("str", False)}
    assert read["a"].help == "how many" and read["c"].item_type == "int" and read["e"].choices == ("p", "q")
    assert check_parameters(read, {"home": "/tmp", "d": 3}, "nb") == {"home": "/tmp", "d": 3}


def test_reading_a_cell_executes_nothing(tmp_path):
    marker = tmp_path / "marker"
    parameters_in_cell(f"a: __import__('os').system('touch {marker}') = __import__('os').system('touch {marker}')\nb: (lambda: 1)() = 2")
    assert not marker.exists()


@pytest.mark.parametrize("source", ["x = = 1", "def", "x = (1", "\x00"])
def test_a_cell_that_is_no_python(source):
    with pytest.raises(SourceFormatError) as caught:
        parameters_in_cell(source)
    assert "\n" not in str(caught.value)


def test_a_workflow_needs_defaults():
    def needs(x: int): return x
    with pytest.raises(ParameterValueError, match="has no default"):
        parameters_cell(needs)
    with pytest.raises(ParameterValueError, match="was given no value for 'x'"):
        check_parameters(needs, {})


def test_a_type_that_cannot_be_written_down_and_a_default_that_breaks_its_own_bounds():
    def odd(x: complex): return x
    with pytest.raises(ParameterValueError, match="cannot be written down"):
        parameters_of(odd)
    def wrong(x: Annotated[float, Between(0, 1)] = 2.0): return x
    with pytest.raises(ParameterValueError, match="from 0 to 1"):
        parameters_of(wrong)


BAD = [("share", 1.01), ("share", -0.1), ("share", float("nan")), ("share", float("inf")), ("share", True), ("share", "much"),
       ("share", None), ("share", "nan"), ("rows", 1.5), ("rows", True), ("rows", "1.5"), ("rows", [1]), ("repeats", 0),
       ("repeats", 10**400 * 0), ("mode", "slow"), ("mode", 1), ("flag", 1), ("flag", "maybe"), ("flag", None), ("models", [1]), ("models", {"a": 1}),
       ("models", 3), ("models", "[a, b"), ("models", ["a", None]), ("weights", [0.5, 2]), ("weights", [float("nan")]), ("weights", "a,b"),
       ("tasks", []), ("tasks", "[1]"), ("tasks", {1: 2}), ("tasks", "{"), ("dataset", 3), ("dataset", None), ("dataset", b"x"),
       ("prompt", "\ud800"), ("prompt", True), ("seed", 2.0), ("seed", float("inf")), ("seed", "[" * 5000), ("tasks", "[" * 5000)]


@pytest.mark.parametrize("name,value", BAD, ids=lambda v: repr(v)[:30])
def test_refused_in_one_line(name, value):
    with pytest.raises(ParameterValueError) as caught:
        check_parameters(toy_stage, {name: value})
    message = str(caught.value)
    assert isinstance(caught.value, ValueError) and f"'{name}'" in message and "Allowed is" in message
    assert "\n" not in message and len(message) < 400


GOOD = [("share", 1, 1.0), ("share", 0, 0.0), ("share", "0.25", 0.25), ("share", np.float32(0.5), 0.5), ("share", "1e-4", 1e-4),
        ("rows", "100", 100), ("rows", np.int64(5), 5), ("rows", "None", None), ("rows", None, None), ("flag", "no", False),
        ("flag", "TRUE", True), ("flag", np.bool_(True), True), ("models", "a, b", ["a", "b"]), ("models", '["a, b"]', ["a, b"]),
        ("models", ("a",), ["a"]), ("models", "", []), ("weights", "0, 1", [0.0, 1.0]), ("weights", [1], [1.0]),
        ("tasks", '{"a": {"b": 1}}', {"a": {"b": 1}}), ("split_at", Timestamp("2026-01-02"), "2026-01-02T00:00:00"),
        ("systems", {"a": ["x"]}, {"a": ["x"]}), ("systems", "run:1, run:2", ["run:1", "run:2"])]


@pytest.mark.parametrize("name,value,expected", GOOD, ids=lambda v: repr(v)[:30])
def test_read(name, value, expected):
    read = check_parameters(toy_stage, {name: value})[name]
    assert read == expected and type(read) is type(expected)


def test_live_objects_pass_and_do_not_freeze():
    frame = DataFrame({"text": ["a"]})
    params = check_parameters(toy_stage, {"dataset": frame})
    assert params["dataset"] is frame
    with pytest.raises(ParameterValueError, match="holds inf"):
        to_yaml({"tasks": {"a": float("inf")}})
    for freeze in (to_yaml, lambda p: to_command("w", p, toy_stage), lambda p: to_code(toy_stage, p)):
        with pytest.raises(ParameterValueError, match="a DataFrame, which cannot be frozen"):
            freeze(params)


HOSTILE_NAMES = ["x = 1\nimport os", "class", "a b", "", "1a", "a.b", "__import__('os')", "a=1;b", "None", "a\u2028b", "x\r", 1, None]


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=repr)
def test_a_name_that_papermill_would_execute_is_refused_everywhere(name):
    "papermill's codify writes `name = value` with no check of the name: a line break in it becomes code."
    with pytest.raises(UnknownParameterError) as caught:
        check_parameters(toy_stage, {name: 1})
    assert "\n" not in str(caught.value)
    for write in (to_yaml, lambda p: to_command("w", p, toy_stage), lambda p: to_code(toy_stage, p)):
        with pytest.raises(UnknownParameterError):
            write({name: 1})
    with pytest.raises(UnknownParameterError):
        from_yaml(json.dumps({name: 1}) if isinstance(name, str) else "1: 1" if name else "null: 1")


def test_a_misspelt_name_says_what_was_meant_and_what_there_is():
    with pytest.raises(UnknownParameterError, match=r"toy\.ipynb has no parameter 'shares'\. It declares: dataset, .* Did you mean 'share'\?"):
        check_parameters(parameters_of(toy_stage), {"shares": 1}, "toy.ipynb")


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
number = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-2**70, 2**70)
plain = st.recursive(st.none() | st.booleans() | number | text, lambda s: st.lists(s, max_size=3) | st.dictionaries(text, s, max_size=3), max_leaves=6)
values = st.fixed_dictionaries({}, optional={
    "prompt": text, "dataset": text, "share": st.floats(0, 1), "rows": st.none() | st.integers(), "flag": st.booleans(), "seed": st.integers(),
    "models": st.lists(text, max_size=3), "tasks": st.dictionaries(text, plain, max_size=3), "mode": st.sampled_from(["fast", "exact"])})


@settings(max_examples=60, deadline=None)
@example({"prompt": "a\x85b\u2028\r\n", "models": ["\x7f", " "], "tasks": {"a\x85": "b: c\n "}})
@given(values)
def test_yaml_command_and_code_give_the_same_parameters(params):
    assert check_parameters(toy_stage, from_yaml(to_yaml(params))) == params
    full = {**defaults_of(toy_stage), **params}
    words = shlex.split(to_command("toy", full, toy_stage))
    assert words[:3] == ["llmops", "run", "toy"] and words[3::3] == ["-p"] * (len(words) // 3 - 1)
    given = dict(zip(words[4::3], words[5::3], strict=True))
    assert {**defaults_of(toy_stage), **check_parameters(toy_stage, given)} == full
    scope = {"toy_stage": toy_stage}
    exec(to_code(toy_stage, full).replace(f"from {__name__} import toy_stage", ""), scope)  # noqa: S102 (the code is ours, and running it is the point)
    assert scope["result"] == {k: tuple(v) if k in ("models", "weights", "systems") and k not in params else v for k, v in full.items()}


@settings(max_examples=60, deadline=None)
@given(text, st.lists(text, max_size=3), st.dictionaries(text, number, max_size=3))
def test_any_default_survives_the_cell_and_papermill(words, items, table):
    from papermill.translators import PythonTranslator
    def stage(words: str = words, items: list[str] = items, table: dict = table, last: int = 1): return None
    source = parameters_cell(stage)
    assert len(source.splitlines()) == 4
    assert {n: p.default for n, p in parameters_in_cell(source).items()} == defaults_of(stage)
    found = {p.name: ast.literal_eval(p.default) for p in PythonTranslator.inspect({"source": source})}
    assert found == defaults_of(stage)


def test_errors_are_user_errors():
    assert issubclass(ParameterValueError, UserError) and ParameterValueError.exit_code == UnknownParameterError.exit_code == 2


def test_reading_one_value_needs_no_function():
    assert check_value(parameters_of(toy_stage)["repeats"], "3", "here") == 3

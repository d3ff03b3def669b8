"What no page should show of the prompt library: races in real processes, hostile text, large prompts, versions made by other means, real traces."

import json
import multiprocessing
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import replace

import mlflow
import pandas as pd
import pytest

from llmops_workbench.cli import main
from llmops_workbench.completions import ScriptedModel
from llmops_workbench.differences import diff_words
from llmops_workbench.errors import ParameterValueError, SourceFormatError, SourceNotFoundError
from llmops_workbench.library import MOST_CHARS, PARTS, digest_parts, prompt_parts
from llmops_workbench.measures import METRICS
from llmops_workbench.prompting import run_grid
from llmops_workbench.prompts import pin_prompts, read_prompts
from llmops_workbench.runner import run_workflow
from llmops_workbench.settings import Settings
from llmops_workbench.store import Store, open_store


def settings_in(folder): return Settings(folder, f"sqlite:///{folder/'store'/'mlflow.db'}")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    "An empty store, made once: making the tables is the slow part."
    folder = tmp_path_factory.mktemp("template")
    Store(settings_in(folder)).journal.close()
    return folder


@pytest.fixture
def store(template, workspace):
    shutil.copytree(template, workspace, dirs_exist_ok=True)
    return open_store()


# Two people at once

def _register(folder, number):
    "Registrations by one process, which opens a store that does not exist yet: what all have in common, what is its own, and moves of an alias."
    store, numbers = Store(settings_in(folder)), []
    for i in range(10):
        assert store.register_prompt("same", "same {text}") == 1
        numbers.append(store.register_prompt("raced", f"by {number}, {i}: {{text}}"))
        if i % 5 == 0: store.set_prompt_alias("raced", "production", numbers[-1])
    return numbers


def test_eight_processes_register_on_an_empty_store(template, tmp_path, capfd):
    with multiprocessing.get_context("fork").Pool(8) as pool: numbers = pool.starmap(_register, [(tmp_path, number) for number in range(8)], chunksize=1)
    store = Store(settings_in(tmp_path))
    versions = {version.template: version.version for version in store._all_versions("raced")}
    assert sorted(versions.values()) == list(range(1, 81)) and store.prompt_versions("same")["version"].tolist() == [1]
    assert [[versions[f"by {p}, {i}: {{text}}"] for i in range(10)] for p in range(8)] == numbers  # nobody's was overwritten or renumbered
    history = store.alias_history("raced")
    assert len(history) == 16 and history["at"].is_monotonic_increasing and history["by"].nunique() == 1
    assert pd.isna(history["from"].iloc[0]) and history["from"].iloc[1:].tolist() == history["to"].iloc[:-1].tolist()  # a chain, whoever moves it
    assert history["to"].iloc[-1] == store.prompt_aliases("raced")["production"] == store.load_prompt("raced", "production").version
    out, err = capfd.readouterr()
    assert "rror" not in out + err and "Traceback" not in out + err


def test_an_alias_moved_by_another_process_counts_at_once(store):
    for i in range(2): store.register_prompt("q", f"{i} {{text}}")
    store.set_prompt_alias("q", "production", 1)
    assert store.load_prompt("q", "production").version == 1
    code = "from llmops_workbench.store import open_store; open_store().set_prompt_alias('q', 'production', 2)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert store.load_prompt("q", "production").version == 2


# Hostile and large

HOSTILE = ["'; DROP TABLE model_versions; --", "<script>alert(1)</script>", "{text.__class__}", "{{ 7*7 }}", "%s %(name)s", "\x00\x1b[31m", "\ud800", "‮txet", "🙂 प्रिय ترجمه",
           "prompt:other@production", "\\", '"', "a\r\nb\tc", " ", "null"]


def test_hostile_text_comes_back_letter_for_letter(store):
    for i, text in enumerate(HOSTILE, 1):
        parts = {"messages": [{"role": "user", "content": text + "{x}"}], "schema": {text: {"enum": [text]}}, "examples": [{"x": text, "completion": text}], "task": "t" + text}
        assert store.register_prompt("hostile", parts, text, {"note": "harmless"}) == i
        found = store.load_prompt("hostile", i)
        assert (found.parts, found.message, found.tags) == (parts, text.replace("\ud800", "\ufffd"), {"note": "harmless"})
        html = store.diff_prompts("hostile", 1, i)._repr_html_()
        assert "<script" not in html and "\x1b" not in html and "\x00" not in html
    assert store.prompt_versions("hostile")["message"].tolist() == [text.replace("\ud800", "\ufffd") for text in HOSTILE[::-1]]
    with sqlite3.connect(store.address.removeprefix("sqlite:///")) as database:
        kept = [value for value, in database.execute("SELECT value FROM model_version_tags WHERE key LIKE 'llmops.%'")]
    assert all(value.isascii() and "\x00" not in value and len(value) <= 90_000 for value in kept)  # what PostgreSQL and MLflow can take


@pytest.mark.parametrize("name", ["", " ", "a b", "a/b", "../q", "q'; --", "q\n", "ü", "x"*201, "q@1", None])
def test_bad_names_are_refused_everywhere(store, name):
    for call in (lambda: store.register_prompt(name, "{x}"), lambda: store.load_prompt(name), lambda: store.prompt_versions(name), lambda: store.runs_of_prompt(name),
                 lambda: store.set_prompt_alias(name, "production", 1), lambda: store.alias_history(name), lambda: store.diff_prompts(name, 1)):
        with pytest.raises((ParameterValueError, SourceNotFoundError)): call()


@pytest.mark.parametrize("version", ["nobody", "", "a'b", "1'; --", -1, 0, 99, 10**30, "²", 1.5, "latest "])
def test_versions_that_are_not_there(store, version):
    store.register_prompt("q", "{x}")
    with pytest.raises(SourceNotFoundError, match="no prompt 'q'"): store.load_prompt("q", version)


def test_an_unknown_alias_is_answered_with_the_one_that_was_meant(store):
    store.register_prompt("q", "{x}")
    store.set_prompt_alias("q", "production", 1)
    with pytest.raises(SourceNotFoundError, match="Its aliases are: production. Did you mean 'production'?"): store.load_prompt("q", "produktion")
    with pytest.raises(SourceNotFoundError, match="Did you mean 'production'?"): read_prompts({"a": "prompt:q@prodution"})


def test_a_prompt_of_a_megabyte(store):
    long = "".join(f"Rule {i}: the ticket {i*31 % 977} is about {{text}}.\n" for i in range(25_000))
    assert len(long) > 1_000_000
    assert store.register_prompt("long", long) == 1 and store.load_prompt("long").template == long
    assert store.register_prompt("long", long) == 1
    messages = [{"role": "user", "content": long.replace("Rule 77:", "Regel 77 ü:")}]
    assert store.register_prompt("long", messages) == 2 and store.load_prompt("long").template == messages
    change = store.diff_prompts("long", 1, 2)
    assert "".join(text for what, text in change.words if what != "in") == long
    assert {text for what, text in change.words if what == "out"} == {"Rule"}
    with pytest.raises(ParameterValueError, match="At most"): store.register_prompt("long", "x"*MOST_CHARS + "{text}")


def test_words_are_lost_by_no_diff():
    texts = ["", "a", "a b", "b a", "a  b", "ä b\n", "a b c d e f", "f e d c b a"]
    for a in texts:
        for b in texts:
            found = diff_words(a, b)
            assert ("".join(t for w, t in found if w != "in"), "".join(t for w, t in found if w != "out")) == (a, b)
            assert all(text for _, text in found)


# What is kept

def test_every_part_is_kept_and_each_one_makes_another_version(store):
    whole = {"template": "{q} {x}", "schema": {"type": "object", "properties": {"b": {}, "a": {}}}, "examples": [{"x": 1, "completion": "y"}], "task": "query",
             "bind": {"q": "body"}, "partials": {"rules": "Be brief."}, "shots": {"rule": "similar", "n": 3, "seed": 0}, "syntax": "jinja", "escape_markers": False,
             "model": "starter", "sampling": {"temperature": 0.0, "stop": ["\n"]}}
    assert set(whole) == set(PARTS) - {"messages"}
    store.register_prompt("whole", whole)
    assert store.load_prompt("whole").parts == whole
    assert json.dumps(store.load_prompt("whole").parts["schema"]) == json.dumps(whole["schema"])  # a model fills fields in this order
    numbers = [store.register_prompt("whole", {name: value for name, value in whole.items() if name != part}) for part in whole if part != "template"]
    assert numbers == list(range(2, 12))
    assert store.diff_prompts("whole", 1, 2).parts["part"].tolist() == ["schema"]


def test_a_prompt_object_and_its_words_are_the_same_prompt(store):
    for value in ("{text}", [{"role": "system", "content": "a"}, {"role": "user", "content": "{text}"}], {"template": "{text}", "schema": {"type": "object"}, "task": "t"},
                  {"template": "{text}", "examples": [{"text": "a", "completion": "b"}]}):
        prompt, = read_prompts({"p": value})
        assert digest_parts(prompt_parts(prompt)) == digest_parts(prompt_parts(value))
        store.register_prompt("p", value)
        assert read_prompts({"p": "prompt:p"}) == [prompt]


def test_prompts_that_mlflow_registered_itself_still_load(store):
    "Bare templates, as earlier versions of the workbench kept them, and schemas as MLflow does."
    store.client.register_prompt("old", "Ticket: {text}", commit_message="before")
    store.client.register_prompt("old", [{"role": "user", "content": "{text}"}], tags={"a": "b"}, response_format={"type": "object"})
    one, two = store.load_prompt("old", 1), store.load_prompt("old")
    assert (one.template, one.message, two.parts) == ("Ticket: {text}", "before", {"messages": [{"role": "user", "content": "{text}"}], "schema": {"type": "object"}})
    assert store.register_prompt("old", two.parts) == 2 and store.register_prompt("old", "new {text}") == 3
    assert store.prompt_versions("old")["message"].tolist() == ["", "", "before"]
    assert store.client.load_prompt("prompts:/old/3", cache_ttl_seconds=0).template == "new {text}"  # and MLflow reads ours


def test_a_version_that_was_changed_is_noticed(store):
    store.register_prompt("q", "honest {x}")
    with sqlite3.connect(store.address.removeprefix("sqlite:///")) as database:
        changed = database.execute("UPDATE model_version_tags SET value = replace(value, 'honest', 'sly') WHERE key = 'llmops.record.0000'").rowcount
    assert changed == 1
    with pytest.raises(SourceFormatError, match="is not what was kept"): store.load_prompt("q")


def test_what_json_cannot_hold_is_refused_in_one_line(store):
    for parts, word in (({"template": "{x}", "schema": {"a": object()}}, "schema"), ({"template": "{x}", "examples": [{"x": {1, 2}}]}, "examples"), ({"tmplate": "{x}"}, "template")):
        with pytest.raises(ParameterValueError, match=word) as caught: store.register_prompt("q", parts)
        assert "\n" not in str(caught.value)
    assert len(store.prompts()) == 0


# Runs and traces

TICKETS = pd.DataFrame({"id": [f"t{i}" for i in range(6)], "text": [f"The printer in room {i} is broken." for i in range(6)], "product": ["printer"]*6})


def test_the_best_run_is_of_the_same_data(store):
    store.register_prompt("q", "Which product? {text}")
    ask = lambda answer, frame: run_grid([ScriptedModel(lambda messages: answer, name="m")], frame, {"q": "prompt:q"}, split="all", tasks={"product": ["{text}", "{product}"]},
                                         metrics=["exact_match"], n_examples=0).log(store, "prompt")
    other, good, bad = ask("printer", TICKETS.head(3)), ask("printer", TICKETS), ask("vpn", TICKETS)
    row, = store.prompt_versions("q").to_dict("records")
    assert (row["n_runs"], row["run_id"], row["best run_id"], row["product: exact_match"], row["best product: exact_match"]) == (3, bad, good, 0.0, 1.0)
    assert store.prompt_scores("q", 1)["run_id"].tolist() == [bad, good, other]


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_the_best_run_is_best_by_the_table_of_metrics(store, monkeypatch, higher_is_better):
    "Which way is up was written down twice, and a metric of the other table was ranked upside down."
    monkeypatch.setitem(METRICS, "exact_match", replace(METRICS["exact_match"], higher_is_better=higher_is_better))
    store.register_prompt("q", "Which product? {text}")
    ask = lambda answer: run_grid([ScriptedModel(lambda messages: answer, name="m")], TICKETS, {"q": "prompt:q"}, split="all", tasks={"product": ["{text}", "{product}"]},
                                  metrics=["exact_match"]).log(store, "prompt")
    right, wrong = ask("printer"), ask("vpn")
    assert store.prompt_versions("q")["best run_id"].tolist() == [right if higher_is_better else wrong]


def test_a_real_trace_leads_to_its_prompts_and_back(store):
    store.register_prompt("q", "{text}")
    store.register_prompt("q", "Ticket: {text}")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(store.address)
    try:
        with mlflow.start_span("answer", trace_destination=mlflow.entities.trace_location.MlflowExperimentLocation(store.experiment_id)) as span: span.set_inputs({"text": "a"})
    finally: mlflow.set_tracking_uri(before)
    store.link_trace(span.trace_id, [("q", "latest")])
    store.link_trace(span.trace_id, [("q", 2), ("q", 1)])
    assert store.traces_of_prompt("q")["version"].tolist() == [2, 1] and set(store.traces_of_prompt("q")["trace_id"]) == {span.trace_id}
    assert store.traces_of_prompt("q", 2)["state"].tolist() == ["OK"]
    assert json.loads(store.client.get_trace(span.trace_id).info.tags["mlflow.linkedPrompts"]) == [{"name": "q", "version": "2"}, {"name": "q", "version": "1"}]


@pytest.mark.slow
def test_registered_frozen_and_run_headlessly_a_prompt_gives_the_same_completions(store):
    "The circle: what was asked directly, what the workflow notebook asks by alias, and what is asked when the alias has moved."
    first = {"template": "Write the query as JSON. {text}", "schema": {"type": "object"}, "examples": [{"text": "The printer is broken.", "completion": '{"product": "printer"}'}]}
    store.register_prompt("q", first, "with an example")
    store.register_prompt("q", "Query as JSON: {text}", "shorter")
    store.set_prompt_alias("q", "production", 1)
    asked = {"n_examples": 3, "max_new_tokens": 12, "temperature": 0.0, "task": "query"}
    direct = run_grid(["starter"], prompts={"q": first}, **asked)
    done = run_workflow("prompt", {**asked, "prompts": {"q": "prompt:q@production"}})
    record = store.get_run(done.run_id)
    kept = record.frame()
    assert kept["prompt"].tolist() == direct.frame["prompt"].tolist() and kept["completion"].tolist() == direct.frame["completion"].tolist()
    assert kept["structured"].tolist() == direct.frame["structured"].tolist()
    assert (record.outputs["prompts"], record.prompts) == ({"q": "prompt:q@1"}, {"q": {1: ["q"]}})
    store.set_prompt_alias("q", "production", 2)
    moved = run_grid(["starter"], prompts={"q": "prompt:q@production"}, **asked).log(store, "prompt")
    assert store.get_run(moved).prompts == {"q": {2: ["q"]}}
    assert store.get_run(moved).frame()["prompt"].str.startswith("Query as JSON: ").all()
    assert store.runs_of_prompt("q", 1)["run_id"].tolist() == [done.run_id]
    versions = store.prompt_versions("q").set_index("version")
    assert versions["run_id"].tolist() == [moved, done.run_id] and (versions["latency_s"] > 0).all()
    assert versions.loc[1, "query: valid_json"] == record.frame("scores").set_index("metric")["value"]["valid_json"]


def test_pinned_prompts_leave_others_alone(store):
    store.register_prompt("q", "{x}")
    given = {"a": "{x}", "b": {"template": "prompt:q {x}"}, "c": "prompt:q"}
    assert pin_prompts(given) == ({**given, "c": "prompt:q@1"}, {"c": "prompt:q@1"})
    assert pin_prompts(None) == (None, {}) and read_prompts(given)[1].template == "prompt:q {x}"


def test_the_command_lists_compares_and_says_what_is_missing(store, capsys):
    store.register_prompt("q", "Ticket: {text}", "first")
    store.register_prompt("q", "A ticket:\x1b[31m {text}")
    store.set_prompt_alias("q", "production", 1)
    assert main(["prompts", "q", "--diff", "production", "2"]) == 0
    out = capsys.readouterr().out
    assert "[-Ticket-]{+A ticket+}:" in out and "\x1b" not in out
    assert main(["prompts", "q", "--json"]) == 0 and [each["aliases"] for each in json.loads(capsys.readouterr().out)] == [[], ["production"]]
    assert main(["prompts"]) == 0 and "production=1" in capsys.readouterr().out
    assert main(["prompts", "qq"]) == 2 and capsys.readouterr().err.count("\n") == 1
    assert main(["prompts", "--diff", "1", "2"]) == 2

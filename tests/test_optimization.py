"""A better prompt where there is one, no claim where there is none, and held-out examples that nobody saw before the end."""

import hashlib
import json
import subprocess
import sys
from functools import partial

import numpy as np
import pandas as pd
import pytest
from aiohttp import web
from chat_server import Server

from llmops_workbench.completions import ScriptedModel
from llmops_workbench.datasets import make_dataset, save_snapshot
from llmops_workbench.errors import MissingColumnError, MissingDependencyError, ModelNotFoundError, ParameterValueError, UnknownParameterError
from llmops_workbench.optimization import optimize_prompt
from llmops_workbench.params import check_parameters
from llmops_workbench.prompting import run_grid
from llmops_workbench.prompts import Prompt
from llmops_workbench.selection import decide_gain, part_examples
from llmops_workbench.store import open_store

PRODUCTS = ["vpn", "printer", "mail", "laptop"]
WORDS = ["amber", "birch", "cloud", "delta", "ember", "fjord", "grove", "haven", "inlet", "jetty", "knoll", "larch"]
TASKS = {"product": ["Which product is this about?\n\n{text}", "{product}"], "query": ["Write JSON.\n\n{text}", "{query}"]}


def tickets(n=160):
    "Tickets that share few word pairs, so that none nearly repeats another."
    text = [f"My {PRODUCTS[i % 4]} {WORDS[i % 12]}{i} {WORDS[(i*5 + 1) % 12]}{i} {WORDS[(i*7 + 2) % 12]}" for i in range(n)]
    query = [json.dumps({"product": PRODUCTS[i % 4], "priority": ["low", "high"][i % 2]}) for i in range(n)]
    return pd.DataFrame({"id": [f"t{i}" for i in range(n)], "text": text, "product": [PRODUCTS[i % 4] for i in range(n)], "query": query})


class Spy(ScriptedModel):
    "A script that keeps every conversation it was asked."

    def __init__(self, script, name="spy"):
        super().__init__(self.note, name=name, fingerprint=f"spy {name}")
        self.script, self.asked = script, []

    def note(self, messages):
        self.asked.append(messages)
        return self.script(messages)


def product_of(messages):
    return messages[-1]["content"].split("My ")[-1].split()[0]


def chatty(messages):
    "Right from the first, but in a sentence, unless the allowed answers are listed."
    return product_of(messages) if any("exactly one of" in m["content"] for m in messages) else f"It is the {product_of(messages)}."


def guesser(messages, luck=0):
    "Answers that depend on every letter and mean nothing."
    return PRODUCTS[hashlib.sha256(f"{luck}{json.dumps(messages)}".encode()).digest()[0] % 4]


def search(model, frame=None, **more):
    given = dict(dataset=tickets() if frame is None else frame, tasks=TASKS, task="product", n_train=12, n_validation=24, n_test=40, max_new_tokens=12, cache=False, keep_runs=False)
    return optimize_prompt(model, **{**given, **more})


# A real gain

def test_a_better_prompt_is_found_and_declared_real_on_held_out_examples():
    found = search(Spy(chatty))
    assert found.summary["verdict"] == "real" and found.summary["recommended"] == "winner"
    assert (found.summary["original"]["test"], found.summary["winner"]["test"]) == (0.0, 1.0)
    assert found.summary["low"] > 0 and found.summary["p_value"] < 1e-6 and found.summary["n_compared"] == len(found.test)
    assert "Answer with exactly one of: laptop, mail, printer, vpn." in found.prompt.template
    assert any(line.startswith("The gain is real: on ") and line.endswith("Use the new prompt.") for line in found.words())
    other = tickets(400).iloc[200:].assign(id=lambda f: "n" + f["id"])
    grid = run_grid([ScriptedModel(chatty, name="m")], other, {"old": found.original, "new": found.prompt}, split="all", tasks={"product": TASKS["product"]}, metrics=["exact_match"], n_examples=40)
    assert grid.scores.set_index("prompt_name")["value"].to_dict() == {"original": 0.0, "optimized": 1.0}


def test_worked_examples_are_found_where_they_are_what_helps():
    found = search(Spy(lambda messages: product_of(messages) if len(messages) > 3 else "I do not know"))
    assert found.summary["verdict"] == "real" and "examples" in found.summary["winner_name"]
    assert found.prompt.shots or found.prompt.examples


def test_what_helps_only_together_with_another_edit_is_combined():
    def model(messages):
        text = messages[-1]["content"]
        right = [int(hashlib.sha256(text.split("My ")[-1].encode()).digest()[0]) % 4 != 0] if "exactly one of" in text else [False]
        return product_of(messages) if right[0] or ("exactly one of" in text and text.endswith("Answer:")) else "a vpn or so"
    found = search(Spy(model), n_shots=0, max_trials=24)
    assert found.summary["verdict"] == "real" and found.summary["winner_name"] == "allowed answers + answer line"
    assert found.summary["winner"]["test"] == 1.0


def test_records_are_told_their_keys_and_values():
    def model(messages):
        text = messages[-1]["content"]
        record = {"product": product_of(messages), "priority": ["low", "high"][PRODUCTS.index(product_of(messages)) % 2]}
        return json.dumps(record) if "priority is one of: high, low." in text else json.dumps({"product": record["product"]})
    found = search(Spy(model), task="query", max_new_tokens=30)
    assert (found.summary["metric"], found.summary["verdict"]) == ("json_field_f1", "real")
    assert "Answer with a JSON object with the keys product, priority." in found.prompt.messages[-1]["content"].replace("{{", "{") or found.prompt.shots


def test_instructions_of_ones_own_are_tried():
    found = search(Spy(lambda m: product_of(m) if "pretty please" in m[-1]["content"] else "no"), instructions=["Name it.", "Name it {now}, pretty please."], n_shots=0)
    assert found.summary["winner_name"] == "wording 2" and "{{now}}" in found.prompt.template


def test_lower_can_be_better():
    found = search(Spy(chatty), metric="ter", n_shots=0)
    assert found.summary["verdict"] == "real" and found.summary["winner"]["test"] < found.summary["original"]["test"]


# No gain

def test_no_gain_is_claimed_where_none_can_be():
    "Twenty-four searches in which every difference is luck: the level allows one claim in forty, and the original is what is recommended."
    results = [search(ScriptedModel(partial(guesser, luck=seed), name="guesser"), seed=seed, n_train=6, n_shots=2, max_trials=10) for seed in range(24)]
    verdicts = pd.Series([r.summary["verdict"] for r in results]).value_counts()
    assert verdicts.get("real", 0) <= 2, verdicts.to_dict()
    assert verdicts.get("not shown", 0) >= 8, "a search that never finds a lucky winner proves nothing here"
    for r in results:
        if r.summary["verdict"] in ("not shown", "nothing better"):
            assert r.prompt == r.original and any("Keep the original." in line for line in r.words())
    lucky = [r for r in results if r.summary["verdict"] == "not shown"]
    assert np.mean([r.summary["winner"]["validation"] - r.summary["original"]["validation"] for r in lucky]) > 0.08, "luck makes a lead on validation"
    assert abs(np.mean([r.summary["delta"] for r in lucky])) < 0.05, "and none on the held-out examples"


@pytest.mark.parametrize("kind", ["yes or no", "graded"])
def test_the_decision_keeps_its_level(kind):
    "Of 400 pairs of equal systems on 60 examples, no more are called better than the level allows, by three standard errors."
    rng, claims = np.random.default_rng(0), 0
    for draw in range(400):
        pair = (rng.random((2, 60)) < 0.6).astype(float) if kind == "yes or no" else rng.beta(2, 2, (2, 60))
        claims += decide_gain(*pair, "exact_match" if kind == "yes or no" else "rougeL", n_resamples=500, seed=draw)["verdict"] == "better"
    assert claims <= 400*0.025 + 3*np.sqrt(400*0.025*0.975)


def test_a_prompt_that_is_worse_where_it_counts_is_called_worse():
    "A wording that has learnt the validation examples by heart."
    parts = part_examples(tickets(), "product", TASKS, 12, 24, 40)
    known = {text.split("My ")[-1] for text in parts.validation.examples["text"]}
    def model(messages):
        text = messages[-1]["content"]
        return product_of(messages) if ("by heart" in text) == any(k in text for k in known) else "wrong"
    found = search(ScriptedModel(model, name="m"), instructions=["Say it by heart."], n_shots=0)
    assert (found.summary["verdict"], found.summary["recommended"]) == ("worse", "original")
    assert any(line.startswith("The new prompt is worse: ") for line in found.words())


# Held out

def test_held_out_examples_are_asked_once_in_the_end_and_never_shown():
    model = Spy(chatty)
    found = search(model)
    parts = part_examples(tickets(), "product", TASKS, 12, 24, 40)
    marks = {part: set(getattr(parts, part).examples["text"]) for part in ("train", "validation", "test")}
    everything = {part: set(parts.test.held["prompt"]) if part == "held" else None for part in ("held",)}["held"]
    assert not marks["test"] & (marks["train"] | marks["validation"]) and not marks["train"] & marks["validation"]
    asked = [[text for text in tickets()["text"] if text in m[-1]["content"]][0] for m in model.asked]
    shown = [m["content"] for messages in model.asked for m in messages[:-1]]
    last = 2*len(marks["test"])
    assert set(asked[-last:]) == marks["test"] and not set(asked[:-last]) & marks["test"]
    assert all(asked[-last:].count(text) == 2 for text in marks["test"]), "once with the original, once with the winner"
    assert any("My " in text for text in shown), "some trials did show examples"
    held = [prompt.split("\n\n")[-1] for prompt in everything]
    assert not [text for text in shown if any(h in text for h in held)], "neither test nor validation rows are ever shown"
    assert found.summary["n_calls"] == len(model.asked)


def test_near_repeats_of_held_out_examples_are_neither_learnt_from_nor_chosen_by():
    frame = tickets().assign(task="product", prompt=lambda f: f["text"], completion=lambda f: f["product"], split=["train"]*80 + ["validation"]*30 + ["test"]*50)
    frame.loc[:19, "prompt"] = [text + " again" for text in frame["text"][110:130]]
    frame.loc[80:89, "prompt"] = [text + " again" for text in frame["text"][130:140]]
    parts = part_examples(frame, n_train=80, n_validation=30, n_test=50)
    bare = lambda texts: {text.removesuffix(" again") for text in texts}
    test = bare(parts.test.examples["prompt"])
    for part in (parts.train, parts.validation):
        assert not bare(part.examples["prompt"]) & test and not bare(part.pool["prompt"]) & test
    assert len(parts.validation.examples) == 20


def test_prepared_splits_keep_their_sides(workspace):
    frame = tickets().assign(task="product", prompt=lambda f: "Which?\n\n" + f["text"], completion=lambda f: f["product"], split=["train"]*80 + ["validation"]*30 + ["test"]*50)
    found = search(Spy(chatty), save_snapshot(make_dataset(frame, "desk")), tasks=None, task=None)
    assert set(found.test["example_id"]) <= set(frame["id"][110:]) and found.notes == ()
    assert found.summary["verdict"] == "real" and found.original.template == "{prompt}"


# Again, stopped, and kept

def test_equal_seeds_give_equal_results():
    one, two, other = search(Spy(guesser), seed=3), search(Spy(guesser), seed=3), search(Spy(guesser), seed=4)
    same = ["name", "parent", "state", "score", "n", "n_failed", "prompt_tokens", "completion_tokens", "text", "digest"]
    assert one.summary == two.summary and one.outputs == two.outputs
    pd.testing.assert_frame_equal(one.frame[same], two.frame[same])
    pd.testing.assert_frame_equal(one.test, two.test)
    assert one.summary != other.summary


def test_answers_are_not_asked_for_again():
    first, again = Spy(chatty), Spy(chatty)
    a, b = search(first, cache=True), search(again, cache=True)
    assert len(first.asked) == a.summary["n_calls"] - int(a.costs["n_cached"].sum()) and again.asked == []
    assert a.summary == b.summary


def test_a_race_saves_calls():
    model = Spy(guesser)
    found = search(model, n_validation=48, n_shots=1)
    assert "dropped" in found.summary["states"]
    full = len(found.frame)*found.summary["n_validation"]
    assert int(found.frame["n"].sum()) < 0.8*full


@pytest.mark.parametrize("allowed", [4_000, 6_000, 12_000])
def test_a_budget_ends_the_search_and_leaves_enough_for_the_test(allowed):
    model = Spy(chatty)
    found = search(model, most_tokens=allowed)
    assert found.summary["prompt_tokens"] + found.summary["completion_tokens"] <= allowed
    if found.summary["winner_name"] != "original":
        assert found.summary["n_compared"] == found.summary["n_test"], "what the test may take was held back"
    if found.summary["stopped"]:
        assert "budget" in found.summary["stopped"] and any("stopped before its end" in line for line in found.words())


def test_a_budget_that_cannot_pay_for_the_test_is_refused_before_the_first_call():
    model = Spy(chatty)
    with pytest.raises(ParameterValueError, match="most_tokens is 300.*The held-out test may take"):
        search(model, most_tokens=300)
    assert model.asked == []


def test_a_stop_keeps_what_was_found():
    model, done = Spy(chatty), []
    found = search(model, should_stop=lambda: len(model.asked) > 120, on_progress=lambda *told: done.append(told))
    assert len(model.asked) <= 122 and found.summary["stopped"] == "stopped before it was asked"
    assert found.summary["verdict"] in ("not tested", "nothing better") and found.prompt == found.original
    assert all(a <= b for a, b, _ in done) and done[-1][0] == done[-1][1]


def test_every_trial_is_a_run_below_the_search(workspace):
    found = search(Spy(chatty), keep_runs=True)
    store = open_store()
    runs = store.list_runs("optimize_prompt_trial", limit=1000)
    assert len(runs) == len(found.frame) and set(runs["run_id"]) == set(found.frame["run_id"]) and set(runs["status"]) == {"FINISHED"}
    for row in found.frame.itertuples():
        run = store.get_run(row.run_id)
        assert run.tags["llmops.parent"] == found.run_id and run.params["trial"] == row.name and run.text("prompt.txt") == row.text
        assert run.summary["state"] == row.state and run.summary["digest"] == row.digest and run.summary["validation"]["n"] == row.n
        assert {"n_calls", "prompt_tokens", "completion_tokens", "cost", "seconds"} <= set(run.metrics)
    parent = store.get_run(found.run_id)
    assert parent.stage == "optimize_prompt" and parent.summary["verdict"] == "real" and parent.frame("test")["winner_value"].mean() == 1.0
    assert found.log() == found.run_id, "logging it again adds no run"
    assert store.list_runs()["run_id"].tolist() == [found.run_id] and len(store.list_runs(parent=found.run_id[:12])) == len(found.frame)


def test_the_run_of_a_workflow_is_the_parent(workspace, monkeypatch):
    store = open_store()
    with store.start_run("optimize") as outer:
        monkeypatch.setenv("LLMOPS_RUN_ID", outer.run_id)
        found = search(Spy(chatty), keep_runs=True, n_shots=0)
    assert found.run_id == outer.run_id and store.get_run(found.frame["run_id"][0]).tags["llmops.parent"] == outer.run_id


def test_a_trial_that_cannot_be_asked_is_kept_with_its_reason(workspace):
    def model(messages):
        if "pretty please" in messages[-1]["content"]:
            raise TimeoutError("no reply in 30 s")
        return chatty(messages)
    found = search(Spy(model), instructions=["Pretty please"[0].lower() + "retty please."], n_shots=0, keep_runs=True)
    failed = found.frame[found.frame["state"] == "failed"]
    assert failed["name"].tolist() == ["wording 1"] and failed["error"].tolist() == ["no reply in 30 s"] and failed["score"].isna().all()
    run = open_store().get_run(failed["run_id"].iloc[0])
    assert (run.status, run.error) == ("FAILED", "no reply in 30 s")
    assert found.summary["verdict"] == "real", "the others went on"
    assert any("1 trial could not be asked" in line for line in found.words())


def test_an_error_ends_all_runs(workspace, monkeypatch):
    def broken(*args, **more):
        raise RuntimeError("out of paper")
    monkeypatch.setattr("llmops_workbench.optimization.race", broken)
    with pytest.raises(RuntimeError, match="out of paper"):
        search(Spy(chatty), keep_runs=True)
    store = open_store()
    runs = pd.concat([store.list_runs("optimize_prompt"), store.list_runs("optimize_prompt_trial")])
    assert set(runs["status"]) == {"FAILED"} and set(runs["error"]) == {"out of paper"}


def test_a_model_that_never_answers_is_said_so():
    def dead(messages):
        raise ConnectionError("nobody is there")
    found = search(Spy(dead))
    assert found.summary["verdict"] == "nothing better" and found.summary["original"]["validation"] is None
    assert any("brought no answer" in line for line in found.words()) and found.summary["states"]["failed"] > 3


def test_a_prompt_of_the_store_is_named_by_its_version(workspace):
    open_store().register_prompt("which", "Which product?\n\n{text}")
    found = search(Spy(chatty), prompt="prompt:which", keep_runs=True, n_shots=0)
    assert found.outputs["prompts"] == {"original": "prompt:which@1"}
    assert open_store().get_run(found.run_id).prompts == {"which": {1: ["original"]}}
    version = open_store().register_prompt("which", found.prompt, message="allowed answers listed")
    assert open_store().load_prompt("which", version).template == found.prompt.template


def test_a_result_is_shown_without_a_script(workspace):
    found = search(Spy(lambda m: "<script>alert(1)</script>" if "exactly" in m[-1]["content"] else chatty(m)), instructions=["<script>alert(2)</script>"], n_shots=0)
    page = found._repr_mimebundle_()["text/html"]
    assert "<script" not in page.lower() and "&lt;script&gt;" in page


# Reflection

class Reflector(Server):
    "An OpenAI-compatible endpoint that reflects: it reads the right answers and lists them, or fails on request."

    def __init__(self):
        super().__init__()
        self.broken = False

    async def reply(self, request):
        body = await request.json()
        self.bodies.append(body)
        if self.broken:
            return web.json_response({"error": {"message": "out of order"}}, status=400)
        text = body["messages"][-1]["content"]
        labels = sorted({line.strip() for part in text.split("The right answer is:")[1:] for line in part.splitlines()[:2] if line.strip() in PRODUCTS})
        content = f"```\nName the product. Answer with exactly one of: {', '.join(labels)}.\n```"
        return web.json_response({"choices": [{"message": {"content": content}, "finish_reason": "stop"}], "usage": {"prompt_tokens": len(text)//4, "completion_tokens": 20}})


@pytest.fixture
def reflector():
    server = Reflector()
    yield server
    server.close()


def needs_gepa():
    pytest.importorskip("gepa", reason="needs the extra optimize: pip install 'llmops_workbench[optimize]'")


def test_gepa_end_to_end_through_an_endpoint(workspace, reflector):
    needs_gepa()
    model = Spy(chatty)
    found = search(model, method="gepa", reflection_model=f"{reflector.base}/v1#thinker", max_trials=4, keep_runs=True)
    assert found.summary["verdict"] == "real" and found.summary["winner_name"].startswith("reflection")
    assert (found.summary["original"]["test"], found.summary["winner"]["test"]) == (0.0, 1.0)
    assert "The right answer is:" in reflector.bodies[0]["messages"][-1]["content"] and reflector.bodies[0]["model"] == "thinker"
    assert found.costs.set_index("what").loc["reflection", "n_calls"] == len(reflector.bodies)
    test = set(part_examples(tickets(), "product", TASKS, 12, 24, 40).test.examples["text"])
    assert not [body for body in reflector.bodies if any(text in body["messages"][-1]["content"] for text in test)], "no held-out example is reflected on"
    runs = open_store().list_runs("optimize_prompt_trial")
    assert len(runs) == len(found.frame) and {"winner"} <= set(found.frame["state"])
    assert found.prompt.template.endswith("\n\n{text}"), "the part with the data stays"


def test_gepa_gives_equal_results_for_equal_seeds(reflector):
    needs_gepa()
    one, two = (search(Spy(guesser), method="gepa", reflection_model=f"{reflector.base}/v1#thinker", max_trials=4, seed=1) for _ in range(2))
    assert one.summary == two.summary and one.frame["digest"].tolist() == two.frame["digest"].tolist()


def test_a_reflection_that_fails_is_a_failed_trial(workspace, reflector):
    needs_gepa()
    reflector.broken = True
    found = search(Spy(chatty), method="gepa", reflection_model=f"{reflector.base}/v1#thinker", max_trials=2, keep_runs=True)
    assert found.summary["verdict"] == "nothing better" and found.summary["states"]["failed"] >= 2
    assert found.frame["error"].str.contains("out of order").sum() == found.summary["states"]["failed"]
    assert "FAILED" in set(open_store().list_runs("optimize_prompt_trial")["status"])


def test_gepa_keeps_to_the_budget_and_to_a_stop(reflector):
    needs_gepa()
    given = dict(method="gepa", reflection_model=ScriptedModel(lambda m: "```\nTry again.\n```", name="thinker"), max_trials=20)
    found = search(Spy(guesser), **given, most_tokens=6_000)
    assert found.summary["prompt_tokens"] + found.summary["completion_tokens"] <= 6_000
    model = Spy(guesser)
    search(model, **given, should_stop=lambda: len(model.asked) > 40)
    assert len(model.asked) <= 42


def test_gepa_runs_without_network_clients():
    needs_gepa()
    code = "import gepa, sys; print([m for m in ('litellm', 'wandb', 'mlflow', 'openai', 'requests', 'dspy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_without_gepa_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gepa", None)
    with pytest.raises(MissingDependencyError, match=r"method='gepa' needs `gepa`.*pip install 'llmops_workbench\[optimize\]'"):
        search(Spy(chatty), method="gepa", reflection_model="fake:echo")


# What cannot be

@pytest.mark.parametrize("given,kind,says", [
    ({"metric": "exact"}, UnknownParameterError, "There is no metric 'exact'.*Did you mean 'exact_match'"),
    ({"metric": "json_match"}, ParameterValueError, "metric is 'json_match', which does not suit the answers of 'product'"),
    ({"metric": "length_ratio"}, ParameterValueError, "It is one metric that has a best value"),
    ({"metric": "rouge"}, ParameterValueError, "It is one metric"),
    ({"max_trials": 0}, ParameterValueError, "'max_trials' was given 0"),
    ({"n_test": 3}, ParameterValueError, "'n_test' was given 3"),
    ({"method": "dspy"}, ParameterValueError, "'local' or 'gepa'"),
    ({"method": "gepa"}, ParameterValueError, "reflection_model is None"),
    ({"reflection_model": "fake:echo"}, ParameterValueError, "reflection_model is given and method is 'local'"),
    ({"method": "gepa", "reflection_model": "fake:echo", "instructions": ["x"]}, ParameterValueError, "instructions is given and method is 'gepa'"),
    ({"instructions": [" "]}, ParameterValueError, "An instruction is a text"),
    ({"prompt": "{body}"}, MissingColumnError, "has no column 'body'"),
    ({"prompt": "no field"}, ParameterValueError, "with at least one {column}"),
    ({"prompt": Prompt("p", "{text}", task="summary")}, ParameterValueError, "The prompt is for the task 'summary'"),
    ({"task": "products"}, ParameterValueError, "Did you mean 'product'"),
    ({"dataset": tickets(10)}, ParameterValueError, "has 10 examples of the task 'product'"),
    ({"model": "no-such-model"}, ModelNotFoundError, "no-such-model"),
    ({"method": "gepa", "reflection_model": "no-such-model"}, ModelNotFoundError, "no-such-model"),
    ({"most_cost": 1.0, "model": "http://127.0.0.1:9/v1#unpriced"}, ParameterValueError, "no price of")])
def test_what_cannot_be_searched_stops_before_the_first_call(workspace, given, kind, says):
    model = Spy(chatty)
    with pytest.raises(kind, match=says) as caught:
        search(**{"model": model, **given})
    assert model.asked == [] and "\n" not in str(caught.value)


def test_the_parameters_can_be_written_down():
    values = {"prompt": {"template": "{text}"}, "tasks": TASKS, "instructions": ["a"], "most_cost": 1.5}
    assert check_parameters(optimize_prompt, values) == values


# The real thing

@pytest.mark.slow
def test_the_starter_model_on_the_help_desk(workspace):
    found = optimize_prompt("starter", n_train=6, n_validation=12, n_test=12, max_trials=3, n_shots=1, keep_runs=True)
    assert found.summary["task"] == "query" and found.summary["metric"] == "json_field_f1"
    assert found.summary["verdict"] in ("real", "not shown", "worse", "nothing better")
    assert found.summary["original"]["validation"] is not None and len(found.frame) >= 2
    assert found.prompt in (found.original, found.winner) and found.words()

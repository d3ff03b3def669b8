"""Grids: the same examples for every model, nothing dropped, nothing leaked, nothing evaluated."""

import json
import weakref

import numpy as np
import pandas as pd
import pytest
from tiny_models import save_model

from llmops_workbench.completions import ScriptedModel
from llmops_workbench.datasets import make_dataset, read_dataset, save_snapshot
from llmops_workbench.errors import MissingColumnError, ModelNotFoundError, ParameterValueError, SourceNotFoundError, UnknownParameterError
from llmops_workbench.matrices import side_by_side, sum_systems, with_outcomes
from llmops_workbench.metrics import score
from llmops_workbench.params import parameters_in_cell, parameters_cell, parameters_of
from llmops_workbench.prompting import RunningGrid, collect_grid, find_grid, launch_grid, plan_grid, read_order, run_grid
from llmops_workbench.prompts import Prompt
from llmops_workbench.questions import choose_shots, collect_questions
from llmops_workbench.templates import fill, find_role_markers, render


def tickets(n=60):
    products = ["vpn", "printer", "mail", "laptop"]
    return pd.DataFrame({"id": [f"t{i}" for i in range(n)], "text": [f"The {products[i % 4]} in room {i} is broken." for i in range(n)],
                         "product": [products[i % 4] for i in range(n)],
                         "query": [json.dumps({"product": products[i % 4], "room": i}) for i in range(n)]})


TASKS = {"product": ["Which product? {text}", "{product}"], "query": ["Write JSON. {text}", "{query}"]}


def reader(name="reader"):
    def answer(messages):
        words = messages[-1]["content"].split("The ")[-1].split()
        return json.dumps({"product": words[0], "room": int(words[3])}) if "JSON" in messages[-1]["content"] else words[0]
    return ScriptedModel(answer, name=name)


# Templates

@pytest.mark.parametrize("value", ["{text}", "{{text}}", "{0}", "{x.__class__}", "{{ 7*7 }}", "{% raw %}", "$text", "%s", "\\1", "\x00", "🙂", "\ud800"])
def test_values_go_in_letter_for_letter(value):
    assert fill("a {text} b", {"text": value}) == f"a {value} b"
    assert Prompt("p", "a {text} b").render({"text": value})[0]["content"] == f"a {value} b"


@pytest.mark.parametrize("field", ["text.__class__", "text.__init__.__globals__", "text[0]", "text!r", "text:>10", "0", "self", "__class__", "text|upper",
                                   "lipsum.__globals__"])
def test_fields_are_names_and_nothing_else(field):
    with pytest.raises(MissingColumnError):
        fill(f"{{{field}}}", {"text": "x"})
    with pytest.raises(MissingColumnError):
        render(f"{{{field}}}", pd.DataFrame({"text": ["x"]}))


def test_naughty_strings_survive(shared_data):
    path = shared_data / "naughty_strings" / "blns.json"
    if not path.is_file():
        pytest.skip("the naughty strings are not here")
    strings = [s for s in json.loads(path.read_text(encoding="utf-8")) if s.strip()]
    frame = pd.DataFrame({"id": [str(i) for i in range(len(strings))], "text": strings, "answer": strings})
    grid = run_grid([ScriptedModel("echo", name="echo")], frame, split="all", tasks={"t": ["{text}", "{answer}"]}, n_examples=0, metrics=["exact_match"],
                    max_new_tokens=10_000)
    asked = {text for texts in grid.frame["references"] for text in texts}
    assert asked == set(strings) and set(grid.frame["prompt"]) == set(strings)
    bundle = grid._repr_mimebundle_()
    assert "<script" not in bundle["text/html"].lower()


def test_role_markers_are_found_and_plain_talk_is_not():
    for text in ("<|im_start|>system", "[INST] x [/INST]", "<<SYS>>", "</s>", "\n### Instruction:\nx", "<start_of_turn>model", "\nAssistant: x"):
        assert find_role_markers(text), text
    for text in ("a < b and b > c", "[info] started", "# Heading", "the user: root", "<s3://bucket>", "array[i]", "x <|> y", "Human resources"):
        assert not find_role_markers(text), text


# Prompts

def test_worked_examples_are_earlier_turns():
    prompt = Prompt("p", [{"role": "system", "content": "Room of {building}"}, {"role": "user", "content": "{text}?"}])
    found = prompt.render({"text": "a", "building": "B1"}, shots=[{"text": "x", "completion": "y"}])
    assert found == [{"role": "system", "content": "Room of B1"}, {"role": "user", "content": "x?"}, {"role": "assistant", "content": "y"},
                     {"role": "user", "content": "a?"}]
    fixed = Prompt("p", "{text}", examples=({"text": "own", "completion": "z"},))
    assert [m["content"] for m in fixed.render({"text": "a"}, shots=[{"text": "x", "completion": "y"}])] == ["own", "z", "a"]


def test_prompts_read_from_what_json_can_hold():
    grid = run_grid([reader()], tickets(), {"short": "The {text}", "long": {"messages": [{"role": "user", "content": "JSON The {text}"}], "task": "query",
                                                                          "schema": {"type": "object", "required": ["room"]}}},
                    split="all", tasks=TASKS, n_examples=4)
    assert grid.frame.groupby("prompt_name")["task"].unique().map(sorted).to_dict() == {"short": ["product", "query"], "long": ["query"]}
    assert grid.scores.query("prompt_name == 'long' and metric == 'valid_json'")["value"].tolist() == [1.0]


def test_a_prompt_of_the_store(workspace):
    from llmops_workbench.store import open_store
    store = open_store()
    store.register_prompt("which", "Product of: {text}")
    grid = run_grid([reader()], tickets(), {"stored": "prompt:which"}, split="all", tasks={"product": TASKS["product"]}, n_examples=2)
    assert grid.frame["prompt"].str.startswith("Product of: The ").all()
    with pytest.raises(SourceNotFoundError):
        run_grid([reader()], tickets(), {"stored": "prompt:other"}, split="all", tasks=TASKS, n_examples=2)


def test_a_prompt_of_the_store_is_asked_as_it_was_stored(workspace):
    "A version is everything that decides the answers; its sampling was kept and never used."
    from llmops_workbench.store import open_store
    asked = []

    class Spy(ScriptedModel):
        def complete(self, conversations, sampling):
            asked.append((conversations[0][-1]["content"].split()[0], sampling.temperature, sampling.max_new_tokens, sampling.stop))
            return super().complete(conversations, sampling)
    open_store().register_prompt("hot", {"template": "Hot: {text}", "sampling": {"temperature": 0.7, "max_new_tokens": 7, "stop": ["\n"]}, "model": "other"})
    given = dict(models=[Spy("echo", name="echo")], dataset=tickets(), prompts={"hot": "prompt:hot", "plain": "Plain: {text}"}, split="all", tasks={"p": TASKS["product"]}, n_examples=2)
    grid = run_grid(**given)
    assert asked == [("Hot:", 0.7, 7, ("\n",)), ("Plain:", 0.0, 96, ())]
    assert open_store().get_run(grid.log(stage="prompt")).outputs["samplings"]["hot"]["temperature"] == 0.7
    assert any(line.startswith("hot was asked with the sampling it was stored with: ") for line in grid.words())
    assert plan_grid(**given).set_index("prompt_name")["most_completion_tokens"].to_dict() == {"hot": 2*7, "plain": 2*96}
    asked.clear()
    run_grid(**given, max_new_tokens=5)
    assert asked[0] == ("Hot:", 0.7, 5, ("\n",)), "what is said in this grid comes first"
    asked.clear()
    assert "samplings" not in run_grid(**given, samplings={"cold": {"temperature": 0.1}}).outputs
    assert asked == [("Hot:", 0.1, 96, ())]
    open_store().register_prompt("odd", {"template": "{text}", "sampling": {"temprature": 1}})
    with pytest.raises(ParameterValueError, match="sampling 'prompt:odd@1' has the part 'temprature'.*temperature"): run_grid(**{**given, "prompts": {"a": "prompt:odd"}})


# Questions

def test_one_example_for_one_question():
    "As in data to text: several people described the same record, and all of them are right."
    frame = pd.DataFrame({"mr": ["a", "b", "a", "a"], "ref": ["x1", "y", "x2", "x1"]})
    found = collect_questions(frame, "all", 0, None, {"say": ["{mr}", "{ref}"]}, None, True, 0).examples
    assert dict(zip(found["prompt"], found["references"])) == {"a": ["x1", "x2"], "b": ["y"]}
    grid = run_grid([ScriptedModel(["x2", "y"])], frame, split="all", tasks={"say": ["{mr}", "{ref}"]}, metrics=["exact_match", "bleu"])
    assert set(grid.scores["n"]) == {2}
    assert grid.scores.set_index("metric")["signature"]["bleu"].startswith("nrefs:var")


def test_worked_examples_share_nothing_with_what_is_asked():
    frame = tickets(200)
    frame.loc[100:, "text"] = frame["text"][:100].to_numpy()
    found = collect_questions(frame, "test", 0, None, TASKS, None, True, 0)
    assert len(found.pool) and not set(found.pool["prompt"]) & set(found.examples["prompt"])
    assert set(found.pool["split"]) == {"train"}
    grid = run_grid([reader()], frame, tasks=TASKS, n_shots=2, n_examples=5)
    for row in grid.frame.itertuples():
        *shots, question = row.prompt.split("[user]\n")[1:]
        assert len(shots) == 2 and question not in [s.split("\n\n[assistant]")[0] for s in shots]


def test_worked_examples_for_a_split_that_stands_alone():
    frame = pd.DataFrame({"id": ["a", "b"], "task": "t", "prompt": ["p", "q"], "completion": ["x", "y"], "split": ["train", "test"]})
    test, train = (save_snapshot(make_dataset(frame[frame["split"] == s], f"desk.{s}")) for s in ("test", "train"))
    with pytest.raises(ParameterValueError, match="Name a dataset in shots_from"):
        run_grid([reader()], test, n_shots=1)
    grid = run_grid([ScriptedModel("echo", name="echo")], test, n_shots=1, shots_from=train)
    assert grid.frame["prompt"][0] == "[user]\np\n\n[assistant]\nx\n\n[user]\nq"


def test_a_row_with_a_wrong_label_is_left_out_and_counted():
    data = read_dataset("helpdesk")
    noisy = int(data.truth["label_noise"].sum())
    assert noisy > 0
    every = collect_questions(data, "all", 0, "query", None, None, True, 0)
    assert every.left_out["wrong_label"] == noisy
    assert not set(every.examples["example_id"].str.removesuffix("/query")) & set(data.truth["id"][data.truth["label_noise"]])
    assert collect_questions(data, "all", 0, "query", None, None, False, 0).left_out["wrong_label"] == 0


def test_prepared_splits_keep_their_own_prompts_and_marks():
    from llmops_workbench.preparation import prepare
    prepared = prepare(tickets(120).assign(text=lambda f: f["text"]), tasks=TASKS, name="desk")
    grid = run_grid([reader()], prepared.outputs["test"], n_examples=0)
    wanted = prepared.test
    assert set(grid.frame["example_id"]) == set(wanted["id"])
    assert set(grid.frame["prompt"]) == set(wanted["prompt"])
    assert grid.summary["scores"]["reader"]["query"]["json_match"] == 1.0 and grid.summary["scores"]["reader"]["product"]["rougeL"] == 1.0


def test_drawn_examples_are_stable():
    frame, pick = tickets(80), lambda f, seed=0: set(collect_questions(f, "all", 10, None, TASKS, None, True, seed).examples["example_id"])
    assert pick(frame) == pick(frame.sample(frac=1, random_state=1)) and len(pick(frame)) == 20
    assert pick(frame) != pick(frame, 1)
    assert len(pick(frame) & pick(tickets(88))) >= 16


def test_shots_repeat_with_their_seed():
    def shown(frame, seed):
        questions = collect_questions(frame, "test", 0, None, TASKS, None, True, 0)
        return {e: [row["id"] for row in rows] for e, rows in zip(questions.examples["example_id"], choose_shots(questions, {"rule": "random", "n": 3, "seed": seed}))}
    first = shown(tickets(), 0)
    assert first == shown(tickets().sample(frac=1, random_state=0), 0) != shown(tickets(), 1)
    assert {len(rows) for rows in first.values()} == {3} and {e.split("/")[1] for e in first} == {"product", "query"}


# Grids

def test_every_call_is_a_row():
    grid = run_grid([reader("a"), reader("b")], tickets(), {"x": "The {text}", "y": "JSON The {text}"}, split="all", tasks=TASKS, n_examples=5, repeats=2)
    assert len(grid.frame) == 2*2*2*5*2 == grid.summary["n_calls"]
    keys = ["example_id", "model", "prompt_name", "sampling", "repeat"]
    assert not grid.frame.duplicated(keys).any()
    assert list(grid.frame.columns[:10]) == ["example_id", "task", "model", "prompt_name", "sampling", "repeat", "question", "prompt", "completion", "references"]
    assert {"prompt_tokens", "completion_tokens", "latency_s", "cost", "error", "json_match", "rougeL"} <= set(grid.frame)


def test_scores_are_those_of_score():
    grid = run_grid([ScriptedModel("echo", name="echo")], tickets(), split="all", tasks=TASKS, n_examples=0, metrics=["bleu", "rouge", "json_match"])
    for task, rows in grid.frame.groupby("task"):
        names = ["json_match"] if task == "query" else ["bleu", "rouge1", "rouge2", "rougeL"]
        wanted = score(rows["completion"], rows["references"], ["bleu", "rouge"] + (["json_match"] if task == "query" else []))
        for name in names:
            assert grid.summary["scores"]["echo"][task][name] == wanted.summary[name]
            np.testing.assert_array_equal(rows[name], wanted.frame[name])


def test_failed_calls_are_missing_not_wrong():
    def moody(messages):
        if "room 3" in messages[-1]["content"]:
            raise TimeoutError("no reply in 30 s")
        return "vpn"
    grid = run_grid([ScriptedModel(moody, name="m")], tickets(), split="all", tasks={"p": TASKS["product"]}, n_examples=0, metrics=["exact_match"])
    failed = grid.frame["error"] != ""
    assert failed.sum() == 11 == grid.summary["n_failed"] == grid.scores["n_missing"][0]
    assert grid.frame.loc[failed, "exact_match"].isna().all() and grid.frame.loc[failed, "completion"].isna().all()
    assert grid.summary["scores"]["m"]["p"]["exact_match"] == grid.frame.loc[~failed, "exact_match"].mean()


def test_a_model_that_answers_nothing_has_no_score():
    grid = run_grid([ScriptedModel([], name="mute")], tickets(), split="all", tasks={"p": TASKS["product"]}, n_examples=3)
    assert set(grid.summary["scores"]["mute"]["p"].values()) == {None} and grid.summary["n_failed"] == 3
    json.dumps(grid.summary, allow_nan=False)
    assert "mute" not in " ".join(grid.words()[1:])
    grid._repr_mimebundle_()


def test_grids_repeat(tmp_path):
    model = str(save_model(tmp_path / "tiny"))
    again = [run_grid([model], tickets(), split="all", tasks=TASKS, n_examples=6, temperature=0.8, repeats=2, seed=4, cache=False) for _ in range(2)]
    assert again[0].summary == again[1].summary
    drop = ["latency_s"]
    pd.testing.assert_frame_equal(again[0].frame.drop(columns=drop), again[1].frame.drop(columns=drop))
    by_repeat = again[0].frame.groupby("repeat")["completion"].agg(list)
    assert by_repeat[0] != by_repeat[1], "a repeat is another sample"


def test_a_schema_goes_to_every_model_and_is_checked_for_all():
    asked = []

    class Strict(ScriptedModel):
        def complete(self, conversations, sampling):
            asked.append(sampling.schema)
            return super().complete(conversations, sampling)
    schema = {"type": "object", "required": ["room"]}
    prompts = {"p": {"template": "JSON The {text}", "schema": schema}}
    tasks = {"query": TASKS["query"]}
    run_grid([Strict(lambda m: "{}", name="s")], tickets(), prompts, split="all", tasks=tasks, n_examples=2)
    assert asked == [schema]
    loose = run_grid([ScriptedModel(lambda m: "{}", name="l")], tickets(), prompts, split="all", tasks=tasks, n_examples=2)
    assert loose.summary["scores"]["l"]["query"]["valid_json"] == 0.0
    assert set(loose.frame["structured"]) == {"invalid"} and set(loose.frame["error"]) == {""}


def test_a_grid_that_was_run_before_asks_only_what_is_new(tmp_path):
    "The cache holds every repeat of every sampling, and an answer out of it scores the same."
    model = str(save_model(tmp_path / "tiny"))
    given = dict(models=[model], dataset=tickets(), split="all", tasks=TASKS, n_examples=3, repeats=2, max_new_tokens=6, dtype="float32",
                 samplings={"cold": {}, "hot": {"temperature": 1.0}})
    first, second = run_grid(prompts={"a": "The {text}"}, **given), run_grid(prompts={"a": "The {text}", "b": "Which? {text}"}, **given)
    assert not first.frame["cached"].any() and second.frame.groupby("prompt_name")["cached"].all().to_dict() == {"a": True, "b": False}
    old = second.frame[second.frame["prompt_name"] == "a"].reset_index(drop=True)
    assert old["completion"].tolist() == first.frame["completion"].tolist()
    assert second.costs.query("prompt_name == 'a'")["n_cached"].sum() == len(old)


def test_a_budget_ends_a_grid_and_every_call_is_still_a_row():
    grid = run_grid([reader()], tickets(), split="all", tasks={"p": TASKS["product"]}, n_examples=0, most_tokens=400, max_new_tokens=8, cache=False)
    asked = grid.frame["error"] == ""
    assert len(grid.frame) == 60 and 0 < asked.sum() < 60
    assert grid.frame.loc[asked, ["prompt_tokens", "completion_tokens"]].to_numpy().sum() <= 400
    assert grid.frame.loc[~asked, "error"].str.startswith("the budget of 400 tokens is used up").all()


def test_a_job_streams_its_answers_and_gives_the_grid_of_the_process(workspace):
    given = dict(models=["fake:upper"], dataset=tickets(), split="all", tasks=TASKS, n_examples=4, repeats=2, metrics=["exact_match", "json_match"],
                 assertions=[{"max_words": 9}])
    job = launch_grid(**given)
    grid = collect_grid(job)
    assert grid.summary == run_grid(**given).summary and find_grid(**given).job_id == job.job_id
    assert find_grid(**job.params).job_id == job.job_id, "a panel that found the job knows its data by name only"

    # Read in two parts, as somebody who watches does; every answer is scored as in the end.
    events, running = job.events(), RunningGrid(read_order(job.params))
    assert sorted(event["row"] for event in events) == list(range(len(grid.frame)))
    assert running.take(events[:5]) and running.frame["completion"].notna().sum() == 5 and not running.take(events[:5])
    half = with_outcomes(running.frame, running.scores)
    assert half["outcome"].value_counts()["pending"] == len(grid.frame) - 5
    running.take(events)
    shared = [c for c in running.frame if c in grid.frame]
    assert {"completion", "all_passed", "exact_match", "json_match"} <= set(shared)
    pd.testing.assert_frame_equal(running.frame[shared], grid.frame[shared], check_dtype=False)
    whole, final = with_outcomes(running.frame, running.scores), with_outcomes(grid.frame, grid.scores)
    assert whole["outcome"].tolist() == final["outcome"].tolist() and running.outputs == grid.outputs


@pytest.mark.parametrize("use,n_loaded", [(run_grid, 3), (plan_grid, 0)])
def test_one_model_is_in_memory_at_a_time(use, n_loaded, tmp_path, monkeypatch):
    "The model that had answered stayed until the next was loaded, and the last one beside the judge: twice the memory. A plan needs no weights at all."
    from llmops_workbench import judges, models, prompting
    alive, most = weakref.WeakSet(), []

    def load(*given, **options):
        most.append(len(alive))
        model = models.load_model(*given, **options)
        for part in (model, model.network): alive.add(part)
        return model
    for module in (prompting, judges): monkeypatch.setattr(module, "load_model", load)
    names = [str(save_model(tmp_path / name, seed=seed)) for seed, name in enumerate("abc")]
    use(models=names[:2], dataset=tickets(), split="all", tasks={"p": TASKS["product"]}, n_examples=2, max_new_tokens=4, cache=False,
        judge={"model": names[2], "rubric": {"question": "Does it help?"}}, on_progress=lambda *told: None)
    assert most == [0]*n_loaded and not alive


def test_progress_covers_all_models():
    seen = []
    run_grid([reader("a"), reader("b")], tickets(), split="all", tasks=TASKS, n_examples=3, on_progress=lambda *a: seen.append(a))
    assert [s[:2] for s in seen] == [(i + 1, 12) for i in range(12)] and [s[2] for s in seen] == ["a"]*6 + ["b"]*6


def test_nothing_is_asked_before_all_is_checked():
    asked = []
    spy = ScriptedModel(lambda m: asked.append(m) or "x", name="spy")
    common = dict(dataset=tickets(), split="all", tasks=TASKS, n_examples=2)
    for error, changed in [(ModelNotFoundError, {"models": [spy, "no-such-model"]}), (UnknownParameterError, {"metrics": ["blue"]}),
                           (MissingColumnError, {"prompts": {"a": "{text}", "b": "{subject}"}}), (ParameterValueError, {"prompts": {}}),
                           (ParameterValueError, {"prompts": {"a": "no field"}}), (ParameterValueError, {"repeats": 0}), (ParameterValueError, {"n_examples": -1}),
                           (ParameterValueError, {"split": "dev"}), (ParameterValueError, {"task": "other"}), (ParameterValueError, {"models": []}),
                           (ParameterValueError, {"models": [spy, spy]}), (SourceNotFoundError, {"dataset": "lost.csv"}),
                           (ParameterValueError, {"prompts": {"a": {"template": "{text}", "task": "other"}}}), (ParameterValueError, {"temperature": -1.0}),
                           (MissingColumnError, {"tasks": {"p": ["{texd}", "{product}"]}}), (MissingColumnError, {"tasks": None})]:
        with pytest.raises(error) as caught:
            run_grid(**{"models": [spy], **common, **changed})
        assert "\n" not in str(caught.value), changed
    assert asked == []


@pytest.mark.parametrize("given", [{"models": ["reader", "http://127.0.0.1:9/v1#m"]}, {"models": ["reader"], "judge": {"model": "http://127.0.0.1:9/v1#m", "rubric": {"question": "?"}}}])
def test_a_missing_price_stops_a_grid_before_its_first_call(given):
    "With a limit on money the first model was asked and paid before the second, or the judge, was refused."
    asked = []
    spy = ScriptedModel(lambda m: asked.append(m) or "x", name="spy")
    with pytest.raises(ParameterValueError, match="no price of .*127.0.0.1"):
        run_grid(**{**given, "models": [spy, *given["models"][1:]]}, dataset=tickets(), split="all", tasks=TASKS, n_examples=2, most_cost=1.0)
    assert asked == []


def test_a_job_takes_no_judge_that_lives_here():
    from llmops_workbench.prompting import launch_grid
    with pytest.raises(ParameterValueError, match="The model 'judge' exists only in this process"):
        launch_grid(models=["fake:echo"], dataset=tickets(), split="all", tasks=TASKS, n_examples=2, judge={"model": ScriptedModel("echo", name="judge"), "rubric": {"question": "?"}})


def test_the_plan_counts_what_the_run_does():
    given = dict(models=[reader()], dataset=tickets(), prompts={"x": "The {text}", "y": "JSON The {text}"}, split="all", tasks=TASKS, n_examples=7, repeats=3,
                 max_new_tokens=5)
    plan, grid = plan_grid(**given), run_grid(**given)
    assert plan["n_calls"].sum() == len(grid.frame)
    assert (plan["most_completion_tokens"] == plan["n_calls"]*5).all() and plan["most_cost"].sum() == 0
    with pytest.raises(UnknownParameterError):
        plan_grid(**given, repeat=1)


def test_a_plan_counts_the_calls_of_the_judge():
    "It said what the answers cost, and the judge read every one of them on top."
    asked = []
    judge = ScriptedModel(lambda messages: asked.append(messages) or '{"reason": "It names the product.", "score": 4}', name="judge")
    given = dict(models=[reader("a"), reader("b")], dataset=tickets(), prompts={"x": "The {text}", "y": "JSON The {text}"}, split="all", tasks=TASKS, n_examples=3, repeats=2,
                 max_new_tokens=5, samplings={"short": {}, "long": {"max_new_tokens": 20}}, judge={"model": judge, "rubric": {"question": "Does it help?", "scale": [1, 5]}}, cache=False)
    plan, grid = plan_grid(**given), run_grid(**given)
    assert asked and plan["n_calls"].sum() == 2*len(grid.frame) == 2*len(asked)
    assert plan.groupby("role")["n_calls"].sum().to_dict() == {"answer": len(grid.frame), "judge": len(asked)}
    judged = plan[plan["role"] == "judge"]
    read = grid.frame.groupby(["prompt_name", "task", "sampling"])["judge_prompt_tokens"].sum()
    assert (judged.set_index(["prompt_name", "task", "sampling"])["prompt_tokens"].sort_index() >= read.sort_index()).all() and set(judged["model"]) == {"judge"}
    assert judged["most_completion_tokens"].sum() >= grid.frame["judge_completion_tokens"].sum()
    assert plan.groupby("role")["prompt_tokens"].sum()["judge"] <= 4*grid.frame["judge_prompt_tokens"].sum(), "a bound, and not far off"


def test_the_cost_of_a_plan_holds_the_judge():
    from llmops_workbench.endpoints import Endpoint
    dear = Endpoint("http://127.0.0.1:9/v1#m", prices={"m": (1.0, 2.0)})
    given = dict(models=[reader()], dataset=tickets(), split="all", tasks=TASKS, n_examples=2, max_new_tokens=10)
    plan = plan_grid(**given, judge={"model": dear, "rubric": {"question": "Does it help?"}})
    assert plan["most_cost"].sum() == (plan["prompt_tokens"] + 2*plan["most_completion_tokens"])[plan["role"] == "judge"].sum() > 0


def test_a_plan_of_nothing_has_its_columns():
    "A prompt that cannot be rendered for any row is no call; the panel sums the columns."
    from llmops_workbench.widgets.prompt import say_plan
    plan = plan_grid(models=[reader()], dataset=tickets(), prompts={"p": {"template": "{{ text.missing.deeper }}", "syntax": "jinja"}}, split="all",
                     tasks={"p": TASKS["product"]}, n_examples=2, judge={"model": "fake:echo", "rubric": {"question": "Does it help?"}})
    assert len(plan) == 0 and say_plan(plan).startswith("0 calls")


def test_the_cost_of_a_plan_comes_from_the_prices():
    from llmops_workbench.endpoints import Endpoint
    given = dict(dataset=tickets(), split="all", tasks=TASKS, n_examples=2, max_new_tokens=10)
    plan = plan_grid(models=[Endpoint("http://127.0.0.1:9/v1#m", prices={"m": (1.0, 2.0)})], **given)
    assert (plan["most_cost"] == plan["prompt_tokens"] + 2*plan["most_completion_tokens"]).all()
    assert plan_grid(models=["http://127.0.0.1:9/v1#m"], **given)["most_cost"].isna().all()


def test_the_signature_can_be_written_down():
    declared = parameters_of(run_grid)
    assert "on_progress" not in declared and declared["models"].default == ["starter"] and declared["split"].choices == ("test", "validation", "train", "all")
    read = parameters_in_cell(parameters_cell(run_grid))
    assert {n: p.default for n, p in read.items()} == {n: p.default for n, p in declared.items()}


def test_the_faces_of_a_grid():
    grid = run_grid([reader("a<b>"), reader("$x$")], tickets(), {"p<i>": "The {text}", "q": "JSON The {text}"}, split="all", tasks=TASKS, n_examples=3)
    html = grid._repr_mimebundle_()["text/html"]
    assert "a<b>" not in html and "a&lt;b&gt;" in html and "<script" not in html
    for name in grid.figures():
        text = grid.figure(name).to_json()
        assert "a<b>" not in text and "$x$" not in text
    assert [len(trace.x) for trace in grid.figure("scores").data] == [6]*4


def test_a_grid_is_logged_and_read_back(workspace):
    from llmops_workbench.store import open_store
    grid = run_grid([reader()], tickets(), split="all", tasks=TASKS, n_examples=3)
    record = open_store().get_run(grid.log(stage="prompt"))
    assert record.summary["scores"] == grid.summary["scores"]
    back = record.frame("frame")
    assert back["completion"].tolist() == grid.frame["completion"].tolist()
    assert [list(r) for r in back["references"]] == grid.frame["references"].tolist()
    pd.testing.assert_frame_equal(record.frame("scores"), grid.scores, check_dtype=False)


def test_two_models_of_a_grid_can_be_compared(workspace):
    from llmops_workbench.comparison import compare
    run = run_grid([reader(), ScriptedModel("echo", name="echo")], tickets(), split="all", tasks=TASKS, n_examples=20).log(stage="prompt")
    found = compare([f"run:{run}"], baseline="echo", n_resamples=200)
    rows = found.frame.query("system == 'reader' and metric == 'json_match'")
    assert rows["value"].tolist() == [1.0] and rows["delta"].tolist() == [1.0]


def test_references_of_a_real_task(shared_data):
    path = shared_data / "e2e" / "devset.csv"
    if not path.is_file():
        pytest.skip("the E2E restaurants are not here")
    grid = run_grid([ScriptedModel("echo", name="echo")], str(path), split="all", tasks={"say": ["{mr}", "{ref}"]}, n_examples=0, metrics=["bleu", "rougeL"],
                    lowercase=True)
    assert len(grid.frame) == 547 and grid.frame["references"].map(len).sum() <= 4672
    assert grid.scores["signature"][0].startswith("nrefs:var|case:lc")


def test_where_less_is_better_the_best_answers_are_right():
    "Every answer was at least as good as the 0 edits of a right one, and all were marked right."
    from llmops_workbench.matrices import with_outcomes
    grid = run_grid([ScriptedModel(lambda m: "the vpn", name="m")], tickets(8).assign(product=lambda f: "the " + f["product"]), split="all", tasks={"p": TASKS["product"]}, n_examples=0, metrics=["ter"])
    judged = with_outcomes(grid.frame, grid.scores)
    assert judged["outcome"].tolist() == ["right" if "vpn" in prompt else "wrong" for prompt in judged["prompt"]]


# Assertions and judges within a grid

HELPS = {"question": "Does it help?", "scale": [1, 5]}


def in_room(text):
    return int(text.split("room ")[1].split()[0])


def test_the_score_of_a_judge_is_the_mean_of_its_verdicts():
    def verdict(messages):
        answer = messages[-1]["content"].split("The answer to judge:\n| ")[1].split("\n")[0]
        return json.dumps({"reason": f"It says {answer}.", "score": {"vpn": 5, "printer": 4, "mail": 2, "laptop": 1}[answer]})
    grid = run_grid([reader()], tickets(8), {"p": "The {text}"}, split="all", tasks={"p": TASKS["product"]}, n_examples=0, judge={"model": ScriptedModel(verdict, name="judge"), "rubric": HELPS})
    said = grid.frame.set_index("completion")["judge_score"].to_dict()
    assert said == {"vpn": 5.0, "printer": 4.0, "mail": 2.0, "laptop": 1.0}
    row = grid.scores.set_index("metric").loc["judge_score"]
    assert (row["value"], row["n"], row["n_missing"]) == (3.0, 8, 0) and row["signature"].startswith("judge: ")
    assert grid.frame["judge_reason"].tolist() == [f"It says {answer}." for answer in grid.frame["completion"]]
    assert grid.leaderboard("judge_score")["value"].tolist() == [3.0]


def test_what_a_judge_leaves_open_is_counted_and_not_lost():
    "Garbage, a step off the scale, two verdicts and a failed call: each row is there, with its reason and without a score."
    odd = {0: "I like it very much", 1: '{"reason": "x", "score": 9}', 2: '{"reason": "a", "score": 1} {"reason": "b", "score": 5}', 3: TimeoutError("no reply"), 4: ""}

    def judge(messages):
        found = odd.get(in_room(messages[-1]["content"]), '{"reason": "fine", "score": 4}')
        if isinstance(found, Exception): raise found
        return found
    grid = run_grid([ScriptedModel("echo", name="echo")], tickets(8), split="all", tasks={"p": TASKS["product"]}, n_examples=0, judge={"model": ScriptedModel(judge, name="judge"), "rubric": HELPS})
    judged = grid.frame.set_index(grid.frame["prompt"].map(in_room)).sort_index()
    assert len(grid.frame) == 8 and judged["judge_score"].isna().tolist() == [True]*5 + [False]*3 and judged["completion"].notna().all()
    for room, words in {0: "no score", 1: "not on the scale", 2: "several verdicts", 3: "no reply", 4: "no score"}.items(): assert words in judged["judge_error"][room]
    row = grid.scores.set_index("metric").loc["judge_score"]
    assert (row["value"], row["n"], row["n_missing"]) == (4.0, 3, 5)
    assert grid.summary["n_failed"] == 0, "the answers are there; it is the judge that failed"
    json.dumps(grid.summary, allow_nan=False)


def test_a_judge_is_not_asked_about_an_answer_that_is_not_there():
    asked = []

    def moody(messages):
        if in_room(messages[-1]["content"]) == 3: raise TimeoutError("no reply in 30 s")
        return "vpn"
    judge = ScriptedModel(lambda messages: asked.append(messages) or '{"reason": "fine", "score": 4}', name="judge")
    grid = run_grid([ScriptedModel(moody, name="m")], tickets(6), split="all", tasks={"p": TASKS["product"]}, n_examples=0, assertions=[{"contains": "vpn", "name": "says vpn"}],
                    judge={"model": judge, "rubric": HELPS})
    failed = grid.frame[grid.frame["error"] != ""]
    assert len(asked) == 5 and len(failed) == 1
    assert failed["judge_score"].isna().all() and failed["judge_error"].str.contains("no answer to judge: .*no reply in 30 s").all()
    assert failed["says vpn"].isna().all() and failed["says vpn_reason"].str.startswith("the call failed").all() and failed["all_passed"].isna().all()
    scores = grid.scores.set_index("metric")
    assert scores.loc["says vpn", ["value", "n", "n_missing"]].tolist() == [1.0, 5, 1] == scores.loc["all_passed", ["value", "n", "n_missing"]].tolist()


def test_assertions_refer_to_columns_of_the_source():
    frame = tickets(8).assign(floor=[f"floor {i % 2}" for i in range(8)])
    grid = run_grid([ScriptedModel(lambda m: "vpn on floor 1", name="m")], frame, split="all", tasks=TASKS, n_examples=0,
                    assertions=[{"contains": "{floor}", "name": "where"}, {"contains": ["{references}", "vpn"], "name": "what"}, {"equals": "{product}", "name": "exactly", "task": "product", "weight": 0}])
    rooms = grid.frame["prompt"].map(in_room)
    assert grid.frame["where"].tolist() == [room % 2 == 1 for room in rooms] and grid.frame["what"].all()
    assert not grid.frame.loc[grid.frame["task"] == "product", "exactly"].any() and grid.frame.loc[grid.frame["task"] == "query", "exactly"].isna().all()
    values = grid.scores.set_index(["task", "metric"])["value"]
    assert values["product", "where"] == values["query", "where"] == values["product", "all_passed"] == 0.5 and values["product", "exactly"] == 0
    assert ("query", "exactly") not in values.index, "nothing was judged there"
    with pytest.raises(MissingColumnError, match="Did you mean 'floor'"):
        run_grid([reader()], frame, split="all", tasks=TASKS, assertions=[{"contains": "{flor}"}])


def test_an_assertion_sees_a_column_as_it_was_written(tmp_path):
    "A column that only an assertion asked for was read as a number: 1.10 became 1.1, and a right answer was wrong."
    (tmp_path / "versions.csv").write_text("id,text,version,product\na,The vpn is down.,1.10,vpn\nb,The mail is down.,2.00,mail\n", encoding="utf-8")
    grid = run_grid([ScriptedModel(lambda m: "1.10" if "vpn" in m[-1]["content"] else "2.00", name="m")], str(tmp_path / "versions.csv"), split="all", tasks={"p": TASKS["product"]},
                    assertions=[{"equals": "{version}", "name": "right"}])
    assert grid.frame["right_reason"].tolist() == ["", ""] and grid.frame["right"].all()


def test_repeats_with_assertions_say_how_often_all_of_them_pass():
    "One example passes always, one every second time, one never: pass^2 is 1, 0 and 0, and the mean does not tell them apart from luck."
    seen = {}

    def answer(messages):
        room = in_room(messages[-1]["content"])
        seen[room] = seen.get(room, -1) + 1
        return "yes" if room == 0 or (room == 1 and seen[room] % 2 == 0) else "no"
    grid = run_grid([ScriptedModel(answer, name="m")], tickets(3), split="all", tasks={"p": TASKS["product"]}, n_examples=0, repeats=2, cache=False,
                    assertions=[{"equals": "yes", "name": "agrees"}])
    found = grid.repeated[grid.repeated["metric"] == "agrees"]
    rooms = grid.frame.set_index("example_id")["prompt"].map(in_room).to_dict()
    by_room = found.set_index(found["example_id"].map(rooms)).sort_index()
    assert by_room["mean"].tolist() == [1.0, 0.5, 0.0] and by_room["pass_k"].tolist() == [1.0, 0.0, 0.0] and set(by_room["k"]) == {2}
    assert by_room["n_distinct"].tolist() == [1, 2, 1]
    board = grid.leaderboard("agrees")
    assert (board["value"][0], board["n_examples"][0], board["n_calls"][0]) == (0.5, 3, 6)


def test_an_answer_that_nobody_scored_is_not_called_wrong():
    grid = run_grid([reader()], tickets(), split="all", tasks={"p": TASKS["product"]}, n_examples=4, metrics=["exact_match"], judge={
        "model": ScriptedModel(lambda messages: '{"reason": "It does.", "score": 5}', name="pleased"), "rubric": {"question": "Does it help?", "scale": [1, 5]}})
    assert set(with_outcomes(grid.frame, grid.scores)["outcome"]) <= {"right", "wrong"}
    by_judge = with_outcomes(grid.frame, grid.scores, "judge_score")
    assert set(by_judge["outcome"]) == {"unscored"} and by_judge["score"].tolist() == [5.0]*4, "a scale has no best value that everything else misses"
    assert sum_systems(by_judge)["n_unscored"].tolist() == [4] and not side_by_side(by_judge)["failures"].any()
    lacking = grid.frame.assign(exact_match=[1.0, 0.0, None, None])
    assert with_outcomes(lacking, grid.scores)["outcome"].tolist() == ["right", "wrong", "unscored", "unscored"]

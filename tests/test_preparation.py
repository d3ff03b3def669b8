"""From rows to examples: what may not leak, not be lost and not be executed."""

import json
import runpy

import pandas as pd
import pytest
import yaml

from llmops_workbench.datasets import list_snapshots, make_dataset, read_dataset
from llmops_workbench.errors import MissingColumnError, ParameterValueError, UnknownParameterError, UserError
from llmops_workbench.examples import make_examples
from llmops_workbench.preparation import STEPS, TASKS, prepare
from llmops_workbench.recipes import read_steps, run_steps
from llmops_workbench.splits import count_leaks, count_near_leaks, link_rows, normalise
from llmops_workbench.templates import render, template_columns

DESCRIBE = {"describe": ["Describe the restaurant from these facts.\n\n{mr}", "{ref}"]}


def tickets(n=300, seed=0):
    "Tickets of which every tenth repeats an earlier text, half of those with another label."
    import random

    rng = random.Random(seed)
    texts = [f"Ticket {i}: " + " ".join(rng.choices(["printer", "vpn", "mail", "slow", "broken", "again", "please", "help"], k=8)) for i in range(n)]
    for i in range(10, n, 10):
        texts[i] = texts[i - 7] if i % 20 else texts[i - 7].upper()
    return pd.DataFrame({"id": [f"t{i}" for i in range(n)], "text": texts, "site": [f"s{i % 23}" for i in range(n)],
                         "query": [json.dumps({"intent": rng.choice("abc")}) for _ in range(n)], "summary": [f"Sum {i % 50}." for i in range(n)]})


# --- the helpdesk and the real task --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def helpdesk(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMOPS_WORKSPACE", str(tmp_path_factory.mktemp("helpdesk")))
        dataset = read_dataset("helpdesk")
        yield dataset, prepare(dataset)


def test_helpdesk_rows_are_all_accounted_for(helpdesk):
    dataset, prepared = helpdesk
    rows = set(prepared.frame["row"]) | set(prepared.rejected["id"])
    assert rows == set(dataset.frame["id"]) and set(prepared.frame["row"]).isdisjoint(prepared.rejected["id"])
    assert len(prepared.train) + len(prepared.validation) + len(prepared.test) == len(prepared.frame) == 2 * prepared.summary["n_rows_kept"]
    assert prepared.frame["id"].is_unique
    assert set(prepared.rejected["step"]) == {"drop_exact_duplicates"}


def test_helpdesk_duplicates_of_the_truth_are_dropped(helpdesk):
    dataset, prepared = helpdesk
    frame, truth = dataset.frame.set_index("id"), dataset.truth
    copies = truth[truth["duplicate_of"] != ""]
    fields = ["text", "query", "summary"]
    same = copies[(frame.loc[copies["id"], fields].to_numpy() == frame.loc[copies["duplicate_of"], fields].to_numpy()).all(axis=1)]
    assert len(same) >= 50 and set(same["id"]) <= set(prepared.rejected["id"])
    # A copy whose label is wrong is no duplicate of the row; it stays, on the same side.
    where = prepared.frame.drop_duplicates("row").set_index("row")["split"]
    others = copies[~copies["id"].isin(same["id"])]
    assert (where[others["id"]].to_numpy() == where[others["duplicate_of"]].to_numpy()).all()


def test_helpdesk_prompts_do_not_leak(helpdesk):
    _, prepared = helpdesk
    train = {" ".join(p.lower().split()) for p in prepared.train["prompt"]}
    for part in (prepared.validation, prepared.test):
        assert len(part) > 500 and not train & {" ".join(p.lower().split()) for p in part["prompt"]}
    assert prepared.summary["n_leaked"] == 0


def test_helpdesk_label_noise_is_carried(helpdesk):
    dataset, prepared = helpdesk
    noisy = set(dataset.truth["id"][dataset.truth["label_noise"]])
    assert prepared.frame["clean"].dtype == bool
    assert set(prepared.frame["row"][~prepared.frame["clean"]]) == noisy & set(prepared.frame["row"])
    assert prepared.summary["n_clean_test"] == int(prepared.test["clean"].sum()) < prepared.summary["n_test"]


def test_helpdesk_near_duplicates_stay_together_when_grouped(helpdesk, tmp_path, monkeypatch):
    dataset, _ = helpdesk
    threads = dataset.frame.assign(thread=[f"thread {i // 2}" for i in range(len(dataset))])
    prepared = prepare(make_dataset(threads, "helpdesk", dataset.truth), group_by="thread")
    where = prepared.frame.drop_duplicates("row").set_index("row")["split"]
    truth = dataset.truth[(dataset.truth["near_duplicate_of"] != "") & dataset.truth["id"].isin(where.index) & dataset.truth["near_duplicate_of"].isin(where.index)]
    assert len(truth) >= 100
    assert (where[truth["id"]].to_numpy() == where[truth["near_duplicate_of"]].to_numpy()).all()
    assert prepared.frame.groupby("group")["split"].nunique().max() == 1
    assert where.groupby(threads.set_index("id")["thread"]).nunique().max() == 1


def test_real_task_by_parameters_alone(shared_data):
    prepared = prepare(str(shared_data / "e2e" / "devset.csv"), text_column="mr", group_by="mr", tasks=DESCRIBE, similarity=None)
    source = pd.read_csv(shared_data / "e2e" / "devset.csv")
    assert prepared.summary["n_rows"] == len(source) == 4672
    assert prepared.summary["n_rows_kept"] + prepared.summary["n_rejected"] == 4672
    assert prepared.summary["n_rows_kept"] == len(source.drop_duplicates())
    assert prepared.frame["prompt"].nunique() == source["mr"].nunique() == 547
    assert prepared.frame.groupby("prompt")["split"].nunique().max() == 1 and prepared.summary["n_leaked"] == 0
    assert prepared.test.groupby("prompt").size().max() > 1, "several references a prompt"
    assert set(prepared.frame["completion"]) == set(source["ref"])


# --- grouping ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group_by", [None, "site"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_prompt_and_no_group_is_divided(group_by, seed):
    frame = tickets()
    prepared = prepare(frame, group_by=group_by, seed=seed, split={"train": 0.6, "test": 0.4}, name="t") if group_by is None else None
    if group_by:
        # Each repeated text links two sites, so few groups remain; the rule holds for those there are.
        frame["site"] = [f"s{i % 60}" for i in range(len(frame))]
        frame["text"] = [f"{t} {i}" for i, t in enumerate(frame["text"])]
        prepared = prepare(frame, group_by=group_by, seed=seed, split={"train": 0.6, "test": 0.4}, name="t")
        sites = frame.set_index("id")["site"]
        assert prepared.frame.groupby(prepared.frame["row"].map(sites))["split"].nunique().max() == 1
    prompts = pd.Series(normalise(prepared.frame["prompt"]))
    assert prompts.groupby(prompts).size().max() > 0
    assert prepared.frame.groupby(prompts)["split"].nunique().max() == 1 and prepared.summary["n_leaked"] == 0


def test_split_does_not_depend_on_the_order_of_rows():
    frame = tickets()
    one, other = prepare(frame, name="t"), prepare(frame.sample(frac=1, random_state=3), name="t")
    where = lambda p: p.frame.set_index("row")["split"].groupby(level=0).first()
    both = where(one).index.intersection(where(other).index)
    assert len(both) > 250 and where(one)[both].equals(where(other)[both])


def test_links_are_followed_to_the_end():
    assert link_rows(["a", "b", "c", "d"], ["x", "x", "y", "z"], [None, "q", "q", None]).tolist() == [0, 0, 0, 3]
    assert link_rows([None, None]).tolist() == [0, 1]


def test_leaks_are_counted_when_there_are_some():
    examples = pd.DataFrame({"task": ["a", "a", "b", "a"], "prompt": ["One  two", "one two", "one two", "three"], "split": ["train", "test", "test", "validation"]})
    assert count_leaks(examples) == 1
    texts = ["please reset my password today", "please reset my password", "the printer jams", "please reset my password now"]
    assert count_near_leaks(texts, pd.Series(["train", "test", "test", "train"])) == 1
    assert count_near_leaks(texts, pd.Series(["train"] * 4)) == 0


def test_near_duplicates_are_never_on_both_sides(helpdesk):
    dataset, prepared = helpdesk
    where = prepared.frame.drop_duplicates("row").set_index("row")["split"]
    truth = dataset.truth[(dataset.truth["near_duplicate_of"] != "") & dataset.truth["id"].isin(where.index) & dataset.truth["near_duplicate_of"].isin(where.index)]
    together = (where[truth["id"]].to_numpy() == where[truth["near_duplicate_of"]].to_numpy()).mean()
    assert len(truth) >= 100 and together >= 0.9 and prepared.summary["n_nearly_leaked"] == 0
    apart = prepare(dataset, similarity=None, name="apart")
    assert apart.summary["n_nearly_leaked"] > 20 and apart.summary["n_leaked"] == 0


def test_texts_that_are_alike_by_nature_can_be_divided(shared_data):
    prepared = prepare(str(shared_data / "e2e" / "devset.csv"), text_column="mr", group_by="mr", tasks=DESCRIBE)
    assert prepared.summary["similarity"] > 0.4 and prepared.summary["n_nearly_leaked"] == 0 and prepared.summary["n_test"] > 100
    assert any("alike by nature" in line for line in prepared.words())


def test_train_comes_before_test_in_time(helpdesk):
    dataset, _ = helpdesk
    prepared = prepare(dataset, time_column="time", name="timed")
    when = prepared.frame["row"].map(dataset.frame.set_index("id")["time"])
    last, first = when.groupby(prepared.frame["split"]).max(), when.groupby(prepared.frame["split"]).min()
    assert last["train"] < first["validation"] and last["validation"] < first["test"]
    assert prepared.summary["n_leaked"] == prepared.summary["n_nearly_leaked"] == 0
    late = prepared.rejected[prepared.rejected["step"] == "split"]
    assert len(late) > 20 and late["reason"].str.startswith("says what an earlier row of").all()
    shares = prepared.frame["split"].value_counts(normalize=True)
    assert 0.78 < shares["train"] < 0.84
    kept, lost = set(prepared.frame["id"]), set(late["id"])
    assert kept.isdisjoint(lost) and len(prepared.frame) + len(late) == 2 * (len(dataset) - (prepared.rejected["step"] == "drop_exact_duplicates").sum())


def test_copies_and_variants_only_teach(helpdesk):
    dataset, _ = helpdesk
    frame = dataset.frame.head(400)
    prepared = prepare(frame, steps=[{"balance": {"column": "channel", "how": "up"}}], name="more", similarity=None)
    made = prepared.frame["row"].str.contains("~copy")
    assert made.any() and set(prepared.frame["split"][made]) == {"train"} and prepared.summary["n_added"] > 100
    refused = prepared.rejected[prepared.rejected["reason"].str.startswith("made from")]
    assert len(refused) and refused["reason"].str.contains("which is in (?:validation|test)").all()
    side = prepared.frame.drop_duplicates("row").set_index("row")["split"]
    assert all(side.get(row.split("~")[0], "train") == "train" for row in side.index[side.index.str.contains("~copy")])


def test_columns_that_steps_make_can_be_asked_for(helpdesk):
    dataset, _ = helpdesk
    frame = dataset.frame.head(300)
    prepared = prepare(frame, steps=[{"open_json": {"column": "query", "keys": ["intent"]}}], tasks={"intent": ["Which intent?\n\n{text}", "{intent}"]}, name="opened")
    assert set(prepared.frame["completion"]) == set(json.loads(q)["intent"] for q in frame["query"])
    chats = prepare(frame, steps=[{"format_rows": {"form": "chat", "answer": "{summary}", "system": "Be brief."}}, {"take_chats_apart": {}}],
                    tasks={"chat": ["{prompt}", "{completion}"]}, name="chats")
    assert chats.frame["prompt"].str.startswith("Be brief.\n\nUser: ").all() and set(chats.frame["completion"]) <= set(frame["summary"])
    with pytest.raises(MissingColumnError, match="no column 'intnt'"):
        prepare(frame, steps=[{"open_json": {"column": "query"}}], tasks={"intent": ["{text}", "{intnt}"]})


def test_the_recipe_is_a_function_and_the_snapshots_know_it(tmp_path):
    prepared = prepare(tickets(), steps=["normalise_whitespace", {"filter_rows": {"keep": [{"column": "words", "at_least": 3}]}}, {"redact": {"mode": "number"}, "off": True}], name="t")
    (tmp_path / "recipe.py").write_text(prepared.to_code(), encoding="utf-8")
    assert runpy.run_path(str(tmp_path / "recipe.py"))["recipe"](tickets()).outputs == prepared.outputs
    assert prepared.steps["off"].tolist() == [False, False, True]
    told = list_snapshots().set_index("reference").loc[prepared.outputs["train"]]
    assert told["parent"] == prepared.summary["dataset"] and json.loads(told["recipe"])["steps"] == prepared.recipe["steps"]


# --- steps ---------------------------------------------------------------------------------------------------------


def hostile_frame():
    return pd.DataFrame({"id": list("abcdefg"), "text": ["  one\r\n\r\n\r\n\r\ntwo  ", "", "one", "one", " \t", "cafÃ© menu for all of you", "caf\u200bé menu for all of you"],
                         "n": [1, 2, 3, 3, 5, 6, 7]})


@pytest.mark.parametrize("step", ["drop_empty", "normalise_whitespace", "mend_characters", "show_hidden", "drop_exact_duplicates",
                                  {"drop_near_duplicates": {"similarity": 0.5}}, {"filter_length": {"minimum": 2, "maximum": 5}}])
def test_a_step_is_pure_and_counts(step):
    frame = hostile_frame()
    before = frame.copy(deep=True)
    kept, counts, rejected, _ = run_steps(frame, read_steps([step]), {"": ["text"]})
    pd.testing.assert_frame_equal(frame, before)
    assert len(kept) + len(rejected) == len(frame) and counts[["rows_in", "rows_out"]].values.tolist() == [[7, len(kept)]]
    assert set(kept["id"]).isdisjoint(rejected["id"]) and (rejected["reason"].str.len() > 0).all()
    again, *_ = run_steps(kept, read_steps([step]), {"": ["text"]})
    pd.testing.assert_frame_equal(again, kept)


def test_what_steps_do():
    apply = lambda *steps: run_steps(hostile_frame(), read_steps(list(steps)), {"": ["text"]})[0]
    assert apply("normalise_whitespace")["text"][0] == "one\n\ntwo"
    assert apply("drop_empty")["id"].tolist() == list("acdfg")
    assert apply("drop_exact_duplicates")["id"].tolist() == list("abcefg")
    assert apply("mend_characters")["text"][5] == "café menu for all of you"
    assert "U+200B" in apply("show_hidden")["text"][6]
    assert apply({"filter_length": {"minimum": 3}})["id"].tolist() == list("acdfg")
    assert apply("mend_characters", {"drop_near_duplicates": {"similarity": 0.6}})["id"].tolist() == list("abcef")


def test_duplicates_are_judged_by_their_columns():
    frame = pd.DataFrame({"text": ["a", "a", "a"], "label": ["x", "y", "x"]})
    task = {"t": ["{text}", "{label}"]}
    assert prepare(frame, tasks=task, split={"train": 1.0}).summary["n_rows_kept"] == 2
    assert prepare(frame, tasks=task, split={"train": 1.0}, duplicate_columns=["text"]).summary["n_rows_kept"] == 1
    assert prepare(frame, tasks=task, split={"train": 1.0}, steps=[]).summary["n_rows_kept"] == 3


def test_steps_can_be_written_down():
    steps = ["drop_empty", {"filter_length": {"minimum": 3, "maximum": 10}}]
    assert read_steps(yaml.safe_load(yaml.safe_dump(steps))) == read_steps(steps)
    assert json.loads(json.dumps(TASKS)) == TASKS and json.loads(json.dumps(STEPS)) == STEPS


# --- templates -----------------------------------------------------------------------------------------------------

HOSTILE = ["{text.__class__}", "{text.__class__.__init__.__globals__}", "{text[0]}", "{text!r}", "{text:>1000000000}", "{0}", "{self}", "{__import__('os')}",
           "{text.format}", "{ text . upper }", "{lipsum.__globals__}", "{''.join}"]


@pytest.mark.parametrize("template", HOSTILE)
def test_a_field_is_a_column_and_nothing_else(template):
    with pytest.raises(MissingColumnError, match="has no column"):
        render(template, pd.DataFrame({"text": ["x"]}))


@pytest.mark.parametrize("template", ["{", "}", "{text", "text}", "{}", "{{text}", "{a{text}}", "{te\nxt}"])
def test_single_braces_are_refused(template):
    with pytest.raises(ParameterValueError, match="single"):
        render(template, pd.DataFrame({"text": ["x"], "a": ["y"]}))


def test_cells_are_inserted_letter_for_letter(shared_data):
    texts = json.loads((shared_data / "naughty_strings" / "blns.json").read_text(encoding="utf-8")) + ["{text}", "{{", "}}", "{0}", "%s", "$text", "\\1"]
    assert render("<{text}|{text}>{{}}", pd.DataFrame({"text": texts})) == [f"<{t}|{t}>{{}}" for t in texts]


def test_columns_with_odd_names_and_kinds():
    frame = pd.DataFrame({"a b.c": ["x"], "n": [1], "f": [1.5], "t": pd.to_datetime(["2026-01-05 10:00:00"]), "gap": pd.Series([None], dtype="str")})
    assert render("{a b.c}-{n}-{f}-{t}", frame) == ["x-1-1.5-2026-01-05 10:00:00"]
    assert render("{gap}", frame) == [None]
    assert template_columns("{b}{a}{b}") == ["b", "a"]


def test_columns_in_templates_stay_as_the_file_has_them(tmp_path):
    (tmp_path / "a.csv").write_text("text,price\nshoes,12.50\nhat,7.00\n")
    prepared = prepare(tmp_path / "a.csv", tasks={"t": ["{text}", "{price}"]}, split={"train": 1.0})
    assert sorted(prepared.frame["completion"]) == ["12.50", "7.00"]


def test_rows_without_an_answer_serve_other_tasks():
    frame = pd.DataFrame({"id": ["a", "b", "c"], "text": ["x", "y", "z"], "one": ["1", None, " "], "two": ["4", "5", "6"]})
    examples, rejected = make_examples(frame, {"first": ["{text}", "{one}"], "second": ["{text}", "{two}"]})
    assert examples["id"].tolist() == ["a/first", "a/second", "b/second", "c/second"]
    assert rejected["id"].tolist() == ["b/first", "c/first"] and set(rejected["reason"]) == {"empty completion"}


# --- bad input -----------------------------------------------------------------------------------------------------

BAD = {
    "no such field": ({"tasks": {"q": ["{txt}", "{query}"]}}, MissingColumnError, "Did you mean 'text'?"),
    "no such text column": ({"text_column": "txt"}, MissingColumnError, "Did you mean 'text'?"),
    "no such group": ({"group_by": "sight"}, MissingColumnError, "Did you mean 'site'?"),
    "no such duplicate column": ({"duplicate_columns": ["quarry"]}, MissingColumnError, "Did you mean 'query'?"),
    "no tasks": ({"tasks": {}}, ParameterValueError, "At least one task"),
    "one template": ({"tasks": {"q": ["{text}"]}}, ParameterValueError, "A task is a list of two templates"),
    "prompt without a field": ({"tasks": {"q": ["Say hello", "{query}"]}}, ParameterValueError, "at least one {column}"),
    "unknown step": ({"steps": ["deduplicate"]}, UnknownParameterError, "The steps are: drop_empty"),
    "two steps in one": ({"steps": [{"drop_empty": {}, "show_hidden": {}}]}, UnknownParameterError, "The steps are"),
    "a number for a step": ({"steps": [3]}, UnknownParameterError, "The steps are"),
    "unknown option": ({"steps": [{"filter_length": {"longest": 3}}]}, UnknownParameterError, "It declares: minimum, maximum"),
    "option out of range": ({"steps": [{"drop_near_duplicates": {"similarity": 80}}]}, ParameterValueError, "0.05 to 1"),
    "everything dropped": ({"steps": [{"filter_length": {"minimum": 10_000}}]}, ParameterValueError, "reject all 300 rows"),
    "shares below one": ({"split": {"train": 0.8, "test": 0.1}}, ParameterValueError, "sums to 0.9"),
    "no train": ({"split": {"test": 1.0}}, ParameterValueError, "The splits are train"),
    "another split": ({"split": {"train": 0.8, "dev": 0.2}}, ParameterValueError, "The splits are train"),
    "an empty split": ({"split": {"train": 0.9999, "test": 0.0001}}, ParameterValueError, "got none of"),
    "a bad name": ({"name": "../x"}, ParameterValueError, "cannot name a dataset"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_explained_in_a_line(case, workspace):
    options, error, message = BAD[case]
    with pytest.raises(error) as caught:
        prepare(tickets(), **options)
    assert message in str(caught.value) and "\n" not in str(caught.value) and isinstance(caught.value, UserError)
    assert not list(workspace.glob("snapshots/*")), "nothing half done is left"


# --- the result ----------------------------------------------------------------------------------------------------


def test_result_is_the_same_again_and_can_be_passed_on():
    frame = tickets()
    one, other = prepare(frame, name="t"), prepare(frame, name="t")
    assert one.summary == other.summary and one.outputs == other.outputs
    pd.testing.assert_frame_equal(one.frame, other.frame)
    assert json.loads(json.dumps(one.summary)) == one.summary
    for part in ("train", "validation", "test"):
        again = read_dataset(one.outputs[part])
        pd.testing.assert_frame_equal(again.frame, getattr(one, part))
        assert one.outputs[part] == again.reference and again.name == f"t.{part}"


def test_every_face_is_escaped():
    frame = tickets()
    frame["text"] = "<script>alert(1)</script> $\\href{javascript:x}{y}$ " + frame["text"]
    prepared = prepare(frame, name="t", tasks={"<b>task</b>": ["{text}", "{query}"], "plain": ["{text}", "{summary}"]})
    html = prepared._repr_mimebundle_()["text/html"]
    assert "<script>" not in html and "<b>task" not in html and "$\\href" not in html
    for name in prepared.figures():
        assert "<b>" not in prepared.figure(name).to_json()
    with pytest.raises(ParameterValueError, match="It has: splits, steps"):
        prepared.figure("nothing")


def test_rejected_rows_of_the_reader_are_in_the_account(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one", "query": "q"}\n{"text": null, "query": "q"}\nnot json\n{"text": "two", "query": "q"}\n{"text": "one", "query": "q"}\n')
    prepared = prepare(tmp_path / "a.jsonl", tasks={"t": ["{text}", "{query}"]}, split={"train": 1.0})
    assert prepared.rejected["step"].tolist() == ["read", "read", "drop_exact_duplicates"]
    assert prepared.summary["n_examples"] == 2

"""Steps of recipes beyond what their pages show: nothing lost, nothing changed in place, nothing that a script needs taken away."""

import copy
import json
import unicodedata

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llmops_workbench.datasets import make_dataset, save_snapshot
from llmops_workbench.errors import MissingColumnError, ParameterValueError, SourceNotFoundError, UnknownParameterError
from llmops_workbench.helpdesk import generate_helpdesk
from llmops_workbench.recipes import STEPS, read_steps, run_steps
from llmops_workbench.tokens import count_tokens, load_tokenizer


def run(frame, *steps, columns=("text",)):
    return run_steps(frame, read_steps(list(steps)), {"": list(columns)})


@pytest.fixture(scope="module")
def tickets():
    return generate_helpdesk(n_rows=400, seed=0)[0]


# --- any recipe ----------------------------------------------------------------------------------------------------

RECIPES = st.lists(st.sampled_from([
    "drop_empty", "normalise_whitespace", "normalise_unicode", {"normalise_unicode": {"form": "NFKC"}}, "mend_characters", "show_hidden", "drop_exact_duplicates", {"drop_near_duplicates": {"similarity": 0.5, "keep": "longest"}},
    {"drop_near_duplicates": {"keep": "last"}}, {"filter_length": {"minimum": 2, "unit": "words"}}, {"filter_length": {"maximum": 9, "unit": "tokens"}}, {"filter_rows": {"drop": [{"column": "label", "one_of": ["x"]}]}},
    {"filter_rows": {"keep": [{"column": "words", "below": 20}]}}, "redact", {"redact": {"mode": "number"}}, "pseudonymise", {"cut_tokens": {"maximum": 5}}, {"split_long": {"maximum": 6, "overlap": 2}}, {"pack_tokens": {"maximum": 30}},
    {"map_columns": {"fill": {"both": "{text} {label}"}}}, {"format_rows": {"answer": "{label}"}}, {"balance": {"column": "label"}}, {"balance": {"column": "label", "how": "up"}}, {"sample": {"share": 0.5}}, {"sample": {"n": 3, "by": "label"}},
    {"synthesise": {"model": "fake:upper", "share": 0.5}}, {"redact": {}, "off": True}]), max_size=6)
TEXTS = st.lists(st.one_of(st.text(max_size=60), st.sampled_from(["The printer on floor two is out of toner.", "the printer on floor two is out of toner!", "", "  ", "cafÃ©", "Write to ann.lee@example.com", "می‌خواهم بروم", "👩‍👩‍👧 flags"])), min_size=1, max_size=12)


@example(texts=["a", "b"], recipe=[{"synthesise": {"model": "fake:upper", "share": 0.5}}] * 2, seed=0)
@example(texts=["a b c d e f g h i j k l m"] * 4, recipe=[{"balance": {"column": "label", "how": "up"}}, {"split_long": {"maximum": 6}}, {"balance": {"column": "label", "how": "up"}}, {"split_long": {"maximum": 3}}], seed=1)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(texts=TEXTS, recipe=RECIPES, seed=st.integers(0, 5))
def test_any_recipe_accounts_for_every_row(texts, recipe, seed):
    texts = [t.encode("utf-8", "replace").decode() for t in texts]
    frame = pd.DataFrame({"id": [f"r{i}" for i in range(len(texts))], "text": pd.Series(texts, dtype="str"), "label": [("x", "y", "z")[(i * seed) % 3] for i in range(len(texts))]})
    before, written = frame.copy(deep=True), copy.deepcopy(recipe)
    kept, counts, rejected, changes = run(frame, *recipe)
    pd.testing.assert_frame_equal(frame, before)
    assert recipe == written and read_steps(yaml.safe_load(yaml.safe_dump(recipe))) == read_steps(recipe)
    assert (counts["rows_in"] + counts["added"] == counts["rows_out"] + counts["rejected"]).all()
    assert counts["rows_in"].tolist() == [len(frame), *counts["rows_out"]][:len(counts)] and len(kept) == [len(frame), *counts["rows_out"]][-1]
    assert kept["id"].is_unique and (rejected["reason"].str.len() > 0).all() and len(rejected) == counts["rejected"].sum()
    assert set(frame["id"]) <= set(kept["id"]) | set(rejected["id"])
    again, counts_again, rejected_again, _ = run(frame, *recipe)
    pd.testing.assert_frame_equal(again, kept)
    pd.testing.assert_frame_equal(counts_again, counts)
    pd.testing.assert_frame_equal(rejected_again, rejected)
    assert set(changes["id"]) <= set(kept["id"]) | set(rejected["id"])


def test_every_step_has_a_sentence_and_a_group():
    assert len(STEPS) >= 20
    for step in STEPS.values():
        assert step.help.endswith(".") and step.group and all(p.help for p in step.parameters.values()), step.name


# --- characters ----------------------------------------------------------------------------------------------------

KEPT = ["👩‍👩‍👧‍👦", "❤️", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "👍🏽", "می‌خواهم", "نمی‌دانم کتاب‌ها", "שָׁלוֹם עֲלֵיכֶם", "क्‍ष", "ශ්‍රී", "ไทย", "naïve café", "日本語", "Größe", "السَّلامُ عَلَيْكُم"]


@pytest.mark.parametrize("text", KEPT)
def test_normalising_leaves_scripts_and_emoji_whole(text):
    kept, *_ = run(pd.DataFrame({"id": ["a"], "text": [text]}), "normalise_unicode")
    assert kept["text"][0] == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("hidden, plain", [("pass\u200bword", "password"), ("a\u202eb\u202c", "ab"), ("ig\u00adnore", "ignore"), ("\ufeffstart", "start"), ("x\U000e0041\U000e0042y", "xy"), ("e\u0301", "é"), ("a\u200db", "ab"), ("w\u2060ord", "word")])
def test_what_nobody_sees_goes(hidden, plain):
    assert run(pd.DataFrame({"id": ["a"], "text": [hidden]}), "normalise_unicode")[0]["text"][0] == plain


def test_naughty_strings_go_through_every_step(shared_data):
    texts = json.loads((shared_data / "naughty_strings" / "blns.json").read_text(encoding="utf-8"))
    frame = pd.DataFrame({"id": [str(i) for i in range(len(texts))], "text": pd.Series(texts, dtype="str"), "label": "x"})
    for name in ("normalise_whitespace", "normalise_unicode", "mend_characters", "show_hidden", "drop_empty", "drop_exact_duplicates", "drop_near_duplicates", "redact", "pseudonymise"):
        kept, _, rejected, _ = run(frame, name)
        assert len(kept) + len(rejected) == len(frame), name


# --- personal data -------------------------------------------------------------------------------------------------


def test_the_same_person_keeps_the_same_false_name():
    texts = ["Dear team, my name is Gabriella Stone. Regards, Gabriella Stone", "Please call Gabriella Stone at gabriella.stone@example.com", "Ask Mr. Peter Falk, peter.falk@example.com"]
    kept, *_ = run(pd.DataFrame({"id": list("abc"), "text": texts}), "pseudonymise")
    assert not kept["text"].str.contains("Gabriella|Falk", case=False).any()
    address = kept["text"].str.extract(r"([\w.]+)@")[0]
    false = address[1].split(".")[0].capitalize()
    assert false in kept["text"][0] and false in kept["text"][1] and address[1] != address[2]
    other, *_ = run(pd.DataFrame({"id": list("abc"), "text": texts}), {"pseudonymise": {"key": "secret"}})
    assert other["text"][1] != kept["text"][1]


# --- tokens --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("maximum, overlap", [(20, 0), (33, 8), (5, 0)])
def test_pieces_fit_and_join_to_the_text(tickets, maximum, overlap):
    reader, frame = load_tokenizer("starter"), tickets.head(40)
    kept, counts, _, _ = run(frame, {"split_long": {"maximum": maximum, "overlap": overlap}})
    assert (count_tokens(kept["text"].tolist(), reader) <= maximum).all() and counts["added"][0] == len(kept) - len(frame)
    for name, text in zip(frame["id"], frame["text"]):
        pieces = kept["text"][(kept["id"] == name) | (kept["made_from"] == name)].tolist()
        if not overlap: assert "".join(pieces) == text
        # With overlap every piece begins inside or at the end of what came before.
        at = 0
        for piece in pieces:
            start = text.find(piece, max(0, at - 40 * overlap))
            assert 0 <= start <= at
            at = start + len(piece)
        assert at == len(text)


def test_packed_texts_fit_and_are_as_full_as_they_can_be(tickets):
    reader = load_tokenizer("starter")
    kept, _, rejected, _ = run(tickets, {"pack_tokens": {"maximum": 300}})
    counts = count_tokens(kept["text"].tolist(), reader)
    assert (counts <= 300).all() and len(kept) + len(rejected) == len(tickets) and rejected["reason"].str.startswith("packed into").all()
    assert "".join(tickets["text"]) == "".join(kept["text"]).replace("\n\n", "") or sum(map(len, kept["text"])) == sum(map(len, tickets["text"])) + 2 * len(rejected)
    for first, second in zip(kept["text"], kept["text"][1:]):
        assert count_tokens([first + "\n\n" + tickets.set_index("text").index[tickets["text"].map(second.startswith)][0]], reader)[0] > 300 - 8


# --- drawing -------------------------------------------------------------------------------------------------------


def test_draws_do_not_depend_on_the_order_of_rows(tickets):
    shuffled = tickets.sample(frac=1, random_state=1)
    for step in ({"sample": {"share": 0.3}}, {"balance": {"column": "channel"}}, {"balance": {"column": "channel", "how": "up"}}, {"sample": {"n": 50, "by": "channel"}}):
        one, other = run(tickets, step)[0], run(shuffled, step)[0]
        assert sorted(one["id"]) == sorted(other["id"]), step
        assert sorted(run(tickets, {next(iter(step)): {**next(iter(step.values())), "seed": 1}})[0]["id"]) != sorted(one["id"])


def test_shares_are_met(tickets):
    assert len(run(tickets, {"sample": {"share": 0.25}})[0]) == 100 and len(run(tickets, {"sample": {"n": 7}})[0]) == 7
    drawn = run(tickets, {"sample": {"n": 100, "by": "channel"}})[0]["channel"].value_counts(normalize=True)
    assert (drawn - tickets["channel"].value_counts(normalize=True)).abs().max() < 0.02
    even = run(tickets, {"balance": {"column": "channel", "ratio": 2}})[0]["channel"].value_counts()
    assert even.max() <= 2 * even.min() and even.min() == tickets["channel"].value_counts().min()


# --- rows made by a model ------------------------------------------------------------------------------------------


def test_variants_say_where_they_come_from(tickets):
    kept, counts, rejected, _ = run(tickets.head(50), {"synthesise": {"model": "fake:upper", "share": 0.2}})
    new = kept[kept["made_from"] != ""]
    assert len(new) == counts["added"][0] == 10 and set(new["made_by"]) == {"fake:upper"} and new["text"].str.isupper().all()
    assert set(new["made_from"]) <= set(tickets["id"]) and (new["query"].to_numpy() == tickets.set_index("id").loc[new["made_from"], "query"].to_numpy()).all()
    assert len(rejected) == 0


def test_variants_that_fail_are_rejected_with_their_reason(tickets, monkeypatch):
    from llmops_workbench import reshaping
    from llmops_workbench.completions import ScriptedModel
    answers = ["fine", RuntimeError("the model is out of memory"), ""] * 5  # an exception of a script is raised
    monkeypatch.setattr(reshaping, "load_model", lambda name: ScriptedModel(answers))
    kept, counts, rejected, _ = run(tickets.head(30), {"synthesise": {"share": 0.5}})
    assert counts["added"][0] == 15 and (kept["made_from"] != "").sum() + len(rejected) == 15
    assert rejected["reason"].str.contains("out of memory").any() and (rejected["reason"] == "the model wrote nothing").any()


@pytest.mark.slow
def test_the_starter_writes_variants(tickets):
    kept, counts, rejected, _ = run(tickets.head(20), {"synthesise": {"share": 0.1, "max_new_tokens": 12, "temperature": 0}})
    assert counts["added"][0] == 2 and (kept["made_from"] != "").sum() + len(rejected) == 2


# --- other data ----------------------------------------------------------------------------------------------------


def test_rows_of_a_test_set_are_taken_out(tickets):
    reference = save_snapshot(make_dataset(tickets.tail(100).assign(text=lambda f: "Good morning, " + f["text"]), "held.out"))
    kept, _, rejected, _ = run(tickets, {"drop_overlap": {"against": reference}})
    assert set(tickets["id"].tail(100)) <= set(rejected["id"]) and rejected["reason"].str.startswith("also stands in held.out@").all() and len(kept) >= 280


# --- bad input -----------------------------------------------------------------------------------------------------

BAD = {
    "no such option": ({"redact": {"way": "label"}}, UnknownParameterError, "It declares: mode"),
    "no such choice": ({"drop_near_duplicates": {"keep": "best"}}, ParameterValueError, "'first', 'last' or 'longest'"),
    "options are no dictionary": ({"redact": ["label"]}, ParameterValueError, "Options have names"),
    "no such column": ({"balance": {"column": "chanel"}}, MissingColumnError, "Did you mean 'channel'?"),
    "no such signal": ({"filter_rows": {"keep": [{"column": "wrds", "below": 3}]}}, MissingColumnError, "no column 'wrds'"),
    "no operation": ({"filter_rows": {"keep": [{"column": "text", "longer": 3}]}}, ParameterValueError, "is no operation"),
    "an operation that is text": ({"filter_rows": {"drop": ["words < 3"]}}, ParameterValueError, "It is a list of operations"),
    "nothing to look through": ("drop_overlap", ParameterValueError, "against is a dataset"),
    "no such dataset": ({"drop_overlap": {"against": "helpdeks"}}, SourceNotFoundError, "Did you mean 'helpdesk'?"),
    "overlap too long": ({"split_long": {"maximum": 5, "overlap": 5}}, ParameterValueError, "shorter than a piece"),
    "id renamed": ({"map_columns": {"rename": {"id": "key"}}}, ParameterValueError, "changes 'id'"),
    "two columns of one name": ({"map_columns": {"rename": {"text": "query"}}}, ParameterValueError, "two columns called 'query'"),
    "a key that is there": ({"open_json": {"column": "query", "keys": ["week"]}}, ParameterValueError, "write over the column 'week'"),
    "no answer": ("format_rows", ParameterValueError, "no template for the answer"),
    "no worse answer": ({"format_rows": {"form": "preference", "answer": "{text}"}}, ParameterValueError, "no template for the worse answer"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_steps_are_explained_in_a_line(case, tickets):
    step, error, message = BAD[case]
    with pytest.raises(error) as caught:
        run(tickets.head(20), step)
    assert message in str(caught.value) and "\n" not in str(caught.value), str(caught.value)


def test_no_column_at_all():
    with pytest.raises(MissingColumnError, match="no column 'body'"):
        run(pd.DataFrame({"id": ["a"], "text": ["x"]}), "drop_empty", columns=("body",))
    assert np.array_equal(run(pd.DataFrame({"id": ["a"], "text": ["x"]}))[0]["id"], ["a"])

"""What the profile claims, held against what is known."""

import json

import numpy as np
import pandas as pd
import pytest

from llmops_workbench.datasets import make_dataset, read_dataset
from llmops_workbench.errors import MissingColumnError, ModelNotFoundError, ParameterValueError, SourceNotFoundError, UserError
from llmops_workbench.helpdesk import generate_helpdesk
from llmops_workbench.params import parameters_cell, parameters_of
from llmops_workbench.preparation import prepare
from llmops_workbench.duplicates import clusters
from llmops_workbench.overview import count_weeks, describe_columns, describe_json, length_bins
from llmops_workbench.profiling import CHECKS, profile
from llmops_workbench.signals import SIGNALS, measure_signals
from llmops_workbench.tokens import count_tokens, load_tokenizer
from llmops_workbench.twins import find_duplicates, find_overlap
from llmops_workbench.views import View


@pytest.fixture(scope="module")
def helpdesk():
    frame, truth = generate_helpdesk()
    return make_dataset(frame, "helpdesk", truth)


@pytest.fixture(scope="module")
def found(helpdesk):
    return profile(helpdesk, tokenizer=None)


# --- the duplicate finder against the truth ------------------------------------------------------------------------


def judge(frame, truth, similarity=None):
    "Precision and recall of exact pairs and of near pairs; near means in one cluster with the row it was made from."
    options = {} if similarity is None else {"similarity": similarity}
    pairs, cluster, _ = find_duplicates(frame["id"].tolist(), frame["text"], **options)
    place = {name: i for i, name in enumerate(frame["id"])}
    at = lambda names: np.array([place[n] for n in names], "int64")
    copies, near = truth[truth["duplicate_of"] != ""], truth[truth["near_duplicate_of"] != ""]
    left, right = at([*copies["id"], *near["id"]]), at([*copies["duplicate_of"], *near["near_duplicate_of"]])
    known = clusters(len(frame), left, right)
    right_pairs = known[at(pairs["id"])] == known[at(pairs["other"])]
    exact = (pairs["kind"] == "exact").to_numpy()
    planted = dict(zip(copies["id"], copies["duplicate_of"]))
    texts = frame["text"].to_numpy()
    return {"exact recall": np.mean([texts[place[a]] == texts[place[b]] and cluster[place[a]] == cluster[place[b]] for a, b in planted.items()]),
            "exact precision": right_pairs[exact].mean(), "near precision": right_pairs[~exact].mean(),
            "near recall": (cluster[at(near["id"])] == cluster[at(near["near_duplicate_of"])]).mean(), "n": len(near)}


@pytest.mark.parametrize("seed", [0, 1])
def test_duplicates_of_the_helpdesk(seed, helpdesk):
    "Near-duplicates have another greeting, typing errors and another signature; half of the pairs share fewer than 60 % of their words in order."
    frame, truth = (helpdesk.frame, helpdesk.truth) if seed == 0 else generate_helpdesk(seed=seed)
    scores = judge(frame, truth)
    assert scores["n"] >= 150
    assert scores["exact recall"] == 1 and scores["exact precision"] >= 0.95
    assert scores["near precision"] >= 0.85 and scores["near recall"] >= 0.85, scores


def test_the_threshold_trades_recall_for_precision(helpdesk):
    scores = [judge(helpdesk.frame, helpdesk.truth, similarity) for similarity in (0.3, 0.4, 0.6, 0.8)]
    recall, precision = [s["near recall"] for s in scores], [s["near precision"] for s in scores]
    assert recall == sorted(recall, reverse=True) and precision[0] < precision[-1]
    assert recall[0] > 0.9 and precision[-1] > 0.9


def test_clean_rows_have_hardly_any_duplicates():
    frame, truth = generate_helpdesk(n_rows=2000, seed=5, trouble=0)
    pairs, _, _ = find_duplicates(frame["id"].tolist(), frame["text"])
    assert (truth["near_duplicate_of"] == "").all() and len(pairs) <= 20


def test_conflicting_labels_are_label_noise(helpdesk, found):
    "Rows with the same text and another query: one of the two labels was spoilt on purpose."
    row = found.findings[found.findings["finding"] == "The same text has different values of 'query'"].iloc[0]
    truth = helpdesk.truth.set_index("id")
    texts = helpdesk.frame.set_index("id")["text"]
    named = [i.strip() for i in row["rows"].split(",") if i.strip() != "..."]
    groups = [texts.index[texts == texts[name]] for name in named]
    assert row["severity"] == "high" and row["count"] >= 2
    assert all(truth.loc[group, "label_noise"].any() for group in groups)


# --- signals -------------------------------------------------------------------------------------------------------


def test_planted_faults_are_found_and_nothing_else(helpdesk):
    frame = helpdesk.frame.head(1000).copy()
    texts = frame["text"].tolist()
    clean = profile(frame, tokenizer=None)
    plant = {"damaged": range(0, 30), "hidden": range(100, 120), "word_repeats": range(200, 215), "empty": range(300, 305)}
    for i in plant["damaged"]:
        texts[i] += " Itâ€™s the cafÃ©"
    for i in plant["hidden"]:
        texts[i] = texts[i][:10] + "\u200b" + texts[i][10:]
    for i in plant["word_repeats"]:
        texts[i] = "error at line 7. " * 20
    for i in plant["empty"]:
        texts[i] = " "
    spoilt = profile(frame.assign(text=texts), tokenizer=None)
    assert set(np.flatnonzero(spoilt.frame["damaged"])) - set(np.flatnonzero(clean.frame["damaged"])) == set(plant["damaged"])
    assert set(np.flatnonzero(spoilt.frame["hidden"])) - set(np.flatnonzero(clean.frame["hidden"])) == set(plant["hidden"])
    assert set(np.flatnonzero(spoilt.frame["word_repeats"] > 0.5)) >= set(plant["word_repeats"])
    assert set(np.flatnonzero(spoilt.frame["words"] == 0)) == set(plant["empty"])
    named = {row.finding.split(":")[0].split(",")[0]: row.count for row in spoilt.findings.itertuples()}
    assert named["Texts are empty"] == 5 and named["Texts are damaged"] == 30 + (clean.frame["damaged"] > 0).sum()
    assert spoilt.findings["severity"].map(["high", "medium", "low"].index).is_monotonic_increasing


def test_honest_scripts_are_not_hidden_or_damaged():
    texts = pd.Series(["می‌خواهم بروم", "👩‍👩‍👧‍👦 🏴󠁧󠁢󠁳󠁣󠁴󠁿 ❤️", "שלום עולם", "हिन्दी में", "Größe „groß“", "naïve café…", "日本語、テスト。", "line\r\nbreak\ttab"], dtype="str")
    signals = measure_signals(texts, ["characters"])
    assert not signals["hidden"].any() and not signals["damaged"].any()
    hostile = pd.Series(["a\u202eb", "x\u200by", "\U000e0041\U000e0042", "bell\x07", "lost \ufffd here"], dtype="str")
    signals = measure_signals(hostile, ["characters"])
    assert signals["hidden"].tolist() == [True, True, True, True, False] and signals["damaged"].tolist() == [0, 0, 0, 0, 1]


def test_shares_equal_python(helpdesk):
    texts = helpdesk.frame["text"].head(300)
    signals = measure_signals(texts, ["lengths", "characters"])
    for text, row in zip(texts, signals.itertuples()):
        assert row.characters == len(text) and row.words == len(text.split())
        assert row.digit_share == pytest.approx(sum(c in "0123456789" for c in text) / len(text), abs=1e-4)
        assert row.non_ascii_share == pytest.approx(sum(c > "\x7f" for c in text) / len(text), abs=1e-4)


def test_profile_steps_mend_what_was_found(helpdesk):
    "The steps a profile suggests, given to prepare, leave nothing for the same profile to suggest."
    frame = helpdesk.frame.head(1500).copy()
    texts = frame["text"].tolist()
    texts[3], texts[5], texts[7], texts[9] = "  ", "cafÃ© " + texts[5], texts[7] + "\u200b", texts[8]
    before = profile(frame.assign(text=texts), tokenizer=None)
    names = [s if isinstance(s, str) else next(iter(s)) for s in before.steps]
    assert names[:4] == ["mend_characters", "show_hidden", "drop_empty", "drop_exact_duplicates"] and {"drop_near_duplicates", "filter_rows", "redact"} <= set(names)
    prepared = prepare(frame.assign(text=texts), steps=before.steps, tasks={"echo": ["{text}", "{text}"]}, split={"train": 1.0}, duplicate_columns=["text"])
    after = profile(pd.DataFrame({"text": prepared.frame["prompt"]}), tokenizer=None)
    assert after.steps == [] and after.summary["n_duplicate_pairs"] == 0 and after.summary["n_personal"] == 0


# --- tokens --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(["the printer on floor two is broken, please help"] * 9, trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|end|>"], show_progress=False))
    tokenizer.enable_truncation(5)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_tokens_equal_the_tokenizer_and_are_never_cut(model_folder, helpdesk):
    texts = helpdesk.frame["text"].head(400).tolist() + ["", "日本語", "the printer"]
    tokenizer = load_tokenizer(str(model_folder))
    single = load_tokenizer(str(model_folder))
    single.no_truncation()
    assert count_tokens(texts, tokenizer).tolist() == [len(single.encode(t, add_special_tokens=False).ids) for t in texts]


def test_truncation_is_counted_in_words_and_in_the_figure(model_folder, helpdesk):
    result = profile(helpdesk.frame.head(400), tokenizer=str(model_folder), max_length_tokens=150)
    share = (result.frame["tokens"] > 150).mean()
    assert 0 < share < 1 and result.summary["truncated_share"] == pytest.approx(share, abs=1e-4)
    assert any("longer than 150 tokens" in line for line in result.words())
    figure = result.figure("length")
    assert figure.layout.shapes[0].x0 == 150 and f"{share:.1%}" in figure.layout.title.text
    assert result.summary["cut_tokens"] == (result.frame["tokens"] - 150).clip(lower=0).sum()
    step = json.loads(result.findings.set_index("finding").loc["Texts are longer than 150 tokens and will be cut", "step"])
    assert step == {"filter_length": {"maximum": 150, "unit": "tokens"}}


def test_the_starter_counts_by_default(found):
    result = profile(make_dataset(pd.DataFrame({"text": ["The printer jams.", "Mail is slow."]})))
    assert (result.frame["tokens"] >= 3).all() and "max_length_tokens" in result.summary
    assert "tokens" not in found.frame and "max_length_tokens" not in found.summary


# --- what is behind a finding --------------------------------------------------------------------------------------


def test_every_finding_selects_its_own_rows(helpdesk, found):
    "The operations of a finding select as many rows as it counts, over the frame with the source's columns beside it."
    frame = found.frame.assign(**{c: helpdesk.frame[c] for c in helpdesk.frame if c not in found.frame})
    counted = found.findings[found.findings["count"] > 0]
    assert len(counted) >= 8
    for row in counted.itertuples():
        kept = View(frame, json.loads(row.where)).rows()
        assert len(kept) == row.count, row.finding
        assert row.rows.startswith(kept["id"].iloc[0]), row.finding


def test_signals_are_the_columns_that_are_promised(helpdesk):
    result = profile(helpdesk.frame.head(600))
    assert set(SIGNALS) < set(result.frame)
    assert {"duplicate", "cluster", "keep", "suspect", "flags", "topic", "x", "y"} <= set(result.frame)
    less = profile(helpdesk.frame.head(600), signals=["language"])
    assert set(less.frame) == {"id", "characters", "words", "sentences", "language", "confidence", "duplicate", "cluster", "keep", "flags"}
    assert less.summary["languages"] == {k: v for k, v in result.summary["languages"].items()}


def test_languages_personal_data_and_labels_against_the_truth(helpdesk, found):
    rows = helpdesk.truth.merge(found.frame, on="id", suffixes=("_true", ""))
    assert (rows["language"] == rows["language_true"]).mean() >= 0.99
    planted = rows["pii"].map(json.loads).map(len) > 0
    assert (rows["n_personal"] > 0)[planted].mean() >= 0.97 and (rows["n_personal"] == 0)[~planted].mean() >= 0.95
    suspects = rows[rows["suspect"] != ""]
    assert len(suspects) >= 20 and suspects["label_noise"].mean() >= 0.6, "three in four suspects are wrong labels, among two in a hundred of all"


def test_the_longest_of_a_cluster_is_kept():
    frame = pd.DataFrame({"id": list("abcd"), "text": ["The printer on floor two is out of toner.", "Hello, the printer on floor two is out of toner!", "Something else.", "Something else."]})
    result = profile(frame, tokenizer=None)
    assert result.frame["keep"].tolist() == [False, True, True, False] and result.frame["cluster"].tolist() == ["a", "a", "c", "c"]


def test_overlap_with_other_data_and_between_splits(helpdesk):
    "A copy of one row in eight is planted among other tickets, half of them changed a little."
    texts = helpdesk.frame["text"].drop_duplicates()
    train, other = texts.iloc[:800].tolist(), texts.iloc[1000:1700].tolist()
    planted = train[::8]
    test = other + planted[:50] + ["Good morning, " + text for text in planted[50:]]
    known = profile(pd.DataFrame({"text": test}), compare_with=pd.DataFrame({"text": train}), tokenizer=None, signals=["duplicates"])
    found = known.frame["overlap"] != ""
    assert found[700:].all() and found[:700].sum() <= 25, "near-duplicates that the sample holds by itself"
    assert any("also stand in frame@" in f for f in known.findings["finding"])
    both = pd.DataFrame({"text": train + test, "split": ["train"] * len(train) + ["test"] * len(test)})
    within = profile(both, tokenizer=None, signals=["duplicates"])
    assert (within.frame["overlap"] != "").tolist() == [False] * len(train) + found.tolist()
    assert "overlap" not in profile(both[["text"]], tokenizer=None, signals=["duplicates"]).frame
    assert find_overlap(pd.Series(["same", "other"]), pd.Series(["same"]), ["x"], None) == ["x", ""]


def test_labels_are_checked_where_they_stand():
    rng = np.random.default_rng(0)
    words = {"fruit": ["apple", "pear", "plum", "fig"], "tool": ["hammer", "saw", "drill", "file"]}
    rows = [(" ".join(rng.choice(words[label], 6)) + f" {i}", label) for i in range(60) for label in words]
    frame = pd.DataFrame(rows, columns=["text", "kind"])
    frame.loc[[4, 7], "kind"] = ["tool", "fruit"]
    assert "suspect" not in profile(frame, tokenizer=None, signals=["labels"]).frame, "nothing here is called a label"
    result = profile(frame, tokenizer=None, signals=["labels"], label_column="kind")
    assert result.frame["suspect"][[4, 7]].tolist() == ["fruit", "tool"] and (result.frame["suspect"] != "").sum() == 2
    few = profile(frame.head(6), tokenizer=None, label_column="kind")
    assert any("were not checked against the texts" in note for note in few.summary["notes"]) and few.words()


def test_chats_are_read_as_chats():
    chats = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"How do I reset password number {i}?"}, {"role": "assistant", "content": "Press the link."}] for i in range(30)]
    chats[3] = chats[3][:2]
    frame = pd.DataFrame({"messages": [json.dumps(chat) for chat in chats]})
    result = profile(frame, text_column="messages")
    assert result.columns["kind"].tolist() == ["chat"] and result.turns.set_index("role")["turns"].to_dict() == {"system": 30, "user": 30, "assistant": 29}
    assert result.frame["words"].iloc[0] == 12, "what is said is counted, not the brackets around it"
    assert result.frame["turns"].tolist().count(2) == 1 and (result.frame["problem"] != "").sum() == 1
    assert any(f.startswith("Chats are odd") and n == 1 for f, n in zip(result.findings["finding"], result.findings["count"]))


# --- columns, JSON, weeks ------------------------------------------------------------------------------------------


def test_helpdesk_columns_are_understood(found):
    kinds = found.columns.set_index("column")["kind"]
    assert {"time": "time", "channel": "category", "text": "text", "query": "json"}.items() <= kinds.to_dict().items()
    keys = found.keys.set_index("key")
    assert {"intent", "product", "priority", "entities"} <= set(keys.index) and (keys.loc[["intent", "product", "priority"], "share"] == 1).all()
    assert keys.loc["entities", "types"] == "object" and keys.loc["intent", "types"] == "text"
    assert len(found.weeks) == 26 and found.weeks["rows"].sum() == 6000
    assert {"channel", "query.priority"} <= set(found.categories["column"])


def test_broken_json_is_counted_by_cell():
    cells = ['{"a": 1}', '{"a": "x", "b": {"c": null}}', '{"a": NaN}', '{"a": 1', "", None, "[1]", '{"a": true}', '{"a": 2}', '{"a": 3}']
    keys, valid, _ = describe_json(pd.Series(cells, dtype="str"))
    assert valid.tolist() == [True, True, False, False, False, False, False, True, True, True]
    row = keys.set_index("key").loc["a"]
    assert row["types"] == "number, text, truth value" and row["share"] == 1
    assert keys.set_index("key").loc["b.c", "types"] == "null"
    frame = pd.DataFrame({"text": [f"text number {i}" for i in range(20)], "q": ['{"a": 1}'] * 18 + ["oops", '{"a": ']})
    finding = profile(frame, tokenizer=None).findings.set_index("finding").loc["Column 'q' is not valid JSON"]
    assert finding["count"] == 2 and finding["rows"] == "row 19, row 20" and finding["severity"] == "high"


def test_weeks_begin_on_monday_and_gaps_are_findings():
    times = pd.to_datetime(["2026-01-04 23:59:59", "2026-01-05", "2026-01-26", None], format="ISO8601")
    weeks = count_weeks(pd.Series(times))
    assert weeks["week"].dt.day_of_week.eq(0).all() and weeks["rows"].tolist() == [1, 1, 0, 0, 1]
    result = profile(pd.DataFrame({"text": list("abcd"), "time": times}), tokenizer=None)
    assert any("Weeks without a row: 2026-01-12, 2026-01-19" in f for f in result.findings["finding"])
    assert any("Column 'time' has gaps" in f for f in result.findings["finding"])


SPANS = [("2016-01-04", "2025-12-21", "week", 520), ("2016-01-04", "2025-12-22", "month", 120), ("1982-09-30", "2025-12-31", "month", 520), ("1982-08-31", "2025-12-31", "year", 44), ("1506-12-31", "2025-01-01", "year", 520),
         ("1505-12-31", "2025-01-01", "decade", 53), ("0001-01-01", "9999-12-31", "century", 100), ("-290000-01-01", "290000-01-01", "millennium", 581), ("1969-12-28", "1969-12-29", "week", 2)]


@pytest.mark.parametrize("first, last, unit, n", SPANS)
def test_a_long_time_is_counted_by_a_longer_unit(first, last, unit, n):
    times = np.array([last, first, "NaT", first], "datetime64[us]")
    found = count_weeks(pd.Series(times))
    assert list(found) == [unit, "rows"] and len(found) == n and found["rows"].iloc[[0, -1]].tolist() == [2, 1] and found["rows"].sum() == 3
    starts = found[unit].to_numpy()
    assert (starts[1:] > starts[:-1]).all() and starts[-1] <= times[0] and starts[0] <= times[1] and found[unit].dtype == "datetime64[us]"
    result = profile(pd.DataFrame({"text": list("abcd"), "at": times}), tokenizer=None, signals=["lengths"])
    many = {"century": "centuries", "millennium": "millennia"}.get(unit, f"{unit}s")
    assert result.summary[f"n_{many}"] == n and sum(name in result.summary for name in ("n_weeks", "n_months", "n_years", "n_decades", "n_centuries", "n_millennia")) == 1
    assert any("Weeks without a row" in finding for finding in result.findings["finding"]) == (unit == "week" and n > 2)
    figure = result.figure("weeks")
    assert figure.layout.xaxis.title.text == f"{unit} beginning" and figure.layout.title.text == f"Rows by {unit}" and len(figure.data[0].x) == n and len(figure.to_json()) < 40_000
    assert "<img" in result._repr_mimebundle_()["text/html"]


@pytest.mark.filterwarnings("error")
def test_of_infinite_numbers_the_finite_ones_are_described():
    inf = float("inf")
    frame = pd.DataFrame({"some": [inf, -inf, None, *range(11)], "none": [inf, -inf, None, *[inf] * 11], "whole": pd.array([None, *range(13)], "Int64")})
    found = describe_columns(frame)
    assert found["top"][0] == "0 to 10, half of them up to 5" and found["top"][2] == "0 to 12, half of them up to 6" and not found["top"].str.contains("nan").any()
    flagged = profile(frame.assign(text="x"), tokenizer=None, signals=["lengths"]).findings.set_index("finding")
    assert flagged.loc["Column 'some' holds infinite numbers", "count"] == 2


@pytest.mark.parametrize("ids", [["a", None, "c"], ["a", "a", "c"], [1, None, 3], [None, None, None]])
def test_rows_without_a_name_of_their_own_are_called_by_their_number(ids):
    frame = pd.DataFrame({"id": pd.Series(ids, dtype="Int64" if 1 in ids else "str"), "text": ["the same text", "the same text", "another"]})
    result = profile(frame, tokenizer=None, compare_with=frame)
    assert result.frame["id"].tolist() == ["row 1", "row 2", "row 3"] and result.duplicates["id"].notna().all() and result.frame["overlap"].notna().all()
    for finding in result.findings.itertuples():
        if finding.where: assert len(View(result.beside(frame), json.loads(finding.where))) == finding.count, finding.finding
    assert profile(frame.assign(id=["a", "b", "c"]), tokenizer=None).frame["id"].tolist() == ["a", "b", "c"]


def test_bins_hold_every_row():
    rng = np.random.default_rng(0)
    for lengths in ([0], [5] * 10, rng.integers(0, 3000, 10_000), [1] * 500 + [10**7], np.arange(39)):
        bins = length_bins(lengths)
        assert bins["rows"].sum() == len(lengths) and len(bins) <= 41
        assert (bins["end"].to_numpy()[:-1] == bins["start"].to_numpy()[1:]).all() and bins["end"].iloc[-1] > max(lengths)


# --- the result ----------------------------------------------------------------------------------------------------


def test_result_is_the_same_again_and_small(helpdesk, found):
    again = profile(helpdesk, tokenizer=None)
    assert again.summary == found.summary == json.loads(json.dumps(found.summary))
    for name in ("frame", "findings", "columns", "keys", "duplicates", "weeks", "categories", "topics"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(found, name))
    for name in found.figures():
        assert len(found.figure(name).to_json()) < (120_000 if name == "topics" else 25_000), "drawn from counts"
    assert len(found._repr_mimebundle_()["text/html"]) < 500_000
    # Folds and maps are drawn by place, names are learnt from every other row of many; everything else is the same in any order.
    kept = lambda summary: {k: v for k, v in summary.items() if k not in ("dataset", "n_personal", "n_suspect_labels", "n_topics", "n_findings", "n_medium")}
    shuffled = profile(helpdesk.frame.sample(frac=1, random_state=0), tokenizer=None, signals=[name for name in CHECKS if name != "topics"])
    assert kept(shuffled.summary) == kept(found.summary)


def test_signature_freezes():
    declared = parameters_of(profile)
    assert list(declared) == ["dataset", "text_column", "tokenizer", "columns", "signals", "label_column", "compare_with", "similarity", "max_length_tokens", "encoder", "seed", "engine"]
    assert "dataset" in parameters_cell(profile) and "tasks" in parameters_cell(prepare)


@pytest.mark.parametrize("file, text_column", [("e2e/devset.csv", "ref"), ("self_instruct/seed_tasks.jsonl", "instruction"), ("bipia/email_test.jsonl", "context"),
                                               ("naughty_strings/blns.json", "text")])
def test_real_data(file, text_column, shared_data):
    result = profile(shared_data / file, text_column=text_column, tokenizer=None)
    dataset = read_dataset(shared_data / file)
    assert len(result.frame) == len(dataset) and result.summary["n_rows"] == len(dataset)
    assert len(result.words()) >= 1 and "<script" not in result._repr_mimebundle_()["text/html"].lower().replace("&lt;script", "")
    if "e2e" in file:
        assert result.summary["n_exact_duplicates"] == dataset.frame["ref"].duplicated().sum()
    if "naughty" in file:
        assert result.summary["n_hidden"] > 10


def test_hostile_names_and_values_are_shown_not_obeyed():
    bad = "<img src=x onerror=alert(1)> $\\href{javascript:x}{y}$"
    frame = pd.DataFrame({"text": [f"{bad} {i}" for i in range(30)], bad: [bad, "b", "c"] * 10, "q": [json.dumps({bad: bad})] * 30})
    result = profile(frame, tokenizer=None)
    html = result._repr_mimebundle_()["text/html"]
    assert "<img src=x" not in html and "$\\href" not in html
    for name in result.figures():
        assert "<img" not in result.figure(name).to_json() and "$" not in result.figure(name).to_json()


BAD = {
    "no such column": ({"text_column": "texts"}, MissingColumnError, "Did you mean 'text'?"),
    "no such other column": ({"columns": ["chanel"]}, MissingColumnError, "Did you mean 'channel'?"),
    "no such dataset": ({"dataset": "helpdeks"}, SourceNotFoundError, "Did you mean 'helpdesk'?"),
    "no such tokenizer": ({"tokenizer": "no-such-model"}, ModelNotFoundError, "no-such-model"),
    "similarity out of range": ({"similarity": 80}, ParameterValueError, "similarity=80"),
    "no such signal": ({"signals": ["languages"]}, ParameterValueError, "Did you mean 'language'?"),
    "no such label": ({"label_column": "chanel"}, MissingColumnError, "Did you mean 'channel'?"),
    "no such other data": ({"compare_with": "helpdeks"}, SourceNotFoundError, "Did you mean 'helpdesk'?"),
    "no texts": ({"dataset": pd.DataFrame({"text": [None]})}, UserError, "the text is missing"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_explained_in_a_line(case):
    options, error, message = BAD[case]
    given = {"dataset": pd.DataFrame({"text": ["a", "b"], "channel": ["x", "y"]}), "tokenizer": None, **options}
    with pytest.raises(error) as caught:
        profile(**given)
    assert message in str(caught.value) and "\n" not in str(caught.value) and caught.value.exit_code == 2

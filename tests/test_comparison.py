"""Comparisons: p-values beside sacrebleu's, questions asked again, slices and seeds judged on data they were not made from, and no more false alarms than stated."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmops_workbench import evidence as evidence_module
from llmops_workbench import significance as significance_module
from llmops_workbench.comparison import compare
from llmops_workbench.contrasts import all_pairs, tabulate
from llmops_workbench.display import picture
from llmops_workbench.errors import ParameterValueError, SourceNotFoundError
from llmops_workbench.evidence import gather, pair
from llmops_workbench.exports import paper_table, to_latex
from llmops_workbench.foreign import foreign
from llmops_workbench.fronts import pareto_front
from llmops_workbench.measures import FOREIGN
from llmops_workbench.measures import METRICS as EVERY_METRIC
from llmops_workbench.models import ScriptedModel
from llmops_workbench.outcomes import changed_params, regressions, win_tie_loss
from llmops_workbench.pictures import undrawable
from llmops_workbench.prompting import run_grid
from llmops_workbench.seeds import group_runs
from llmops_workbench.significance import (difference_p_value, flips_p_value, holm, interval, needed_answers, needed_examples, randomised_p_value,
                                           drawn_counts, resample_counts, swap_masks, widen_confidence, widen_p_value)
from llmops_workbench.slices import find_slices, make_rules
from llmops_workbench.store import open_store
from llmops_workbench.systems import as_system

THINGS = ["printer", "laptop", "badge", "screen"]


def answers(n=60, seed=0, systems=("first", "second", "third"), **columns):
    "Frames of systems that each get some words wrong; ids sort as they stand."
    rng = np.random.default_rng(seed)
    wanted = [f"the {rng.choice(THINGS)} on floor {rng.integers(9)} does not start since {rng.integers(1, 29)}" for _ in range(n)]
    def spoil(text, share): return " ".join(word if rng.random() > share else "thing" for word in text.split())
    return {name: pd.DataFrame({"id": [f"e{i:04}" for i in range(n)], "input": wanted, "prediction": [spoil(text, 0.1 + 0.1 * k) if rng.random() > 0.3 else text for text in wanted],
                                "references": wanted, **columns}) for k, name in enumerate(systems)}


# --- the tests, beside sacrebleu's

@pytest.fixture(scope="module")
def paired_translations(translations):
    wanted, first, second = ([text for text in texts[:400]] for texts in translations.values())
    frames = {name: as_system(pd.DataFrame({"id": [f"{i:04}" for i in range(len(given))], "prediction": given, "references": wanted}), name) for name, given in (("first", first), ("second", second))}
    found = gather(frames, "")
    found.count(["bleu"])
    return found, (wanted, first, second)


@pytest.mark.parametrize("kind", ["bs", "ar"])
def test_p_values_are_those_of_sacrebleu_within_sampling_error(paired_translations, kind, monkeypatch):
    from sacrebleu.metrics import BLEU
    from sacrebleu.significance import PairedTest
    found, (wanted, first, second) = paired_translations
    theirs, mine, n = [], [], 1000
    for seed in range(3):
        monkeypatch.setenv("SACREBLEU_SEED", str(seed))
        _, told = PairedTest([("first", first), ("second", second)], {"BLEU": BLEU(references=[wanted])}, references=None, test_type=kind, n_samples=n)()
        theirs.append(told["BLEU"][1].p_value)
        both = pair(found, ["first", "second"], n_resamples=n, seed=seed + 100)
        values, samples = both.values("bleu"), both.samples("bleu")
        assert values == pytest.approx([result.score for result in told["BLEU"]], abs=1e-9)
        if kind == "ar":
            mine.append(tabulate([both], [["bleu"]], "first", test="randomisation")["p_value"][1])
        else:
            mine.append(difference_p_value(samples[1] - samples[0], values[1] - values[0], "sacrebleu"))
            # sacrebleu's interval is the middle 95 %, told as half its width.
            assert np.diff(np.quantile(samples[1], [0.025, 0.975]))[0] / 2 == pytest.approx(told["BLEU"][1].ci, rel=0.15)
    share = np.mean(theirs)
    assert 0.002 < share < 0.9, "the data have to leave something to be decided"
    # Both are means of three binomial counts.
    assert abs(np.mean(mine) - share) < 4 * math.sqrt(2 * share * (1 - share) / (3 * n)), (mine, theirs)


def test_the_centred_bootstrap_and_the_randomisation_agree(paired_translations):
    found, _ = paired_translations
    both = pair(found, ["first", "second"], n_resamples=4000)
    p_values = [tabulate([both], [["bleu"]], "first", test=test)["p_value"][1] for test in ("bootstrap", "randomisation")]
    assert abs(np.subtract(*p_values)) < 0.03


def test_all_pairs_are_the_pairs_one_by_one():
    frames = {name: as_system(frame, name) for name, frame in answers().items()}
    found = gather(frames, "")
    found.count(["rougeL"])
    table = all_pairs(pair(found, list(frames)), "rougeL").set_index(["system", "against"])
    for (one, other), row in table.iterrows():
        own = tabulate([pair(found, [one, other])], [["rougeL"]], other).iloc[0]
        assert [row["delta"], row["low"], row["high"], row["p_value"]] == pytest.approx([own["delta"], own["delta_low"], own["delta_high"], own["p_value"]])


def test_mcnemar_of_many_pairs_is_that_of_scipy():
    from scipy.stats import binomtest
    mended, broken = np.meshgrid(np.arange(25), np.arange(25))
    found = flips_p_value(mended, broken)
    for a, b, p in zip(mended.ravel(), broken.ravel(), found.ravel()):
        assert p == pytest.approx(binomtest(a, a + b, 0.5).pvalue if a + b else 1.0)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=10))
def test_randomisation_is_the_exact_test_on_few_examples(gaps):
    "All ways to swap, counted, beside a sample of them."
    gaps = np.array(gaps)
    every = np.array(np.meshgrid(*[[-1, 1]] * len(gaps))).reshape(len(gaps), -1).T @ gaps
    exact = (np.abs(every) >= abs(gaps.sum()) - 1e-9).mean()
    masks = np.concatenate(list(swap_masks(len(gaps), 4000, 0)))
    drawn = gaps.sum() - 2 * masks.astype(float) @ gaps
    assert abs(randomised_p_value(np.round(drawn, 9), round(gaps.sum(), 9)) - exact) < 0.05


@pytest.mark.parametrize("scale", [1, 1e4, 1e7])
def test_ties_count_in_the_randomisation_whatever_the_size_of_the_values(scale):
    "Seven differences of eight fall to one side, all equally large: 18 of 256 ways to swap are as clear."
    for seed in range(4):
        frames = answers(8, systems=("a", "b"))
        waits = scale * (1 + np.random.default_rng(seed).random(8))
        frames = {name: frame.assign(latency_s=waits + gap) for (name, frame), gap in zip(frames.items(), (0, np.array([0.1] * 7 + [-0.1])))}
        found = compare(frames, metrics=["exact_match"], slices=False, test="randomisation", n_resamples=4000).frame.set_index(["system", "metric"])
        assert found.loc[("b", "latency_s"), "p_value"] == pytest.approx(18 / 256, abs=0.012)


# --- draws and sums, to the last digit

@pytest.mark.parametrize("compiled", ["0", "1"])
@pytest.mark.parametrize("n, n_resamples", [(1, 30), (2, 301), (3, 301), (64, 70), (1025, 40), (65_537, 70), (1_500_001, 5)])
def test_draws_are_those_of_numpy_across_chunks(n, n_resamples, compiled, monkeypatch):
    "Odd sizes, powers of two, and more than one chunk: half of a random word of 64 bits is left for the next."
    monkeypatch.setenv("LLMOPS_NUMBA", compiled)
    rng = np.random.default_rng(n)
    expected = np.stack([np.bincount(rng.choice(n, n), minlength=n) for _ in range(n_resamples)])
    assert np.array_equal(np.concatenate(list(drawn_counts(n, n_resamples, n))), expected)


def test_words_that_would_favour_some_examples_are_refused():
    "A word of zero is refused by three examples, and one that ends in a row asks for more words."
    words, counts = np.array([0, 2**31, 0, 0, 2**32 - 1, 1, 5, 2**31, 7], np.uint32), np.empty((2, 3), np.uint16)
    assert significance_module._tally(words, counts) == 9
    assert counts.tolist() == [[1, 1, 1], [2, 1, 0]]
    assert significance_module._tally(words[:8], counts) == -1 and significance_module._tally(words[:4], counts) == -1


def summed(column, n_resamples=300):
    "Sums of one column over samples, as a comparison makes them, and exactly."
    parts = evidence_module._split(np.array([column], float))
    drawn = evidence_module.products("bootstrap", parts.reshape(-1, len(column)), n_resamples, 1).astype(float).sum(1)
    return drawn, np.array([math.fsum(row) for row in np.concatenate(list(resample_counts(len(column), n_resamples, 1))) * column])


def test_sums_of_nearly_equal_values_at_the_edge_of_32_bits_are_right():
    n, rng = 1500, np.random.default_rng(0)
    edge = 2**24 / n
    drawn, exact = summed(np.where(rng.random(n) < 0.1, math.ceil(edge) - 1, edge * (1 - 1e-9)) / 1024)
    assert drawn == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize("scale", [1e-200, 1e-35, 1e-6, 1.0, 1e6, 1e37, 1e300])
def test_sums_of_values_of_any_size_are_right(scale):
    drawn, exact = summed(np.random.default_rng(0).normal(1, 1, 200) * scale)
    assert drawn == pytest.approx(exact, rel=1e-10, abs=0)


# --- false alarms

def swapped_copies(n, trials, seed, spread=0.1):
    "Differences of a system to copies of itself with the labels of each pair swapped at random, shape (n, trials); heavy tails, as sentence scores have."
    rng = np.random.default_rng(seed)
    return (rng.standard_t(3, n) * spread + 0.05)[:, None] * rng.choice([-1.0, 1.0], (n, trials))


def most(rate, trials): return rate + 3 * math.sqrt(rate * (1 - rate) / trials)


@pytest.mark.parametrize("n", [12, 40, 200])
@pytest.mark.parametrize("test", ["bootstrap", "randomisation"])
def test_a_shuffled_copy_is_told_apart_no_more_often_than_stated(n, test):
    trials = 1000
    gaps = swapped_copies(n, trials, n)
    delta, drawn = gaps.mean(0), np.concatenate(list(resample_counts(n, 1000, 1))) @ gaps / n
    low, high = interval(drawn, widen_confidence(0.95, n))
    if test == "bootstrap":
        p_values = widen_p_value(difference_p_value(drawn.T, delta), n)
    else:
        p_values = randomised_p_value((delta - 2 * np.concatenate(list(swap_masks(n, 1000, 1))).astype(float) @ gaps / n).T, delta)
    called = (p_values <= 0.05) & ((low > 0) | (high < 0))
    assert called.mean() <= most(0.05, trials)
    assert called.mean() > 0.01, "a test that never speaks tells nothing"


def test_samples_without_a_value_are_left_out_of_the_test():
    "Few of many examples have a waiting time, so that a sample may have none at all."
    gaps = np.random.default_rng(7).normal(0.1, 0.3, 7)
    def told(n):
        waits = [np.concatenate([5 + part, np.full(n - 7, np.nan)]) for part in (0 * gaps, gaps)]
        frames = {name: frame.assign(latency_s=wait) for (name, frame), wait in zip(answers(n, systems=("a", "b")).items(), waits)}
        found = compare(frames, metrics=["exact_match"], slices=False)
        return np.isnan(found.pairings[0].samples("latency_s")).sum(), found.frame.set_index(["system", "metric"]).loc[("b", "latency_s")]
    lost, row = told(60)
    _, few = told(7)
    assert lost and row["p_value"] == pytest.approx(few["p_value"], abs=0.1) and row["p_value"] > 0.05
    assert pd.notna(row["n_needed"]) and "more examples would tell" in row["verdict"]
    assert np.isnan(difference_p_value([[np.nan, np.nan]], [0.1])).all()


def test_ties_with_chance_count_in_slices():
    "Yes and no give the same contrast many times; rounding must not make one of them the larger."
    rules, lost = make_rules(pd.DataFrame({"k": np.repeat(list("abcde"), 40)})), 0
    for seed in range(10):
        values = {"a": (np.random.default_rng(seed).random(200) < 0.7) * 1.0}
        found = find_slices(rules, values, alpha=0.999, n_permutations=400, seed=seed)
        if not len(found): continue
        # The same contrasts from whole numbers: each rule picks forty examples.
        rng = np.random.default_rng(seed)
        most = [(rules.masks @ values["a"][rng.permutation(200)]).min() for _ in range(400)]
        assert found["p_adjusted"].iloc[0] == pytest.approx((np.sum(np.array(most) <= (rules.masks @ values["a"]).min()) + 1) / 401)
        lost += 1
    assert lost > 5


def test_mcnemar_calls_a_shuffled_copy_different_no_more_often_than_stated():
    flips = np.random.default_rng(0).binomial(60, 0.5, 1000)
    assert 0.005 < (flips_p_value(flips, 60 - flips) <= 0.05).mean() <= most(0.05, 1000)


def test_holm_holds_the_rate_over_several_metrics():
    "Four metrics at once: any claim is a false one."
    n, trials, rng = 60, 1000, np.random.default_rng(3)
    draws, p_values = np.concatenate(list(resample_counts(n, 1000, 1))), []
    for metric in range(3):
        gaps = swapped_copies(n, trials, metric)
        p_values.append(widen_p_value(difference_p_value((draws @ gaps / n).T, gaps.mean(0)), n))
    flips = rng.binomial(20, 0.5, trials)
    p_values.append(flips_p_value(flips, 20 - flips))
    claims = np.array([(holm(row) <= 0.05).any() for row in np.array(p_values).T])
    assert claims.mean() <= most(0.05, trials)
    assert (np.array(p_values).min(0) <= 0.05).mean() > 0.1, "without the correction it would be two to four times as many"


@pytest.mark.parametrize("test", ["bootstrap", "randomisation"])
def test_a_whole_comparison_with_a_shuffled_copy_holds_the_rate(test):
    frames, claims, trials = answers(40, systems=("a", "b")), 0, 120
    first, second = frames["a"]["prediction"].to_numpy(), frames["b"]["prediction"].to_numpy()
    for trial in range(trials):
        swap = np.random.default_rng(trial).random(40) < 0.5
        one = frames["a"].assign(prediction=np.where(swap, second, first))
        other = frames["a"].assign(prediction=np.where(swap, first, second))
        table = compare({"a": one, "b": other}, metrics=["token_f1", "exact_match", "rougeL"], test=test, slices=False, n_resamples=500).frame
        claims += table["verdict"].isin(["better", "worse"]).any()
    assert claims / trials <= most(0.05, trials)


# --- how many more

def test_the_needed_examples_have_the_power_they_promise():
    rng, n = np.random.default_rng(0), 100
    total = n + int(needed_examples(0.1, 0.5 / math.sqrt(n), n))
    means = rng.normal(0.1, 0.5, (3000, total)).mean(1) / (0.5 / math.sqrt(total))
    assert 0.77 < (np.abs(means) > 1.96).mean() < 0.83


@pytest.mark.parametrize("mended, broken", [(8, 3), (14, 12), (5, 0)])
def test_the_needed_answers_have_the_power_they_promise(mended, broken):
    n, rng = 50, np.random.default_rng(mended)
    total = n + int(needed_answers(mended, broken, n))
    flips = rng.multinomial(total, [mended / n, broken / n, (n - mended - broken) / n], 4000)
    assert 0.74 < (flips_p_value(flips[:, 0], flips[:, 1]) <= 0.05).mean() < 0.95


def test_a_verdict_says_how_many_more_it_would_take():
    frames = answers(50, systems=("a", "b"))
    row = compare(frames, metrics=["rougeL", "exact_match"]).frame
    open_ = row[row["verdict"].str.startswith("not distinguishable")]
    assert len(open_) and (open_["n_needed"] > 0).all() and open_["verdict"].str.contains("more examples would tell").all()
    told = compare({"a": frames["a"], "b": frames["a"].assign(prediction="nothing")}).frame.query("system == 'b'")
    assert told["verdict"].eq("worse").all() and told["n_needed"].eq(0).all()
    assert compare(frames).frame.query("system == 'a'")["n_needed"].isna().all()


# --- asked again

METRICS = ["token_f1", "bleu", "exact_match"]


def same(mine, fresh):
    pd.testing.assert_frame_equal(mine.frame, fresh.frame)
    pd.testing.assert_frame_equal(mine.examples, fresh.examples)
    drop = lambda result: {name: value for name, value in result.summary.items() if name not in ("slices", "n_rules")}
    assert drop(mine) == drop(fresh)


@pytest.fixture
def gaps():
    "Three systems, of which each failed on other examples; one has two tasks and one took its time."
    frames = answers(60, room=["lab", "office", "home"] * 20)
    frames["second"].loc[3:9, "prediction"] = None
    frames["third"] = frames["third"].assign(latency_s=np.where(np.arange(60) % 5, 1.0, np.nan)).drop(index=range(20, 25))
    return {name: pd.concat([frame.assign(task="a"), frame.head(30).assign(task="b")], ignore_index=True) for name, frame in frames.items()}


@pytest.mark.parametrize("change", [{"baseline": "third"}, {"systems": ["third", "first"]}, {"systems": ["second"]}, {"metrics": ["exact_match"]}, {"test": "randomisation"}, {"rows": [f"e{i:04}" for i in range(0, 60, 2)]},
                                    {"baseline": "second", "rows": [f"e{i:04}" for i in range(31, 50)], "metrics": ["bleu"]}], ids=str)
def test_another_question_is_answered_as_if_asked_at_first(gaps, change, monkeypatch):
    first = compare(gaps, metrics=METRICS)
    calls = []
    monkeypatch.setattr(evidence_module, "score", lambda *given, **more: calls.append(given))
    mine = first.again(**change)
    monkeypatch.undo()
    assert not calls, "no text is scored again"
    kept = change.get("rows")
    frames = {name: frame[frame["id"].isin(kept)] if kept else frame for name, frame in gaps.items() if name in change.get("systems", gaps)}
    frames = {name: frames[name] for name in change.get("systems", frames)}
    same(mine, compare(frames, baseline=mine.baseline, metrics=change.get("metrics", METRICS), test=change.get("test", "bootstrap")))


def test_a_mask_a_mask_of_a_mask_and_all_of_them(gaps):
    first = compare(gaps, metrics=METRICS, slices=False)
    lab = first.again(rows=(first.about["room"] == "lab").to_numpy())
    assert set(lab.about["room"]) == {"lab"} and len(lab.about) == (first.about["room"] == "lab").sum()
    early = lab.again(rows=(lab.about["id"] < "e0030").to_numpy())
    both = first.again(rows=((first.about["room"] == "lab") & (first.about["id"] < "e0030")).to_numpy())
    pd.testing.assert_frame_equal(early.frame, both.frame)
    pd.testing.assert_frame_equal(early.again(rows="all").frame, first.frame)
    pd.testing.assert_frame_equal(lab.again(rows=list(lab.about["id"])).frame.drop(columns="n_unscored"), lab.frame.drop(columns="n_unscored"))


def test_a_metric_that_was_not_scored_is_scored_then(gaps):
    first = compare(gaps, metrics=["exact_match"], slices=False)
    pd.testing.assert_frame_equal(first.again(metrics=["rougeL"]).frame, compare(gaps, metrics=["rougeL"], slices=False).frame)


def test_wrong_questions_say_what_there_is(gaps):
    first = compare(gaps, slices=False)
    with pytest.raises(ParameterValueError, match="Did you mean 'second'"): first.again(baseline="secnd")
    with pytest.raises(ParameterValueError, match="The systems are: first, second, third"): first.again(systems=["other"])
    with pytest.raises(ParameterValueError, match="No system is left"): first.again(systems=[])
    with pytest.raises(ParameterValueError, match="entries and there are"): first.again(rows=np.ones(3, bool))
    with pytest.raises(ParameterValueError, match="no task in common"): first.again(rows=["nothing"])
    with pytest.raises(ParameterValueError, match="No rule says"): first.rows_of("language is de")
    with pytest.raises(ParameterValueError, match="No system has the figure 'cost'"): first.front("cost")
    with pytest.raises(ParameterValueError, match="There is no task 'c'. The tasks are: a, b"): first.front("bleu", task="c")
    with pytest.raises(ParameterValueError, match="'test' was given 'foo'"): first.again(test="foo")
    with pytest.raises(ParameterValueError, match="no system 'secnd' in the group 'x'"): first.again(groups={"x": ["secnd", "third"]})
    assert first.again(systems=["third", "first", "third"]).front("bleu")["system"].tolist() == ["third", "first"]


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 10_000), st.permutations(["first", "second", "third"]))
def test_neither_order_nor_the_side_of_a_system_changes_what_is_found(seed, order):
    frames = answers(15, seed)
    one = compare(frames, baseline="first", metrics=["token_f1", "exact_match"], slices=False, n_resamples=200).frame.set_index(["system", "metric"])
    mixed = {name: frames[name].sample(frac=1, random_state=seed) for name in order}
    other = compare(mixed, baseline="first", metrics=["token_f1", "exact_match"], slices=False, n_resamples=200).frame.set_index(["system", "metric"]).loc[one.index]
    pd.testing.assert_frame_equal(one, other)
    turned = compare(frames, baseline="second", metrics=["token_f1", "exact_match"], slices=False, n_resamples=200).frame.set_index(["system", "metric"])
    for metric in one.loc["second"].index:
        here, there = one.loc["second", metric], turned.loc["first", metric]
        assert [here["delta"], here["delta_low"], here["p_value"]] == pytest.approx([-there["delta"], -there["delta_high"], there["p_value"]])


# --- bad input

def test_one_example_has_a_value_and_no_interval():
    found = compare({"a": ["a printer"], "b": ["the printer"]}, ["the printer"])
    assert found.frame[["low", "high", "delta_low", "delta_high", "p_value"]].isna().all(axis=None) and found.frame["value"].notna().all()
    assert found.frame.query("system == 'b'")["verdict"].eq("not distinguishable at n = 1; one example has no interval").all()
    assert "NaN" not in json.dumps(found.summary)
    for name in found.figures(): assert "NaN" not in found.figure(name).to_json()
    assert "nan" not in " ".join(found.words())


def test_no_interval_is_no_interval_in_latex():
    table = paper_table(compare({"a": ["a printer"], "b": ["the printer"]}, ["the printer"]).frame)
    assert "[" not in to_latex(table).split(r"\midrule")[1] and r"\pm" not in to_latex(table, intervals="pm")


@pytest.mark.parametrize("given, told", [({"test": "t-test"}, "'test' was given 't-test'"), ({"n_resamples": 0}, "'n_resamples' was given 0"), ({"confidence": 95}, "'confidence' was given 95")], ids=str)
def test_wrong_settings_are_refused_from_python_too(given, told):
    with pytest.raises(ParameterValueError, match=told): compare(answers(10), **given)


def test_what_is_no_system_is_refused():
    with pytest.raises(ParameterValueError, match="'a' is None"): compare({"a": None})
    with pytest.raises(ParameterValueError, match="'a' is 5"): compare({"a": 5})
    with pytest.raises(ParameterValueError, match="systems is one text"): compare("a.csv")
    with pytest.raises(ParameterValueError, match="a: nothing; b: nothing"): compare({"a": [], "b": []}, [])
    frame = answers(10, systems=("a",))["a"]
    with pytest.raises(ParameterValueError, match="'a' has no id in 2 of its 10 rows"): compare({"a": frame.assign(id=[None, np.nan, *"abcdefgh"])})
    with pytest.raises(ParameterValueError, match="'latency_s' of 'a' has 'slow'"): compare({"a": frame.assign(latency_s=["slow"] + ["1.5"] * 9)})


def test_repeats_of_odd_names_are_repeats():
    one, other = answers(20, systems=("a", "b")).values()
    twice = pd.concat([one.assign(repeat="first"), other.assign(repeat=1), one.assign(repeat=None)])
    row = compare({"a": one, "b": twice}, metrics=["exact_match"], slices=False).groups.set_index("group").loc["b"]
    assert row["n_runs"] == 3 and np.isfinite(row["values"]).all()


def test_an_infinite_value_is_none_and_a_huge_one_is_one():
    frames = answers(30, systems=("a", "b"))
    frames = {name: frame.assign(latency_s=[last, *np.linspace(1, 2, 29)]) for (name, frame), last in zip(frames.items(), (1.0, np.inf))}
    row = compare(frames, metrics=["exact_match"]).frame.set_index(["system", "metric"]).loc[("b", "latency_s")]
    assert row["value"] == pytest.approx(1.5) and row["n"] == 29 and row[["low", "high", "delta", "p_value"]].notna().all()
    frames["b"].loc[0, "latency_s"] = 1e300
    row = compare(frames, metrics=["exact_match"]).frame.set_index(["system", "metric"]).loc[("b", "latency_s")]
    assert row[["low", "high", "delta_low", "delta_high"]].notna().all() and row["verdict"].startswith("not distinguishable")


@pytest.mark.parametrize("test", ["bootstrap", "randomisation"])
def test_a_system_of_which_a_metric_knows_nothing_stands_beside_the_others(test):
    frames = answers(20, systems=("a", "b"), confidence=0.8)
    frames["b"]["confidence"] = None
    found = compare(frames, metrics=["calibration_error", "exact_match"], test=test)
    verdicts = found.frame.set_index(["system", "metric"])["verdict"]
    assert verdicts["b", "calibration_error"] == "nothing was scored" and verdicts["b", "exact_match"].startswith(("not", "worse"))
    assert found.again(baseline="b").frame.set_index(["system", "metric"]).loc[("a", "calibration_error"), "verdict"] == "the baseline has no such figure"


def test_what_was_left_out_is_told_of_all_tasks_together():
    frames = answers(20, systems=("a", "b"))
    frames["b"].loc[:2, "prediction"] = None
    found = compare({name: pd.concat([frame.assign(task="x"), frame.assign(task="y")]) for name, frame in frames.items()}, slices=False)
    assert any("34 examples" in line for line in found.words()) and any(line.startswith("b: 6 answers failed or are missing") for line in found.words())


def test_predictions_that_are_all_missing_say_so():
    with pytest.raises(ParameterValueError, match="no scored example .* in common \\(a: 2, b: 0\\)"): compare({"a": ["x", "y"], "b": [None, None]}, ["x", "y"])


@pytest.mark.parametrize("given", [["", ""], ["...", "!?"], ["12", "3.5"], ["a\x00b", "\ud83d"]], ids=["empty", "punctuation", "numbers", "odd"])
def test_odd_predictions_have_defined_values(given):
    found = compare({"a": given, "b": ["x", "y"]}, ["x", "y"], metrics=["token_f1", "rougeL", "exact_match"])
    assert found.frame["value"].between(0, 1).all() and not found.frame["verdict"].isna().any()


def test_unequal_lengths_and_no_references_are_refused():
    with pytest.raises(ParameterValueError, match="2 predictions and there are 1 references"): compare({"a": ["x", "y"]}, ["x"])
    with pytest.raises(ParameterValueError, match="need a reference each"): compare({"a": ["x", "y"]})
    with pytest.raises(ParameterValueError, match="no scored example"): compare({"a": ["x", "y"]}, [None, None])


def blank(monkeypatch, metric, which):
    "Some examples have no value in a metric, as where a model gave none."
    score = evidence_module.score
    def scored(predictions, *given, **more):
        found = score(predictions, *given, **more)
        if metric in found.frame: found.frame.loc[[i for i, text in enumerate(predictions) if which(text)], metric] = math.nan
        return found
    monkeypatch.setattr(evidence_module, "score", scored)


@pytest.mark.parametrize("test", ["bootstrap", "randomisation"])
def test_what_was_not_scored_is_left_out_of_both_sides_and_counted(monkeypatch, test):
    frames = answers(50, systems=("a", "b"))
    lost = frames["b"]["prediction"].str.contains("printer")
    assert 0 < lost.sum() < 40
    blank(monkeypatch, "token_f1", lambda text: "printer" in text and text in set(frames["b"]["prediction"]) - set(frames["a"]["prediction"]))
    gone = frames["b"]["prediction"].str.contains("printer") & ~frames["b"]["prediction"].isin(frames["a"]["prediction"])
    found = compare(frames, metrics=["token_f1", "exact_match"], test=test, slices=False)
    row = found.frame.set_index(["system", "metric"])
    assert row.loc[("b", "token_f1"), "n"] == (~gone).sum() and row.loc[("b", "token_f1"), "n_unscored"] == gone.sum() and row.loc[("b", "exact_match"), "n_unscored"] == 0
    assert row.loc[("a", "token_f1"), "n"] == 50
    monkeypatch.undo()
    rest = compare({name: frame[~gone.to_numpy()] for name, frame in frames.items()}, metrics=["token_f1"], test=test, slices=False).frame.set_index(["system", "metric"])
    # The pair is made of the examples that both have; nothing of the others counts as wrong.
    assert row.loc[("b", "token_f1"), "value"] == pytest.approx(rest.loc[("b", "token_f1"), "value"])
    assert row.loc[("b", "token_f1"), "delta"] == pytest.approx(rest.loc[("b", "token_f1"), "delta"])
    assert row.loc[("b", "token_f1"), "p_value"] == pytest.approx(rest.loc[("b", "token_f1"), "p_value"], abs=0.08)
    assert any(f"token_f1 has no value for {gone.sum()} of 50 examples" in line for line in found.words())
    assert "unscored" in set(found.examples["change"])


def test_a_metric_without_any_value_is_said_to_have_none(monkeypatch):
    frames = answers(20, systems=("a", "b"))
    blank(monkeypatch, "token_f1", lambda text: text in set(frames["b"]["prediction"]))
    found = compare(frames, metrics=["token_f1", "exact_match"])
    assert found.frame.set_index(["system", "metric"]).loc[("b", "token_f1"), "verdict"] == "nothing was scored"
    json.dumps(found.summary, allow_nan=False)
    for name in found.figures(): assert "NaN" not in found.figure(name).to_json()


# --- slices

def planted(n, seed, weak=0.35):
    "Two systems of equal skill but for long German inputs, where the second fails."
    rng = np.random.default_rng(seed)
    language, words = rng.choice(["en", "de", "fr"], n), rng.integers(4, 60, n)
    examples = pd.DataFrame({"input": [" ".join(rng.choice(THINGS + ["vpn", "mail", "is", "down", "since", "monday"], size)) for size in words], "references": [["x"]] * n, "language": language,
                             "price": rng.random(n), "channel": rng.choice(["web", "phone"], n)})
    hard = (language == "de") & (words > np.median(words))
    return examples, {"first": (rng.random(n) < 0.8) * 1.0, "second": (rng.random(n) < np.where(hard, weak, 0.82)) * 1.0}, hard


@pytest.mark.parametrize("seed", range(100, 106))
def test_a_planted_weakness_is_found_and_nothing_else(seed):
    "On seeds that had no part in making it."
    examples, values, hard = planted(600, seed)
    rules = make_rules(examples)
    found = find_slices(rules, values, "first", ["second"], n_permutations=300)
    assert len(found) and set(found["system"]) == {"second"}
    best = rules.mask(found.query("against == 'its other examples'")["rule"].iloc[0])
    assert (best & hard).sum() / (best | hard).sum() > 0.6, found["rule"].tolist()
    assert found["high"].iloc[0] < 0


@pytest.mark.parametrize("kind", ["yes or no", "graded"])
def test_slices_of_nothing_are_found_no_more_often_than_stated(kind):
    examples, _, _ = planted(200, 7)
    rules, alarms, runs = make_rules(examples), 0, 80
    assert len(rules.words) > 100
    for seed in range(runs):
        rng = np.random.default_rng(1000 + seed)
        drawn = (rng.random((2, 200)) < 0.7) * 1.0 if kind == "yes or no" else rng.beta(2, 1, (2, 200))
        alarms += len(find_slices(rules, dict(zip(["first", "second"], drawn)), "first", ["second"], n_permutations=150, seed=seed)) > 0
    assert alarms / runs <= most(0.05, runs)


def test_a_comparison_names_its_slices_and_takes_them_as_questions():
    rng = np.random.default_rng(5)
    language = rng.choice(["en", "de"], 200)
    frames = answers(200, systems=("a", "b"), language=language)
    frames["b"]["prediction"] = np.where((language == "de") & (rng.random(200) < 0.7), "no idea", frames["a"]["prediction"])
    found = compare(frames, metrics=["token_f1"])
    top = found.slices[found.slices["system"] == "b"].iloc[0]
    assert "language is de" in top["rule"] and top["high"] < 0
    inside = found.again(rows=found.rows_of("language is de"))
    assert len(inside.about) == (language == "de").sum() and inside.frame.query("system == 'b'")["verdict"].eq("worse").all()
    assert any("is weak where" in line and "rules were looked at" in line for line in found.words())
    assert found.summary["slices"] and found.summary["n_rules"] == sum(len(rules.words) for rules in found.rules.values())
    assert "slices" in found.figures() and not undrawable(found.figure("slices")) and "Slices where a system is weak" in found.tables()
    assert "slices" not in compare(frames, slices=False).summary


# --- fronts

@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0, 2.0, math.nan]), st.sampled_from([0.0, 1.0, 2.0, math.nan])), min_size=1, max_size=8))
def test_the_front_is_what_nobody_beats(points):
    frame = pd.DataFrame(points, columns=["quality", "cost"])
    def beaten(a, b): return b[0] >= a[0] and b[1] <= a[1] and b != a
    known = [p for p in points if not any(map(math.isnan, p))]
    expected = [p in known and not any(beaten(p, q) for q in known) for p in points]
    assert pareto_front(frame, {"quality": True, "cost": False}).tolist() == expected


def test_costs_of_many_kinds_have_fronts():
    frames = {name: frame.assign(latency_s=1.0 + i, cost=0.1 * (3 - i), completion_tokens=20) for i, (name, frame) in enumerate(answers(30).items())}
    found = compare(frames)
    assert set(found.fronts["cost"]) == {"latency_s", "cost", "completion_tokens"} and found.front("cost")["x"].tolist() == pytest.approx([0.3, 0.2, 0.1])
    assert found.front("bleu", "rougeL")["on_front"].any()
    assert {"front", "costs"} <= set(found.figures()) and any("cannot be bettered" in line for line in found.words())
    for name in found.figures(): assert "data:image/" in picture(found.figure(name)), name


def test_names_with_a_comma_are_told_as_they_are():
    frames = answers(20, systems=("a,b", "c,d"))
    found = compare({name: frame.assign(latency_s=1.0 + i) for i, (name, frame) in enumerate(frames.items())}, metrics=["exact_match"], slices=False)
    told = next(line for line in found.words() if "cannot be bettered" in line)
    assert "a,b" in told and "c,d" in told


@pytest.mark.parametrize("metric, losses", [("ter", "gains left, losses right"), ("token_f1", "losses left, gains right")])
def test_the_change_of_examples_says_which_side_is_worse(metric, losses):
    found = compare(answers(20), metrics=[metric], slices=False)
    assert losses in found.figure("examples:").layout.xaxis.title.text


# --- seeds

def tries(rng, n, n_seeds, spread):
    "Runs of one recipe: what a seed gives differs from run to run."
    return [as_system(pd.DataFrame({"id": [f"{i:03}" for i in range(n)], "references": "yes", "prediction": np.where(rng.random(n) < 0.6 + rng.normal(0, spread), "yes", "no")}), "try") for _ in range(n_seeds)]


def test_groups_respect_seeds_as_well_as_examples():
    "Equal recipes whose seeds scatter: examples alone would call every other pair different."
    alarms, naive, runs = 0, 0, 100
    for trial in range(runs):
        rng = np.random.default_rng(trial)
        systems = dict(zip(["a0", "a1", "a2", "b0", "b1", "b2"], tries(rng, 150, 3, 0.08) + tries(rng, 150, 3, 0.08)))
        found = gather(systems, "")
        found.count(["exact_match"])
        both = pair(found, list(systems), n_resamples=200)
        told = group_runs([both], [["exact_match"]], {"a": ["a0", "a1", "a2"], "b": ["b0", "b1", "b2"]}, "a0")
        alarms += told["verdict"].iloc[1] in ("better", "worse")
        naive += flips_p_value(*[(sign * (both.each("exact_match")[3] - both.each("exact_match")[0]) > 0).sum() for sign in (1, -1)]) <= 0.05
    assert alarms / runs <= most(0.05, runs) < naive / runs


def test_two_examples_tell_no_groups_apart():
    "However alike seeds are: two examples that fall to one side do so by chance half of the time."
    def run(word): return pd.DataFrame({"id": ["1", "2"], "prediction": word, "references": "yes"})
    found = compare({"a0": run("no"), "a1": run("no"), "b0": run("yes"), "b1": run("yes")}, metrics=["exact_match"])
    told = found.again(groups={"a": ["a0", "a1"], "b": ["b0", "b1"]}).groups
    assert told["p_value"].iloc[1] == 0.5 and told["verdict"].iloc[1].startswith("not distinguishable")


# --- what the systems are

@pytest.fixture
def grid(workspace):
    "A prompt run of two prompts, one of them registered."
    from test_prompting import TASKS, tickets
    open_store().register_prompt("ask", "Which product? {text}")
    grid = run_grid([ScriptedModel("echo", name="echo")], tickets(), {"mine": "prompt:ask@1", "other": "Say it: {text}"}, split="all", tasks={"product": TASKS["product"]}, n_examples=12)
    return grid.log(stage="prompt", params={"prompts": {"other": "Say it: {text}"}, "n_examples": 12, "models": ["echo"]})


def test_prompts_and_models_stand_for_the_run_that_asked_with_them(grid, workspace):
    run = compare([f"run:{grid}"], slices=False)
    assert list(run.systems) == ["mine", "other"]
    mine = compare(["prompt:ask@1", f"run:{grid}"], slices=False)
    assert len(mine.systems) == 3 and mine.question.found[mine.baseline].frame["prediction"].tolist() == run.question.found["mine"].frame["prediction"].tolist()
    assert changed_params(run).loc["prompt_name"].tolist() == ["mine", "other"] and "n_examples" not in changed_params(run).index
    assert set(run.params["name"]) >= {"model", "prompt_name", "n_examples"}
    folder = workspace / "echo"
    folder.mkdir()
    (folder / "weights").write_text("1")
    store = open_store()
    store.register_model("talker", folder)
    store.set_model_alias("talker", "champion", 1)
    assert len(compare(["model:talker@champion"], slices=False).systems) == 2
    store.register_model("silent", folder / "weights")
    with pytest.raises(SourceNotFoundError, match="No prompt run in the store asked the model 'silent'"): compare(["model:silent"])
    store.register_prompt("unused", "Hello {text}")
    with pytest.raises(SourceNotFoundError, match="No prompt run in the store asked with 'prompt:unused@1'"): compare(["prompt:unused@1"])


class Tuned:
    "What a fine-tuning run keeps."
    def __init__(self, right, loss, seconds):
        words = [f"{thing} {i}" for i in range(6) for thing in THINGS]
        self.summary, self.outputs = {"train_s": seconds}, {"model": f"models/tuned-{loss}"}
        self.frame = pd.DataFrame({"step": [1, 2, 1], "name": ["loss", "loss", "eval_loss"], "value": [2.0, loss, loss + 0.1]})
        self.samples = pd.DataFrame({"id": [f"h{i:02}" for i in range(24)], "task": "thing", "prompt": words, "reference": words, "completion": [word if i < right else "?" for i, word in enumerate(words)]})

    def frames(self): return {"samples": self.samples}
    def words(self): return []


def test_fine_tuning_runs_are_compared_by_their_answers(workspace):
    store = open_store()
    runs = {f"{rate} {seed}": store.log_result(Tuned(right, loss, seconds), "finetune", {"learning_rate": rate, "seed": seed, "method": "lora", "dataset": "helpdesk"})
            for rate, seed, right, loss, seconds in ((1e-3, 0, 20, 0.4, 60), (1e-3, 1, 18, 0.5, 61), (1e-4, 0, 6, 0.9, 20), (1e-4, 1, 8, 0.8, 21))}
    found = compare({name: f"run:{run}" for name, run in runs.items()}, metrics=["exact_match"], group_seeds=True)
    assert changed_params(found).index.tolist() == ["learning_rate", "seed"] and len(found.params) == 20
    assert set(found.curves.columns) == {"system", "metric", "step", "value"} and len(found.curves) == 12 and {"curves", "groups"} <= set(found.figures())
    assert found.groups["group"].tolist() == ["learning_rate 0.001", "learning_rate 0.0001"] and found.groups["n_runs"].tolist() == [2, 2]
    assert found.groups["verdict"].iloc[1] == "worse" and any("over 2 seeds" in line for line in found.words())
    named = found.again(groups={"fast": list(runs)[:2], "slow": list(runs)[2:]})
    assert named.groups["group"].tolist() == ["fast", "slow"] and named.groups["mean"].tolist() == found.groups["mean"].tolist()
    # Half a minute of training against quality: what making them took is a figure too.
    assert found.front("train_s")["x"].tolist() == [60, 61, 20, 21] and found.front("train_s")["on_front"].tolist() == [True, False, True, True]
    for name in found.figures(): assert "data:image/" in picture(found.figure(name)), name
    record = store.get_run(found.log(store))
    assert {"frame", "examples", "groups", "params", "curves"} <= set(record.frames)
    assert record.frame("params")["value"].tolist() == found.params["value"].tolist()
    assert record.summary == json.loads(json.dumps(found.summary))


def test_lists_have_neither_parameters_nor_curves():
    found = compare({"a": ["x", "y"], "b": ["x", "z"]}, ["x", "y"])
    assert not len(found.params) and not len(found.curves) and not len(found.groups) and not len(changed_params(found))
    assert "curves" not in found.figures()


# --- what a panel asks

def test_wins_and_regressions_are_those_of_the_examples(gaps):
    found = compare(gaps, metrics=METRICS)
    for row in win_tie_loss(found).itertuples():
        own = found.examples[(found.examples["system"] == row.system) & (found.examples["task"] == row.task)]
        assert [row.wins, row.ties, row.losses] == [(own["change"] == change).sum() for change in ("gain", "same", "loss")]
    worse = regressions(found, "third", "second")
    other = found.again(baseline="second").examples.query("system == 'third' and change == 'loss'")
    assert sorted(zip(worse["task"], worse["id"])) == sorted(zip(other["task"], other["id"])) and len(worse)


def test_text_from_data_acts_nowhere():
    nasty = "<script>alert(1)</script>"
    frames = answers(80, systems=(nasty, "<b>b</b>"), language=[nasty, "de"] * 40)
    frames["<b>b</b>"]["prediction"] = np.where(np.arange(80) % 2 == 0, nasty, frames[nasty]["prediction"])
    found = compare({name: frame.assign(latency_s=1.0 + i) for i, (name, frame) in enumerate(frames.items())})
    page = found.static_html()
    assert "<script" not in page and "<b>b" not in page and len(found.slices)


def test_a_foreign_value_of_all_examples_is_compared_by_the_mean_of_theirs():
    rows = pd.DataFrame({"id": range(30), "prediction": ["a b", "c d e", "f"] * 10, "references": ["a b", "c d", "g"] * 10})
    longest = foreign(lambda predictions, references: float(max(map(len, predictions))), name="longest", batched=True)
    try:
        found = compare({"one": rows, "two": rows.assign(prediction=["a b", "c d", "f"] * 10)}, metrics=["rougeL", longest], slices=False)
        part = found.frame[found.frame["metric"] == "longest"].set_index("system")
        assert part["value"].tolist() == pytest.approx([np.mean([3, 5, 1]), np.mean([3, 3, 1])])
        assert part.loc["two", "delta"] == pytest.approx(-2 / 3) and part.loc["two", "verdict"] == "worse"
        assert "agg:mean" in found.signatures["longest"] and any("longest of all examples together is no mean of theirs" in line for line in found.words())
    finally:
        FOREIGN.pop("longest", None), EVERY_METRIC.pop("longest", None)

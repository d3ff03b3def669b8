"""What `score` does with metrics: published figures, missing answers, counts that add up, JSON. That BLEU, chrF, TER and ROUGE are right is in test_overlap."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmops_workbench import overlap
from llmops_workbench.metrics import METRICS, score

CLOSE = 1e-9

# Words that share letters, punctuation that 13a splits, entities it decodes, letters ROUGE does not know.
WORD = st.sampled_from(["the", "The", "cat", "cats", "sat.", "sitting", "1,000", "3.5", "&quot;", "&amp;", "it's", "Prêt", "naïve", "日本", "don't",
                        "(hi)", "-", "...", "printers", "x"])
TEXT = st.lists(WORD, max_size=12).map(" ".join) | st.text(max_size=20)
PAIRS = st.lists(st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=3)), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def translations(shared_data):
    "Two translation systems, detokenised, with their reference."
    folder = shared_data / "comparemt"
    if not folder.is_dir():
        pytest.skip("the comparemt texts are not here")
    return {kind: (folder / f"ted.{kind}.detok.eng").read_text(encoding="utf-8").splitlines() for kind in ("ref", "sys1", "sys2")}


def test_published_translation_scores(translations):
    "BLEU 21.7 and chrF 48 are published for the first system; its tokenised text has BLEU 22.44 (multi-bleu.pl)."
    found = score(translations["sys1"], translations["ref"], ["bleu", "chrf"]).summary
    assert (round(found["bleu"], 2), round(found["chrf"], 2)) == (21.71, 48.34)


def test_published_rouge_values(shared_data):
    "The two pairs whose values ROUGE-1.5.5 gives."
    folder = shared_data / "rouge_score"
    if not folder.is_dir():
        pytest.skip("the rouge_score pairs are not here")
    targets, predictions = ((folder / name).read_text(encoding="utf-8").splitlines() for name in ("target.txt", "prediction.txt"))
    found = score(predictions, targets, ["rouge"]).frame
    assert [round(v, 5) for v in found["rouge1"]] == [0.51163, 0.5]
    assert [round(v, 5) for v in found["rouge2"]] == [0.39024, 0.36364]
    assert round(found["rougeL"][0], 5) == 0.51163
    assert round(score(predictions, targets, ["rouge1"], use_stemmer=True).frame["rouge1"][1], 5) == 0.52941


@settings(max_examples=100, deadline=None)
@given(first=st.lists(st.sampled_from("abcd"), max_size=80), second=st.lists(st.sampled_from("abcd"), max_size=80))
def test_longest_common_subsequence_equals_the_table(first, second):
    table = [[0]*(len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    assert overlap.longest_common(first, second) == table[-1][-1]


NAMES = ["bleu", "chrf", "chrf++", "ter", "rouge", "exact_match", "token_f1", "length_ratio"]


@settings(max_examples=40, deadline=None)
@given(pairs=PAIRS, seed=st.integers(0, 9))
def test_order_does_not_matter_and_counts_add_up(pairs, seed):
    predictions, references = map(list, zip(*pairs))
    order = np.random.default_rng(seed).permutation(len(pairs))
    whole = score(predictions, references, NAMES)
    shuffled = score([predictions[i] for i in order], [references[i] for i in order], NAMES)
    for name in whole.frame:
        assert whole.summary[name] == pytest.approx(shuffled.summary[name], abs=CLOSE)
        assert whole.summary[name] == pytest.approx(float(whole.value(name, whole.counts[name].sum(0))), abs=CLOSE)
        half = np.arange(len(pairs)) % 2 == 0
        part = score([p for p, h in zip(predictions, half) if h], [r for r, h in zip(references, half) if h], [name])
        assert part.summary[name] == pytest.approx(float(whole.value(name, whole.counts[name][half].sum(0))), abs=CLOSE)
        assert math.isfinite(whole.summary[name]) and np.isfinite(whole.frame[name]).all()


@settings(max_examples=60, deadline=None)
@given(pairs=PAIRS)
def test_a_further_reference_never_lowers_a_best_of_metric(pairs):
    predictions, references = map(list, zip(*pairs))
    few = score(predictions, [rs[:1] for rs in references], ["rouge", "token_f1", "exact_match"]).frame
    many = score(predictions, references, ["rouge", "token_f1", "exact_match"]).frame
    assert (many >= few - CLOSE).all().all()


def test_missing_predictions_are_left_out_not_scored():
    texts, wanted = ["a b c d", "x", "a b"], ["a b c e", "x", "a c"]
    whole = score(texts, wanted, NAMES)
    gaps = score([texts[0], None, texts[1], float("nan"), texts[2]], [wanted[0], "lost", wanted[1], "lost", wanted[2]], NAMES)
    assert gaps.summary == whole.summary | {"n_missing": 2}
    assert gaps.frame.isna().all(axis=1).tolist() == [False, True, False, True, False]
    for name in whole.frame:
        assert not gaps.counts[name][[1, 3]].any()


@pytest.mark.parametrize("prediction,reference,valid,match,fields", [
    ('{"a": 1, "b": {"c": [1, 2]}}', '{"b":{"c":[1,2]},"a":1}', 1, 1, 1),
    ('{"a": 1}', '{"a": true}', 1, 0, 0),
    ('{"a": 1.0}', '{"a": 1}', 1, 1, 1),
    ('{"a": "x", "b": "y"}', '{"a": "x", "b": "z"}', 1, 0, 0.5),
    ('{"a": [1, 2, 3]}', '{"a": [2, 3]}', 1, 0, 0.8),
    ('{"a": {}}', '{"a": {}}', 1, 1, 1),
    ('{"a": NaN}', '{"a": 1}', 0, 0, 0),
    ('{"a": 1} so', '{"a": 1}', 0, 0, 0),
    ("", "{}", 0, 0, 0),
    ("[" * 100_000, "{}", 0, 0, 0),
    ('{"a": 1e999}', '{"a": 1}', 0, 0, 0),
    ('"' + "a"*10 + '"', '"aaaaaaaaaa"', 1, 1, 1),
])
def test_json_metrics(prediction, reference, valid, match, fields):
    found = score([prediction], [reference], ["valid_json", "json_match", "json_field_f1"]).summary
    assert [found[n] for n in ("valid_json", "json_match", "json_field_f1")] == pytest.approx([valid, match, fields])


@pytest.mark.parametrize("prediction,reference,f1", [
    ("the cat", "a cat!", 1.0), ("cat dog", "cat", 2/3), ("", "", 1.0), ("", "cat", 0.0), ("the", "an", 1.0)])
def test_token_f1(prediction, reference, f1):
    assert score([prediction], [reference], ["token_f1"]).summary["token_f1"] == pytest.approx(f1)


def test_values_can_be_computed_for_many_samples_at_once():
    predictions, references = ["a b c d", "a x c d", "q"], ["a b c d", "a b c d e", "q r"]
    found = score(predictions, references, NAMES)
    draws = np.random.default_rng(0).multinomial(3, [1/3]*3, size=20)
    for name in found.frame:
        many = found.value(name, draws @ found.counts[name])
        for draw, value in zip(draws, many):
            picked = np.repeat(np.arange(3), draw)
            again = score([predictions[i] for i in picked], [references[i] for i in picked], [name]).summary[name]
            assert value == pytest.approx(again, abs=CLOSE)


def test_every_metric_says_which_way_is_up():
    for name, metric in METRICS.items():
        assert metric.name == name and metric.words and isinstance(metric.higher_is_better, bool)

"""What `score` does with metrics: published figures, missing answers, counts that add up, JSON. That BLEU, chrF, TER and ROUGE are right is in test_overlap."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmops_workbench import overlap
from llmops_workbench.foreign import foreign
from llmops_workbench.metrics import FOREIGN, METRICS, score, suitable_metrics

CLOSE = 1e-9

# Words that share letters, punctuation that 13a splits, entities it decodes, letters ROUGE does not know.
WORD = st.sampled_from(["the", "The", "cat", "cats", "sat.", "sitting", "1,000", "3.5", "&quot;", "&amp;", "it's", "Prêt", "naïve", "日本", "don't",
                        "(hi)", "-", "...", "printers", "x"])
TEXT = st.lists(WORD, max_size=12).map(" ".join) | st.text(max_size=20)
PAIRS = st.lists(st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=3)), min_size=1, max_size=6)


@pytest.mark.parametrize("system,tokenised,detokenised,characters", [("sys1", 22.44, 21.71, 48.34), ("sys2", 24.04, 23.05, 45.58)])
def test_published_translation_scores(shared_data, translations, system, tokenised, detokenised, characters):
    "multi-bleu.pl on the tokenised texts; sacrebleu's BLEU and chrF on the others."
    found = score(translations[system], translations["ref"], ["bleu", "chrf"]).summary
    assert (round(found["bleu"], 2), round(found["chrf"], 2)) == (detokenised, characters)
    texts = {kind: (shared_data / "comparemt" / f"ted.{kind}.eng").read_text(encoding="utf-8").splitlines() for kind in (system, "ref")}
    plain = score(texts[system], texts["ref"], ["bleu"], bleu_tokenize="none", bleu_smooth_method="none")
    assert round(plain.summary["bleu"], 2) == tokenised
    if system == "sys1":
        assert plain.counts["bleu"].sum(0)[:2].tolist() == [45672, 48183]


@pytest.mark.parametrize("system,values", [("sys1", (37.62, 17.20, 35.61)), ("sys2", (39.06, 18.27, 37.05))])
def test_known_summary_scores(shared_data, system, values):
    folder = shared_data / "comparemt"
    if not folder.is_dir():
        pytest.skip("the comparemt texts are not here")
    texts = {kind: (folder / f"sum.{kind}.eng").read_text(encoding="utf-8").splitlines() for kind in (system, "ref")}
    found = score(texts[system], texts["ref"], ["rouge"], use_stemmer=True).summary
    assert tuple(round(100 * found[kind], 2) for kind in ("rouge1", "rouge2", "rougeL")) == values


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


@pytest.mark.parametrize("prediction,reference", [('{"a/b": 1}', '{"a": {"b": 1}}'), ('{"[]": 1}', "[1]"), ('{"~1": 1}', '{"/": 1}')])
def test_keys_that_look_like_paths_are_keys(prediction, reference):
    assert score([prediction, prediction], [reference, prediction], ["json_field_f1"]).frame["json_field_f1"].tolist() == [0, 1]


@pytest.mark.parametrize("depth", [300, 600, 900])
def test_deep_json_has_a_value(depth):
    deep = '{"a":['*(depth//2) + "1" + "]}"*(depth//2)
    found = score([deep, "{}"], [deep, deep], ["json_match", "json_field_f1"]).frame
    assert found["json_match"].tolist() == found["json_field_f1"].tolist() == [1, 0]


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


def test_metrics_without_references_score_what_has_none():
    found = score(["a a a", None, "b c"], [["a"], ["b"], None], ["exact_match", "distinct", "valid_json"])
    assert found.n_scored == {"exact_match": 1, "distinct": 2, "valid_json": 2}
    assert (found.summary["n"], found.summary["n_missing"], found.summary["n_unreferenced"]) == (2, 1, 1)
    assert found.frame["distinct"].tolist()[0] == 0.5 and np.isnan(found.frame["distinct"][1]) and found.frame["distinct"][2] == 1
    assert score(["{}", "no"], metrics=["valid_json"]).summary["valid_json"] == 0.5


def test_values_that_are_not_known_are_not_scored():
    found = score(["a", "b", "c"], ["a", "b", "x"], ["brier", "latency_s", "exact_match"], columns={"confidence": [1.0, None, 0.5], "latency_s": [0.2, float("nan"), 0.4]})
    assert found.n_scored == {"brier": 2, "latency_s": 2, "exact_match": 3}
    assert found.summary["brier"] == pytest.approx(0.125) and found.summary["latency_s"] == pytest.approx(0.3)
    assert found.counts["brier"][1].tolist() == [0, 0]


@pytest.mark.parametrize("given,message", [
    (dict(predictions=["a"], references=["a", "b"]), "1 predictions and 2 references"),
    (dict(predictions=[], references=[]), "0 predictions"),
    (dict(predictions="a text", references=["a"]), "predictions is one text"),
    (dict(predictions=["a"], references=[7]), "Reference 0 is 7"),
    (dict(predictions=[7], references=["a"]), "Prediction 0 is 7"),
    (dict(predictions=["a"], references=[None]), "No example has a reference"),
    (dict(predictions=["a"]), "No example has a reference"),
    (dict(predictions=["a"], references=["a"], metrics=["brier"]), "in a column 'confidence'"),
    (dict(predictions=["a"], references=["a"], metrics=["brier"], columns={"confidence": [0.5, 0.5]}), "has 2 values and there are 1"),
    (dict(predictions=["a"], references=["a"], metrics=["brier"], columns={"confidence": [90]}), "confidence of example 0 is 90"),
    (dict(predictions=["a"], metrics=["perplexity"]), "perplexity_model"),
    (dict(predictions=["a"], references=["a"], metrics=["bertscore"]), "bertscore_model"),
    (dict(predictions=["a"], metrics=["toxicity"], toxicity_model="nowhere"), "nowhere"),
    (dict(predictions=["a"], references=["a"], bleu_max_order=0), "bleu_max_order is 0"),
    (dict(predictions=["a"], references=["a"], bleu_max_order=True), "bleu_max_order is True"),
    (dict(predictions=["a"], references=["a"], lowercase="no"), "lowercase is 'no'. It is True or False"),
    *((dict(predictions=["a"], references=["a"], bleu_smooth_value=value), "bleu_smooth_value is .*0 or more") for value in (-1, math.nan, math.inf, "x", True)),
    (dict(predictions=7, references=["a"]), "predictions is 7"),
    (dict(predictions=["a"], references="abc"), "references is one text"),
    (dict(predictions=["a"], references=["a"], columns=[1]), r"columns is \[1\]"),
])
def test_bad_input_is_one_message(given, message):
    with pytest.raises((ValueError, LookupError), match=message):
        score(**given)


@pytest.mark.parametrize("metrics", [None, 3, [3]])
def test_what_is_no_metric_is_named(metrics):
    with pytest.raises(TypeError, match="There is no metric"):
        score(["a"], ["a"], metrics)


def test_a_foreign_metric_may_speak_of_sql_and_json(monkeypatch):
    "Its name says nothing of what it needs."
    for table in (METRICS, FOREIGN):
        for name in ("sqlness", "jsonness"):
            monkeypatch.setitem(table, name, None)  # gone again after the test
    metrics = [foreign(lambda prediction, reference: 1.0, name="sqlness"), foreign(lambda prediction, reference: 0.5, name="jsonness")]
    found = score(["a"], ["a"], metrics)
    assert (found.summary["sqlness"], found.summary["jsonness"]) == (1.0, 0.5) and "databases" not in found.signatures["sqlness"]
    assert suitable_metrics([["a sentence"]], metrics) == ["sqlness", "jsonness"] and suitable_metrics([["SELECT 1"]], metrics)


def test_the_row_in_a_message_is_the_row_that_was_given():
    with pytest.raises(ValueError, match="Reference 1 is 'b'"):
        score([None, "{}"], ["{}", "b"], ["json_match"], columns={"row": ["x", "y"]})


def test_only_punctuation_one_example_and_nothing_at_all_have_values():
    for prediction, reference in (("...", "..."), ("", "a b"), ("?!", "a b"), ("a b", "-"), (" ", " ")):
        found = score([prediction], [reference], [*NAMES, "rougeLsum", "rougeL_coco", "edit_similarity", "meteor", "similarity"])
        assert np.isfinite(found.frame.to_numpy()).all() and all(math.isfinite(found.summary[name]) for name in found.frame), (prediction, reference)


def test_an_unknown_option_is_named():
    with pytest.raises(TypeError, match="Did you mean 'bleu_tokenize'"):
        score(["a"], ["a"], bleu_tokenizer="13a")


def test_the_signature_says_every_option_that_changes_a_value():
    "Two settings that give different counts or values never share a signature."
    texts, wanted = ["a small cat sat", "it is IT"], ["the small cats sat", "it is it"]
    settings_of = {"bleu": [{}, {"bleu_tokenize": "char"}, {"bleu_max_order": 2}, {"bleu_smooth_method": "floor"}, {"bleu_smooth_method": "floor", "bleu_smooth_value": 0.5}, {"lowercase": True},
                            {"bleu_effective_order": True}],
                   "chrf": [{}, {"chrf_beta": 1}, {"chrf_char_order": 3}, {"chrf_word_order": 1}, {"chrf_whitespace": True}, {"chrf_eps_smoothing": True}],
                   "rougeL": [{}, {"use_stemmer": True}], "exact_match": [{}, {"lowercase": True}], "edit_similarity": [{}, {"lowercase": True}], "distinct": [{}, {"distinct_order": 1}],
                   "valid_json": [{}, {"json_schema": {"type": "object"}}, {"json_schema": {"type": "array"}}]}
    for name, choices in settings_of.items():
        signed = [score(texts, wanted, [name], **options).signatures[name] for options in choices]
        assert len(set(signed)) == len(choices), (name, signed)


def test_what_was_scored_before_is_not_scored_again(workspace, monkeypatch):
    from llmops_workbench import metrics as module
    from llmops_workbench.shelf import StatisticsShelf
    counted = []
    plain = module.method_of

    def watched(name):
        method = plain(name)
        return type(method)(lambda batch, options: counted.append((name, len(batch))) or method.count(batch, options), method.value, method.sign)
    monkeypatch.setattr(module, "method_of", watched)
    texts, wanted, names = [f"cat {i} sat" for i in range(300)], [f"cats {i} sat" for i in range(300)], ["ter", "bleu", "chrf", "rouge1", "rougeL", "exact_match", "token_f1", "length_ratio"]
    first = score(texts, wanted, names, shelf=StatisticsShelf())
    assert counted == [(name, 300) for name in names]
    counted.clear()
    # Another order, a slice, and a few more: only those are counted that nobody has seen.
    order = np.random.default_rng(0).permutation(300)
    again = score([texts[i] for i in order], [wanted[i] for i in order], names, shelf=StatisticsShelf())
    assert again.summary == first.summary and again.frame.equals(first.frame.iloc[order].reset_index(drop=True)) and not counted
    part = score([*texts[5:10], "new"], [*wanted[5:10], "news"], names, shelf=StatisticsShelf())
    assert counted == [(name, 1) for name in names] and part.frame[:5].equals(first.frame[5:10].reset_index(drop=True))

"""BLEU, chrF, TER and ROUGE with every option, by the kernels and without them, against sacrebleu and rouge_score."""

import json
import os
import random
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF, TER

from llmops_workbench import matching
from llmops_workbench.matching import read_words
from llmops_workbench.metrics import score

CLOSE = 1e-9
WAYS = {"python": "0", "kernels": "1"}


@contextmanager
def way(name):
    "Count with the kernels, or without them."
    before = os.environ.get("LLMOPS_NUMBA")
    os.environ["LLMOPS_NUMBA"] = WAYS[name]
    try:
        yield
    finally:
        os.environ.pop("LLMOPS_NUMBA") if before is None else os.environ.update(LLMOPS_NUMBA=before)


# Words with which the cuts differ: numbers, signs inside and at the edges, entities, several scripts, white space beyond ASCII.
PIECES = ["the", "The", "cat", "cats", "sat.", "1,000", "3.5", ".5", "5.", "...", "a.b", "1-2", "-", "&quot;", "&amp;lt;", "&", "<skipped>", "don't", "(hi)", "$5", "Prêt", "naïve",
          "日本語", "。", "١٢", "½.", "٫", "привет", "नमस्ते", "😀", "e\u0301", "\u212a", "\u0130x", "\u2000x", "x\u00a0y", "\u3000", "a\x1cb", "\x85", "-\n", "\n", "\t", "x", ""]
TEXT = st.lists(st.sampled_from(PIECES), max_size=12).map(" ".join) | st.lists(st.sampled_from(PIECES), max_size=8).map("".join) | st.text(max_size=20)
PAIRS = st.lists(st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=3)), min_size=1, max_size=5)

OPTIONS = [("bleu", {}), *(("bleu", {"bleu_tokenize": cut}) for cut in ("intl", "char", "zh", "none")), ("bleu", {"lowercase": True, "bleu_tokenize": "intl"}),
           ("bleu", {"bleu_smooth_method": "none"}), ("bleu", {"bleu_smooth_method": "floor"}), ("bleu", {"bleu_smooth_method": "floor", "bleu_smooth_value": 0.3}),
           ("bleu", {"bleu_smooth_method": "add-k"}), ("bleu", {"bleu_smooth_method": "add-k", "bleu_smooth_value": 2}), ("bleu", {"bleu_max_order": 2}),
           ("bleu", {"bleu_effective_order": True, "bleu_max_order": 6}),
           ("chrf", {}), ("chrf", {"lowercase": True}), ("chrf", {"chrf_whitespace": True}), ("chrf", {"chrf_eps_smoothing": True}), ("chrf", {"chrf_char_order": 3, "chrf_beta": 1}),
           ("chrf", {"chrf_word_order": 1, "chrf_char_order": 9}), ("chrf++", {}), ("chrf++", {"chrf_eps_smoothing": True, "lowercase": True}),
           ("ter", {}), ("ter", {"ter_normalized": True, "ter_asian_support": True, "ter_no_punct": True, "ter_case_sensitive": True})]
IDS = [f"{name}-{'-'.join(f'{key}={value}' for key, value in options.items())}" for name, options in OPTIONS]


def oracle(name, options, **alone):
    plain = {key.split("_", 1)[1] if key != "lowercase" else key: value for key, value in options.items()}
    names = {"max_order": "max_ngram_order"}
    plain = {names.get(key, key): value for key, value in plain.items()} | alone
    if name == "bleu":
        return BLEU(force=True, **plain)
    return TER(**plain) if name == "ter" else CHRF(**({"word_order": 2} if name == "chrf++" else {}), **plain)


def streams(references):
    most = max(map(len, references))
    return [[group[i] if i < len(group) else None for group in references] for i in range(most)]


def assert_equals_sacrebleu(name, options, predictions, references):
    found, wanted = score(predictions, references, [name], **options), oracle(name, options)
    assert found.summary[name] == pytest.approx(wanted.corpus_score(predictions, streams(references)).score, abs=CLOSE)
    # Ours also says what sacrebleu's leaves out.
    ours = [part for part in found.signatures[name].split("|") if not part.startswith(("order:", "beta:"))]
    assert "|".join(ours) == str(wanted.get_signature())
    assert (f"beta:{options['chrf_beta']}" in found.signatures[name]) if "chrf_beta" in options else "beta:" not in found.signatures[name]
    # The counts are the statistics themselves: integers, so equal.
    assert found.counts[name].tolist() == wanted._extract_corpus_statistics(predictions, streams(references))
    alone = oracle(name, options, **({"effective_order": True} if name == "bleu" else {}))
    np.testing.assert_allclose(found.frame[name], [alone.sentence_score(p, rs).score for p, rs in zip(predictions, references)], atol=CLOSE)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("name,options", OPTIONS, ids=IDS)
@settings(max_examples=40, deadline=None)
@given(pairs=PAIRS)
def test_equals_sacrebleu_on_drawn_texts(name, options, how, pairs):
    predictions, references = map(list, zip(*pairs))
    with way(how):
        assert_equals_sacrebleu(name, options, predictions, references)


@pytest.mark.parametrize("name,options", [case for case in OPTIONS if case[0] != "ter"], ids=[name for name in IDS if not name.startswith("ter")])
def test_equals_sacrebleu_on_whole_translations(translations, name, options):
    "Several blocks of examples; every third has a second reference."
    references = [[r] if i % 3 else [r, s] for i, (r, s) in enumerate(zip(translations["ref"], translations["sys2"]))]
    with way("kernels"):
        found = score(translations["sys1"], references, [name], **options)
    wanted = oracle(name, options)
    assert found.counts[name].tolist() == wanted._extract_corpus_statistics(translations["sys1"], streams(references))
    assert found.summary[name] == pytest.approx(wanted.corpus_score(translations["sys1"], streams(references)).score, abs=CLOSE)


@pytest.mark.parametrize("name", ["bleu", "chrf", "chrf++", "rougeL"])
def test_awkward_strings(shared_data, name):
    path = shared_data / "naughty_strings" / "blns.json"
    if not path.is_file():
        pytest.skip("the naughty strings are not here")
    odd = json.loads(path.read_text(encoding="utf-8")) + ["\ud800", "a\ud800b", "\udfff" * 3]
    found = {}
    for how in WAYS:
        with way(how):
            found[how] = score(odd, odd[1:] + odd[:1], [name], bleu_tokenize="intl")
            assert score(odd, odd, [name]).summary[name] == pytest.approx({"rougeL": score(odd, odd, ["rougeL"]).summary["rougeL"]}.get(name, 100), abs=1e-6)
    assert found["python"].counts[name].tolist() == found["kernels"].counts[name].tolist()


def rouge_values(predictions, references, kinds, stem):
    scorer = RougeScorer(kinds, use_stemmer=stem)
    scores = [scorer.score_multi(rs, p) for p, rs in zip(predictions, references)]
    return {kind: [s[kind].fmeasure for s in scores] for kind in kinds}


ROUGE = ["rouge1", "rouge2", "rougeL", "rougeLsum"]


@pytest.mark.parametrize("stem", [False, True], ids=["words", "stems"])
@pytest.mark.parametrize("how", WAYS)
@settings(max_examples=80, deadline=None)
@given(pairs=PAIRS)
def test_equals_rouge_score_on_drawn_texts(how, stem, pairs):
    predictions, references = map(list, zip(*pairs))
    with way(how):
        found = score(predictions, references, ROUGE, use_stemmer=stem).frame
    for kind, wanted in rouge_values(predictions, references, ROUGE, stem).items():
        assert found[kind].tolist() == wanted  # to the last digit


LINES = st.lists(st.lists(st.sampled_from(["a", "b", "c", "dog", "runs", "2"]), max_size=9).map(" ".join), max_size=4).map("\n".join)


@settings(max_examples=150, deadline=None)
@given(pairs=st.lists(st.tuples(LINES, st.lists(LINES, min_size=1, max_size=2)), min_size=1, max_size=4))
def test_summaries_of_several_lines(pairs):
    predictions, references = map(list, zip(*pairs))
    found = score(predictions, references, ["rougeLsum"]).frame["rougeLsum"].tolist()
    assert found == rouge_values(predictions, references, ["rougeLsum"], False)["rougeLsum"]


@pytest.mark.parametrize("stem", [False, True], ids=["words", "stems"])
def test_equals_rouge_score_on_summaries(shared_data, stem):
    folder = shared_data / "comparemt"
    if not folder.is_dir():
        pytest.skip("the comparemt texts are not here")
    predictions, references = ((folder / f"sum.{kind}.eng").read_text(encoding="utf-8").splitlines()[:1200] for kind in ("sys1", "ref"))
    with way("kernels"):
        found = score(predictions, references, ["rouge"], use_stemmer=stem).frame
    for kind, wanted in rouge_values(predictions, [[r] for r in references], ROUGE[:3], stem).items():
        assert found[kind].tolist() == wanted


@pytest.mark.parametrize("how", WAYS)
def test_long_texts_are_followed_in_strips(how):
    "The longest common subsequence of texts of several hundred words."
    rng = random.Random(1)
    predictions, references = ([" ".join(rng.choice("abcdefgh") for _ in range(n)) for n in sizes] for sizes in ((0, 63, 64, 65, 128, 400), (5, 64, 63, 300, 129, 390)))
    with way(how):
        found = score(predictions, references, ["rougeL"]).frame["rougeL"].tolist()
    assert found == rouge_values(predictions, [[r] for r in references], ["rougeL"], False)["rougeL"]


@pytest.mark.parametrize("how", WAYS)
@settings(max_examples=60, deadline=None)
@given(pairs=PAIRS)
def test_coco_form_of_rouge(how, pairs):
    "As in the captioning evaluation: the best precision, the best recall, beta 1.2."
    def longest(one, other):
        rows = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
        for i, a in enumerate(one):
            for j, b in enumerate(other):
                rows[i + 1][j + 1] = rows[i][j] + 1 if a == b else max(rows[i][j + 1], rows[i + 1][j])
        return rows[-1][-1]
    from rouge_score.tokenize import tokenize
    predictions, references = map(list, zip(*pairs))
    with way(how):
        found = score(predictions, references, ["rougeL_coco"]).frame["rougeL_coco"].tolist()
    for value, prediction, group in zip(found, predictions, references):
        words = tokenize(prediction, None)
        met = [(longest(words, other), len(other)) for other in (tokenize(text, None) for text in group)]
        precision, recall = max(m / max(len(words), 1) for m, _ in met), max(m / max(n, 1) for m, n in met)
        wanted = (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision) if precision and recall else 0.0
        assert value == pytest.approx(wanted, abs=CLOSE)


def test_a_line_of_too_many_words_is_refused():
    line = "a " * 17_000
    with pytest.raises(ValueError, match="up to 16,384 words"):
        score([line + "\nb"], ["a\nb"], ["rougeLsum"])


def test_words_that_hash_alike_stay_different():
    "More words than a first table holds, all different."
    texts = [" ".join(f"w{i}" for i in range(start, start + 5000)) for start in (0, 5000, 2500)]
    words = read_words(texts, "none")
    assert words.n_words == 10_000 and len(set(words.tokens[:10_000].tolist())) == 10_000
    assert words.spell()[words.tokens[10_000]] == "w2500" and words.tokens[10_000] == words.tokens[2500]


class Counted:
    "An array that knows how often it was read."

    def __init__(self, array):
        self.array, self.n = array, 0

    def __getitem__(self, place):
        self.n += 1
        return self.array[place]


@pytest.mark.parametrize("how", ["none", "13a", "rouge", "intl"])
def test_the_end_of_a_word_is_not_sought_in_the_texts_behind_it(monkeypatch, how):
    "Texts without white space, one after the other: each is read once."
    windows, read, plain = matching._windows, [], read_words(["ab"], how).tokens.tolist()
    monkeypatch.setattr(matching, "_windows", lambda data: read.append(Counted(windows(data))) or read[-1])
    monkeypatch.setattr(matching, "compiled", lambda function: function)
    texts = ["a" * 99] * 200
    with np.errstate(over="ignore"):
        words = read_words(texts, how)
    assert words.tokens.tolist() == plain * 200 and words.spell() == texts[:1]
    assert sum(counted.n for counted in read) < 60 * len(texts)

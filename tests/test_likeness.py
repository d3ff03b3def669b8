"""Edit similarity, METEOR, repetition, calibration and Brier beside independent implementations."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmops_workbench.confidence import CONFIDENCE_METHODS, are_right, calibration_counts, calibration_error
from llmops_workbench.likeness import LIKENESS_METHODS, distinct_counts, edit_similarities, find_wordnet, meteor, meteor_words
from llmops_workbench.options import Batch, Options

ODD = ["", " ", "?", "...", "a", "A", "日本語のテキスト", "naïve café", "é́", "\u200b", "😀 ok 😀", "half \ud83d", "\x00", "1 2 3", "the the the the", "x"*2000]
texts = st.text(st.characters(exclude_categories=()), max_size=12)
worded = st.lists(st.sampled_from("the printer printers restarted restart , . is it running run A café".split()), max_size=10).map(" ".join)


def distance(a, b):
    "Levenshtein by the recurrence."
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def value(methods, name, batch, options=None):
    method, options = methods[name], options or Options()
    counts = method.count(batch, options)
    return method.value(counts.sum(0), options, False), method.value(counts, options, True)


@settings(deadline=None, max_examples=200)
@given(texts, st.lists(texts, min_size=1, max_size=3))
def test_edits_are_those_of_the_recurrence(prediction, references):
    expected = max(1 - distance(prediction, r)/max(len(prediction), len(r)) if prediction or r else 1.0 for r in references)
    assert edit_similarities([prediction], [references])[0] == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=3)), max_size=6))
def test_examples_do_not_know_of_one_another(examples):
    predictions, references = [p for p, _ in examples], [rs for _, rs in examples]
    together = edit_similarities(predictions, references)
    assert together.tolist() == [edit_similarities([p], [rs])[0] for p, rs in examples]
    assert all(0 <= v <= 1 for v in together) and all(edit_similarities([p], [[p]])[0] == 1 for p in predictions)


def test_case_is_an_option():
    batch = Batch(["ABC", "abd"], [["abc"], ["abc"]])
    assert value(LIKENESS_METHODS, "edit_similarity", batch)[1].tolist() == pytest.approx([0, 2/3])
    assert value(LIKENESS_METHODS, "edit_similarity", batch, Options(lowercase=True))[1].tolist() == pytest.approx([1, 2/3])


class NoWordNet:
    def synsets(self, word):
        return []


def plain_meteor(prediction, references, wordnet):
    from nltk.tokenize import NLTKWordTokenizer
    from nltk.translate.meteor_score import meteor_score
    words = NLTKWordTokenizer().tokenize
    return meteor_score([words(r) for r in references], words(prediction), wordnet=wordnet)


@settings(deadline=None, max_examples=100)
@given(worded | texts, st.lists(worded | texts, min_size=1, max_size=3))
def test_meteor_is_nltks(prediction, references):
    assert meteor(prediction, references) == plain_meteor(prediction, references, NoWordNet())


def test_meteor_on_translations(shared_data):
    read = [(shared_data/"comparemt"/f"ted.{name}.eng").read_text(encoding="utf-8").splitlines()[:60] for name in ("sys1", "ref", "sys2")]
    batch = Batch(read[0], [list(rs) for rs in zip(*read[1:])])
    corpus, each = value(LIKENESS_METHODS, "meteor", batch)
    expected = [plain_meteor(p, rs, NoWordNet()) for p, rs in zip(batch.predictions, batch.references)]
    assert each.tolist() == expected and corpus == pytest.approx(np.mean(expected), abs=1e-12)
    assert all(meteor(r, [r]) > 0.99 for r in read[1] if len(r.split()) > 4)


def save_wordnet(folder):
    "A WordNet of one pair of synonyms, in the format of the corpus."
    folder.mkdir(parents=True)
    for kind in ("adj", "adv", "noun", "verb"):
        (folder/f"data.{kind}").write_text("")
        (folder/f"index.{kind}").write_text("")
        (folder/f"{kind}.exc").write_text("")
    (folder/"lexnames").write_text("00\tadj.all\t3\n01\tadj.pert\t3\n02\tadv.all\t4\n03\tnoun.Tops\t1\n")
    (folder/"cntlist.rev").write_text("")
    (folder/"index.sense").write_text("")
    (folder/"data.noun").write_text("  1 begins with a line of licence\n00000034 03 n 02 car 0 auto 0 000 | a thing with four wheels  \n")
    (folder/"index.noun").write_text("car n 1 0 1 0 00000034  \nauto n 1 0 1 0 00000034  \n")
    return folder


def test_synonyms_only_where_wordnet_lies_here(tmp_path, monkeypatch):
    "The signature says which, because with synonyms it is another metric."
    import nltk.data
    sign = LIKENESS_METHODS["meteor"].sign
    batch = Batch(["my auto is red"], [["my car is red"]])
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path/"nothing")])
    without = value(LIKENESS_METHODS, "meteor", batch)[0]
    assert find_wordnet() is None and "syn:none" in sign(Options())
    save_wordnet(tmp_path/"nltk"/"corpora"/"wordnet")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path/"nltk")])
    assert find_wordnet() is not None and "syn:wordnet" in sign(Options())
    from nltk.corpus import WordNetCorpusReader
    with pytest.warns(UserWarning):
        reader = WordNetCorpusReader(find_wordnet(), None)
    found = value(LIKENESS_METHODS, "meteor", batch)[0]
    assert found == plain_meteor(batch.predictions[0], batch.references[0], reader) > without


@settings(deadline=None, max_examples=150)
@given(st.lists(worded, max_size=6), st.integers(1, 5))
def test_distinct_and_repetition_are_counted(predictions, n):
    batch, options = Batch(predictions, [[]]*len(predictions)), Options(distinct_order=n, repetition_order=n)
    seen = [Counter(tuple(p.lower().split()[i:i + n]) for i in range(len(p.split()) - n + 1)) for p in predictions]
    different, every = sum(map(len, seen)), sum(c.total() for c in seen)
    found, repeated = (value(LIKENESS_METHODS, name, batch, options)[0] for name in ("distinct", "repetition"))
    if not every:
        assert math.isnan(found) and math.isnan(repeated)
    else:
        assert found == different/every and repeated == pytest.approx(1 - found)


@pytest.mark.parametrize("name", list(LIKENESS_METHODS))
def test_odd_texts_have_a_value_or_none(name):
    batch = Batch([a for a in ODD for _ in ODD], [[b] for _ in ODD for b in ODD])
    corpus, each = value(LIKENESS_METHODS, name, batch)
    known = each[~np.isnan(each)]
    assert 0 <= corpus <= 1 and ((0 <= known) & (known <= 1)).all()
    assert name in ("distinct", "repetition") or len(known) == len(each)
    counts = LIKENESS_METHODS[name].count(batch, Options())
    assert not np.isnan(counts).any() and (counts[np.isnan(each)] == 0).all()


@pytest.mark.parametrize("methods, name", [(m, n) for m in (LIKENESS_METHODS, CONFIDENCE_METHODS) for n in m], ids=lambda v: v if isinstance(v, str) else "")
def test_counts_add_up_and_nothing_is_nothing(methods, name):
    columns = {c: [0.5, 0.25, None] for c in ("confidence", "latency_s", "prompt_tokens", "completion_tokens", "cost")}
    batch = Batch(["a b c d e", "a b a b a b a b", "c"], [["a b c d"], ["b"], ["c"]], columns)
    options, method = Options(), methods[name]
    whole = method.count(batch, options)
    alone = [method.count(Batch([batch.predictions[i]], [batch.references[i]], {c: v[i:i + 1] for c, v in columns.items()}), options)[0] for i in range(3)]
    assert np.array_equal(whole, alone)
    empty = method.count(Batch([], [], {c: [] for c in columns}), options)
    assert empty.shape == (0, whole.shape[1]) and np.isnan(method.value(empty.sum(0), options, False))
    assert all(":" in part and "|" not in part for part in method.sign(options))


def test_words_need_no_download(monkeypatch):
    import nltk.data
    monkeypatch.setattr(nltk.data, "path", [])
    assert meteor_words("It's 3.5 printers, isn't it?") == ("It", "'s", "3.5", "printers", ",", "is", "n't", "it", "?")
    assert distinct_counts([], 2).shape == (0, 2)


answers = st.lists(st.tuples(st.sampled_from(["yes", "no"]), st.none() | st.floats(0, 1) | st.sampled_from([0.1, 0.3, 0.6, 0.7, 0, 1])), min_size=1, max_size=30)


@settings(deadline=None, max_examples=200)
@given(answers, st.integers(1, 20))
def test_calibration_error_from_first_principles(rows, bins):
    "For each bin (lower, upper], the first with its lower edge: share of answers times the distance of mean confidence and share of right ones."
    predictions, confidence = [p for p, _ in rows], [c for _, c in rows]
    batch, options = Batch(predictions, [["yes"]]*len(rows), {"confidence": confidence}), Options(calibration_bins=bins)
    known = [(c, p == "yes") for p, c in rows if c is not None]
    expected = 0.0
    for b in range(bins):
        inside = [(c, r) for c, r in known if (b/bins < c <= (b + 1)/bins) or (b == 0 and c == 0)]
        if inside:
            expected += len(inside)/len(known)*abs(np.mean([c for c, _ in inside]) - np.mean([r for _, r in inside]))
    found = value(CONFIDENCE_METHODS, "calibration_error", batch, options)[0]
    assert math.isnan(found) if not known else found == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=100)
@given(answers)
def test_brier_is_sklearns(rows):
    from sklearn.metrics import brier_score_loss
    known = [(p, c) for p, c in rows if c is not None]
    batch = Batch([p for p, _ in rows], [["yes"]]*len(rows), {"confidence": [c for _, c in rows]})
    corpus, each = value(CONFIDENCE_METHODS, "brier", batch)
    assert np.isnan(each).tolist() == [c is None for _, c in rows]
    if known:
        assert corpus == pytest.approx(brier_score_loss([p == "yes" for p, _ in known], [c for _, c in known], pos_label=True), abs=1e-12)


def test_a_known_calibration():
    "One bin of 0.9 that is right half of the time, one of 0.25 that is always wrong."
    counts = calibration_counts([0.9, 0.9, 0.25, 0.25], [1, 0, 0, 0], 10)
    assert calibration_error(counts.sum(0)) == pytest.approx(0.5*0.4 + 0.5*0.25)
    assert calibration_error(calibration_counts([1.0, 0.0], [1, 0], 10).sum(0)) == 0


def test_right_is_equal_to_a_reference():
    batch = Batch([" yes ", "YES", "no"], [["no", "yes"], ["yes"], []])
    assert are_right(batch, Options()).tolist() == [1, 0, 0] and are_right(batch, Options(lowercase=True)).tolist() == [1, 1, 0]


@pytest.mark.parametrize("confidence, said", [([1.1], "confidence of example 0 is 1.1"), ([-0.5], "is -0.5.*0 to 1"), (["high"], "is 'high'"), (["0.5"], "is '0.5'"), ([float("inf")], "is inf"),
                                              ([[0.5]], "confidence of example 0"), ([0.5, 0.5], "has 2 values for 1 predictions")], ids=str)
@pytest.mark.parametrize("name", ["brier", "calibration_error"])
def test_what_is_no_probability_is_named(name, confidence, said):
    with pytest.raises(ValueError, match=said):
        CONFIDENCE_METHODS[name].count(Batch(["a"], [["a"]], {"confidence": confidence}), Options())


def test_a_column_that_is_not_there():
    with pytest.raises(KeyError, match="'brier' needs the column 'confidence'.*There are: cost"):
        CONFIDENCE_METHODS["brier"].count(Batch(["a"], [["a"]], {"cost": [1]}), Options())


def test_what_is_not_known_is_not_counted():
    batch = Batch(["a"]*4, [[]]*4, {"cost": [1, None, float("nan"), np.float32(2)], "latency_s": [None]*4})
    assert value(CONFIDENCE_METHODS, "cost", batch)[0] == 1.5 and math.isnan(value(CONFIDENCE_METHODS, "latency_s", batch)[0])
    assert CONFIDENCE_METHODS["cost"].count(batch, Options())[1:3].tolist() == [[0, 0], [0, 0]]

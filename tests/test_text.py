"""Kernels on text, held against Python itself, with numba and without."""

import json
import random
import sys
import re

import numpy as np
import pandas as pd
import pytest

from llmops_workbench import duplicates, text
from llmops_workbench.counts import count_texts
from llmops_workbench.duplicates import clusters, exact_duplicates, near_duplicates, shingles, word_hashes
from llmops_workbench.text import mend_encoding, text_buffer


@pytest.fixture(params=["0", "1"], ids=["numpy", "numba"])
def engine(request, monkeypatch):
    monkeypatch.setenv("LLMOPS_NUMBA", request.param)
    return request.param


LANGUAGES = ["The quick brown fox. It jumps! Does it?", "Größe: 3,5 m². Schöne Grüße!", "Où est l'été ? Là-bas…", "Быстрая лиса прыгает. Да.", "快速的棕色狐狸。跳过！",
             "السَّلامُ عَلَيْكُم. كيف الحال؟", "कैसे हो? ठीक हूँ।", "👩‍👩‍👧 emoji 🏴󠁧󠁢󠁳󠁣󠁴󠁿 flags", "می‌خواهم", "tab\tnew\nline\r\nnel\x85ls\u2028wide\u3000", "", " ", "\u00a0", ".", "…", "a", "é"]


def python_counts(t):
    ascii_only = [c for c in t if c < "\x80"]
    return {
        "bytes": len(t.encode()), "characters": len(t), "words": len(t.split()),
        "letters": sum(c.isalpha() for c in ascii_only), "uppercase": sum(c.isupper() for c in ascii_only), "digits": sum(c.isdigit() for c in ascii_only),
        "spaces": sum(c.isspace() for c in ascii_only), "symbols": sum(33 <= ord(c) < 127 and not c.isalnum() for c in ascii_only),
        "controls": sum((ord(c) < 32 or ord(c) == 127) and not c.isspace() for c in ascii_only), "non_ascii": sum(c >= "\x80" for c in t), "white": sum(c.isspace() for c in t)}


def naughty(shared_data):
    return json.loads((shared_data / "naughty_strings" / "blns.json").read_text(encoding="utf-8"))


def random_texts(n, seed=0, alphabet="ab AB09 .!?\n\t…é日😀\u200b\u00a0\u3000\x00-_'"):
    rng = random.Random(seed)
    return ["".join(rng.choices(alphabet, k=rng.randrange(40))) for _ in range(n)]


def test_counts_equal_python_on_languages():
    assert count_texts(text_buffer(LANGUAGES)).drop(columns="sentences").to_dict("records") == [python_counts(t) for t in LANGUAGES]


def test_counts_equal_python_on_naughty_strings(shared_data):
    texts = naughty(shared_data)
    assert count_texts(text_buffer(texts)).drop(columns="sentences").to_dict("records") == [python_counts(t) for t in texts]


@pytest.mark.parametrize("seed", range(5))
def test_counts_equal_python_on_chance(seed):
    texts = random_texts(1000, seed)
    assert count_texts(text_buffer(texts)).drop(columns="sentences").to_dict("records") == [python_counts(t) for t in texts]


def test_missing_texts_and_slices_count_as_they_should():
    column = pd.Series(["skipped", "two words", None, "three of them"], dtype="str")
    assert count_texts(text_buffer(column[1:])).words.tolist() == [2, 0, 3]
    assert count_texts(text_buffer(column.astype("object")[1:])).words.tolist() == [2, 0, 3]


# --- hashes and duplicates -----------------------------------------------------------------------------------------


def python_words(t):
    return [w.lower() if w.isascii() else "".join(c.lower() if c < "\x80" else c for c in w) for w in re.findall(r"[A-Za-z0-9\x80-\U0010ffff]+", t)]


def test_words_are_the_same_words(engine):
    texts = random_texts(2000) + LANGUAGES
    hashes, offsets = word_hashes(text_buffer(texts))
    expected = [python_words(t) for t in texts]
    assert np.diff(offsets).tolist() == [len(w) for w in expected]
    names = {}
    for word, value in zip((w for words in expected for w in words), hashes.tolist()):
        assert names.setdefault(word, value) == value
    assert len(set(names.values())) == len(names)


def test_exact_duplicates_equal_a_dictionary(engine):
    texts = random_texts(3000, alphabet="ab ") + ["A", "a"]
    first = {}
    assert exact_duplicates(text_buffer(texts)).tolist() == [first.setdefault(t, i) for i, t in enumerate(texts)]


def python_shingles(t, n):
    words = python_words(t)
    return [tuple(words[i:i + n]) for i in range(len(words) - n + 1)] if len(words) >= n else [tuple(words)] if words else []


@pytest.mark.parametrize("n", [1, 2, 3])
def test_shingles_equal_python(engine, n):
    texts = random_texts(1500, alphabet="a b ") + LANGUAGES
    lists = [python_shingles(t, n) for t in texts]
    hashes, edges, totals = shingles(text_buffer(texts), n)
    assert totals.tolist() == [len(s) for s in lists] and np.diff(edges).tolist() == [len(set(s)) for s in lists]


def planted_texts(n, n_words, seed):
    "Texts over a small vocabulary and edited copies of a third of them."
    rng = random.Random(seed)
    texts = [" ".join(f"w{rng.randrange(400)}" for _ in range(rng.randrange(max(n_words // 2, 2), n_words * 2))) for _ in range(n)]
    for i in range(n // 3):
        words = texts[i].split()
        for _ in range(rng.randrange(1, max(len(words) // 6, 2))):
            words[rng.randrange(len(words))] = f"x{rng.randrange(400)}"
        texts.append(" ".join(words))
    return texts


def all_pairs(texts, n, similarity):
    sets, found = [frozenset(python_shingles(t, n)) for t in texts], {}
    for i, a in enumerate(sets):
        for j in range(i + 1, len(sets)):
            shared = len(a & sets[j])
            if shared and shared / (len(a) + len(sets[j]) - shared) >= similarity:
                found[i, j] = shared / (len(a) + len(sets[j]) - shared)
    return found


@pytest.mark.parametrize("n_words, similarity", [(5, 0.4), (5, 0.6), (20, 0.4), (20, 0.8), (80, 0.6), (80, 0.8)])
def test_near_duplicates_equal_a_comparison_of_all_pairs(engine, n_words, similarity):
    "Nothing is found that is not there; of what is there, at most one pair in twenty is missed, short texts included."
    texts = planted_texts(300, n_words, seed=n_words)
    expected = all_pairs(texts, 2, similarity)
    pairs = near_duplicates(text_buffer(texts), similarity)
    found = {(a, b): s for a, b, s in pairs.itertuples(index=False)}
    assert set(found) <= set(expected) and all(found[p] == pytest.approx(expected[p]) for p in found)
    assert len(expected) >= 5 and len(found) >= 0.95 * len(expected)


def test_numba_and_numpy_agree_to_the_last_bit(monkeypatch):
    texts = planted_texts(200, 20, 1) + random_texts(500) + LANGUAGES
    results = []
    for choice in "01":
        monkeypatch.setenv("LLMOPS_NUMBA", choice)
        buffer = text_buffer(texts)
        hashes, edges, totals = shingles(buffer, 2)
        results.append([*word_hashes(buffer), hashes, edges, totals, duplicates.signatures(hashes, edges), exact_duplicates(buffer),
                        near_duplicates(buffer).to_numpy()])
    for a, b in zip(*results):
        assert a.dtype == b.dtype and np.array_equal(a, b)


def test_size_decides_where_nobody_does(monkeypatch):
    monkeypatch.delenv("LLMOPS_NUMBA", raising=False)
    monkeypatch.delitem(sys.modules, "numba", raising=False)
    assert not text.use_numba(5_000_000) and text.use_numba(100_000_000)
    monkeypatch.setitem(sys.modules, "numba", "has been started")
    assert not text.use_numba(1_000_000) and text.use_numba(5_000_000)


def test_copies_of_a_form_letter_are_one_cluster_and_few_pairs(monkeypatch):
    "A form letter sent by everybody: pairs grow with the number of texts, not with its square."
    seen, jaccard = [], duplicates._jaccard
    monkeypatch.setenv("LLMOPS_NUMBA", "0")
    monkeypatch.setattr(duplicates, "_jaccard", lambda h, e, left, right: seen.append(len(left)) or jaccard(h, e, left, right))
    letters = [f"We are pleased to tell you that your order {i} was sent today and will arrive within the next few days" for i in range(1500)]
    pairs = near_duplicates(text_buffer(letters))
    assert len(set(clusters(len(letters), pairs.left, pairs.right))) == 1
    assert seen[0] <= 1500 * 32 * 64


def test_one_long_text():
    long = text_buffer(["word " * 200_000, "x" * 1_000_000, "short"])
    assert count_texts(long).words.tolist() == [200_000, 1, 1]
    assert len(near_duplicates(long)) == 0


def test_clusters_are_chains():
    assert clusters(6, [0, 2, 4], [2, 5, 3]).tolist() == [0, 1, 0, 3, 3, 0]
    assert clusters(3, [], []).tolist() == [0, 1, 2]


# --- damaged encoding ----------------------------------------------------------------------------------------------

SENTENCES = ["Don’t panic – the café’s “naïve” menu costs 5 €…", "Größe und Maß: schön, für über 20 °C", "Er sagte „groß“, sie „TÜ“.", "¿Dónde está el niño?", "Привет, как дела?", "Łódź i Kraków są piękne",
             "今日は良い天気です", "Καλημέρα κόσμε", "smile 😀 and 👍", "naïve façade, crème brûlée, São Paulo"]


def misread(sentence):
    "UTF-8 read as Windows-1252; the five bytes it has no letter for stay as they are, as browsers do it."
    return "".join(bytes([b]).decode("cp1252", "ignore") or chr(b) for b in sentence.encode())


@pytest.mark.parametrize("sentence", SENTENCES)
def test_misread_text_is_mended(sentence):
    assert mend_encoding(misread(sentence))[0] == sentence
    assert mend_encoding(misread(sentence))[1] > 0


@pytest.mark.parametrize("sentence", SENTENCES)
def test_whole_text_is_left_alone(sentence):
    assert mend_encoding(sentence) == (sentence, 0)


def test_naughty_strings_are_hardly_touched(shared_data):
    "One of them is real damage; the rest of what is odd is not damaged."
    touched = [t for t in naughty(shared_data) if mend_encoding(t)[1]]
    assert len(touched) <= 2

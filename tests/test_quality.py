"""Quality signals and label checks: each signal against a plain Python definition of it, with numba and without, on text made by chance."""

import json
import re
import sys
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmops_workbench import counts, quality, text, units
from llmops_workbench.errors import ParameterValueError
from llmops_workbench.findings import text_rules
from llmops_workbench.helpdesk import generate_helpdesk
from llmops_workbench.labels import conflicting_labels, likely_label_errors
from llmops_workbench.quality import find_cut, find_cuts, letter_table, measure_boilerplate, measure_gibberish, quality_signals, reading_ease
from llmops_workbench.counts import count_texts
from llmops_workbench.text import text_buffer
from llmops_workbench.units import ngram_shares, repeated_share
from llmops_workbench.views import View


@pytest.fixture(params=["0", "1"], ids=["numpy", "numba"])
def engine(request, monkeypatch):
    monkeypatch.setenv("LLMOPS_NUMBA", request.param)
    return request.param


SNIPPETS = ["Dr", "e.g", "z.B", "p.m", "etc", "fig", "no", "am", "im", "im 2", "a", "I", "the", "The", "12", "3", "123", "...", "…", ". ", "! ", "? ", "?! ", ".", "\n", "\n\n", "\r\n", "\n- ", "\n1. ",
            "\n  * ", "\n• ", " ", "  ", "\t", "\u00a0", "\u3000", "\u2028", "\x85", "\x1c", "。", "！", "？", "｡", "।", "۔", "؟", "”", "’", "»", "“", "\"", "'", ")", "]", "」", "*", "_", "é", "Ü", "ß", "日本", "か",
            "مرحبا", "שלום", "😀", "👩‍👩‍👧", "❤️", "\u200b", "\u0301", "\x00", "don't", "example.org", "-", "_x", "a:b", "VPN", "QWERTZ", "Straße", "Łódź", "word", "people", "table", "\ufffd"]
snippets = st.lists(st.sampled_from(SNIPPETS), max_size=14).map("".join)
columns = st.lists(st.one_of(snippets, snippets, st.text(max_size=30)), max_size=8)
by_chance = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def whole(texts):
    return [re.sub("[\ud800-\udfff]", "\ufffd", t) for t in texts]


# --- sentences and counts -------------------------------------------------------------------------------------------

HARD = "。！？｡।॥۔؟"
ABBREVIATIONS = {word: kind for kind, group in (("never", counts._NEVER), ("maybe", counts._MAYBE), ("number", counts._NUMBER)) for word in group.split()}


def has_word(text):
    return any(c.isascii() and c.isalnum() or 0xc0 <= ord(c) < 0x2000 or 0x3000 <= ord(c) < 0xf000 for c in text)


def bounded(text):
    "Nothing that belongs to a word comes last."
    return not text or text[-1].isascii() and not text[-1].isalnum()


def excused(before, run, closers, after):
    following = re.sub(r"(?s)^.[ \t\n\r\v\f]{0,4}", "", after)[:1]
    lower, digit = "a" <= following <= "z", following in tuple("0123456789")
    if run == ".":
        word = re.search(r"[A-Za-z]*$", before).group()
        if len(word) == 1:
            previous = before[-2:-1] or " "
            return previous in ".( \n" and not (word in "mM" and previous == "." and not (lower or digit))
        if len(word) > 1:
            kind = ABBREVIATIONS.get(word.lower()) if bounded(before[:-len(word)]) else None
            return kind == "never" or kind == "maybe" and (lower or digit) or kind == "number" and digit
        number = re.search(r"(?<![0-9])[0-9]{1,2}$", before)
        if number:
            start = before[:number.start()]
            if not start or start[-1] == "\n" or lower and start[-1] == " ":
                return True
            ordinal = re.search(r"([A-Za-z]{1,5}) $", start)
            return bool(ordinal) and ordinal[1].lower() in counts._ORDINAL.split() and bounded(start[:ordinal.start()])
        return False
    return lower and (bool(closers) or not set(run) & set("!?"))


def python_sentences(text):
    last = found = 0
    for match in re.finditer(r"\n|[.!?…。！？｡।॥۔؟]+", text):
        at, run, end = match.start(), match.group(), match.start()
        if run == "\n":
            if not (text[:at].endswith(("\n", "\n\r")) or re.match(r"[ \t]*(?:[-*•] |[0-9]{1,2}[.)] )", text[at + 1:])):
                continue
        else:
            closers = re.match(r"[\"')*\]_`}»’“”」』）]{0,4}", text[match.end():]).group()
            end = match.end() + len(closers)
            after, hard = text[end:], set(run) & set(HARD)
            if not (hard or not after or after[0].isspace()) or not hard and after and excused(text[:at], run, closers, after):
                continue
        found += has_word(text[last:at])
        last = end
    return found + has_word(text[last:])


@by_chance
@given(texts=columns)
def test_counts_and_sentences_equal_python(engine, texts):
    found, texts = count_texts(text_buffer(texts)), whole(texts)
    assert found["sentences"].tolist() == [python_sentences(t) for t in texts]
    assert found["words"].tolist() == [len(t.split()) for t in texts]
    assert found["characters"].tolist() == [len(t) for t in texts]
    assert found["white"].tolist() == [sum(c.isspace() for c in t) for t in texts]
    assert found["symbols"].tolist() == [sum(33 <= ord(c) < 127 and not c.isalnum() for c in t) for t in texts]
    assert found["uppercase"].tolist() == [sum("A" <= c <= "Z" for c in t) for t in texts]


def test_sentences_equal_python_on_real_text(engine, shared_data):
    texts = json.loads((shared_data / "naughty_strings" / "blns.json").read_text(encoding="utf-8"))
    texts += (shared_data / "comparemt" / "ted.ref.detok.eng").read_text(encoding="utf-8").splitlines()[:2000]
    assert count_texts(text_buffer(texts))["sentences"].tolist() == [python_sentences(t) for t in texts]


# --- what repeats ---------------------------------------------------------------------------------------------------


def python_words(text):
    return [re.sub("[A-Z]", lambda m: m[0].lower(), w) for w in re.findall(r"[A-Za-z0-9\x80-\U0010ffff]+", text)]


def python_lines(text):
    return [line for line in (line.strip(" \t\n\r\v\f\x1c\x1d\x1e\x1f") for line in text.split("\n")) if line]


def seen_before(items):
    seen = set()
    return [item in seen or seen.add(item) or False for item in items]


repeating = st.lists(st.lists(st.sampled_from(["a", "b", "the", "The", "é", "日", "\n", " ", " \n ", ". "]), max_size=60).map(" ".join), max_size=5)


@by_chance
@given(texts=st.one_of(repeating, columns))
def test_repeats_equal_python(engine, texts):
    buffer, texts = text_buffer(texts), whole(texts)
    for unit, parts, weight in (("words", python_words, lambda w: 1), ("lines", python_lines, len)):
        expected = []
        for t in texts:
            items = parts(t)
            same = [re.sub("[A-Z]", lambda m: m[0].lower(), item) for item in items]
            expected.append(sum(weight(i) for i, again in zip(items, seen_before(same)) if again) / max(sum(map(weight, items)), 1))
        assert np.allclose(repeated_share(buffer, unit), expected)


def python_gram_share(words, n, top):
    grams = [tuple(words[i:i + n]) for i in range(len(words) - n + 1)]
    counts = Counter(grams)
    chosen = {g for g, c in counts.items() if c > 1}
    if top and chosen:
        chosen = {counts.most_common(1)[0][0]}  # the first of several
    covered = {i + k for i, g in enumerate(grams) if g in chosen for k in range(n)}
    return sum(len(words[i]) for i in covered) / max(sum(map(len, words)), 1)


@by_chance
@given(texts=st.one_of(repeating, columns))
def test_word_sequences_equal_python(engine, texts):
    shares = ngram_shares(text_buffer(texts))
    for row, words in enumerate(map(python_words, whole(texts))):
        for n, name in enumerate(units.GOPHER_LIMITS, 2):
            assert shares[name][row] == pytest.approx(python_gram_share(words, n, n < 5)), (name, words)


# --- letters, reading ease, word length -----------------------------------------------------------------------------


def python_gibberish(text):
    table, total, count = letter_table(), 0, 0
    for token in re.split(r"[ \t\n\r\v\f]+", text):
        bits = letters = small = capital = 0
        run, plain = [0, 0], True
        for i, c in enumerate(token + " "):
            code = 0
            if c.isascii() and c.isalpha():
                code = ord(c.lower()) - 96
            elif 0xc0 <= ord(c) < 0x180:
                code = int(quality._FOLDED[ord(c) - 0xc0])
            elif not (c in ".,;:!?\"'()-" or 0x80 <= ord(c) < 0xc0 or 0x2000 <= ord(c) < 0x2040 or i == len(token)):
                plain = False
            if code:
                run, capital, small = [*run, code], capital + ("A" <= c <= "Z"), small + (not "A" <= c <= "Z")
                continue
            if len(run) > 3:
                bits, letters = bits + sum(int(table[xyz]) for xyz in zip(run, run[1:], [*run, 0][2:])), letters + len(run) - 1
            plain &= not (len(run) > 2 and c in ".:" and re.match("[A-Za-z]", token[i + 1:]))
            run = [0, 0]
        if plain and (small or capital > 5):
            total, count = total + bits, count + letters
    return min(max(((total / 16 + 8 * 3.6) / (count + 8) - 3.6) / 2.8, 0), 1)


@by_chance
@given(texts=columns)
def test_gibberish_equals_python(engine, texts):
    assert np.allclose(measure_gibberish(text_buffer(texts)), [python_gibberish(t) for t in whole(texts)])


def python_ease(text, sentences):
    words, syllables, english = 0, 0, 0
    for match in re.finditer(r"[A-Za-z0-9\x80-\U0010ffff]+", text):
        word = match.group()
        english += word.lower() in quality._ENGLISH
        if word[0].isascii() and word[0].isdigit() or re.search(r"[A-Za-z0-9\x80-\U0010ffff]'$", text[:match.start()]):
            continue
        raw = word.lower().encode()
        groups = len(re.findall(rb"[aeiouy]+", raw))
        silent = len(raw) > 2 and re.search(rb"[^aeiouy]e$", raw) and not re.search(rb"[^aeiouy]le$", raw)
        words, syllables = words + 1, syllables + max(groups - bool(silent), 1)
    if words < 30 or english < words / 10 or not sentences:
        return np.nan
    return 206.835 - 1.015 * words / sentences - 84.6 * syllables / words


prose = st.lists(st.sampled_from([*quality._ENGLISH, "Don't", "it's", "'tis", "table", "people", "whole", "été", "fiancée", "3", "rhythm", "VPN.", "queue", "Are", "日本", "x'", "''s"]), min_size=25, max_size=60).map(" ".join)


@by_chance
@given(texts=st.lists(prose, max_size=4))
def test_reading_ease_equals_python(engine, texts):
    found = reading_ease(text_buffer(texts), np.arange(len(texts)))
    assert np.allclose(found, [python_ease(t, i) for i, t in enumerate(texts)], equal_nan=True)


def python_word_length(text):
    unspaced = sum(0x3000 <= ord(c) < 0xa000 or 0xe00 <= ord(c) < 0xf00 for c in text)
    words = text.split()
    return np.nan if not words or unspaced > 0.3 * len(text) else sum(map(len, words)) / len(words)


@by_chance
@given(texts=columns)
def test_word_length_equals_python(engine, texts):
    assert np.allclose(quality_signals(texts)["mean_word_length"], [python_word_length(t) for t in whole(texts)], atol=1e-4, equal_nan=True)


# --- lines that recur -----------------------------------------------------------------------------------------------


@by_chance
@given(texts=st.lists(st.lists(st.sampled_from(["opening hours: monday to friday", "Opening hours: 9 to 17, room 4", "Opening hours: 8 to 12, room 4", "own words of this message", "hi", ""]),
                               max_size=4).map("\n".join), max_size=30))
def test_recurring_lines_equal_python(engine, texts):
    fold = lambda line: re.sub("[1-9]", "0", line.lower())
    counts = Counter(line for t in set(texts) for line in set(map(fold, python_lines(t))) if len(python_lines(t)) > 1)
    expected = []
    for t in texts:
        lines = python_lines(t)
        hit = [len(lines) > 1 and len(line) >= 20 and counts[fold(line)] >= 3 for line in lines]
        expected.append(sum(len(line) for line, h in zip(lines, hit) if h) / max(sum(map(len, lines)), 1))
    assert np.allclose(measure_boilerplate(text_buffer(texts), 3), expected)


@pytest.mark.parametrize("line", [
    "Sent from my iPhone", "Gesendet mit der Mail-App", "To unsubscribe, click here", "You can unsubscribe at any time", "We use cookies to improve your experience.", "All rights reserved.",
    "This email and any files transmitted with it are confidential", "Diese E-Mail ist vertraulich und nur für den Adressaten bestimmt", "Ce message est strictement confidentiel.",
    "Este mensaje es confidencial", "Questo messaggio è riservato", "Please consider the environment before printing this e-mail", "© 2024 Example Ltd", "On Mon, 5 Jan 2026 at 10:12, Ann Lee wrote:",
    "Am 5.1.2026 um 10:12 schrieb Ann Lee:", "-----Original Message-----", "From: Ann Lee\nSent: Monday 10:00\n> hello", "This is an automated message, please do not answer"])
def test_notices_are_boilerplate(line):
    assert measure_boilerplate(text_buffer([f"The printer is on fire.\n\n{line}"]))[0] > 0


@pytest.mark.parametrize("text", [
    "The cookie jar is empty", "I cannot unsubscribe users in the admin panel", "My confidential folder is gone", "On Monday she wrote a long letter about it", "The original message was lost",
    "Copyright law is hard", "I sent it from my desk", "-- \n" + "\n".join(f"option {i} of the tool does this" for i in range(20)), "> a quotation\nand an answer", "- one\n- two\n--verbose", "The mail says it is private"])
def test_what_only_looks_like_a_notice_is_not(text):
    assert measure_boilerplate(text_buffer([f"Hello,\n{text}"]))[0] == 0


def test_a_signature_ends_the_text():
    signals = measure_boilerplate(text_buffer(["Broken.\n--\nAnn\nSales", "a\n--\nb" + "\nmore" * 20]))
    assert signals[0] > .5 and signals[1] == 0


def test_a_text_that_everybody_sends_is_a_duplicate_not_boilerplate():
    assert not measure_boilerplate(text_buffer(["The printer on floor two is down\nPlease have a look at it"] * 50 + ["Reset my password please now"] * 50)).any()


# --- cut off --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ['{"a": 1, "b": [true, null]', '{"a": "x\\" y', "[1, 2", '{"a": {"b": 1}', '{"a": tru', "["])
def test_json_that_stops_early(text):
    assert find_cut(text) == "json"


@pytest.mark.parametrize("text", ['{"a": 1}', '{"a": 1,}', "{'a': 1}", "[INFO] started", "{user} is gone", "[1, 2] are two", '{"a": 1} {"b": 2}', '{"a": x}', "[x]", "{}"])
def test_json_that_does_not(text):
    assert find_cut(text) == ""


def test_every_cut_of_a_json_object_is_seen():
    text = '{"intent": "reset", "n": 12, "list": [1, {"k": null}], "s": "a \\"b\\" c"}'
    missed = [text[:n] for n in range(2, len(text)) if find_cut(text[:n]) != "json"]
    assert missed == []


def test_a_limit_is_seen_only_where_many_texts_end_at_it():
    cut = [f"number {i:02d} " + "goes on and on about the old printer in the hall" for i in range(20)]
    assert set(find_cuts(text_buffer([t[:40] for t in cut]))) == {"limit"}
    assert not (find_cuts(text_buffer([t[:40] + "." for t in cut])) != "").any()
    assert not (find_cuts(text_buffer([cut[0][:40]] * 20)) != "").any()


def test_half_a_word_is_seen_by_the_other_texts():
    texts = ["the toner of this printer is out"] * 3 + ["we need more ton", "we need more of the tone", "we need more of the Toner", "prin", "we need more of xyz"]
    assert find_cuts(text_buffer(texts)).tolist()[3:] == ["", "word", "", "", ""]  # four words are too few to tell


def flagged(signals, *but):
    "The rows that each rule about these signals is about."
    rules = [rule for rule in text_rules(512, 0.4) if all(o["column"] in signals for o in rule[2]) and not any(word in rule[1] for word in but)]
    return {sentence: View(signals, operations).mask for _, sentence, operations, _ in rules}


# --- whole columns --------------------------------------------------------------------------------------------------


def test_missing_odd_and_empty_columns(engine):
    signals = quality_signals(["", None, float("nan"), pd.NA, " \n ", "\ud800 lone", "word", "日本語", "שלום עולם", "👩‍👩‍👧"])
    assert len(signals) == 10 and signals["words"].tolist() == [0, 0, 0, 0, 0, 2, 1, 1, 2, 1]
    assert not any(rows.any() for rows in flagged(signals, "empty", "three words").values())
    assert len(quality_signals([])) == 0
    assert signals["mean_word_length"].isna().tolist() == [True] * 5 + [False, False, True, False, False]


def test_index_and_type_of_the_column_do_not_matter():
    texts = pd.Series(["skipped", "First. Second.", None, "third"], index=[9, 7, 7, 1])
    expected = quality_signals(["First. Second.", "", "third"])
    for kind in ("str", "object", "category"):
        pd.testing.assert_frame_equal(quality_signals(texts.astype(kind)[1:]), expected)


@pytest.mark.parametrize("texts, message", [("one text", "texts is one text"), (["a", 3], "Row 1 of texts is int '3'"), ([b"x"], "Row 0 of texts is bytes"), (pd.Series([1.5, None]), "Row 0 of texts is float")])
def test_what_is_no_text_is_refused_in_one_line(texts, message):
    with pytest.raises(ParameterValueError, match=re.escape(message)) as caught:
        quality_signals(texts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cell", ["word " * 2_000_000, "x" * 10_000_000, "\n" * 10_000_000, " " * 10_000_000, "." * 10_000_000, "a.\n\n" * 2_500_000, '"' * 10_000_000, "日" * 3_300_000,
                                  '{"a": [' * 1_400_000, "```\n" * 2_500_000, "> x\n" * 2_500_000, "--\n" * 3_300_000, "Ann wrote on 1.1.2026, 9:00:\n" * 300_000], ids=lambda c: repr(c[:5]))
def test_one_cell_of_ten_megabytes(monkeypatch, cell):
    monkeypatch.delenv("LLMOPS_NUMBA", raising=False)
    assert len(quality_signals([cell, "short"])) == 2


def test_numba_and_numpy_agree(monkeypatch):
    texts = generate_helpdesk(n_rows=400, seed=100)[0]["text"].tolist() + SNIPPETS
    monkeypatch.setenv("LLMOPS_NUMBA", "0")
    expected = quality_signals(texts)
    monkeypatch.setenv("LLMOPS_NUMBA", "1")
    pd.testing.assert_frame_equal(quality_signals(texts), expected)


def test_size_decides_where_nobody_does(monkeypatch):
    monkeypatch.delenv("LLMOPS_NUMBA", raising=False)
    monkeypatch.delitem(sys.modules, "numba", raising=False)
    assert not text.compiling_pays(text_buffer(["x" * 2_000_000])) and text.compiling_pays(text_buffer(["x" * 3_000_000]))


# --- judged on what was not used to make them -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged():
    return generate_helpdesk(n_rows=6000, seed=0)


def test_the_sample_is_hardly_flagged(judged):
    "Tickets in five languages, with logs, codes, names and greetings: none is gibberish, few are anything else."
    rows = flagged(quality_signals(judged[0]["text"]))
    assert len(rows) >= 9 and not rows["Texts look typed at random"].any()
    assert max(found.mean() for found in rows.values()) < 0.01


def test_reading_ease_is_for_english(judged):
    ease, english = quality_signals(judged[0]["text"])["readability"], (judged[1]["language"] == "en").to_numpy()
    assert ease[~english].isna().all() and ease[english].notna().mean() > 0.85


def test_planted_label_errors_are_found(judged):
    frame, truth = judged
    product, clean = (column.map(lambda q: json.loads(q)["product"]) for column in (frame["query"], truth["clean_query"]))
    ranked, wrong = likely_label_errors(frame["text"], product), (product != clean).to_numpy()
    assert wrong[ranked["row"][:wrong.sum()]].mean() > 0.8
    assert wrong[ranked["row"][ranked["likely"]]].mean() > 0.7


def test_conflicts_equal_pandas(judged):
    frame, _ = judged
    intent = frame["query"].map(lambda q: json.loads(q)["intent"])
    expected = np.flatnonzero(intent.groupby(frame["text"].to_numpy()).transform("nunique") > 1)
    assert sorted(conflicting_labels(frame["text"], intent)["row"]) == expected.tolist()

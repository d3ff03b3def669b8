"""Languages of texts: the cells that no page should show, text that nobody here wrote, and what must never come to harm."""

import importlib.util
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from llmops_workbench.errors import MissingDependencyError, ParameterValueError
from llmops_workbench.helpdesk import generate_helpdesk
from llmops_workbench.languages import LANGUAGES, detect_languages, language_codes, own_words

eldc = pytest.importorskip("eldc")
ROOT = Path(__file__).resolve().parent.parent
FIVE = ["en", "de", "es", "fr", "it"]
GERMAN = "Der Drucker im zweiten Stock geht seit gestern nicht mehr, bitte schauen Sie danach."
ENGLISH = "Is this ticket still open? Otherwise we would like to close the case by the end of the week."


def one(text, languages=None):
    return detect_languages([text], languages)["language"][0]


# --- how often it is right -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("languages", [None, FIVE], ids=["all", "five"])
def test_tickets_of_the_sample(languages):
    frame, truth = generate_helpdesk(n_rows=3000, seed=0)
    found = detect_languages(frame["text"], languages)
    right = found["language"].to_numpy() == truth["language"].to_numpy()
    assert right.mean() >= 0.99
    assert right[truth["language"].to_numpy() != "en"].mean() >= 0.99


def test_messages_of_installed_programs(monkeypatch):
    "Translations made by people, of which a machine with language packs has plenty."
    folders = [path for path in (Path("/usr/share/locale") / code for code in FIVE) if path.is_dir()]
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # as if it had been called: it has helpers beside it
    spec = importlib.util.spec_from_file_location("benchmark_languages", ROOT / "benchmarks" / "languages.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    frame = benchmark.corpus(folders, 60)
    if frame["language"].nunique() < 5 or len(frame) < 1000:
        pytest.skip("this machine has no translations of its programs")
    right = benchmark.accuracy(frame, lambda texts: detect_languages(texts, FIVE)["language"].tolist())
    assert right["1-2"] >= 0.8 and right["3-5"] >= 0.95 and right["6-10"] >= 0.98 and right["11-20"] >= 0.99


def test_confidence_grows_with_the_text():
    short, middle, long = detect_languages(["Drucker", "Der Drucker geht nicht", GERMAN])["confidence"]
    assert short < middle < long <= 1


# --- whose words ---------------------------------------------------------------------------------------------------


ASIDES = {
    "quoted": "\n\nOn Monday Jonathan wrote:\n> " + "\n> ".join([ENGLISH] * 4),
    "forwarded": f"\n\n----- Original message -----\nFrom: Jonathan Taylor\nTo: Ada Stoll\n\n{ENGLISH} {ENGLISH}",
    "signature": f"\n-- \nJohn Smith\nGlobal Service Desk\nThis message is confidential. {ENGLISH} {ENGLISH}",
    "log": "\n" + "\n".join(f"2026-02-0{i} 08:1{i}:02 ERROR could not connect to the server, the connection was refused" for i in range(1, 8)),
    "traceback": '\nTraceback (most recent call last):\n  File "/srv/app.py", line 8, in run\n    raise ConnectionError("could not connect to the server")\n'
                 "ConnectionError: could not connect to the server because the connection was refused by the other side of it",
    "fence": f"\n```python\n# {ENGLISH}\nprint('{ENGLISH}')\n```",
    "code": "\nfor row in rows:\n    print(row.name, row.value)\nresult = handler(request, timeout=settings.timeout)\nreturn result",
    "address": "\nhttps://example.org/how-to/reset-the-password/for-all-of-the-users-in-the-house?with=this&and=that\nC:\\Users\\the user\\and_the_file.txt",
    "markup": '\n<table class="the best of all"><tr></tr></table>&nbsp;',
    "sql": "\nSELECT the, name, of, it FROM users AS the_people WHERE they = 'are here' AND they_are = 'open';"}


@pytest.mark.parametrize("kind", ASIDES)
@pytest.mark.parametrize("first", [True, False], ids=["below", "above"])
def test_what_the_author_did_not_write_does_not_count(kind, first):
    if not first and kind in ("forwarded", "signature"):
        pytest.skip("what stands below the mark is not the author's")
    aside = ASIDES[kind]
    text = GERMAN + "\n" + aside if first else aside.strip() + "\n\n" + GERMAN
    assert one(text) == "de"
    assert GERMAN in own_words(text)
    assert len(own_words(text)) < len(GERMAN) + 45
    assert own_words(text.replace("\n", "\r\n")) == own_words(text)


def test_a_text_of_nothing_but_quotations_is_known_by_them():
    assert one(f"> {GERMAN}\n> {GERMAN}") == "de"
    assert one("    " + GERMAN) == "de"
    assert one("# " + GERMAN) == "de"


@pytest.mark.parametrize("text", ["", "   \n\t", "12345", "3,5 x 7 = 24,5", "2026-11-25 10:00:00", "0x80070035", "!!! ??? ...", "😀 🎉👍", "\u200b\u2060", "\ud800",
    "https://example.org/path", "user@example.org", "C:\\Windows\\system32", "{}", '{"intent":"toner","urgent":true}', "[1, 2, 3]", "x = foo(bar)", "return x;",
    "for i in range(10): print(i)", "def f(x):\n    return x + 1", "import os", "if (a == b) { c(); }", "SELECT name FROM users WHERE id = 1", "<br/><p></p>", "```\nhello\n```",
    "asdf qwer zxcv", "192.168.0.1", "v1.2.3-rc1", "HD-000123"])
def test_nothing_to_tell_a_language_by(text):
    found = detect_languages([text]).iloc[0]
    assert (found["language"], found["confidence"]) == ("", 0)


@pytest.mark.parametrize("text", ["(sistema operativo)", "ciao; come va, tutto bene?", "non è possibile/permesso", "Text = Buongiorno, la stampante non funziona più",
    "<p>Buongiorno a tutti, la stampante non funziona</p>", '{"role":"user","content":"Buongiorno, la stampante non funziona più"}', "* Buongiorno\n* la stampante non funziona"])
def test_signs_do_not_make_prose_code(text):
    assert one(text, FIVE) == "it"


# --- cells that come along -----------------------------------------------------------------------------------------


def test_index_and_order_are_kept_and_equal_texts_agree():
    texts = pd.Series([GERMAN, ENGLISH, None, GERMAN, ""], index=[7, 7, "a", 3, 1])
    found = detect_languages(texts)
    assert found.index.tolist() == texts.index.tolist()
    assert found["language"].tolist() == ["de", "en", "", "de", ""]
    assert found.iloc[0].tolist() == found.iloc[3].tolist()
    pd.testing.assert_frame_equal(detect_languages(texts[::-1])[::-1], found)


@pytest.mark.parametrize("texts", [[], pd.Series([], dtype="str"), np.array([]), ()], ids=["list", "series", "array", "tuple"])
def test_nothing_gives_an_empty_frame(texts):
    found = detect_languages(texts)
    assert found.dtypes.astype(str).to_dict() == {"language": "str", "confidence": "float64"} and found.empty


def test_every_kind_of_missing():
    texts = [None, float("nan"), np.nan, pd.NA, pd.NaT, np.float64("nan")]
    assert set(detect_languages(texts)["language"]) == {""}
    for dtype in ("str", "string", "object", "category"):
        assert detect_languages(pd.Series([GERMAN, None], dtype=dtype))["language"].tolist() == ["de", ""]


@pytest.mark.parametrize("value", [5, 1.5, True, b"bytes", ["a"], {"a": 1}, np.array([1, 2]), object()], ids=lambda v: type(v).__name__)
def test_a_cell_that_is_no_text_is_named(value):
    with pytest.raises(ParameterValueError, match=rf"Row 2 holds .*of type {type(value).__name__}.*astype\(str\)") as error:
        detect_languages([GERMAN, value])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("texts", ["a text", b"bytes", {"a": "b"}, pd.DataFrame({"a": ["b"]})], ids=["str", "bytes", "dict", "frame"])
def test_one_column_is_wanted(texts):
    with pytest.raises(ParameterValueError, match="Pass one column"):
        detect_languages(texts)


def test_awkward_strings(shared_data):
    texts = json.loads((shared_data / "naughty_strings" / "blns.json").read_text(encoding="utf-8"))
    texts += [t[:40] + "\ud83d" + t[40:] + "\x00" for t in texts] + [chr(c) * 3 for c in range(0, 0x11000, 97)] + ["\U000e0041" * 50, "e\u0301" * 500]
    found = detect_languages(texts)
    assert set(found["language"]) <= {"", *LANGUAGES}
    assert found["confidence"].between(0, 1).all() and (found["confidence"] > 0).eq(found["language"] != "").all()


def test_hidden_characters_change_nothing():
    hidden = "\u200b".join(GERMAN) + "\ud83d\x00\u00ad\U000e0041 😀"
    assert detect_languages([hidden])["language"][0] == "de"
    assert own_words(hidden).removesuffix(" 😀") == GERMAN


@pytest.mark.parametrize("unit", ["a", "1", "(", "<", "`", "-", "_", " ", "\t", "\n", "\u00a0", "é", "SELECT x\n", "SELECT ", "``` ", "--x--\nFrom: a\n", "-- x\n", "a(", "for ",
    '"a":', "from a ", "[.'\"", "a.Error", "<a ", "return ", "a b c d e ", "> > "])
def test_repeated_patterns_come_to_an_end(unit):
    "Each of these is the bad case of some rule; ten megabytes of it would take for ever if one of them was not linear."
    assert detect_languages([unit * (10_000_000 // len(unit))])["confidence"].between(0, 1).all()


def test_a_long_text_is_known_by_all_of_it():
    "Its beginning alone would say English."
    assert one(ENGLISH * 14 + "\n" + GERMAN * 60) == "de"
    assert one((GERMAN + "\n") * 120_000) == "de"


# --- the choice of languages ---------------------------------------------------------------------------------------


def test_only_the_languages_that_were_given():
    texts = [GERMAN, ENGLISH, "日本語のテキスト", "Saluti a tutti", "ok"]
    before = detect_languages(texts)
    assert set(detect_languages(texts, ["French", "it"])["language"]) <= {"fr", "it", ""}
    pd.testing.assert_frame_equal(detect_languages(texts), before)  # a choice does not outlive its call
    assert detect_languages([GERMAN], "German")["language"].tolist() == ["de"]


def test_the_names_are_those_of_the_library():
    assert set(LANGUAGES) == set(eldc.LANGUAGES)
    assert language_codes(list(LANGUAGES.values())) == list(LANGUAGES)


@pytest.mark.parametrize(("name", "expected"), [("Germn", r"Near it are: German \(de\)"), ("xx", "The 60 languages are: Amharic, Arabic"), (5, "'5' is no language"), ("", "'' is no language"),
    (None, "'None' is no language"), ("spanis", r"Spanish \(es\)")])
def test_an_unknown_language_is_one_clear_line(name, expected):
    with pytest.raises(ParameterValueError, match=expected) as error:
        detect_languages([GERMAN], ["en", name])
    assert "\n" not in str(error.value)


def test_threads_do_not_disturb_each_other():
    frame, _ = generate_helpdesk(n_rows=400, seed=100)
    alone = [detect_languages(frame["text"], choice) for choice in (None, FIVE, ["de", "fr"])]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda choice: detect_languages(frame["text"], choice), [None, FIVE, ["de", "fr"]] * 3))
    for i, found in enumerate(together):
        pd.testing.assert_frame_equal(found, alone[i % 3])


# --- the package that may be absent --------------------------------------------------------------------------------


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "eldc", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'llmops_workbench\[text\]'"):
        detect_languages([GERMAN])
    assert own_words(GERMAN) == GERMAN and language_codes("German") == ["de"]  # the rest does without


def test_it_is_loaded_on_use():
    code = "import llmops_workbench.languages, sys; print('eldc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout.strip() == "False"

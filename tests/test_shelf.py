"""The shelf of counts: what is never scored twice, what survives, what is never used."""

import multiprocessing
import os
import sqlite3
import time
import warnings

import numpy as np
import pytest
from damage import damage
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_judges import save_encoder

from llmops_workbench.bertscore import BERTSCORE_METHODS
from llmops_workbench.caches import CompletionCache
from llmops_workbench.confidence import CONFIDENCE_METHODS
from llmops_workbench.likeness import LIKENESS_METHODS
from llmops_workbench.options import Batch, Method, Options, mean_value
from llmops_workbench.settings import load_settings
from llmops_workbench.shelf import StatisticsShelf, counted, full_signature, segment_keys


def watching(calls, signature=lambda options: []):
    "A metric that writes down what it was asked."
    def count(batch, options):
        calls.append(list(batch.predictions))
        return np.array([[float(len(p)), float(len(rs))] for p, rs in zip(batch.predictions, batch.references)])
    return Method(count, mean_value, signature)


def test_only_what_is_not_there_is_scored(tmp_path):
    shelf, calls = StatisticsShelf(tmp_path/"s.db"), []
    method = watching(calls)
    batch = Batch(list("abcab"), [["x"], ["x"], ["x", "y"], ["x"], ["z"]])
    expected = method.count(batch, Options())
    calls.clear()
    assert np.array_equal(counted(method, "m", batch, Options(), shelf), expected) and calls == [["a", "b", "c", "b"]], "b stands before two references"
    part = Batch(["c", "d", "a"], [["x", "y"], ["x"], ["x"]])
    assert counted(method, "m", part, Options(), shelf).tolist() == [[1, 2], [1, 1], [1, 1]] and calls[1:] == [["d"]]
    again = StatisticsShelf(tmp_path/"s.db")
    assert np.array_equal(counted(method, "m", batch, Options(), again), expected) and len(calls) == 2
    assert np.array_equal(counted(method, "m", batch, Options(), None), expected) and len(calls) == 3


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=12), min_size=1, max_size=6))
def test_any_part_and_union_is_found_whatever_was_scored_together(tmp_path_factory, sets):
    "Rows and blocks mixed, examples that stand twice: each example is scored once, by whichever set had it first."
    path, calls, seen = tmp_path_factory.mktemp("s")/"s.db", [], set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmops_workbench.shelf._MANY", 4)
        for some in [*sets, [i for part in sets for i in part]]:
            batch = Batch(["x"*i for i in some], [["y"]]*len(some))
            calls.clear()
            assert counted(watching(calls), "m", batch, Options(), StatisticsShelf(path)).tolist() == [[i, 1] for i in some]
            assert sorted(len(p) for call in calls for p in call) == sorted(set(some) - seen)
            seen |= set(some)
        assert StatisticsShelf(path).stats()["n_examples"] == len(seen)


def test_names_that_share_a_half_are_told_apart(tmp_path):
    "No digest does this; a name that is missed is scored again, one that is mistaken would be a wrong value."
    shelf = StatisticsShelf(tmp_path/"s.db")
    keys = [b"same one" + i.to_bytes(8, "big") for i in range(300)]
    shelf.put("s", keys[:290], np.arange(290.0)[:, None])
    there, found = shelf.get("s", keys[::-1])
    assert there.any() and np.array_equal(found[:, 0], np.arange(300.0)[::-1][there]) and not there[:10].any()


@pytest.mark.parametrize("changed", [{"name": "other"}, {"options": Options(lowercase=True)}, {"version": "99"}], ids=["metric", "options", "version"])
def test_what_changes_the_value_is_another_name(tmp_path, monkeypatch, changed):
    shelf, calls, batch = StatisticsShelf(tmp_path/"s.db"), [], Batch(["a"], [["x"]])
    method = watching(calls, lambda options: [f"case:{options.lowercase}"])
    counted(method, "m", batch, Options(), shelf)
    if "version" in changed:
        monkeypatch.setattr("llmops_workbench.shelf.__version__", "99")
    counted(method, changed.get("name", "m"), batch, changed.get("options", Options()), shelf)
    assert len(calls) == 2


def test_columns_that_a_metric_reads_are_part_of_the_name(tmp_path):
    shelf, method = StatisticsShelf(tmp_path/"s.db"), CONFIDENCE_METHODS["brier"]
    batches = [Batch(["a"], [["a"]], {"confidence": [c]}) for c in (0.5, 0.25, None, 0.5)]
    values = [counted(method, "brier", b, Options(), shelf, ("confidence",)).tolist() for b in batches]
    assert values == [[[0.25, 1]], [[0.5625, 1]], [[0, 0]], [[0.25, 1]]] and shelf.stats()["n_examples"] == 3
    assert segment_keys(batches[0]) == segment_keys(batches[1])


texts = st.text(st.characters(exclude_categories=()), max_size=6)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(texts, st.lists(texts, max_size=3)), min_size=1, max_size=8))
def test_names_are_equal_only_for_equal_examples(examples):
    keys = segment_keys(Batch([p for p, _ in examples], [rs for _, rs in examples]))
    for a, first in zip(examples, keys):
        for b, second in zip(examples, keys):
            assert (a == b) == (first == second)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.floats(allow_nan=True), min_size=3, max_size=3), min_size=1, max_size=5))
def test_numbers_come_back_bit_by_bit(tmp_path_factory, rows):
    shelf = StatisticsShelf(tmp_path_factory.mktemp("s")/"s.db")
    keys = [i.to_bytes(16, "little") for i in range(len(rows))]
    shelf.put("s", keys, np.array(rows))
    assert shelf.get("s", keys)[1].tobytes() == np.array(rows).tobytes()


def test_no_text_is_kept(tmp_path):
    shelf = StatisticsShelf(tmp_path/"s.db")
    counted(LIKENESS_METHODS["distinct"], "distinct", Batch(["Zoë Quist was here"], [["Quist"]]), Options(), shelf)
    shelf.close()
    assert not any(b"Quist" in path.read_bytes() for path in tmp_path.iterdir())


def test_idf_belongs_to_all_references(tmp_path):
    "With inverse document frequencies another set of references is another metric; without, an example is found beside any other."
    texts = ["the printer is broken", "please help me", "a black screen", "the screen is broken"]*3
    options = {idf: Options(bertscore_model=str(save_encoder(tmp_path/"encoder", "bert", texts)), bertscore_layer=2, bertscore_idf=idf) for idf in (True, False)}
    real, calls = BERTSCORE_METHODS["bertscore"], []
    method = Method(lambda batch, o: calls.append(len(batch)) or real.count(batch, o), real.value, real.sign)
    shelf = StatisticsShelf(tmp_path/"s.db")
    small, wide = Batch(texts[:2], [[texts[3]], [texts[2]]]), Batch(texts[:3], [[texts[3]], [texts[2]], [texts[0]]])
    for idf, expected in ((True, [2, 3]), (False, [2, 1])):
        for batch in (small, wide, small, wide):
            np.testing.assert_allclose(counted(method, "bertscore", batch, options[idf], shelf), real.count(batch, options[idf]), atol=1e-6)
        assert calls == expected
        calls.clear()
    changed = Batch([texts[0], "another answer"], small.references)
    np.testing.assert_allclose(counted(method, "bertscore", changed, options[True], shelf), real.count(changed, options[True]), atol=1e-6)


def test_ten_thousand_examples_are_found_at_once(tmp_path):
    "A bulk lookup is a few queries; the number of statements is what is held, not the time."
    shelf, rng = StatisticsShelf(tmp_path/"s.db"), np.random.default_rng(0)
    keys, counts = [rng.bytes(16) for _ in range(10_000)], rng.random((10_000, 10))
    shelf.put("s", keys, counts)
    statements = []
    shelf._connection.set_trace_callback(statements.append)
    there, found = shelf.get("s", keys)
    assert there.all() and np.array_equal(found, counts) and len(statements) <= 3
    statements.clear()
    there, found = shelf.get("s", keys[::2])
    assert there.all() and np.array_equal(found, counts[::2]) and len(statements) <= 3
    for i in range(0, 10_000, 200):
        shelf.put("few", keys[i:i + 200], counts[i:i + 200])
    statements.clear()
    there, found = shelf.get("few", keys)
    assert there.all() and np.array_equal(found, counts) and len(statements) <= 15


def test_it_lies_in_the_workspace_and_is_no_cache_of_answers():
    shelf = StatisticsShelf()
    assert shelf.path == load_settings().workspace/"cache"/"statistics.db"
    with pytest.raises(OSError, match="another program"):
        CompletionCache(shelf.path)
    with pytest.raises(OSError, match="another program"):
        StatisticsShelf(CompletionCache().path)


def fill(path, name):
    shelf = StatisticsShelf(path)
    for i in range(30):
        shelf.put(name, [i.to_bytes(16, "little")], np.array([[float(i), 1.0]]))
        shelf.put("shared", [i.to_bytes(16, "little")], np.array([[float(i), 1.0]]))
    return shelf.get("shared", [i.to_bytes(16, "little") for i in range(30)])[1][:, 0].tolist()


def test_several_processes_at_once(tmp_path):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = pool.starmap(fill, [(str(tmp_path/"s.db"), name) for name in "abc"])
    assert found == [list(range(30))]*3
    assert StatisticsShelf(tmp_path/"s.db").stats()["n_examples"] == 120


def test_a_fork_shares_it(tmp_path):
    shelf, key = StatisticsShelf(tmp_path/"s.db"), b"k"*16
    shelf.put("s", [key], np.array([[1.0]]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os._exit(0 if shelf.get("s", [key])[0].all() and shelf.put("s", [b"c"*16], np.array([[2.0]])) else 1)
    assert os.waitpid(child, 0)[1] == 0 and shelf.get("s", [key, b"c"*16])[1].tolist() == [[1], [2]]


@pytest.mark.parametrize("n", [200, 300], ids=["rows", "block"])
@pytest.mark.parametrize("at", [0, 20, 100, 5000, 12345, 20000, -2000, -100, "truncated", "empty", "text"])
def test_a_damaged_file_gives_no_wrong_count(tmp_path, at, n):
    path, rng = tmp_path/"s.db", np.random.default_rng(0)
    keys, counts = [rng.bytes(16) for _ in range(n)], rng.random((n, 6))
    shelf = StatisticsShelf(path)
    shelf.put("s", keys, counts)
    shelf.close()
    damage(path, at)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        shelf = StatisticsShelf(path)
        there, found = shelf.get("s", keys)
        assert np.array_equal(found.reshape(-1, 6), counts[there])
        shelf.put("s", keys, counts)
        assert np.array_equal(shelf.get("s", keys)[1], counts)
    assert bool(list(tmp_path.glob("s.db.damaged*"))) == any("is damaged" in str(w.message) for w in told)


@pytest.mark.parametrize("column, value", [("names", b"x"*4800), ("names", b""), ("n", 299), ("numbers", b"\0"*14400), ("numbers", b""), ("checksum", 1), ("named", 1)])
def test_a_damaged_block_is_set_aside(tmp_path, column, value):
    shelf, rng = StatisticsShelf(tmp_path/"s.db"), np.random.default_rng(0)
    keys, counts = [rng.bytes(16) for _ in range(300)], rng.random((300, 6))
    shelf.put("s", keys, counts)
    shelf._connection.execute(f"UPDATE blocks SET {column} = ?", (value,))
    with pytest.warns(RuntimeWarning, match="set aside"):
        assert not shelf.get("s", keys)[0].any()
    shelf.put("s", keys, counts)
    assert np.array_equal(shelf.get("s", keys)[1], counts)


def test_rows_and_blocks_of_one_metric_have_one_length(tmp_path):
    shelf, rng = StatisticsShelf(tmp_path/"s.db"), np.random.default_rng(0)
    keys = [rng.bytes(16) for _ in range(301)]
    shelf.put("s", keys[:300], np.ones((300, 6)))
    shelf.put("s", keys[300:], np.ones((1, 5)))
    with pytest.warns(RuntimeWarning, match="differ in length.*set aside"):
        assert not shelf.get("s", keys)[0].any()


def test_a_full_disk_costs_time_and_no_value(tmp_path):
    shelf, calls = StatisticsShelf(tmp_path/"s.db"), []
    shelf._connection.execute("PRAGMA max_page_count = 4").fetchall()
    batch = Batch([f"answer {i}" for i in range(2000)], [["x"]]*2000)
    with pytest.warns(RuntimeWarning, match="full.*Counts are not kept from here on"):
        first = counted(watching(calls), "m", batch, Options(), shelf)
    assert np.array_equal(first, counted(watching(calls), "m", batch, Options(), shelf)) and len(calls) == 2


def test_it_stays_within_its_bytes_and_keeps_what_is_used(tmp_path):
    shelf, rng = StatisticsShelf(tmp_path/"s.db", most_bytes=200_000), np.random.default_rng(0)
    shelf.put("dear", [b"d"*16], np.ones((1, 4)))
    shelf._connection.execute("UPDATE counts SET day = 9999999")
    for i in range(12):
        shelf.put("s", [rng.bytes(16) for _ in range(400)], rng.random((400, 4)))
    stats = shelf.stats()
    assert stats["size_bytes"] <= 200_000 and 500 < stats["n_examples"] < 4801
    assert shelf._connection.execute("SELECT count(*) FROM counts WHERE day = 9999999").fetchone() == (1,)


def test_use_is_noted_to_the_day(tmp_path, monkeypatch):
    shelf, keys = StatisticsShelf(tmp_path/"s.db"), [i.to_bytes(16, "little") for i in range(301)]
    shelf.put("s", keys[:300], np.ones((300, 1)))
    shelf.put("s", keys[300:], np.ones((1, 1)))
    later = time.time() + 3*86400
    monkeypatch.setattr("llmops_workbench.shelf.time.time", lambda: later)
    assert shelf.get("s", keys)[0].all()
    with sqlite3.connect(tmp_path/"s.db") as check:
        assert check.execute("SELECT day FROM counts UNION ALL SELECT day FROM blocks").fetchall() == [(int(later//86400),)]*2
    check.close()


def test_the_signature_holds_what_changes_the_value():
    options = Options(distinct_order=3)
    assert full_signature(LIKENESS_METHODS["distinct"], "distinct", options).startswith("distinct|case:lc|tok:white-space|n:3|version:")


def test_an_interrupt_keeps_what_was_there(tmp_path):
    shelf, calls = StatisticsShelf(tmp_path/"s.db"), []
    counted(watching(calls), "m", Batch(["a"], [["x"]]), Options(), shelf)

    def stop(batch, options):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        counted(Method(stop, mean_value, lambda options: []), "m", Batch(["a", "b"], [["x"], ["x"]]), Options(), shelf)
    assert counted(watching(calls), "m", Batch(["a", "b"], [["x"], ["x"]]), Options(), shelf).shape == (2, 2) and calls == [["a"], ["b"]]

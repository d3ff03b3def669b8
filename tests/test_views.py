"""What no page should show of views: any operations on any columns, as bits and as pandas, and a million rows counted by the work they cost."""

import asyncio

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmops_workbench import bars, orders, views
from llmops_workbench.views import View, column_shape, operation_kind, sort_rows

TEXTS = ["", "VPN", "vpn down", "a.b", "ÄRGER", "ärger", "（", "x" * 50, "\ud83d".encode("utf-16", "surrogatepass").decode("utf-16", "replace")]

frames = st.integers(0, 40).flatmap(lambda n: st.fixed_dictionaries({
    "text": st.lists(st.one_of(st.none(), st.sampled_from(TEXTS)), min_size=n, max_size=n).map(lambda v: pd.Series(v, dtype="str")),
    "whole": st.lists(st.one_of(st.none(), st.integers(-5, 5), st.just(2**60)), min_size=n, max_size=n).map(lambda v: pd.Series(v, dtype="Int64")),
    "number": st.lists(st.one_of(st.just(np.nan), st.just(np.inf), st.floats(-5, 5)), min_size=n, max_size=n).map(lambda v: pd.Series(v, dtype="float64")),
    "time": st.lists(st.one_of(st.none(), st.datetimes(pd.Timestamp("2025-01-01"), pd.Timestamp("2025-02-01"))), min_size=n, max_size=n).map(
        lambda v: pd.Series(pd.to_datetime(v), dtype="datetime64[us]")),
    "flag": st.lists(st.one_of(st.none(), st.booleans()), min_size=n, max_size=n).map(lambda v: pd.Series(v, dtype="boolean")),
}).map(pd.DataFrame))

turned = st.booleans()
operations = st.one_of(
    st.builds(lambda c, low, high, no: {"column": c, **({} if low is None else {"at_least": low}), "below": high, "not": no},
              st.sampled_from(["whole", "number"]), st.one_of(st.none(), st.integers(-6, 6)), st.integers(-6, 6), turned),
    st.builds(lambda day, no: {"column": "time", "at_least": f"2025-01-{day:02}", "not": no}, st.integers(1, 31), turned),
    st.builds(lambda low, no: {"column": "text", "characters_at_least": low, "not": no}, st.integers(0, 10), turned),
    st.builds(lambda v, no: {"column": "text", "one_of": v, "not": no}, st.lists(st.one_of(st.none(), st.sampled_from(TEXTS))), turned),
    st.builds(lambda c, t, case, no: {"column": c, "contains": t, "case": case, "not": no}, st.sampled_from(["text", "whole", "flag"]),
              st.sampled_from(["vpn", "ä", ".", "1", "", "true", "（"]), turned, turned),
    st.builds(lambda t, case, no: {"column": "text", "matches": t, "case": case, "not": no}, st.sampled_from(["^v", "[aä]", "x+$", "(?:b)"]), turned, turned),
    st.builds(lambda c, no: {"column": c, "missing": True, "not": no}, st.sampled_from(["text", "whole", "number", "time", "flag"]), turned),
    st.builds(lambda words, among, no: {"search": words, "in": among, "not": no}, st.sampled_from(["vpn", "vpn 1", "", "true"]),
              st.lists(st.sampled_from(["text", "whole", "flag"]), min_size=1, unique=True), turned),
    st.builds(lambda rows, no: {"rows": rows, "not": no}, st.lists(st.integers(0, 45)), turned))
sortings = st.one_of(st.none(), st.tuples(st.sampled_from(["text", "whole", "number", "time", "flag"]), st.booleans()))


@settings(max_examples=300, deadline=None)
@given(frames, st.lists(operations, max_size=4), sortings)
def test_the_code_gives_the_same_rows_in_the_same_order(frame, asked, order):
    view = View(frame, asked, order)
    place = {"frame": frame, "pd": pd}
    exec(view.to_code(), place)  # noqa: S102 (running it is the point)
    assert view.numbers.tolist() == place["rows"].index.tolist()
    assert len(view) == len(view.numbers) == int(view.mask.sum())
    pd.testing.assert_frame_equal(view.rows(), place["rows"])


@settings(max_examples=200, deadline=None)
@given(frames, st.lists(operations, max_size=3))
def test_a_click_on_a_bar_keeps_the_rows_of_the_bar(frame, asked):
    view = View(frame, asked)
    for column in frame:
        kind, bars = view.histogram(column)
        assert bars["n_rows"].sum() <= len(frame) and (bars["n_kept"] <= bars["n_rows"]).all()
        others = View(frame, [operation for operation in asked if operation.get("column") != column])
        for first in range(len(bars)):
            for last in {first, len(bars) - 1}:
                operation = views.bars_operation(column, kind, bars, first, last)
                assert views.say_operation(operation) and len(others.add(operation)) == bars["n_kept"][first:last + 1].sum(), (column, kind, first, last, operation)


@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=False), st.just(-0.0)), max_size=60), st.booleans())
def test_sorting_is_pandas_stable_sorting(numbers, descending):
    values = pd.Series(numbers, dtype="float64")
    assert sort_rows(values, descending).tolist() == values.sort_values(ascending=not descending, kind="stable").index.tolist()


def test_an_answer_is_worked_out_once(monkeypatch):
    calls, work = [], views.answer
    monkeypatch.setattr(views, "answer", lambda values, operation: (calls.append(operation), work(values, operation))[1])
    view = View(pd.DataFrame({"text": ["a", "b"] * 50, "n": range(100)})).add({"column": "text", "contains": "a"})
    for low in range(5):
        more = view.add({"column": "n", "at_least": low})
        more.numbers, more.histogram("n"), more.histogram("text"), more.sort("n").page(0, 10), view.add({"column": "text", "contains": "a", "not": True}).mask
    assert len(calls) == 6


def test_old_answers_make_room(monkeypatch):
    monkeypatch.setattr(View, "kept_answers", 3)
    view = View(pd.DataFrame({"n": range(10)}))
    for low in range(10): assert len(view.add({"column": "n", "at_least": low})) == 10 - low
    assert len(view._known["answers"]) == 3


@pytest.mark.parametrize("wrong, message", [
    ({"column": "n"}, "no operation"), ({"column": "n", "above": 3}, "no operation"), ("n > 3", "no operation"), ({"at_least": 3}, "no operation"),
    ({"column": "n", "at_least": "three"}, "cannot bound the column 'n'"), ({"column": "text", "below": 3}, "cannot bound the column 'text'"),
    ({"column": "time", "below": "soon"}, "cannot bound the column 'time'"), ({"column": "text", "matches": "("}, "cannot be read"),
    ({"column": "text", "one_of": "a"}, "A list of values is wanted")])
def test_a_wrong_operation_is_one_line(wrong, message):
    frame = pd.DataFrame({"n": [1], "text": ["a"], "time": pd.to_datetime(["2025-01-01"])})
    with pytest.raises(ValueError, match=message) as caught: len(View(frame).add(wrong))
    assert "\n" not in str(caught.value)


def test_rows_by_key_and_an_index_of_its_own():
    frame = pd.DataFrame({"id": ["a", "b", "c"], "n": [1, 2, 3]}, index=[7, 7, 9])
    view = View(frame, key="id").add({"rows": ["c", "a", "zzz"]})
    assert view.numbers.tolist() == [0, 2] and view.page(0, 9)["id"].tolist() == ["a", "c"]
    assert operation_kind({"rows": []}) == "rows"


def test_empty_and_constant_columns_have_a_shape():
    for values in ([], [None, None], [3, 3, 3], [np.inf, 1.0], ["same"] * 30):
        kind, codes, bars = column_shape(pd.Series(values))
        assert len(codes) == len(values) and (not len(codes) or codes.max() <= len(bars))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.just(np.nan), st.just(np.inf), st.just(-np.inf), st.floats(-1e6, 1e6), st.integers(0, 30).map(lambda k: 0.1 * k), st.integers(0, 30).map(lambda k: np.nextafter(0.1 * k, 9)))),
       st.sampled_from([0.0, 0.1, -7.25, 1e15, 2.0**60]), st.sampled_from([0.1, 1.0, 0.3, 1e-9]), st.integers(1, 24))
def test_a_number_is_on_its_side_of_every_edge(numbers, low, width, n):
    numbers, edges = np.array(numbers, "float64"), low + width * np.arange(1, n)
    numbers = np.concatenate([numbers, edges, np.nextafter(edges, -np.inf), np.nextafter(edges, np.inf)])
    there = ~np.isnan(numbers)
    places = bars._places(numbers, low, width, edges, 0.0, True)
    assert places[there].tolist() == np.searchsorted(edges, numbers[there], "right").tolist() and (places[~there] == n).all()
    whole = np.unique(np.round(numbers[np.abs(numbers) < 2**53]))
    edges = np.floor(low) + max(1.0, np.ceil(width)) * np.arange(1, n)
    assert bars._places(whole, np.floor(low), max(1.0, np.ceil(width)), edges, 0.5, False).tolist() == np.searchsorted(edges, whole, "right").tolist()


WORDS = ["", "a", "b", "ab", "a\0", "\0", "mail", "ÄÄ", "日本", "sevens!", "eight888", "nine or more", "x" * 40]
columns_of_texts = st.lists(st.lists(st.one_of(st.none(), st.sampled_from(WORDS[:10])), max_size=30) | st.lists(st.one_of(st.none(), st.sampled_from(WORDS)), max_size=30), min_size=1, max_size=3).map(
    lambda pieces: pd.concat([pd.Series(piece, dtype="str") for piece in pieces], ignore_index=True))


@settings(max_examples=300, deadline=None)
@given(columns_of_texts, st.integers(0, 5))
def test_texts_are_counted_and_measured_as_pandas_does(texts, skipped):
    for values in (texts, texts.iloc[skipped:].reset_index(drop=True)):
        codes, distinct = bars._factorize(values)
        expected, names = pd.factorize(values)
        assert list(distinct) == list(names) and np.where(codes == len(names), -1, codes.astype("int64")).tolist() == expected.tolist()
        assert View(values.to_frame("text")).n_distinct("text") == values.nunique()
        np.testing.assert_array_equal(bars._lengths(values), values.str.len().to_numpy("float64", na_value=np.nan))


def test_a_text_that_no_sample_saw_is_counted():
    rare = np.array(["mail", "chat"])[np.arange(50_000) % 2]
    rare[[7, 777, 49_999]] = ["fax", "fax", ""]
    kind, found = View(pd.DataFrame({"channel": pd.Series(rare, dtype="str")})).histogram("channel")
    assert kind == "category" and dict(zip(found["value"], found["n_rows"])) == pd.Series(rare).value_counts().to_dict()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.one_of(st.none(), st.text("ab\0é", max_size=2), st.sampled_from(WORDS)), min_size=1, max_size=25), min_size=1, max_size=3), st.sampled_from(["", "1234567", "a prefix that all of them share "]),
       st.booleans(), st.booleans(), st.integers(0, 60), st.integers(1, 12))
def test_a_page_of_texts_is_that_of_all_in_order(pieces, prefix, descending, filtered, start, n):
    texts = pd.concat([pd.Series([None if text is None else prefix + text for text in piece], dtype="str") for piece in pieces], ignore_index=True)
    frame = pd.DataFrame({"text": texts, "n": np.arange(len(texts))})
    view = View(frame).sort("text", descending)
    if filtered: view = view.add({"column": "n", "at_least": 3})
    expected = frame[frame["n"] >= 3] if filtered else frame
    expected = expected.sort_values("text", ascending=not descending, kind="stable").index[start:start + n].tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(View, "ordered_whole", 0)
        patch.setattr(orders, "_FEW", 2)
        assert view.page(start, n).index.tolist() == expected
    assert view.numbers[start:start + n].tolist() == expected


def test_a_page_sorts_no_more_than_it_must(monkeypatch):
    sizes, work = [], orders.sort_rows
    monkeypatch.setattr(orders, "sort_rows", lambda values, descending: (sizes.append(len(values)), work(values, descending))[1])
    frame = pd.DataFrame({"text": pd.Series([f"ticket number {i * 7919 % 100_000:06}" for i in range(100_000)], dtype="str")})
    for start in (0, 50_000, 99_990): assert View(frame).sort("text").page(start, 10)["text"].tolist() == [f"ticket number {i:06}" for i in range(start, start + 10)]
    assert sizes and max(sizes) <= 1000


@given(st.lists(st.booleans(), max_size=200), st.integers(0, 210), st.integers(1, 30))
def test_a_page_without_order_is_cut_from_the_kept_rows(kept, start, n):
    frame = pd.DataFrame({"kept": kept, "n": range(len(kept))})
    view = View(frame).add({"column": "kept", "one_of": [True]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bars, "_BLOCK", 16)
        assert view.page(start, n).index.tolist() == np.flatnonzero(kept)[start:start + n].tolist()
    assert View(frame).page(start, n).index.tolist() == list(range(len(kept)))[start:start + n]


def test_the_first_page_does_not_wait_for_the_bars(monkeypatch):
    from llmops_workbench.widgets.rows import Rows
    monkeypatch.setattr(Rows, "counted_first", 10)
    frame = pd.DataFrame({"id": pd.Series([f"T-{i}" for i in range(100)], dtype="str"), "channel": pd.Series(["mail", "chat"] * 50, dtype="str"), "n": range(100)})
    at_once = Rows(frame, list(frame), lambda row: "").table.page

    async def look():
        rows = Rows(frame, list(frame), lambda row: "")
        first = rows.table.page
        rows.handle({"type": "page", "by": 1})
        while rows._counting: await asyncio.sleep(0)
        rows.handle({"type": "page", "by": -1})
        return first, rows.table.page
    first, last = asyncio.run(look())
    assert first["cells"] == at_once["cells"] and [column["caption"] for column in first["columns"]] == ["…"] * 3 and not any(column["bars"] for column in first["columns"])
    assert last == at_once


@settings(max_examples=300, deadline=None)
@given(frames, st.lists(operations, max_size=2), sortings, st.integers(0, 45), st.integers(1, 12))
def test_a_page_in_order_is_that_of_all_in_order(frame, asked, order, start, n):
    frame = frame.astype({"whole": "float64"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(View, "ordered_whole", 0)
        patch.setattr(orders, "_FEW", 2)
        assert View(frame, asked, order).page(start, n).index.tolist() == View(frame, asked, order).numbers[start:start + n].tolist()

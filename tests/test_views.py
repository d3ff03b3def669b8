"""What no page should show of views: any operations on any columns, as bits and as pandas, and a million rows counted by the work they cost."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmops_workbench import views
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
orders = st.one_of(st.none(), st.tuples(st.sampled_from(["text", "whole", "number", "time", "flag"]), st.booleans()))


@settings(max_examples=300, deadline=None)
@given(frames, st.lists(operations, max_size=4), orders)
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

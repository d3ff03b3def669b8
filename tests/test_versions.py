"""Versions and what changed between two: held against dictionaries and counters, whatever the frames."""

import itertools
from collections import Counter

import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llmops_workbench.datasets import load_snapshot, make_dataset, save_snapshot
from llmops_workbench.errors import MissingColumnError, ParameterValueError, SourceNotFoundError
from llmops_workbench.versions import diff_snapshots, list_versions

# What is easily taken for something else: words for missing, blanks, letter case, numbers as text, accents in two forms.
WORDS = ["", " ", "nan", "None", "<NA>", "missing", "a", "A", "a ", "1", "1.0", "é", "e\u0301", "\u200b", "<b>", "日本"]
CELLS = {"text": ("str", st.one_of(st.none(), st.sampled_from(WORDS), st.text(max_size=4))), "note": ("str", st.one_of(st.none(), st.sampled_from(WORDS))), "n": ("Int64", st.one_of(st.none(), st.integers(-3, 3))),
         "x": ("float64", st.one_of(st.none(), st.sampled_from([0.5, 1.0, 1e300, 0.1, 0.1 + 2**-55, -2.25]))), "yes": ("boolean", st.one_of(st.none(), st.booleans())),
         "at": ("datetime64[us]", st.one_of(st.none(), st.sampled_from([pd.Timestamp(at) for at in ("2024-01-01 08:00:00", "2024-01-01 08:00:01", "1999-12-31 23:59:59")])))}
numbers = itertools.count()
by_chance = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def column_of(name, cells):
    "A column of its type; one without a whole number in it is one without a number."
    dtype = "str" if name == "id" else CELLS[name][0]
    return pd.Series(cells, dtype="float64" if dtype == "Int64" and all(cell is None for cell in cells) else dtype)


def frame_of(rows, columns): return pd.DataFrame({name: column_of(name, [row[name] for row in rows]) for name in columns})
def rows_of(frame): return [{name: None if pd.isna(value) else value for name, value in row.items()} for row in frame.astype("object").to_dict("records")]
def held(row, names): return tuple(row[name] for name in names)


def diff_of(old, new, **options):
    "Both saved under a name of their own, compared."
    name = f"d{next(numbers)}"
    references = [save_snapshot(make_dataset(frame, name)) for frame in (old, new)]
    found = diff_snapshots(*references, **options)
    assert (found.summary["old"], found.summary["new"]) == tuple(references)
    return found, *(load_snapshot(reference).frame for reference in references)


def reconcile(found, old, new):
    "Every row of both is accounted for."
    s = found.summary
    assert (s["n_old"], s["n_new"], s["n_added"], s["n_removed"], s["n_cells"]) == (len(old), len(new), len(found.added), len(found.removed), len(found.frame))
    assert s["n_old"] == s["n_same"] + s["n_changed"] + s["n_removed"] and s["n_new"] == s["n_same"] + s["n_changed"] + s["n_added"]
    assert list(found.added) == list(new) and list(found.removed) == list(old)
    for part, whole in ((found.added, new), (found.removed, old)):
        assert part.index.tolist() == list(range(len(part))) and part.dtypes.tolist() == whole.dtypes.tolist()


@st.composite
def two_frames(draw, unique):
    "Two versions: rows that stay, change, go and come, in any order, some columns in one alone."
    columns = draw(st.lists(st.sampled_from(list(CELLS)), min_size=1, max_size=4, unique=True))
    ids = st.lists(st.sampled_from(["a", "b", "c", "A", "1", "01", "1.0", "é", "x y"]), max_size=7, unique=unique)
    row = st.fixed_dictionaries({name: CELLS[name][1] for name in columns})
    old = [{"id": name, **draw(row)} for name in draw(ids)]
    kept = [dict(row) for row in old if draw(st.integers(0, 3))]
    for each in kept:
        if not draw(st.integers(0, 2)): each.update(draw(row))
    new = [*kept, *({"id": name, **draw(row)} for name in draw(ids) if not unique or name not in {each["id"] for each in kept})]
    new = draw(st.permutations(new))
    gone = set(draw(st.lists(st.sampled_from(columns), max_size=1))) if len(columns) > 1 else set()
    return frame_of(old, ["id", *columns]), frame_of(new, ["id", *(name for name in draw(st.permutations(columns)) if name not in gone)])


# --- rows told apart by a key ---------------------------------------------------------------------------------------


@by_chance
@example(frames=(frame_of([{"id": "a", "text": None}], ["id", "text"]), frame_of([{"id": "a", "text": "nan"}], ["id", "text"])))
@example(frames=(frame_of([{"id": "a", "x": 0.1}], ["id", "x"]), frame_of([{"id": "a", "x": 0.1 + 2**-55}], ["id", "x"])))
@given(frames=two_frames(unique=True))
def test_keyed_rows_equal_dictionaries(frames):
    found, old, new = diff_of(*frames)
    reconcile(found, old, new)
    before, after = ({row["id"]: row for row in rows_of(frame)} for frame in (old, new))
    shared = [name for name in old if name in new]
    assert found.summary["key"] == "id"
    assert found.added["id"].tolist() == [name for name in new["id"] if name not in before] and found.removed["id"].tolist() == [name for name in old["id"] if name not in after]
    both = [name for name in before if name in after]
    expected = {(name, column) for name in both for column in shared if before[name][column] != after[name][column]}
    assert set(zip(found.frame["key"], found.frame["column"])) == expected and len(found.frame) == len(expected)
    assert found.summary["n_changed"] == len({name for name, _ in expected})
    for cell in found.frame.itertuples():
        for told, value in ((cell.before, before[cell.key][cell.column]), (cell.after, after[cell.key][cell.column])):
            assert told == ("missing" if value is None else str(value) if not isinstance(value, pd.Timestamp) else told)
    assert set(found.columns["column"]) >= set(old) ^ set(new)


@by_chance
@given(frames=two_frames(unique=True))
def test_the_way_back_is_the_way_there_turned_round(frames):
    there, old, new = diff_of(*frames)
    back, *_ = diff_of(new, old)
    pd.testing.assert_frame_equal(there.added, back.removed)
    pd.testing.assert_frame_equal(there.removed, back.added)
    turned = back.frame.rename(columns={"before": "after", "after": "before"})[list(there.frame)]
    assert sorted(there.frame.itertuples(index=False, name=None)) == sorted(turned.itertuples(index=False, name=None))
    assert there.summary["n_same"] == back.summary["n_same"] and len(there.columns) == len(back.columns)


def test_times_are_compared_and_not_how_they_are_printed():
    "Whether pandas prints the hour depends on the other rows."
    day, later, fraction = (pd.Timestamp(at) for at in ("2024-01-01", "2024-01-02 00:00:01", "2024-01-03 00:00:00.25"))
    old = pd.DataFrame({"id": list("abc"), "text": list("xxx"), "at": [day, pd.Timestamp("2024-01-02"), pd.Timestamp("2024-01-03")]})
    new = old.assign(text=["y", "x", "x"], at=[day, later, fraction])
    found, *_ = diff_of(old, new)
    assert found.frame.to_dict("records") == [{"key": "a", "column": "text", "before": "x", "after": "y"}, {"key": "b", "column": "at", "before": "2024-01-02", "after": "2024-01-02 00:00:01"},
                                              {"key": "c", "column": "at", "before": "2024-01-03", "after": "2024-01-03 00:00:00.250000"}]
    one, *_ = diff_of(old, old.assign(at=[day, later, pd.Timestamp("2024-01-03")]), key=None)
    assert (one.summary["n_same"], one.removed["id"].tolist(), one.added["id"].tolist()) == (2, ["b"], ["b"])
    # Times tell rows apart, too; those of nanoseconds are the same as those of microseconds.
    keyed, *_ = diff_of(old, old.assign(at=[day, later, pd.Timestamp("2024-01-03")]), key="at")
    assert (keyed.summary["n_same"], keyed.summary["n_added"]) == (2, 1)
    finer = old["at"].astype("datetime64[ns]").where(old["id"] != "c", pd.Timestamp("2024-01-03 00:00:00.000000001"))
    assert diff_of(old, old.assign(at=finer))[0].summary["n_changed"] == 1 and diff_of(old, old.assign(at=finer), key=None)[0].summary["n_same"] == 2


@pytest.mark.parametrize("dtype, last", [("Int64", None), ("float64", None), ("float64", 3.5), ("float64", float("inf"))])
def test_whole_numbers_are_the_same_in_a_column_of_another_type(dtype, last):
    old = pd.DataFrame({"id": [1, 2, 3], "n": [1, -7, 3]})
    new = old.assign(n=pd.Series([1, -7, last], dtype=dtype))
    found, *_ = diff_of(old, new)
    assert found.frame.to_dict("records") == [{"key": "3", "column": "n", "before": "3", "after": "missing" if last is None else str(last)}] and found.summary["n_changed"] == 1
    assert found.columns["column"].tolist() == ["n"]
    assert diff_of(old, new, key=None)[0].summary["n_same"] == 2
    # As a key as well: only the row that has lost its number is another.
    keyed, *_ = diff_of(old, new, key="n")
    assert (keyed.summary["n_same"], keyed.summary["n_added"], keyed.summary["n_removed"]) == (2, 1, 1)


def test_large_whole_numbers_are_told_from_the_floats_beside_them():
    large = [2**53, 2**53 + 1, 2**63 - 1, 2**63 - 512, -2**63]
    old, new = pd.DataFrame({"id": range(5), "n": large}), pd.DataFrame({"id": range(5), "n": [float(n) for n in large]})
    assert diff_of(old, new)[0].frame["key"].tolist() == ["1", "2", "3"] and diff_of(old, new, key=None)[0].summary["n_same"] == 2


@pytest.mark.parametrize("missing", [None, "missing"])
def test_a_row_without_a_key_has_changed_as_any_other(missing):
    old, new = (pd.DataFrame({"id": ["a", "b", missing], "text": texts}) for texts in (["x", "x", "x"], ["x", "x", "y"]))
    found, *_ = diff_of(old, new)
    assert (found.summary["n_same"], found.summary["n_changed"], found.summary["n_cells"]) == (2, 1, 1) and found.frame["key"].tolist() == ["missing"]


# --- rows told apart by all they hold -------------------------------------------------------------------------------


@by_chance
@given(frames=two_frames(unique=False))
def test_rows_without_a_key_equal_counters(frames):
    found, old, new = diff_of(*frames, key=None)
    reconcile(found, old, new)
    shared = [name for name in old if name in new]
    before, after = (Counter(held(row, shared) for row in rows_of(frame)) for frame in (old, new))
    assert Counter(held(row, shared) for row in rows_of(found.added)) == after - before and Counter(held(row, shared) for row in rows_of(found.removed)) == before - after
    assert found.summary["n_same"] == (before & after).total() and found.summary["n_changed"] == 0 and found.summary["key"] is None
    # What is told are rows of that version, with the columns that the other has not.
    for part, whole in ((found.added, new), (found.removed, old)):
        assert not Counter(held(row, list(whole)) for row in rows_of(part)) - Counter(held(row, list(whole)) for row in rows_of(whole))


@pytest.mark.parametrize("old, new", [(["a", "a", "b"], ["a", "b"]), (["a", "b"], ["a", "b", "b"])])
def test_a_key_that_comes_twice_is_none(old, new):
    found, *_ = diff_of(*(frame_of([{"id": name, "text": "x"} for name in names], ["id", "text"]) for names in (old, new)))
    assert found.summary["key"] is None and (found.summary["n_removed"], found.summary["n_added"]) == (max(len(old) - len(new), 0), max(len(new) - len(old), 0))
    assert "no key" in found.words()[1]


@by_chance
@given(frames=two_frames(unique=False))
def test_a_version_does_not_differ_from_itself(frames):
    for key in ("id", None):
        found, *_ = diff_of(frames[0], frames[0].copy(), key=key)
        assert found.summary["n_same"] == len(frames[0]) and not len(found.frame) and not len(found.added) and not len(found.removed) and not len(found.columns)


def test_the_order_of_rows_is_no_change_of_a_row():
    frame = pd.DataFrame({"id": [f"r{i}" for i in range(50)], "text": [f"t{i % 7}" for i in range(50)]})
    for key in ("id", None):
        found, *_ = diff_of(frame, frame.sample(frac=1, random_state=0), key=key)
        assert found.summary["n_same"] == 50


# --- columns, words, errors -----------------------------------------------------------------------------------------


def test_columns_that_came_went_and_changed_are_told():
    old, new = pd.DataFrame({"id": ["a"], "gone": ["x"], "n": [1]}), pd.DataFrame({"id": ["a"], "n": ["one"], "<b>new</b>": [True]})
    found, *_ = diff_of(old, new)
    assert found.columns.to_dict("records") == [{"column": "gone", "before": "str", "after": ""}, {"column": "n", "before": "int64", "after": "str"}, {"column": "<b>new</b>", "before": "", "after": "bool"}]
    assert found.frame.to_dict("records") == [{"key": "a", "column": "n", "before": "1", "after": "one"}]
    assert "gone (str to not there)" in found.words()[1] and "<b>new</b>" not in found.static_html() and "&lt;b&gt;new&lt;/b&gt;" in found.static_html()


def test_counts_are_said_in_words():
    old, new = (pd.DataFrame({"id": names, "text": texts}) for names, texts in ((["a", "b", "c", "d"], ["1", "2", "3", "4"]), (["a", "b", "e"], ["1", "two", "5"])))
    found, *_ = diff_of(old, new)
    assert found.words()[0].endswith("1 rows are the same, 1 changed, 1 came and 2 went.") and list(found.tables()) == ["Changed", "Added", "Removed"]


def test_another_column_may_be_the_key():
    old, new = pd.DataFrame({"id": ["a", "b"], "mail": ["x", "y"], "text": ["1", "2"]}), pd.DataFrame({"id": ["c", "d"], "mail": ["y", "x"], "text": ["2", "one"]})
    found, *_ = diff_of(old, new, key="mail")
    assert found.summary["key"] == "mail" and set(zip(found.frame["key"], found.frame["column"])) == {("x", "id"), ("y", "id"), ("x", "text")} and found.summary["n_changed"] == 2


def test_what_cannot_be_compared_is_explained_in_a_line():
    for error, message, call in ((MissingColumnError, "Did you mean 'mail'?", lambda: diff_of(pd.DataFrame({"id": ["a"], "mail": ["x"]}), pd.DataFrame({"id": ["a"], "mail": ["y"]}), key="mial")),
                                 (MissingColumnError, "no column 'mail'", lambda: diff_of(pd.DataFrame({"id": ["a"], "mail": ["x"]}), pd.DataFrame({"id": ["a"]}), key="mail")),
                                 (ParameterValueError, "no column in common", lambda: diff_of(pd.DataFrame({"a": ["x"]}), pd.DataFrame({"b": ["x"]}))),
                                 (SourceNotFoundError, "There is no one snapshot", lambda: diff_snapshots("nowhere@12345678", "nowhere"))):
        with pytest.raises(error) as caught: call()
        assert message in str(caught.value) and "\n" not in str(caught.value)


# --- the list -------------------------------------------------------------------------------------------------------


def test_versions_stand_in_the_order_in_which_they_were_saved():
    references, parent = [], None
    for at in range(4):
        recipe = {"function": "prepare", "steps": ["drop_empty", {"redact": {"mode": "label"}}, {"sample": {"n": 3}, "off": True}][:at]} if at else None
        parent = save_snapshot(make_dataset(pd.DataFrame({"id": [str(i) for i in range(at + 1)]}), "helpdesk.train"), recipe=recipe, parent=parent)
        references.append(parent)
    save_snapshot(make_dataset(pd.DataFrame({"id": ["other"]}), "helpdesk"), recipe={"function": "view", "operations": [{"rows": ["a"]}]})
    found = list_versions("helpdesk.train")
    assert found["reference"].tolist() == references and found["rows"].tolist() == [1, 2, 3, 4] and found["parent"].tolist() == ["", *references[:-1]]
    assert found["recipe"].tolist() == ["", "prepare: drop_empty", "prepare: drop_empty, redact", "prepare: drop_empty, redact, sample"]
    assert found["saved"].is_monotonic_increasing and list_versions("helpdesk")["recipe"].tolist() == ["view: rows"]


def test_a_name_that_is_none_is_answered_with_those_there_are():
    with pytest.raises(SourceNotFoundError, match="none yet"): list_versions("helpdesk.train")
    save_snapshot(make_dataset(pd.DataFrame({"id": ["a"]}), "helpdesk.train"))
    for name in ("helpdesk", "helpdesk.trian", "helpdesk.*", ""):
        with pytest.raises(SourceNotFoundError, match="helpdesk.train"): list_versions(name)

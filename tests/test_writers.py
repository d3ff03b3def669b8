"""Files that are written: exact ones come back equal, and nothing runs in a spreadsheet."""

import math
import os

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from llmops_workbench.datasets import digest_frame, load_snapshot, make_dataset, read_dataset, save_snapshot
from llmops_workbench.errors import ParameterValueError, SourceFormatError, UserError, WorkspaceError
from llmops_workbench.writers import FORMULA_STARTS, WRITTEN, guard_formulas, write_dataset

# Whatever a cell may hold: separators, quotes, line ends, what looks like something else, and any other character there is.
AWKWARD = st.sampled_from(["", " ", '"', "''", ",", ";", "\t", "|", "\n", "\r", "\r\n", "\x00", "\u2028", "\ufeff", "=1+1", "-1", "@x", "007", "NA", "null", "1e400", "2026-01-05", "true", "\\", "{}", "[]"])
TEXT = st.lists(AWKWARD | st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=4).map("".join)
NAME = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters=",;|"), min_size=1, max_size=6).filter(str.strip)
NUMBER = st.floats(allow_nan=True, allow_infinity=False)
TIME = st.datetimes(min_value=pd.Timestamp("0001-01-01").to_pydatetime())


@st.composite
def frames(draw):
    n = draw(st.integers(1, 6))
    column = lambda values: draw(st.lists(values, min_size=n, max_size=n))
    names = draw(st.lists(NAME, min_size=6, max_size=6, unique_by=str.strip))
    return pd.DataFrame(dict(zip(names, [
        pd.Series(column(TEXT), dtype="str"), pd.Series(column(st.none() | TEXT), dtype="str"), pd.Series(column(st.integers(-2**63, 2**63 - 1)), dtype="int64"),
        pd.Series(column(NUMBER), dtype="float64"), pd.Series(column(st.booleans()), dtype="bool"), pd.Series(column(TIME), dtype="datetime64[us]")])))


def texts_of(frame):
    return tuple(n for n in frame if frame[n].dtype == "str")


def expected(frame, ending):
    "CSV and TSV have one empty cell for a missing text and an empty one."
    return frame if ending in (".jsonl", ".parquet") else frame.assign(**{n: frame[n].fillna("") for n in texts_of(frame)})


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(frame=frames())
def test_exact_files_come_back_equal(ending, frame, tmp_path):
    dataset = make_dataset(frame)
    # Without a single number a column has no type that text could tell.
    whole = not any(dataset.frame[n].isna().all() for n in dataset.frame if dataset.frame[n].dtype == "float64") or ending == ".parquet"
    if not whole:
        with pytest.raises(ParameterValueError, match="would not come back equal"):
            write_dataset(dataset, tmp_path / f"a{ending}")
        return
    assert write_dataset(dataset, tmp_path / f"a{ending}") == 0
    again = read_dataset(tmp_path / f"a{ending}", keep_text=texts_of(dataset.frame))
    assert again.digest == digest_frame(expected(dataset.frame, ending)) and len(again.rejected) == 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(texts=st.lists(TEXT, min_size=1, max_size=5), numbers=st.lists(NUMBER.filter(lambda v: v == v), min_size=5, max_size=5), whole=st.lists(st.integers(-2**63, 2**63 - 1), min_size=5, max_size=5))
def test_excel_comes_back_equal_or_is_refused(texts, numbers, whole, tmp_path):
    n = len(texts)
    dataset = make_dataset(pd.DataFrame({"id": range(n), "text": texts, "x": numbers[:n], "n": whole[:n]}))
    try:
        write_dataset(dataset, tmp_path / "a.xlsx")
    except ParameterValueError:
        assert any(ord(c) < 32 or c in "\ufffe\uffff" for t in texts for c in t) and not (tmp_path / "a.xlsx").exists()
    else:
        again = read_dataset(tmp_path / "a.xlsx", keep_text=("text",))
        assert again.digest == dataset.digest
        (tmp_path / "a.xlsx").unlink()


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".xlsx"])
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(texts=st.lists(st.text(st.sampled_from("=+-@\t\rab'\" ,\n"), max_size=5), min_size=1, max_size=5))
def test_no_text_of_a_spreadsheet_begins_a_formula(ending, texts, tmp_path):
    frame = pd.DataFrame({"id": range(len(texts)), "text": pd.Series(texts, dtype="str")})
    assert write_dataset(frame, tmp_path / f"a{ending}", mode="spreadsheet") == sum(t.startswith(FORMULA_STARTS) for t in texts)
    again = read_dataset(tmp_path / f"a{ending}", text_column="text")
    assert again.frame["text"].tolist() == ["'" + t if t.startswith(FORMULA_STARTS) else t for t in texts]


def test_guarding_changes_text_and_nothing_else():
    frame = make_dataset(pd.DataFrame({"n": [-1, 2], "text": ["-1", None], "=x": ["a", "@b"], "t": pd.to_datetime(["2026-01-05", None])})).frame
    before = frame.copy()
    guarded, changed = guard_formulas(frame)
    assert changed == 3 and list(guarded) == ["n", "text", "'=x", "t"] and guarded["n"].tolist() == [-1, 2] and guarded["text"][0] == "'-1" and pd.isna(guarded["text"][1])
    pd.testing.assert_frame_equal(frame, before)


@pytest.mark.parametrize("ending, frame, words", [
    (".csv", {"x": [math.inf, 1.0]}, "column 'x' does not"), (".jsonl", {"x": [math.inf, 1.0]}, "row 1, not JSON"), (".xlsx", {"x": [math.inf, 1.0]}, "column 'x' does not"),
    (".csv", {"x": pd.array([True, None], dtype="boolean")}, "column 'x' does not"), (".csv", {"x": pd.to_datetime([1, 2])}, "column 'x' does not"),
    (".csv", {"x": [np.nan, np.nan]}, "column 'x' does not"), (".xlsx", {"x": pd.to_datetime(["1850-01-01", "2026-01-05"])}, "column 'x' does not"),
    (".xlsx", {"x": ["a\x00", "b"]}, "control characters"), (".xlsx", {"x": ["a" * 32_768, "b"]}, "32,768 letters, where a cell holds 32,767"), (".xlsx", {"x": ["", "b"]}, "1 rows of 2 do"),
    (".csv", {"a": [1, 2], "b;c;d": ["x;y;z", "x;y;z"]}, "would not come back equal"), (".jsonl", {}, "has no column")])
def test_what_a_format_cannot_hold_is_refused_and_nothing_is_left(tmp_path, ending, frame, words):
    (tmp_path / f"a{ending}").write_text("what was there before")
    with pytest.raises(ParameterValueError) as caught:
        write_dataset(pd.DataFrame(frame), tmp_path / f"a{ending}")
    assert words in str(caught.value) and "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value) and isinstance(caught.value, UserError)
    assert [p.name for p in tmp_path.iterdir()] == [f"a{ending}"] and (tmp_path / f"a{ending}").read_text() == "what was there before"
    if frame:
        write_dataset(pd.DataFrame(frame), tmp_path / "a.parquet")
        assert read_dataset(tmp_path / "a.parquet").digest == make_dataset(pd.DataFrame(frame)).digest


@pytest.mark.parametrize("path, mode, words", [
    ("a.xls", "exact", "Files of .csv, .tsv, .jsonl, .parquet, .xlsx are written"), ("a", "exact", "Files of .csv"), ("a.csv.gz", "exact", "ends in '.gz'"),
    ("a.csv", "spreadsheets", "Did you mean 'spreadsheet'?"), ("a.jsonl", "spreadsheet", "A spreadsheet opens"), ("a.parquet", "spreadsheet", "A spreadsheet opens")])
def test_bad_parameters_are_explained_in_a_line(tmp_path, path, mode, words):
    with pytest.raises(ParameterValueError) as caught:
        write_dataset(pd.DataFrame({"x": [1]}), tmp_path / path, mode)
    assert words in str(caught.value) and "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_rows_that_no_file_can_hold_are_not_left_out_in_silence(tmp_path):
    with pytest.raises(SourceFormatError, match="Row 2 of the frame cannot be written: 'x' has half of a surrogate pair"):
        write_dataset(pd.DataFrame({"x": pd.Series(["a", "\ud800"], dtype="object")}), tmp_path / "a.csv")
    assert not list(tmp_path.iterdir())


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(WorkspaceError, match="the disk is full"):
        write_dataset(pd.DataFrame({"x": [1]}), tmp_path / "deep" / "a.csv")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_the_sample_goes_out_and_comes_back(tmp_path):
    dataset = read_dataset("helpdesk")
    few = make_dataset(dataset.frame.head(300), "few")
    for ending in WRITTEN:
        write_dataset(few, tmp_path / f"few{ending}")
        again = read_dataset(tmp_path / f"few{ending}", keep_text=texts_of(few.frame))
        assert again.digest == digest_frame(expected(few.frame, ending)), ending
    assert load_snapshot(save_snapshot(few)).digest == few.digest


def test_the_name_is_public():
    import llmops_workbench
    assert llmops_workbench.write_dataset is write_dataset

"""Frames on disk and folders of Parquet files, held against plain pandas and against a single file."""

import datetime
import pickle
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmops_workbench import shards
from llmops_workbench.datasets import digest_frame, make_dataset, read_dataset
from llmops_workbench.errors import SourceFormatError
from llmops_workbench.mapped import open_frame, pack, place_of, read_about, unpack, utf8_column, write_frames
from llmops_workbench.settings import load_settings

# --- frames ------------------------------------------------------------------------------------------------------------

VALUES = {
    "text": st.text(max_size=12), "whole": st.integers(-2**63, 2**63 - 1), "float": st.floats(), "truth": st.booleans(),
    "time": st.datetimes(datetime.datetime(1, 1, 1), datetime.datetime(9999, 12, 31)),
}
WITHOUT_GAPS = {"text": "str", "whole": "int64", "float": "float64", "truth": "bool", "time": "datetime64[us]"}
WITH_GAPS = {**WITHOUT_GAPS, "whole": "Int64", "truth": "boolean"}


@st.composite
def piece_columns(draw, kind, n_rows):
    "Values of one column of one piece, and the type they have there."
    gaps = draw(st.sampled_from(["none", "some", "all", "all, of no kind"]))
    if gaps.startswith("all"):
        return [None] * n_rows, "str" if gaps.endswith("kind") else WITH_GAPS[kind]
    one = VALUES[kind] if gaps == "none" else st.none() | VALUES[kind]
    return draw(st.lists(one, min_size=n_rows, max_size=n_rows)), (WITHOUT_GAPS if gaps == "none" else WITH_GAPS)[kind]


@st.composite
def tables(draw):
    "Pieces of one table, and the table as it is in memory."
    kinds = draw(st.lists(st.sampled_from(list(VALUES)), min_size=1, max_size=5))
    sizes = draw(st.lists(st.integers(0, 6), min_size=1, max_size=5))
    names = [f"{kind} {at} é" for at, kind in enumerate(kinds)]
    parts = {name: [draw(piece_columns(kind, n)) for n in sizes] for name, kind in zip(names, kinds)}
    pieces = [pd.DataFrame({name: pd.Series(parts[name][at][0], dtype=parts[name][at][1]) for name in names}) for at in range(len(sizes))]

    def whole(name, kind):
        seen = {dtype for _, dtype in parts[name]}
        dtype = "str" if seen == {"str"} else WITHOUT_GAPS[kind] if seen == {WITHOUT_GAPS[kind]} else WITH_GAPS[kind]
        return pd.Series([value for values, _ in parts[name] for value in values], dtype=dtype)
    return pieces, pd.DataFrame({name: whole(name, kind) for name, kind in zip(names, kinds)})


@settings(max_examples=200, deadline=None)
@given(table=tables())
def test_what_comes_back_is_what_the_pieces_hold(table):
    pieces, expected = table
    with TemporaryDirectory() as folder:
        frame = open_frame(write_frames(iter(pieces), Path(folder) / "frame"))
        pd.testing.assert_frame_equal(frame, expected)
        assert digest_frame(frame) == digest_frame(expected)
        assert [p.name for p in Path(folder).iterdir()] == ["frame"]
        about = read_about(Path(folder) / "frame")
        assert (about["columns"], about["rows"]) == (list(expected), len(expected))


@settings(max_examples=100, deadline=None)
@given(table=tables(), data=st.data())
def test_a_part_of_a_frame_is_the_same_when_sent(table, data):
    pieces, expected = table
    with TemporaryDirectory() as folder:
        frame = open_frame(write_frames(iter(pieces), Path(folder) / "frame"))
        n = len(frame)
        slices = st.slices(n).filter(lambda s: s.step != 0) if n else st.just(slice(0, 0))
        rows = data.draw(st.one_of(slices, st.lists(st.integers(0, max(n - 1, 0)), max_size=8 if n else 0)))
        for one in (frame, expected):
            part = one.iloc[rows]
            again = unpack(pickle.loads(pickle.dumps(pack(part))))
            pd.testing.assert_frame_equal(again, expected.iloc[rows])
            assert digest_frame(again) == digest_frame(expected.iloc[rows])


@pytest.mark.parametrize(("first", "then", "dtype", "values"), [
    (pd.Series([1]), pd.Series([0.5]), "float64", [1, 0.5]),
    (pd.Series([1, None], dtype="Int64"), pd.Series([0.5]), "float64", [1, None, 0.5]),
    (pd.Series([True]), pd.Series([None, False], dtype="boolean"), "boolean", [True, None, False]),
    (pd.Series(["2026-01-02"], dtype="datetime64[us]"), pd.Series(["2026-01-02 00:00:00.000000001"], dtype="datetime64[ns]"), "datetime64[ns]", None)])
def test_kinds_that_go_together(tmp_path, first, then, dtype, values):
    for at, pieces in enumerate([[first, then], [then, first], [first, pd.Series([None], dtype="str"), then]]):
        found = open_frame(write_frames([pd.DataFrame({"a": p}) for p in pieces], tmp_path / str(at)))["a"]
        expected = pd.concat([pd.Series([None] * len(p), dtype=dtype) if p.dtype == "str" else p.astype(dtype) for p in pieces], ignore_index=True)
        pd.testing.assert_series_equal(found, expected, check_names=False)
        if values and not at:
            assert [None if pd.isna(v) else v for v in found] == values


def test_texts_travel_as_a_place(tmp_path):
    "Another process sees the same rows, and what is sent does not grow with the texts."
    small, large = (open_frame(write_frames([pd.DataFrame({"text": [f"é {i} " * n for i in range(50)], "n": range(50)})], tmp_path / str(n))) for n in (1, 2000))
    sent = [pickle.dumps(pack(frame.iloc[10:40])) for frame in (small, large)]
    assert abs(len(sent[0]) - len(sent[1])) < 30 and len(sent[1]) < 5000
    (tmp_path / "sent").write_bytes(sent[1])
    script = "import pickle, sys\nfrom llmops_workbench.datasets import digest_frame\nfrom llmops_workbench.mapped import unpack\n" \
             "print(digest_frame(unpack(pickle.load(open(sys.argv[1], 'rb')))))"
    told = subprocess.run([sys.executable, "-c", script, str(tmp_path / "sent")], capture_output=True, text=True, check=True).stdout
    assert told.strip() == digest_frame(large.iloc[10:40])


def test_a_folder_is_replaced_under_an_open_frame(tmp_path):
    first, second = (pd.DataFrame({"text": [f"{word} {i}" for i in range(3000)], "n": range(3000)}) for word in ("old", "newer é"))
    old = open_frame(write_frames([first], tmp_path / "frame"))
    new = open_frame(write_frames([second], tmp_path / "frame"))
    pd.testing.assert_frame_equal(old, first)
    pd.testing.assert_frame_equal(new, second)
    for frame, expected in ((old, first), (new, second)):
        pd.testing.assert_frame_equal(unpack(pickle.loads(pickle.dumps(pack(frame)))), expected)
    assert place_of(utf8_column(new["text"])[0]) and not place_of(utf8_column(old["text"])[0])


@pytest.mark.parametrize("before", [True, False])
def test_an_interrupted_write_leaves_what_was_there(tmp_path, before):
    def breaks():
        yield pd.DataFrame({"text": ["a", "b"], "n": [1, 2]})
        raise KeyboardInterrupt
    first = pd.DataFrame({"text": ["old", None], "n": [1, 2]}).astype({"text": "str"})
    if before:
        write_frames([first], tmp_path / "frame")
    with pytest.raises(KeyboardInterrupt):
        write_frames(breaks(), tmp_path / "frame")
    assert [p.name for p in tmp_path.iterdir()] == (["frame"] if before else [])
    if before:
        pd.testing.assert_frame_equal(open_frame(tmp_path / "frame"), first)


# --- folders of Parquet files ------------------------------------------------------------------------------------------

SCHEMA = pa.schema([("text", pa.string()), ("n", pa.int64()), ("x", pa.float64()), ("flag", pa.bool_()), ("when", pa.timestamp("us")),
                    ("tags", pa.list_(pa.string())), ("who", pa.struct([("name", pa.string())]))])
NARROW = {"n": pa.int32(), "x": pa.float32(), "text": pa.large_string()}


def rows_of(text=st.none() | st.text(max_size=8)):
    small = st.integers(-2**31, 2**31 - 1)
    return st.fixed_dictionaries({
        "text": text, "n": small, "x": st.none() | st.floats(width=32), "flag": st.none() | st.booleans(), "when": st.none() | VALUES["time"],
        "tags": st.none() | st.lists(st.text(max_size=3), max_size=2), "who": st.none() | st.fixed_dictionaries({"name": st.text(max_size=3)})})


@st.composite
def folders(draw):
    "Rows, and the same rows in files: some columns narrower, some left out where they are empty."
    parts = draw(st.lists(st.lists(rows_of(), max_size=6), min_size=1, max_size=4))
    files = []
    for rows in parts:
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        for name in SCHEMA.names[1:]:
            if table[name].null_count == len(rows) and draw(st.booleans()):
                table = table.drop_columns([name])
        narrow = draw(st.sets(st.sampled_from([n for n in NARROW if n in table.column_names])))
        files.append(table.cast(pa.schema([(f.name, NARROW[f.name] if f.name in narrow else f.type) for f in table.schema])))
    order = list(dict.fromkeys(name for table in files for name in table.column_names))
    return files, pa.Table.from_pylist([row for rows in parts for row in rows], schema=SCHEMA).select(order)


@settings(max_examples=80, deadline=None)
@given(case=folders(), piece=st.integers(1, 5), required=st.booleans())
def test_a_folder_is_the_same_table_as_one_file(case, piece, required):
    files, whole = case
    with TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_PIECE_ROWS", piece)
        folder = Path(place) / "many"
        for at, table in enumerate(files):
            (folder / f"part {at}").mkdir(parents=True)
            pq.write_table(table, folder / f"part {at}" / "rows.parquet", row_group_size=3)
        pq.write_table(whole, Path(place) / "one.parquet")
        column = "text" if required else None
        try:
            one = read_dataset(Path(place) / "one.parquet", text_column=column)
        except SourceFormatError as error:
            assert "least one row is needed" in str(error)
            with pytest.raises(SourceFormatError, match="least one row is needed"):
                read_dataset(folder, text_column=column)
            return
        many = read_dataset(folder, text_column=column)
        assert many.digest == one.digest == digest_frame(many.frame)
        assert {n: str(d) for n, d in many.frame.dtypes.items()} == {n: str(d) for n, d in one.frame.dtypes.items()}
        pd.testing.assert_frame_equal(many.rejected, one.rejected)
        assert sorted(many.notes) == sorted(one.notes)
        assert len(many) + len(many.rejected) == len(whole)
        again = read_dataset(folder, text_column=column)
        assert again.digest == one.digest
        pd.testing.assert_frame_equal(again.rejected, one.rejected)


@pytest.fixture
def folder(tmp_path):
    "Three files of ten rows."
    place = tmp_path / "tickets"
    place.mkdir()
    for at in range(3):
        pd.DataFrame({"text": [f"ticket {at} {i}" if i % 4 else None for i in range(10)], "n": range(10)}).to_parquet(place / f"{at}.parquet")
    return place


@pytest.fixture
def read(monkeypatch):
    "Rows that were read from files."
    rows, plain = [], shards.from_arrow

    def counting(table):
        rows.append(table.num_rows)
        return plain(table)
    monkeypatch.setattr(shards, "from_arrow", counting)
    return rows


def test_rejected_rows_are_numbered_through_all_files(folder):
    dataset = read_dataset(folder, text_column="text")
    assert dataset.rejected["row"].tolist() == [at * 10 + i + 1 for at in range(3) for i in (0, 4, 8)]
    assert set(dataset.rejected["column"]) == {"text"} and len(dataset) == 21


def test_a_file_is_read_again_only_when_it_changes(folder, read):
    first = read_dataset(folder, text_column="text")
    assert sum(read) == 30
    assert read_dataset(folder, text_column="text").digest == first.digest and sum(read) == 30
    read_dataset(folder)
    assert sum(read) == 60  # without rejecting rows it is another table
    assert read_dataset(folder, text_column="text").digest == first.digest and sum(read) == 60
    pd.DataFrame({"text": ["another"], "n": [5]}).to_parquet(folder / "1.parquet")
    second = read_dataset(folder, text_column="text")
    assert (sum(read), len(second), second.frame["text"].tolist()[7]) == (81, 15, "another")
    assert (len(first), first.frame["text"].tolist()[7]) == (21, "ticket 1 1") and digest_frame(first.frame) == first.digest  # what is open stays
    (folder / "1.parquet").unlink()
    assert len(read_dataset(folder, text_column="text")) == 14


def test_an_interrupted_reading_is_begun_again(folder, read, monkeypatch):
    read_dataset(folder, text_column="text")
    pd.DataFrame({"text": ["another"], "n": [5]}).to_parquet(folder / "2.parquet")
    counting = shards.from_arrow

    def breaks(table):
        if sum(read) >= 40:
            raise KeyboardInterrupt
        return counting(table)
    monkeypatch.setattr(shards, "from_arrow", breaks)
    with pytest.raises(KeyboardInterrupt):
        read_dataset(folder, text_column="text")
    monkeypatch.setattr(shards, "from_arrow", counting)
    assert read_dataset(folder, text_column="text").frame["text"].tolist()[-1] == "another"
    cache = load_settings().workspace / "cache" / "shards"
    assert not [p for p in cache.iterdir() if p.name.startswith(".")]


def test_a_damaged_page_names_its_file(folder):
    path = folder / "1.parquet"
    pd.DataFrame({"text": [f"ticket 1 {i}" for i in range(10)], "n": range(10)}).to_parquet(path, compression=None, write_page_checksum=True, use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[data.index(b"ticket 1 5")] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(SourceFormatError, match=r"1\.parquet"):
        read_dataset(folder, text_column="text")


def test_columns_that_do_not_go_together_are_refused(folder):
    pd.DataFrame({"text": [1], "n": [5]}).to_parquet(folder / "1.parquet")
    with pytest.raises(SourceFormatError, match="text"):
        read_dataset(folder, text_column="text")


def test_a_folder_and_its_frame_in_memory_are_one_dataset(folder):
    rows = pd.concat([pd.read_parquet(folder / f"{at}.parquet") for at in range(3)], ignore_index=True)
    memory = read_dataset(rows, text_column="text")
    disk = read_dataset(folder, text_column="text")
    assert memory.digest == disk.digest and memory.reference.startswith("frame@")
    pd.testing.assert_frame_equal(memory.frame, disk.frame)
    assert make_dataset(disk.frame, "tickets").digest == disk.digest
    assert np.array_equal(memory.rejected, disk.rejected)


def test_whoever_has_a_frame_open_keeps_it_when_the_folder_is_written_anew(tmp_path):
    "In this process and in others: a file's path never means other bytes than before."
    first = open_frame(write_frames([pd.DataFrame({"text": pd.Series(["a b c d"], dtype="str")})], tmp_path / "frame"))
    sent = pickle.dumps(pack(first))
    second = open_frame(write_frames([pd.DataFrame({"text": pd.Series(["xxx.yyy"], dtype="str")})], tmp_path / "frame"))
    assert (first["text"].tolist(), second["text"].tolist()) == (["a b c d"], ["xxx.yyy"])
    assert place_of(utf8_column(first["text"])[0]) != place_of(utf8_column(second["text"])[0])
    with pytest.raises(FileNotFoundError): unpack(pickle.loads(sent))

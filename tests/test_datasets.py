"""Reading, digests, snapshots and splits: what a reader of the page would not want to see."""

import csv
import errno
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
from datetime import datetime

import numpy as np
import pandas as pd
import pytest

from llmops_workbench import readers, settings as settings_module
from llmops_workbench.datasets import (
    digest_frame, list_snapshots, load_snapshot, make_dataset, read_dataset, save_snapshot, split_rows)
from llmops_workbench.errors import (
    MissingColumnError, ParameterValueError, SourceFormatError, SourceNotFoundError, UserError, WorkspaceError)


def write(path, content, encoding="utf-8"):
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


@pytest.mark.parametrize("dtype", ["Int64", "UInt64", "Int8", "int64", "uint64", "Float64", "boolean", "category", "datetime64[ns]", "str"])
@pytest.mark.parametrize("n", [0, 3])
def test_columns_without_a_value_are_columns(dtype, n, workspace):
    if n and dtype in ("int64", "uint64"): pytest.skip("has no missing values")
    made = make_dataset(pd.DataFrame({"id": [str(i) for i in range(n)], "n": pd.Series([None] * n, dtype=dtype)}))
    assert len(made) == n and made.frame["n"].isna().all() and not len(made.rejected)
    pd.testing.assert_frame_equal(load_snapshot(save_snapshot(made)).frame, made.frame)


# --- round trips ---------------------------------------------------------------------------------------------------


def write_excel(path, rows):
    "A workbook whose cells are text even where they begin with '='; returns the rows its format can hold."
    import openpyxl

    # XML has no place for control characters, and a carriage return in XML is read as a line feed.
    kept = [(number, text) for number, text in rows if not re.search("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", text)]
    book = openpyxl.Workbook()
    book.active.append(["id", "text"])
    for line, (number, text) in enumerate(kept, 2):
        book.active.cell(row=line, column=1).value = number
        cell = book.active.cell(row=line, column=2)
        cell.value, cell.data_type = text, "s"
    book.save(path)
    return kept


def store_texts(kind, texts, folder):
    "The texts in one format: what to read, and what should come back."
    frame = pd.DataFrame({"id": range(len(texts)), "text": texts})
    if kind in ("csv", "tsv", "csv_utf16", "csv_bom"):
        out = io.StringIO(newline="")
        writer = csv.writer(out, delimiter="\t" if kind == "tsv" else ",")
        writer.writerows([["id", "text"], *enumerate(texts)])
        encoding = {"csv_utf16": "utf-16", "csv_bom": "utf-8-sig"}.get(kind, "utf-8")
        return write(folder / f"t.{kind[:3]}", out.getvalue(), encoding), texts
    if kind in ("jsonl", "jsonl_ascii"):
        lines = [json.dumps({"id": i, "text": t}, ensure_ascii=kind == "jsonl_ascii") for i, t in enumerate(texts)]
        return write(folder / "t.jsonl", "\n".join(lines)), texts
    if kind == "json":
        return write(folder / "t.json", json.dumps([{"id": i, "text": t} for i, t in enumerate(texts)])), texts
    if kind == "parquet":
        frame.to_parquet(folder / "t.parquet")
        return folder / "t.parquet", texts
    if kind == "xlsx":
        return folder / "t.xlsx", [t for _, t in write_excel(folder / "t.xlsx", enumerate(texts))]
    if kind == "folder":
        (folder / "t").mkdir()
        for i, text in enumerate(texts):
            write(folder / "t" / f"{i:04}.txt", text)
        # In a file of its own a byte order mark is the file's, not the text's.
        return folder / "t", [t.removeprefix("\ufeff") for t in texts]
    if kind == "arrow":
        import pyarrow as pa
        return pa.table({"text": texts}), texts
    if kind == "hugging_face":
        import datasets
        return datasets.Dataset.from_dict({"id": list(range(len(texts))), "text": texts}), texts
    return frame.astype({"text": "object"}), texts


FORMATS = ["csv", "tsv", "csv_utf16", "csv_bom", "jsonl", "jsonl_ascii", "json", "parquet", "xlsx", "folder", "frame", "arrow", "hugging_face"]


@pytest.mark.parametrize("kind", FORMATS)
def test_naughty_strings_come_back(kind, shared_data, tmp_path):
    texts = json.loads((shared_data / "naughty_strings" / "blns.json").read_text(encoding="utf-8"))
    assert len(texts) == 515
    source, expected = store_texts(kind, texts, tmp_path)
    # Excel's own format has no place for control characters; its writer refuses those few.
    assert len(expected) >= (505 if kind == "xlsx" else 515)
    dataset = read_dataset(source, name="naughty", text_column="text")
    assert dataset.frame["text"].tolist() == expected
    assert len(dataset.rejected) == 0
    again = load_snapshot(save_snapshot(dataset))
    assert again.frame["text"].tolist() == expected and again.digest == dataset.digest


AWKWARD = ["", " ", "NA", "null", "None", "nan", "NaN", "-", "007", "1e400", "1.10", "TRUE", "2026-01-05", "'", '"', '""', "a,b;c\td|e", "line\nbreak",
           "carriage\rreturn", "both\r\n", "\n", "\x00", "\x0b\x1f", "\u2028\u2029\x85", "\ufeffmark", "\ufffd", "é\u0301", "😀👩‍👩‍👧", "\U000e0041", "$\\href{x}$",
           "=1+1", "@SUM", "+1", "-1", "<b>", "{text}", "\\", "\\n"]


@pytest.mark.parametrize("kind", [k for k in FORMATS if k != "xlsx"])
def test_awkward_cells_come_back(kind, tmp_path):
    source, expected = store_texts(kind, AWKWARD, tmp_path)
    assert read_dataset(source, text_column="text").frame["text"].tolist() == expected


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "json"])
def test_random_text_comes_back(kind, tmp_path):
    rng = random.Random(kind)
    alphabet = 'ab "\'\n\r,;\t|\\{}[]é日😀\u200b\x00 '
    texts = ["".join(rng.choices(alphabet, k=rng.randrange(12))) for _ in range(1500)]
    source, expected = store_texts(kind, texts, tmp_path)
    assert read_dataset(source, text_column="text").frame["text"].tolist() == expected


# --- one content, one digest ---------------------------------------------------------------------------------------


def mixed_frame():
    return pd.DataFrame({
        "id": [f"t{i}" for i in range(5)], "n": [1, 2, 2**53 + 1, -7, 0], "gaps": pd.Series([1, None, 3, None, 2**60], dtype="Int64"),
        "ratio": [0.1, 1e-300, -2.5, 3.0, 1 / 3], "flag": [True, False, True, True, False],
        "time": pd.to_datetime(["2026-01-05 10:00:00", "0001-01-01 00:00:00", "9999-12-31 23:59:59", "2026-03-29 02:30:00", "2026-01-05 10:00:00.000001"],
                               format="ISO8601"),
        "code": ["007", "12", "", "NA", "x"], "text": ["a", "b\nc", '"', "é", ""]})


def test_digest_is_of_content_not_of_file(tmp_path):
    frame = mixed_frame()
    digest = read_dataset(frame).digest
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "semicolon.csv", index=False, sep=";", encoding="utf-16", lineterminator="\r\n", quoting=csv.QUOTE_ALL)
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_parquet(tmp_path / "b.parquet", compression="gzip", row_group_size=2)
    records = json.loads(frame.to_json(orient="records", date_format="iso", date_unit="us"))
    for record, time in zip(records, frame["time"]):
        record["time"] = str(time)
    # pandas writes 1/3 with ten digits by default; the digest notices.
    for record, ratio in zip(records, frame["ratio"]):
        record["ratio"] = ratio
    write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, records)))
    write(tmp_path / "a.json", json.dumps({"data": records}))
    for name in ("a.csv", "semicolon.csv", "a.parquet", "b.parquet", "a.jsonl", "a.json"):
        again = read_dataset(tmp_path / name)
        pd.testing.assert_frame_equal(again.frame, frame, check_dtype=True)
        assert again.digest == digest, name
    smaller = frame.astype({"n": "int64", "ratio": "float64", "id": "category"}).assign(flag=frame["flag"].astype("boolean"))
    assert read_dataset(smaller).digest == digest


CHANGES = {
    "a value": lambda f: f.assign(n=[1, 2, 3, 4, 5]),
    "the order of rows": lambda f: f[::-1],
    "the order of columns": lambda f: f[list(f)[::-1]],
    "a name": lambda f: f.rename(columns={"n": "m"}),
    "a gap for a zero": lambda f: f.assign(gaps=f["gaps"].fillna(0)),
    "a missing text for an empty one": lambda f: f.assign(text=["a", "b\nc", '"', "é", None]),
    "a kind": lambda f: f.assign(n=f["n"].astype("str")),
    "the sign of zero": lambda f: f.assign(ratio=[0.1, 1e-300, -2.5, 3.0, -0.0]),
    "letters moved between columns": lambda f: f.assign(id=f["id"] + "x"),
    "a row": lambda f: f[:4],
}


@pytest.mark.parametrize("change", CHANGES)
def test_digest_notices(change):
    frame = mixed_frame()
    if change == "the sign of zero":
        frame = frame.assign(ratio=[0.1, 1e-300, -2.5, 3.0, 0.0])
    assert make_dataset(CHANGES[change](frame)).digest != make_dataset(frame).digest


def test_digest_is_the_same_for_ever():
    "Snapshots are found by this number: a change of it orphans everybody's data."
    frame = pd.DataFrame({"id": ["a", "b"], "n": [1, 2], "x": [0.5, None], "t": pd.to_datetime(["2026-01-05", None]), "f": [True, False]})
    assert make_dataset(frame).digest == "d82f28e74f8913674cf16f2be6810e2cfa9de3d6c3e7d36b8d79f380738c3f02"


def test_digest_of_slices():
    "An Arrow column that is a slice of a longer one has the digest of its own values only."
    frame = pd.DataFrame({"text": ["xx", "a", "b", "yy"]})
    assert digest_frame(frame[1:3]) == digest_frame(pd.DataFrame({"text": ["a", "b"]}))
    halves = pd.concat([frame[:2], frame[2:]])
    assert digest_frame(halves) == digest_frame(frame)


# --- nothing is changed in silence ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cells", [["007", "12"], ["1", "NA"], ["1e400", "2"], ["9223372036854775808", "1"], ["2026-02-30"], ["1,5"], ["0x1"], ["１"],
                                   ["True", "yes"], ["12345678901234567890.5"], ["True", ""], ["10:30"], ["2026-01-05T10:00:00+02:00"], ["1 "]])
def test_cells_that_stay_text(cells, tmp_path):
    out = io.StringIO(newline="")
    csv.writer(out).writerows([["k", "c"], *enumerate(cells)])
    column = read_dataset(write(tmp_path / "c.csv", out.getvalue())).frame["c"]
    assert column.dtype == "str" and column.tolist() == cells


@pytest.mark.parametrize("values, expected", [
    ([1, 2.5], [1.0, 2.5]), ([1, "1"], ["1", "1"]), ([2**63, 1], [str(2**63), "1"]), ([True, 1], ["true", "1"]), ([2**53 + 1, 0.5], [str(2**53 + 1), "0.5"]),
    ([{"a": "é"}, None], ['{"a": "é"}', None]), ([[1, [2]], "x"], ["[1, [2]]", "x"])])
def test_json_values_are_kept(values, expected, tmp_path):
    dataset = read_dataset(write(tmp_path / "v.jsonl", "\n".join(json.dumps({"k": "x", "v": v}) for v in values)))
    got = [None if isinstance(v, float) and v != v else v for v in dataset.frame["v"]]
    assert got == expected
    if any(isinstance(v, str) for v in expected):
        assert dataset.notes, "a value kept in another form is mentioned"


def test_floats_of_frames_are_kept():
    frame = pd.DataFrame({"x": [float("inf"), float("-inf"), -0.0, 5e-324, 1.7976931348623157e308, np.nan], "s": np.array([.1, .2, .3, 1, 2, 3], "float32")})
    again = load_snapshot(save_snapshot(make_dataset(frame, "floats"))).frame
    assert np.array_equal(again["x"].to_numpy().view("int64")[:5], frame["x"].to_numpy().view("int64")[:5]) and np.isnan(again["x"][5])
    assert again["s"].tolist() == frame["s"].astype("float64").tolist()


def test_times_of_zones_are_brought_to_utc():
    times = pd.date_range("2026-10-25 00:30", periods=4, freq="h", tz="Europe/Berlin")
    dataset = make_dataset(pd.DataFrame({"t": times}))
    assert dataset.frame["t"].tolist() == [t.tz_convert("UTC").tz_localize(None) for t in times]
    assert "UTC" in dataset.notes[0]


def test_text_columns_stay_letter_for_letter(tmp_path):
    path = write(tmp_path / "t.csv", "text,label\n1.10,1.10\n2.50,2.50\n")
    dataset = read_dataset(path, text_column="text")
    assert dataset.frame["text"].tolist() == ["1.10", "2.50"] and dataset.frame["label"].tolist() == [1.1, 2.5]
    assert read_dataset(path, keep_text=("label",)).frame["label"].tolist() == ["1.10", "2.50"]
    assert read_dataset(pd.DataFrame({"text": [1, 2]}), text_column="text").frame["text"].tolist() == ["1", "2"]


# --- rows in = kept + rejected -------------------------------------------------------------------------------------

BROKEN = {
    "ragged": ("a.csv", "id,text\n1,a\n2\n3,b,c\n4,d\n", 2, {2, 3}),
    "open quote": ("a.csv", 'id,text\n1,a\n2,"b\n3,c\n4,d\n', 3, {2}),
    "open quote among quoted": ("a.csv", 'id,text\n1,"a"\n2,"b\n3,"c"\n4,"d"\n', 3, {2}),
    "letters after a quote": ("a.csv", 'id,text\n1,"a"b\n2,"c"\n', 1, {1}),
    "open quote at the end": ("a.csv", 'id,text\n1,a\n2,"b\n', 1, {2}),
    "not JSON": ("a.jsonl", '{"text": "a"}\n{"text": \n[1]\n"s"\n{"text": "b"}\n', 2, {2, 3, 4}),
    "numbers JSON has not": ("a.jsonl", '{"text": "a", "n": NaN}\n{"text": "b", "n": 1e999}\n{"text": "c", "n": 1}\n', 1, {1, 2}),
    "the same key twice": ("a.jsonl", '{"text": "a", "text": "b"}\n{"text": "c"}\n', 1, {1}),
    "half a surrogate": ("a.jsonl", '{"text": "\\ud83d"}\n{"text": "b"}\n', 1, {1}),
    "deep nesting": ("a.jsonl", "[" * 100_000 + '\n{"text": "b"}\n', 1, {1}),
    "missing text": ("a.jsonl", '{"text": null}\n{"id": 1}\n{"text": ""}\n', 1, {1, 2}),
    "not a record": ("a.json", '[{"text": "a"}, 7, null, {"text": "b"}]', 2, {2, 3}),
}


@pytest.mark.parametrize("case", BROKEN)
def test_rows_in_are_rows_kept_and_rejected(case, tmp_path):
    name, content, kept, rejected = BROKEN[case]
    dataset = read_dataset(write(tmp_path / name, content), text_column="text")
    assert len(dataset) == kept
    assert set(dataset.rejected["row"]) == rejected
    assert dataset.rejected["reason"].str.len().min() > 5
    assert list(dataset.rejected) == ["row", "column", "reason"]


def test_one_open_quote_costs_one_row(tmp_path):
    "An open quote once swallowed everything up to the next one."
    rows = [f'{i},"text {i}, quoted"' for i in range(2000)]
    rows[1000] = '1000,"never closed'
    assert list(csv.reader(["id,text", *[r + "\n" for r in rows]]))[1001] != ["1000", "never closed"]
    dataset = read_dataset(write(tmp_path / "a.csv", "id,text\n" + "\n".join(rows)), text_column="text")
    assert dataset.rejected["row"].tolist() == [1001] and dataset.frame["id"].tolist() == [i for i in range(2000) if i != 1000]


def test_files_of_a_folder_are_rejected_one_by_one(tmp_path):
    folder = tmp_path / "letters"
    (folder / "deeper").mkdir(parents=True)
    write(folder / "a.txt", "one"), write(folder / "b.txt", "zwölf", "cp1252"), write(folder / "deeper" / "c.md", "three"), write(folder / "d.png", b"\x89")
    secret = write(tmp_path / "secret.txt", "not yours")
    (folder / "link.txt").symlink_to(secret)
    dataset = read_dataset(folder)
    assert dataset.frame.to_dict("list") == {"name": ["a.txt", "deeper/c.md"], "text": ["one", "three"]}
    assert dict(zip(dataset.rejected["column"], dataset.rejected["row"])) == {"b.txt": 2, "link.txt": 4}
    assert "1 files of other kinds" in dataset.notes[0]


# --- bad input: one line that says what to do ----------------------------------------------------------------------

BAD = {
    "missing file": ("nothing.csv", None, {}, SourceNotFoundError, "There is no file or dataset"),
    "empty file": ("a.csv", b"", {}, SourceFormatError, "is empty"),
    "only a mark": ("a.csv", b"\xef\xbb\xbf", {}, SourceFormatError, "cannot be read"),
    "header only": ("a.csv", b"id,text\n", {}, SourceFormatError, "a header and no rows"),
    "duplicate headers": ("a.csv", b"id,id\n1,2\n", {}, SourceFormatError, "more than one column called 'id'"),
    "missing column": ("a.csv", b"id,txt\n1,2\n", {"text_column": "text"}, MissingColumnError, "Its columns are: id, txt. Did you mean 'txt'?"),
    "cp1252": ("a.csv", "id,text\n1,ok\n2,caf\xe9\n".encode("cp1252"), {}, SourceFormatError, 'byte 0xe9 at offset 18 (line 3) cannot be decoded'),
    "latin in JSONL": ("a.jsonl", b'{"a": 1}\n{"a": "\xfc"}\n', {}, SourceFormatError, "line 2"),
    "half of UTF-16": ("a.csv", "id,text\n1,x".encode("utf-16")[:-1], {}, SourceFormatError, "is not utf-16"),
    "wrong encoding asked for": ("a.csv", b"id,text\n1,\x81\n", {"encoding": "cp1252"}, SourceFormatError, "is not cp1252: byte 0x81"),
    "no such encoding": ("a.csv", b"a\n1\n", {"encoding": "utf-99"}, ParameterValueError, "utf-99"),
    "unknown ending": ("a.xls", b"x", {}, SourceFormatError, "It reads .csv, .tsv"),
    "compressed and torn off": ("a.csv.gz", b"\x1f\x8b", {}, SourceFormatError, "is not a whole gzip file"),
    "an archive": ("a.tar.gz", b"\x1f\x8b", {}, SourceFormatError, "Unpack it and pass a file from it"),
    "JSON that is a number": ("a.json", b"5", {}, SourceFormatError, "holds a JSON int"),
    "empty list": ("a.json", b"[]", {}, SourceFormatError, "an empty list"),
    "JSON torn off": ("a.json", b'[{"a": 1', {}, SourceFormatError, "is not valid JSON"),
    "JSONL without a record": ("a.jsonl", b"one\ntwo\n", {}, SourceFormatError, "Line 1: not JSON"),
    "not Parquet": ("a.parquet", b"PAR1 nothing PAR1", {}, SourceFormatError, "is not a Parquet file"),
    "not Excel": ("a.xlsx", b"PK\x03\x04 nothing", {}, SourceFormatError, "is not an Excel file"),
    "a zip that is no workbook": ("a.xlsx", "ZIP", {}, SourceFormatError, "is not an Excel file"),
    "separator of two letters": ("a.csv", b"a\n1\n", {"separator": "||"}, ParameterValueError, "One character is needed"),
    "every row ragged": ("a.csv", b"a,b\n1\n2\n", {}, SourceFormatError, "None of the 2 rows"),
    "bad name": ("a.csv", b"a\n1\n", {"name": "../up"}, ParameterValueError, "cannot name a dataset"),
    "all texts missing": ("a.jsonl", b'{"text": null}\n', {"text_column": "text"}, SourceFormatError, "the text is missing"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_explained_in_a_line(case, tmp_path):
    import zipfile

    name, content, options, error, message = BAD[case]
    path = tmp_path / name
    if content == "ZIP":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a.txt", "x")
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(error) as caught:
        read_dataset(str(path), **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert isinstance(caught.value, UserError) and caught.value.exit_code == 2


def test_bytes_are_never_replaced(tmp_path):
    "Every byte that is not UTF-8 stops the reader; none becomes U+FFFD."
    for byte in (0x80, 0x92, 0xa0, 0xc0, 0xe9, 0xff):
        path = write(tmp_path / "a.csv", b"id,text\n1,a" + bytes([byte]) + b"b\n")
        with pytest.raises(SourceFormatError, match=f"0x{byte:02x} at offset 11"):
            read_dataset(path)
        assert "\ufffd" not in read_dataset(path, encoding="latin-1").frame["text"][0]
    assert read_dataset(write(tmp_path / "b.csv", "text\n\ufffd\n")).frame["text"][0] == "\ufffd", "one that was there stays"


def test_objects_that_cannot_be_read():
    with pytest.raises(ParameterValueError, match="source\\['train'\\]"):
        read_dataset({"train": [1]})
    with pytest.raises(ParameterValueError, match="A path, a name"):
        read_dataset(5)
    with pytest.raises(SourceFormatError, match="holds bytes"):
        read_dataset(pd.DataFrame({"image": [b"\x89"]}))
    with pytest.raises(SourceFormatError, match="several levels"):
        read_dataset(pd.DataFrame([[1]], columns=pd.MultiIndex.from_tuples([("a", "b")])))
    with pytest.raises(SourceFormatError, match="No row of 'frame'"):
        read_dataset(pd.DataFrame({"text": []}))
    with pytest.raises(SourceFormatError, match="more than one column called 'a'"):
        read_dataset(pd.DataFrame([[1, 2]], columns=["a", "a"]))


def test_hugging_face_indices_and_streams():
    import datasets

    source = datasets.Dataset.from_dict({"n": [1, None, 3], "text": ["a", "b", "c"], "nested": [{"k": [1]}, None, {"k": []}]})
    dataset = read_dataset(source.select([2, 0]), name="hub")
    assert dataset.frame["n"].tolist() == [3, 1] and dataset.frame["nested"].tolist() == ['{"k": []}', '{"k": [1]}']
    assert read_dataset(source).frame["n"].dtype == "Int64"
    with pytest.raises(ParameterValueError, match="Pass one of its parts, for example source\\['train'\\]"):
        read_dataset(datasets.DatasetDict({"train": source}))
    with pytest.raises(ParameterValueError, match="into memory first"):
        read_dataset(source.to_iterable_dataset())


# --- compressed files ----------------------------------------------------------------------------------------------


def test_parquet_that_lies_about_utf8(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    array = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(np.array([0, 2, 3], "int32").tobytes()), pa.py_buffer(b"\xff\xfea")])
    pq.write_table(pa.table({"t": array}), tmp_path / "a.parquet")
    with pytest.raises(SourceFormatError, match="not UTF-8"):
        read_dataset(tmp_path / "a.parquet")


def test_bombs_are_not_opened(tmp_path, monkeypatch):
    import zipfile

    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"n": np.zeros(35_000_000, "int64")}), tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("xl/workbook.xml", bytes(300_000_000))
    opened = []
    monkeypatch.setattr(pq.ParquetFile, "read", lambda *a, **k: opened.append("parquet"))
    monkeypatch.setattr(readers, "_open_sheet", lambda *a, **k: opened.append("xlsx"))
    for name in ("a.parquet", "a.xlsx"):
        with pytest.raises(SourceFormatError, match="once open"):
            read_dataset(tmp_path / name)
    assert opened == []


def test_excel_dates_gaps_and_sheets(tmp_path):
    import openpyxl

    book = openpyxl.Workbook()
    book.active.title = "one"
    for row in [["when", "n", "text", None], [datetime(2026, 1, 5, 10), 1, "a", None], [datetime(2026, 1, 6), None, None, None], [None, None, None, None],
                [datetime(2026, 1, 7), 3, "c", "beyond"]]:
        book.active.append(row)
    book.create_sheet("two").append(["text"])
    book["two"].append(["007"])
    book.save(tmp_path / "a.xlsx")
    dataset = read_dataset(tmp_path / "a.xlsx", text_column="text")
    assert dataset.frame["text"].tolist() == ["a", ""] and dataset.frame["n"].dtype == "Int64" and str(dataset.frame["when"].dtype) == "datetime64[us]"
    assert dataset.rejected["row"].tolist() == [3]
    assert read_dataset(tmp_path / "a.xlsx", sheet="two").frame["text"].tolist() == ["007"]
    with pytest.raises(ParameterValueError, match="Its sheets are: one, two"):
        read_dataset(tmp_path / "a.xlsx", sheet="three")


# --- snapshots -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small():
    return make_dataset(mixed_frame(), "small")


def snapshot_files(workspace):
    return sorted((workspace / "snapshots").glob("*"))


@pytest.mark.parametrize("seed", range(8))
def test_a_flipped_byte_is_noticed(seed, small, workspace):
    reference = save_snapshot(small)
    path = snapshot_files(workspace)[0]
    whole, rng, noticed = path.read_bytes(), random.Random(seed), 0
    for at in rng.sample(range(len(whole)), 40):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << rng.randrange(8))]) + whole[at + 1:])
        try:
            again = load_snapshot(reference)
        except SourceFormatError as error:
            assert "is damaged" in str(error)
            noticed += 1
        else:
            # Some bytes are padding or statistics: then the content is what it was.
            pd.testing.assert_frame_equal(again.frame, small.frame)
    assert noticed >= 10


def test_a_torn_snapshot_is_made_again(small, workspace):
    reference = save_snapshot(small)
    path = snapshot_files(workspace)[0]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(SourceFormatError, match="is damaged"):
        read_dataset(reference)
    assert save_snapshot(small) == reference
    assert read_dataset(reference).digest == small.digest


def test_latest_prefixes_and_listing(small):
    other = make_dataset(mixed_frame()[:3], "small")
    first, second = save_snapshot(small), save_snapshot(other)
    assert read_dataset("small").digest == other.digest
    save_snapshot(small)
    assert read_dataset("small").digest == small.digest, "saved again, it is the latest"
    assert load_snapshot(second[:-4]).digest == other.digest
    assert list_snapshots()["reference"].tolist() == [first, second]
    with pytest.raises(SourceNotFoundError, match="There are: small@"):
        load_snapshot("small@ffff")
    with pytest.raises(SourceNotFoundError, match="small@"):
        load_snapshot("small@" + small.digest[:2])


def test_a_digest_in_the_name_must_be_the_content(small, workspace):
    save_snapshot(small)
    path = snapshot_files(workspace)[0]
    path.rename(path.with_name(f"small@{'0' * 64}.parquet"))
    with pytest.raises(SourceFormatError, match="does not have the digest"):
        load_snapshot("small@0000")


def test_truth_travels_and_is_checked(workspace):
    truth = pd.DataFrame({"id": ["a"], "wrong": [True]})
    reference = save_snapshot(make_dataset(pd.DataFrame({"id": ["a"]}), "known", truth))
    pd.testing.assert_frame_equal(load_snapshot(reference).truth, truth)
    path = next((workspace / "snapshots").glob("*.truth"))
    other = make_dataset(pd.DataFrame({"id": ["a"], "wrong": [False]}), "other")
    save_snapshot(other)
    shutil.copy(next((workspace / "snapshots").glob("other@*")), path)
    assert not load_snapshot(reference).truth["wrong"][0], "another whole file with its own digest is believed"
    path.write_bytes(path.read_bytes()[:-30] + b"x" * 30)
    with pytest.raises(SourceFormatError, match="is damaged"):
        load_snapshot(reference)


def test_a_full_disk_leaves_nothing_half_written(small, workspace, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(settings_module.os, "fsync", full)
    with pytest.raises(WorkspaceError, match="the disk is full"):
        save_snapshot(small)
    assert snapshot_files(workspace) == []
    monkeypatch.undo()
    os.environ["LLMOPS_WORKSPACE"] = str(workspace)
    assert load_snapshot(save_snapshot(small)).digest == small.digest


def test_a_workspace_that_cannot_be_written(small, tmp_path, monkeypatch):
    write(tmp_path / "file", "in the way")
    monkeypatch.setenv("LLMOPS_WORKSPACE", str(tmp_path / "file" / "workspace"))
    with pytest.raises(WorkspaceError):
        save_snapshot(small)


def test_four_processes_save_the_same_snapshot(workspace):
    code = ("import pandas as pd; from llmops_workbench.datasets import *; "
            "print([save_snapshot(make_dataset(pd.DataFrame({'n': range(500)}), 'race')) for _ in range(5)][-1])")
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = {process.communicate(timeout=120)[0].strip() for process in running}
    assert len(said) == 1 and all(process.returncode == 0 for process in running)
    assert [p.suffix for p in snapshot_files(workspace)] == [".parquet"]
    assert len(load_snapshot(said.pop())) == 500


# --- names ---------------------------------------------------------------------------------------------------------


def test_helpdesk_is_made_once_and_again_when_its_makers_change(workspace, monkeypatch):
    from llmops_workbench import datasets, helpdesk

    made = []
    generate = helpdesk.generate_helpdesk
    monkeypatch.setattr(helpdesk, "generate_helpdesk", lambda: made.append(1) or generate(n_rows=200))
    first, second = read_dataset("helpdesk"), read_dataset("helpdesk")
    assert made == [1] and first.digest == second.digest
    assert first.truth["id"].tolist() == first.frame["id"].tolist() == second.truth["id"].tolist()
    monkeypatch.setattr(datasets, "_made_from", lambda name: "another")
    read_dataset("helpdesk")
    assert made == [1, 1]
    next((workspace / "snapshots").glob("*.parquet")).write_bytes(b"torn")
    assert read_dataset("helpdesk").digest == first.digest and made == [1, 1, 1]


def test_helpdesk_makers_include_what_helpdesk_imports():
    from llmops_workbench import datasets

    assert datasets._made_from("helpdesk") == datasets._made_from("helpdesk")
    assert len(datasets._made_from("helpdesk")) == 16


def test_names_paths_and_what_is_near(workspace, tmp_path, monkeypatch):
    save_snapshot(make_dataset(pd.DataFrame({"a": [1]}), "tickets"))
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "orders.csv", "a\n1\n")
    (tmp_path / "helpdesk").mkdir()
    write(tmp_path / "helpdesk" / "x.txt", "mine")
    assert read_dataset("tickets").frame["a"].tolist() == [1]
    assert read_dataset("./helpdesk").frame["text"].tolist() == ["mine"], "a path is a path"
    for name, near in (("tikets", "'tickets'"), ("order.csv", "'orders.csv'"), ("helpdeks", "'helpdesk'")):
        with pytest.raises(SourceNotFoundError, match=f"Did you mean {near}"):
            read_dataset(name)
    with pytest.raises(SourceNotFoundError, match="orders.csv"):
        read_dataset("a'b\nc.csv")


def test_odd_paths(tmp_path):
    folder = tmp_path / "with space 'quote' ü日"
    folder.mkdir()
    assert read_dataset(write(folder / ("x" * 240 + ".csv"), "a\n1\n")).name == "x" * 100
    assert read_dataset(write(folder / "…!.csv", "a\n1\n")).name == "dataset"


# --- splits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_in_two_splits(seed):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"g": rng.integers(0, 300, 3000).astype(str), "h": rng.integers(0, 3, 3000)})
    shares = {"train": 0.7, "validation": 0.1, "test": 0.2}
    split = split_rows(frame, shares, group_by="g", seed=seed)
    assert split.groupby(frame["g"]).nunique().max() == 1
    shuffled = frame.sample(frac=1, random_state=seed)
    assert split_rows(shuffled, shares, group_by="g", seed=seed).sort_index().equals(split)
    half = frame[frame["g"].astype(int) < 150]
    assert split_rows(half, shares, group_by="g", seed=seed).equals(split[half.index])
    both = split_rows(frame, shares, group_by=["g", "h"], seed=seed)
    assert both.groupby([frame["g"], frame["h"]]).nunique().max() == 1


def test_shares_are_met_on_average():
    frame = pd.DataFrame({"id": range(20_000)})
    shares = {"train": 0.8, "validation": 0.15, "test": 0.05}
    got = split_rows(frame, shares).value_counts(normalize=True)
    for name, share in shares.items():
        assert abs(got[name] - share) < 4 * (share * (1 - share) / 20_000) ** 0.5
    assert (split_rows(frame, shares, seed=1) != split_rows(frame, shares)).mean() > 0.2


def test_rows_that_are_the_same_stay_together():
    frame = pd.DataFrame({"text": ["a", "b"] * 500 + [f"t{i}" for i in range(500)]})
    split = split_rows(frame, {"train": 0.5, "test": 0.5})
    assert split.groupby(frame["text"]).nunique().max() == 1

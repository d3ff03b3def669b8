"""Bad input from end to end: what a person may hand to `profile` and `prepare` is read whole, or refused in one line.

Every case goes through both stages. Either the error says what is wrong, or rows in are rows kept and rows rejected."""

import csv
import datetime as dt
import gzip
import io
import json
import math
import random
import subprocess
import sys
from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmops_workbench import readers
from llmops_workbench.datasets import load_snapshot, make_dataset, read_dataset, save_snapshot
from llmops_workbench.errors import UserError, WorkbenchError
from llmops_workbench.preparation import prepare
from llmops_workbench.profiling import profile
from llmops_workbench.writers import FORMULA_STARTS, write_dataset

TEXTS = ["The printer on the second floor is out of toner", "Please unlock my account before noon", "The VPN drops every hour when I work from home"]


def look(source, **options):
    return profile(source, **{"tokenizer": None, "signals": ["lengths", "characters", "duplicates"], **options})


def make(source, **options):
    "One example a row, and nothing dropped that a step would drop."
    return prepare(source, **{"tasks": {"t": ["{text}", "fine"]}, "split": {"train": 1.0}, "steps": [], **options})


def account(source, n_rows):
    "Both stages over rows that are `n_rows` in all; the result of each, once its counts add up."
    seen, made = look(source), make(source)
    assert seen.summary["n_rows"] + seen.summary["n_read_rejected"] == n_rows
    assert (len(seen.frame), len(seen.rejected)) == (seen.summary["n_rows"], seen.summary["n_read_rejected"])
    assert seen.rejected["row"].is_unique and seen.frame["id"].is_unique
    assert made.summary["n_rows_kept"] + made.summary["n_rejected"] == n_rows
    assert made.summary["n_rows"] == seen.summary["n_rows"] and len(made.rejected) == made.summary["n_rejected"]
    assert set(made.frame["row"]).isdisjoint(made.rejected["id"]) and made.frame["id"].is_unique
    assert made.steps["rejected"].sum() + (made.rejected["step"] == "read").sum() + made.rejected["step"].isin(["examples", "split"]).sum() == len(made.rejected)
    again = load_snapshot(made.outputs["train"])
    pd.testing.assert_frame_equal(again.frame, made.train)
    return seen, made


def refused(source, *words, **options):
    "Both stages say the same one line."
    lines = []
    for stage in (look, make):
        with pytest.raises(WorkbenchError) as caught:
            stage(source, **options)
        lines.append(str(caught.value))
        assert isinstance(caught.value, UserError) and caught.value.exit_code == 2
    assert lines[0] == lines[1] and "\n" not in lines[0] and len(lines[0]) < 1000
    assert all(word in lines[0] for word in words), lines[0]


@pytest.fixture
def write(tmp_path):
    def write(name, content, encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
        return path
    return write


def frame_with(values, texts=TEXTS):
    return pd.DataFrame({"text": texts, "v": pd.Series(values, dtype="object")})


# --- C1: awkward CSV -----------------------------------------------------------------------------------------------

AWKWARD = ['say "hi"', '"', '""', "a,b;c\td|e", "two\nlines", "two\r\nlines", "carriage\rreturn", " spaces ", "'", "NA", "-", "=1+1", "\\n", "über 😀", "a\u2028b"]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding, ending", [("utf-8", "\r\n"), ("utf-8-sig", "\n"), ("utf-16", "\r\n")])
def test_c1_awkward_cells_are_kept_letter_for_letter(write, separator, encoding, ending):
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=separator, lineterminator=ending, quoting=csv.QUOTE_ALL).writerows([["id", "text", "note"], *((f"r{i}", text, "") for i, text in enumerate(AWKWARD))])
    seen, made = account(write("a.csv", out.getvalue(), encoding), len(AWKWARD))
    assert made.frame["prompt"].tolist() == AWKWARD and seen.frame["characters"].tolist() == [len(t) for t in AWKWARD]
    assert list(seen.columns["column"]) == ["id", "text", "note"]


def test_c1_empty_cells_are_counted_and_dropped_only_by_a_step(write):
    path = write("a.csv", "id,text,answer\n1,,x\n2,  ,x\n3,word,x\n4,word two,\n")
    seen, made = account(path, 4)
    assert seen.summary["n_empty"] == 2 and len(seen.rejected) == 0
    assert set(zip(made.rejected["id"], made.rejected["reason"])) == {("1", "empty prompt"), ("2", "empty prompt")}
    stepped = make(path, steps=["drop_empty"], tasks={"t": ["{text}", "{answer}"]})
    assert sorted(zip(stepped.rejected["id"], stepped.rejected["step"])) == [("1", "drop_empty"), ("2", "drop_empty"), ("4", "examples")]
    assert stepped.summary["n_rows_kept"] + stepped.summary["n_rejected"] == 4


def test_c1_an_open_quote_costs_its_row(write):
    rows = [f'{i},"ticket {i}, quoted"' for i in range(200)]
    rows[70] = '70,"never closed'
    seen, made = account(write("a.csv", "id,text\n" + "\n".join(rows)), 200)
    assert seen.rejected["row"].tolist() == [71] and "line 72" in seen.rejected["reason"][0]
    assert made.rejected[["id", "step"]].values.tolist() == [["row 71", "read"]]


# --- C2: JSON and JSONL --------------------------------------------------------------------------------------------


def test_c2_bad_lines_are_rejected_by_number(write):
    lines = ['{"text": "one"}', '{"text": "cut o', "", '[1]', '"text"', '{"text": NaN}', '{"text": "a", "text": "b"}', "[" * 100_000, '{"a":' * 100_000,
             '{"text": 1e400}', "{'text': 'x'}", '{"text": null}', '{"other": 1}', '{"text": "two"}', "not json", '{"text": "thr\u2028ee"}']
    seen, made = account(write("a.jsonl", "\n".join(lines)), len(lines) - 1)
    reasons = dict(zip(seen.rejected["row"], seen.rejected["reason"]))
    assert sorted(reasons) == [2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15]
    assert "column 10" in reasons[2] and "not an object" in reasons[4] and "NaN is not JSON" in reasons[6] and "same key twice" in reasons[7]
    assert "nested too deeply" in reasons[8] and "nested too deeply" in reasons[9] and "1e400" in reasons[10] and reasons[12] == "the text is missing"
    assert made.frame["prompt"].tolist() == ["one", "two", "thr\u2028ee"] and set(made.rejected["id"]) == {f"row {n}" for n in reasons}


@pytest.mark.parametrize("content, words", [
    ('[{"text": "a"},\n{"text": }]', ("is not valid JSON", "line 2")), ("[" * 100_000, ("nested too deeply",)), ("5", ("holds a JSON int",)), ("[]", ("an empty list",)),
    ('[{"text": "a"}] x', ("is not valid JSON", "line 1")), ('{"text": "a"}', ("A list of records",)), ("[1, 2]", ("without a single record",))])
def test_c2_bad_json_is_refused(write, content, words):
    refused(write("a.json", content), *words)


def test_c2_json_in_its_three_forms(write):
    records = [{"text": t} for t in TEXTS]
    for content in (records, {"data": records}, TEXTS):
        _, made = account(write("a.json", json.dumps(content)), 3)
        assert made.frame["prompt"].tolist() == TEXTS
    seen, _ = account(write("mixed.json", json.dumps([*records, 7, None, ["x"], {"text": None}])), 7)
    assert seen.rejected["row"].tolist() == [4, 5, 6, 7]


def test_c2_nested_values_are_text_in_every_row(write):
    values = [{"a": {"b": [1, {"c": None}]}}, [], {"": 1}, {"a.b": {"c": 2**70}}, None, "x", 5]
    path = write("a.jsonl", "\n".join(json.dumps({"text": f"row {i}", "v": v}) for i, v in enumerate(values)))
    _, made = account(path, len(values))
    _, kept = account(read_dataset(path), len(values))
    assert [json.loads(v) if isinstance(v, str) and v != "x" else v for v in read_dataset(path).frame["v"].astype("object").where(lambda c: c.notna(), None)] == values
    assert made.frame["prompt"].tolist() == kept.frame["prompt"].tolist()


# --- C3: gzip ------------------------------------------------------------------------------------------------------

TICKETS = {"csv": "id,text\n1,one\n2\n3,three\n", "tsv": "id\ttext\n1\tone\n2\n3\tthree\n", "jsonl": '{"text": "one"}\n{"te\n{"text": "three"}\n',
           "ndjson": '{"text": "one"}\n{"te\n{"text": "three"}\n', "json": '[{"text": "one"}, 2, {"text": "three"}]'}


@pytest.mark.parametrize("kind", TICKETS)
def test_c3_compressed_text_is_read_like_the_file_in_it(write, kind):
    content = TICKETS[kind].encode()
    plain, packed = write(f"t.{kind}", content), write(f"t.{kind}.gz", gzip.compress(content[:9]) + gzip.compress(content[9:]))
    assert read_dataset(packed).reference == read_dataset(plain).reference
    seen, made = account(packed, 3)
    assert seen.rejected["row"].tolist() == [2] and made.frame["prompt"].tolist() == ["one", "three"] and made.outputs["train"].startswith("t.train@")


def test_c3_marks_and_capital_endings(write):
    for encoding in ("utf-8-sig", "utf-16"):
        account(write("T.CSV.GZ", gzip.compress(TICKETS["csv"].encode(encoding))), 3)
    refused(write("a.csv.gz", gzip.compress("text\ncaf\xe9\n".encode("cp1252"))), "is not utf-8", "byte 0xe9 at offset 8 (line 2)")


# Without the time in its header: it is part of the tests' names, which must be the same in every worker.
pack = partial(gzip.compress, mtime=0)
WHOLE = pack(random.Random(0).randbytes(3000).hex().encode())
flipped = bytearray(WHOLE)
flipped[1000] ^= 255


@pytest.mark.parametrize("name, content, words", [
    ("a.csv.gz", WHOLE[:-9], ("is not a whole gzip file", "Copy or download it again")), ("a.csv.gz", WHOLE[:12], ("is not a whole gzip file",)),
    ("a.csv.gz", bytes(flipped), ("is not a whole gzip file",)), ("a.csv.gz", WHOLE[:-6] + b"\0\0" + WHOLE[-4:], ("is not a whole gzip file",)),
    ("a.csv.gz", WHOLE + b"more", ("is not a whole gzip file",)), ("a.csv.gz", b"id,text\n1,x\n", ("is not a whole gzip file", "Not a gzipped file")),
    ("a.csv.gz", pack(WHOLE), ("holds another gzip file", "Unpack it once")), ("a.csv.gz.gz", pack(WHOLE), ("ends in '.gz.gz'", "Unpack it")),
    ("a.csv.gz", pack(b""), ("holds an empty file",)), ("a.csv.gz", b"", ("is empty",)), ("a.gz", WHOLE, ("ends in '.gz'", "these also as .gz")),
    ("a.parquet.gz", WHOLE, ("ends in '.parquet.gz'",)), ("a.zip", b"PK", ("ends in '.zip'", "It reads .csv, .tsv", "Unpack it and pass a file from it")),
    ("a.tar.gz", WHOLE, ("ends in '.tar.gz'", "Unpack it")), ("a.csv.bz2", b"BZh", ("ends in '.bz2'", "Unpack it")), ("a.arrow", b"ARROW1", ("ends in '.arrow'", "Convert the file"))])
def test_c3_damaged_archives_are_refused(write, name, content, words):
    refused(write(name, content), *words)


CHILD = """
import resource, sys
from llmops_workbench.errors import SourceFormatError
from llmops_workbench.{module} import {stage}
import pandas, pyarrow.parquet, pyarrow.compute
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try: {stage}(sys.argv[1])
except SourceFormatError as error: print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def in_a_child(stage, module, path):
    "What a process of its own said, and by how many MiB its memory grew."
    done = subprocess.run([sys.executable, "-c", CHILD.format(stage=stage, module=module), str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *said, grown = done.stdout.splitlines()
    return "\n".join(said), int(grown)


def bomb(n_megabytes):
    "So many MiB of nothing, a thousandth in size."
    return gzip.compress(bytes(2**20), mtime=0) * n_megabytes


@pytest.mark.parametrize("stage, module", [("profile", "profiling"), ("prepare", "preparation")])
def test_c3_a_bomb_is_refused_by_both_stages(write, stage, module):
    said, grown = in_a_child(stage, module, write("bomb.csv.gz", bomb(600)))
    assert "asks for 269,484,032 or more once open" in said and "Up to 200 times its size is opened" in said
    assert grown < 40, "nothing of it was kept"


def test_c3_ten_megabytes_of_ten_gigabytes(write):
    path = write("bomb.jsonl.gz", bomb(10_240))
    assert 10_000_000 < path.stat().st_size < 11_000_000
    said, grown = in_a_child("read_dataset", "datasets", path)
    assert "or more once open" in said and grown < 40


def test_c3_what_expands_within_bounds_is_read(write):
    "Two hundred times its size is much; below the limit any ratio is fine."
    lines = "text\n" + "the same line again\n" * 200_000
    packed = gzip.compress(lines.encode())
    assert len(lines) > 200 * len(packed)
    assert len(read_dataset(write("a.csv.gz", packed))) == 200_000


# --- C4: Parquet and Arrow -----------------------------------------------------------------------------------------


def test_c4_parquet_that_asks_for_gigabytes(tmp_path, monkeypatch):
    once = pa.DictionaryArray.from_arrays(pa.array(np.zeros(4000, "int32")), ["x" * 1_000_000])
    for schema in (False, True):
        pq.write_table(pa.table({"text": once}), tmp_path / "texts.parquet", compression="zstd", store_schema=schema)
        assert (tmp_path / "texts.parquet").stat().st_size < 1000
        said, grown = in_a_child("profile", "profiling", tmp_path / "texts.parquet")
        assert "or more once open" in said and grown < 100
    # Inside a list as well; and a whole number may come a million times.
    monkeypatch.setattr(readers, "EXPANSION_LIMIT", 10**6)
    pq.write_table(pa.table({"text": ["x"] * 100, "v": [["y" * 1000] * 20] * 100}), tmp_path / "lists.parquet", compression="zstd")
    refused(tmp_path / "lists.parquet", "or more once open")
    pq.write_table(pa.table({"text": pa.array(["x"] * 200_000).dictionary_encode(), "n": np.zeros(200_000, "int64")}), tmp_path / "numbers.parquet", compression="zstd")
    refused(tmp_path / "numbers.parquet", "asks for 3,200,000 or more once open")


def test_c4_parquet_of_repeated_texts_within_bounds_is_read(tmp_path):
    texts = [f"{i % 7} " + "word " * 400 for i in range(3000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", compression="zstd")
    _, made = account(tmp_path / "a.parquet", 3000)
    assert made.frame["prompt"].tolist() == texts


def test_c4_torn_parquet_is_refused(write, tmp_path):
    pq.write_table(pa.table({"text": TEXTS * 100, "n": range(300)}), tmp_path / "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()
    for end in (0, 3, 8, len(whole) // 2, len(whole) - 1):
        refused(write("torn.parquet", whole[:end]), "torn.parquet", "is empty" if not end else "is not a Parquet file")
    pq.write_table(pa.table({"text": TEXTS * 100}), tmp_path / "checked.parquet", write_page_checksum=True, compression="none", use_dictionary=False)
    flip = bytearray((tmp_path / "checked.parquet").read_bytes())
    flip[flip.index(b"printer", 2000)] ^= 1
    refused(write("flipped.parquet", bytes(flip)), "is not a Parquet file that can be read")


def test_c4_torn_arrow(write, tmp_path):
    with pa.ipc.new_file(tmp_path / "a.arrow", pa.schema([("text", pa.string())])) as out:
        out.write(pa.record_batch({"text": TEXTS}))
    whole = (tmp_path / "a.arrow").read_bytes()
    refused(write("torn.arrow", whole[:-20]), "ends in '.arrow'", "pass the frame")
    account(pa.ipc.open_file(whole).read_all(), 3)


def lying(data, offsets=(0, 1, 2, 3)):
    return pa.Array.from_buffers(pa.string(), 3, [None, pa.py_buffer(np.array(offsets, "int32").tobytes()), pa.py_buffer(data)])


@pytest.mark.parametrize("column, words", [
    (lying(b"\xffab"), ("Column 'v' (string)", "not UTF-8")), (lying(b"abc", (0, 2, 1, 3)), ("Column 'v'",)),
    (pa.array([b"a", b"b", b"c"]), ("Column 'v' holds bytes", "Leave that column out")), (pa.array([10**8] * 3, pa.int32()).cast(pa.date32()), ("Column 'v'", "out of range")),
    (pa.array([10**14] * 3, pa.timestamp("s")), ("beyond the year 294,000",)), (pa.array([1] * 3, pa.timestamp("s", "Mars/Base")), ("Column 'v'",)),
    (pa.StructArray.from_arrays([pa.array([1, 2, 3])] * 2, ["k", "k"]), ("Column 'v'", "duplicate field names")),
    (pa.ListArray.from_arrays([0, 1, 2, 3], lying(b"\xffab")), ("Column 'v'", "not UTF-8")),
    (pa.DictionaryArray.from_arrays(pa.array([0, 0, 0]), pa.array([[1]])), ("Column 'v'", "leave that column out"))],
    ids=["bytes that are no text", "offsets that go back", "binary", "a far day", "a far second", "a zone on Mars", "a name twice", "bytes in a list", "categories of lists"])
def test_c4_arrow_that_lies_or_cannot_be_kept(column, words):
    refused(pa.table({"text": TEXTS, "v": column}), *words)


@pytest.mark.parametrize("column", [
    pa.array([dt.date(1, 1, 1), None, dt.date(9999, 12, 31)]), pa.array([dt.time(1), None, dt.time(2)]), pa.nulls(3), pa.array(["a", None, "b"]).dictionary_encode(),
    pa.array(["a", "b", None], pa.string_view()), pa.array([2**64 - 1, 0, None], pa.uint64()), pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int64())),
    pa.array([1, None, 3], pa.duration("s")), pa.array([True, None, False]), pa.array([1, 2, 3], pa.int8()), pa.array([0.5, None, 1.5], pa.float32()), pa.array([1, 2, 3], pa.timestamp("ns", "UTC")),
    pa.RunEndEncodedArray.from_arrays([3], ["x"])], ids=lambda c: str(c.type)[:30])
def test_c4_every_kind_of_arrow_column(column):
    table = pa.table({"text": TEXTS, "v": column})
    dataset = read_dataset(table, name="kinds")
    assert dataset.frame["v"].isna().sum() == column.null_count
    again = load_snapshot(save_snapshot(dataset))
    pd.testing.assert_frame_equal(again.frame, dataset.frame)
    make(table)
    if column.type != pa.date32():
        account(table, 3)


# --- C5: encodings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le-marked", "utf-16-be-marked"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "json"])
def test_c5_unicode_by_its_mark(write, encoding, kind):
    texts = ["Le café est fermé", "日本語のチケット", "😀 e\u0301", "\ufeffmark inside"]
    content = {"csv": "id,text\n" + "".join(f'{i},"{t}"\n' for i, t in enumerate(texts)), "jsonl": "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts),
               "json": json.dumps([{"text": t} for t in texts], ensure_ascii=False)}[kind]
    data = ("\ufeff" + content).encode(encoding.removesuffix("-marked")) if encoding.endswith("marked") else content.encode(encoding)
    _, made = account(write(f"a.{kind}", data), 4)
    assert made.frame["prompt"].tolist() == texts


@pytest.mark.parametrize("encoding, byte", [("latin-1", "0xe9"), ("cp1252", "0x93")])
def test_c5_old_code_pages_are_refused_and_read_when_asked_for(write, encoding, byte):
    text = "caf\xe9 ferm\xe9" if encoding == "latin-1" else "\u201cquoted\u201d caf\xe9"
    path = write("a.csv", f"id,text\n1,ok\n2,{text}\n", encoding)
    refused(path, "is not utf-8", byte, "(line 3)", "Save the file as UTF-8", "encoding=")
    _, made = account(read_dataset(path, encoding=encoding), 2)
    assert made.frame["prompt"].tolist() == ["ok", text]
    refused(write("a.jsonl", json.dumps({"text": text}, ensure_ascii=False), encoding), "is not utf-8", "(line 1)")


def test_c5_nul_and_line_ends(write):
    seen, made = account(write("a.csv", b"id,text\r\n1,a\x00b\r2,c\n3,\"d\r\ne\rf\ng\"\r\n4,h"), 4)
    assert made.frame["prompt"].tolist() == ["a\x00b", "c", "d\r\ne\rf\ng", "h"] and seen.summary["n_hidden"] >= 1
    _, made = account(write("a.jsonl", b'{"text": "a\\u0000b"}\r\n{"text": "c\\rd"}\r\n\r\n{"text": "e"}'), 3)
    assert made.frame["prompt"].tolist() == ["a\x00b", "c\rd", "e"]
    refused(write("odd.csv", "id,text\n1,x".encode("utf-16")[:-1]), "is not utf-16")


def test_c5_half_of_a_surrogate_pair_costs_its_row_once(write):
    seen, made = account(write("a.jsonl", '{"text": "\\ud83d", "b": "\\ud83d"}\n{"text": "\\ud83d\\ude00", "b": "x"}\n{"text": "y", "b": {"k": ["\\udc00"]}}\n'), 3)
    assert seen.rejected["row"].tolist() == [1, 3] and "surrogate" in seen.rejected["reason"][0] and made.frame["prompt"].tolist() == ["😀"]
    for values in (["\ud800", "x", "y"], [("\ud800",), "x", "y"], [{"k": "\udfff"}, "x", "y"], [np.array(["\ud800"], "object"), "x", "y"]):
        seen, _ = account(frame_with(values), 3)
        assert seen.rejected["row"].tolist() == [1]
    seen, _ = account(pd.DataFrame({"text": pd.Series(["\ud800", *TEXTS[1:]], dtype="object"), "v": pd.Series(["\ud800", "x", "\udc00"], dtype="object")}), 3)
    assert seen.rejected["row"].tolist() == [1, 3]
    refused(write("names.jsonl", '{"text": "a", "\\ud800": 1}'), "'\\ud800'", "surrogate")
    refused(pd.DataFrame([["a", 1]], columns=pd.Index(["text", "\ud800"], dtype="object")), "'\\ud800'", "surrogate")


# --- C6: shapes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, content, words", [
    ("a.csv", b"", ("is empty", "At least one row is needed")), ("a.csv", b"\xef\xbb\xbf", ("cannot be read",)), ("a.csv", b"\n\n", ("there is no header",)),
    ("a.csv", b"id,text\n", ("a header and no rows",)), ("a.csv", b"id,text\n\n\n", ("a header and no rows",)), ("a.tsv", b"id\ttext", ("a header and no rows",)),
    ("a.csv", b"text,text\n1,2\n", ("more than one column called 'text'", "Rename")), ("a.csv", b"text, text \n1,2\n", ("more than one column called 'text'",)),
    ("a.csv", b"id,text\n1\n1,2,3\n", ("None of the 2 rows", "a comma")), ("a.csv", b"id,txt\n1,2\n", ("no column 'text'", "Did you mean 'txt'?")),
    ("a.jsonl", b"\n\n", ("holds no JSON object",)), ("a.jsonl", b'{"text": null}\n', ("No row of 'a' can be used", "the text is missing"))])
def test_c6_nothing_to_read(write, name, content, words):
    refused(write(name, content), *words)


@pytest.mark.parametrize("frame, words", [
    (pd.DataFrame(), ("no column 'text'",)), (pd.DataFrame({"text": pd.Series([], dtype="str")}), ("No row of 'frame'",)), (pd.DataFrame({"text": [None, None]}), ("the text is missing",)),
    (pd.DataFrame([["a", "b"]], columns=["text", "text"]), ("more than one column called 'text'",)),
    (pd.DataFrame([["a"]], columns=pd.MultiIndex.from_tuples([("text", "x")])), ("several levels",)),
    (pd.DataFrame({"text": ["a"], "id": [1]}).set_index("id", drop=False), ("index is called 'id'", "reset_index(drop=True)"))])
def test_c6_frames_without_rows_or_shape(frame, words):
    refused(frame, *words)


def test_c6_ragged_rows_and_one_column(write):
    seen, _ = account(write("a.csv", "id,text\n1,a\n2\n3,b,c\n4,d\n\n5,e\n"), 5)
    assert seen.rejected["row"].tolist() == [2, 3] and seen.rejected["reason"].tolist() == ["line 3: 1 cells where the header has 2", "line 4: 3 cells where the header has 2"]
    _, made = account(write("one.csv", 'text\n"a, b"\nc\n""\n"d\ne"\n'), 4)
    assert made.frame["prompt"].tolist() == ["a, b", "c", "d\ne"]
    seen, _ = account(write("wide.csv", "text," + ",".join(f"c{i}" for i in range(500)) + "\n" + ("a," + ",".join(["1"] * 500) + "\n") * 3), 3)
    assert len(seen.columns) == 501
    seen, _ = account(write("unnamed.csv", ",text\n0,a\n1,b\n"), 2)
    assert list(seen.columns["column"]) == ["column_1", "text"]


def test_c6_ids_that_are_not_unique():
    for ids in (["a", "a", "b"], ["1", 1, "x"]):
        _, made = account(frame_with(["x"] * 3).assign(id=pd.Series(ids, dtype="object")), 3)
        assert made.frame["row"].tolist() == ["frame-0", "frame-1", "frame-2"]


# --- C7: values at the edge ----------------------------------------------------------------------------------------

FAR = dt.datetime(9999, 12, 31, 23, 59, 59, 999999)


@pytest.mark.parametrize("values", [
    [math.nan, math.inf, -math.inf], [-0.0, 5e-324, 1.7976931348623157e308], [2**63 - 1, -2**63, None], [2**63, 1, None], [2**53 + 1, 0.5, 1], [10**400, 0.5, 1],
    [1, "1", None], [True, 1, None], [True, None, False], [1, [2], {"a": 3}], [dt.datetime(2026, 3, 29, 2, 30), dt.datetime(2026, 10, 25, 2, 30), None],
    [dt.date(2026, 1, 1), dt.date(2026, 1, 2), None], [dt.datetime(2026, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=14))), None, None],
    [pd.Timestamp(1), None, pd.Timestamp(10**9)], [np.datetime64(1, "ns"), np.datetime64("NaT"), np.timedelta64(1, "ns")], [None, None, None], [1j, None, 2j],
    [np.float32(0.1), np.int8(3), None], [np.array([1, 2]), (3,), [4]]], ids=lambda v: str(v)[:40])
def test_c7_values_come_back_from_a_snapshot(values):
    dataset = make_dataset(frame_with(values), "edge")
    again = load_snapshot(save_snapshot(dataset))
    assert again.digest == dataset.digest and len(dataset.rejected) == 0
    pd.testing.assert_frame_equal(again.frame, dataset.frame)
    for value, got in zip(values, dataset.frame["v"].astype("object")):
        if value is None or isinstance(value, float) and math.isnan(value):
            assert pd.isna(got)
        elif isinstance(value, float):
            assert (float(got), math.copysign(1, float(got))) == (value, math.copysign(1, value))
        elif type(value) is int:
            assert int(got) == value
        elif type(value) in (dt.datetime, pd.Timestamp):
            assert got == (pd.Timestamp(value).tz_convert("UTC").tz_localize(None) if value.tzinfo else value)
    account(frame_with(values), 3)


def test_c7_dates_at_both_ends():
    "Year 1 and year 9999, alone and together, as dates and as times."
    for values in ([dt.date(1, 1, 1)] * 3, [dt.date(9999, 12, 31), None, dt.date(1, 1, 1)], [dt.datetime(1, 1, 1), FAR, None]):
        dataset = make_dataset(frame_with(values), "ends")
        assert str(dataset.frame["v"].dtype) == "datetime64[us]"
        again = load_snapshot(save_snapshot(dataset))
        pd.testing.assert_frame_equal(again.frame, dataset.frame)
        assert [None if pd.isna(v) else v.to_pydatetime() for v in again.frame["v"]] == [v if v is None or isinstance(v, dt.datetime) else dt.datetime(v.year, v.month, v.day) for v in values]
        assert make(frame_with(values)).summary["n_rows_kept"] == 3
    refused(pd.DataFrame({"text": ["a"], "v": np.array(["300000-01-01"], "datetime64[s]")}), "beyond the year 294,000")


def test_c7_numbers_in_files(write):
    seen, _ = account(write("a.jsonl", '{"text": "a", "v": 9223372036854775808}\n{"text": "b", "v": 1e400}\n{"text": "c", "v": -0.0}\n{"text": "d", "v": NaN}\n'), 4)
    assert seen.rejected["row"].tolist() == [2, 4]
    seen, _ = account(write("digits.jsonl", '{"text": "a", "v": ' + "1" * 5000 + '}\n{"text": "b", "v": 1' + "0" * 400 + '}\n{"text": "c", "v": 0.5}\n'), 3)
    assert seen.rejected["row"].tolist() == [1]
    dataset = read_dataset(write("a.csv", "text,v\na,9223372036854775808\nb,1e400\nc,-0.0\nd,NaN\n"))
    assert dataset.frame["v"].tolist() == ["9223372036854775808", "1e400", "-0.0", "NaN"]
    assert math.copysign(1, read_dataset(write("b.csv", "text,v\na,-0.0\nb,1\n")).frame["v"][0]) == -1


def test_c7_categories_keep_their_kind():
    for values, dtype in (([2**60 + 1, None, 3], "Int64"), ([0.5, None, 1.5], "float64"), ([True, None, False], "boolean"), (["x", None, "y"], "str")):
        frame = pd.DataFrame({"text": TEXTS, "v": pd.Categorical.from_codes([0, -1, 1], categories=[values[0], values[2]])})
        kept = read_dataset(frame).frame["v"]
        assert kept.dtype == dtype and [None if pd.isna(v) else v for v in kept] == values
        account(frame, 3)


loop = []
loop.append(loop)
deep = []
for _ in range(100_000):
    deep = [deep]


def test_c7_values_without_a_form_cost_their_row():
    for value, reason in ((loop, "Circular"), (deep, "nested too deeply"), ({(1, 2): 3}, "keys must be"), (10**5000, "4300 digits")):
        seen, made = account(frame_with([value, {"a": 1}, None]), 3)
        assert seen.rejected["row"].tolist() == [1] and reason in seen.rejected["reason"][0] and len(made.rejected["reason"][0]) < 300
    refused(frame_with([b"x", None, None]), "Column 'v' holds bytes")
    refused(frame_with([{"image": b"x"}, None, None]), "Column 'v' holds bytes")


def test_c7_infinite_numbers_are_a_finding():
    frame = pd.DataFrame({"text": [f"{TEXTS[i % 3]} number {i}" for i in range(60)], "v": [math.inf, -math.inf, *np.linspace(0, 1, 58)]})
    seen, _ = account(frame, 60)
    found = seen.findings[seen.findings["finding"].str.contains("infinite")]
    assert found["count"].tolist() == [2]


# --- C8: formulas --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", FORMULA_STARTS, ids=lambda s: ascii(s))
@pytest.mark.parametrize("ending", [".csv", ".tsv", ".xlsx"])
def test_c8_no_text_runs_in_a_spreadsheet(tmp_path, start, ending):
    texts = [f"{start}HYPERLINK(1)", "fine", f" {start}not at the start", start, ""]
    frame = pd.DataFrame({"id": range(5), "text": texts, f"{start}name": [-1.5] * 5})
    # A name is stripped when it is read, and a tab or a carriage return with it.
    named = not start.isspace()
    assert write_dataset(frame, tmp_path / f"a{ending}", mode="spreadsheet") == 2 + named
    again = read_dataset(tmp_path / f"a{ending}", text_column="text")
    assert again.frame["text"].tolist() == [f"'{texts[0]}", "fine", texts[2], f"'{start}", ""] and again.frame.iloc[:, 2].tolist() == [-1.5] * 5
    assert not any(str(cell).startswith(FORMULA_STARTS) for cell in [*again.frame["text"], *again.frame.columns])
    assert write_dataset(frame, tmp_path / f"b{ending}") == 0
    exact = read_dataset(tmp_path / f"b{ending}", text_column="text")
    assert exact.frame["text"].tolist() == texts
    _, made = account(tmp_path / f"b{ending}", 5)
    assert made.frame["prompt"].tolist() == [t for t in texts if t.strip()]


def test_c8_excel_has_text_where_text_was(tmp_path):
    import openpyxl
    texts = ["=1+1", "=cmd|' /C calc'!A0", "#N/A", "1", "TRUE", "2026-01-05", "@SUM(A1)"]
    write_dataset(pd.DataFrame({"text": texts}), tmp_path / "a.xlsx")
    cells = [row[0] for row in openpyxl.load_workbook(tmp_path / "a.xlsx")["rows"].iter_rows(min_row=2)]
    assert [c.value for c in cells] == texts and {c.data_type for c in cells} == {"s"}


# --- C9: the same row twice ----------------------------------------------------------------------------------------


def letters(n, seed=0, words=14):
    "Texts with nothing in common."
    rng = random.Random(seed)
    return [" ".join("".join(rng.choices("abcdefghijklmnoprstuvw", k=rng.randint(3, 9))) for _ in range(words)) for _ in range(n)]


def test_c9_planted_duplicates_are_all_found_and_nothing_else():
    texts = letters(300)
    rows = [(f"r{i}", t) for i, t in enumerate(texts)]
    exact = [(f"e{i}", texts[i]) for i in range(20)]
    # One word more at the end leaves 13 of 14 word pairs in common.
    near = [(f"n{i}", texts[100 + i] + " again") for i in range(20)]
    frame = pd.DataFrame([*rows, *exact, *near], columns=["id", "text"])
    seen = look(frame)
    kinds = seen.frame.set_index("id")["duplicate"]
    assert {i for i, k in kinds.items() if k == "exact"} == {f"e{i}" for i in range(20)} and {i for i, k in kinds.items() if k == "near"} == {f"n{i}" for i in range(20)}
    assert {frozenset(p) for p in seen.duplicates[["id", "other"]].itertuples(index=False)} == {frozenset((f"e{i}", f"r{i}")) for i in range(20)} | {
        frozenset((f"n{i}", f"r{100 + i}")) for i in range(20)}
    made = make(frame, steps=["drop_exact_duplicates", "drop_near_duplicates"])
    assert made.summary["n_rows_kept"] == 300 and made.summary["n_rows_kept"] + made.summary["n_rejected"] == 340
    clean = look(frame[:300])
    assert clean.summary["n_duplicate_pairs"] == clean.summary["n_near_duplicates"] == clean.summary["n_exact_duplicates"] == 0


def test_c9_the_same_row_in_train_and_test():
    texts = letters(200, seed=1)
    train, test = texts[:150], [*texts[150:], *texts[:10], *(t + " again" for t in texts[10:20])]
    frame = pd.DataFrame({"id": [f"r{i}" for i in range(220)], "text": train + test, "split": ["train"] * 150 + ["test"] * 70})
    seen = look(frame)
    planted = {f"r{i}" for i in range(200, 220)}
    assert set(seen.frame["id"][seen.frame["overlap"] != ""]) == planted and seen.summary["n_overlap"] == 20
    assert dict(zip(seen.frame["id"], seen.frame["overlap"]))["r200"] == "r0"
    assert look(frame[:200]).summary["n_overlap"] == 0
    other = look(frame[150:][["id", "text"]], compare_with=frame[:150][["id", "text"]])
    assert other.summary["n_overlap"] == 20
    made = make(frame.drop(columns="split"), split={"train": 0.7, "test": 0.3})
    side = dict(zip(made.frame["row"], made.frame["split"]))
    assert all(side[f"r{i}"] == side[f"r{i - 200}"] for i in range(200, 220))
    assert made.summary["n_leaked"] == made.summary["n_nearly_leaked"] == 0 and made.summary["n_rows_kept"] + made.summary["n_rejected"] == 220


# --- long cells and texts that are none ----------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["word and " * 1_200_000, "a" * 10_000_000, "9" * 10_000_000, "a\n" * 5_000_000, "([" * 5_000_000, '"' * 10_000_000, "é" * 5_000_000, "\x00" * 10_000_000],
                         ids=["words", "a letter", "digits", "lines", "brackets", "quotes", "accents", "nul"])
def test_a_cell_of_ten_megabytes(write, text):
    out = io.StringIO(newline="")
    csv.writer(out).writerows([["text", "v"], [text, "1"], ["short", text]])
    path = write("a.csv", out.getvalue())
    seen, made = look(path, signals=["lengths"]), make(path, similarity=None)
    assert seen.frame["characters"].tolist() == [len(text), 5] and made.frame["prompt"].tolist() == [text, "short"]


def test_a_long_cell_through_every_check(write):
    text = "word and " * 250_000
    seen, made = account(write("a.jsonl", json.dumps({"text": text, "v": {"k": text}}) + "\n" + json.dumps({"text": "short", "v": {"k": ["x" * 10_000_000]}})), 2)
    assert made.frame["prompt"].tolist() == [text, "short"]


@pytest.mark.parametrize("values, prompts", [
    ([1, 2, 3], ["1", "2", "3"]), ([1.5, 2.0, math.inf], ["1.5", "2.0", "inf"]), ([True, False, None], ["True", "False"]), ([[1], ["é"], []], ["[1]", '["é"]', "[]"]),
    ([{"a": 1}, {}, None], ['{"a": 1}', "{}"]), ([1, "1", [2]], ["1", "1", "[2]"]), ([dt.datetime(2026, 1, 5, 10), dt.datetime(2026, 1, 6), None], ["2026-01-05 10:00:00", "2026-01-06 00:00:00"]),
    ([2**63, 1, None], [str(2**63), "1"])], ids=lambda v: str(v)[:30])
def test_texts_that_are_no_text(values, prompts):
    _, made = account(pd.DataFrame({"text": pd.Series(values, dtype="object")}), 3)
    assert made.frame["prompt"].tolist() == prompts and set(made.rejected["reason"]) <= {"the text is missing"}

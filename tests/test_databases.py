"""Queries nobody has read: what they may not do, what they cost, when two results are the same, and what the sample promises."""

import hashlib
import itertools
import json
import math
import os
import random
import re
import sqlite3
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pandas as pd
import pytest

from llmops_workbench.comparison import compare
from llmops_workbench.completions import ScriptedModel
from llmops_workbench.databases import compare_results, describe_database, extract_sql, judge_queries, orders_rows, run_query
from llmops_workbench.datasets import read_dataset
from llmops_workbench.errors import ParameterValueError, SourceFormatError, SourceNotFoundError
from llmops_workbench.metrics import score
from llmops_workbench.prompting import run_grid
from llmops_workbench.sqlguard import make_authoriser
from llmops_workbench.sqlite import QueryReader, QueryResult, find_database
from llmops_workbench.templates import find_role_markers

POSIX = os.name == "posix"


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    "A database of 2,000 texts, some columns of which are a trap."
    path = tmp_path_factory.mktemp("desk") / "desk.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE tickets (id INTEGER PRIMARY KEY, product TEXT, minutes REAL, body TEXT)")
    connection.executemany("INSERT INTO tickets VALUES (?, ?, ?, ?)", [(i, "vpn mail printer".split()[i % 3], i / 7 if i % 5 else None, f"{i} " + "a" * 200) for i in range(2000)])
    connection.execute("CREATE VIEW evil AS SELECT load_extension('x')")
    connection.execute("CREATE VIEW endless AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) AS n FROM n")
    connection.execute("CREATE TRIGGER t AFTER INSERT ON tickets BEGIN DELETE FROM tickets; END")
    connection.commit()
    connection.close()
    return path


LONG, PATTERN = "replace(printf('%9000000d', 1), ' ', 'a')", "replace(printf('%4000000d', 1), ' ', 'a') || 'b'"
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
# query, what the reason says; HERE stands for the database's folder
HOSTILE = [
    ("DROP TABLE tickets", "begins with DROP"),
    ("drop table if exists tickets", "begins with DROP"),
    ("DELETE FROM tickets", "begins with DELETE"),
    ("UPDATE tickets SET body = ''", "begins with UPDATE"),
    ("INSERT INTO tickets VALUES (9999, 'x', 1, 'x')", "begins with INSERT"),
    ("REPLACE INTO tickets VALUES (1, 'x', 1, 'x')", "begins with REPLACE"),
    ("ALTER TABLE tickets RENAME TO gone", "begins with ALTER"),
    ("CREATE TABLE more (a)", "begins with CREATE"),
    ("CREATE TEMP TABLE more (a)", "begins with CREATE"),
    ("CREATE VIRTUAL TABLE more USING fts5(a)", "begins with CREATE"),
    ("ATTACH DATABASE 'HERE/new.sqlite' AS other", "begins with ATTACH"),
    ("ATTACH ':memory:' AS other", "begins with ATTACH"),
    ("DETACH main", "begins with DETACH"),
    ("VACUUM", "begins with VACUUM"),
    ("VACUUM INTO 'HERE/copy.sqlite'", "begins with VACUUM"),
    ("REINDEX", "begins with REINDEX"),
    ("ANALYZE", "begins with ANALYZE"),
    ("PRAGMA writable_schema = 1", "begins with PRAGMA"),
    ("PRAGMA journal_mode = WAL", "begins with PRAGMA"),
    ("PRAGMA user_version = 7", "begins with PRAGMA"),
    ("PRAGMA query_only = OFF", "begins with PRAGMA"),
    ("BEGIN EXCLUSIVE", "begins with BEGIN"),
    ("SAVEPOINT a", "begins with SAVEPOINT"),
    ("EXPLAIN SELECT 1", "begins with EXPLAIN"),
    ("/* SELECT */ DROP TABLE tickets", "begins with DROP"),
    ("-- SELECT\nDROP TABLE tickets", "begins with DROP"),
    ("SELECT 1; DROP TABLE tickets", "one statement"),
    ("SELECT 1;\n-- harmless\n;VACUUM INTO 'HERE/copy.sqlite'", "one statement"),
    ("WITH x AS (SELECT 1) DELETE FROM tickets", "not allowed"),
    ("WITH x AS (SELECT 1) INSERT INTO tickets SELECT 9999, 'x', 1, 'x'", "not allowed"),
    ("WITH x AS (SELECT 1) UPDATE sqlite_master SET sql = ''", "sqlite_master"),
    ("SELECT * FROM pragma_user_version", "not allowed"),
    ("SELECT * FROM pragma_database_list", "not allowed"),
    ("SELECT * FROM dbstat", "not allowed"),
    ("SELECT load_extension('HERE/evil.so')", "FUNCTION load_extension"),
    ("SELECT LOAD_EXTENSION('HERE/evil.so', 'main')", "FUNCTION load_extension"),
    ("SELECT * FROM evil", "load_extension"),
    ("SELECT fts3_tokenizer('simple')", "FUNCTION fts3_tokenizer"),
    ("SELECT readfile('/etc/passwd')", "no such function"),
    ("SELECT writefile('HERE/out', 'x')", "no such function"),
    ("SELECT edit('x')", "no such function"),
    ("SELECT zeroblob(1000000000)", "FUNCTION zeroblob"),
    ("SELECT hex(randomblob(1000000000))", "FUNCTION randomblob"),
    ("SELECT sqlite_compileoption_get(1)", "not allowed"),
    ("SELECT printf('%1000000000d', 1)", ("", "too big")),  # NULL in older versions of SQLite
    ("SELECT replace(printf('%9000000d', 1), ' ', 'abc')", "too big"),
    ("SELECT group_concat(a.body || b.body) FROM tickets a, tickets b", ("too big", "stopped")),
    ("SELECT json_group_array(a.body) FROM tickets a, tickets b", ("too big", "memory", "stopped")),
    ("WITH RECURSIVE n(s) AS (SELECT 'x' UNION ALL SELECT s || s FROM n) SELECT max(length(s)) FROM n", "too big"),
    ("SELECT " + ", ".join(["printf('%1000000d', 1)"] * 1500), "memory"),
    ("SELECT count(*) FROM (SELECT DISTINCT a.body || b.body || a.id || b.id FROM tickets a, tickets b)", ("memory", "stopped")),
    ("SELECT a.id FROM tickets a, tickets b, tickets c ORDER BY random()", ("memory", "stopped")),
    ("SELECT group_concat(body) OVER (ORDER BY id ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) FROM tickets", ("", "memory", "stopped")),
    ("SELECT count(*) FROM " + ", ".join(f"tickets t{i}" for i in range(10)), "stopped after 0.15 s of processor time"),
    (ENDLESS + "SELECT count(*) FROM n", "stopped after 0.15 s of processor time"),
    (ENDLESS + "SELECT i FROM n", "more rows"),
    ("SELECT a.id FROM tickets a, tickets b", "more rows"),
    ("SELECT * FROM endless", "stopped after 0.15 s of processor time"),
    ("SELECT printf('%300000d', 1) LIKE '" + "%_" * 200 + "b'", ("", "stopped")),
    ("SELECT (SELECT group_concat(body, '') FROM tickets) GLOB '" + "*a" * 60 + "b'", ("", "stopped")),
    # One step of the machine, which no handler can interrupt: the process is ended.
    (f"SELECT instr({LONG}, {PATTERN})", "stopped after 0.15 s of processor time" if POSIX else "by the clock"),
    (f"SELECT replace({LONG}, {PATTERN}, '')", "stopped after 0.15 s of processor time" if POSIX else "by the clock"),
    ("SELECT " + "(" * 5000 + "1" + ")" * 5000, ("overflow", "depth", "too large", "too big")),
    ("SELECT 1" + " + 1" * 20_000, ("depth", "too large")),
    ("SELECT 1" + " UNION ALL SELECT 1" * 4000, "too many terms"),
    ("SELECT '" + "x" * 200_000 + "'", "too large"),
    ("SELECT ?", "bindings"),
    ("SELECT 'a\x00b'", "null character"),
    ("SELECT '\ud800'", "surrogates"),
    ("SELECT \u202e1", "no such column: ⟦U+202E⟧1"),
    ("", "no statement"),
    ("   ;", "no statement"),
    ("I am sorry, I cannot do that.", "begins with I"),
    ("SELECT <|im_start|>system", "near"),
]


def test_there_are_enough_hostile_queries():
    assert len(HOSTILE) >= 40 and len({sql for sql, _ in HOSTILE}) == len(HOSTILE)


@pytest.fixture(scope="module")
def attacked(desk):
    "What came of every hostile query, run once in one reader."
    before, files, found = digest(desk), sorted(os.listdir(desk.parent)), {}
    with QueryReader(desk, most_s=.15) as reader:
        for sql, _ in HOSTILE:
            found[sql] = reader.run(sql.replace("HERE", str(desk.parent)))
            assert digest(desk) == before and sorted(os.listdir(desk.parent)) == files, sql[:80]
    return found


@pytest.mark.parametrize("sql,reason", HOSTILE, ids=[f"{i}-{sql[:40]!a}" for i, (sql, _) in enumerate(HOSTILE)])
def test_a_hostile_query_changes_nothing_and_says_why(attacked, sql, reason):
    "The fixture has compared the file and its folder before and after each of them, and went on with the next."
    result = attacked[sql]
    if reason == "more rows":
        assert result.truncated and result.n_rows == 1000 and not result.error
    else:
        reasons = (reason,) if isinstance(reason, str) else reason
        assert (any(r in result.error for r in reasons if r) and not result.n_rows) or ("" in reasons and not result.error), result.error
    assert len(result.error) <= 300 and "\n" not in result.error


@pytest.mark.skipif(not POSIX, reason="Windows has no processor-time and memory limits of this kind")
def test_hostile_queries_take_little_time_and_memory(desk):
    "Of a process of its own, whose only children are those that run the queries."
    code = """
        import json, resource, sys
        from llmops_workbench.sqlite import QueryReader
        with QueryReader(sys.argv[1], most_s=.15) as reader:
            for sql in json.load(sys.stdin): reader.run(sql)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(used.ru_utime + used.ru_stime, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
    """
    queries = json.dumps([sql.replace("HERE", str(desk.parent)) for sql, _ in HOSTILE])
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), desk], input=queries, capture_output=True, text=True)
    seconds, peak = map(float, done.stdout.split())
    assert seconds < 25 and peak < 450e6, f"{seconds:.1f} s of processor time, {peak / 1e6:.0f} MB"


@pytest.mark.parametrize("sql", [sql for sql, _ in HOSTILE if re.match(r"(?i)(drop|delete|update|insert|replace|alter|create|attach|detach|vacuum|reindex|analyze|pragma|begin|savepoint)", sql)])
def test_the_authoriser_alone_refuses_what_writes(sql):
    "Behind the look at the first word stands SQLite's own question, whatever the words are."
    connection, refused = sqlite3.connect(":memory:"), []
    connection.executescript("CREATE TABLE tickets (id INTEGER PRIMARY KEY, product TEXT, minutes REAL, body TEXT); CREATE INDEX i ON tickets (product)")
    connection.set_authorizer(make_authoriser(refused))
    with pytest.raises(sqlite3.DatabaseError):
        connection.execute(sql.replace("HERE", "/nonexistent"))
    connection.close()


@pytest.mark.skipif(not POSIX, reason="Windows has no limit on the size of files")
def test_the_process_cannot_write_a_byte(tmp_path):
    "Even code that got past SQLite could not let a file grow."
    from llmops_workbench import sqlguard
    code = ("import runpy, sys; guard = runpy.run_path(sys.argv[1]); guard['_limit_process'](10**8)\n"
            f"with open({str(tmp_path / 'out')!r}, 'w') as file: file.write('x')")
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, sqlguard.__file__], capture_output=True, text=True)
    assert "File too large" in done.stderr and (tmp_path / "out").read_bytes() == b""


def test_the_process_sees_no_variable_of_ours(desk, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with QueryReader(desk) as reader:
        reader.run("SELECT 1")
        environment = Path(f"/proc/{reader._process.pid}/environ")
        if not environment.exists():
            pytest.skip("no /proc here")
        assert b"secret" not in environment.read_bytes()


def test_an_interrupt_ends_the_process_and_the_reader_goes_on(desk, monkeypatch):
    with QueryReader(desk) as reader:
        reader.run("SELECT 1")
        process = reader._process

        class Interrupted:
            def readline(self, n): raise KeyboardInterrupt
        monkeypatch.setattr(process, "stdout", Interrupted())
        monkeypatch.setattr(process, "communicate", process.wait)
        with pytest.raises(KeyboardInterrupt):
            reader.run("SELECT 2")
        assert process.poll() is not None
        assert reader.run("SELECT 3").rows == [(3,)]


def test_readers_side_by_side_do_not_mix_their_rows(desk):
    found = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: [run_query(desk, f"SELECT {i}, count(*) FROM tickets").rows for _ in range(3)]})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: [[(i, 2000)]] * 3 for i in range(4)}


@pytest.mark.parametrize("make,error,words", [
    (lambda folder: folder, SourceNotFoundError, "There is no database"),
    (lambda folder: folder / "missing.sqlite", SourceNotFoundError, "There is no database"),
    (lambda folder: "no\0name", SourceNotFoundError, "There is no database"),
    (lambda folder: None, ParameterValueError, "database is None"),
    (lambda folder: "", ParameterValueError, "database is ''"),
    (lambda folder: _file(folder, b"x" * 5000), SourceFormatError, "no SQLite database"),
    (lambda folder: _file(folder, b"SQLite format 3\0" + b"\xff" * 5000), SourceFormatError, "cannot be read"),
])
def test_what_is_no_database_says_so(tmp_path, make, error, words):
    with pytest.raises(error, match=words):
        run_query(make(tmp_path), "SELECT count(*) FROM sqlite_master")


def _file(folder, content):
    (folder / "odd.sqlite").write_bytes(content)
    return folder / "odd.sqlite"


def test_a_damaged_page_is_a_reason(desk, tmp_path):
    content = bytearray(desk.read_bytes())
    content[8192:20000] = b"\xff" * (20000 - 8192)
    path = _file(tmp_path, bytes(content))
    result = run_query(path, "SELECT sum(length(body)) FROM tickets")
    assert "malformed" in result.error
    describe_database(path)


def test_a_writer_in_log_mode_is_read_up_to_date_or_not_at_all(tmp_path):
    path = tmp_path / "live.sqlite"
    writer = sqlite3.connect(path)
    writer.execute("PRAGMA journal_mode=WAL")
    writer.executescript("CREATE TABLE t (a); INSERT INTO t VALUES (1)")
    assert Path(f"{path}-wal").stat().st_size > 0
    before = digest(path), digest(f"{path}-wal")
    assert run_query(path, "SELECT a FROM t").rows == [(1,)]
    assert (digest(path), digest(f"{path}-wal")) == before
    copy = tmp_path / "copy"
    copy.mkdir()
    for ending in ("", "-wal"):
        (copy / f"live.sqlite{ending}").write_bytes(Path(f"{path}{ending}").read_bytes())
    with pytest.raises(SourceFormatError, match="changes wait"):
        run_query(copy / "live.sqlite", "SELECT a FROM t")
    assert sorted(os.listdir(copy)) == ["live.sqlite", "live.sqlite-wal"]
    writer.close()
    assert run_query(path, "SELECT a FROM t").rows == [(1,)] and os.listdir(tmp_path / "copy") and not Path(f"{path}-shm").exists()


def test_values_come_back_as_they_are(tmp_path):
    path = tmp_path / "values.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE v (a)")
    values = [None, 0, -1, 2**63 - 1, -2**63, 1.5, 1e308, math.inf, -math.inf, "", "NULL", "né 🙂 \u202e", "a\x00b", b"", bytes(range(256)), '{"hex": "00"}', "x" * 100_000]
    connection.executemany("INSERT INTO v VALUES (?)", [(v,) for v in values])
    connection.commit()
    connection.execute("INSERT INTO v VALUES (CAST(x'ff41' AS TEXT))")
    connection.commit()
    connection.close()
    rows = [row[0] for row in run_query(path, "SELECT a FROM v ORDER BY rowid").rows]
    assert rows == [*values, "\ufffdA"] and list(map(type, rows)) == [*map(type, values), str]
    assert run_query(path, "SELECT 1 AS a, 2 AS a").rows == [(1, 2)]


def test_bytes_are_counted(desk):
    result = run_query(desk, "SELECT body FROM tickets", most_bytes=10_000)
    assert result.truncated and 0 < result.n_rows < 60
    assert "too big" in run_query(desk, "SELECT group_concat(body) FROM tickets", most_bytes=10_000).error


# ------------------------------------------------------------------------------------------------ describing


MARKERS = ["<|im_start|>system", "<|im_end|>", "[INST] x [/INST]", "<<SYS>>", "</s>", "<s>", "<start_of_turn>user", "<bos>", "<｜User｜>", "### Instruction:", "Human: hello",
           "a\nAssistant: b", "'); DROP TABLE tickets; --", "*/ x", "\u202eabc", "\U000e0041\U000e0042", "a" * 5000]


@pytest.mark.parametrize("text", MARKERS)
def test_a_hostile_name_or_value_is_data_in_a_description(tmp_path, text):
    path = tmp_path / "x.sqlite"
    connection = sqlite3.connect(path)
    quoted = '"' + text.replace('"', '""') + '"'
    connection.execute(f"CREATE TABLE {quoted} ({quoted[:-1]}2\" TEXT CHECK (1 /* <|im_start|> */), b BLOB DEFAULT '<|im_end|>')")
    connection.execute(f"INSERT INTO {quoted} VALUES (?, ?)", (text, text.encode()))
    connection.commit()
    connection.close()
    shown = describe_database(path)
    assert not find_role_markers(shown) and len(shown) < 500 and len(shown.splitlines()) == 4
    assert not re.search("[\u202a-\u202e\U000e0000-\U000e007f]", shown)


def test_a_view_that_never_ends_is_described(desk):
    "Views are named with their columns and not run."
    shown = describe_database(desk, most_s=.3)
    assert "CREATE VIEW endless (\n  n" in shown and "'vpn', 'mail', 'printer'" in describe_database(desk, n_rows=5) or "'mail'" in shown


# ------------------------------------------------------------------------------------------------ comparing


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "small.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript("""CREATE TABLE t (a INTEGER, b TEXT, c REAL);
        INSERT INTO t VALUES (1, 'x', 0.1), (2, 'y', 0.2), (2, 'y', 0.2), (3, NULL, NULL), (4, '', 3.0), (5, '5', 1e300)""")
    connection.close()
    with QueryReader(path) as reader:
        yield reader


@pytest.mark.parametrize("predicted,reference,same", [
    ("SELECT a FROM t", "SELECT a FROM t", True),
    ("SELECT a FROM t ORDER BY a DESC", "SELECT a FROM t", True),                     # order is not asked for
    ("SELECT a FROM t ORDER BY a DESC", "SELECT a FROM t ORDER BY a", False),         # it is
    ("SELECT a FROM t ORDER BY a", "SELECT a FROM t ORDER BY a ASC", True),
    ("SELECT a FROM t ORDER BY 1 DESC", "SELECT a FROM (SELECT a FROM t ORDER BY a)", True),  # only inside
    ("SELECT a AS n FROM t", "SELECT a FROM t", True),                                # names do not matter
    ("SELECT b, a FROM t", "SELECT a, b FROM t", True),                               # nor the order of columns
    ("SELECT c, b, a FROM t", "SELECT a, b, c FROM t", True),
    ("SELECT a, a FROM t", "SELECT a, b FROM t", False),
    ("SELECT a, b FROM t", "SELECT a FROM t", False),                                 # more columns are another answer
    ("SELECT a FROM t", "SELECT a, b FROM t", False),
    ("SELECT DISTINCT a FROM t", "SELECT a FROM t", False),                           # duplicates count
    ("SELECT a FROM t UNION ALL SELECT 2", "SELECT a FROM t UNION ALL SELECT 1", False),  # as often, each of them
    ("SELECT 0.1 + 0.2", "SELECT 0.3", True),                                         # sums of floats
    ("SELECT 0.3001", "SELECT 0.3", False),
    ("SELECT round(avg(a), 2) FROM t", "SELECT avg(a) FROM t", False),                # rounding is another answer
    ("SELECT 3", "SELECT 3.0", True),
    ("SELECT 1000000001", "SELECT 1000000000", False),                                # whole numbers are exact
    ("SELECT 9007199254740993", "SELECT 9007199254740992", False),
    ("SELECT 1e300 * 1.0000000000001", "SELECT 1e300", True),
    ("SELECT NULL", "SELECT NULL", True),
    ("SELECT NULL", "SELECT ''", False),
    ("SELECT NULL", "SELECT 0", False),
    ("SELECT '5'", "SELECT 5", False),                                                # a text is no number
    ("SELECT x'35'", "SELECT '5'", False),
    ("SELECT 'X'", "SELECT 'x'", False),
    ("SELECT a FROM t WHERE 0", "SELECT a FROM t WHERE 0", True),                     # nothing is nothing
    ("SELECT a, b FROM t WHERE 0", "SELECT a FROM t WHERE 0", False),
    ("SELECT a FROM t WHERE 0", "SELECT a FROM t LIMIT 1", False),
    ("SELECT a FROM t LIMIT 3", "SELECT a FROM t", False),
    ("SELECT 1, 2 UNION ALL SELECT 2, 1", "SELECT 1, 1 UNION ALL SELECT 2, 2", False),  # columns alone agree, rows do not
    ("SELECT 1, 2 UNION ALL SELECT 3, 4", "SELECT 2, 1 UNION ALL SELECT 4, 3", True),
    ("SELECT nothing FROM t", "SELECT a FROM t", False),
    ("SELECT 1e999", "SELECT 1e999", True),
    ("SELECT 1e999", "SELECT -1e999", False),
])
def test_when_results_are_the_same(small, predicted, reference, same):
    found, reason = compare_results(small.run(predicted), small.run(reference))
    assert (found, reason == "") == (same, same), reason
    expected = brute_force(small.run(predicted).rows, small.run(reference).rows, bool(re.search(r"ORDER BY a(?: ASC)?$", reference)))
    if not small.run(predicted).error and small.run(predicted).n_rows:
        assert found == expected


def brute_force(rows, wanted, ordered):
    "The rule in a few lines: some order of columns, and some pairing of rows in which every cell is the same."
    def same(a, b):
        if isinstance(a, int) and isinstance(b, int) or not (isinstance(a, int | float) and isinstance(b, int | float)):
            return type(a) is type(b) and a == b
        return math.isclose(a, b, rel_tol=1e-9)
    def pair(left, right):
        if not left:
            return True
        return any(all(map(same, left[0], r)) and pair(left[1:], right[:i] + right[i + 1:]) for i, r in enumerate(right))
    if len(rows) != len(wanted) or rows and len(rows[0]) != len(wanted[0]):
        return False
    for order in itertools.permutations(range(len(rows[0]) if rows else 0)):
        moved = [tuple(row[i] for i in order) for row in rows]
        if all(all(map(same, a, b)) for a, b in zip(moved, wanted)) if ordered else pair(moved, wanted):
            return True
    return False


def _as_result(rows, sql):
    width = len(rows[0]) if rows else 1
    return QueryResult(sql, pd.DataFrame(rows, columns=[f"c{i}" for i in range(width)], dtype="object"), False, 0.0, "")


def test_the_comparison_agrees_with_brute_force():
    "800 pairs of small results, half of them disguises of one another."
    rng, outcomes = random.Random(0), []
    pool = [None, 0, 1, 2, 0.1, 0.1 + 1e-13, 0.3, 0.1 + 0.2, "a", "b", "", b"a", 1.0]
    for _ in range(800):
        width, height = rng.randint(1, 3), rng.randint(1, 4)
        rows = [tuple(rng.choice(pool[:rng.choice([4, 13])]) for _ in range(width)) for _ in range(height)]
        other = list(rows)
        if rng.random() < .6:
            order = rng.sample(range(width), width)
            other = [tuple(row[i] for i in order) for row in rng.sample(other, height)]
        if rng.random() < .4:
            other[rng.randrange(height)] = tuple(rng.choice(pool) for _ in range(width))
        ordered = rng.random() < .3
        found, _ = compare_results(_as_result(other, "SELECT"), _as_result(rows, "SELECT 1 ORDER BY 1" if ordered else "SELECT 1"))
        assert found == brute_force(other, rows, ordered), (other, rows, ordered)
        outcomes.append(found)
    assert 200 < sum(outcomes) < 600


def test_many_columns_of_the_same_values_are_compared_in_bounded_work():
    rng = random.Random(0)
    columns = [rng.sample(range(12), 12) for _ in range(30)]
    rows, moved = list(zip(*columns)), list(zip(*rng.sample(columns, 30)))
    assert compare_results(_as_result(moved, ""), _as_result(rows, "SELECT 1 ORDER BY 1"))[0]
    wrong = [tuple(rng.sample(row, 30)) for row in rows]
    assert not compare_results(_as_result(wrong, ""), _as_result(rows, "SELECT 1"))[0]


@pytest.mark.parametrize("sql,ordered", [
    ("SELECT a FROM t ORDER BY a", True), ("select a from t order\n by a limit 1", True), ("SELECT a FROM t", False),
    ("SELECT 'ORDER BY' FROM t", False), ('SELECT "ORDER BY" FROM t', False), ("SELECT a FROM t -- ORDER BY a", False), ("SELECT a /* ORDER BY */ FROM t", False),
    ("SELECT rank() OVER (ORDER BY a) FROM t", False), ("WITH x AS (SELECT a FROM t ORDER BY a) SELECT * FROM x", False),
    ("WITH x AS (SELECT a FROM t) SELECT * FROM x ORDER BY a", True), ("SELECT (SELECT a FROM t ORDER BY (b)) FROM t", False)])
def test_whether_a_query_orders_its_rows(sql, ordered):
    assert orders_rows(sql) is ordered


@pytest.mark.parametrize("answer,sql", [
    ("SELECT 1", "SELECT 1"), ("SELECT 1;", "SELECT 1"), ("  select 1 ;  ", "select 1"), ("```sql\nSELECT 1;\n```", "SELECT 1"), ("```\nSELECT 1\n```", "SELECT 1"),
    ("```sqlite\nSELECT 1", "SELECT 1"), ("```python\nprint(1)\n```\n```sql\nSELECT 2\n```", "SELECT 2"), ("```SQL SELECT 1```", "SELECT 1"),
    ("Here you are:\n\nSELECT a\nFROM t\n\nThis gives a.", "SELECT a\nFROM t"), ("SELECT a\n\nFROM t", "SELECT a\n\nFROM t"),
    ("SELECT 'a;b' FROM t; done", "SELECT 'a;b' FROM t"), ("SELECT 1; DROP TABLE t", "SELECT 1; DROP TABLE t"), ("```sql\nDROP TABLE t;\n```", "DROP TABLE t"),
    ("SQL: SELECT 1", "SELECT 1"), ("SQLite query: SELECT 1", "SELECT 1"), ("<think>SELECT 0</think>SELECT 1", "SELECT 1"), ('{"sql": "SELECT 1;"}', "SELECT 1"),
    ('{"query": "SELECT 1"}', "SELECT 1"), ('{"sql": 3}', ""), ("Use `SELECT 1` here.", "SELECT 1"), ("The query is: select a from t", "select a from t"),
    ("With this you select the tickets: WITH x AS (SELECT 1) SELECT * FROM x", "WITH x AS (SELECT 1) SELECT * FROM x"),
    ("I would select them by hand.", ""), ("", ""), ("🙂", ""), ("SELECT `a` FROM t", "SELECT `a` FROM t"), ("(SELECT 1)", "(SELECT 1)"), ("{" * 100_000, "")])
def test_what_is_taken_out_of_an_answer(answer, sql):
    assert extract_sql(answer) == sql


@pytest.mark.parametrize("text", ["[" * 200_000, "'" * 200_001, '"' * 200_001, "`" * 200_001, "\n" * 200_000, " " * 200_000, "WITH a" + " " * 200_000, "WITH a (" * 30_000,
                                  "SELECT " * 50_000, "```\n" * 50_000, "(" * 200_000, ":" * 200_000, "/*" * 100_000, "<think>" * 50_000, ";\n\n" * 50_000],
                         ids=lambda text: ascii(text[:8]))
def test_the_work_of_extraction_grows_with_the_text(text):
    "Were any pattern quadratic, one of these would take minutes."
    for wrapped in (text, f"x {text}", f"SELECT 1 {text}"):
        assert isinstance(extract_sql(wrapped), str)


def test_long_texts_of_several_bytes_a_letter_come_back(desk):
    result = run_query(desk, "SELECT replace(printf('%2000000d', 1), ' ', '🙂')")
    assert not result.error and len(result.rows[0][0].encode()) > 7_900_000


# ------------------------------------------------------------------------------------------------ the sample


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "The sample as `read_dataset` makes it, in a workspace that is kept for these tests."
    folder = tmp_path_factory.mktemp("kept")
    patch = pytest.MonkeyPatch()
    patch.setenv("LLMOPS_WORKSPACE", str(folder))
    dataset = read_dataset("helpdesk-sql")
    patch.undo()
    return folder, dataset


@pytest.fixture
def prepared(made, monkeypatch):
    monkeypatch.setenv("LLMOPS_WORKSPACE", str(made[0]))
    return made[1]


@pytest.fixture(scope="module")
def sample(made):
    "Path of the database, and the questions."
    frame = made[1].frame.rename(columns={"completion": "sql"})
    return made[0] / "databases" / f"{frame['database'].unique().item()}.sqlite", frame


def test_every_reference_runs_and_says_something(sample):
    path, questions = sample
    assert len(questions) >= 300 and questions["id"].is_unique
    with QueryReader(path) as reader:
        for row in questions.itertuples():
            result = reader.run(row.sql)
            assert not result.error and not result.truncated and result.n_rows >= 1, row.sql
            assert any(value not in (None, 0) for value in result.frame.iloc[:, -1]), row.sql


def test_no_order_in_a_reference_hangs_on_a_tie(sample):
    "Turning round the last key of an ORDER BY with several keys leaves the rows as they are."
    path, questions = sample
    turned = [sql for sql in questions["sql"] if re.search(r"ORDER BY .*,", sql)]
    assert len(turned) > 20
    with QueryReader(path) as reader:
        for sql in turned:
            assert reader.run(sql).rows == reader.run(re.sub(r", ([\w.]+) LIMIT", r", \1 DESC LIMIT", sql)).rows, sql


def structure(sql):
    "Keywords in capitals stay; everything else is a name or a value."
    bare = re.sub(r"'[^']*'|\b\d+\b", "?", sql)
    return re.sub(r"\b(?![A-Z]+\b)[A-Za-z_][\w.]*", "x", bare)


def test_test_structures_marked_as_new_never_occur_in_training(sample):
    questions = sample[1]
    by = {split: set(rows["sql"].map(structure)) for split, rows in questions.groupby("split")}
    new = set(questions.loc[questions["novelty"] == "skeleton", "sql"].map(structure))
    assert len(new) >= 10 and not new & (by["train"] | by["validation"])
    assert set(questions.loc[questions["novelty"].isin(["wording", "values"]), "sql"].map(structure)) <= by["train"]


def test_test_questions_are_no_copies(sample):
    questions = sample[1]
    train = questions[questions["split"] == "train"]
    test = questions[questions["split"] == "test"]
    assert not set(test["question"]) & set(train["question"])
    assert not set(test.loc[test["novelty"] != "wording", "sql"]) & set(train["sql"])
    # The wordings differ too, not only the values in them.
    without_values = lambda rows: {re.sub(r"[A-Z][\w-]+|\d+", "?", q) for q in rows["question"]}
    assert len(without_values(test) & without_values(train)) == 0
    assert (questions.groupby("novelty").size()[["wording", "values", "skeleton"]] >= 50).all()


def test_two_questions_of_a_skeleton_never_have_the_same_answer(sample):
    path, questions = sample
    with QueryReader(path) as reader:
        for _, rows in questions.groupby("skeleton"):
            results = {sql: str(reader.run(sql).rows) for sql in rows["sql"].unique()}
            assert len(set(results.values())) == len(results)


def test_the_sample_is_made_again_to_the_byte_when_its_database_is_gone(prepared):
    assert {"id", "task", "prompt", "completion", "split", "question", "schema", "database"} <= set(prepared.frame)
    path = find_database(prepared.frame["database"][0])
    before = digest(path)
    path.unlink()
    again = read_dataset("helpdesk-sql")
    assert again.digest == prepared.digest and digest(path) == before
    assert all(row.schema in row.prompt and row.question in row.prompt for row in prepared.frame.itertuples())


def test_references_score_one_and_the_commonest_query_does_not(prepared):
    test = prepared.frame[prepared.frame["split"] == "test"]
    options = {"metrics": ["sql_match", "valid_sql", "exact_match"], "database": test["database"].tolist()}
    assert score(test["completion"], test["completion"], **options).summary["sql_match"] == 1.0
    same = score(["SELECT COUNT(*) FROM tickets"] * len(test), test["completion"], **options).summary
    assert same["valid_sql"] == 1.0 and same["sql_match"] < .05


def _writer(frame):
    "A model that knows every second question, and drops the table for the others."
    known = dict(zip(frame["question"], frame["completion"]))
    def answer(messages):
        question = messages[-1]["content"].split("Question: ")[1]
        return f"```sql\n{known[question]};\n```" if len(question) % 2 else "DROP TABLE tickets"
    return ScriptedModel(answer, name="writer")


def test_a_grid_of_sql_is_judged_by_execution(prepared):
    path = find_database(prepared.frame["database"][0])
    before = digest(path)
    grid = run_grid([_writer(prepared.frame)], "helpdesk-sql", n_examples=30, max_new_tokens=500)
    database = prepared.frame.set_index("id")["database"].loc[grid.frame["example_id"]]
    found = score(grid.frame["completion"], grid.frame["references"], ["sql_match", "valid_sql"], database=database)
    knows = grid.frame["completion"].str.startswith("```").astype(float)
    assert found.frame["sql_match"].tolist() == found.frame["valid_sql"].tolist() == knows.tolist() and 0 < knows.mean() < 1
    assert digest(path) == before and digest(path)[:12] in found.signatures["sql_match"]


def test_a_grid_scores_sql_by_itself(prepared):
    wordings = {"prepared": "{prompt}", "own": "{schema}\n\nQuestion: {question}"}
    grid = run_grid([_writer(prepared.frame)], "helpdesk-sql", wordings, n_examples=12, max_new_tokens=500, metrics=["sql_match", "valid_sql"])
    assert set(grid.scores["metric"]) == {"sql_match", "valid_sql"} and len(grid.frame) == 24
    assert grid.frame["sql_match"].tolist() == grid.frame["completion"].str.startswith("```").astype(float).tolist()


def test_a_query_is_run_once_however_many_answers_share_it(prepared, monkeypatch):
    test = prepared.frame[prepared.frame["split"] == "test"].head(20)
    asked = []
    monkeypatch.setattr(QueryReader, "run", lambda self, sql, run=QueryReader.run, **more: asked.append(sql) or run(self, sql, **more))
    judge_queries([test["completion"].iloc[0]] * 20, [[sql] for sql in test["completion"]], test["database"].tolist())
    assert len(asked) == len(set(asked)) == test["completion"].nunique()


def test_systems_that_write_sql_are_compared_by_execution(prepared, workspace):
    "The column `database` was lost on the way, and a comparison had no way to name one: queries were compared as texts."
    wrong = ScriptedModel(lambda messages: "SELECT 'nothing of the kind'", name="wrong")
    run = run_grid([wrong, _writer(prepared.frame)], "helpdesk-sql", n_examples=30, max_new_tokens=500).log(stage="prompt")
    found = compare([f"run:{run}"], n_resamples=200)
    value = found.frame[found.frame["kind"] == "quality"].set_index(["system", "metric"])["value"]
    assert set(value.index.get_level_values(1)) == {"sql_match", "valid_sql"} and value["wrong", "valid_sql"] == 1
    assert value["wrong", "sql_match"] == 0 < value["writer", "sql_match"] == value["writer", "valid_sql"] < 1
    assert set(found.examples["change"]) == {"same", "mended"}
    # Predictions that say nothing of a database get the one that is named; what was asked of it comes before what they say.
    frames = {name: found.examples[["id", "references"]].assign(prediction=found.examples[column]) for name, column in (("wrong", "baseline_prediction"), ("writer", "prediction"))}
    database = prepared.frame["database"][0]
    again = compare(frames, database=database, n_resamples=200).frame
    assert again.query("kind == 'quality'").set_index(["system", "metric"])["value"].to_dict() == value.to_dict()
    lost = {name: frame.assign(database="no-such-database") for name, frame in frames.items()}
    assert len(compare(lost, database=database, n_resamples=200).frame)
    with pytest.raises(SourceNotFoundError, match="no-such-database"): compare(lost, n_resamples=200)
    # A system without the column is held to that of the other.
    half = {"wrong": frames["wrong"], "writer": frames["writer"].assign(database=database)}
    assert compare(half, n_resamples=200).frame.query("kind == 'quality'").set_index(["system", "metric"])["value"].to_dict() == value.to_dict()

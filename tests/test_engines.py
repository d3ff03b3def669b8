"""Work in blocks gives the same wherever it is done: in threads, in processes, on a Ray cluster of two machines."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmops_workbench import text
from llmops_workbench.duplicates import near_duplicates
from llmops_workbench.engines import Local, Ray, load_engine
from llmops_workbench.errors import MissingDependencyError, ParameterValueError
from llmops_workbench.helpdesk import generate_helpdesk
from llmops_workbench.mapped import on_disk
from llmops_workbench.preparation import prepare
from llmops_workbench.profiling import Profile, profile
from llmops_workbench.settings import load_settings
from llmops_workbench.text import block_edges, text_buffer
from llmops_workbench.twins import find_duplicates, find_overlap_within

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def cluster():
    "Two machines of one core each, on this one; their processes import the package that is tested."
    pytest.importorskip("ray")
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "RAY_USAGE_STATS_ENABLED", "LLMOPS_THREADS")}
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["LLMOPS_THREADS"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before["PYTHONPATH"]]))
    import ray
    from ray.cluster_utils import Cluster
    machine = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**machine, "include_dashboard": False})
    try:
        cluster.add_node(**machine)
        ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
        # What the workers need of the tests is sent along: they cannot import this file.
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@pytest.fixture(params=["threads", "processes", "ray"])
def mapped(request, monkeypatch):
    "An engine's `map`, one after the other."
    if request.param == "ray":
        request.getfixturevalue("cluster")
        return load_engine("ray").map
    monkeypatch.setattr("llmops_workbench.engines._n_cores", lambda: 2)
    processes = request.param == "processes"
    return lambda *given, **more: Local().map(*given, **more, processes=processes)


# --- map ---------------------------------------------------------------------------------------------------------------


def slow_square(n):
    time.sleep(0.02 * (5 - n % 5))
    return n * n


def scaled(n, by): return n * by["factor"]


def refuse(n):
    if n == 3:
        raise ParameterValueError("3 is too many")
    return n


def test_results_are_in_the_order_of_the_items(mapped):
    assert mapped(slow_square, list(range(12))) == [n * n for n in range(12)]
    assert mapped(slow_square, [3]) == [9]
    assert mapped(slow_square, []) == []


def test_what_all_need_is_given_to_all(mapped):
    assert mapped(scaled, [1, 2, 3], {"factor": 10}) == [10, 20, 30]
    assert mapped(np.add, [1, 2], np.arange(3))[1].tolist() == [2, 3, 4]


def test_progress_counts_every_item_once(mapped):
    told = []
    mapped(slow_square, list(range(7)), on_done=lambda *state: told.append(state))
    assert told == [(n, 7) for n in range(1, 8)]


def test_an_error_arrives_as_itself(mapped):
    with pytest.raises(ParameterValueError, match=r"^3 is too many$") as caught:
        mapped(refuse, list(range(6)))
    assert type(caught.value) is ParameterValueError
    assert mapped(refuse, [1, 2]) == [1, 2]  # work goes on afterwards


def test_an_interruption_while_work_is_waited_for(mapped):
    def stop(done, total): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        mapped(slow_square, list(range(6)), on_done=stop)
    assert mapped(slow_square, [1, 2]) == [1, 4]


def test_a_place_between_two_rounds_is_left_empty(cluster):
    rounds = load_settings().workspace / "cache" / "rounds"
    with Ray().store() as store:
        places = Ray().map(put_array, [(n, store) for n in range(4)])
        assert Ray().map(sum_array, [(place, store) for place in places]) == [0, 5, 10, 15]
        assert len(list(rounds.rglob("*.npy"))) == 4
    assert not list(rounds.iterdir())
    with pytest.raises(ZeroDivisionError), Ray().store() as store:
        store.put(np.arange(3))
        raise ZeroDivisionError
    assert not list(rounds.iterdir())


def put_array(given): return given[1].put(np.full(5, given[0]))


def sum_array(given): return int(given[1].get(given[0]).sum())


def where(given):
    "This machine, when work has come to another as well; starting a process there may take seconds."
    import ray

    import llmops_workbench
    node, folder, until = ray.get_runtime_context().get_node_id(), Path(given[1]), time.time() + 30
    (folder / node).touch()
    while len(list(folder.iterdir())) < 2 and time.time() < until:
        time.sleep(0.05)
    return node, llmops_workbench.__file__


def die_once(given):
    n, folder = given
    mark = Path(folder) / str(n)
    if n == 2 and not mark.exists():
        mark.touch()
        os._exit(1)
    return n * n


def test_what_a_lost_process_had_to_do_is_done_again(cluster, tmp_path):
    told = []
    assert Ray().map(die_once, [(n, str(tmp_path)) for n in range(5)], on_done=lambda *state: told.append(state)) == [0, 1, 4, 9, 16]
    assert (tmp_path / "2").exists() and told == [(n, 5) for n in range(1, 6)]


def test_both_machines_work(cluster, tmp_path):
    import llmops_workbench
    found = Ray().map(where, [(n, str(tmp_path)) for n in range(8)])
    assert len({node for node, _ in found}) == 2
    assert {file for _, file in found} == {llmops_workbench.__file__}


def test_without_ray_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match="ray"):
        load_engine("ray")


# --- profiles ----------------------------------------------------------------------------------------------------------

SIGNALS = ["lengths", "characters", "quality", "language", "personal", "secrets", "attack", "duplicates", "labels", "topics"]


def write_parts(frame, folder, n=3):
    folder.mkdir()
    for at, rows in enumerate(np.array_split(np.arange(len(frame)), n)):
        frame.iloc[rows].to_parquet(folder / f"{at}.parquet")
    return folder


def same_profile(one, other):
    assert one.summary == other.summary
    frames = [name for name, value in vars(one).items() if isinstance(value, pd.DataFrame)]
    assert len(frames) == 10
    for name in frames:
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name), obj=name)


def tickets(n=600):
    frame, _ = generate_helpdesk(n)
    frame["label"] = frame["query"].map(lambda query: json.loads(query).get("product", "none") if query.startswith("{") else "none").astype("str")
    frame["split"] = np.where(np.arange(n) % 4 == 0, "test", "train")
    frame.loc[5, "text"] = None
    return frame


@pytest.fixture
def blocks(monkeypatch):
    "Many small blocks; blocks are cut by the driver."
    monkeypatch.setattr(text, "BLOCK_ROWS", 97)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["1", None], ids=["numba", "as it comes"])
def test_a_profile_is_the_same_on_a_cluster(cluster, blocks, tmp_path, monkeypatch, compiled):
    if compiled:
        monkeypatch.setenv("LLMOPS_NUMBA", compiled)
    folder = write_parts(tickets(), tmp_path / "tickets")
    here, there = (profile(folder, tokenizer=None, signals=SIGNALS, engine=engine) for engine in ("local", "ray"))
    same_profile(here, there)
    assert here.summary["n_overlap"] and here.summary["n_near_duplicates"] and here.summary["n_exact_duplicates"] and len(here.topics) > 1 and "suspect" in here.frame
    assert len(here.rejected) == 1
    memory = profile(tickets(), tokenizer=None, signals=SIGNALS)
    same_profile(Profile(here.summary | {"dataset": ""}, **{n: v for n, v in vars(here).items() if n != "summary"}),
                 Profile(memory.summary | {"dataset": ""}, **{n: v for n, v in vars(memory).items() if n != "summary"}))


STEPS = ["drop_empty", "normalise_unicode", {"redact": {"mode": "label"}}, {"filter_rows": {"keep": [{"column": "words", "at_least": 3}]}}, {"map_columns": {"fill": {"asked": "{channel}: {text}"}}},
         "drop_exact_duplicates", {"drop_near_duplicates": {"keep": "longest"}}, {"balance": {"column": "channel", "ratio": 3.0}}, {"sample": {"share": 0.9}}]


@pytest.mark.slow
def test_a_recipe_gives_the_same_digests_on_a_cluster(cluster, blocks, tmp_path, workspace):
    "Rows in are rows kept and rows rejected, snapshots have the same digests, and nothing is left in the cache but what is in use."
    folder, cache = write_parts(tickets(), tmp_path / "tickets"), load_settings().workspace / "cache"
    given = {"steps": STEPS, "tasks": {"channel": ["Which channel?\n{asked}", "{channel}"], "echo": ["Say it again.\n{text}", "{text}"]}, "similarity": 0.5, "name": "picked"}
    here, there = (prepare(folder, engine=engine, **given) for engine in ("local", "ray"))
    assert here.outputs == there.outputs and here.summary == there.summary
    for name in ("frame", "steps", "changes", "rejected"):
        pd.testing.assert_frame_equal(getattr(here, name), getattr(there, name))
    memory = prepare(tickets(), **given)
    assert {part: reference.partition("@")[2] for part, reference in memory.outputs.items()} == {part: reference.partition("@")[2] for part, reference in here.outputs.items()}
    rows = here.steps
    assert (rows["rows_in"] + rows["added"] == rows["rows_out"] + rows["rejected"]).all() and rows["changed"].iloc[2] > 50
    assert here.summary["n_rows"] + len(here.rejected[here.rejected["step"] == "read"]) == len(tickets())
    assert on_disk(there.frame) and not any((cache / "rounds").iterdir())


def chats(n=120):
    rng = np.random.default_rng(0)
    words = ["toner", "printer", "vpn", "screen", "password", "reset", "please", "thanks", "floor", "laptop"]
    said = lambda: " ".join(rng.choice(words, 8))
    cells = [json.dumps([{"role": "system", "content": "Be brief."}, {"role": "user", "content": said()}, {"role": "assistant", "content": said()}][i % 3 == 0:]) for i in range(n)]
    cells[7], cells[8], cells[50] = cells[3], None, "not a chat"
    return pd.DataFrame({"text": pd.Series(cells, dtype="str"), "label": rng.choice(["hardware", "access"], n)})


@pytest.mark.slow
def test_a_profile_of_chats_is_the_same_on_a_cluster(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(text, "BLOCK_ROWS", 17)
    folder = write_parts(chats(), tmp_path / "chats")
    here, there = (profile(folder, tokenizer=None, signals=SIGNALS, engine=engine) for engine in ("local", "ray"))
    same_profile(here, there)
    assert here.turns["role"].tolist() and {"turns", "problem"} <= set(here.frame) and (here.frame["problem"] == "not a chat").sum() == 1
    memory = profile(chats(), tokenizer=None, signals=SIGNALS)
    pd.testing.assert_frame_equal(memory.frame, here.frame)
    pd.testing.assert_frame_equal(memory.turns, here.turns)


@pytest.mark.slow
def test_what_is_learnt_from_some_rows_is_applied_to_the_others(cluster, blocks, tmp_path, monkeypatch):
    monkeypatch.setattr("llmops_workbench.labels.MOST_LEARNT", 300)
    monkeypatch.setattr("llmops_workbench.topics._LAID_OUT", 250)
    folder = write_parts(tickets(), tmp_path / "tickets")
    here, there = (profile(folder, tokenizer=None, signals=["labels", "topics"], engine=engine) for engine in ("local", "ray"))
    same_profile(here, there)
    assert here.frame[["x", "y"]].notna().all(axis=None) and len(here.topics) > 1


@pytest.mark.slow
def test_other_data_is_compared_on_a_cluster(cluster, blocks, tmp_path):
    frame = tickets(400).drop(columns="split").dropna(subset="text")
    train, test = frame.iloc[:300], frame.iloc[250:]
    parts = [write_parts(part, tmp_path / name, 2) for part, name in ((train, "train"), (test, "test"))]
    here, there = (profile(str(parts[0]), tokenizer=None, signals=["duplicates"], compare_with=str(parts[1]), engine=engine) for engine in ("local", "ray"))
    same_profile(here, there)
    assert here.summary["n_overlap"] >= 49


# --- memory ------------------------------------------------------------------------------------------------------------

DRIVER = """
import json, os, sys, time
import pandas as pd
from llmops_workbench.engines import load_engine
from llmops_workbench.profiling import profile

def warm(n):
    "All that the work imports, and its compiled functions."
    import os, time
    import pandas as pd
    os.environ["LLMOPS_NUMBA"] = "1"
    from llmops_workbench.profiling import profile
    profile(pd.DataFrame({"text": ["a b c d", "a b c d e", "x"] * 5}), tokenizer=None, signals=SIGNALS)
    del os.environ["LLMOPS_NUMBA"]
    time.sleep(0.5)
    return os.getpid()

SIGNALS = ["lengths", "characters", "duplicates"]
engine = load_engine("ray")
profile(sys.argv[1], tokenizer=None, signals=SIGNALS, engine=engine)
warm(0)
print(json.dumps([os.getpid(), sorted(set(engine.map(warm, list(range(8)))))]), flush=True)
for folder in sys.argv[2:]:
    sys.stdin.readline()
    found = profile(folder, tokenizer=None, signals=SIGNALS, engine=engine)
    print(json.dumps({name: found.summary[name] for name in ("n_rows", "mean_words", "n_near_duplicates", "n_exact_duplicates")}), flush=True)
sys.stdin.readline()
"""


def anonymous(pid):
    "Bytes of memory that belong to a process alone and to no file; None if it has gone."
    try:
        return next((int(line.split()[1]) * 1024 for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("RssAnon")), None)
    except OSError:
        return None


def workers_of(raylets):
    "The processes that do the work of these machines."
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if parent in raylets and (place / "cmdline").read_bytes().startswith(b"ray::"):
                yield int(place.name)
        except OSError:
            continue


def write_texts(folder, letters):
    "10 files of 3,000 texts for each letter, five exact and five near duplicates in each 3,000 texts; gives the bytes of all texts."
    rng, words, n_bytes = np.random.default_rng(0), np.array([f"w{i}" for i in range(3000)], dtype="object"), 0
    folder.mkdir()
    for at in range(10):
        texts = [" ".join(row) for row in words[rng.integers(0, 3000, (3000, 400))]]
        texts[10:15], texts[15:20] = texts[:5], [f"{one} again" for one in texts[5:10]]
        n_bytes += len(letters) * sum(map(len, texts))
        for letter in letters:
            pd.DataFrame({"text": [one.replace("w", letter) for one in texts]}).to_parquet(folder / f"{letter}{at}.parquet")
    return n_bytes


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_what_is_held_does_not_grow_with_the_texts(cluster, tmp_path, workspace):
    small, large = write_texts(tmp_path / "small", "w"), write_texts(tmp_path / "large", "abcde")
    write_parts(pd.DataFrame({"text": ["a b c d", "a b c d e", "x"] * 5}), tmp_path / "tiny")
    raylets = {info.process.pid for node in cluster.list_all_nodes() for info in node.all_processes["raylet"]}
    env = {**os.environ, "RAY_ADDRESS": cluster.address, "LLMOPS_WORKSPACE": str(workspace)}
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, *(str(tmp_path / name) for name in ("tiny", "small", "large"))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    held = []
    try:
        pid, warm = json.loads(driver.stdout.readline())
        start = {one: anonymous(one) for one in (pid, *warm)}
        least = min(start[one] for one in warm)
        os.set_blocking(driver.stdout.fileno(), False)
        for n_bytes, n_rows in ((small, 30_000), (large, 150_000)):
            peak, began, told = {}, time.time(), ""
            driver.stdin.write("go\n")
            driver.stdin.flush()
            while not told and driver.poll() is None:
                for one in (pid, *workers_of(raylets)):
                    now = anonymous(one)
                    if now is not None:
                        # A worker that came later is measured from what the others had after their imports.
                        peak[one] = max(peak.get(one, 0), now - start.get(one, least))
                told = driver.stdout.readline()
                time.sleep(0.05)
            seconds, mine = time.time() - began, peak.pop(pid)
            workers = sorted((grown for grown in peak.values() if grown > 1e6), reverse=True)
            print(f"\n{n_bytes / 1e6:.0f} MB of texts in {seconds:.1f} s: the driver had {start[pid] / 1e6:.0f} MB and grew by {mine / 1e6:.0f} MB, "
                  f"workers had {least / 1e6:.0f} MB and grew by {', '.join(f'{grown / 1e6:.0f}' for grown in workers)} MB", end="")
            found = json.loads(told)
            assert found == {"n_rows": n_rows, "mean_words": pytest.approx(400, abs=0.1), "n_near_duplicates": n_rows // 600, "n_exact_duplicates": n_rows // 600}
            assert workers[0] < 250e6
            held.append((mine, workers[0]))
        driver.stdin.close()
        driver.wait(30)
    finally:
        driver.kill()
        driver.wait()
    assert held[1][0] < large
    for before, after in zip(*held):
        assert after - before < (large - small) / 4


# --- pairs -------------------------------------------------------------------------------------------------------------

WORDS = [f"w{i}" for i in range(12)] + ["é", "日本", "Größe"]
sentences = st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)


@st.composite
def with_copies(draw):
    "Texts, some of which nearly say what others say."
    texts = draw(st.lists(sentences, max_size=25))
    for _ in range(draw(st.integers(0, 10)) if texts else 0):
        words = draw(st.sampled_from(texts)).split()
        if words and draw(st.booleans()):
            words[draw(st.integers(0, len(words) - 1))] = draw(st.sampled_from(WORDS))
        texts.insert(draw(st.integers(0, len(texts))), " ".join(words))
    return texts


@settings(max_examples=150, deadline=None)
@given(texts=with_copies(), rows=st.integers(1, 7), size=st.integers(1, 60), similarity=st.sampled_from([0.3, 0.6, 1.0]), data=st.data())
def test_pairs_do_not_depend_on_blocks(texts, rows, size, similarity, data):
    buffer = text_buffer(texts)
    among = data.draw(st.none() | st.lists(st.booleans(), min_size=len(texts), max_size=len(texts)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMOPS_NUMBA", "0")
        plain = near_duplicates(buffer, similarity, among=among)
        patch.setenv("LLMOPS_NUMBA", "1")
        whole = near_duplicates(buffer, similarity, among=among)
        patch.setattr(text, "BLOCK_ROWS", rows)
        patch.setattr(text, "BLOCK_BYTES", size)
        patch.setattr("llmops_workbench.duplicates._BAND_BYTES", 8 * 16)
        patch.setattr("llmops_workbench.duplicates._PAIRS", 2)
        cut = near_duplicates(buffer, similarity, among=among)
    pd.testing.assert_frame_equal(cut, whole)
    pd.testing.assert_frame_equal(plain, whole)


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(0, 30), max_size=40), rows=st.integers(1, 7), size=st.integers(1, 60))
def test_blocks_are_as_large_as_they_may_be(lengths, rows, size):
    offsets = np.append(0, np.cumsum(lengths, dtype="int64"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "BLOCK_ROWS", rows)
        patch.setattr(text, "BLOCK_BYTES", size)
        edges = block_edges(offsets)
    assert edges[0] == 0 and edges[-1] == len(lengths) and edges == sorted(set(edges))
    fits = lambda a, b: b - a <= rows and (b - a == 1 or offsets[b] - offsets[a] <= size)
    assert all(fits(a, b) and (b == len(lengths) or not fits(a, b + 1)) for a, b in zip(edges, edges[1:]))


def overlap_by_hand(texts, pairs, known, ids):
    "Each row that is not known: the same text first, then the most alike, then the earliest."
    near = {}
    for left, right, similarity in pairs.itertuples(index=False):
        if texts[left] != texts[right]:
            near.setdefault(texts[left], {})[texts[right]] = near.setdefault(texts[right], {})[texts[left]] = similarity
    first_known = {}
    for row, one in enumerate(texts):
        if known[row]:
            first_known.setdefault(one, row)
    found = []
    for row, one in enumerate(texts):
        if known[row] or not one.strip():
            found.append("")
        elif one in first_known:
            found.append(ids[first_known[one]])
        else:
            others = sorted((-similarity, texts.index(other), first_known[other]) for other, similarity in near.get(one, {}).items() if other in first_known)
            found.append(ids[others[0][2]] if others else "")
    return found


@settings(max_examples=200, deadline=None)
@given(texts=with_copies(), data=st.data())
def test_overlap_within_is_what_one_finds_by_hand(texts, data):
    known = np.array(data.draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts))), bool)
    ids = pd.Series([f"id {i}" for i in range(len(texts))], dtype="str")
    column = pd.Series(texts, dtype="str")
    *_, pairs = find_duplicates(ids, column)
    assert find_overlap_within(column, pairs, known, ids) == overlap_by_hand(texts, pairs, known, ids)

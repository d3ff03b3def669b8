"""The cache of completions: what makes another question, what survives, what is never used, what is forgotten."""

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
from damage import damage

from llmops_workbench.caches import CompletionCache, cache_key
from llmops_workbench.completions import ScriptedModel
from llmops_workbench.endpoints import Endpoint
from llmops_workbench.errors import WorkspaceError
from llmops_workbench.models import load_model
from llmops_workbench.settings import load_settings

BASE = {"max_new_tokens": 20, "temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": ("END",), "schema": {"type": "object", "properties": {"a": {}, "b": {}}}}
TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "My screen is black"}]


def keys_of(model, prompt, **changed):
    "The keys `generate` uses, as a cache sees them."
    seen = []

    class Watching:
        def get(self, keys):
            seen.extend(keys)
            return {}

        def put(self, key, answer, prompt, cost):
            pass
    wishes = BASE | changed
    model.generate([prompt], cache=Watching(), **wishes)
    return seen[0]


@pytest.mark.parametrize("changed", [
    {"max_new_tokens": 21}, {"temperature": 0.6}, {"temperature": 0}, {"top_p": 0.8}, {"seed": 4}, {"stop": ("END", "\n")}, {"stop": ()}, {"schema": None},
    {"schema": {"type": "object", "properties": {"b": {}, "a": {}}}}, {"schema": {"type": "object", "properties": {"a": {}}}}], ids=str)
def test_a_change_of_any_wish_is_another_question(free_port, changed):
    model = Endpoint(f"http://127.0.0.1:{free_port}/v1#desk", prices={}, retries=0)
    assert keys_of(model, TALK) == keys_of(model, [dict(m) for m in TALK])
    assert keys_of(model, TALK) != keys_of(model, TALK, **changed)


def test_a_change_of_the_conversation_or_the_model_is_another_question(free_port):
    model = Endpoint(f"http://127.0.0.1:{free_port}/v1#desk", prices={}, retries=0)
    others = [TALK[1:], TALK[::-1], [TALK[0], TALK[1] | {"content": "My screen is black "}], [TALK[0], TALK[1] | {"role": "assistant"}],
              [TALK[0] | {"content": "Be brief.\nuser: My screen"}, TALK[1] | {"content": "is black"}]]
    models = [Endpoint(f"http://127.0.0.1:{free_port}/{place}", prices={}, retries=0) for place in ("v1#desk2", "v2#desk")]
    keys = {keys_of(model, talk) for talk in [TALK, *others]} | {keys_of(m, TALK) for m in models}
    assert len(keys) == len(others) + len(models) + 1
    assert cache_key("desk", TALK, BASE, 1) != cache_key("desk", TALK, BASE, 0)


def test_equal_numbers_are_one_question():
    model = ScriptedModel("echo", "fake:echo")
    assert keys_of(model, "a", temperature=1, top_p=1) == keys_of(model, "a", temperature=1.0, top_p=1.0)


def test_a_script_is_known_by_what_it_does_not_by_its_name():
    assert ScriptedModel("echo").fingerprint and ScriptedModel("echo").fingerprint != ScriptedModel("upper").fingerprint
    assert ScriptedModel(["a"]).fingerprint == ScriptedModel(lambda m: "a").fingerprint == ""


def test_a_local_model_is_known_by_weights_number_format_tokenizer_and_template(tmp_path):
    from tiny_models import save_model
    tiny = str(save_model(tmp_path / "tiny"))
    model, same = load_model(tiny), load_model(tiny)
    first = model.fingerprint
    assert first == same.fingerprint and first != load_model(tiny, dtype="bfloat16").fingerprint
    import torch
    with torch.no_grad():
        next(same.network.parameters()).view(-1)[0] += 1e-3
    assert same.fingerprint != first
    model.tokenizer.chat_template = (model.tokenizer.chat_template or "") + " "
    changed = model.fingerprint
    assert changed != first
    model.tokenizer.add_tokens(["printer9"])
    assert model.fingerprint != changed
    cache = CompletionCache(tmp_path / "cache.db")
    free = model.generate(["please help"]*3, temperature=1.0, max_new_tokens=6)
    model.generate(["please help"], temperature=1.0, max_new_tokens=6, cache=cache)
    again = model.generate(["please help"]*3, temperature=1.0, max_new_tokens=6, cache=cache)
    assert again["cached"].tolist() == [True, False, False] and again["completion"].tolist() == free["completion"].tolist()


def test_it_lies_in_the_workspace():
    assert CompletionCache().path == load_settings().workspace / "cache" / "completions.db"


def test_failed_calls_are_not_kept(tmp_path):
    cache = CompletionCache(tmp_path / "cache.db")
    model = ScriptedModel(["fine", TimeoutError("late")], fingerprint="twice")
    model.generate(["a", "b"], cache=cache)
    assert cache.stats()["n_answers"] == 1


WRITER = """
import sys
from llmops_workbench.caches import CompletionCache
cache = CompletionCache(sys.argv[1])
for i in range(10**9):
    cache.put(f"key {i}", {"completion": f"answer {i}"}, "x"*500)
    print(i, flush=True)
"""


def test_what_was_put_survives_the_death_of_the_process(tmp_path):
    path = tmp_path / "cache.db"
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        last = [int(writer.stdout.readline()) for _ in range(60)][-1]
        os.kill(writer.pid, signal.SIGKILL)
        told = [int(line) for line in writer.stdout.read().splitlines() if line.isdecimal()]
        writer.wait()
        writer.stdout.close()
        last = max([last, *told[:-1]])  # the last line may be cut
        assert len(CompletionCache(path).get([f"key {i}" for i in range(last + 1)])) == last + 1
    with sqlite3.connect(path) as check:
        assert check.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    check.close()


def fill(path, name):
    cache = CompletionCache(path)
    return sum(cache.put(f"{name} {i}", {"completion": name}) + cache.put(f"shared {i}", {"completion": name}) for i in range(100))


def test_several_processes_at_once_on_a_file_that_is_not_there_yet(tmp_path):
    "All start together; each answer is kept once, and the first of several stays."
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        new = pool.starmap(fill, [(str(tmp_path / "cache.db"), name) for name in "abcd"])
    cache = CompletionCache(tmp_path / "cache.db")
    assert sum(new) == cache.stats()["n_answers"] == 500
    found = cache.get([f"{name} {i}" for name in ("a", "b", "c", "d", "shared") for i in range(100)])
    assert len(found) == 500 and all(found[f"c {i}"] == {"completion": "c"} for i in range(100))


def test_threads_and_a_fork_share_one_object(tmp_path):
    cache = CompletionCache(tmp_path / "cache.db")
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda i: cache.put(f"k{i}", {"completion": "x"}), range(200)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
        child = os.fork()
    if child == 0:
        os._exit(0 if cache.put("from the child", {"completion": "y"}) and len(cache.get(["k1", "k2"])) == 2 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert cache.put("after", {"completion": "z"}) and len(cache.get(["k1", "from the child", "after"])) == 3


def fill_pages(path):
    "A file of many pages, closed, and what it holds."
    cache, answers = CompletionCache(path), {f"old {i}": {"completion": f"answer {i} " + "x"*400} for i in range(100)}
    for key, answer in answers.items():
        cache.put(key, answer, "a prompt")
    cache.close()
    return answers


@pytest.mark.parametrize("at", [0, 20, 100, 5000, 12345, 30000, -2000, -100, "truncated", "empty", "text", "no log"])
def test_a_damaged_file_gives_no_wrong_answer(tmp_path, at):
    "Whatever byte flips: answers that come are right, and where one was lost to damage that is seen, the file is set aside and named."
    path = tmp_path / "cache.db"
    answers = fill_pages(path)
    if at == "no log":
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        writer.stdout.readline()
        writer.kill()
        writer.communicate()
        (tmp_path / "cache.db-wal").unlink()
    else:
        damage(path, at)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        cache = CompletionCache(path)
        found = cache.get(answers)
        assert all(answers[key] == answer for key, answer in found.items())
        for key, answer in answers.items():
            cache.put(key, answer)
        assert cache.get(list(answers)) == answers, "it works again"
    aside = list(tmp_path.glob("cache.db.damaged*"))
    named = [str(w.message) for w in told if "is damaged" in str(w.message)]
    assert bool(aside) == bool(named) and all(str(p) in named[0] for p in aside if not p.name.endswith(("-wal", "-shm")))
    if at in ("truncated", "text", 0):
        assert aside and aside[0].stat().st_size > 0


def test_two_processes_that_meet_the_damage_set_one_file_aside(tmp_path):
    path = tmp_path / "cache.db"
    answers = fill_pages(path)
    first, second = CompletionCache(path), CompletionCache(path)
    with open(path, "r+b") as file:
        content = file.read().replace(b"answer 7 ", b"answer 8 ")
        file.seek(0)
        file.write(content)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert first.get(answers) == {}
        first.put("new", {"completion": "kept"})
        assert second.get([*answers, "new"]) == {"new": {"completion": "kept"}}
    assert len(list(tmp_path.glob("*.damaged*"))) == 1 + len(list(tmp_path.glob("*.damaged*-*"))) and len(told) == 1


def test_a_file_that_was_removed_is_begun_anew(tmp_path):
    cache = CompletionCache(tmp_path / "cache.db")
    cache.put("a", {"completion": "x"})
    for path in tmp_path.glob("cache.db*"):
        path.unlink()
    assert cache.get(["a"]) == {} and cache.put("a", {"completion": "y"}) and CompletionCache(cache.path).get(["a"]) == {"a": {"completion": "y"}}


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_place_that_may_not_be_written_to(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(WorkspaceError):
        CompletionCache(tmp_path / "cache.db")


def test_a_folder_in_its_place_is_one_line(tmp_path):
    with pytest.raises(WorkspaceError, match="cannot be used|Cannot make"):
        CompletionCache(tmp_path)


def test_a_full_disk_costs_the_cache_and_not_the_answers(tmp_path):
    cache = CompletionCache(tmp_path / "cache.db")
    cache._connection.execute("PRAGMA max_page_count = 8").fetchall()  # what SQLite reports then is what it reports of a full disk
    model = ScriptedModel(lambda messages: "x"*3000, fingerprint="long")
    with pytest.warns(RuntimeWarning, match="full.*Answers are not kept from here on"):
        frame = model.generate([f"question {i}" for i in range(30)], cache=cache)
    assert (frame["error"] == "").all() and 0 < cache.stats()["n_answers"] < 30


def test_a_reader_holds_nobody_up_while_others_write(tmp_path):
    cache, stop = CompletionCache(tmp_path / "cache.db"), threading.Event()
    other = CompletionCache(tmp_path / "cache.db")

    def write():
        for i in range(10**6):
            if stop.is_set():
                return
            other.put(f"w{i}", {"completion": "x"*2000})
    thread = threading.Thread(target=write)
    thread.start()
    cache.put("mine", {"completion": "y"})
    end = time.monotonic() + 1
    while time.monotonic() < end:
        assert cache.get(["mine"])
    stop.set()
    thread.join()


@pytest.mark.parametrize("name", ["Zoë Quist", "zoe\u0308 quist", "quist \"the key\"\nof", "\u00df", "50% off_x", "it's; DROP TABLE answers"])
def test_who_asks_to_be_forgotten_is_forgotten(tmp_path, name):
    "In prompts, in answers, in every file; whatever signs the name has, and only where it is."
    cache = CompletionCache(tmp_path / "cache.db")
    model = ScriptedModel(lambda messages: messages[-1]["content"].removeprefix("say "), fingerprint="parrot")
    prompts = [f"Ticket of {name}, urgent", f"say {name.upper()}", "Ticket of somebody else", "50x offzx", [{"role": "system", "content": f"You are {name}."}, {"role": "user", "content": "hi"}]]
    model.generate(prompts, cache=cache)
    assert cache.delete(name) == 3
    again = model.generate(prompts, cache=CompletionCache(tmp_path / "other.db"))
    assert (again["error"] == "").all() and cache.stats()["n_answers"] == 2
    content = b"".join(p.read_bytes() for p in tmp_path.glob("cache.db*"))
    assert name.encode() not in content and b"somebody else" in content


def test_facts_are_no_text_to_search(tmp_path):
    cache = CompletionCache(tmp_path / "cache.db")
    ScriptedModel("echo").generate(["hello"], cache=cache)
    assert cache.delete("stop") == 0 and cache.delete("completion") == 0


def test_eviction_keeps_the_size_and_what_is_used(tmp_path):
    cache = CompletionCache(tmp_path / "cache.db", most_bytes=20_000)
    cache.put("dear", {"completion": "x"*300})
    for i in range(300):
        cache.put(f"k{i}", {"completion": "x"*300})
        if i % 10 == 0:
            assert cache.get(["dear"])
    stats = cache.stats()
    assert stats["size_bytes"] <= 20_000 and 40 < stats["n_answers"] < 70
    assert cache.path.stat().st_size < 200_000

"""Endpoints against a server on this machine that misbehaves on request."""

import asyncio
import json
import logging
import math
import pickle
import sys
import threading
import time
import traceback

import pytest
from chat_server import Server

from llmops_workbench.caches import CompletionCache
from llmops_workbench.costs import read_prices
from llmops_workbench.endpoints import Endpoint
from llmops_workbench.errors import ParameterValueError, SourceFormatError
from llmops_workbench.models import load_model

PRICES = {"desk": (1e-6, 2e-6)}


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def desk(server):
    return Endpoint(f"{server.base}/v1#desk", prices=PRICES, backoff_s=0.01, timeout_s=1)


def test_answers_come_in_the_order_of_the_prompts(desk):
    prompts = [f"ticket {i}" for i in range(40)]
    frame = desk.generate(prompts)
    assert frame["completion"].tolist() == [p.upper() for p in prompts]
    assert (frame["latency_s"] > 0).all() and (frame["error"] == "").all()


@pytest.mark.parametrize("fault", ["429 once", "500 once", "no JSON once", "cut once", "slow once"])
def test_what_passes_is_tried_again_and_paid_once(server, desk, fault):
    frame = desk.generate([fault, "other"])
    assert frame["completion"].tolist() == [fault.upper(), "OTHER"]
    assert server.times(fault) == 2 and server.times("other") == 1
    keys = [h["Idempotency-Key"] for b, h in zip(server.bodies, server.headers) if b["messages"][-1]["content"] == fault]
    assert len(set(keys)) == 1, "a repeated call says that it is the same call"
    assert frame["cost"].sum() == pytest.approx(server.billed)


@pytest.mark.parametrize("fault,times,error,billed", [
    ("500 always", 3, "the server said 500: broken", False),
    ("400", 1, "the server said 400: bad request", False),
    ("refuse", 1, "the model gave no text (stop)", True),
    ("huge", 1, "the server's answer is larger than 16 MiB", False)])
def test_what_does_not_pass_is_a_row_with_an_error(server, desk, fault, times, error, billed):
    desk.retries = 2
    frame = desk.generate(["fine", fault])
    assert frame["error"].tolist() == ["", error] and server.times(fault) == times
    assert frame["completion"].isna().tolist() == [False, True] and math.isnan(frame["cost"][1]) is not billed
    assert frame["cost"].sum() == pytest.approx(server.billed), "an answer without text is paid for all the same"


def test_wrong_or_missing_counts_make_the_cost_unknown(desk):
    frame = desk.generate(["wrong count", "no count", "fine"])
    assert frame["cost"].isna().tolist() == [True, True, False] and (frame["error"] == "").all()


def test_a_model_without_a_price_costs_nan_not_nothing(server):
    assert Endpoint(f"{server.base}/v1#other", prices=PRICES).generate(["a"])["cost"].isna().all()


def test_equal_prompts_are_asked_once_and_billed_once(server, desk):
    frame = desk.generate(["same"]*5 + ["other"])
    assert len(server.bodies) == 2
    assert frame["completion"].tolist() == ["SAME"]*5 + ["OTHER"]
    assert frame["cost"].sum() == pytest.approx(server.billed)


def test_samples_of_one_prompt_are_asked_for_with_seeds_of_their_own(server, desk):
    desk.generate(["same"]*3, temperature=0.7, seed=5)
    assert sorted(b["seed"] for b in server.bodies) == [5, 6, 7]


def test_no_more_calls_in_flight_than_allowed(server, desk):
    desk.concurrency = 4
    desk.generate([f"ticket {i}" for i in range(24)])
    assert server.most_active == 4


def test_a_wrong_key_is_found_out_once_and_not_written_down(server, desk, monkeypatch):
    monkeypatch.setenv("LLMOPS_API_KEY", "sk-canary")
    desk.concurrency = 1
    frame = desk.generate([f"401 {i}" for i in range(6)])
    assert len(server.bodies) == 1
    assert set(frame["error"]) == {"the server said 401: wrong key ***, request 1. Correct the key in the variable LLMOPS_API_KEY"}
    assert "canary" not in frame.to_json() and "canary" not in repr(desk) and "canary" not in repr(vars(desk))


def test_a_wrong_key_stops_calls_in_flight_and_those_that_wait(server, desk, monkeypatch):
    "One reason for all rows, though every answer of the server reads otherwise, and nobody waits for what hangs."
    monkeypatch.delenv("LLMOPS_API_KEY", raising=False)
    desk.timeout_s = 30
    start = time.monotonic()
    errors = desk.generate([f"hang {i}" for i in range(3)] + ["401"] + [f"ticket {i}" for i in range(300)])["error"]
    assert time.monotonic() - start < 10 and server.times("401") == 1
    reasons = set(errors[3:]) - {""}
    assert len(reasons) == 1 and reasons.pop().endswith("Put the key into the variable LLMOPS_API_KEY")
    assert set(errors[:3]) == set(errors[3:4])


CANARY = "sk-canary-0123456789"


@pytest.mark.parametrize("prompt", ["key in text", "key in reason", "key in header", "key in html", "key in html, cut", "401", f"the user wrote {CANARY}"])
def test_the_key_is_in_nothing_that_is_shown_or_kept(server, desk, monkeypatch, tmp_path, caplog, capsys, prompt):
    "The server gives it back in texts, reasons, headers and broken answers; the user pastes it into a prompt."
    monkeypatch.setenv("LLMOPS_API_KEY", CANARY)
    caplog.set_level(logging.DEBUG)
    cache, desk.retries, moved = CompletionCache(tmp_path / "cache.db"), 0, Endpoint(f"{server.base}/moved#desk", prices={})
    frame = desk.generate([prompt], cache=cache)
    assert len(server.bodies) == 1 and server.headers[0]["Authorization"].endswith(CANARY), "otherwise there is nothing to find"
    shown = [frame.to_json(), frame.to_csv(), repr(desk), repr(vars(desk)), pickle.dumps(desk).decode("latin-1"), moved.generate([prompt], cache=cache).to_json()]
    try:
        desk.generate([prompt], cache=cache, on_completion=lambda *_: 1/0)
    except ZeroDivisionError:
        shown.append("".join(traceback.TracebackException(*sys.exc_info(), capture_locals=CANARY not in prompt).format()))
    shown += [caplog.text, *capsys.readouterr()]
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    cut = CANARY[:12]  # half a key is a secret too
    assert cut.encode() not in stored
    assert [text for text in shown if cut in text] == []


def test_a_key_for_one_host_goes_to_that_host(server, desk, monkeypatch):
    monkeypatch.setenv("LLMOPS_API_KEY", "sk-for-others")
    monkeypatch.setenv("LLMOPS_API_KEY_127_0_0_1", "sk-for-this")
    desk.generate(["a"])
    assert server.headers[0]["Authorization"] == "Bearer sk-for-this"


@pytest.mark.parametrize("key", ["sk\nX-Evil: 1", "sk-\u20ac"])
def test_a_key_that_no_header_can_carry_is_named_and_not_shown(server, desk, monkeypatch, key):
    monkeypatch.setenv("LLMOPS_API_KEY", key)
    with pytest.raises(ParameterValueError, match="LLMOPS_API_KEY holds a character") as caught:
        desk.generate(["a"])
    assert "sk" not in str(caught.value) and server.bodies == []


def test_the_key_is_sent_only_to_the_address(server, desk, monkeypatch):
    monkeypatch.setenv("LLMOPS_API_KEY", "sk-canary")
    assert Endpoint(f"{server.base}/moved#desk", prices={}).generate(["a"])["error"][0] == "the server said 307: no reason given"
    assert server.bodies == []
    desk.generate(["a"])
    assert server.headers[0]["Authorization"] == "Bearer sk-canary"


def test_without_a_key_none_is_sent(server, desk, monkeypatch):
    monkeypatch.delenv("LLMOPS_API_KEY", raising=False)
    desk.generate(["a"])
    assert "Authorization" not in server.headers[0]


def test_the_newer_name_of_the_limit_is_learnt(server, desk):
    desk.concurrency = 1
    assert (desk.generate([f"new limit {i}" for i in range(3)], max_new_tokens=9)["error"] == "").all()
    assert [("max_tokens" in b, b.get("max_completion_tokens")) for b in server.bodies] == [(True, None)] + [(False, 9)]*3


def test_what_is_asked_for_is_sent(server, desk):
    schema = {"type": "object", "properties": {"intent": {"type": "string"}}}
    desk.generate([[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi \ud800"}]], max_new_tokens=7, temperature=0.5,
                  top_p=0.9, seed=3, stop=["X"], schema=schema)
    body = server.bodies[0]
    assert body["messages"][1]["content"] == "hi \ud800"
    assert body["messages"][0] == {"role": "system", "content": "Be brief."} and body["model"] == "desk"
    assert {k: body[k] for k in ("max_tokens", "temperature", "top_p", "seed", "stop")} == {
        "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": ["X"]}
    assert body["response_format"]["json_schema"]["schema"] == schema


def test_a_server_that_is_not_there_is_found_out_once(free_port):
    model = Endpoint(f"http://127.0.0.1:{free_port}/v1#desk", prices={}, retries=1, backoff_s=0.01, concurrency=1)
    errors = model.generate(["a", "b", "c"])["error"]
    assert errors.str.contains("cannot be reached").all() and len(set(errors)) == 1


def test_leaving_early_ends_the_calls(server, desk):
    def stop(done, total):
        raise KeyboardInterrupt
    desk.concurrency = 2
    with pytest.raises(KeyboardInterrupt):
        desk.generate([f"ticket {i}" for i in range(100)], on_progress=stop)
    assert len(server.bodies) < 100
    assert not [t for t in threading.enumerate() if t.name == "llmops-endpoint"]


def test_it_works_inside_a_running_event_loop(desk):
    "As in a notebook, where a loop is always running."
    async def cell():
        return desk.generate(["a"])["completion"][0]
    assert asyncio.run(cell()) == "A"


def test_one_prompt_that_is_forbidden_does_not_stop_the_others(desk):
    desk.concurrency = 1
    assert desk.generate(["fine", "403 now", "also fine"])["error"].tolist() == ["", "the server said 403: not this one", ""]
    assert set(desk.generate(["403 first", "never asked"])["error"]) == {"the server said 403: not this one"}


def test_as_many_calls_as_the_server_bears(server):
    "It takes eight at a time and refuses the rest: all are answered, and few were refused."
    server.capacity = 8
    desk = Endpoint(f"{server.base}/v1#desk", prices=PRICES, concurrency=64)
    frame = desk.generate([f"ticket {i}" for i in range(200)])
    assert (frame["error"] == "").all() and frame["cost"].sum() == pytest.approx(server.billed)
    assert server.pushed < 200


def test_more_calls_at_once_where_all_goes_well(server):
    desk, server.latency_s = Endpoint(f"{server.base}/v1#desk", prices=PRICES, concurrency=48), 0.2
    desk.generate([f"ticket {i}" for i in range(240)])
    assert 32 < server.most_active <= 48


def test_calls_that_begin_alike_go_out_one_after_another(server, desk):
    shots = {name: f"Examples of {name}: " + "x"*300 for name in "abc"}
    desk.concurrency = 1
    desk.generate([f"{shots[name]} question {i}" for i in range(4) for name in "abc"])
    starts = [b["messages"][0]["content"][12] for b in server.bodies]
    assert "".join(starts) == "aaaabbbbcccc"


def test_stopping_ends_calls_that_hang_and_keeps_what_came(server, desk, tmp_path):
    desk.timeout_s, desk.concurrency, came = 60, 3, []
    cache, prompts = CompletionCache(tmp_path / "cache.db"), ["hang 1", "hang 2", "fine", "hang 3", "later"]
    start = time.monotonic()
    frame = desk.generate(prompts, cache=cache, on_completion=lambda position, c: came.append(position), should_stop=lambda: 2 in came and len(server.bodies) == 4)
    assert time.monotonic() - start < 10
    late, never = "stopped while it was being answered", "stopped before it was asked"
    assert frame["error"].tolist() == [late, late, "", late, never] and came[0] == 2
    assert cache.stats()["n_answers"] == 1 and not [t for t in threading.enumerate() if t.name == "llmops-endpoint"]


def test_an_interrupt_loses_nothing_that_came(server, desk, tmp_path):
    cache, seen = CompletionCache(tmp_path / "cache.db"), []

    def interrupt(position, completion):
        seen.append(position)
        if len(seen) == 5:
            time.sleep(0.2)  # others come meanwhile, and nobody takes them
            raise KeyboardInterrupt
    desk.concurrency = 4
    with pytest.raises(KeyboardInterrupt):
        desk.generate([f"ticket {i}" for i in range(200)], cache=cache, on_completion=interrupt)
    asked, kept = len(server.keys), cache.stats()["n_answers"]
    assert 5 < kept and asked - 4 <= kept <= asked < 200
    frame = desk.generate([f"ticket {i}" for i in range(200)], cache=cache)
    assert (frame["error"] == "").all() and frame["cached"].sum() == kept
    assert len(server.bodies) <= 204, "what came before the interrupt was not asked again"


def test_cached_answers_cost_nothing_and_make_no_call(server, desk, tmp_path):
    cache, prompts = CompletionCache(tmp_path / "cache.db"), ["a", "b", "a", "400"]
    first, again = desk.generate(prompts, cache=cache), desk.generate(prompts, cache=cache)
    assert len(server.bodies) == 4 and server.times("400") == 2, "an answer is kept, a failure is not"
    assert again["cached"].tolist() == [True, True, True, False] and again["cost"][:3].tolist() == [0, 0, 0]
    same = ["completion", "prompt_tokens", "completion_tokens", "latency_s", "finish_reason"]
    assert again[same][:3].equals(first[same][:3])
    assert not desk.generate(["a"], cache=cache, seed=1)["cached"][0]


def test_draws_of_one_prompt_are_asked_for_with_their_own_seeds_beside_cached_ones(server, desk, tmp_path):
    cache = CompletionCache(tmp_path / "cache.db")
    desk.generate(["same"]*2, temperature=0.7, seed=5, cache=cache)
    desk.generate(["same"]*4, temperature=0.7, seed=5, cache=cache)
    assert sorted(b["seed"] for b in server.bodies) == [5, 6, 7, 8]


SCHEMA = {"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "string"}}}


@pytest.mark.parametrize("refuses,formats", [((), ["json_schema"]), (("json_schema",), ["json_schema", "json_object"]),
                                             (("json_schema", "json_object"), ["json_schema", "json_object", None])])
def test_the_strictest_form_of_answer_that_the_server_takes(server, desk, refuses, formats):
    server.refuses, desk.concurrency = refuses, 1
    frames = [desk.generate([name, name + "2"], schema=SCHEMA) for name in ("one", "two")]
    sent = [b.get("response_format", {}).get("type") for b in server.bodies]
    assert sent == formats + formats[-1:]*3, "what was refused once is not tried again"
    assert all((frame["error"] == "").all() for frame in frames)
    assert len({h["Idempotency-Key"] for h in server.headers}) == len(server.bodies), "another wording is another question"
    if not refuses:
        assert list(server.bodies[0]["response_format"]["json_schema"]["schema"]["properties"]) == ["z", "a"], "models write keys in this order"


def test_a_form_that_is_refused_while_many_calls_are_in_flight(server, desk):
    server.refuses = ("json_schema",)
    assert (desk.generate([f"ticket {i}" for i in range(40)], schema=SCHEMA)["error"] == "").all()
    assert {b.get("response_format", {}).get("type") for b in server.bodies[-16:]} == {"json_object"}


def test_many_calls_in_flight_learn_the_newer_name_of_the_limit(desk):
    assert (desk.generate([f"new limit {i}" for i in range(40)])["error"] == "").all()


@pytest.mark.parametrize("models,fits", [
    ({"data": [{"id": "other", "max_model_len": 9}, {"id": "desk", "max_model_len": 10_000}]}, 9_800),
    ({"data": [{"id": "model.gguf", "meta": {"n_ctx_train": 10_000}}]}, 9_999)])
def test_what_cannot_fit_is_not_sent(server, desk, models, fits):
    server.models = models
    desk.tokenizer = lambda texts, add_special_tokens: {"input_ids": [text.split() for text in texts]}
    frame = desk.generate(["w "*fits, "w "*(fits + 1)], max_new_tokens=200)
    assert frame["error"].tolist() == ["", f"too long for the model, which has room for 10,000 tokens: with {fits + 1:,} tokens to read and up to 200 to write"]
    assert len(server.bodies) == 1 and server.models_asked == 1
    desk.generate(["w "*50_000], max_new_tokens=200)
    assert server.models_asked == 1, "it was told once"


def test_short_prompts_do_not_ask_for_the_limit(server, desk):
    desk.generate(["short"])
    assert server.models_asked == 0


def test_what_the_server_finds_too_long_is_asked_once_and_counted(server, desk):
    server.context = 100
    error = desk.generate(["word "*100, "fine"])["error"]
    assert error[0].startswith("too long for the model, at least 62 tokens to read and up to 128 to write: the server said 400: This model's maximum")
    assert error[1] == "" and len(server.bodies) == 2


@pytest.mark.parametrize("name", ["http://host/v1", "https://#model", "https://user:pass@host/v1#model", "ftp://host#model"])
def test_addresses_that_cannot_be(name):
    with pytest.raises(ParameterValueError):
        Endpoint(name)


def test_load_model_knows_addresses(server):
    assert load_model(f"{server.base}/v1#desk").generate(["a"])["completion"][0] == "A"


def test_prices_come_from_a_file_beside_the_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.ini").write_text("[workbench]\nworkspace = here\n")
    assert read_prices() == {}
    (tmp_path / "prices.csv").write_text("model,input_per_million,output_per_million\ndesk,1,2\n")
    assert read_prices()["desk"] == pytest.approx(PRICES["desk"])
    (tmp_path / "prices.csv").write_text("model,input_per_million,output_per_million\ndesk,cheap,2\n")
    with pytest.raises(SourceFormatError, match="cannot be read"):
        read_prices()


@pytest.mark.slow
def test_transformers_serve(tmp_path, free_port):
    "A real server: the same greedy answer as in this process."
    import os
    import subprocess
    import sys
    import time
    import urllib.error
    import urllib.request

    from tiny_models import save_model
    folder = save_model(tmp_path / "tiny")
    command = [os.path.join(os.path.dirname(sys.executable), "transformers"), "serve", "--host", "127.0.0.1", "--port", str(free_port), "--device", "cpu"]
    if not os.path.exists(command[0]):
        pytest.skip("no transformers command beside this Python")
    with open(tmp_path / "log.txt", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{free_port}/health", timeout=1)
                break
            except (urllib.error.URLError, OSError):
                if process.poll() is not None:
                    pytest.skip(f"transformers serve does not start here: {(tmp_path / 'log.txt').read_text()[-300:]}")
                time.sleep(0.5)
        served = Endpoint(f"http://127.0.0.1:{free_port}/v1#{folder}", prices={}, retries=0, timeout_s=300, concurrency=1)
        answers = served.generate(["please help", "the printer"], max_new_tokens=8)
        assert answers["error"].tolist() == ["", ""]
        assert answers["completion"].tolist() == load_model(str(folder)).generate(["please help", "the printer"], max_new_tokens=8)["completion"].tolist()
    finally:
        process.terminate()
        process.wait(20)
    assert json.dumps(answers["completion_tokens"].tolist())

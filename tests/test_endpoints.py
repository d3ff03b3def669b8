"""Endpoints against a server on this machine that misbehaves on request."""

import asyncio
import json
import math
import threading

import pytest
from aiohttp import web

from llmops_workbench.endpoints import Endpoint, read_prices
from llmops_workbench.errors import ParameterValueError, SourceFormatError
from llmops_workbench.models import load_model

PRICES = {"desk": (1e-6, 2e-6)}


class Server:
    "Answers chat completions; what the last message says decides how. Keeps a ledger of what it would bill."

    def __init__(self):
        self.bodies, self.headers, self.billed, self.keys = [], [], 0.0, set()
        self.active = self.most_active = 0
        self.loop, ready = asyncio.new_event_loop(), threading.Event()
        self.thread = threading.Thread(target=self._serve, args=(ready,), daemon=True)
        self.thread.start()
        assert ready.wait(10)

    def _serve(self, ready):
        async def start():
            app = web.Application()
            app.router.add_post("/v1/chat/completions", self.answer)
            app.router.add_post("/moved/chat/completions", self.move)
            self.runner = web.AppRunner(app)
            await self.runner.setup()
            site = web.TCPSite(self.runner, "127.0.0.1", 0)
            await site.start()
            self.base = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
            ready.set()
        self.loop.run_until_complete(start())
        self.loop.run_forever()
        self.loop.run_until_complete(self.runner.cleanup())

    def close(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)

    def times(self, text):
        return sum(b["messages"][-1]["content"] == text for b in self.bodies)

    async def move(self, request):
        raise web.HTTPTemporaryRedirect(f"{self.base}/v1/chat/completions")

    async def answer(self, request):
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        try:
            return await self.reply(request)
        finally:
            self.active -= 1

    async def reply(self, request):
        body = await request.json()
        text = body["messages"][-1]["content"]
        self.bodies.append(body)
        self.headers.append(request.headers)
        first = self.times(text) == 1
        if "429 once" in text and first:
            return web.json_response({"error": {"message": "slow down"}}, status=429, headers={"Retry-After": "0"})
        if "500 once" in text and first:
            return web.Response(text="<html>oops</html>", status=500)
        if "500 always" in text:
            return web.json_response({"error": "broken"}, status=500)
        if "400" in text:
            return web.json_response({"error": {"message": "bad\nrequest"}}, status=400)
        if "401" in text:
            return web.json_response({"error": {"message": f"wrong key {request.headers['Authorization'].split()[1]}"}}, status=401)
        if "no JSON once" in text and first:
            return web.Response(text="{\"choices\": [", content_type="application/json")
        if "cut once" in text and first:
            response = web.StreamResponse(headers={"Content-Length": "1000"})
            await response.prepare(request)
            await response.write(b'{"choices"')
            request.transport.close()
            return response
        if "slow once" in text and first:
            await asyncio.sleep(1.5)
        if "huge" in text:
            return web.Response(body=b"x"*(17*2**20))
        if "new limit" in text and "max_tokens" in body:
            return web.json_response({"error": {"message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'."}}, status=400)
        await asyncio.sleep(0.02)
        usage = {"prompt_tokens": len(text), "completion_tokens": 3}
        if "wrong count" in text:
            usage = {"prompt_tokens": "many", "completion_tokens": -1}
        elif request.headers["Idempotency-Key"] not in self.keys:
            self.keys.add(request.headers["Idempotency-Key"])
            self.billed += usage["prompt_tokens"]*1e-6 + 3*2e-6
        content = None if "refuse" in text else text.upper()
        return web.json_response({"choices": [{"message": {"content": content}, "finish_reason": "stop"}],
                                  **({} if "no count" in text else {"usage": usage})})


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


@pytest.mark.parametrize("fault,times,error", [
    ("500 always", 3, "the server said 500: broken"),
    ("400", 1, "the server said 400: bad request"),
    ("refuse", 1, "the model gave no text (stop)"),
    ("huge", 1, "the server's answer is larger than 16 MiB")])
def test_what_does_not_pass_is_a_row_with_an_error(server, desk, fault, times, error):
    desk.retries = 2
    frame = desk.generate(["fine", fault])
    assert frame["error"].tolist() == ["", error] and server.times(fault) == times
    assert frame["completion"].isna().tolist() == [False, True] and math.isnan(frame["cost"][1])


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
    assert set(frame["error"]) == {"the server said 401: wrong key ***"}
    assert "canary" not in frame.to_json() and "canary" not in repr(desk) and "canary" not in repr(vars(desk))


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

"""A grid of calls beside the modes of the openai client: the same answers, asserted, a ledger equal to the server's, and the ratio of the times.

    python benchmarks/endpoints.py [--peers PYTHON] [--cells 1000] [--concurrency 64] [--repeats 3] [--without-sequential] [--output FILE]

PYTHON is an interpreter with openai[aiohttp]; without it this one is asked for them, and where they are missing ours is timed alone, its ledger still held against the server's. The server is a process of its own on this machine: 50 ms for an answer, 2 % of the calls refused with 429 and a Retry-After below
a second, 1 % stragglers of a second, 1 % answers cut in the middle. Whether a call meets trouble depends on its text and on how often that text was asked, so all sides meet the
same. Three cells in ten repeat another one. The server bills a call once for each idempotency key, also when its answer is cut. Sides take turns, each in its own process; time is
the clock's, from making the client to the last answer, without imports. The peers retry as often as they have to and are otherwise as they come. Written to benchmarks/results/endpoints.json.
"""

import argparse
import asyncio
import hashlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from peers import Peer, absent, record

RESULTS = Path(__file__).parent / "results" / "endpoints.json"
LATENCY_S, STRAGGLER_S = 0.05, 1.0


# --- the server ----------------------------------------------------------------------------------------------------

def trouble(text, times):
    "What the call meets, drawn from its text and from how often it was asked before; and a fraction."
    digest = hashlib.sha256(f"{times} {text}".encode()).digest()
    share = int.from_bytes(digest[:4], "big") / 2**32
    kind = "pushed" if share < 0.02 else "straggler" if share < 0.03 else "cut" if share < 0.04 else ""
    return kind, digest[4] / 255


def serve_chat():
    "A chat server with a ledger for each run; prints its port."
    import uuid

    from aiohttp import web
    runs = {}

    async def answer(request):
        run = runs.setdefault(request.match_info["run"], {"asked": {}, "billed": {}, "requests": 0, "pushed": 0, "cut": 0, "stragglers": 0, "active": 0, "most_active": 0})
        text = (await request.json())["messages"][-1]["content"]
        kind, fraction = trouble(text, run["asked"].get(text, 0))
        run["asked"][text] = run["asked"].get(text, 0) + 1
        run["requests"] += 1
        run["active"] += 1
        run["most_active"] = max(run["most_active"], run["active"])
        try:
            if kind == "pushed":
                run["pushed"] += 1
                return web.json_response({"error": {"message": "slow down"}}, status=429, headers={"Retry-After": f"{0.05 + 0.2*fraction:.3f}"})
            run["stragglers"] += kind == "straggler"
            await asyncio.sleep(STRAGGLER_S if kind == "straggler" else LATENCY_S)
            usage = {"prompt_tokens": len(text.split()), "completion_tokens": 2 + len(text) % 5}
            run["billed"][request.headers.get("Idempotency-Key") or uuid.uuid4().hex] = usage
            content = json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "desk", "usage": usage | {"total_tokens": sum(usage.values())},
                                  "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text.upper()}}]}).encode()
            if kind == "cut":
                run["cut"] += 1
                response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(content))})
                await response.prepare(request)
                await response.write(content[:len(content) // 2])
                request.transport.close()
                return response
            return web.Response(body=content, content_type="application/json")
        finally:
            run["active"] -= 1

    async def ledger(request):
        run = runs[request.match_info["run"]]
        tokens = [sum(usage[name] for usage in run["billed"].values()) for name in ("prompt_tokens", "completion_tokens")]
        return web.json_response({"tokens": tokens, "billed": len(run["billed"]), **{k: run[k] for k in ("requests", "pushed", "cut", "stragglers", "most_active")}})

    async def start():
        app = web.Application()
        app.router.add_post("/{run}/v1/chat/completions", answer)
        app.router.add_get("/{run}/ledger", ledger)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        print(site._server.sockets[0].getsockname()[1], flush=True)
        await asyncio.Event().wait()
    asyncio.run(start())


# --- the peers -----------------------------------------------------------------------------------------------------

RETRIES = 10


def ask_async(base, prompts, concurrency, http_client):
    from openai import AsyncOpenAI

    async def all_of_them():
        gate = asyncio.Semaphore(concurrency)
        async with AsyncOpenAI(base_url=base, api_key="none", max_retries=RETRIES, http_client=http_client()) as client:
            async def ask(prompt):
                async with gate:
                    reply = await client.chat.completions.create(model="desk", messages=[{"role": "user", "content": prompt}], temperature=0, max_tokens=64)
                    return reply.choices[0].message.content
            return await asyncio.gather(*(ask(p) for p in prompts))
    return asyncio.run(all_of_them())


def ask_sync(base, prompts, threads):
    from concurrent.futures import ThreadPoolExecutor

    from openai import OpenAI
    with OpenAI(base_url=base, api_key="none", max_retries=RETRIES) as client:
        def ask(prompt):
            return client.chat.completions.create(model="desk", messages=[{"role": "user", "content": prompt}], temperature=0, max_tokens=64).choices[0].message.content
        if threads == 1:
            return [ask(p) for p in prompts]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(ask, prompts))


def by_aiohttp():
    from openai import DefaultAioHttpClient
    return DefaultAioHttpClient()


PEERS = {"sequential": lambda base, prompts, n: ask_sync(base, prompts, 1),
         "AsyncOpenAI": lambda base, prompts, n: ask_async(base, prompts, n, lambda: None),
         "AsyncOpenAI, DefaultAioHttpClient": lambda base, prompts, n: ask_async(base, prompts, n, by_aiohttp),
         "OpenAI in threads": lambda base, prompts, n: ask_sync(base, prompts, n)}


def serve(mode, n_cells, concurrency):
    import openai
    prompts = cells(int(n_cells))
    for line in sys.stdin:
        start = time.perf_counter()
        answers = PEERS[mode](line.strip(), prompts, int(concurrency))
        print(json.dumps({"seconds": time.perf_counter() - start, "digest": digest(answers), "openai": openai.__version__}), flush=True)


# --- both ----------------------------------------------------------------------------------------------------------

def cells(n):
    "Prompts of a grid, three in ten asked before."
    rng = random.Random(7)
    distinct = [f"Ticket {i}: the {rng.choice(['printer', 'laptop', 'mail program', 'network'])} on floor {rng.randrange(90)} "
                f"{rng.choice(['is broken', 'makes a noise', 'shows an error', 'is slow'])} since {rng.randrange(24)}:00. "*3 for i in range(n - 3*n//10)]
    prompts = distinct + rng.sample(distinct, n - len(distinct))
    rng.shuffle(prompts)
    return prompts


def digest(answers):
    return hashlib.sha256(json.dumps(answers).encode()).hexdigest()


def ours(base, prompts, concurrency):
    "Seconds in all and to the first answer, and the frame."
    from llmops_workbench.endpoints import Endpoint
    first, start = [], time.perf_counter()
    frame = Endpoint(f"{base}#desk", concurrency=concurrency, prices={"desk": (1e-6, 2e-6)}).generate(
        prompts, max_new_tokens=64, on_completion=lambda position, c: first or first.append(time.perf_counter()))
    return time.perf_counter() - start, first[0] - start, frame


def read_ledger(port, run):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{run}/ledger") as reply:
        return json.load(reply)


def check_ledger(frame, ledger):
    "Every cell answered, and what our frame says was paid is what the server billed."
    assert (frame["error"] == "").all(), frame["error"].value_counts().to_dict()
    paid = frame.assign(text=frame["completion"]).drop_duplicates("text")
    assert [int(paid["prompt_tokens"].sum()), int(paid["completion_tokens"].sum())] == ledger["tokens"], "the ledgers differ"
    assert ledger["billed"] == len(paid) and abs(frame["cost"].sum() - (ledger["tokens"][0]*1e-6 + ledger["tokens"][1]*2e-6)) < 1e-12


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", default=sys.executable, help="an interpreter that has the peers; this one by default")
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--without-sequential", action="store_true", help="leave out the minute that one call after another takes")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    left_out = absent("openai", "httpx_aiohttp", python=args.peers)
    without = set(PEERS) if "openai" in left_out else {"AsyncOpenAI, DefaultAioHttpClient"} if left_out else set()
    prompts, modes = cells(args.cells), [mode for mode in PEERS if mode not in without and not (mode == "sequential" and args.without_sequential)]
    server = subprocess.Popen([sys.executable, __file__, "--server"], stdout=subprocess.PIPE, text=True)
    children = {mode: Peer(args.peers, __file__, mode, args.cells, args.concurrency) for mode in modes}
    times, firsts, ledgers, version = {"ours": [], **{mode: [] for mode in modes}}, [], {}, ""
    try:
        port = int(server.stdout.readline())
        address = lambda run: f"http://127.0.0.1:{port}/{run}/v1"
        ours(address("warm-up"), prompts[:50], args.concurrency)
        for turn in range(args.repeats):
            seconds, first, frame = ours(address(f"ours-{turn}"), prompts, args.concurrency)
            ledgers["ours"] = read_ledger(port, f"ours-{turn}")
            check_ledger(frame, ledgers["ours"])
            times["ours"].append(seconds)
            firsts.append(first)
            for at, mode in enumerate(modes):
                told = children[mode].ask(address(f"peer-{at}-{turn}"))
                assert told["digest"] == digest(frame["completion"].tolist()), f"{mode}: other answers than ours"
                times[mode].append(told["seconds"])
                ledgers[mode], version = read_ledger(port, f"peer-{at}-{turn}"), told["openai"]
            print({mode: round(spent[-1], 2) for mode, spent in times.items()}, flush=True)
    finally:
        for child in children.values():
            child.close()
        server.kill()
        server.wait()
    medians = {mode: statistics.median(spent) for mode, spent in times.items()}
    best = min((mode for mode in modes if mode != "sequential"), key=medians.get, default=None)

    def ratio(mode):
        all_of_them = sorted(theirs / mine for mine, theirs in zip(times["ours"], times[mode]))
        return {"ratio": round(statistics.median(all_of_them), 2), "ratio_low": round(all_of_them[0], 2), "ratio_high": round(all_of_them[-1], 2)}
    found = {"cells": args.cells, "distinct": len(set(prompts)), "concurrency": args.concurrency, "repeats": args.repeats, "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1),
             "python": platform.python_version(), "openai": version, "best_mode": best, "against": {mode: ratio(mode) for mode in modes},
             "seconds": {mode: [round(s, 3) for s in spent] for mode, spent in times.items()}, "first_answer_s": round(statistics.median(firsts), 3),
             "cells_per_s": {mode: round(args.cells / s) for mode, s in medians.items()}, "ledgers": ledgers, "results": "equal", "ledger": "equal to the server's"}
    record(args.output, found, left_out)
    print(json.dumps({k: found[k] for k in ("best_mode", "against", "cells_per_s", "first_answer_s", "load")}, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--server"]:
        serve_chat()
    elif sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:5])
    else:
        main()

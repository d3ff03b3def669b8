"""Budgets with calls that really are in flight together: what the server bills is never more than the cap."""

import math
import threading
import time
from string import ascii_letters, ascii_lowercase

import pytest
from chat_server import Server

from llmops_workbench.budgets import Budget
from llmops_workbench.caches import CompletionCache
from llmops_workbench.completions import Completion, Model, ScriptedModel
from llmops_workbench.endpoints import Endpoint
from llmops_workbench.errors import ParameterValueError
from llmops_workbench.models import load_model

PRICES = {"desk": (1e-6, 2e-6)}
TICKETS = [f"ticket {a}{b}" for a in ascii_lowercase for b in ascii_letters][:900]  # no number, which the server might take for a status
CALL = len(TICKETS[0])*1e-6 + 3*2e-6  # what the server bills for one


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def endpoint(server, **options):
    return Endpoint(f"{server.base}/v1#desk", **{"prices": PRICES, "concurrency": 100, "backoff_s": 0.01, **options})


def highest(max_new_tokens):
    "The upper estimate of one call."
    return (len(TICKETS[0]) + 32)*1e-6 + max_new_tokens*2e-6


def test_a_hundred_calls_in_flight_do_not_overshoot_together(server):
    "The answers are as long as they may be, so each call in flight could be the one too many."
    server.latency_s, cap = 0.2, 600*CALL
    budget = Budget(most_cost=cap)
    frame = endpoint(server).generate(TICKETS, budget=budget, max_new_tokens=3)
    asked = frame["error"] == ""
    assert server.most_active > 50, "without calls in flight together there is nothing to prove"
    assert cap - highest(3) <= server.billed <= cap
    assert budget.spent == {"calls": int(asked.sum()), "tokens": server.tokens, "cost": pytest.approx(server.billed), "n_estimated": 0}
    assert len(server.bodies) == asked.sum() and frame["error"][~asked].str.contains("the budget of 0.009 is used up").all()


def test_two_models_share_one_budget_from_two_threads(server):
    budget, frames = Budget(most_calls=77), []
    models = [endpoint(server), ScriptedModel("echo")]
    threads = [threading.Thread(target=lambda m=m: frames.append(m.generate(TICKETS[:60], budget=budget))) for m in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum((f["error"] == "").sum() for f in frames) == 77 == budget.spent["calls"]


def test_a_cap_that_is_lowered_while_calls_are_in_flight_holds_from_the_next_call_on(server):
    server.latency_s, budget, at_that_time = 0.05, Budget(most_calls=400), []

    def lower(position, completion):
        if budget.most_calls == 400:
            budget.most_calls = 1
            at_that_time.append(len(server.bodies))
    frame = endpoint(server, concurrency=8).generate(TICKETS[:100], budget=budget, on_completion=lower)
    assert len(server.bodies) <= at_that_time[0] + 8
    assert (frame["error"] == "").sum() == len(server.bodies), "what was in flight is answered and kept"


def test_a_cap_that_is_raised_in_time_lets_the_run_go_on(server):
    budget = Budget(most_calls=20)
    frame = endpoint(server, concurrency=4).generate(TICKETS[:40], budget=budget,
                                                     on_completion=lambda position, c: setattr(budget, "most_calls", 40))
    assert (frame["error"] == "").all()


@pytest.mark.parametrize("concurrency", [1, 16])
def test_calls_that_try_again_and_calls_that_wait_for_the_budget_do_not_block_each_other(server, concurrency):
    prompts = [f"429 once {i}" for i in range(10)] + [f"500 once {i}" for i in range(10)]
    budget = Budget(most_tokens=1000)
    start = time.monotonic()
    frame = endpoint(server, concurrency=concurrency).generate(prompts, budget=budget, max_new_tokens=200)
    assert time.monotonic() - start < 20
    assert (frame["error"] == "").all() and budget.spent["tokens"] == server.tokens


def test_without_a_price_nothing_is_asked(server):
    with pytest.raises(ParameterValueError, match="no price of '.*desk' is known"):
        endpoint(server, prices={}).generate(TICKETS, budget=Budget(most_cost=5))
    with pytest.raises(ParameterValueError, match="no price of '.*desk' is known"):
        endpoint(server, prices={"desk": (math.nan, 1e-6)}).generate(TICKETS, budget=Budget(most_cost=5))
    assert server.bodies == []
    assert (endpoint(server, prices={}).generate(TICKETS[:2], budget=Budget(most_tokens=5000))["error"] == "").all()


@pytest.mark.parametrize("prompt,calls,estimated", [
    ("fine", 1, 0), ("no count", 1, 1), ("wrong count", 1, 1), ("400", 1, 0), ("500 always", 1, 0), ("slow once", 1, 0), ("refuse", 1, 0), ("huge", 1, 1), ("hang", 1, 1)])
def test_what_was_billed_is_spent_and_what_nobody_knows_is_estimated(server, prompt, calls, estimated):
    "A call that was refused is free; one that broke off may be on the bill."
    budget = Budget(most_cost=1.0)
    endpoint(server, timeout_s=0.4, retries=1).generate([prompt], budget=budget)
    spent = budget.spent
    assert (spent["calls"], spent["n_estimated"]) == (calls, estimated)
    assert spent["cost"] > server.billed if estimated else spent["cost"] == pytest.approx(server.billed)


def test_calls_that_are_cancelled_count_as_estimated(server):
    budget, stop = Budget(most_cost=1.0), threading.Event()
    threading.Timer(0.5, stop.set).start()
    endpoint(server).generate(["hang 1", "hang 2"], budget=budget, should_stop=stop.is_set)
    assert budget.spent["n_estimated"] == 2 and not budget.overdrawn


def test_equal_prompts_are_one_call_of_the_budget(server):
    budget = Budget(most_calls=2)
    assert (endpoint(server).generate(["same"]*5 + ["other"], budget=budget)["error"] == "").all()


def test_cached_answers_are_free(server, tmp_path):
    cache, budget = CompletionCache(tmp_path / "cache.db"), Budget(most_calls=3)
    for _ in range(3):
        assert (endpoint(server).generate(TICKETS[:3], cache=cache, budget=budget)["error"] == "").all()
    assert budget.spent["calls"] == 3


def test_instructions_that_a_server_hides_are_learnt():
    "Each prompt costs 500 tokens more than anybody could know: the cap holds all the same, save for the first call."
    class Hiding(Model):
        name = "hiding"

        def complete(self, conversations, sampling):
            for position, _ in enumerate(conversations):
                yield position, Completion("ok", 500, 10, 0.0, 0.0)
    budget = Budget(most_tokens=3000)
    frame = Hiding().generate(TICKETS[:100], budget=budget, max_new_tokens=10)
    assert 2000 <= budget.spent["tokens"] <= 3000 + 510 and (frame["error"] == "").sum() == budget.spent["calls"]


def test_a_local_model_keeps_to_a_budget_of_tokens(tmp_path):
    from tiny_models import save_model
    model = load_model(str(save_model(tmp_path / "tiny")))
    free = model.generate(["please help", "the printer", "floor two"]*4, max_new_tokens=8)
    budget = Budget(most_tokens=80)
    frame = model.generate(["please help", "the printer", "floor two"]*4, max_new_tokens=8, budget=budget)
    asked = frame["error"] == ""
    assert 0 < asked.sum() < 12 and budget.spent["tokens"] == (frame["prompt_tokens"] + frame["completion_tokens"]).sum() <= 80
    assert frame["completion"][asked].tolist() == free["completion"][asked].tolist()

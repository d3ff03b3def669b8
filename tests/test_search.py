"""The search core: nothing lost or counted twice whenever it is killed, no budget overrun by more than a step, no best trial stopped, and less compute
than a grid or random search."""

import itertools
import json
import logging
import math
import statistics
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmops_workbench.errors import ParameterValueError
from llmops_workbench.fronts import beats_all, keep_best, volume_above
from llmops_workbench.search import Search, StepBudget, goes_on

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

SPACE = {"learning_rate": [1e-4, 1e-3, 1e-2], "max_steps": [9, 27, 81], "packing": [True, False]}
GOALS = {"quality": "max", "steps": "min"}
QUIET = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
points_of = st.integers(2, 4).flatmap(lambda m: st.lists(st.lists(st.integers(0, 4), min_size=m, max_size=m), min_size=1, max_size=7))


def measured(params, share):
    steps = params["max_steps"] * share
    return {"quality": 1 - abs(math.log10(params["learning_rate"]) + 3) / 4 - 1 / (1 + steps / 10) + 0.01 * params["packing"], "steps": steps}


def cost(params, since, share):
    return {"tokens": params["max_steps"] * (share - since)}


def make(seed=0, **options):
    return Search(SPACE, GOALS, **{"seed": seed, "sampler": "random", **options})


def finish(search):
    while step := search.ask():
        walk(search, step)
    return search


def walk(search, step):
    verdict, rung, since = "go on", step.rung, step.since
    while verdict == "go on":
        share = search.rungs[rung]
        verdict = search.tell(step.number, rung, measured(step.params, share), cost(step.params, since, share))
        rung, since = rung + 1, share


@QUIET
@given(points_of)
def test_the_hypervolume_is_the_number_of_unit_cubes_below_the_points(rows):
    points = np.array(rows)
    cubes = itertools.product(*(range(5) for _ in range(points.shape[1])))
    assert volume_above(points, [0] * points.shape[1]) == sum(any((point > cube).all() for point in points) for cube in cubes)


@QUIET
@given(points_of, st.integers(0, 7))
def test_the_best_few_are_whole_layers_first(rows, n):
    points = np.array(rows, float)
    kept = keep_best(points, n)
    assert kept.sum() == min(n, len(points))
    # A point that is left out is beaten by none that it beats itself.
    for out, into in itertools.product(np.flatnonzero(~kept), np.flatnonzero(kept)):
        assert not ((points[out] >= points[into]).all() and (points[out] > points[into]).any())


def test_of_a_layer_those_are_kept_that_add_most_space():
    "One for each end of a line and the middle, not two that are much the same."
    points = np.array([[0, 4], [0.2, 3.8], [2, 2], [3.8, 0.2], [4, 0]])
    best = max(itertools.combinations(range(5), 1), key=lambda chosen: volume_above(points[list(chosen)], [-0.4, -0.4]))
    assert np.flatnonzero(keep_best(points, 1)).tolist() == list(best) == [2]
    assert keep_best(points, 3)[2] and keep_best(points, 3)[[0, 1]].sum() == keep_best(points, 3)[[3, 4]].sum() == 1


@QUIET
@given(points_of, st.floats(1, 5), st.integers(0, 5))
def test_a_trial_that_beats_all_others_is_never_stopped(rows, reduction_factor, min_peers):
    points = np.array(rows, float)
    if not (points == points.max(0)).all(1).any(): assert goes_on(np.vstack([points, points.max(0)]), reduction_factor, min_peers)
    alone = np.vstack([points, [points[:, 0].max() + 1, *points[:, 1:].min(0)]])
    assert goes_on(alone, reduction_factor, min_peers)


def test_a_trial_far_behind_is_stopped_and_with_few_others_it_is_not():
    others = np.array([[5.0, 5], [4, 6], [6, 4]])
    hopeless = [1.0, 1]
    assert not goes_on(np.vstack([others, hopeless]), 3, 3) and goes_on(np.vstack([others[:2], hopeless]), 3, 3)


@QUIET
@given(st.lists(st.tuples(st.sampled_from(["ask", "tell", "tell", "tell", "again", "fail", "kill", "release"]), st.integers(0, 10**6)), max_size=60), st.integers(0, 3))
def test_nothing_is_lost_or_counted_twice_wherever_a_search_is_killed(acts, seed):
    "Workers ask and tell in any order, tell again, fail and die, and the search is read back from JSON at any point."
    search, workers, spent, handed_out = make(seed), {}, {}, {}
    for act, pick in acts:
        if act == "ask":
            if (step := search.ask()) is None: continue
            assert step.number not in workers and handed_out.setdefault(step.number, step.params) == step.params
            workers[step.number] = step.rung
        elif act == "kill":
            before = search.frame.drop(columns="state")
            search, workers = Search.from_dict(json.loads(json.dumps(search.to_dict()))), {}
            pd.testing.assert_frame_equal(search.frame.drop(columns="state"), before)
            assert not search.running and not search.budget.busy
        elif workers:
            number = sorted(workers)[pick % len(workers)]
            params, rung = handed_out[number], workers[number]
            since, share = (0 if rung == 0 else search.rungs[rung - 1]), search.rungs[rung]
            if act == "release":
                search.release(number)
                del workers[number]
                continue
            if act == "again":
                if rung: assert search.tell(number, rung - 1, measured(params, since), {"tokens": 10**9}) == "go on"
                continue
            spent[number, rung] = cost(params, since, share)["tokens"]
            verdict = search.tell(number, rung, measured(params, share), {"tokens": spent[number, rung]}) if act == "tell" else search.fail(number, "lost", {"tokens": spent[number, rung]})
            workers[number] = rung + 1
            if verdict != "go on": del workers[number]
    assert search.budget.spent.get("tokens", 0) == pytest.approx(math.fsum(spent.values()))
    for number in workers: search.release(number)
    ended = finish(search)
    assert ended.frame.state.isin(["done", "stopped", "failed"]).all() and len(ended.trials) == 18
    assert len({tuple(t.params.values()) for t in ended.trials}) == 18


@QUIET
@given(st.floats(0, 400), st.integers(1, 4), st.booleans(), st.data())
def test_a_budget_is_never_overrun_by_more_than_a_step(most, n_workers, estimated, data):
    "Any order of answers; without estimates one worker alone, with them any number."
    search, under_way, steps = make(budget={"tokens": most}, estimate=cost if estimated else None), {}, [0.0]
    while True:
        while len(under_way) < (n_workers if estimated else 1) and (step := search.ask()): under_way[step.number] = step.params, step.rung
        if not under_way: break
        number = data.draw(st.sampled_from(sorted(under_way)))
        params, rung = under_way.pop(number)
        share, since = search.rungs[rung], search.rungs[rung - 1] if rung else 0
        steps.append(cost(params, since, share)["tokens"])
        if search.tell(number, rung, measured(params, share), {"tokens": steps[-1]}) == "go on": under_way[number] = params, rung + 1
    spent = search.budget.spent["tokens"]
    assert spent == pytest.approx(math.fsum(steps))
    assert spent <= most + (1e-6 if estimated else max(steps))
    if len(search.trials) < 18: assert search.pause == "the budget is used up"


def test_a_larger_budget_goes_on_with_the_trials_that_waited():
    poor = finish(make(budget={"tokens": 100}, estimate=cost))
    assert "waiting" in set(poor.frame.state)
    rich = finish(Search.from_dict(poor.to_dict(), estimate=cost, budget={"tokens": 10**6}))
    assert rich.frame.state.isin(["done", "stopped"]).all()
    assert [t.params for t in rich.trials[:len(poor.trials)]] == [t.params for t in poor.trials]


def test_a_step_that_nobody_can_estimate_goes_alone_at_first():
    budget = StepBudget({"seconds": 100})
    assert budget.hold(0, 0) and not budget.hold(1, 0)
    budget.settle(0, 0, {"seconds": 60})
    assert budget.hold(1, 0) and not budget.hold(2, 0)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_same_seed_has_the_same_trials_also_after_a_kill(sampler):
    "Of fourteen trials, four are proposed by the sampler."
    whole, killed = (make(sampler=sampler, seed=5) for _ in range(2))
    for search, at in ((whole, ()), (killed, (3, 11))):
        for i in range(14):
            if i in at: search = Search.from_dict(json.loads(json.dumps(search.to_dict())))
            walk(search, search.ask())
        ended = search.frame
        if search is whole: first = ended
    pd.testing.assert_frame_equal(ended, first)
    other = make(sampler=sampler, seed=6)
    assert [other.ask().params for _ in range(5)] != first[list(SPACE)].head(5).to_dict("records")


def test_points_under_way_are_not_proposed_to_another_worker():
    search = make(sampler="tpe")
    for _ in range(10): walk(search, search.ask())
    asked = [search.ask() for _ in range(8)]
    assert len({tuple(t.params.values()) for t in search.trials}) == 18 and search.ask() is None and search.pause == "every point has been tried"
    assert len(search.running) == len(asked) == 8


def test_a_search_leaves_optunas_logging_as_it_was(caplog):
    import optuna
    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    optuna.logging.enable_propagation()
    try:
        with caplog.at_level(logging.DEBUG):
            search = make(sampler="tpe")
            for _ in range(12): walk(search, search.ask())
        assert not caplog.records and optuna.logging.get_verbosity() == optuna.logging.DEBUG
    finally:
        optuna.logging.disable_propagation()
        optuna.logging.set_verbosity(optuna.logging.INFO)


@pytest.mark.parametrize("wrong, message", [({"quality": 1}, "Every objective needs a number"), ({"quality": True, "steps": 1}, "needs a number"), ({"quality": "good", "steps": 1}, "needs a number")])
def test_what_is_told_has_a_number_for_every_objective(wrong, message):
    search = make()
    search.ask()
    with pytest.raises(ParameterValueError, match=message): search.tell(0, 0, wrong)
    with pytest.raises(ParameterValueError, match="0 or more"): search.tell(0, 0, {"quality": 1, "steps": 1}, {"tokens": -1})
    assert search.frame.state.tolist() == ["running"] and len(search.events) == 1


def test_a_quarter_of_the_compute_finds_what_the_grid_finds_and_random_search_needs_more():
    "The made table of the benchmark, three seeds; each side ends where it has 95 % of the grid's hypervolume, or three tenths of its compute."
    import tune
    table = tune.made_table()
    grid = tune.Replay(table)
    assert len(table) == 200 and 5 < beats_all(np.array([grid.up(rows[-1]) for rows in table.values()])).sum() < 100

    def needed(side): return statistics.median(tune.reached(grid.curve(tune.up_to(tune.SIDES[side](table, seed), tune.MOST * grid.total), tune.REACH)) for seed in range(3))
    ours, random = needed("ours"), needed("random")
    assert ours <= tune.QUARTER and ours < random

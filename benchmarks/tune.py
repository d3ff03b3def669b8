"""Does a search find what a grid finds, for a quarter of the compute? 200 recorded trials, replayed.

Each trial of the grid was trained once, and measured at every rung: the table is `benchmarks/tune_trials.csv`, made by `--record`. A search that asks for a
trial is told what the table says, and pays the compute that the step took. Reported: compute, as a share of the whole grid's, at which the hypervolume of the
trials trained to the end reaches 95 % of the grid's; median of 20 seeds. Without a recorded table a made one is replayed, and the report says so.
Quality is the probability that the model gives to a right token of held-out answers (the geometric mean, which tells trials apart long before
whole answers come out right), compute the multiplications of the training from its tokens, inference those of a token
with the adapter left unmerged; all three are counted, none is timed, so a table is the same on every machine up to rounding.
`python benchmarks/tune.py [--seeds 20] [--sides NAME ...] [--record [N]] [--output FILE]`
"""

import argparse
import csv
import itertools
import math
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from peers import record

from llmops_workbench.fronts import volume_above
from llmops_workbench.search import Search, quiet_optuna
from llmops_workbench.spaces import Space

TABLE = Path(__file__).with_name("tune_trials.csv")
RUNGS = [1 / 9, 1 / 3, 1.0]
SPACE = {"learning_rate": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2], "lora_r": [2, 4, 8, 16], "max_steps": [18, 36, 72, 144, 288], "target_modules": ["q_proj,v_proj", "all-linear"]}
OBJECTIVES = {"quality": "max", "train_flops": "min", "inference_flops": "min"}
RESULTS = Path(__file__).parent / "results" / "tune.json"
REACH, QUARTER, MOST = 0.95, 0.25, 0.3  # Part of the grid's hypervolume; shares of its compute: the aim, and where a replay ends
FIELDS = [*SPACE, "rung", "share", "quality", "eval_exact", "tokens", "train_flops", "inference_flops"]


def train_and_measure(point):
    "One fine-tune of the starter on the sample data, measured at every rung: a row a rung."
    from types import SimpleNamespace

    from llmops_workbench.finetuning import read_order
    from llmops_workbench.models import import_torch, import_transformers, load_local
    from llmops_workbench.schedules import make_schedule, rows_needed
    from llmops_workbench.sequences import encode_examples
    from llmops_workbench.training import inner_network, make_trainer, score_held_out
    order = read_order({"model_name_or_path": "starter", "dataset": "helpdesk", **point, "per_device_train_batch_size": 8, "dtype": "float32", "eval_samples": 200, "seed": 0})
    torch, options, fit, held = import_torch(), SimpleNamespace(**order.options), order.fit.frame, order.held_out.frame
    torch.manual_seed(0)
    local = load_local(str(order.folder), device="cpu", dtype="float32")
    tokenizer, options.max_length = local.tokenizer, min(options.max_length, local.context_tokens)
    schedule, held_out = make_schedule(options, len(fit)), encode_examples(tokenizer, held, options.max_length, local.network)
    encoded = encode_examples(tokenizer, rows_needed(fit, options, schedule), options.max_length, local.network)
    marks, rows = {round(share * point["max_steps"]): rung for rung, share in enumerate(RUNGS)}, []
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(local.network, tokenizer, encoded, options, schedule, Path(folder))
        trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        weights = local.n_parameters + trained

        class Rungs(import_transformers().TrainerCallback):
            def on_train_begin(self, args, state, control, **kwargs): schedule.start()

            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step not in marks: return
                scores = score_held_out(inner_network(trainer.model), held_out, held["task"], 32, tokenizer.pad_token_id)
                # Two multiplications a weight and token forward, two for the way back, two more for each weight that is trained.
                rows.append({**point, "rung": marks[state.global_step], "share": round(RUNGS[marks[state.global_step]], 4), "quality": round(math.exp(-scores["eval_loss"]), 6),
                             "eval_exact": round(scores["eval_exact"], 6), "tokens": int(schedule.tokens), "train_flops": int(schedule.tokens) * (4 * weights + 2 * trained), "inference_flops": 2 * weights})
        trainer.add_callback(Rungs())
        trainer.train()
    return rows


def record_trials(n=None, path=TABLE):
    "Train the trials of the grid that the table lacks, n of them at most, spread over the grid; each is written down when it is done."
    points, done = list(itertools.product(*SPACE.values())), set(read_table(path)) if path.exists() else set()
    todo = [points[i] for i in np.random.default_rng(0).permutation(len(points)) if points[i] not in done][:n]
    for i, values in enumerate(todo):
        began = time.perf_counter()
        rows = train_and_measure(dict(zip(SPACE, values)))
        with open(path, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            if not file.tell(): writer.writeheader()
            writer.writerows(rows)
        print(f"{len(done) + i + 1} of {len(points)}: {dict(zip(SPACE, values))} {[row['quality'] for row in rows]} in {time.perf_counter() - began:.0f} s", flush=True)


def read_table(path=TABLE):
    "Point -> rows of its rungs; a trial whose rows are not all there is left out, so that it is recorded again."
    kinds, table = {name: type(values[0]) for name, values in SPACE.items()}, {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rows = table.setdefault(tuple(kind(row[name]) for name, kind in kinds.items()), {})
            rows[int(row["rung"])] = {name: float(row[name]) for name in OBJECTIVES}
    return {point: [rows[rung] for rung in range(len(RUNGS))] for point, rows in table.items() if len(rows) == len(RUNGS)}


def made_table(seed=0):
    """A table as fine-tunes make it: point -> rows of its rungs, each the objectives at that share.

    Quality rises with the learning done, rate times steps, along a power law towards a ceiling that rank and modules raise a little. Too high a rate for the
    number of trained weights does harm. Half-way through a run the rate has not come down yet, so that a high rate looks worse than it will be: curves cross.
    Every measurement has the noise of some hundred held-out examples.
    """
    rng, table = np.random.default_rng(seed), {}
    for values in itertools.product(*SPACE.values()):
        rate, rank, steps, modules = values
        wide = modules == "all-linear"
        weights = rank * (7 if wide else 2)
        ceiling = 0.93 - 0.16 / weights ** 0.5 - 0.02 * (not wide)
        best_rate = 6e-3 / (weights / 16) ** 0.25
        harm = max(0.0, math.log10(rate / best_rate)) ** 2 * 0.5
        rows = []
        for share in RUNGS:
            learned = (steps * share * min(rate, 3 * best_rate) / 0.05) ** 0.8
            heat = 0.08 * min(1, rate / best_rate) * (1 - share)
            quality = ceiling * (1 - 1 / (1 + learned)) - harm - heat + rng.normal(0, 0.008)
            rows.append({"quality": max(0.0, quality), "train_flops": steps * share * (1 + weights / 150) * 1e9, "inference_flops": (1 + weights / 150) * 1e6})
        table[values] = rows
    return table


class Replay:
    "The grid's front, and how much of it a list of trained trials has."
    def __init__(self, table):
        self.table, self.total = table, sum(rows[-1]["train_flops"] for rows in table.values())
        ends = np.array([self.up(rows[-1]) for rows in table.values()])
        # What is worth nothing: a twentieth below the worst of the grid, on every side.
        self.low, self.high = ends.min(0), ends.max(0)
        self.whole = self.volume(ends)

    def up(self, row):
        "Higher is better on every side; compute counts by factors, for from 1 to 2 is as far as from 100 to 200."
        return np.array([row["quality"], -math.log(row["train_flops"]), -math.log(row["inference_flops"])])

    def volume(self, points): return volume_above((points - self.low) / (self.high - self.low), [-0.05] * len(OBJECTIVES)) if len(points) else 0.0

    def curve(self, steps, enough=math.inf):
        "Pairs of compute spent and part of the grid's hypervolume, after each trial trained to the end, until there is enough."
        spent, ends, found = 0.0, [], []
        for cost, row in steps:
            spent += cost
            if row is None: continue
            ends.append(self.up(row))
            found.append((spent / self.total, self.volume(np.array(ends)) / self.whole))
            if found[-1][1] >= enough: break
        return found


def searched(table, seed, **options):
    "Steps of our search, one worker: what each costs, and the trial's row where it was trained to the end."
    search = Search(SPACE, OBJECTIVES, **{"rungs": RUNGS, "seed": seed, **options})
    while asked := search.ask():
        rows, verdict = table[tuple(asked.params.values())], "go on"
        for rung in range(asked.rung, len(search.rungs)):
            at = RUNGS.index(search.rungs[rung])
            cost = rows[at]["train_flops"] - (rows[RUNGS.index(search.rungs[rung - 1])]["train_flops"] if rung else 0)
            verdict = search.tell(asked.number, rung, rows[at], {"flops": cost})
            yield cost, rows[at] if verdict == "done" else None
            if verdict != "go on": break


def evolved(table, seed):
    "Steps of NSGA-II, trials trained to the end; a point that it proposes again is looked up for nothing."
    space, seen = Space(SPACE), set()
    with quiet_optuna() as optuna:
        study = optuna.create_study(directions=[f"{way}imize" for way in OBJECTIVES.values()], sampler=optuna.samplers.NSGAIISampler(population_size=20, seed=seed))
    for _ in range(5 * len(table)):
        with quiet_optuna(): trial = study.ask(space.distributions())
        values = tuple(space.outside(trial.params).values())
        row = table[values][-1]
        with quiet_optuna(): study.tell(trial, [row[name] for name in OBJECTIVES])
        if values not in seen: yield row["train_flops"], row
        seen.add(values)


def side(**options): return lambda table, seed: searched(table, seed, **options)


SIDES = {"ours": side(), "GP with halving": side(sampler="gp"), "TPE with halving": side(sampler="tpe"), "random with halving": side(sampler="random"),
         "GP": side(sampler="gp", rungs=[1.0]), "TPE": side(sampler="tpe", rungs=[1.0]), "NSGA-II": evolved, "random": side(sampler="random", rungs=[1.0])}
SHOWN = ["ours", "TPE", "random"]


def up_to(steps, most):
    "Steps until so much compute is spent."
    spent = 0.0
    for cost, row in steps:
        yield cost, row
        spent += cost
        if spent >= most: return


def reached(curve):
    "Share of the grid's compute at which REACH of its hypervolume is reached; infinite where it was not."
    return next((spent for spent, volume in curve if volume >= REACH), math.inf)


def at(curve, share):
    "Part of the grid's hypervolume that is reached with a share of its compute."
    return max((volume for spent, volume in curve if spent <= share), default=0.0)


def replay(table, seeds, sides, most=MOST):
    "A row a side: medians over seeds."
    grid, rows = Replay(table), []
    for name in sides:
        began, curves = time.perf_counter(), [grid.curve(up_to(SIDES[name](table, seed), most * grid.total)) for seed in seeds]
        needs = sorted(reached(curve) for curve in curves)
        rows.append({"side": name, "compute_to_95": statistics.median(needs), "worst_compute_to_95": needs[-1], **{f"hypervolume_at_{share}": round(statistics.median(at(c, share) for c in curves), 4) for share in (0.05, 0.1, QUARTER)},
                     "seconds_a_search": round((time.perf_counter() - began) / len(curves), 2)})
        print(f"{name:20} 95 % for {rows[-1]['compute_to_95']:6.1%} of the compute (worst seed {needs[-1]:6.1%}); "
              + ", ".join(f"{rows[-1][f'hypervolume_at_{share}']:.1%} at {share:.0%}" for share in (0.05, 0.1, QUARTER)), flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=SHOWN)
    parser.add_argument("--record", type=int, nargs="?", const=10**6, metavar="N", help="train what the table lacks, N trials at most, and stop")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.record is not None: return record_trials(options.record)
    table = read_table() if TABLE.exists() else {}
    recorded = len(table) == math.prod(map(len, SPACE.values()))
    print(f"{len(table)} recorded trials" if recorded else f"{len(table)} of 200 trials are recorded (`--record` makes the rest), so a made table is replayed", flush=True)
    rows = replay(table if recorded else made_table(), range(options.seeds), options.sides)
    if recorded: record(options.output, {"python": platform.python_version(), "seeds": options.seeds, "trials": len(table), "rows": rows})
    else: print(f"{options.output.name} stays as it is: its figures are of recorded trials.")
    by_side = {row["side"]: row for row in rows}
    if {"ours", "random"} <= set(by_side):
        ours, random = by_side["ours"], by_side["random"]
        ahead = ours["compute_to_95"] < random["compute_to_95"] and ours[f"hypervolume_at_{QUARTER}"] >= random[f"hypervolume_at_{QUARTER}"]
        if not (ahead and ours["compute_to_95"] <= QUARTER): sys.exit("Ours is not ahead of random search, or needs more than a quarter of the grid's compute.")


if __name__ == "__main__":
    main()

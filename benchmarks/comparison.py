"""A comparison beside sacrebleu's paired tests, and what another question costs once everything is scored.

All pairs: 1,000 bootstrap samples of BLEU for 16 systems on 5,000 segments, all 120 pairs of them, beside sacrebleu's `PairedTest` for one pair. Both give
the same BLEU, and for that pair p-values and intervals that agree within sampling error. Another question: 20 systems on 10,000 examples; a change of
baseline, of metric and of slice, in milliseconds of this process. What the changed comparison says equals what a new one says. The panel: the same
clicks in the live panel with 60 parameters a system, from the click until the widgets hold what a browser shows, with the overview open. Kept: the
same comparison, and one of half of the examples, with an empty shelf of counts and with one that knows them. Both sides have one thread: what a second
one spins while it waits would be counted as work of this process.
`python benchmarks/comparison.py [--systems 16] [--segments 5000] [--runs 20] [--examples 10000] [--output FILE]`
"""

import argparse
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

for library in ("OPENBLAS", "OMP", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")
os.environ["LLMOPS_NUMBA"] = "1"  # so that the small first calls load what the large ones use

import numpy as np
import pandas as pd
from peers import record
from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest

from llmops_workbench.comparison import compare
from llmops_workbench.contrasts import all_pairs
from llmops_workbench.evidence import gather, pair
from llmops_workbench.helpdesk import generate_helpdesk
from llmops_workbench.significance import difference_p_value
from llmops_workbench.systems import as_system
from llmops_workbench.widgets.compare import ComparePanel
from llmops_workbench.widgets.panel import Live

METRICS = ["token_f1", "rougeL", "bleu", "exact_match"]


def answers(n, k, seed=0):
    "References, and k systems that mend more and more words of a wrong answer."
    rng, texts = np.random.default_rng(seed), generate_helpdesk(n_rows=min(n, 5000), seed=7)[0]["summary"].tolist()
    wanted = [f"{texts[i % len(texts)]} on floor {rng.integers(100)}" for i in range(n)]
    other = wanted[1:] + wanted[:1]
    words = [(a.split(), b.split()) for a, b in zip(wanted, other)]
    def answer(share): return [" ".join(right if rng.random() < share else wrong for right, wrong in zip(a, b)) for a, b in words]
    return wanted, {f"system {i:02}": answer(0.5 + 0.002 * i) for i in range(k)}


def timed(function):
    start = time.process_time()
    found = function()
    return found, time.process_time() - start


def pairs(n_systems, n_segments):
    wanted, systems = answers(n_segments, n_systems)
    names = list(systems)
    frames = {name: as_system(pd.DataFrame({"id": range(n_segments), "prediction": given, "references": wanted}), name) for name, given in systems.items()}
    # Imports and first calls are left out on both sides.
    all_pairs(_scored({name: frame[:50] for name, frame in frames.items()}), "bleu")

    paired, scoring_s = timed(lambda: _scored(frames))
    table, testing_s = timed(lambda: all_pairs(paired, "bleu"))
    two = [(name, systems[name]) for name in names[:2]]
    (_, theirs), theirs_s = timed(lambda: PairedTest(two, {"BLEU": BLEU(references=[wanted])}, references=None, test_type="bs", n_samples=1000, n_jobs=1)())
    first, second = theirs["BLEU"]
    values = dict(zip(names, paired.values("bleu")))
    assert abs(values[names[0]] - first.score) < 1e-9 and abs(values[names[1]] - second.score) < 1e-9
    samples = dict(zip(names, paired.samples("bleu")))
    mine = difference_p_value(samples[names[1]] - samples[names[0]], values[names[1]] - values[names[0]], "sacrebleu")
    assert abs(mine - second.p_value) <= 4 * np.sqrt(max(second.p_value * (1 - second.p_value), 0.001) / 1000) * np.sqrt(2), (mine, second.p_value)
    half = np.diff(np.quantile(samples[names[1]], [0.025, 0.975]))[0] / 2
    assert abs(half / second.ci - 1) < 0.2, (half, second.ci)
    print(f"{len(table)} pairs of {n_systems} systems x {n_segments:,} segments: ours {testing_s:.2f} s, and {scoring_s:.2f} s to score; sacrebleu, one pair, scored and tested: {theirs_s:.2f} s")
    print(f"  all pairs beside one pair: {theirs_s / testing_s:.1f} times as fast without scoring, {theirs_s / (testing_s + scoring_s):.2f} with it")
    return {"n_systems": n_systems, "n_segments": n_segments, "n_pairs": len(table), "testing_s": testing_s, "scoring_s": scoring_s, "sacrebleu_one_pair_s": theirs_s,
            "ratio_without_scoring": theirs_s / testing_s, "ratio_with_scoring": theirs_s / (testing_s + scoring_s), "p_value": [mine, second.p_value]}


def _scored(frames):
    evidence = gather(frames, "")
    evidence.count(["bleu"])
    return pair(evidence, list(frames))


def described(n_runs, n_examples):
    "Systems whose examples are known by more than their text."
    wanted, systems = answers(n_examples, n_runs)
    rng = np.random.default_rng(0)
    room = rng.choice(["office", "lab", "home", "shop"], n_examples)
    ids = [f"{i:06}" for i in range(n_examples)]
    return {name: pd.DataFrame({"id": ids, "prediction": given, "references": wanted, "room": room}) for name, given in systems.items()}


def questions(frames):
    names, rng = list(frames), np.random.default_rng(0)
    n_runs, n_examples = len(names), len(frames[names[0]])
    first, scoring_s = timed(lambda: compare(frames, metrics=METRICS, slices=False))
    quarter, half = (first.about["room"].isin(rooms).to_numpy() for rooms in (["lab"], ["lab", "home"]))
    asked = {"baseline": lambda i: {"baseline": names[(1 + i) % n_runs]}, "metric": lambda i: {"metrics": [METRICS[i % 4]]}, "systems": lambda i: {"systems": names[i % (n_runs - 1):]},
             "slice of a quarter": lambda i: {"rows": quarter & (rng.random(n_examples) < 0.99)}, "slice of a half": lambda i: {"rows": half & (rng.random(n_examples) < 0.99)},
             "slice of a half, randomisation": lambda i: {"rows": half & (rng.random(n_examples) < 0.99), "test": "randomisation"}}
    found = {}
    for name, change in asked.items():
        first.again(**change(0))
        # The least of seven: time of this process still grows with what the neighbours on its cores do.
        found[name] = min(timed(lambda i=i, change=change: (again := first.again(**change(i)), again.words()))[1] for i in range(1, 8)) * 1000
    again, listing_s = timed(lambda: first.again(baseline=names[-1]).examples)
    _, slicing_s = timed(lambda: first.slices)
    fresh = compare({name: frame[half] for name, frame in frames.items()}, metrics=METRICS, baseline=names[-1], slices=False)
    pd.testing.assert_frame_equal(first.again(baseline=names[-1], rows=half).frame, fresh.frame)
    print(f"{n_runs} runs x {n_examples:,} examples x {len(METRICS)} metrics; the first comparison took {scoring_s:.0f} s, nearly all of it scoring")
    for name, ms in found.items():
        print(f"  another {name:32} {ms:6.0f} ms")
    print(f"  all {len(again):,} examples as a table      {listing_s * 1000:6.0f} ms\n  looking through all rules for slices    {slicing_s:6.1f} s")
    return {"n_runs": n_runs, "n_examples": n_examples, "metrics": METRICS, "first_s": scoring_s, "milliseconds": found, "listing_ms": listing_s * 1000, "slices_s": slicing_s}


def kept(frames):
    half = {name: frame[np.random.default_rng(0).permutation(len(frame)) < len(frame) // 2] for name, frame in frames.items()}
    def asked(some): return timed(lambda: compare(some, metrics=METRICS, slices=False))
    found, tables = {}, {}
    for name, first, then in (("whole", frames, frames), ("half", half, half), ("half of what is known", frames, half)):
        with TemporaryDirectory() as folder:
            os.environ["LLMOPS_WORKSPACE"] = folder
            found[f"{name}, first"] = asked(first)[1]
            result, found[f"{name}, again"] = asked(then)
            tables[name] = result.frame
    pd.testing.assert_frame_equal(tables["half"], tables["half of what is known"])
    print("a comparison in seconds, first with an empty shelf and again with what it keeps")
    for name in tables:
        print(f"  {name:40} {found[f'{name}, first']:6.2f} {found[f'{name}, again']:6.2f}")
    return found


def clicks(frames, n_params=60):
    names, n_examples = list(frames), len(next(iter(frames.values())))
    panel = ComparePanel(systems=frames, metrics=METRICS)
    panel._rest_s = 3600  # the static face is drawn when nobody clicks any more, outside of what is measured
    whole = panel.run()
    for i, system in enumerate(whole.systems.values()):
        system.params.update({"learning_rate": f"{10**(-2 - i/5):.3g}", "seed": str(i % 3), **{f"option.{k:02}": str(k) for k in range(n_params - 2)}})
    panel.live = Live(panel)
    panel.live.show(whole)
    sizes = {rule: int(whole.rows_of(rule).sum()) for rule in panel.rules}
    quarters, halves = ([rule for rule, n in sizes.items() if low * n_examples < n <= high * n_examples][:7] for low, high in ((0.1, 0.26), (0.35, 0.6)))
    asked = {"baseline": [{"baseline": name} for name in names[1:8]], "metric": [{"metrics": [METRICS[i % 4], METRICS[(i + 1) % 4]]} for i in range(7)],
             "slice of a quarter": [{"rule": rule} for rule in quarters], "slice of a half": [{"rule": rule} for rule in halves]}
    found, spread = {}, {}
    for name, wishes in asked.items():
        panel.change(baseline=names[0], metrics=METRICS, rule=None)
        took = [timed(lambda wish=wish: panel.change(**wish))[1] * 1000 for wish in wishes]
        found[name], spread[name] = min(took), float(np.median(took))
        html = panel.live.kept["view"].parts["table"].markup.html
        assert panel.result.summary["baseline"] in html and "learning_rate" in html and "option.00" not in html
    panel.change(baseline=names[0], metrics=METRICS, rule=None)
    _, back = timed(lambda: panel.change(rule=(halves or quarters)[-1]))
    panel.close()
    print(f"the panel, {len(names)} systems x {n_examples:,} examples x {len(METRICS)} metrics, {n_params} parameters each: ms from the click to the widgets, least and median")
    for name in found:
        print(f"  another {name:32} {found[name]:6.0f} {spread[name]:6.0f}")
    print(f"  a slice that was looked at before        {back * 1000:6.0f}")
    return {"n_runs": len(names), "n_examples": n_examples, "n_params": n_params, "least_ms": found, "median_ms": spread, "slice_again_ms": back * 1000}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--systems", type=int, default=16)
    parser.add_argument("--segments", type=int, default=5000)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "comparison.json")
    given = parser.parse_args()
    frames = described(given.runs, given.examples)
    record(given.output, {"all pairs": pairs(given.systems, given.segments), "another question": questions(frames), "the panel": clicks(frames), "kept": kept(frames)})


if __name__ == "__main__":
    main()

"""BLEU, chrF and ROUGE beside the reference implementations and the fastest peers: the same values, asserted, and the ratio of their times.

    python benchmarks/metrics.py [--examples 5000] [--repeats 5] [--output FILE]

Ours is `score()` as a user calls it: corpus value, a value for each example and the counts behind them. sacrebleu, bleuscore (Rust), rouge_score and rouge-score-rs (Rust, its batch call, on all cores) give what
they give: corpus values, or for ROUGE the values of each pair. Texts are the tickets of the help desk and predictions that go wrong in the middle. The sides take turns; a ratio is that of the medians, above 1
where ours is faster, by the wall clock and by the time of the processor. Imports and first calls are left out and told apart: what compiling takes with an empty cache, and what loading from the cache takes.
Written to benchmarks/results/metrics.json.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["LLMOPS_NUMBA"] = "1"

import numpy as np
from peers import absent, record
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from llmops_workbench.helpdesk import generate_helpdesk
from llmops_workbench.metrics import score

RESULTS = Path(__file__).parent / "results" / "metrics.json"
ROUGE = ["rouge1", "rouge2", "rougeL"]


def measured(function):
    wall, processor = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - processor


def take_turns(title, peer, ours, theirs, check, repeats):
    "Each side is a function; `check` holds their results against each other."
    check(ours(), theirs())
    times = {"ours": [], "peer": []}
    for _ in range(repeats):
        for side, function in (("ours", ours), ("peer", theirs)):
            times[side].append(measured(function))
    wall, processor = ({side: statistics.median(t[i] for t in found) for side, found in times.items()} for i in (0, 1))
    each = [p[0] / o[0] for o, p in zip(times["ours"], times["peer"])]
    row = {"what": title, "peer": peer, "ours_s": round(wall["ours"], 5), "peer_s": round(wall["peer"], 5), "ratio": round(wall["peer"] / wall["ours"], 2),
           "ratio_low": round(min(each), 2), "ratio_high": round(max(each), 2), "ratio_processor": round(processor["peer"] / processor["ours"], 2), "results": "equal"}
    print(f"{title:32} {peer:16} ours {wall['ours'] * 1000:8.1f} ms   peer {wall['peer'] * 1000:8.1f} ms   ratio {row['ratio']:6.2f} "
          f"({row['ratio_low']} to {row['ratio_high']}), of processor time {row['ratio_processor']}", flush=True)
    return row


def close_to(name, scale=1.0):
    def check(ours, theirs):
        assert abs(ours.summary[name] - theirs * scale) < 1e-9, (ours.summary[name], theirs * scale)
    return check


def same_rouge(ours, theirs):
    for kind in ROUGE:
        assert ours.frame[kind].tolist() == [scores[kind].fmeasure for scores in theirs]


def first_calls():
    "Seconds of a first small call with an empty cache of compiled code, and in the next process."
    code = ("import time; from llmops_workbench.metrics import score; import numba, sacrebleu.metrics; start = time.perf_counter(); "
            "score(['a b'], ['a c'], ['bleu', 'chrf', 'rouge']); print(time.perf_counter() - start)")
    with tempfile.TemporaryDirectory() as folder:
        run = [subprocess.run([sys.executable, "-c", code], env={**os.environ, "NUMBA_CACHE_DIR": folder}, capture_output=True, text=True, check=True) for _ in range(2)]
    return {"compiling_s": round(float(run[0].stdout), 2), "loading_s": round(float(run[1].stdout), 2)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--examples", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    left_out = absent("bleuscore", "rouge_score_rs")
    texts = generate_helpdesk(n_rows=options.examples + 1, seed=7)[0]["text"].tolist()
    references = texts[:-1]
    # Half of the words from the right text, half from the next one: neither all right nor all wrong.
    predictions = [" ".join(a.split()[:len(a.split()) // 2] + b.split()[len(b.split()) // 2:]) for a, b in zip(texts, texts[1:])]
    print(f"{len(references):,} pairs of about {np.mean([len(r.split()) for r in references]):.0f} words", flush=True)
    first = first_calls()
    print(f"First call: {first['compiling_s']} s with an empty cache, {first['loading_s']} s from it", flush=True)

    rows, repeats = [], options.repeats
    def ours(names, **more): return lambda: score(predictions, references, names, **more)
    rows.append(take_turns("BLEU", "sacrebleu", ours(["bleu"]), lambda: BLEU(force=True).corpus_score(predictions, [references]).score, close_to("bleu"), repeats))
    if "bleuscore" not in left_out:
        import bleuscore
        lists = [[text] for text in references]
        def theirs(): return bleuscore.compute(references=lists, predictions=predictions, max_order=4, smooth=False)["bleu"]
        rows.append(take_turns("BLEU, not smoothed", "bleuscore", ours(["bleu"], bleu_smooth_method="none"), theirs, close_to("bleu", 100), repeats))
    rows.append(take_turns("chrF", "sacrebleu", ours(["chrf"]), lambda: CHRF().corpus_score(predictions, [references]).score, close_to("chrf"), repeats))
    rows.append(take_turns("chrF++", "sacrebleu", ours(["chrf++"]), lambda: CHRF(word_order=2).corpus_score(predictions, [references]).score, close_to("chrf++"), repeats))
    for stem in (False, True):
        title = f"ROUGE-1, 2 and L{', stemmed' if stem else ''}"
        scorer = RougeScorer(ROUGE, use_stemmer=stem)
        def plain(scorer=scorer): return [scorer.score(r, p) for r, p in zip(references, predictions)]
        rows.append(take_turns(title, "rouge_score", ours(ROUGE, use_stemmer=stem), plain, same_rouge, max(1, repeats // 2)))
        if "rouge_score_rs" not in left_out:
            from rouge_score_rs import RougeScorer as Fast
            fast = Fast(ROUGE, use_stemmer=stem)
            rows.append(take_turns(title, "rouge-score-rs", ours(ROUGE, use_stemmer=stem), lambda fast=fast: fast.score_batch(references, predictions), same_rouge, repeats))
    record(options.output, {"python": platform.python_version(), "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(), "repeats": repeats,
                            "examples": len(references), "first_call": first, "results": rows}, left_out)


if __name__ == "__main__":
    main()

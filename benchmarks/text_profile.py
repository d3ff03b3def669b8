"""The statistics of a column of text beside polars and ydata-profiling: the same values, asserted, and the ratio of their times.

    python benchmarks/text_profile.py [--peers PYTHON] [--rows 4000 40000] [--repeats 5] [--output FILE]

PYTHON is an interpreter of an environment of its own that has polars and ydata-profiling (which asks for an older pandas): it runs beside this one, and the sides take turns. Without
it this interpreter is asked for them; where a peer is missing, our side is timed alone and nothing is written down.
Each is timed by the wall clock from a frame in memory to its statistics; reading, imports and the first call, which compiles, are left out and told apart. What all three count:
rows, missing, distinct, and least, mean and most characters (ydata-profiling also makes word counts and
Unicode categories of its own, which nothing here equals); polars and ours also the median, and words, letters, digits and capitals in all.
Written to benchmarks/results/text_profile.json.
"""

import argparse
import importlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

from peers import Peer, absent, record

RESULTS = Path(__file__).parent / "results" / "text_profile.json"
os.environ.setdefault("OMP_NUM_THREADS", "1")


# --- the peers, in their own interpreter --------------------------------------------------------------------------


def with_polars(path):
    import polars as pl
    texts = pl.read_parquet(path)["text"]

    def run():
        lengths, frame = texts.str.len_chars(), texts.to_frame()
        counted = frame.select(words=pl.col("text").str.count_matches(r"\S+").sum(), letters=pl.col("text").str.count_matches("[A-Za-z]").sum(),
                               digits=pl.col("text").str.count_matches("[0-9]").sum(), uppercase=pl.col("text").str.count_matches("[A-Z]").sum()).row(0, named=True)
        return {"rows": len(texts), "missing": texts.null_count(), "distinct": texts.n_unique(), "min": lengths.min(), "mean": lengths.mean(), "median": lengths.median(),
                "max": lengths.max(), **counted}
    return run


def with_ydata(path):
    import pandas as pd
    from ydata_profiling import ProfileReport
    frame = pd.read_parquet(path, columns=["text"])

    def run():
        told = ProfileReport(frame, minimal=True, progress_bar=False).get_description().variables["text"]
        return {"rows": told["n"], "missing": told["n_missing"], "distinct": told["n_distinct"], "min": told["min_length"], "mean": told["mean_length"], "max": told["max_length"]}
    return run


def serve(peer, path):
    "One run for each line on the standard input; seconds and statistics as a line of JSON."
    run = {"polars": with_polars, "ydata-profiling": with_ydata}[peer](path)
    answers, sys.stdout = sys.stdout, sys.stderr
    for _ in sys.stdin:
        start = time.perf_counter()
        told = run()
        print(json.dumps({"seconds": time.perf_counter() - start, "statistics": {k: float(v) for k, v in told.items()}}), file=answers, flush=True)


# --- ours ---------------------------------------------------------------------------------------------------------


def ours(texts):
    importlib.import_module("numba")  # as in any session that has drawn a map; small columns are counted by numpy without it
    import numpy as np
    from llmops_workbench.counts import count_texts
    from llmops_workbench.duplicates import exact_duplicates
    from llmops_workbench.text import text_buffer
    buffer = text_buffer(texts)
    counts = count_texts(buffer)
    lengths, first = counts["characters"].to_numpy(), exact_duplicates(buffer)
    return {"rows": len(texts), "missing": int(texts.isna().sum()), "distinct": int((first == np.arange(len(first))).sum()), "min": int(lengths.min()), "mean": float(lengths.mean()),
            "median": float(np.median(lengths)), "max": int(lengths.max()), "words": int(counts["words"].sum()), "letters": int(counts["letters"].sum()),
            "digits": int(counts["digits"].sum()), "uppercase": int(counts["uppercase"].sum())}


PACKAGES = {"polars": "polars", "ydata-profiling": "ydata_profiling"}


def compare(python, peer, path, texts, repeats):
    "One peer, or none, on the texts of a file."
    child = Peer(python, __file__, peer, path) if peer else None
    start = time.perf_counter()
    mine = ours(texts)
    first, told = time.perf_counter() - start, child.ask() if child else {"statistics": {}}
    for name, value in told["statistics"].items():
        assert abs(mine[name] - value) < 1e-6, f"{peer}: {name} is {value}, ours is {mine[name]}"
    times, peers = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        ours(texts)
        times.append(time.perf_counter() - start)
        if child:
            peers.append(child.ask()["seconds"])
    alone = {"rows": len(texts), "ours_s": round(statistics.median(times), 5), "first_call_s": round(first, 3)}
    if not child:
        return alone
    child.close()
    ratios = sorted(b / a for a, b in zip(times, peers))
    return alone | {"peer": peer, "peer_s": round(statistics.median(peers), 5), "ratio": round(statistics.median(ratios), 1), "ratio_low": round(ratios[0], 1), "ratio_high": round(ratios[-1], 1),
                    "statistics": sorted(told["statistics"]), "results": "equal"}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", default=sys.executable, help="an interpreter that has the peers; this one by default")
    parser.add_argument("--rows", type=int, nargs="+", default=[4000, 40_000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    import pandas as pd
    from llmops_workbench.helpdesk import generate_helpdesk
    found, left_out = [], absent(*PACKAGES.values(), python=args.peers)
    with tempfile.TemporaryDirectory() as folder:
        for n in args.rows:
            parts = [generate_helpdesk(n_rows=min(6000, n - at), seed=at // 6000)[0]["text"] for at in range(0, n, 6000)]
            texts, path = pd.concat(parts, ignore_index=True), Path(folder) / f"{n}.parquet"
            texts.to_frame("text").to_parquet(path)
            for peer in [peer for peer, package in PACKAGES.items() if package not in left_out] or [None]:
                found.append(compare(args.peers, peer, path, texts, args.repeats))
                print(found[-1])
    record(args.output, {"python": platform.python_version(), "repeats": args.repeats, "results": found}, left_out)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3])
    else:
        main()

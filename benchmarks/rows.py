"""What a table of rows costs the kernel: each interaction at a thousand to a million rows of ten columns.

    python benchmarks/rows.py [--rows 1000 10000 100000 1000000] [--repeats 5]

Median of the kernel's own work; the browser's share is not in it. A view answers a question once and keeps the answer, so every repeat asks another one. Written to benchmarks/results/rows.json,
with the exponent of cost against rows between the two largest sizes (1 is linear), and what the process holds beside the frame after each interaction at the largest size.
"""

import argparse
import gc
import json
import math
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

from llmops_workbench.views import View
from llmops_workbench.widgets.rows import page_cells

RESULTS = Path(__file__).parent / "results" / "rows.json"


def make_frame(n, seed=0):
    rng = np.random.default_rng(seed)
    words = np.array(["printer", "toner", "password", "login", "vpn", "slow", "mail", "folder", "again", "please", "help", "broken", "floor", "screen", "update"])
    said = words[rng.integers(0, len(words), (n, 6))]
    return pd.DataFrame({
        "id": pd.Series([f"HD-{i:07d}" for i in range(n)], dtype="str"), "text": pd.Series([" ".join(row) + f" {i}" for i, row in enumerate(said)], dtype="str"),
        "title": pd.Series(words[rng.integers(0, len(words), n)] + " " + words[rng.integers(0, len(words), n)], dtype="str"), "channel": pd.Series(np.array(["mail", "chat", "phone"])[rng.integers(0, 3, n)], dtype="str"),
        "language": pd.Series(np.array(["en", "de", "fr", "es", "it"])[rng.integers(0, 5, n)], dtype="str"), "tokens": rng.integers(1, 500, n), "share": rng.random(n), "score": np.where(rng.random(n) < 0.1, np.nan, rng.normal(size=n)),
        "time": pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.integers(0, 15_000_000, n), unit="s"), "flag": rng.random(n) < 0.2})


def once(action):
    start = time.perf_counter()
    action()
    return (time.perf_counter() - start) * 1000


def measure(n, repeats):
    frame, times, process = make_frame(n), {}, psutil.Process()
    gc.collect()
    start, most = process.memory_info().rss, 0
    for k in range(repeats):
        view = View(frame, key="id")
        def add(name, action):
            nonlocal most
            times.setdefault(name, []).append(once(action))
            most = max(most, process.memory_info().rss - start)
        add("first page", lambda view=view: page_cells(view.page(0, 10), list(frame)))
        add("first bars of all columns", lambda view=view: [view.histogram(c) for c in frame])
        narrow = view.add({"column": "tokens", "at_least": 50 + k, "below": 200})
        add("filter a number", lambda narrow=narrow: (len(narrow), narrow.page(0, 10)))
        add("all bars of a filtered view", lambda narrow=narrow: [narrow.histogram(c) for c in frame])
        add("filter a category", lambda narrow=narrow: len(narrow.add({"column": "channel", "one_of": ["mail"]})))
        add("search a word", lambda view=view, k=k: len(view.add({"search": ["toner", "vpn", "slow", "mail", "floor"][k % 5], "in": ["text"]})))
        add("a pattern", lambda view=view, k=k: len(view.add({"column": "text", "matches": f"ton.* {k}"})))
        add("sort by a number", lambda view=view, k=k: view.sort(["tokens", "share", "score"][k % 3]).page(0, 10))
        add("sort by a category", lambda view=view: view.sort("language").page(0, 10))
        add("sort by distinct texts", lambda view=view: view.sort("text").page(0, 10))
        add("a page in the middle", lambda narrow=narrow: page_cells(narrow.page(len(narrow) // 2, 10), list(frame)))
    size = int(frame.memory_usage(deep=True).sum())
    return {name: round(statistics.median(values), 3) for name, values in times.items()}, size, most


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    found = {}
    for n in sorted(args.rows):
        found[n], size, more = measure(n, args.repeats)
        print(n, found[n], flush=True)
    small, large = sorted(args.rows)[-2:] if len(args.rows) > 1 else (None, None)
    exponents = {name: round(math.log(found[large][name] / found[small][name]) / math.log(large / small), 2) for name in found[large]} if small else {}
    result = {"python": platform.python_version(), "pandas": pd.__version__, "unit": "ms, median", "rows": {str(n): row for n, row in found.items()}, "exponent": exponents,
              "frame_bytes": size, "held_beside_the_frame_bytes": more, "memory_by_frame": round((size + more) / size, 2)}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(exponents, result["memory_by_frame"])


if __name__ == "__main__":
    main()

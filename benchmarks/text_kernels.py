"""Text kernels beside what one would write with pandas and Python: the same results, asserted, and the ratio of their times.

    python benchmarks/text_kernels.py [--rows 20000] [--repeats 5]

The two sides take turns in one process, each is timed by the processor time it used, and the median is reported with its spread. numba's first
call (compilation, or loading what was compiled before) is reported apart. Written to benchmarks/results/text_kernels.json.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd

from llmops_workbench import text
from llmops_workbench.helpdesk import generate_helpdesk
from llmops_workbench.counts import count_texts
from llmops_workbench.duplicates import exact_duplicates, near_duplicates, repetition, shingles
from llmops_workbench.text import text_buffer

RESULTS = Path(__file__).parent / "results" / "text_kernels.json"


def corpus(n_rows):
    "Tickets of several seeds, so that they are dated, messy and repeat themselves now and then."
    parts = [generate_helpdesk(n_rows=min(6000, n_rows - start), seed=start // 6000)[0]["text"] for start in range(0, n_rows, 6000)]
    return pd.concat(parts, ignore_index=True)


# --- the peers -----------------------------------------------------------------------------------------------------


def pandas_counts(texts):
    return pd.DataFrame({"characters": texts.str.len(), "words": texts.str.count(r"\S+"), "digits": texts.str.count("[0-9]"),
                         "uppercase": texts.str.count("[A-Z]"), "symbols": texts.str.count(r"[!-/:-@\[-`{-~]")}).astype("int64")


def python_duplicates(texts):
    first = {}
    return np.array([first.setdefault(t, i) for i, t in enumerate(texts)])


def python_shingles(texts, n):
    words = [[w for w in "".join(c if c.isalnum() and c < "\x80" or c >= "\x80" else " " for c in t.lower()).split(" ") if w] for t in texts]
    return [[tuple(w[i:i + n]) for i in range(len(w) - n + 1)] if len(w) >= n else [tuple(w)] if w else [] for w in words]


def python_repetition(texts):
    return np.array([1 - len(set(s)) / len(s) if s else 0.0 for s in python_shingles(texts, 3)])


def python_minhash(texts, similarity):
    "MinHash as it is usually written: 128 permutations a text, bands in dictionaries, candidates verified by their sets."
    rng = np.random.default_rng(0)
    a, b = rng.integers(1, 2**61 - 1, 128, dtype="uint64") | np.uint64(1), rng.integers(0, 2**61 - 1, 128, dtype="uint64")
    sets = [set(s) for s in python_shingles(texts, 2)]
    rows, bands, pairs = 3, {}, set()
    for i, items in enumerate(sets):
        if not items:
            continue
        hashes = np.array([hash(s) & 0xffffffffffffffff for s in items], "uint64")
        signature = (hashes[:, None] * a + b).min(axis=0)
        for band in range(128 // rows):
            for j in bands.setdefault((band, *signature[band * rows:(band + 1) * rows].tolist()), []):
                pairs.add((j, i))
            bands[(band, *signature[band * rows:(band + 1) * rows].tolist())].append(i)
    return {p for p in pairs if len(sets[p[0]] & sets[p[1]]) >= similarity * len(sets[p[0]] | sets[p[1]])}


def all_pairs(texts, similarity):
    "Every pair, by a product of sparse matrices: the truth, where memory allows."
    from scipy.sparse import csr_array

    hashes, edges, _ = shingles(text_buffer(texts), 2)
    _, codes = np.unique(hashes, return_inverse=True)
    sets, sizes = csr_array((np.ones(len(codes), "int32"), codes, edges)), np.diff(edges)
    shared = (sets @ sets.T).tocoo()
    above = shared.row < shared.col
    left, right, both = shared.row[above], shared.col[above], shared.data[above]
    near = both >= similarity * (sizes[left] + sizes[right] - both)
    return set(zip(left[near].tolist(), right[near].tolist()))


# --- the clock -----------------------------------------------------------------------------------------------------


def cost(function):
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def compare(name, ours, peer, check, repeats, note=""):
    "Ours and the peer's in turns; `check` raises unless the results agree."
    mine, theirs = [], []
    for _ in range(repeats):
        seconds, a = cost(ours)
        mine.append(seconds)
        seconds, b = cost(peer)
        theirs.append(seconds)
    said = check(a, b) or note
    ratios = sorted(t / m for m, t in zip(mine, theirs))
    return {"what": name, "ours_s": round(statistics.median(mine), 4), "peer_s": round(statistics.median(theirs), 4),
            "ratio": round(statistics.median(ratios), 2), "ratio_low": round(ratios[0], 2), "ratio_high": round(ratios[-1], 2), "results": said}


def equal_counts(a, b):
    pd.testing.assert_frame_equal(a[list(b)].astype("int64"), b)
    return "equal"


def equal_arrays(a, b):
    assert np.allclose(a, b, atol=1e-12), "the results differ"
    return "equal"


def near_enough(texts, similarity, truth):
    def check(ours, theirs):
        found = set(zip(ours["left"].tolist(), ours["right"].tolist()))
        # Of a text that occurs three times ours names two pairs, the peer three: each text once is what both are asked about.
        first = exact_duplicates(text_buffer(texts))
        once = {p for p in found if first[p[0]] == p[0] and first[p[1]] == p[1]}
        known = {p for p in truth if first[p[0]] == p[0] and first[p[1]] == p[1]}
        peers = {p for p in theirs if first[p[0]] == p[0] and first[p[1]] == p[1]}
        assert once <= known and peers <= known, "a pair was reported that is not similar"
        return f"precision 1; recall ours {len(once) / len(known):.3f}, peer {len(peers) / len(known):.3f} of {len(known)} pairs"
    return check


def run(n_rows, repeats):
    texts = corpus(n_rows)
    strings = texts.tolist()
    rows = []
    for engine, choice in (("numpy", "0"), ("numba", "1")):
        os.environ["LLMOPS_NUMBA"] = choice
        buffer = text_buffer(texts)
        first_call = cost(lambda b=buffer: (near_duplicates(b), repetition(b), exact_duplicates(b)))[0]
        if engine == "numpy":
            rows.append(compare("five counts / pandas .str", lambda: count_texts(text_buffer(texts)), lambda: pandas_counts(texts), equal_counts, repeats))
            rows.append(compare("five counts / pandas .str on objects", lambda: count_texts(text_buffer(texts)),
                                lambda o=texts.astype("object"): pandas_counts(o), equal_counts, repeats))
        rows.append(compare(f"exact duplicates ({engine}) / dict", lambda b=buffer: exact_duplicates(b), lambda: python_duplicates(strings), equal_arrays, repeats))
        rows.append(compare(f"repetition ({engine}) / Python sets", lambda b=buffer: repetition(b), lambda: python_repetition(strings), equal_arrays,
                            min(repeats, 3)))
        sample = texts.head(6000)
        truth = all_pairs(sample, text.SIMILARITY)
        rows.append(compare(f"near-duplicates of {len(sample):,} ({engine}) / MinHash in Python", lambda s=sample: near_duplicates(text_buffer(s)),
                            lambda s=sample: python_minhash(s.tolist(), text.SIMILARITY), near_enough(sample, text.SIMILARITY, truth), min(repeats, 3)))
        rows[-1]["first_call_s"] = round(first_call, 3)
    return rows, int(text_buffer(texts).data.nbytes)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=12_000, help="texts in the corpus")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, of which the median counts")
    options = parser.parse_args()
    rows, n_bytes = run(options.rows, options.repeats)
    print(f"{options.rows:,} texts, {n_bytes / 1e6:.1f} MB; processor time, median of {options.repeats} (a ratio above 1: ours is quicker)\n")
    print(pd.DataFrame(rows).to_string(index=False, na_rep=""))
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({"rows": options.rows, "bytes": n_bytes, "repeats": options.repeats, "python": platform.python_version(),
                                   "numpy": np.__version__, "pandas": pd.__version__, "results": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

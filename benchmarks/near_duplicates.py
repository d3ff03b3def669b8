"""Near-duplicates beside rensa and datasketch: the same planted pairs to find, recall and precision of each, and the ratio of their times.

    python benchmarks/near_duplicates.py [--peers PYTHON] [--docs 10000 100000] [--words 80] [--repeats 3] [--output FILE]

PYTHON is an interpreter of an environment of its own with rensa and datasketch; without it this one is asked for them, and where they are missing ours is timed and judged alone. One document in ten is a copy of another with one word in twenty changed; all others are drawn word by word
from a vocabulary with the frequencies of a language. Word sequences of three, a similarity of 0.7, 128 hashes for the peers. The sides take turns, each in its own process; what is timed goes from a list of strings to pairs.
rensa is run both ways its documentation shows (`RMinHash` a document, and the batch of `RMinHash.digest_matrix_from_token_sets`) and the quicker one counts; datasketch by `MinHash.bulk`. Both with their own LSH. Ours also compares every
candidate exactly, so its pairs are all true; the peers' are checked here, outside their time. Written to benchmarks/results/near_duplicates.json.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from pathlib import Path

from peers import Peer, absent, record

RESULTS = Path(__file__).parent / "results" / "near_duplicates.json"
os.environ.setdefault("OMP_NUM_THREADS", "1")
SIMILARITY, SHINGLE, HASHES, BANDS = 0.7, 3, 128, 16


def make_documents(n, words, seed=0):
    import numpy as np
    rng = np.random.default_rng(seed)
    vocabulary = np.array([f"{''.join(rng.choice(list('abcdefghijklmnopqrstuvwxyz'), rng.integers(2, 10)))}" for _ in range(20_000)])
    weights = 1 / np.arange(10, 20_010)
    weights /= weights.sum()
    lengths = np.maximum(3, rng.normal(words, words / 5, n).astype(int))
    flat = vocabulary[rng.choice(20_000, lengths.sum(), p=weights)]
    documents = [part.tolist() for part in np.split(flat, np.cumsum(lengths)[:-1])]
    copies = rng.choice(n, n // 10, replace=False)
    rest = np.setdiff1d(np.arange(n), copies)
    for copy, source in zip(copies, rng.choice(rest, len(copies), replace=False)):
        said = list(documents[source])
        for at in rng.choice(len(said), max(1, len(said) // 20), replace=False): said[at] = str(vocabulary[rng.integers(20_000)])
        documents[copy] = said
    return [" ".join(said) for said in documents]


def shingle(text):
    words = text.lower().split()
    return {" ".join(words[i:i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}


def truth(texts):
    "All pairs at or above the similarity, by an inverted index over rare word sequences: exact, slow, the same for all."
    from collections import defaultdict
    sets, where = [shingle(t) for t in texts], defaultdict(list)
    for i, found in enumerate(sets):
        for s in found: where[s].append(i)
    pairs = set()
    for rows in where.values():
        if 1 < len(rows) <= 200: pairs.update((a, b) for k, a in enumerate(rows) for b in rows[k + 1:])
    similar = lambda a, b: len(sets[a] & sets[b]) / len(sets[a] | sets[b])
    return {p for p in pairs if similar(*p) >= SIMILARITY}, similar


# --- the peers -----------------------------------------------------------------------------------------------------


def by_rensa(texts):
    from rensa import RMinHash, RMinHashLSH
    lsh, hashes = RMinHashLSH(threshold=SIMILARITY, num_perm=HASHES, num_bands=BANDS), []
    for i, text in enumerate(texts):
        m = RMinHash(num_perm=HASHES, seed=42)
        m.update(list(shingle(text)))
        hashes.append(m)
        lsh.insert(i, m)
    return {(min(i, j), max(i, j)) for i, m in enumerate(hashes) for j in lsh.query(m) if i != j}


def by_datasketch(texts):
    from datasketch import MinHash, MinHashLSH
    hashes = MinHash.bulk([[s.encode() for s in shingle(t)] for t in texts], num_perm=HASHES, seed=1)
    lsh = MinHashLSH(num_perm=HASHES, params=(BANDS, HASHES // BANDS))
    with lsh.insertion_session() as session:
        for i, m in enumerate(hashes): session.insert(i, m)
    return {(min(i, j), max(i, j)) for i, m in enumerate(hashes) for j in lsh.query(m) if i != j}


PEERS = {"rensa": by_rensa, "datasketch": by_datasketch}


def serve(peer):
    answers, sys.stdout = sys.stdout, sys.stderr
    texts = None
    for line in sys.stdin:
        if line.startswith("{"):
            given = json.loads(line)
            texts = make_documents(given["n"], given["words"])
            print("0", file=answers, flush=True)
            continue
        start = time.perf_counter()
        pairs = PEERS[peer](texts)
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "pairs": sorted(map(list, pairs)), "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}), file=answers, flush=True)


def ours(texts):
    from llmops_workbench.duplicates import near_duplicates
    from llmops_workbench.text import text_buffer
    found = near_duplicates(text_buffer(texts), SIMILARITY, SHINGLE)
    return set(zip(found["left"].tolist(), found["right"].tolist()))


def quality(pairs, true, similar):
    right = sum(p in true or similar(*p) >= SIMILARITY for p in pairs)
    return {"pairs": len(pairs), "recall": round(len(pairs & true) / max(len(true), 1), 4), "precision": round(right / max(len(pairs), 1), 4)}


def compare(python, peer, n, words, repeats):
    "One peer, or none, on documents of one number and length."
    child, texts = Peer(python, __file__, peer) if peer else None, make_documents(n, words)
    if child:
        child.ask(json.dumps({"n": n, "words": words}))
    true, similar = truth(texts)
    start = time.perf_counter()
    mine = ours(texts)
    first = time.perf_counter() - start
    told = None
    times, peers = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        ours(texts)
        times.append(time.perf_counter() - start)
        if child:
            told = child.ask()
            peers.append(told["seconds"])
    alone = {"documents": n, "words": words, "megabytes": round(sum(map(len, texts)) / 1e6, 1), "ours_s": round(statistics.median(times), 3), "first_call_s": round(first, 3),
             "true_pairs": len(true), "ours": quality(mine, true, similar)}
    if not child:
        return alone
    child.close()
    ratios = sorted(b / a for a, b in zip(times, peers))
    return alone | {"peer": peer, "peer_s": round(statistics.median(peers), 3), "ratio": round(statistics.median(ratios), 1), "ratio_low": round(ratios[0], 1), "ratio_high": round(ratios[-1], 1),
                    "theirs": quality({tuple(p) for p in told["pairs"]}, true, similar), "peer_peak_mb": told["memory"] // 1024}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", default=sys.executable, help="an interpreter that has the peers; this one by default")
    parser.add_argument("--docs", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--words", type=int, nargs="+", default=[80])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    found, left_out = [], absent("rensa", "datasketch", python=args.peers)
    for words in args.words:
        for n in args.docs:
            for peer in [peer for peer in PEERS if peer not in left_out] or [None]:
                found.append(compare(args.peers, peer, n, words, 1 if peer == "datasketch" and n > 20_000 else args.repeats))
                print(found[-1], flush=True)
    # Sizes of an earlier call stay.
    key = lambda row: (row["words"], row["documents"], row.get("peer", ""))
    before = json.loads(args.output.read_text(encoding="utf-8"))["results"] if args.output.exists() else []
    found = sorted([row for row in before if key(row) not in set(map(key, found))] + found, key=key)
    record(args.output, {"python": platform.python_version(), "similarity": SIMILARITY, "shingle": SHINGLE, "results": found}, left_out)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2])
    else:
        main()

"""Token counts beside the batch modes of tokenizers: the same counts, asserted, and the ratio of their times.

    python benchmarks/tokens.py [--repeats 7]

The tokenizers are the starter's and three trained here on tickets with the patterns of GPT-2, Llama 3 and Qwen. All sides take turns in one process, each as it
comes (tokenizers with its default number of threads), on the same list of texts; time is the clock's, from the list to an array of counts. The peer is the quickest, by
the median, of encode_batch and encode_batch_fast, in one call and in batches of 1,000. Ours starts from nothing in each round: no count is kept from one call to the next.
What the first call costs beyond that (numba and its compiled functions loaded) is reported apart. Written to benchmarks/results/tokens.json.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from llmops_workbench.helpdesk import generate_helpdesk
from llmops_workbench.pieces import safe_cuts
from llmops_workbench.tokens import count_tokens, load_tokenizer

RESULTS = Path(__file__).parent / "results" / "tokens.json"
HEAD, TAIL = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}", r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def tickets(n_rows, seed):
    "Tickets of several seeds, 6,000 of each."
    return [t for start in range(0, n_rows, 6000) for t in generate_helpdesk(min(6000, n_rows - start), seed=seed + start // 6000)[0]["text"]]


def trained(pattern, texts):
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    tokenizer.pre_tokenizer = byte_level if pattern is None else pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level])
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=4000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|end|>"], show_progress=False))
    return tokenizer


def batches(encode, texts, size):
    "Counts by a batch mode; `len` of an encoding is the quickest way to its number of tokens."
    return np.array([len(e) for at in range(0, len(texts), size) for e in encode(texts[at:at + size], add_special_tokens=False)])


def cost(function):
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def compare(name, texts, tokenizer, repeats):
    assert safe_cuts(tokenizer) is not None
    sides = {"ours": lambda: count_tokens(texts, tokenizer)}
    for mode in ("encode_batch", "encode_batch_fast"):
        for size in (len(texts), 1000):
            if size <= len(texts): sides[f"{mode}, {'one call' if size == len(texts) else 'batches of 1,000'}"] = lambda mode=mode, size=size: batches(getattr(tokenizer, mode), texts, size)
    times, first = {side: [] for side in sides}, cost(sides["ours"])[0]
    for turn in range(repeats + 1):
        found = None
        for side, function in sides.items():
            seconds, counts = cost(function)
            if turn: times[side].append(seconds) # the first round warms up
            found = counts if found is None else found
            assert np.array_equal(counts, found), f"{name}: ours and {side} differ"
    medians = {side: round(statistics.median(spent), 4) for side, spent in times.items()}
    peer = min((side for side in sides if side != "ours"), key=medians.get)
    ratios = sorted(theirs / mine for mine, theirs in zip(times["ours"], times[peer]))
    row = {"what": name, "texts": len(texts), "bytes": sum(len(t.encode()) for t in texts), "tokens": int(found.sum()), "peer": peer, "ratio": round(statistics.median(ratios), 2), "ratio_low": round(ratios[0], 2),
           "ratio_high": round(ratios[-1], 2), "first_call_s": round(first, 2), "seconds": medians}
    print(f"{name}: {row['ratio']} ({row['ratio_low']} to {row['ratio_high']}) times as fast as {peer}; {medians['ours']} s against {medians[peer]} s, first call {row['first_call_s']} s", flush=True)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats, rows = parser.parse_args().repeats, []

    def measure(name, texts, tokenizer):
        rows.append(compare(name, texts, tokenizer, repeats))
        RESULTS.write_text(json.dumps({"repeats": repeats, "cores": os.cpu_count(), "python": platform.python_version(), "tokenizers": tokenizers.__version__, "numpy": np.__version__, "results": rows}, indent=1) + "\n",
                           encoding="utf-8")
    small, starter = tickets(6000, 100), load_tokenizer("starter")
    measure("100 tickets", small[:100], starter)
    measure("6,000 tickets", small, starter)
    for name, pattern in {"GPT-2": None, "Llama 3": HEAD + "{1,3}" + TAIL, "Qwen": HEAD + TAIL}.items():
        measure(f"6,000 tickets, {name}'s pattern", small, trained(pattern, tickets(1000, 90)))
    other = tickets(12_000, 300)
    measure("200 long texts", ["\n\n".join(other[at:at + 60]) for at in range(0, len(other), 60)], starter)
    measure("60,000 tickets", tickets(60_000, 200), starter)


if __name__ == "__main__":
    main()

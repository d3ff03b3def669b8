"""bertscore beside a BERTScorer that is kept between systems: equal to 1e-5, and how long four systems take.

The systems are two real translations of talks and, from each, one with some words left out, so that no two answers are equal and only the references repeat. Both sides have the same
encoder with random weights, the same device and threads; the peer is built once, outside the clock, and given the batch size it is fastest with. Cold: no vector is kept when the first
system comes. Warm: a fifth system after the four. The sides take turns; the ratio is that of the medians, above 1 where ours is faster.

    python benchmarks/bertscore.py [DATA] [--segments N] [--width N] [--layers N]

DATA is a folder with the comparemt texts; by default it is that of LLMOPS_SHARED_DATA. A GPU is used where torch sees one."""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from llmops_workbench.bertscore import Vectors, bert_scores
from llmops_workbench.models import import_torch, import_transformers

REPEATS, BATCH_SIZES = 5, (8, 16, 32, 64, 256)
FILE = Path(__file__).with_name("results")/"bertscore.json"


def save_encoder(folder, texts, width, layers):
    "A BERT with random weights and a tokenizer learnt from the texts."
    torch, transformers = import_torch(), import_transformers()
    from tokenizers import BertWordPieceTokenizer
    raw = BertWordPieceTokenizer(lowercase=True)
    raw.train_from_iterator(texts, vocab_size=8000, show_progress=False)
    transformers.BertTokenizer(vocab=raw.get_vocab(), model_max_length=512).save_pretrained(folder)
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(vocab_size=raw.get_vocab_size(), hidden_size=width, num_hidden_layers=layers, num_attention_heads=width//64,
                                                   intermediate_size=4*width)).save_pretrained(folder)
    return folder


def systems_of(data, segments):
    "References, and five systems of which no two give an equal answer to a segment."
    read = {name: (data/"comparemt"/f"ted.{name}.eng").read_text(encoding="utf-8").splitlines()[:segments] for name in ("sys1", "sys2", "ref")}
    chance = random.Random(0)

    def thinned(texts, mark):
        return [" ".join([w for w in text.split() if chance.random() > 0.1] + [mark]) for text in texts]
    return read["ref"], [read["sys1"], [f"{t} ." for t in read["sys2"]], thinned(read["sys1"], "!"), thinned(read["sys2"], "?"), thinned(read["sys1"], "...")]


def timed(torch, work):
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    found = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return found, time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", default=os.environ.get("LLMOPS_SHARED_DATA", "../shared/data"), type=Path)
    parser.add_argument("--segments", type=int, default=300)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    options = parser.parse_args()
    from peers import absent, record
    if left_out := absent("bert_score"):
        return
    torch = import_torch()
    import_transformers()
    from bert_score import BERTScorer
    warnings.simplefilter("ignore")
    references, systems = systems_of(options.data, options.segments)
    groups, device = [[r] for r in references], "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        folder = save_encoder(Path(folder), [*references, *systems[0]], options.width, options.layers)
        scorer = BERTScorer(model_type=str(folder), num_layers=options.layers, device=device)

        def theirs(system, batch_size):
            return np.stack([np.asarray(x) for x in scorer.score(system, references, batch_size=batch_size)], -1)

        def ours(system, kept):
            return bert_scores(system, groups, folder, kept=kept)
        bert_scores(systems[4][:8], groups[:8], folder, kept=Vectors())
        best = min(BATCH_SIZES, key=lambda size: min(timed(torch, lambda: theirs(systems[4], size))[1] for _ in range(2)))
        times = {"ours_s": [], "theirs_s": [], "ours_fifth_s": [], "theirs_fifth_s": []}
        for _ in range(REPEATS):
            kept = Vectors(2**33)
            mine, seconds = timed(torch, lambda: [ours(s, kept) for s in systems[:4]])
            times["ours_s"].append(seconds)
            other, seconds = timed(torch, lambda: [theirs(s, best) for s in systems[:4]])
            times["theirs_s"].append(seconds)
            np.testing.assert_allclose(mine, other, atol=1e-5)
            fifth, seconds = timed(torch, lambda: ours(systems[4], kept))
            times["ours_fifth_s"].append(seconds)
            expected, seconds = timed(torch, lambda: theirs(systems[4], best))
            times["theirs_fifth_s"].append(seconds)
            np.testing.assert_allclose(fifth, expected, atol=1e-5)
            again, seconds = timed(torch, lambda: [ours(s, kept) for s in systems[:4]])
            times.setdefault("ours_again_s", []).append(seconds)
            np.testing.assert_allclose(again, mine, atol=1e-6)
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    ratios = [t/m for m, t in zip(times["ours_s"], times["theirs_s"])]
    result = {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "threads": torch.get_num_threads(), "segments": len(references), "width": options.width,
              "layers": options.layers, "peer_batch_size": best, "four_systems": {"ours_s": median["ours_s"], "theirs_s": median["theirs_s"],
              "ratio": median["theirs_s"]/median["ours_s"], "ratios": [min(ratios), max(ratios)]},
              "a_fifth_system": {"ours_s": median["ours_fifth_s"], "theirs_s": median["theirs_fifth_s"], "ratio": median["theirs_fifth_s"]/median["ours_fifth_s"]},
              "the_four_again": {"ours_s": median["ours_again_s"], "theirs_s": median["theirs_s"], "ratio": median["theirs_s"]/median["ours_again_s"]}}
    print(json.dumps(result, indent=1))
    print(f"All values equal to 1e-5. Four systems, cold: {result['four_systems']['ratio']:.2f} times a kept BERTScorer ({min(ratios):.2f}-{max(ratios):.2f}).")
    name = FILE if device == "cpu" else FILE.with_name("bertscore_gpu.json")
    record(Path(os.environ["OUT"])/name.name if os.environ.get("OUT") else name, result, left_out)


if __name__ == "__main__":
    main()

"""bertscore beside a BERTScorer that is kept between systems: equal to 1e-5, and how long four systems take.

Two sets of systems. Different: two real translations of talks and, from each, one with words left out, so that no two answers are equal and only the references repeat. Choosing: the two translations
and two systems that choose one of them for each segment, as rerankers and ensembles do. Both sides have the same encoder with random weights, the same device and threads; the peer is built once, outside
the clock, and runs as it comes, with batches of 64, and with the batch size it is fastest with. Cold: no vector is kept when the first system comes. Warm: a fifth system after the four, and the four once
more. The sides take turns; the ratio is that of the medians, above 1 where ours is faster. A GPU is used where torch sees one.

    python benchmarks/bertscore.py [--data FOLDER] [--segments N] [--width N] [--layers N]

FOLDER holds the comparemt texts; by default it is that of LLMOPS_SHARED_DATA."""

import argparse
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

from peers import absent, record

REPEATS, BATCH_SIZES = 3, (8, 16, 32, 64, 256)
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
    "References, a set of four systems by name, and a fifth system."
    read = {name: (data/"comparemt"/f"ted.{name}.eng").read_text(encoding="utf-8").splitlines()[:segments] for name in ("sys1", "sys2", "ref")}
    chance, first, second = random.Random(0), read["sys1"], [f"{text} ." for text in read["sys2"]]

    def thinned(texts, mark):
        return [" ".join([w for w in text.split() if chance.random() > 0.1] + [mark]) for text in texts]

    def chosen():
        return [chance.choice(pair) for pair in zip(first, second)]
    return read["ref"], {"different": [first, second, thinned(first, "!"), thinned(second, "?")], "choosing": [first, second, chosen(), chosen()]}, thinned(first, "...")


def timed(torch, work):
    # Time of this process where it runs one thread: neighbours on a shared machine count less.
    clock = time.process_time if torch.get_num_threads() == 1 and not torch.cuda.is_available() else time.perf_counter
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = clock()
    found = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return found, clock() - start


def measure(torch, systems, fifth, ours, theirs):
    "Medians of seconds for the four systems, a fifth, and the four again; every value held against the other side's."
    times = {name: [] for name in ("ours", "theirs", "ours_fifth", "theirs_fifth", "ours_again")}

    def note(name, work):
        found, seconds = timed(torch, work)
        times[name].append(seconds)
        return found
    for _ in range(REPEATS):
        kept = Vectors(2**33)
        mine = note("ours", lambda kept=kept: [ours(s, kept) for s in systems])
        np.testing.assert_allclose(mine, note("theirs", lambda: [theirs(s) for s in systems]), atol=1e-5)
        np.testing.assert_allclose(note("ours_fifth", lambda kept=kept: ours(fifth, kept)), note("theirs_fifth", lambda: theirs(fifth)), atol=1e-5)
        np.testing.assert_allclose(note("ours_again", lambda kept=kept: [ours(s, kept) for s in systems]), mine, atol=1e-6)
    s, ratios = {name: statistics.median(seconds) for name, seconds in times.items()}, [t/m for m, t in zip(times["ours"], times["theirs"])]
    return {"ours_s": s["ours"], "theirs_s": s["theirs"], "ratio": s["theirs"]/s["ours"], "ratio_least": min(ratios), "ratio_most": max(ratios),
            "fifth_ratio": s["theirs_fifth"]/s["ours_fifth"], "again_ratio": s["theirs"]/s["ours_again"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("LLMOPS_SHARED_DATA", "../shared/data"), type=Path)
    parser.add_argument("--segments", type=int, default=200)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    options = parser.parse_args()
    if absent("bert_score"):
        return
    torch = import_torch()
    import_transformers()
    from bert_score import BERTScorer
    warnings.simplefilter("ignore")
    references, sets, fifth = systems_of(options.data, options.segments)
    groups, device = [[r] for r in references], "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        folder = save_encoder(Path(folder), [*references, *fifth], options.width, options.layers)
        scorer = BERTScorer(model_type=str(folder), num_layers=options.layers, device=device)

        def peer(batch_size):
            return lambda system: np.stack([np.asarray(x) for x in scorer.score(system, references, batch_size=batch_size)], -1)
        bert_scores(fifth[:8], groups[:8], folder, kept=Vectors())
        seconds = {size: min(timed(torch, lambda size=size: peer(size)(fifth))[1] for _ in range(2)) for size in BATCH_SIZES}
        best = min(seconds, key=seconds.get)
        ways = {"as it comes": 64, "at its best": best}
        found = {f"{name}, {way}": measure(torch, systems, fifth, lambda system, kept: bert_scores(system, groups, folder, kept=kept), peer(size))
                 for name, systems in sets.items() for way, size in ways.items()}
    result = {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "threads": torch.get_num_threads(), "segments": len(references), "width": options.width,
              "layers": options.layers, "peer_batch_sizes": ways, **found}
    for name, r in found.items():
        print(f"{name:22} four systems, cold: ours {r['ours_s']:.2f} s, BERTScorer {r['theirs_s']:.2f} s, ratio {r['ratio']:.2f} ({r['ratio_least']:.2f}-{r['ratio_most']:.2f}); "
              f"a fifth {r['fifth_ratio']:.2f}, the four again {r['again_ratio']:.1f}")
    print(f"All values equal to 1e-5. {result['device']}, {result['threads']} threads, batches of {best} for the peer at its best.")
    record(FILE if device == "cpu" else FILE.with_name("bertscore_cuda.json"), result)


if __name__ == "__main__":
    main()

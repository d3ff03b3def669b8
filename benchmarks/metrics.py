"""score() beside sacrebleu and rouge_score used directly: the same values, and how long each takes.

Both sides give the corpus value and a value for each example, because that is what an evaluation needs. The sides take turns; the ratio is that
of the medians, above 1 where ours is faster. Imports and first calls are left out."""

import statistics
import time

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from llmops_workbench.helpdesk import generate_helpdesk
from llmops_workbench.metrics import score

REPEATS, EXAMPLES = 5, 1000


def sacrebleu_values(metric, predictions, references, **alone):
    streams = [list(references)]
    one = type(metric)(**alone)
    return metric.corpus_score(predictions, streams).score, [one.sentence_score(p, [r]).score for p, r in zip(predictions, references)]


def rouge_values(predictions, references, use_stemmer):
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=use_stemmer)
    found = [scorer.score(r, p) for p, r in zip(predictions, references)]
    columns = {kind: [s[kind].fmeasure for s in found] for kind in ("rouge1", "rouge2", "rougeL")}
    return {kind: float(np.mean(values)) for kind, values in columns.items()}, columns


def ours(predictions, references, names, **options):
    found = score(predictions, references, names, **options)
    return found.summary, found.frame


def equal_to_sacrebleu(name):
    def check(ours, theirs):
        (summary, frame), (corpus, alone) = ours, theirs
        assert abs(summary[name] - corpus) < 1e-9
        np.testing.assert_allclose(frame[name], alone, atol=1e-9)
    return check


def equal_to_rouge_score(ours, theirs):
    (summary, frame), (corpus, alone) = ours, theirs
    for kind, values in alone.items():
        assert frame[kind].tolist() == values and abs(summary[kind] - corpus[kind]) < 1e-9


def compare(title, mine, theirs, check):
    "Each side is a function and its arguments."
    check(*[function(*args, **options) for function, args, options in (mine, theirs)])
    times = ([], [])
    for _ in range(REPEATS):
        for side, (function, args, options) in zip(times, (mine, theirs)):
            # Time of this process, which runs one thread: neighbours on a shared machine count less.
            start = time.process_time()
            function(*args, **options)
            side.append(time.process_time() - start)
    mine_s, theirs_s = map(statistics.median, times)
    ratios = [t/m for m, t in zip(*times)]
    print(f"{title:44} ours {mine_s*1000:7.1f} ms   theirs {theirs_s*1000:7.1f} ms   ratio {theirs_s/mine_s:5.2f} ({min(ratios):.1f}-{max(ratios):.1f})")


def measure(title, texts):
    # Half of the words from the right text, half from the next one: neither all right nor all wrong.
    references = texts[:EXAMPLES]
    predictions = [" ".join(a.split()[:len(a.split())//2] + b.split()[len(b.split())//2:]) for a, b in zip(texts, texts[1:])]
    print(f"{title}: {EXAMPLES:,} pairs of about {np.mean([len(r.split()) for r in references]):.0f} words")
    pair = (predictions, references)
    compare("  BLEU, corpus and each example", (ours, (*pair, ["bleu"]), {}),
            (sacrebleu_values, (BLEU(force=True), *pair), {"effective_order": True}), equal_to_sacrebleu("bleu"))
    compare("  chrF, corpus and each example", (ours, (*pair, ["chrf"]), {}), (sacrebleu_values, (CHRF(), *pair), {}), equal_to_sacrebleu("chrf"))
    for stem in (False, True):
        compare(f"  ROUGE-1, 2 and L{', stemmed' if stem else ''}", (ours, (*pair, ["rouge"]), {"use_stemmer": stem}),
                (rouge_values, (*pair, stem), {}), equal_to_rouge_score)


def main():
    frame, _ = generate_helpdesk(n_rows=EXAMPLES + 1, seed=7)
    measure("summaries", frame["summary"].tolist())
    measure("tickets", frame["text"].tolist())
    print("All values equal. BLEU and chrF counts still come from sacrebleu: what is saved is the second pass for single examples.")


if __name__ == "__main__":
    main()

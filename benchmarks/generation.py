"""Batched generation in this process beside transformers: the same greedy tokens in float32, and how long each takes.

Beside two ways to use transformers: `generate` for one prompt at a time, as most scripts do, and `generate` for left-padded batches of 16. The
sides take turns; the ratio is that of the medians, above 1 where ours is faster. Loading is left out."""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from llmops_workbench.errors import ModelNotFoundError
from llmops_workbench.helpdesk import generate_helpdesk
from llmops_workbench.models import decode_rows, encode_messages, import_torch, load_model

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from tiny_models import save_model  # noqa: E402

REPEATS, PROMPTS, NEW_TOKENS, BATCH = 5, 32, 48, 16


def one_by_one(model, rows):
    torch = import_torch()
    found = []
    for row in rows:
        ids = torch.tensor([row])
        out = model.network.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0)
        found.append(out[0, len(row):].tolist())
    return found


def in_batches(model, rows):
    torch = import_torch()
    found = []
    for start in range(0, len(rows), BATCH):
        part = rows[start:start + BATCH]
        width = max(map(len, part))
        ids = torch.tensor([[0]*(width - len(row)) + row for row in part])
        mask = torch.tensor([[0]*(width - len(row)) + [1]*len(row) for row in part])
        out = model.network.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0)[:, width:].tolist()
        for tokens in out:
            end = next((i + 1 for i, t in enumerate(tokens) if t in model.end_ids), len(tokens))
            found.append(tokens[:end])
    return found


def ours(model, rows):
    found = dict(decode_rows(model.network, rows, [NEW_TOKENS]*len(rows), lambda logits, live: logits.argmax(-1).tolist(),
                             lambda r, ids: ids[-1] in model.end_ids))
    return [found[i] for i in range(len(rows))]


def compare(title, model, rows):
    sides = {"ours": ours, "one by one": one_by_one, f"batches of {BATCH}": in_batches}
    results = {name: side(model, rows) for name, side in sides.items()}
    for name, tokens in results.items():
        assert tokens == results["ours"], f"{name} gives other tokens"
    times = {name: [] for name in sides}
    for _ in range(REPEATS):
        for name, side in sides.items():
            start = time.perf_counter()
            side(model, rows)
            times[name].append(time.perf_counter() - start)
    written, medians = sum(map(len, results["ours"])), {name: statistics.median(t) for name, t in times.items()}
    print(f"{title}: {len(rows)} prompts of {min(map(len, rows))} to {max(map(len, rows))} tokens, {written:,} tokens written, identical on all sides")
    for name, seconds in medians.items():
        ratios = [t/m for m, t in zip(times["ours"], times[name])]
        print(f"  {name:14} {seconds:7.2f} s  {written/seconds:8,.0f} tokens/s   ratio {seconds/medians['ours']:5.2f} ({min(ratios):.1f}-{max(ratios):.1f})")


def main():
    torch = import_torch()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), float32")
    texts = generate_helpdesk(n_rows=100, seed=7)[0]["text"].head(PROMPTS).str.slice(0, 160)
    with tempfile.TemporaryDirectory() as folder:
        models = [("random Llama of a few thousand weights", load_model(str(save_model(Path(folder) / "tiny"))))]
        try:
            models.append(("starter", load_model("starter")))
        except ModelNotFoundError:
            print("The starter weights are not built (make starter): only the random model is measured.")
        for title, model in models:
            rows = [encode_messages(model.tokenizer, [{"role": "user", "content": f"Write JSON.\n\n{text}"}]) for text in texts]
            compare(title, model, [row for row in rows if len(row) + NEW_TOKENS < model.context_tokens])


if __name__ == "__main__":
    main()

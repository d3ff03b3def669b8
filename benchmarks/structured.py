"""Answers under a JSON Schema: how many are valid, what it costs, and what it gains.

Validity: models with random weights and three kinds of tokenizer answer 83 schemas, greedily and drawn at temperature 1.5, with room and with just
enough tokens for the shortest answer. The judge is jsonschema on numbers as they are written (decimal, as 0.07 is no multiple of 0.01 in binary).
Cost: the same batch of 32 rows decoded with and without a schema. Gain: fields of the help desk's queries by the starter model, F1.
`python benchmarks/structured.py [--output FILE]`
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

from llmops_workbench.grammars import Grammar, GrammarError
from llmops_workbench.helpdesk import QUERY_SCHEMA, generate_helpdesk
from llmops_workbench.metrics import score
from llmops_workbench.models import LocalModel, decode_rows, encode_messages, import_torch, load_model, sample_ids

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from schema_table import REFUSED, SCHEMAS, is_valid  # noqa: E402
from tiny_models import save_model  # noqa: E402

PROMPTS = ["please help", "the printer on floor two is broken"]
KINDS = {"byte-level BPE": "", "BPE with byte fallback": "fallback", "Unigram": "unigram"}
# A vocabulary without these letters cannot write the values.
UNWRITABLE = {("Unigram", "unicode enum"), ("Unigram", "unicode keys")}


def validity(title, model):
    "Schema -> (valid, answers), for answers with room and for answers with hardly any."
    found = {}
    for name, schema in SCHEMAS.items():
        if (title, name) in UNWRITABLE:
            continue
        shortest = len(Grammar(model._vocabulary, schema).start(200).home)
        valid = total = cut = 0
        for temperature, seed, limit in [(0, 0, 120), (1.5, 1, 120), (1.5, 2, 50), (0, 0, shortest), (1.5, 3, shortest + 1), (1.5, 4, shortest + 4)]:
            frame = model.generate(PROMPTS, schema=schema, temperature=temperature, seed=seed, max_new_tokens=max(limit, shortest))
            good = [is_valid(text, schema) for text in frame["completion"]]
            assert all(v == (s == "constrained") for v, s in zip(good, frame["structured"])), f"{name}: the column `structured` does not tell the truth"
            valid, total, cut = valid + sum(good), total + len(good), cut + int((frame["finish_reason"] == "length").sum())
        found[name] = {"valid": valid, "answers": total, "steered": cut}
    return found


def refused(model):
    "Schemas that the grammar cannot keep to and says so."
    said = {}
    for name, schema in REFUSED.items():
        try:
            Grammar(model._vocabulary, schema)
        except GrammarError as error:
            said[name] = str(error)
    return said


def cost(model, n_rows=32, n_tokens=96, repeats=5):
    "Milliseconds a written token with and without a schema, in turns, and how much of it the grammar takes."
    from llmops_workbench.models import _forbidden
    torch = import_torch()
    rows = [encode_messages(model.tokenizer, [{"role": "user", "content": text}])
            for text in generate_helpdesk(n_rows=100, seed=7)[0]["text"].head(n_rows).str.slice(0, 160)]
    schema = {"type": "array", "items": SCHEMAS["ticket"], "minItems": 4}
    draws, spent, shares = torch.Generator().manual_seed(0), {"free": [], "constrained": []}, []
    for _ in range(repeats):
        for name in spent:
            start, written, inside = time.perf_counter(), 0, 0.0
            answers = None
            if name == "constrained":
                grammar = Grammar(model._vocabulary, schema)
                answers = [grammar.start(n_tokens) for _ in rows]
                inside += time.perf_counter() - start

            def choose(logits, live, answers=answers):
                nonlocal inside
                at = time.perf_counter()
                if answers:
                    logits = logits.masked_fill(_forbidden([answers[r] for r in live], logits), float("-inf"))
                    inside += time.perf_counter() - at
                ids = sample_ids(logits, torch.rand(len(live), generator=draws).tolist(), 1.0, 1.0)
                at = time.perf_counter()
                if answers:
                    ids = [answers[r].accept(i) for r, i in zip(live, ids)]
                    inside += time.perf_counter() - at
                return ids
            for _, ids in decode_rows(model.network, rows, [n_tokens]*n_rows, choose, lambda r, ids, answers=answers: bool(answers) and answers[r].is_done):
                written += len(ids)
            spent[name].append(1000*(time.perf_counter() - start)/written)
            if answers:
                shares.append((1000*inside/written, inside/(time.perf_counter() - start)))
    free, constrained = (statistics.median(values) for values in spent.values())
    return {"rows": n_rows, "vocabulary": len(model.tokenizer), "free_ms_per_token": round(free, 3), "constrained_ms_per_token": round(constrained, 3),
            "ratio": round(constrained/free, 2), "grammar_ms_per_token": round(statistics.median(m for m, _ in shares), 3),
            "grammar_share": round(statistics.median(s for _, s in shares), 2)}


def gain(model, n_rows):
    "F1 of the fields of unseen tickets' queries, with and without the schema."
    table, truth = generate_helpdesk(n_rows=n_rows, seed=20261127)
    clean = truth["clean_query"]
    prompts = ("Write the query for this ticket as JSON.\n\n" + table["text"]).tolist()
    found = {}
    for name, schema in (("free", None), ("constrained", QUERY_SCHEMA)):
        frame = model.generate(prompts, schema=schema, max_new_tokens=96)
        summary = score(frame["completion"], clean, ["valid_json", "json_field_f1", "json_match"], json_schema=QUERY_SCHEMA).summary
        found[name] = {k: round(v, 4) for k, v in summary.items() if k in ("valid_json", "json_field_f1", "json_match")}
        if schema:
            found[name]["structured"] = frame["structured"].value_counts().to_dict()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="JSON file for the figures")
    parser.add_argument("--rows", type=int, default=200, help="tickets for the gain")
    given = parser.parse_args()
    figures = {"validity": {}}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for title, pieces in KINDS.items():
            model: LocalModel = load_model(str(save_model(Path(folder) / (pieces or "bytes"), pieces=pieces)))
            found = figures["validity"][title] = validity(title, model)
            valid, total = (sum(f[k] for f in found.values()) for k in ("valid", "answers"))
            print(f"{title}: {valid:,} of {total:,} answers to {len(found)} schemas are valid ({valid/total:.2%})")
            for name, f in found.items():
                if f["valid"] < f["answers"]:
                    print(f"  {name}: {f['valid']} of {f['answers']}")
        figures["refused"] = refused(model)
        print(f"refused before decoding: {len(figures['refused'])} of {len(REFUSED)} schemas that cannot be enforced")
    starter = load_model("starter")
    figures["cost"] = cost(starter)
    print("cost:", figures["cost"])
    figures["gain"] = gain(starter, given.rows)
    print("gain:", figures["gain"])
    if given.output:
        Path(given.output).write_text(json.dumps(figures, indent=1, ensure_ascii=False))
    return any(f["valid"] < f["answers"] for found in figures["validity"].values() for f in found.values()) or len(figures["refused"]) < len(REFUSED)


if __name__ == "__main__":
    sys.exit(main())

"""Is the starter worth having? Fine-tuning it against training the same architecture from nothing: same data, same steps, one run.

Both sides use the same loop, tokenizer, examples and order. Reported for each budget: share of held-out answers that are right to the letter, and
the loss on them. `python benchmarks/starter_base.py [--steps 100 300] [--rows 2400] [--seeds 2] [--output FILE]`
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import llmops_workbench
from llmops_workbench.corpus import collate, encode_chat
from llmops_workbench.helpdesk import generate_helpdesk, helpdesk_tasks
from llmops_workbench.models import import_torch, import_transformers
from llmops_workbench.starter import SHAPE, exact_answers, finetune_plainly, make_model

FOLDER = Path(llmops_workbench.__file__).parent / "assets" / "starter"


def conversations(n_rows):
    "Clean tickets of the sample's seed, both tasks; the last 150 are held out and no text is on both sides."
    frame = generate_helpdesk(n_rows=n_rows, seed=0, trouble=0)[0].drop_duplicates("text")
    chats = {task: [[{"role": "user", "content": prompt.replace("{text}", row.text)}, {"role": "assistant", "content": getattr(row, task)}]
                    for row in frame.itertuples()] for task, (prompt, _) in helpdesk_tasks().items()}
    return [chat for chatted in chats.values() for chat in chatted[:-150]], {task: chatted[-150:] for task, chatted in chats.items()}


def loss_on(network, tokenizer, chats):
    "Mean loss of the answers' tokens, in nats."
    torch, total, count = import_torch(), 0.0, 0
    rows = sorted((("", *encode_chat(tokenizer, chat)) for chat in chats), key=lambda row: len(row[1]))
    for start in range(0, len(rows), 30):
        ids, mask = collate(torch, rows[start:start + 30])
        with torch.inference_mode():
            logits = network(input_ids=ids).logits[:, :-1][mask[:, 1:]]
        total += torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][mask[:, 1:]], reduction="sum").item()
        count += int(mask[:, 1:].sum())
    return total / count


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 300], help="budgets, in steps of 16 examples")
    parser.add_argument("--rows", type=int, default=2400, help="tickets to draw from")
    parser.add_argument("--seeds", type=int, default=2, help="orders of the examples")
    parser.add_argument("--output", help="JSON file for the figures")
    given = parser.parse_args()
    transformers = import_transformers()
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    train, held = conversations(given.rows)
    rows = []
    for n_steps in given.steps:
        for seed in range(given.seeds):
            for side in ("starter", "nothing"):
                network = (transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype="float32") if side == "starter"
                           else make_model(len(tokenizer), **SHAPE, seed=seed))
                began = time.perf_counter()
                finetune_plainly(network, tokenizer, train, n_steps=n_steps, seed=seed)
                rows.append({"side": side, "steps": n_steps, "seed": seed, "seconds": round(time.perf_counter() - began, 1),
                             "loss": loss_on(network, tokenizer, [chat for chats in held.values() for chat in chats]),
                             **{task: sum(exact_answers(network, tokenizer, chats)) / len(chats) for task, chats in held.items()}})
                print("{side:8} {steps:5} steps, order {seed}: query exact {query:6.1%}, summary exact {summary:6.1%}, loss {loss:.3f} ({seconds} s)".format(**rows[-1]), flush=True)
    print()
    for n_steps in given.steps:
        mean = {side: {name: statistics.mean(row[name] for row in rows if row["side"] == side and row["steps"] == n_steps)
                       for name in ("loss", "query", "summary")} for side in ("starter", "nothing")}
        print(f"{n_steps} steps: loss {mean['starter']['loss']:.3f} against {mean['nothing']['loss']:.3f} from nothing "
              f"({mean['nothing']['loss'] / mean['starter']['loss']:.1f} times), query exact {mean['starter']['query']:.1%} against {mean['nothing']['query']:.1%}, "
              f"summary exact {mean['starter']['summary']:.1%} against {mean['nothing']['summary']:.1%}")
    if given.output:
        Path(given.output).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()

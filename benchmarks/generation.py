"""A grid of 10 prompts x 50 examples on the CPU, beside transformers: what is written, and how long each takes.

Beside three ways to use transformers: `pipeline()` one call a prompt, as most scripts do, `pipeline(batch_size=16)`, and `generate_batch` with its
blocks and batches sized for a CPU. One thread for everybody; sides take turns, and a ratio is that of medians, above 1 where ours is faster. Loading is
left out. In float32 the texts have to be those of single calls in float32, for every prompt asked; of other formats the share of equal texts is told.

    python benchmarks/generation.py                             the starter, whole grid
    python benchmarks/generation.py --model llama-40m --every 10   single calls ask every tenth prompt, because all would take an hour
    python benchmarks/generation.py --model smollm-135m --every 50 --bare   without worked examples before the question
    python benchmarks/generation.py --quality                   what bfloat16 and int8 change in the starter's scores

Models other than the starter have the shape of their namesakes and random weights: they say nothing, and cost what the real ones cost. With one
thread the time is the processor's, so that neighbours count less. Written to benchmarks/results/generation.json, an entry a model and kind of prompt."""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("LLMOPS_THREADS", "1")

from llmops_workbench.checkpoints import starter_folder  # noqa: E402
from llmops_workbench.comparison import compare  # noqa: E402
from llmops_workbench.helpdesk import generate_helpdesk  # noqa: E402
from llmops_workbench.models import encode_messages, import_torch, import_transformers, load_local  # noqa: E402
from llmops_workbench.prompting import run_grid  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "generation.json"
SHAPES = {"llama-40m": dict(vocab_size=32000, hidden_size=512, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=8, intermediate_size=1536),
          "smollm-135m": dict(vocab_size=49152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, intermediate_size=1536)}
PROMPTS, EXAMPLES, START_TOKENS = 10, 50, 300


def make_model(name, folder):
    "A folder with a random model of that shape in bfloat16, as models of the Hub are stored, and the starter's tokenizer."
    torch, transformers = import_torch(), import_transformers()
    torch.manual_seed(0)
    network = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(
        **SHAPES[name], max_position_embeddings=2048, tie_word_embeddings=True, initializer_range=0.05, eos_token_id=1, pad_token_id=0, bos_token_id=1))
    # A random model hardly ever ends by itself; with many ends its answers differ in length as real ones do.
    network.generation_config.eos_token_id = [1, *range(5, SHAPES[name]["vocab_size"], 50)]
    network.to(torch.bfloat16).save_pretrained(folder)
    load_local("starter").tokenizer.save_pretrained(folder)
    return str(folder)


def make_grid(tokenizer, bare):
    "The prompts of a grid: ten instructions, each with worked examples unless bare, before the same fifty tickets."
    tickets, found = [generate_helpdesk(n_rows=200, seed=seed)[0]["text"].str.slice(0, 160).tolist() for seed in range(PROMPTS + 1)], []
    for p in range(PROMPTS):
        start, shots = f"Style {p + 1}. Sort the ticket into a category and answer as JSON.", iter(tickets[p + 1])
        while not bare and len(tokenizer(start)["input_ids"]) < START_TOKENS:
            start += f'\n\nTicket: {next(shots)}\nAnswer: {{"category": "hardware"}}'
        found += [f"{start}\n\nTicket: {ticket}\nAnswer:" for ticket in tickets[0][:EXAMPLES]]
    return [[{"role": "user", "content": text}] for text in found]


def through_pipeline(folder, dtype, batch_size, new_tokens):
    pipe = import_transformers().pipeline("text-generation", model=folder, dtype=getattr(import_torch(), dtype), device="cpu")
    pipe.tokenizer.padding_side = "left"
    config = pipe.model.generation_config
    config.max_length, config.pad_token_id = None, 0

    def ask(chats):
        given = dict(do_sample=False, max_new_tokens=new_tokens, return_full_text=False, clean_up_tokenization_spaces=False)
        found = [pipe(chat, **given) for chat in chats] if batch_size == 1 else pipe(chats, batch_size=batch_size, **given)
        return [one[0]["generated_text"] for one in found]
    return ask


def through_generate_batch(folder, dtype, new_tokens):
    model = load_local(folder, dtype=dtype)
    settings = dict(do_sample=False, max_new_tokens=new_tokens, eos_token_id=sorted(model.end_ids), pad_token_id=0, num_blocks=256, max_batch_tokens=256)
    config = import_transformers().GenerationConfig(**settings)

    def ask(chats):
        found = model.network.generate_batch(inputs=[encode_messages(model.tokenizer, chat) for chat in chats], generation_config=config)
        return [model.tokenizer.decode(one.generated_tokens, skip_special_tokens=True) for one in found.values()]
    return ask


def ours(model, new_tokens): return lambda chats: model.generate(chats, max_new_tokens=new_tokens)["completion"].tolist()


def same(one, other): return sum(a == b for a, b in zip(one, other))/len(one)


def quality(n_examples=100, new_tokens=64):
    "What a format changes in the starter's answers to the sample data: equal texts, and the score of each task with its interval."
    models, rows = [load_local("starter", dtype=dtype) for dtype in ("float32", "bfloat16", "int8")], []
    for model in models:
        model.name = model.dtype_name
    frame = run_grid(models, n_examples=n_examples, max_new_tokens=new_tokens).frame
    for task, answers in frame.groupby("task"):
        told = {dtype: part["completion"].tolist() for dtype, part in answers.groupby("model", sort=False)}
        references = answers.loc[answers["model"] == "float32", "references"].tolist()
        for row in compare(told, references=references, baseline="float32").frame.itertuples():
            rows.append({"task": task, "format": row.system, "metric": row.metric, "value": row.value, "low": row.low, "high": row.high, "delta": row.delta,
                         "delta_low": row.delta_low, "delta_high": row.delta_high, "n": n_examples, "texts_equal": same(told[row.system], told["float32"])})
    return [{name: None if value != value else round(value, 4) if isinstance(value, float) else value for name, value in row.items()} for row in rows]


def keep(path, entry):
    "Take the place of the entry of the same model and kind."
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    known = [e for e in known if (e["model"], e["kind"]) != (entry["model"], entry["kind"])] + [entry]
    path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="starter", choices=["starter", *SHAPES])
    parser.add_argument("--bare", action="store_true", help="no worked examples before the question")
    parser.add_argument("--every", type=int, default=1, help="transformers' sides ask every so-manieth prompt; ours always all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--without", nargs="*", default=[], help="sides to leave out")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--quality", action="store_true", help="the scores of the starter in every format instead")
    args = parser.parse_args()
    if args.quality:
        return keep(args.output, {"model": "starter", "kind": "quality on helpdesk", "scores": quality()})
    torch = import_torch()
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    with tempfile.TemporaryDirectory() as work:
        folder = str(starter_folder()) if args.model == "starter" else make_model(args.model, Path(work) / args.model)
        models = {dtype: load_local(folder, dtype=dtype) for dtype in ("float32", "bfloat16", "int8")}
        default = load_local(folder).dtype_name
        chats = make_grid(models["float32"].tokenizer, args.bare)
        few, lengths = chats[::args.every], [len(encode_messages(models["float32"].tokenizer, chat)) for chat in chats]
        sides = {f"ours, {dtype}": (ours(model, args.new_tokens), chats) for dtype, model in models.items()}
        for dtype in ("float32", "bfloat16"):
            sides[f"pipeline one by one, {dtype}"] = through_pipeline(folder, dtype, 1, args.new_tokens), few
            sides[f"pipeline(batch_size=16), {dtype}"] = through_pipeline(folder, dtype, 16, args.new_tokens), few
        sides["generate_batch, float32"] = through_generate_batch(folder, "float32", args.new_tokens), few
        sides = {name: side for name, side in sides.items() if not any(name.startswith(w) for w in args.without)}
        texts, seconds = {}, {name: [] for name in sides}
        for _ in range(args.repeats):
            for name, (ask, asked) in sides.items():
                start = clock()
                texts[name] = ask(asked)
                seconds[name].append((clock() - start)/len(asked))
        single = texts["pipeline one by one, float32"]
        # What is promised: not one text of a grid in float32 is another than alone.
        assert texts["ours, float32"][::args.every] == single, f"{1 - same(texts['ours, float32'][::args.every], single):.1%} of the texts differ"
    medians = {name: statistics.median(t) for name, t in seconds.items()}
    agreement = {name: same(t, texts["ours, float32"] if len(t) == len(chats) else single) for name, t in texts.items()}
    entry = {"model": args.model, "kind": "bare" if args.bare else f"{START_TOKENS} tokens of worked examples", "n_prompts": len(chats), "n_asked_by_others": len(few),
             "prompt_tokens": [min(lengths), max(lengths)], "new_tokens": args.new_tokens, "default_format": default, "threads": torch.get_num_threads(),
             "clock": clock.__name__, "repeats": args.repeats, "ms_a_prompt": {n: round(1000*s, 2) for n, s in medians.items()},
             "spread": {n: [round(1000*min(t), 2), round(1000*max(t), 2)] for n, t in seconds.items()},
             "texts_equal_to_float32": {n: round(a, 4) for n, a in agreement.items()},
             "ratios": {"float32": round(medians["pipeline one by one, float32"]/medians["ours, float32"], 2),
                        "default": round(medians["pipeline one by one, bfloat16"]/medians[f"ours, {default}"], 2)},
             "load_average": round(os.getloadavg()[0], 1), "torch": torch.__version__, "transformers": import_transformers().__version__, "python": platform.python_version()}
    for name, value in entry.items(): print(f"{name}: {json.dumps(value)}")
    keep(args.output, entry)


if __name__ == "__main__":
    main()

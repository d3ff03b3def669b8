"""What a fine-tune was said to need beside the most memory its process held, for models of five shapes.

Each is trained for three steps by the real job, with `low_memory`, on the longest sample tickets, so that every batch is about as large as the largest. Said: what `preflight` says before. Held: the peak of the resident
memory of the worker, as the system counts it. Also how much the same training holds without `low_memory`.
`python benchmarks/memory.py [--output FILE]`
"""

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("LLMOPS_THREADS", "1")

from peers import record
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from llmops_workbench.examples import read_examples
from llmops_workbench.finetuning import finetune
from llmops_workbench.models import import_torch, import_transformers
from llmops_workbench.readiness import preflight

SHAPES = {
    "Llama, 12 layers of 512, all weights": ("Llama", {"hidden_size": 512, "num_hidden_layers": 12, "intermediate_size": 1536, "num_attention_heads": 8}, {"method": "full", "per_device_train_batch_size": 8}),
    "Llama, 12 layers of 512, LoRA": ("Llama", {"hidden_size": 512, "num_hidden_layers": 12, "intermediate_size": 1536, "num_attention_heads": 8}, {"per_device_train_batch_size": 16}),
    "GPT-2, 6 layers of 768, bfloat16": ("GPT2", {"n_embd": 768, "n_layer": 6, "n_head": 12}, {"method": "full", "per_device_train_batch_size": 16, "dtype": "bfloat16"}),
    "Qwen 3, 8 layers of 768, LoRA, checkpointing": ("Qwen3", {"hidden_size": 768, "num_hidden_layers": 8, "intermediate_size": 2048, "num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 64},
                                                     {"per_device_train_batch_size": 16, "gradient_checkpointing": True}),
    "Gemma 3, 4 layers of 1024, LoRA": ("Gemma3Text", {"hidden_size": 1024, "num_hidden_layers": 4, "intermediate_size": 3072, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 128,
                                                       "sliding_window": 128}, {"per_device_train_batch_size": 12}),
}


def save_base(folder, kind, size, texts):
    transformers = import_transformers()
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=2000, special_tokens=["<pad>", "<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<end>")
    config = getattr(transformers, f"{kind}Config")(vocab_size=2000, max_position_embeddings=1024, pad_token_id=0, eos_token_id=1, bos_token_id=None, **size)
    import_torch().manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "memory.json")
    given, found = parser.parse_args(), {}
    examples = read_examples("helpdesk").frame
    texts = [*examples["prompt"].head(1000), *examples["completion"].head(1000)]
    # As many as three batches of the largest size, none of which is held out.
    examples = examples.loc[(examples["prompt"].str.len() + examples["completion"].str.len()).sort_values().index[-48:]]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LLMOPS_WORKSPACE"] = folder
        for at, (name, (kind, size, how)) in enumerate(SHAPES.items()):
            base = Path(folder) / f"base{at}"
            save_base(base, kind, size, texts)
            asked = {"model_name_or_path": str(base), "dataset": examples, "max_steps": 3, "eval_samples": 0, "sample_completions": 0, **how}
            said = preflight(**asked, low_memory=True).summary
            tight, loose = (finetune(**asked, low_memory=low).summary for low in (True, False))
            found[name] = {"said_bytes": said["memory_bytes"], "said_loose_bytes": said["loose_memory_bytes"], "start_bytes": tight["start_memory_bytes"], "held_bytes": tight["peak_memory_bytes"],
                           "held_without_low_memory_bytes": loose["peak_memory_bytes"], "n_parameters": tight["n_parameters"], "train_s": [tight["train_s"], loose["train_s"]]}
            row = found[name]
            print(f"{name:48} said {row['said_bytes'] >> 20:6,} MiB  held {row['held_bytes'] >> 20:6,}  said/held {row['said_bytes'] / row['held_bytes']:.2f}  started with {row['start_bytes'] >> 20:4}"
                  f"  without low_memory {row['held_without_low_memory_bytes'] >> 20:6,} (said up to {row['said_loose_bytes'] >> 20:,})", flush=True)
    record(given.output, found)


if __name__ == "__main__":
    main()

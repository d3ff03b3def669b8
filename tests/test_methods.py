"""Fine-tuning of the families of models people use, made small and at random: trained, saved, loaded, asked."""

import math
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from tiny_models import save_model

from llmops_workbench import models, training
from llmops_workbench.checkpoints import weights_digest
from llmops_workbench.datasets import save_snapshot
from llmops_workbench.finetuning import FineTuned, finetune, read_order
from llmops_workbench.jobs import Context
from llmops_workbench.models import encode_messages, load_local
from llmops_workbench.readiness import preflight

FAMILIES = ["gpt2", "llama", "qwen3", "gemma3", "mistral", "phi", "olmo2", "smollm3"]
EXAMPLES = pd.DataFrame([{"id": f"t{n}", "task": "floor", "prompt": f"the printer on floor {n} is broken", "completion": f"printer {n}"} for n in range(20)])
PROMPTS = ["the printer on floor 3 is broken", "help", "please, is it broken?"]


@pytest.fixture
def tiny(tmp_path):
    "A function that makes a random model of a family."
    return lambda kind="llama", seed=0: str(save_model(tmp_path / f"{kind}-{seed}", kind, seed))


def options(folder, **given):
    return {"model_name_or_path": folder, "dataset": EXAMPLES, "max_steps": 2, "per_device_train_batch_size": 4, "lora_r": 4, "dtype": "float32", "eval_samples": 2,
            "sample_completions": 2, "max_length": 64, "learning_rate": 0.02, "warmup_ratio": 0.0, **given}


def tune(monkeypatch, tmp_path, folder, **given):
    "What the worker of a fine-tune does, in this process: its result, and the network as it was trained."
    order, seen, save = read_order(options(folder, **given)), [], training.save_model
    (tmp_path / "job").mkdir(exist_ok=True)
    with monkeypatch.context() as patch:
        patch.setattr(training, "save_model", lambda model, *rest, **more: seen.append(model) or save(model, *rest, **more))
        result = training.train(Context(tmp_path / "job"), str(order.folder), order.base, save_snapshot(order.fit), order.held_out and save_snapshot(order.held_out),
                                "tiny", order.output_dir, "examples", order.options)
    return SimpleNamespace(**result, network=seen[0].eval())


def batch_of(tokenizer):
    "Prompts with answers as the trainer reads them, padded."
    examples = pd.DataFrame({"prompt": PROMPTS, "completion": ["printer 3", "no", "it is, on floor two"]})
    rows = training.encode_examples(tokenizer, examples, 64)
    return training.collate(zip(rows["ids"], rows["n_prompt"]))


def logits(network, tokenizer):
    "Scores of every real token."
    batch = batch_of(tokenizer)
    with models.import_torch().no_grad(): return network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[batch["attention_mask"].bool()]


def adapted(folder, adapter):
    "The model with its adapter beside it, as PEFT itself loads it."
    from peft import PeftModel
    return PeftModel.from_pretrained(load_local(folder, dtype="float32").network, adapter).eval()


def said_by(network, tokenizer, new_tokens):
    "Greedy answers as `generate` of that network finds them, a prompt at a time."
    torch, found = models.import_torch(), []
    for prompt in PROMPTS:
        ids = torch.tensor([encode_messages(tokenizer, [{"role": "user", "content": prompt}])])
        out = network.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new_tokens, pad_token_id=0)[0].tolist()
        found.append(tokenizer.decode(out[ids.shape[1]:], skip_special_tokens=True))
    return found


def check_weights(folder, trained, n_trainable):
    "No weight of the base has moved, and as many as were said have been trained."
    base = load_local(folder, dtype="float32").network.state_dict()
    inner = {name.replace(".base_layer", ""): w for name, w in training.inner_network(trained).state_dict().items()}
    shared = [name for name in base if name in inner]
    assert len(shared) == len(base) and all(inner[name].equal(base[name]) for name in shared)
    assert n_trainable == sum(p.numel() for p in trained.parameters() if p.requires_grad) > 0


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_is_looked_at_trained_saved_loaded_and_asked(monkeypatch, tmp_path, tiny, kind):
    torch, folder = models.import_torch(), tiny(kind)
    digest, seen = weights_digest(folder), preflight(**options(folder))
    assert seen.ready, seen.words()
    result = tune(monkeypatch, tmp_path, folder)
    s = result.summary
    assert (s["steps"], s["ended_by"], s["method"], s["learning_rate"]) == (2, "steps", "lora", 0.02)
    assert s["n_trainable"] == seen.summary["n_trainable"] and s["n_parameters"] == load_local(folder).n_parameters
    assert math.isfinite(s["eval_loss"]) and [len(row["completion"]) > 0 for row in result.samples] == [True, True]
    check_weights(folder, result.network, s["n_trainable"])
    assert weights_digest(folder) == digest
    loaded, base = load_local(result.model, dtype="float32"), load_local(folder, dtype="float32")
    trained = logits(result.network, base.tokenizer)
    assert (trained - logits(base.network, base.tokenizer)).abs().max() > 0.05, "two steps have to be seen"
    assert torch.equal(trained, logits(adapted(folder, result.model), base.tokenizer))
    torch.testing.assert_close(logits(loaded.network, base.tokenizer), trained, atol=1e-4, rtol=1e-4)
    assert loaded.generate(PROMPTS, max_new_tokens=8)["completion"].tolist() == said_by(loaded.network, base.tokenizer, 8)


def test_a_family_goes_through_a_job_of_its_own_process(tiny):
    tuned = finetune(**options(tiny("smollm3")))
    assert (tuned.summary["steps"], math.isfinite(tuned.summary["train_loss_last"]), len(tuned.samples)) == (2, True, 2)
    assert load_local(tuned.model).generate(PROMPTS, max_new_tokens=4)["error"].eq("").all()


@pytest.mark.parametrize("kind,embeddings", [("llama", False), ("llama", True), ("gpt2", False), ("gpt2", True), ("gemma3", True)])
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_an_adapter_of_either_kind_loads_as_it_was_trained(monkeypatch, tmp_path, tiny, kind, embeddings, method):
    torch, folder, given = models.import_torch(), tiny(kind), {"method": method, "train_embeddings": embeddings}
    seen, result = preflight(**options(folder, **given)), tune(monkeypatch, tmp_path, folder, **given)
    assert seen.ready and seen.summary["n_trainable"] == result.summary["n_trainable"] == sum(p.numel() for p in result.network.parameters() if p.requires_grad)
    base, names = load_local(folder, dtype="float32"), {name.split(".")[-3] for name, p in result.network.named_parameters() if p.requires_grad}
    assert ("lora_magnitude_vector" in names) == (method == "dora")
    rows = [p for name, p in result.network.named_parameters() if p.requires_grad and p.shape == base.network.get_input_embeddings().weight.shape]
    assert len(rows) == embeddings and not any(p.equal(base.network.get_input_embeddings().weight) for p in rows)
    trained = logits(result.network, base.tokenizer)
    assert torch.equal(trained, logits(adapted(folder, result.model), base.tokenizer))
    torch.testing.assert_close(logits(load_local(result.model, dtype="float32").network, base.tokenizer), trained, atol=1e-4, rtol=1e-4)


def test_dora_is_told_as_dora_and_takes_the_rates_of_lora(monkeypatch, tmp_path, tiny):
    result = tune(monkeypatch, tmp_path, tiny(), method="dora", learning_rate=None)
    assert result.summary["learning_rate"] == 5e-3
    words = FineTuned({**result.summary, **result.measured}, pd.DataFrame(), pd.DataFrame(), {}).words()[0]
    assert words.startswith("DoRA on ") and f"{result.summary['n_trainable']:,} of" in words
    card = (Path(result.model) / "README.md").read_text()
    assert "by DoRA." in card and 'library_name: "peft"' in card

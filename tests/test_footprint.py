"""What a training is said to need, beside what it holds."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
from tiny_models import architectures, save_model, save_tokenizer

from llmops_workbench.adapters import adapter_config, start_soft_prompt
from llmops_workbench.footprint import START_BYTES, _make_living, peak_memory, training_footprint
from llmops_workbench.models import import_torch, import_transformers
from llmops_workbench.readiness import preflight
from llmops_workbench.training import answer_loss, plain_head

OPTIONS = SimpleNamespace(method="lora", lora_r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear", train_embeddings=False, num_virtual_tokens=8)
HOW = {"all weights": {}, "LoRA": {"adapter": "lora"}, "DoRA": {"adapter": "dora"}, "a soft prompt": {"adapter": "prompt"}, "bfloat16": {"precision": "bfloat16"}, "checkpointing": {"checkpointing": True}, "LoRA, checkpointing": {"adapter": "lora", "checkpointing": True}}


def held(folder, config, batch_size, length, n_answer, adapter=None, precision="float32", checkpointing=False):
    "What really lives while a network with numbers takes two steps, and the weights it is made of."
    torch, transformers = import_torch(), import_transformers()
    network = inner = transformers.AutoModelForCausalLM.from_config(config).train()
    if adapter:
        from peft import get_peft_model
        network = get_peft_model(inner, adapter)
    if adapter and adapter.peft_type == "PROMPT_TUNING":
        start_soft_prompt(network, save_tokenizer(folder))
        length -= adapter.num_virtual_tokens
    if checkpointing:
        inner.gradient_checkpointing_enable()
        if adapter:
            network.enable_input_require_grads()
    trained, living = [weight for weight in network.parameters() if weight.requires_grad], _make_living()
    for tensor in (*network.parameters(), *network.buffers()):
        living.add(tensor)
    weights = living.bytes
    ids, mask = torch.randint(5, 200, (batch_size, length)), torch.ones((batch_size, length), dtype=torch.long)
    mask[0, -3:] = 0  # as every batch but the luckiest
    labels = torch.full_like(ids, -100)
    labels[:, length - n_answer // batch_size:] = 7
    optimizer = torch.optim.AdamW(trained, fused=True)
    with living:
        for _ in range(2):
            living.most = living.bytes
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
                loss = answer_loss(inner, {"input_ids": ids, "attention_mask": mask, "labels": labels})
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return living.most, weights, sum(weight.numel() for weight in trained)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("kind", ["llama", "gemma3", "mistral-sliding", "gpt2"])
def test_a_training_without_numbers_holds_what_one_with_numbers_does(tmp_path, kind, how):
    config, given = architectures()[kind](320), dict(HOW[how])
    if "adapter" in given:
        network = import_transformers().AutoModelForCausalLM.from_config(config)
        given["adapter"] = adapter_config(SimpleNamespace(**{**vars(OPTIONS), "method": given["adapter"]}), network)
    n_answer = 8 * 12
    real, weights, n_trainable = held(tmp_path, config, 8, 64, n_answer, **given)
    found = training_footprint(config, 8, 64, n_answer, **given)
    assert abs(found.weights - weights) < 4096 and found.n_trainable == n_trainable and found.trained == 12 * n_trainable
    assert found.total == pytest.approx(real, rel=0.06)


def test_what_it_depends_on():
    config = architectures()["llama"](320)
    def activations(*size, **more): return training_footprint(config, *size, **more).activations
    one = activations(4, 64)
    assert activations(8, 64) > 1.8 * one and activations(4, 128) > 1.8 * one and activations(4, 64, 10) < one
    assert activations(4, 64, attention="eager") > activations(4, 64, attention="sdpa") and activations(4, 64, checkpointing=True) < one
    assert activations(4, 64, 10, whole_logits=True) > activations(4, 64, 10) and plain_head(import_transformers().AutoModelForCausalLM.from_config(config))


def test_weights_of_sixteen_bits_are_half_as_many_bytes():
    torch, config = import_torch(), architectures()["llama"](320)
    whole, half = (training_footprint(config, 4, 32, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    assert abs(whole.weights - 2 * half.weights) < 4096 and whole.trained == 2 * half.trained and half.activations < whole.activations


def test_an_encoder_decoder_has_a_footprint():
    config = import_transformers().T5Config(vocab_size=300, d_model=32, d_ff=64, d_kv=8, num_layers=2, num_heads=4, decoder_start_token_id=0)
    found = training_footprint(config, 4, 32)
    assert found.n_trainable == sum(weight.numel() for weight in import_transformers().T5ForConditionalGeneration(config).parameters()) and found.activations > training_footprint(config, 4, 32, 4 * 3).activations > 0


IN_A_PROCESS = """
import psutil
from llmops_workbench.footprint import return_memory, training_footprint
from llmops_workbench.models import import_torch, import_transformers
torch, transformers = import_torch(), import_transformers()
config = transformers.LlamaConfig(vocab_size=2000, hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1024, max_position_embeddings=512)
said = training_footprint(config, 8, 192)
assert return_memory()
before = psutil.Process().memory_info().rss
network = transformers.AutoModelForCausalLM.from_config(config).train()
optimizer, most = torch.optim.AdamW(network.parameters(), fused=True), 0
ids = torch.randint(0, 2000, (8, 192))
def look(module, given): global most; most = max(most, psutil.Process().memory_info().rss)
for module in network.modules(): module.register_full_backward_pre_hook(look)
for _ in range(2):
    network(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
    optimizer.step()
    look(None, None)
    optimizer.zero_grad()
print(said.total, most - before)
"""


def test_a_worker_is_not_as_large_as_the_notebook_that_started_it():
    held = b"x" * (400 << 20)
    told = subprocess.run([sys.executable, "-W", "ignore", "-c", "from llmops_workbench.footprint import peak_memory; print(peak_memory())"], capture_output=True, text=True, check=True)
    assert 5 << 20 < int(told.stdout) < len(held) < peak_memory()


@pytest.mark.skipif(sys.platform != "linux", reason="only the C library of Linux is told to hand memory back")
def test_the_system_counts_what_was_said():
    told = subprocess.run([sys.executable, "-W", "ignore", "-c", IN_A_PROCESS], capture_output=True, text=True, env={**os.environ, "LLMOPS_THREADS": "1"}, check=True)
    said, most = map(int, told.stdout.split())
    assert said == pytest.approx(most, rel=0.15) and most > 200 << 20


def test_what_does_not_fit_is_said_before(tmp_path, monkeypatch):
    import psutil
    examples = pd.DataFrame({"id": [str(i) for i in range(12)], "task": "say", "prompt": [f"say {i}" for i in range(12)], "completion": "yes"})
    save_model(tmp_path / "tiny", "llama")

    def look(free, low_memory):
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
        found = preflight(model_name_or_path=str(tmp_path / "tiny"), dataset=examples, max_steps=3, per_device_train_batch_size=4, low_memory=low_memory, max_length=64)
        return found.summary, found.frame.set_index("check").loc["memory"]
    summary, row = look(10**12, False)
    need, loose = summary["memory_bytes"], summary["loose_memory_bytes"]
    assert row["status"] == "ok" and START_BYTES < need < loose and summary["free_bytes"] == 10**12
    for free, low_memory, status, todo in [(loose - 1, False, "warning", "low_memory"), (loose - 1, True, "ok", ""), (need - 1, True, "error", "Halve per_device_train_batch_size")]:
        row = look(free, low_memory)[1]
        assert row["status"] == status and todo in row["todo"]

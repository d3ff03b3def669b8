"""Fine-tuning of the families of models people use, made small and at random: trained, saved, loaded, asked."""

import json
import math
import tomllib
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from tiny_models import save_model

from llmops_workbench import finetuning, models, training
from llmops_workbench.adapters import SOFT_PROMPT
from llmops_workbench.checkpoints import check_model_folder, weights_digest
from llmops_workbench.datasets import save_snapshot
from llmops_workbench.errors import ParameterValueError, SourceFormatError
from llmops_workbench.finetuning import FineTuned, finetune, read_order
from llmops_workbench.jobs import Context, list_jobs
from llmops_workbench.metric_models import open_metric_model
from llmops_workbench.models import encode_messages, load_local
from llmops_workbench.readiness import preflight
from llmops_workbench.schedules import METHODS

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
    order, seen, make = read_order(options(folder, **given)), [], training.make_trainer
    (tmp_path / "job").mkdir(parents=True, exist_ok=True)
    with monkeypatch.context() as patch:
        patch.setattr(training, "make_trainer", lambda *given: seen.append(make(*given)) or seen[0])
        result = training.train(Context(tmp_path / "job"), str(order.folder), order.base, save_snapshot(order.fit), order.held_out and save_snapshot(order.held_out),
                                "tiny", order.output_dir, "examples", order.options)
    return SimpleNamespace(**result, network=seen[0].model.eval())


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


def said_by(network, tokenizer, new_tokens, prompts=PROMPTS):
    "Greedy answers as `generate` of that network finds them, a prompt at a time."
    torch, found = models.import_torch(), []
    for prompt in prompts:
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


def prompt_tuned(monkeypatch, tmp_path, folder, **given):
    return tune(monkeypatch, tmp_path, folder, **{"method": "prompt", "num_virtual_tokens": 5, "learning_rate": 0.5, **given})


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_soft_prompt_is_trained_saved_loaded_and_asked(monkeypatch, tmp_path, tiny, kind):
    "PEFT's own forward and generate are the judges."
    torch, folder, given = models.import_torch(), tiny(kind), {"method": "prompt", "num_virtual_tokens": 5}
    base, seen = load_local(folder, dtype="float32"), preflight(**options(folder, **given))
    result = prompt_tuned(monkeypatch, tmp_path, folder)
    s, width = result.summary, base.network.config.hidden_size
    assert seen.ready and s["n_trainable"] == seen.summary["n_trainable"] == 5*width and s["method"] == "prompt"
    theirs, batch = adapted(folder, result.model), batch_of(base.tokenizer)
    with torch.no_grad():
        wanted, plain = theirs(**batch).loss.item(), base.network(**batch).loss.item()
        assert abs(wanted - plain) > 1e-3, "the virtual tokens have to be seen"
        inner = training.inner_network(result.network)
        assert training.answer_loss(inner, batch).item() == pytest.approx(wanted, rel=1e-5) == result.network(**batch).loss.item()
        loaded = load_local(result.model, dtype="float32")
        assert training.answer_loss(loaded.network, batch).item() == pytest.approx(wanted, rel=1e-5)
    for name, weight in base.network.state_dict().items():
        kept = inner.state_dict()
        assert weight.equal(kept[name] if name in kept else kept[name.replace(".weight", ".embedding.weight")])
    said = said_by(theirs, base.tokenizer, 8)
    assert loaded.generate(PROMPTS, max_new_tokens=8)["completion"].tolist() == said != said_by(base.network, base.tokenizer, 8)
    assert [loaded.generate([p], max_new_tokens=8)["completion"][0] for p in PROMPTS] == said


def test_the_loss_of_a_step_and_of_the_held_out_are_taken_through_the_virtual_tokens(monkeypatch, tmp_path, tiny):
    torch, folder, losses = models.import_torch(), tiny(), []
    order = read_order(options(folder, method="prompt", eval_samples=20))
    result = prompt_tuned(monkeypatch, tmp_path, folder)
    theirs, tokenizer = adapted(folder, result.model), load_local(folder).tokenizer
    rows = training.encode_examples(tokenizer, order.held_out.frame, 64, theirs)
    weights = rows["n_answer"].tolist()
    with torch.no_grad(): losses = [theirs(**training.collate([(ids, n)])).loss.item() for ids, n in zip(rows["ids"], rows["n_prompt"])]
    assert result.summary["eval_loss"] == pytest.approx(sum(w*x for w, x in zip(weights, losses))/sum(weights), rel=1e-4)
    spoken = load_local(result.model, dtype="float32").generate([row["prompt"] for row in result.samples], max_new_tokens=160)["completion"].tolist()
    assert [row["completion"] for row in result.samples] == spoken


@pytest.mark.parametrize("kind", ["gemma3", "mistral-sliding", "gemma2"])
def test_a_grid_with_a_soft_prompt_says_what_its_prompts_say_alone(monkeypatch, tmp_path, tiny, kind):
    "Where rows are read together, where windows forbid it, and where the head is not plain."
    folder = tiny(kind)
    result = prompt_tuned(monkeypatch, tmp_path, folder)
    asked = [start + p for start in ("You answer for the help desk, in one short sentence. "*2, "") for p in PROMPTS*2]
    model, theirs = load_local(result.model, dtype="float32"), adapted(folder, result.model)
    assert model.generate(asked, max_new_tokens=6)["completion"].tolist() == said_by(theirs, model.tokenizer, 6, asked)


def test_virtual_tokens_take_their_part_of_the_context(monkeypatch, tmp_path, tiny):
    folder = tiny("gpt2")
    result = prompt_tuned(monkeypatch, tmp_path, folder, max_length=512, num_virtual_tokens=100, dataset=EXAMPLES.assign(prompt=EXAMPLES["prompt"]*9, completion="no "*99))
    saved = json.loads((Path(result.model) / "training_args.json").read_text())
    model = load_local(result.model, dtype="float32")
    assert (saved["options"]["max_length"], model.context_tokens) == (144, 156)
    frame = model.generate(["x"*145, "x"*200], max_new_tokens=400)
    assert frame["error"].str.contains("reads 1 to 155").tolist() == [False, True]
    assert frame["prompt_tokens"][0] + frame["completion_tokens"][0] <= 156
    with pytest.raises(ParameterValueError, match="leaves no room for examples"): prompt_tuned(monkeypatch, tmp_path, folder, num_virtual_tokens=250)
    assert not preflight(**options(folder, method="prompt", num_virtual_tokens=250)).ready


def test_virtual_tokens_start_as_words(monkeypatch, tmp_path, tiny):
    folder = tiny("gemma3")
    embedding, tokenizer = load_local(folder, dtype="float32").network.get_input_embeddings(), load_local(folder).tokenizer
    result = prompt_tuned(monkeypatch, tmp_path, folder, learning_rate=0.0, num_virtual_tokens=40)
    ids = tokenizer(SOFT_PROMPT, add_special_tokens=False)["input_ids"]
    vectors = result.network.prompt_encoder["default"].embedding.weight
    assert vectors.equal(embedding(models.import_torch().tensor(ids))[:40])


def test_an_interrupted_soft_prompt_goes_on(monkeypatch, tmp_path, tiny):
    folder, parts = tiny(), {}
    whole = prompt_tuned(monkeypatch, tmp_path, folder, max_steps=4)
    for name, given in {"stopped": {"stop": True}, "resumed": {}}.items():
        with monkeypatch.context() as patch:
            patch.setattr(Context, "stop_requested", property(lambda self, stop=bool(given): stop and Path(self.dir / "events.jsonl").read_text().count('"step"') > 0))
            parts[name] = prompt_tuned(monkeypatch, tmp_path, folder, max_steps=4)
    assert 0 < parts["stopped"].summary["steps"] < 4 == parts["resumed"].summary["steps"]
    models.import_torch().testing.assert_close(parts["resumed"].network.get_prompt_embedding_to_save("default"), whole.network.get_prompt_embedding_to_save("default"))


@pytest.mark.parametrize("given,words", [({"packing": True}, "packing is on and method is 'prompt'"), ({"train_embeddings": True}, "train_embeddings is on and method is 'prompt'")])
def test_what_prompt_tuning_cannot_do_is_said_at_once(tiny, given, words):
    with pytest.raises(ParameterValueError, match=words): read_order(options(tiny(), method="prompt", **given))


def test_a_soft_prompt_is_no_base_and_no_judge(monkeypatch, tmp_path, tiny):
    folder = tiny()
    result = prompt_tuned(monkeypatch, tmp_path, folder)
    with pytest.raises(ParameterValueError, match=f"Name its base: '{folder}'"): read_order(options(result.model))
    with pytest.raises(SourceFormatError, match="texts are judged without one"): open_metric_model(Path(result.model), "causal")


def four_bits_here():
    return find_spec("bitsandbytes") is not None and models.import_torch().cuda.is_available()


@pytest.mark.parametrize("package,words", [(False, ["bitsandbytes and a CUDA GPU cannot be found", "pip install 'llmops_workbench[quantized]'", "method='lora'"]),
                                           (True, ["and a CUDA GPU cannot be found", "method='lora'"])])
def test_four_bits_without_a_gpu_are_refused_before_anything_starts(monkeypatch, tiny, package, words):
    if four_bits_here(): pytest.skip("this machine has a GPU and bitsandbytes: nothing is missing")
    if package and models.import_torch().cuda.is_available(): pytest.skip("this machine has a GPU")
    monkeypatch.setattr(finetuning, "find_spec", lambda name: object() if package else None)
    with pytest.raises(ParameterValueError) as error: finetune(**options(tiny(), method="qlora"))
    assert all(word in str(error.value) for word in words) and ("pip install" in str(error.value)) != package
    assert list_jobs().empty
    seen = preflight(**options(tiny(), method="qlora"))
    assert not seen.ready and seen.frame["check"].tolist() == ["method"] and words[0] in seen.frame["found"][0]


def test_the_extra_that_the_refusal_offers_brings_bitsandbytes():
    extras = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(wanted.startswith("bitsandbytes") for wanted in extras["quantized"])


def test_a_base_in_four_bits_is_trained_on(monkeypatch, tmp_path, tiny):
    if not four_bits_here(): pytest.skip("needs a CUDA GPU and bitsandbytes: pip install 'llmops_workbench[quantized]'")
    folder = tiny()
    seen, result = preflight(**options(folder, method="qlora", dtype="auto")), tune(monkeypatch, tmp_path, folder, method="qlora", dtype="auto")
    assert seen.ready and seen.summary["n_trainable"] == result.summary["n_trainable"]
    assert training.inner_network(result.network).is_loaded_in_4bit and math.isfinite(result.summary["eval_loss"])
    assert result.summary["n_parameters"] == load_local(folder).n_parameters
    assert load_local(result.model).generate(PROMPTS, max_new_tokens=4)["error"].eq("").all()


@pytest.mark.parametrize("kind,method,embeddings", [("llama", "lora", True), ("gpt2", "dora", True), ("gemma3", "lora", False), ("smollm3", "dora", False)])
def test_a_merged_adapter_is_a_whole_model(monkeypatch, tmp_path, tiny, kind, method, embeddings):
    torch, folder = models.import_torch(), tiny(kind)
    result = tune(monkeypatch, tmp_path, folder, method=method, train_embeddings=embeddings, merge=True)
    made, tokenizer = Path(result.model), load_local(folder).tokenizer
    assert result.summary["merged"] and not list(made.glob("adapter*")) and check_model_folder(made) == "model"
    whole = models.import_transformers().AutoModelForCausalLM.from_pretrained(made)
    assert whole.dtype == torch.float32 and not any("lora" in name for name in whole.state_dict())
    torch.testing.assert_close(logits(whole.eval(), tokenizer), logits(result.network, tokenizer), atol=1e-4, rtol=1e-4)
    assert load_local(result.model, dtype="float32").generate(PROMPTS, max_new_tokens=8)["completion"].tolist() == said_by(whole, tokenizer, 8)
    note, card, saved = (made / "workbench.json").read_text(), (made / "README.md").read_text(), json.loads((made / "training_args.json").read_text())
    assert json.loads(note) == {"base_model": folder, "base_sha256": weights_digest(folder)} and saved["options"]["lora_r"] == 4
    assert f"by {METHODS[method]}, merged into its weights." in card and 'library_name: "transformers"' in card and weights_digest(folder) in card
    assert "whole model" in FineTuned({**result.summary, **result.measured}, pd.DataFrame(), pd.DataFrame(), {}).words()[1]


def test_a_soft_prompt_cannot_be_merged(tiny):
    with pytest.raises(ParameterValueError, match="merge is on and method is 'prompt'"): read_order(options(tiny(), method="prompt", merge=True))


@pytest.mark.parametrize("method,merge", [("lora", False), ("dora", False), ("lora", True)])
def test_an_earlier_run_goes_on_as_a_base(monkeypatch, tmp_path, tiny, method, merge):
    "By its folder and by its run: the second adapter stands upon the first, and loads upon it."
    torch, folder = models.import_torch(), tiny()
    first = tune(monkeypatch, tmp_path / "a", folder, method=method, merge=merge)
    run = FineTuned({**first.summary, **first.measured}, pd.DataFrame({"step": [], "name": [], "value": []}), pd.DataFrame({"id": []}), {"model": first.model}).log(stage="finetune")
    assert read_order(options(f"run:{run}")).folder == read_order(options(first.model)).folder == Path(first.model)
    second, tokenizer = tune(monkeypatch, tmp_path / "b", f"run:{run}", method=method), load_local(folder).tokenizer
    check_weights(first.model, second.network, second.summary["n_trainable"])
    trained = logits(second.network, tokenizer)
    assert (trained - logits(first.network, tokenizer)).abs().max() > 0.05
    torch.testing.assert_close(logits(load_local(second.model, dtype="float32").network, tokenizer), trained, atol=1e-4, rtol=1e-4)


def test_a_model_that_caps_its_scores_is_held_to_the_capped_ones(tmp_path):
    "The held-out loss and exact answers are the model's own, whatever it does behind its head."
    local = load_local(str(save_model(tmp_path / "capped", "gemma2")))
    assert not training.plain_head(local.network)
    rows = training.encode_examples(local.tokenizer, pd.DataFrame({"prompt": ["say one", "say two now"], "completion": ["one", "two"]}), 64, local.network)
    batch = training.collate(zip(rows["ids"], rows["n_prompt"]))
    own = local.network(**batch).loss.item()
    assert training.answer_loss(local.network, batch).item() == pytest.approx(own, abs=1e-5)
    assert training.score_held_out(local.network, rows, ["a", "a"])["eval_loss"] == pytest.approx(own, abs=1e-5)
    hidden = local.network.base_model(**{name: value for name, value in batch.items() if name != "labels"}).last_hidden_state[:, :-1]
    counted = batch["labels"][:, 1:] != -100
    plain = training.import_torch().nn.functional.cross_entropy(local.network.lm_head(hidden[counted]), batch["labels"][:, 1:][counted]).item()
    assert abs(plain - own) > 1e-4

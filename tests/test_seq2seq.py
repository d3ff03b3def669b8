"""Encoder-decoders: read, asked, trained and loaded as transformers itself does it."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from tiny_models import save_seq2seq

from llmops_workbench import jobs, models, training
from llmops_workbench.datasets import save_snapshot
from llmops_workbench.errors import ParameterValueError, SourceFormatError
from llmops_workbench.finetuning import finetune, launch_finetune, read_order
from llmops_workbench.masks import loss_mask
from llmops_workbench.metric_models import open_metric_model
from llmops_workbench.models import load_local
from llmops_workbench.readiness import preflight
from llmops_workbench.sequences import collate, encode_examples

os.environ.setdefault("LLMOPS_THREADS", "1")

KINDS = ["t5", "bart"]
PROMPTS = ["the printer on floor two", "help", "please help", "is it broken? " * 4, "two two two", "the printer on floor two is broken, please help", "a", "please please", "floor" * 9, "x { } y"]


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return save_seq2seq(tmp_path_factory.mktemp("models") / request.param, request.param)


def by_transformers(model, prompts, n, **sampling):
    "Texts and numbers of new tokens as transformers' own `generate` gives them, one prompt at a time."
    torch, found = models.import_torch(), []
    forced = model.network.generation_config.forced_bos_token_id is not None
    for prompt in prompts:
        given = model.tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            ids = model.network.generate(given["input_ids"], attention_mask=given["attention_mask"], do_sample=False, num_beams=1, max_new_tokens=n + forced)[0, 1 + forced:]
        found.append((model.tokenizer.decode(ids, skip_special_tokens=True), len(ids)))
    return found


def answers(frame): return list(zip(frame["completion"], frame["completion_tokens"]))


# --- generation -----------------------------------------------------------------------------------------------------


def test_answers_are_those_of_transformers(folder):
    model = load_local(str(folder))
    told = model.generate(PROMPTS, max_new_tokens=24)
    assert answers(told) == by_transformers(model, PROMPTS, 24)
    assert told["completion_tokens"].nunique() > 2 and told["completion"].nunique() > 5, "a model that always says the same proves nothing"
    assert (told["error"] == "").all() and (told["cost"] == 0).all() and (told["latency_s"] > 0).all()
    assert told["prompt_tokens"].tolist() == [len(model.tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]
    assert set(told["finish_reason"]) == {"stop", "length"} and (told["finish_reason"][told["completion_tokens"] < 24] == "stop").all()


@pytest.mark.parametrize("how", ["greedy", "sampled", "stop"])
def test_a_batch_says_what_single_calls_say(folder, how):
    model = load_local(str(folder))
    greedy = model.generate(PROMPTS, max_new_tokens=16)
    stop = greedy["completion"][greedy["completion"].str.len().idxmax()][3]
    sampling = {"greedy": {}, "sampled": {"temperature": 0.8, "top_p": 0.9, "seed": 3}, "stop": {"stop": [stop]}}[how]
    together = model.generate(PROMPTS, max_new_tokens=16, **sampling)
    assert answers(together) == [answers(model.generate([prompt], max_new_tokens=16, **sampling))[0] for prompt in PROMPTS]
    assert (answers(together) == answers(greedy)) == (how == "greedy")
    if how == "stop":
        assert together["completion"].tolist() == [text.split(stop)[0] for text in greedy["completion"]] and together["completion_tokens"].sum() < greedy["completion_tokens"].sum()


def test_samples_follow_the_probabilities(tmp_path):
    "First tokens drawn often enough are as frequent as the model says they are likely."
    torch, model = models.import_torch(), load_local(str(save_seq2seq(tmp_path / "t5")))
    drawn = model.generate(["please help"] * 2000, max_new_tokens=1, temperature=1.0)["completion"].value_counts(normalize=True)
    given = model.tokenizer("please help", return_tensors="pt")
    with torch.no_grad():
        likely = model.network(**given, decoder_input_ids=torch.tensor([[1]])).logits[0, -1].softmax(-1)
    wanted = {}
    for token, p in enumerate(likely.tolist()):
        text = model.tokenizer.decode([token], skip_special_tokens=True)
        wanted[text] = wanted.get(text, 0) + p
    assert max(wanted.values()) < 0.9
    assert sum(abs(drawn.get(text, 0) - p) for text, p in wanted.items()) < 0.2


def test_prompts_of_other_lengths_are_read_in_parts(folder, monkeypatch):
    "More than one pass of the encoder, and rows that share a long start."
    model = load_local(str(folder))
    texts = ["the printer on floor two is broken, please help" + " me" * i for i in range(20)]
    told = model.generate(texts, max_new_tokens=6)
    assert answers(told) == by_transformers(model, texts, 6)
    from llmops_workbench.batches import Seq2SeqBatch
    monkeypatch.setattr(Seq2SeqBatch.__init__, "__defaults__", (40,))
    assert answers(model.generate(texts, max_new_tokens=6)) == answers(told)


def test_a_schema_is_kept_to(folder):
    schema = {"type": "object", "properties": {"product": {"enum": ["vpn", "printer"]}, "n": {"type": "integer"}}, "required": ["product", "n"], "additionalProperties": False}
    told = load_local(str(folder)).generate(PROMPTS[:4], max_new_tokens=60, schema=schema, temperature=1.5)
    assert (told["structured"] == "constrained").all()
    for text in told["completion"]:
        assert json.loads(text)["product"] in ("vpn", "printer")


def test_a_prompt_the_model_cannot_read_is_a_row_with_an_error(tmp_path):
    model = load_local(str(save_seq2seq(tmp_path / "bart", "bart")))
    assert model.context_tokens == 128
    # The byte level makes "@" one token; the tokenizer adds two.
    told = model.generate(["@" * 126, "@" * 127, "help"], max_new_tokens=200)
    assert told["prompt_tokens"].tolist()[:2] == [128, 129]
    assert told["error"].tolist() == ["", f"the prompt has 129 tokens; {model.name} reads 1 to 128", ""]
    assert told["completion_tokens"].max() <= 127


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_other_formats_answer_too(folder, dtype):
    told = load_local(str(folder), dtype=dtype).generate(PROMPTS[:3], max_new_tokens=6)
    assert (told["error"] == "").all() and (told["completion_tokens"] > 0).all()


def test_another_first_token_is_another_model_to_a_cache(tmp_path):
    model = load_local(str(save_seq2seq(tmp_path / "bart", "bart")))
    before = model.fingerprint
    model.network.generation_config.forced_bos_token_id = 7
    assert model.fingerprint != before and load_local(str(tmp_path / "bart")).fingerprint == before


def test_perplexity_asks_for_another_kind_of_model(folder):
    with pytest.raises(SourceFormatError, match="encoder-decoder.*A causal language model is wanted"):
        open_metric_model(folder, "causal")


# --- what is trained ------------------------------------------------------------------------------------------------

WHERE = ["floor one", "floor two", "the printer", "me", "help"]
EXAMPLES = pd.DataFrame([{"id": f"{task}{n}", "row": n, "task": task, "prompt": f"{task}: is {place} broken? " + "please " * (n % 4), "completion": f"{place} {'is' if task == 'query' else 'on'} {n}"}
                         for n, place in enumerate(WHERE * 4) for task in ("query", "summary")])


@pytest.fixture(scope="module", params=KINDS)
def base(request, tmp_path_factory):
    "A model that ends its answers as it was taught to."
    return save_seq2seq(tmp_path_factory.mktemp("bases") / request.param, request.param, ends=False)


def train(folder, context_folder, **params):
    "What the job of `finetune` does, in this process: result, events and the network as it was trained."
    order = read_order({"model_name_or_path": str(folder), "dataset": EXAMPLES, "eval_samples": 4, "sample_completions": 2, "dtype": "float32", "per_device_train_batch_size": 4, **params})
    context = jobs.Context(jobs._make_job(context_folder, training.__name__ + ":train", {}, "train", None).dir)
    save, seen = training.save_model, []
    def save_and_see(model, *args):
        seen.append(model)
        return save(model, *args)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "save_model", save_and_see)
        held_out = save_snapshot(order.held_out) if order.held_out else None
        result = training.train(context, str(order.folder), order.base, save_snapshot(order.fit), held_out, "trained", None, "page", order.options)
    events = [json.loads(line) for line in (context.dir / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return result, events, training.inner_network(seen[0]).eval()


def logits_of(network, tokenizer, n=6):
    torch = models.import_torch()
    encoded = encode_examples(tokenizer, EXAMPLES[:n], 64, network)
    batch = collate(zip(encoded["ids"], encoded["n_prompt"]), is_encoder_decoder=True)
    with torch.no_grad():
        return network(**batch).logits[batch["labels"] != -100]


def test_the_loss_is_that_of_transformers(base):
    torch, local = models.import_torch(), load_local(str(base))
    encoded = encode_examples(local.tokenizer, EXAMPLES[:5], 64, local.network)
    batch = collate(zip(encoded["ids"], encoded["n_prompt"]), local.tokenizer.pad_token_id or 0, 16, is_encoder_decoder=True)
    assert (batch["labels"] == -100).any() and (batch["attention_mask"] == 0).any() and "decoder_input_ids" not in batch
    with torch.no_grad():
        assert training.answer_loss(local.network, batch).item() == pytest.approx(local.network(**batch).loss.item(), rel=1e-6)


def test_prompts_are_read_and_answers_are_learned(base):
    local = load_local(str(base))
    tokenizer, encoded = local.tokenizer, encode_examples(local.tokenizer, EXAMPLES, 64, local.network)
    for example, row in zip(EXAMPLES.itertuples(), encoded.itertuples()):
        assert row.ids[:row.n_prompt] == tokenizer(example.prompt)["input_ids"] and row.ids[row.n_prompt:] == tokenizer(text_target=example.completion)["input_ids"]
        assert row.ids[-1] == tokenizer.eos_token_id and row.ended and row.n_tokens == len(row.ids) == row.n_prompt + row.n_answer


def test_what_is_written_like_the_end_of_an_answer_is_no_end(tmp_path):
    local = load_local(str(save_seq2seq(tmp_path / "bart", "bart")))
    hostile = EXAMPLES[:1].assign(prompt="a<|end|>b", completion="<|end|>")
    [row] = encode_examples(local.tokenizer, hostile, 64, local.network).itertuples()
    assert row.ids.count(local.tokenizer.eos_token_id) == 2 and local.tokenizer.decode(row.ids) == "<|system|>a<|end|>b<|end|><|system|><|end|><|end|>"


def test_each_side_is_cut_and_counted(base):
    local = load_local(str(base))
    whole = encode_examples(local.tokenizer, EXAMPLES, 64, local.network)
    few = int(whole["n_answer"].median())
    cut = encode_examples(local.tokenizer, EXAMPLES, few, local.network)
    for long, short in zip(whole.itertuples(), cut.itertuples()):
        assert (short.n_prompt, short.n_answer) == (min(long.n_prompt, few), min(long.n_answer, few)) and short.n_tokens == long.n_tokens
        assert short.ids == long.ids[:short.n_prompt] + long.ids[long.n_prompt:long.n_prompt + short.n_answer] and short.ended == (long.n_answer <= few)
    assert (cut["n_prompt"] < whole["n_prompt"]).any() and (cut["n_answer"] < whole["n_answer"]).any() and 0 < cut["ended"].sum() < len(cut)
    for most, kept in ((64, whole), (few, cut)):
        mask = loss_mask(EXAMPLES, str(base), most)
        assert mask.groupby("id", sort=False)["learned"].sum().tolist() == kept["n_answer"].tolist()
        assert mask[~mask["cut"]].groupby("id", sort=False)["token"].agg(list).tolist() == kept["ids"].tolist()


def test_held_out_examples_are_scored_one_by_one_or_together(base):
    torch, local = models.import_torch(), load_local(str(base))
    encoded = encode_examples(local.tokenizer, EXAMPLES[:9], 64, local.network)
    nats, exact = [], []
    for row in encoded.itertuples():
        batch = collate([(row.ids, row.n_prompt)], is_encoder_decoder=True)
        with torch.no_grad():
            out = local.network(**batch)
        nats.append(out.loss.item() * row.n_answer)
        exact.append(bool((out.logits.argmax(-1) == batch["labels"]).all()))
    scores = training.score_held_out(local.network, encoded, EXAMPLES["task"][:9], batch_size=4)
    assert scores["eval_loss"] == pytest.approx(sum(nats) / encoded["n_answer"].sum(), rel=1e-5) and scores["eval_exact"] == np.mean(exact)
    assert {"eval_loss_query", "eval_loss_summary"} <= scores.keys()


def test_preflight_says_what_is_read_and_what_is_learned(base):
    found = preflight(model_name_or_path=str(base), dataset=EXAMPLES, max_steps=6, per_device_train_batch_size=4)
    status = found.frame.set_index("check")["status"]
    assert found.ready and status[["template", "end of answer", "length"]].tolist() == ["ok"] * 3, found.words()
    local = load_local(str(base))
    for row in found.seen.itertuples():
        example = EXAMPLES.set_index("id").loc[row.id]
        ids = local.tokenizer(example["prompt"])["input_ids"], local.tokenizer(text_target=example["completion"])["input_ids"]
        assert (row.read, row.learned) == tuple(map(local.tokenizer.decode, ids)) and row.n_tokens == sum(map(len, ids))
    cut = preflight(model_name_or_path=str(base), dataset=EXAMPLES, max_steps=6, max_length=8)
    assert "longer than 8 tokens on one side" in cut.frame.set_index("check")["found"]["length"] and cut.summary["cut_share"] > 0.5 and cut.summary["lost_share"] == 0


@pytest.mark.parametrize("name", ["packing", "train_embeddings"])
def test_what_cannot_be_done_is_refused_before_anything_runs(base, name, tmp_path):
    params = {"model_name_or_path": str(base), "dataset": EXAMPLES, name: True, "max_steps": 2}
    with pytest.raises(ParameterValueError, match=f"{name} is on and the model is an encoder-decoder.*Leave {name} off"):
        launch_finetune(**params)
    assert not len(jobs.list_jobs())
    found = preflight(**params)
    assert not found.ready and found.frame.set_index("check")["status"]["method"] == "error"
    local = load_local(str(base))
    options = SimpleNamespace(**read_order({**params, name: False}).options)
    setattr(options, name, True)
    with pytest.raises(ParameterValueError, match=f"{name} is on"):
        training.make_trainer(local.network, local.tokenizer, encode_examples(local.tokenizer, EXAMPLES, 64, local.network), options, SimpleNamespace(max_steps=2), tmp_path)


@pytest.mark.parametrize("method", ["prompt"])
def test_methods_that_causal_models_alone_know_are_refused(base, method):
    with pytest.raises(ParameterValueError, match=f"method='{method}' and the model is an encoder-decoder.*Choose method='lora'"):
        launch_finetune(model_name_or_path=str(base), dataset=EXAMPLES, method=method, max_steps=2)
    assert not len(jobs.list_jobs())


@pytest.mark.parametrize("more", [{}, {"gradient_checkpointing": True, "dtype": "bfloat16"}], ids=["plain", "sparing"])
def test_two_steps_of_lora_are_saved_and_loaded(base, tmp_path, more):
    result, events, trained = train(base, tmp_path, method="lora", max_steps=2, learning_rate=0.01, eval_steps=1, **more)
    assert result["summary"]["steps"] == 2 and [e["step"] for e in events if e["kind"] == "eval"] == [0, 1, 2]
    assert len(result["samples"]) == 2 and not any("no answer" in row["completion"] for row in result["samples"])
    folder = Path(result["model"])
    assert json.loads((folder / "adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"
    assert 'pipeline_tag: "text2text-generation"' in (folder / "README.md").read_text()
    local, before = load_local(str(folder)), load_local(str(base))
    torch, now = models.import_torch(), logits_of(local.network, local.tokenizer)
    assert torch.allclose(now, logits_of(trained, local.tokenizer), atol=1e-3, rtol=1e-3)
    assert (now - logits_of(before.network, before.tokenizer)).abs().max() > 0.1
    told = local.generate(PROMPTS[:3], max_new_tokens=5)
    assert answers(told) == by_transformers(local, PROMPTS[:3], 5)


def test_the_seed_says_where_an_adapter_starts(base, tmp_path):
    digests = [train(base, tmp_path / str(i), max_steps=1, eval_samples=0, sample_completions=0, seed=seed)[0]["summary"]["weights_sha256"] for i, seed in enumerate((0, 0, 1))]
    assert digests[0] == digests[1] != digests[2]


def test_accumulated_steps_are_those_of_a_whole_batch(base, tmp_path):
    "Gradients are divided by the answer tokens of the whole step, however it is divided."
    norms = []
    for size, times in ((8, 1), (2, 4)):
        _, events, _ = train(base, tmp_path / str(size), method="full", max_steps=1, per_device_train_batch_size=size, gradient_accumulation_steps=times, eval_samples=0)
        norms.append(next(e["grad_norm"] for e in events if e["kind"] == "step"))
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_ten_examples_are_learned_by_heart(base, tmp_path):
    ten = EXAMPLES[::4].reset_index(drop=True)
    result, events, trained = train(base, tmp_path, dataset=ten, method="full", max_steps=120, learning_rate=0.005, eval_samples=0, per_device_train_batch_size=10)
    local = load_local(result["model"])
    told = local.generate(ten["prompt"].tolist(), max_new_tokens=24)
    assert told["completion"].tolist() == ten["completion"].tolist() and (told["finish_reason"] == "stop").all()
    assert load_local(str(base)).generate(ten["prompt"].tolist(), max_new_tokens=24)["completion"].tolist() != ten["completion"].tolist()
    torch = models.import_torch()
    assert torch.equal(logits_of(local.network, local.tokenizer), logits_of(trained, local.tokenizer))


def test_a_job_trains_one(tmp_path):
    base = save_seq2seq(tmp_path / "t5", ends=False)
    tuned = finetune(model_name_or_path=str(base), dataset=EXAMPLES, max_steps=2, per_device_train_batch_size=4, eval_samples=4, sample_completions=2)
    assert tuned.summary["steps"] == 2 and tuned.summary["eval_loss"] is not None and len(tuned.samples) == 2
    assert tuned.summary["tokens"] > 0 and tuned.summary["method"] == "lora"
    local = load_local(tuned.model)
    assert local.is_encoder_decoder and (local.generate(["help"], max_new_tokens=4)["error"] == "").all()

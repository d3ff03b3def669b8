"""Perplexity beside a plain loop over texts, labels beside transformers' own pipeline."""

import math

import numpy as np
import pytest
from tiny_judges import save_classifier
from tiny_models import save_model

from llmops_workbench.metric_models import MetricModel, folder_digest, open_metric_model
from llmops_workbench.models import import_torch, import_transformers
from llmops_workbench.options import Batch, Options
from llmops_workbench.surprise import SURPRISE_METHODS, choose_label, label_probabilities, perplexity_of, token_surprises

TEXTS = ["the printer on floor two is broken", "please", "help me " * 20, "", "日本語 😀", "p", "<|end|> the printer", "the printer on floor two is broken", "\x00\n\t ", "1 2 3 ?!"]


def one_by_one(folder, texts):
    "Nats and tokens of each text by a loop without batches, the beginning as evaluate's module has it where there is one."
    torch, transformers = import_torch(), import_transformers()
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    tokenizer, found = transformers.AutoTokenizer.from_pretrained(folder), []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        ids = ids if tokenizer.bos_token_id is None else [tokenizer.bos_token_id, *ids]
        if len(ids) < 2:
            found.append((0, 0))
            continue
        with torch.no_grad():
            logs = network(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        found.append((-sum(float(logs[i, ids[i + 1]]) for i in range(len(ids) - 1)), len(ids) - 1))
    return np.array(found, float)


@pytest.mark.parametrize("kind, pieces", [("llama", ""), ("gpt2", ""), ("llama", "fallback")], ids=["llama", "gpt2", "with-bos"])
def test_it_is_the_plain_loop(tmp_path, kind, pieces):
    folder = save_model(tmp_path/"model", kind, pieces=pieces)
    model = open_metric_model(folder, "causal")
    assert (model.tokenizer.bos_token_id is not None) == bool(pieces)
    expected = one_by_one(folder, TEXTS)
    for most in (8, 100, 4096):
        mine = token_surprises(TEXTS, model, most)
        np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-5)
    assert perplexity_of(mine.sum(0)) == pytest.approx(math.exp(expected[:, 0].sum()/expected[:, 1].sum()), rel=1e-5)
    assert np.isnan(perplexity_of(mine)[3]) and (perplexity_of(mine)[expected[:, 1] > 0] >= 1).all()


def test_the_starter_model(shared_data):
    texts = (shared_data/"comparemt"/"ted.ref.eng").read_text(encoding="utf-8").splitlines()[:20]
    model = open_metric_model(open_folder("starter"), "causal")
    np.testing.assert_allclose(token_surprises(texts, model), one_by_one(model.folder, texts), rtol=1e-5)


def open_folder(name):
    from llmops_workbench.metric_models import named_folder
    return named_folder("perplexity", Options(perplexity_model=name))


def test_longer_than_the_model_reads(tmp_path):
    "Every token but the first is judged once, with at least half of the context before it where there is so much."
    folder = save_model(tmp_path/"model", "gpt2")
    model = open_metric_model(folder, "causal")
    assert model.most_tokens == 256
    text = " ".join(f"the printer {i}" for i in range(120))
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) > 600
    torch, total = import_torch(), 0.0
    for start in range(0, len(ids) - 128, 128):
        piece = ids[start:start + 256]
        with torch.no_grad():
            logs = model.network(torch.tensor([piece])).logits[0].double().log_softmax(-1)
        total -= sum(float(logs[i - 1, piece[i]]) for i in range(1 if start == 0 else 128, len(piece)))
    nats, tokens = token_surprises([text], model)[0]
    assert tokens == len(ids) - 1 and nats == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("problem", [None, "multi_label_classification"], ids=["one-of-them", "each-for-itself"])
def test_labels_are_those_of_the_pipeline(tmp_path, problem):
    folder = save_classifier(tmp_path/"judge", TEXTS, ["neutral", "toxic", "other"], problem_type=problem)
    transformers = import_transformers()
    pipe = transformers.pipeline("text-classification", model=str(folder), top_k=None, device="cpu")
    model = open_metric_model(folder, "classifier")
    texts = [*TEXTS, "the printer "*100]
    expected = [{one["label"]: one["score"] for one in pipe([text], truncation=True)[0]}["toxic"] for text in texts]
    np.testing.assert_allclose(label_probabilities(texts, model, 1), expected, atol=1e-6)
    method, options = SURPRISE_METHODS["toxicity"], Options(toxicity_model=str(folder))
    counts = method.count(Batch(texts, [[]]*len(texts)), options)
    assert method.value(counts.sum(0), options, False) == pytest.approx(np.mean(expected), abs=1e-6)
    assert method.sign(options) == [f"model:{folder_digest(folder)}", "label:toxic", "long:cut"]


@pytest.mark.parametrize("metric, names, place", [
    ("toxicity", ["non-toxic", "toxic"], 1), ("toxicity", ["Toxicity", "ok"], 0), ("toxicity", ["toxic", "severe_toxic", "obscene"], 0), ("toxicity", ["hate", "nothate"], 0),
    ("toxicity", ["not_hate", "hateful"], 1), ("refusal", ["compliance", "refusal"], 1), ("refusal", ["Rejected", "answered"], 0), ("refusal", ["no_refusal", "REFUSAL"], 1)], ids=str)
def test_a_label_is_found_by_its_name(metric, names, place):
    assert choose_label(metric, names, None) == place


@pytest.mark.parametrize("metric, names", [("toxicity", ["LABEL_0", "LABEL_1"]), ("toxicity", ["hate", "offensive", "neither"]), ("refusal", ["toxic", "ok"]), ("toxicity", ["nontoxic", "nothing"])], ids=str)
def test_where_it_is_not_clear_the_labels_are_listed(metric, names):
    with pytest.raises(ValueError, match=f"{', '.join(names)}.*{metric}_label"):
        choose_label(metric, names, None)
    with pytest.raises(ValueError, match=f"{metric}_label is 'x'"):
        choose_label(metric, names, "x")


def test_what_is_missing_is_said(tmp_path):
    for metric, method in SURPRISE_METHODS.items():
        with pytest.raises(ValueError, match=f"{metric}_model is not set.*folder on this machine"):
            method.count(Batch(["a"], [[]]), Options())
    headless = save_model(tmp_path/"headless", "gpt2")
    with pytest.raises(ValueError, match="lacks the weights score.weight"):
        SURPRISE_METHODS["toxicity"].count(Batch(["a"], [[]]), Options(toxicity_model=str(headless)))


def test_nothing_to_read(tmp_path):
    folder = save_model(tmp_path/"model", "llama")
    options, method = Options(perplexity_model=str(folder)), SURPRISE_METHODS["perplexity"]
    assert method.count(Batch([], []), options).shape == (0, 2)
    counts = method.count(Batch(["", ""], [[], []]), options)
    assert counts.tolist() == [[0, 0], [0, 0]] and np.isnan(method.value(counts.sum(0), options, False))


def test_other_weights_are_another_metric(tmp_path):
    first, second = (save_model(tmp_path/str(seed), "llama", seed=seed) for seed in (0, 1))
    signs = [SURPRISE_METHODS["perplexity"].sign(Options(perplexity_model=str(folder))) for folder in (first, second)]
    assert signs[0][0] != signs[1][0] and signs[0][1:] == signs[1][1:] == ["start:none", "long:half-overlap", "agg:per-token"]
    assert isinstance(open_metric_model(first, "causal"), MetricModel)


def test_an_interrupt_breaks_nothing(tmp_path):
    model = open_metric_model(save_model(tmp_path/"model", "llama"), "causal")

    def stop(*args):
        raise KeyboardInterrupt
    expected, hook = token_surprises(TEXTS, model), model.network.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        token_surprises(TEXTS, model)
    hook.remove()
    assert np.array_equal(token_surprises(TEXTS, model), expected)


def test_an_adapter_is_another_model_on_another_base(tmp_path):
    "The digest holds the base too, whose weights are what the adapter is merged into."
    import json

    from peft import LoraConfig, get_peft_model
    transformers = import_transformers()
    base = save_model(tmp_path/"base", "llama")
    network = get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False))
    network.save_pretrained(tmp_path/"adapter")
    config = json.loads((tmp_path/"adapter"/"adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    first, plain = folder_digest(tmp_path/"adapter"), token_surprises(TEXTS, open_metric_model(base, "causal"))
    merged = token_surprises(TEXTS, open_metric_model(tmp_path/"adapter", "causal"))
    assert not np.allclose(merged, plain)
    save_model(base, "llama", seed=3)
    assert folder_digest(tmp_path/"adapter") != first and not np.allclose(token_surprises(TEXTS, open_metric_model(tmp_path/"adapter", "causal")), merged)

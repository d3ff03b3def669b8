"""Encoder-decoders: read, asked, trained and loaded as transformers itself does it."""

import json

import pytest
from tiny_models import save_seq2seq

from llmops_workbench import models
from llmops_workbench.errors import SourceFormatError
from llmops_workbench.metric_models import open_metric_model
from llmops_workbench.models import load_local

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

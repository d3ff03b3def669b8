"""The shipped starter model and what it was made of: small, whole, plain, honest."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

import llmops_workbench
from llmops_workbench.corpus import MIX, SPECIAL, TASKS, as_chat, ask_ticket, documentation_texts, encode_chat, random_sequence, read_tickets
from llmops_workbench.helpdesk import QUERY_SCHEMA, generate_helpdesk, helpdesk_tasks
from llmops_workbench.material import draw_message, draw_value, write_prose
from llmops_workbench.models import import_torch, import_transformers, load_model
from llmops_workbench.starter import SHAPE, exact_answers, finetune_plainly, make_model

FOLDER = Path(llmops_workbench.__file__).parent / "assets" / "starter"


@pytest.fixture(scope="module")
def tokenizer():
    return import_transformers().AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def network():
    return import_transformers().AutoModelForCausalLM.from_pretrained(FOLDER, dtype="float32").eval()


def test_the_folder_is_small_and_plain():
    "Nothing in it needs code of ours, and a wheel can carry it."
    names = {path.name for path in FOLDER.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "README.md"} <= names
    assert not [name for name in names if name.endswith((".py", ".bin", ".pt", ".pkl"))]
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 12e6
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["tie_word_embeddings"] and "auto_map" not in config
    assert config["max_position_embeddings"] == 1024
    assert str(Path.home()) not in "".join(p.read_text() for p in FOLDER.glob("*.json"))


def test_the_size_is_what_the_card_says(network):
    n_parameters = sum(p.numel() for p in network.parameters())
    assert 2e6 <= n_parameters <= 6e6
    assert n_parameters == sum(p.numel() for p in make_model(network.config.vocab_size, **SHAPE).parameters())
    assert f"{n_parameters:,}" in (FOLDER / "README.md").read_text()


def test_the_weights_are_finite_half_precision():
    from safetensors import safe_open
    with safe_open(FOLDER / "model.safetensors", "pt") as weights:
        for name in weights.keys():
            tensor = weights.get_tensor(name)
            assert str(tensor.dtype) == "torch.bfloat16" and bool(tensor.isfinite().all()), name


def test_it_loads_with_all_sockets_refused(tmp_path):
    code = ("import socket\ndef refuse(*a, **k): raise OSError('no network')\nsocket.socket.connect = socket.create_connection = refuse\n"
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
            f"m, t = AutoModelForCausalLM.from_pretrained({str(FOLDER)!r}), AutoTokenizer.from_pretrained({str(FOLDER)!r})\n"
            "print(m.config.vocab_size == len(t), m.generation_config.eos_token_id == t.eos_token_id)")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "HF_HOME": str(tmp_path)}, timeout=300)
    assert done.stdout.split() == ["True", "True"], done.stderr[-2000:]


def test_every_byte_and_naughty_strings_come_back(tokenizer, shared_data):
    "A tokenizer that loses a character makes every later figure a lie."
    strings = [s for s in json.loads((shared_data / "naughty_strings" / "blns.json").read_text(encoding="utf-8"))]
    assert len(strings) > 400
    lost = [s for s in strings if tokenizer.decode(tokenizer(s)["input_ids"]) != s]
    assert not lost


def test_every_character_of_two_bytes_comes_back(tokenizer):
    text = "".join(map(chr, range(0x800))) + "日本語 🙂 \r\n\t  x"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.get_vocab().keys() >= set(SPECIAL.values())


def test_a_value_has_the_same_tokens_wherever_it_stands(tokenizer):
    "To extract a value must be to copy it. Leading spaces that melt into a code made it two different things."
    rng = random.Random(0)
    for _ in range(200):
        code = draw_value(rng, "code").upper()
        alone = tokenizer(code)["input_ids"]
        for around in ("see {} now", '{{"code":"{}"}}', "code[{}]", "({})", "{}."):
            ids = tokenizer(around.format(code))["input_ids"]
            assert any(ids[i:i + len(alone)] == alone for i in range(len(ids))), (code, around)


def test_the_generation_mask_is_the_answer_and_its_end(tokenizer):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."},
                {"role": "user", "content": "Bye?"}, {"role": "assistant", "content": "Bye."}]
    marked = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    learnt = tokenizer.decode([i for i, on in zip(marked["input_ids"], marked["assistant_masks"]) if on])
    assert learnt == "Hello.<|end|>Bye.<|end|>"
    ids, mask = encode_chat(tokenizer, messages)
    assert ids == marked["input_ids"] and mask == marked["assistant_masks"]
    prompt = tokenizer.apply_chat_template(messages[:2], add_generation_prompt=True, tokenize=False)
    assert tokenizer.apply_chat_template(messages[:3], tokenize=False).startswith(prompt)


def test_it_ends_its_turn():
    "A base that does not stop makes every fine-tune look bad."
    rng = random.Random(12)
    exercises = [TASKS[name](rng) for name in ("message", "record", "string", "prose") for _ in range(6)]
    answers = load_model("starter").generate([f"{instruction}\n\n{text}" for instruction, text, _ in exercises], max_new_tokens=160)
    assert not answers["error"].any()
    assert (answers["finish_reason"] == "stop").mean() >= .9
    assert not answers["completion"].str.contains("<|", regex=False).any()


def test_it_copies_what_it_has_never_seen(tokenizer, network):
    rng = random.Random(31)
    texts = [draw_value(rng, kind) for kind in ("code", "name", "person", "email") for _ in range(12)]
    chats = [[{"role": "user", "content": "Copy:\n" + text}, {"role": "assistant", "content": text}] for text in texts]
    assert sum(exact_answers(network, tokenizer, chats)) >= .7 * len(chats)


def test_exactness_read_along_is_exactness_generated(tokenizer, network):
    "exact_answers never generates; here it is held against real generation."
    rng = random.Random(5)
    chats = [as_chat(rng, *TASKS[name](rng))[-2:] for name in ("string", "message") for _ in range(8)]
    model = load_model("starter")
    answers = model.generate([chat[0]["content"] for chat in chats], max_new_tokens=250)["completion"]
    said = exact_answers(network, tokenizer, chats)
    generated = [answer == chat[1]["content"] for answer, chat in zip(answers, chats)]
    # The two sides may differ in precision, so a near tie may fall either way.
    assert sum(a != b for a, b in zip(said, generated)) <= 2


def test_the_corpus_has_no_target_of_the_help_desk():
    "Before fine-tuning the model must be honest about not knowing the task; no label of it and no key of its own may stand in an exercise."
    labels = QUERY_SCHEMA["properties"]["intent"]["enum"]
    prompts = [prompt.split("{")[0].strip() for prompt, _ in helpdesk_tasks().values()]
    rng = random.Random(0)
    for ask in TASKS.values():
        for _ in range(4000):
            instruction, text, answer = ask(rng)
            whole = f"{instruction}\n{text}\n{answer}"
            assert not [label for label in labels if f'"{label}"' in whole]
            assert not re.search(r'"(intent|priority|entities)"\s*:', whole), whole
            assert not [prompt for prompt in prompts if prompt in whole], whole
    plain = documentation_texts() + [draw_message(rng)["text"] for _ in range(2000)] + [" ".join(write_prose(rng)) for _ in range(500)] + [random_sequence(rng) for _ in range(500)]
    assert not [text for text in plain if re.search(r'"intent"\s*:', text)]


def test_tickets_of_the_corpus_are_of_other_seeds_and_asked_about_in_other_words():
    "What fine-tuning has to teach is the form: no label, no key, no sentence and no prompt of the sample's targets may stand in a question or an answer."
    frame = generate_helpdesk(n_rows=1000, seed=0)[0]
    read = read_tickets(n_seeds=1, n_rows=1000)
    assert len(set(frame["text"]) & {ticket["text"] for ticket in read}) < .02 * len(frame)
    labels, summaries = set(QUERY_SCHEMA["properties"]["intent"]["enum"]), set(frame["summary"])
    prompts = [prompt.split("{")[0].strip() for prompt, _ in helpdesk_tasks().values()]
    rng = random.Random(0)
    for ticket in read:
        for message in ask_ticket(rng, ticket, n_questions=3):
            said = message["content"].replace(ticket["text"], "")
            assert not re.search(r'"(intent|priority|entities|product)"\s*:', said), said
            assert not [prompt for prompt in prompts if prompt in said], said
            if message["role"] == "assistant":
                assert not labels & set(re.findall(r"\w+", said)) - {label for label in labels if "_" not in label}, said
                assert said not in summaries


def test_nothing_in_the_corpus_comes_from_the_restaurant_data(shared_data):
    "The restaurants are for evaluation: their names and their words must be new to the model."
    import pandas as pd
    names = {re.search(r"name\[(.*?)\]", mr)[1] for mr in pd.read_csv(shared_data / "e2e" / "devset.csv")["mr"]}
    rng = random.Random(1)
    said = "\n".join("\n".join(TASKS["record"](rng)) for _ in range(4000))
    assert "restaurant" not in said and "familyFriendly" not in said and "eatType" not in said
    assert not [name for name in names if f"name[{name}]" in said]


def test_all_sources_have_weight_in_both_halves():
    assert MIX[0].keys() == MIX[1].keys() and all(weight > 0 for mix in MIX for weight in mix.values())


@pytest.mark.slow
def test_fine_tuning_it_beats_the_same_architecture_from_nothing(tokenizer, network):
    "Same examples, same steps, same loop: the shipped weights must be worth having."
    frame = generate_helpdesk(n_rows=400, seed=0, trouble=0)[0].drop_duplicates("text")
    prompt = helpdesk_tasks()["summary"][0]
    chats = [[{"role": "user", "content": prompt.replace("{text}", row.text)}, {"role": "assistant", "content": row.summary}] for row in frame.itertuples()]
    torch, losses = import_torch(), {}
    for name, side in {"starter": import_transformers().AutoModelForCausalLM.from_pretrained(FOLDER, dtype="float32"), "nothing": make_model(len(tokenizer), **SHAPE)}.items():
        finetune_plainly(side, tokenizer, chats[:-60], n_steps=40, batch_size=8)
        held = []
        for chat in chats[-60:]:
            ids, mask = (torch.tensor([x]) for x in encode_chat(tokenizer, chat))
            labels = ids.masked_fill(mask == 0, -100)
            with torch.inference_mode():
                held.append(side(input_ids=ids, labels=labels).loss.item())
        losses[name] = sum(held) / len(held)
    assert losses["starter"] < .7 * losses["nothing"], losses

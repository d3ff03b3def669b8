"""Token counts by pieces, held against the tokenizer itself: every count is the same."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from llmops_workbench.helpdesk import generate_helpdesk
from llmops_workbench.pieces import count_pieces, safe_cuts
from llmops_workbench.text import text_buffer
from llmops_workbench.tokens import count_tokens, load_tokenizer

HEAD, TAIL = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}", r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
PATTERNS = {"llama3": HEAD + "{1,3}" + TAIL, "qwen": HEAD + TAIL, "gpt2-split": GPT2}
NAMES = ["starter", "gpt2", "llama3", "qwen", "qwen-nfc", "gpt2-split", "merged"]
WHITE = "".join(map(chr, [9, 10, 11, 12, 13, 28, 29, 30, 31, 32, 0x85, 0xa0, 0x1680, 0x180e, *range(0x2000, 0x2010), 0x2028, 0x2029, 0x202f, 0x205f, 0x2060, 0x3000, 0xfeff]))
# What a pattern or an added token could turn on, beside some of every kind of letter.
PARTS = [*WHITE, " ", " ", "\n", "\r\n", "'", "'s", "'LL", "'re", "'\u017f", "\u2019t", "a", "b", "Word", "ABc", "I", "1", "23", "4567", ".", ",", "(", "--", "_", "<", "<|", "<|end|>", "<tool>", "|>", "\0", "\x7f", "\x1b",
         "\u0301", "\u0338", "\u20dd", "\u0903", "\u200d", "\ufe0f", "\U0001f469\u200d\U0001f467", "é", "É", "ß", "ǅ", "ʰ", "ª", "日本", "の", "ไทย", "नमस्ते", "العربية", "Ж", "ж", "²", "Ⅷ", "٣", "½", "\u037e", "\u1fef", "\u212a",
         "€", "。", "…", "\ue000", "\ufffd", "\U0010ffff", "\u0378"]
TEXTS = st.lists(st.one_of(st.lists(st.sampled_from(PARTS), max_size=25).map("".join), st.text(max_size=30)), min_size=1, max_size=40)


@pytest.fixture(params=["0", "1"], ids=["plain", "numba"])
def engine(request, monkeypatch):
    monkeypatch.setenv("LLMOPS_NUMBA", request.param)
    return request.param


@pytest.fixture(scope="module")
def tickets():
    return {seed: generate_helpdesk(1500, seed=seed)[0]["text"].tolist() for seed in (3, 4)}


@pytest.fixture(scope="module")
def tokenizers(tickets):
    "The starter's, and those of other patterns, each with added tokens of its own."
    found = {"starter": load_tokenizer("starter")}
    for name in NAMES[1:]:
        tokenizer = Tokenizer(models.BPE(ignore_merges=name == "merged"))
        split = PATTERNS.get(name.removesuffix("-nfc"), PATTERNS["llama3"])
        if name == "qwen-nfc": tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False) if name == "gpt2" else pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(split), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        tokenizer.train_from_iterator(tickets[3][:400] + ["\n\n \r\n \t  ", *PARTS] * 20, trainers.BpeTrainer(
            vocab_size=1500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|end|>"], show_progress=False))
        tokenizer.add_special_tokens([AddedToken("<tool>", lstrip=True, rstrip=True, normalized=False)])
        if name == "gpt2": tokenizer.add_tokens([AddedToken("Word", single_word=True)])
        found[name] = tokenizer
    return found


def assert_same(texts, tokenizer):
    expected = [len(e.ids) for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    found = count_pieces(text_buffer(texts), tokenizer, safe_cuts(tokenizer))
    assert found.dtype == "int64" and len(found) == len(expected)
    assert not (wrong := [(t, f, e) for t, f, e in zip(texts, found.tolist(), expected) if f != e]), wrong[:3]
    assert count_tokens(texts, tokenizer).tolist() == expected and count_tokens(text_buffer(texts), tokenizer).tolist() == expected


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_the_tokenizers_by_chance(name, engine, tokenizers):
    @settings(max_examples=150, deadline=None)
    @given(TEXTS)
    def check(texts): assert_same(texts, tokenizers[name])
    check()


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_the_tokenizers_on_tickets(name, engine, tokenizers, tickets):
    for texts in tickets.values(): assert_same(texts, tokenizers[name])
    assert_same(["\n".join(tickets[4][at:at + 50]) for at in range(0, 1500, 50)], tokenizers[name])


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_the_tokenizers_on_real_texts(name, shared_data, tokenizers):
    texts = json.loads((shared_data / "naughty_strings" / "blns.json").read_text(encoding="utf-8"))
    for path in sorted(shared_data.rglob("*")):
        if path.is_file() and path.suffix in (".csv", ".json", ".jsonl", ".txt", ".tsv", ".md"):
            texts += path.read_bytes()[:300_000].decode(errors="replace").splitlines(keepends=True)
    assert_same(texts[:40_000], tokenizers[name])


@pytest.mark.parametrize("name", NAMES)
def test_no_character_beside_a_cut_changes_what_the_pattern_finds(name, tokenizers):
    "Each character there is, on both sides of what could be cut, divided whole and in pieces."
    tokenizer, cuts = tokenizers[name], safe_cuts(tokenizers[name])
    divide = lambda text: [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    for code in [c for c in range(0x110000) if c < 0x3100 or 0xa000 <= c < 0xac00 or 0xd7f0 <= c < 0xd800 or 0xf900 <= c < 0x11000 or c % 97 == 0]:
        if 0xd800 <= code < 0xe000: continue
        c = chr(code)
        text = f"a{c} b{c}\n{c}C{c}  {c}1{c},{c}'{c}\n\n{c}s{c}\t{c}"
        data = text.encode()
        at = [0, *(i for i in range(1, len(data)) if cuts[data[i - 1] * 256 + data[i]]), len(data)]
        assert [p for a, b in zip(at, at[1:]) for p in divide(data[a:b].decode())] == divide(text), hex(code)


@pytest.mark.parametrize("name", NAMES)
def test_each_pair_and_triple_of_ascii_is_divided_as_in_a_whole(name, tokenizers):
    tokenizer, cuts = tokenizers[name], safe_cuts(tokenizers[name])
    divide = lambda text: [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    kinds = "aZsl19.'(- \t\n\r\x00\x0b"
    for text in (a + b + c + d + e for a in kinds for b in kinds for c in "aZs1'. \n" for d in kinds for e in "as1. \n'"):
        data = text.encode()
        at = [0, *(i for i in range(1, len(data)) if cuts[data[i - 1] * 256 + data[i]]), len(data)]
        if len(at) > 2: assert [p for a, b in zip(at, at[1:]) for p in divide(data[a:b].decode())] == divide(text), text


def test_a_tokenizer_of_another_kind_counts_every_text_itself(tokenizers):
    own = lambda **changes: Tokenizer.from_str(json.dumps({**json.loads(tokenizers["gpt2"].to_str()), **changes}))
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    state = json.loads(tokenizers["gpt2"].to_str())
    others = [own(pre_tokenizer=byte_level), own(pre_tokenizer=None), own(normalizer={"type": "Lowercase"}), own(pre_tokenizer={"type": "Whitespace"}), own(normalizer={"type": "NFC"}),
              own(pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]}), own(model={**state["model"], "dropout": .1})]
    assert [safe_cuts(t) for t in others] == [None] * len(others)
    texts = ["It's A word\n\n 12 of THEM"] * 2000
    assert count_tokens(texts, others[2]).tolist() == [len(others[2].encode(texts[0]).ids)] * 2000


def test_nothing_and_missing_texts(engine, tokenizers):
    tokenizer = tokenizers["starter"]
    assert count_tokens([], tokenizer).tolist() == [] and count_tokens(["", ""], tokenizer).tolist() == [0, 0]
    assert count_pieces(text_buffer(pd.Series([None, "a b", ""])), tokenizer, safe_cuts(tokenizer)).tolist() == [0, 2, 0]


def test_each_piece_is_asked_for_once(tokenizers, monkeypatch, engine):
    class Counting:
        def __init__(self, inner): self.inner, self.asked = inner, []
        def __getattr__(self, name): return getattr(self.inner, name)
        def encode_batch_fast(self, texts, **options):
            self.asked += texts
            return self.inner.encode_batch_fast(texts, **options)
    counting = Counting(tokenizers["starter"])
    texts = [f"Ticket {n}: the printer is out of toner." for n in range(3000)]
    assert count_tokens(texts, counting).tolist() == [len(e.ids) for e in tokenizers["starter"].encode_batch_fast(texts, add_special_tokens=False)]
    assert len(counting.asked) == len(set(counting.asked)) < 30 and np.sum([len(t) for t in counting.asked]) < 100

"""Random chat models of a few thousand weights, made in a folder of the test."""

import json

from llmops_workbench.models import import_torch, import_transformers

CHAT = ("{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{{ m['content'] }}{{ '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}")
ROLES = ["<|system|>", "<|user|>", "<|assistant|>"]


def save_tokenizer(folder, chat=True):
    "A byte-level tokenizer of 320 entries with five control tokens."
    transformers = import_transformers()
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.train_from_iterator(["the printer on floor two is broken, please help"]*9, trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|pad|>", "<|end|>", *ROLES], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<|pad|>", eos_token="<|end|>",
                                                     additional_special_tokens=ROLES)
    if chat:
        tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_pieces(folder, kind):
    "A tokenizer of the SentencePiece manner: 'fallback' spells unknown characters as bytes (Llama 2, Gemma), 'unigram' cannot write them (T5)."
    transformers = import_transformers()
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    texts, named = ["the printer on floor two is broken, please help"]*9 + ['{"a": 1, "b": [true, null], "name": "x"}']*3, ["<unk>", "<s>", "</s>"]
    if kind == "unigram":
        raw = Tokenizer(models.Unigram())
        raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        raw.train_from_iterator([*texts, " ".join(map(chr, range(33, 127)))], trainers.UnigramTrainer(vocab_size=180, special_tokens=named, unk_token="<unk>", show_progress=False))
    else:
        learnt = Tokenizer(models.BPE(unk_token="<unk>"))
        learnt.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        learnt.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=140, special_tokens=named, show_progress=False))
        state = json.loads(learnt.to_str())["model"]
        entries = [*named, *(f"<0x{b:02X}>" for b in range(256)), *(w for w, _ in sorted(state["vocab"].items(), key=lambda e: e[1]) if w not in named)]
        raw = Tokenizer(models.BPE({w: i for i, w in enumerate(entries)}, [tuple(m) for m in state["merges"]], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        raw.normalizer = learnt.normalizer
        raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(folder)
    return tokenizer


def architectures():
    "Name -> a small configuration, given the size of the vocabulary; the kinds differ in how they know positions."
    t = import_transformers()
    small = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, eos_token_id=1, pad_token_id=0, bos_token_id=None)
    llama = dict(small, intermediate_size=64, num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.3)
    return {
        "llama": lambda n: t.LlamaConfig(vocab_size=n, **llama),
        # Its tokenizer class adds a token of its own.
        "qwen2": lambda n: t.Qwen2Config(vocab_size=n + 8, **llama),
        "qwen3": lambda n: t.Qwen3Config(vocab_size=n, **llama, head_dim=8),
        "olmo2": lambda n: t.Olmo2Config(vocab_size=n, **llama),
        # Every fourth layer has no positions; here every second.
        "smollm3": lambda n: t.SmolLM3Config(vocab_size=n, **llama, no_rope_layer_interval=2),
        # Attention and the other products read the same input, and only part of a head is turned by its position.
        "phi": lambda n: t.PhiConfig(vocab_size=n, **llama, partial_rotary_factor=0.5),
        "mistral": lambda n: t.MistralConfig(vocab_size=n, **llama, sliding_window=None),
        "mistral-sliding": lambda n: t.MistralConfig(vocab_size=n, **llama, sliding_window=8),
        "gemma3": lambda n: t.Gemma3TextConfig(vocab_size=n, **llama, head_dim=8, sliding_window=200, layer_types=["sliding_attention", "full_attention"]),
        # Caps its scores, which only the slow attention knows.
        "gemma2": lambda n: t.Gemma2Config(vocab_size=n, **llama, head_dim=8, sliding_window=200),
        # Every second layer keeps a state instead of keys and values.
        "qwen3-next": lambda n: t.Qwen3NextConfig(vocab_size=n, **llama, head_dim=8, layer_types=["linear_attention", "full_attention"], linear_num_key_heads=2,
                                                  linear_num_value_heads=2, linear_key_head_dim=8, linear_value_head_dim=8, num_experts=4, num_experts_per_tok=2,
                                                  moe_intermediate_size=16, shared_expert_intermediate_size=16, mlp_only_layers=[0, 1]),
        "gpt2": lambda n: t.GPT2Config(vocab_size=n, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.3,
                                       eos_token_id=1, pad_token_id=0, bos_token_id=None),
        "bloom": lambda n: t.BloomConfig(vocab_size=n, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3, eos_token_id=1,
                                         pad_token_id=0, bos_token_id=None),
    }


def save_model(folder, kind="llama", seed=0, chat=True, pieces=""):
    "A random model of that architecture with its tokenizer (as of `save_pieces` where named); the same seed gives the same weights."
    torch, transformers = import_torch(), import_transformers()
    tokenizer = save_pieces(folder, pieces) if pieces else save_tokenizer(folder, chat)
    torch.manual_seed(seed)
    network = transformers.AutoModelForCausalLM.from_config(architectures()[kind](len(tokenizer)))
    # A random model hardly ever says <|end|>; with many ends its completions differ in length as real ones do.
    network.generation_config.eos_token_id = 2 if pieces else [1, *range(5, len(tokenizer), 12)]
    network.save_pretrained(folder)
    return folder


def save_seq2seq(folder, kind="t5", seed=0, ends=True):
    "A random encoder-decoder with its tokenizer, which closes what it encodes as T5's and BART's do; the same seed gives the same weights. `ends`: many tokens end an answer, as in `save_model`."
    torch, transformers = import_torch(), import_transformers()
    from tokenizers import processors
    tokenizer = save_pieces(folder, "unigram") if kind == "t5" else save_tokenizer(folder, chat=False)
    end, begin = tokenizer.eos_token, "" if kind == "t5" else "<|system|> "
    marks = [token for token in (begin.strip(), end) if token]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin}$A {end}", special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in marks])
    tokenizer.pad_token = tokenizer.pad_token or "<s>"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    if kind == "t5":
        config = transformers.T5Config(vocab_size=len(tokenizer) + 8, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu", dropout_rate=0.0,
                                       initializer_factor=2.0 if ends else 1.0, eos_token_id=2, pad_token_id=1, decoder_start_token_id=1)
    else:
        config = transformers.BartConfig(vocab_size=len(tokenizer), d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64,
                                         decoder_ffn_dim=64, max_position_embeddings=128, init_std=0.3, dropout=0.0, pad_token_id=0, bos_token_id=2, eos_token_id=1, decoder_start_token_id=1,
                                         forced_eos_token_id=None)
    network = transformers.AutoModelForSeq2SeqLM.from_config(config)
    network.generation_config.eos_token_id = [config.eos_token_id, *range(5, len(tokenizer), 8)] if ends else config.eos_token_id
    if kind == "bart":
        network.generation_config.forced_bos_token_id = 2
    network.save_pretrained(folder)
    return folder

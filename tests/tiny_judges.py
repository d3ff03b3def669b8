"""Random models that judge texts, a few thousand weights each, made in a folder of the test: encoders and classifiers."""

from llmops_workbench.models import import_torch, import_transformers


def save_words(folder, texts, size=800, longest=64):
    "A BERT tokenizer learnt from texts."
    transformers = import_transformers()
    from tokenizers import BertWordPieceTokenizer
    raw = BertWordPieceTokenizer(lowercase=True)
    raw.train_from_iterator(texts, vocab_size=size, show_progress=False)
    tokenizer = transformers.BertTokenizer(vocab=raw.get_vocab(), model_max_length=longest)
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_bytes(folder, texts, size=800, longest=64):
    "A RoBERTa tokenizer learnt from texts."
    transformers = import_transformers()
    from tokenizers import ByteLevelBPETokenizer
    raw = ByteLevelBPETokenizer()
    raw.train_from_iterator(texts, vocab_size=size, show_progress=False, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    raw.save_model(str(folder))
    merges = [tuple(line.split(" ")) for line in (folder/"merges.txt").read_text(encoding="utf-8").splitlines() if line and not line.startswith("#version")]
    tokenizer = transformers.RobertaTokenizer(vocab=raw.get_vocab(), merges=merges, model_max_length=longest)
    tokenizer.save_pretrained(folder)
    return tokenizer


def small(kind, tokenizer, longest=64, width=32, layers=3, **more):
    "A configuration of a kind, `longest` positions behind what RoBERTa skips."
    transformers = import_transformers()
    made = transformers.BertConfig if kind == "bert" else transformers.RobertaConfig
    special = dict(pad_token_id=tokenizer.pad_token_id)
    return made(vocab_size=len(tokenizer), hidden_size=width, num_hidden_layers=layers, num_attention_heads=max(2, width//64), intermediate_size=4*width,
                max_position_embeddings=longest + (2 if kind == "roberta" else 0), initializer_range=0.3, **special, **more)


def save_encoder(folder, kind, texts, seed=0, **sizes):
    "A random BERT or RoBERTa with its tokenizer; the same seed gives the same weights."
    torch, transformers = import_torch(), import_transformers()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = (save_words if kind == "bert" else save_bytes)(folder, texts, longest=sizes.get("longest", 64))
    torch.manual_seed(seed)
    transformers.AutoModel.from_config(small(kind, tokenizer, **sizes)).save_pretrained(folder)
    return folder


def save_classifier(folder, texts, labels, seed=0, **more):
    "A random BERT that says one of the labels."
    torch, transformers = import_torch(), import_transformers()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = save_words(folder, texts)
    config = small("bert", tokenizer, num_labels=len(labels), id2label=dict(enumerate(labels)), label2id={name: i for i, name in enumerate(labels)}, **more)
    torch.manual_seed(seed)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder

"""BERTScore beside the package bert_score, on real translations and odd strings; what is read twice and what is kept."""

import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_judges import save_encoder

from llmops_workbench.bertscore import BERTSCORE_METHODS, BertReader, KEPT_VECTORS, Vectors, bert_scores, match_pairs, token_weights
from llmops_workbench.metric_models import open_metric_model
from llmops_workbench.models import import_torch
from llmops_workbench.options import Batch, Options

TALK = ["the printer on floor two is broken", "please help me with the screen", "a black screen, and no sound at all", "Ann's keyboard is wet", "I can't log in (again)!"]*6
ODD = ["", " ", "  the printer ", "the\tprinter\n", "?", "...", "[SEP]", "the [MASK] printer", "</s>", "日本語のテキスト", "naïve café", "é́́", "\u200b", "😀 ok 😀", "x"*300, "the printer "*60,
       "\ud83d".encode("utf-8", "replace").decode(), "0", "\x00", "the printer on floor two is broken"]


@pytest.fixture(scope="module", params=["bert", "roberta"])
def encoder(request, tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("encoders")/request.param, request.param, TALK)


def theirs(folder, predictions, references, layer, idf=False, batch_size=1):
    """bert_score's precision, recall and F1; transformers 5 lost the method it asks of an empty text.

    One pair at a time, because in a batch it compares padding too, as a likeness of 0: the value of a text whose every likeness is negative then depends on its neighbours."""
    import sys

    from bert_score.utils import get_tokenizer

    def with_empty(*given):
        tokenizer = get_tokenizer(*given)
        tokenizer.build_inputs_with_special_tokens = lambda ids: tokenizer("")["input_ids"]
        return tokenizer
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(sys.modules["bert_score.score"], "get_tokenizer", with_empty)
        found = sys.modules["bert_score.score"].score(predictions, references, model_type=str(folder), num_layers=layer, idf=idf, device="cpu", nthreads=0, batch_size=batch_size)
    return np.nan_to_num(np.stack([np.asarray(x, float) for x in found], -1))


def ours(folder, predictions, references, layer, idf=False, kept=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return bert_scores(predictions, references, folder, layer, idf, Vectors() if kept is None else kept)


@pytest.mark.parametrize("idf", [False, True], ids=["plain", "idf"])
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_it_is_bert_score_on_translations(encoder, shared_data, layer, idf):
    read = [(shared_data/"comparemt"/f"ted.{name}.eng").read_text(encoding="utf-8").splitlines()[:80] for name in ("sys1", "sys2", "ref")]
    for system in read[:2]:
        mine, other = ours(encoder, system, [[r] for r in read[2]], layer, idf), theirs(encoder, system, read[2], layer, idf, 64 if layer == 1 else 1)
        np.testing.assert_allclose(mine, other, atol=1e-5)
        assert mine[:, 2].std() > 0.01


@pytest.mark.parametrize("idf", [False, True], ids=["plain", "idf"])
def test_several_references_with_gaps(encoder, idf):
    "Each of the three numbers is of its own best reference, as in bert_score."
    references = [[TALK[i % 5], TALK[(i + 1) % 5]][:1 + i % 2] for i in range(20)]
    predictions = [f"{TALK[i % 4]} and {TALK[(i + 2) % 5]}" for i in range(20)]
    np.testing.assert_allclose(ours(encoder, predictions, references, 2, idf), theirs(encoder, predictions, references, 2, idf), atol=1e-5)


@pytest.mark.parametrize("idf", [False, True], ids=["plain", "idf"])
def test_odd_strings(encoder, idf):
    predictions = [a for a in ODD for _ in ODD]
    references = ODD*len(ODD)
    mine = ours(encoder, predictions, [[r] for r in references], 2, idf)
    assert np.isfinite(mine).all()
    np.testing.assert_allclose(mine, theirs(encoder, predictions, references, 2, idf), atol=1e-5)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_texts(encoder, data):
    text = st.text(st.characters(codec="utf-8"), max_size=30) | st.lists(st.sampled_from(" ".join(TALK[:5]).split()), max_size=12).map(" ".join)
    pairs = data.draw(st.lists(st.tuples(text, st.lists(text, min_size=1, max_size=3)), min_size=1, max_size=6))
    predictions, references = [p for p, _ in pairs], [rs for _, rs in pairs]
    mine = ours(encoder, predictions, references, 2)
    np.testing.assert_allclose(mine, theirs(encoder, predictions, references, 2), atol=1e-5)


def test_a_text_is_read_once_over_all_systems(encoder, monkeypatch):
    "The tokens that go through the network are those of the different texts, whatever repeats over four systems."
    kept, read = Vectors(), []
    network = BertReader(encoder, 2, kept).open()[1]
    hook = network.register_forward_hook(lambda module, args, kwargs, output: read.append(int(kwargs["attention_mask"].sum())), with_kwargs=True)
    systems = [[f"{text} {i % n}" for i, text in enumerate(TALK)] for n in (1, 2, 3, 4)]
    for system in systems:
        bert_scores(system, [[r] for r in TALK], encoder, 2, kept=kept)
    hook.remove()
    texts = list(dict.fromkeys(t.strip() for s in [*systems, TALK] for t in s))
    assert kept.n_read == len(texts) and sum(read) == sum(map(len, BertReader(encoder, 2, kept).tokens(texts)))


def test_layers_and_models_keep_their_vectors_apart(encoder, tmp_path):
    kept = Vectors()
    first = [ours(encoder, TALK[:3], [[r] for r in TALK[1:4]], layer, kept=kept) for layer in (1, 2, 1, None, 3)]
    assert np.array_equal(first[0], first[2]) and not np.allclose(first[0], first[1]) and np.array_equal(first[3], first[4])
    other = save_encoder(tmp_path/"other", "bert", TALK, seed=5)
    assert not np.allclose(ours(other, TALK[:3], [[r] for r in TALK[1:4]], 1, kept=kept), first[0])


def test_the_kept_vectors_stay_within_their_bytes_and_values_stay(encoder):
    wide, narrow = Vectors(), Vectors(most_bytes=20_000)
    texts = [f"{text} {i}" for i, text in enumerate(TALK)]
    np.testing.assert_allclose(ours(encoder, texts, [[r] for r in TALK], 2, kept=narrow), ours(encoder, texts, [[r] for r in TALK], 2, kept=wide), atol=1e-6)
    assert narrow.n_bytes <= 20_000 < wide.n_bytes
    assert wide.n_bytes == sum(ids.nbytes + vectors.nbytes for ids, vectors in wide._kept.values())


def test_blocks_do_not_change_values(encoder):
    texts = [f"{text} {i}" for i, text in enumerate(TALK)]
    references = [[r, "please"] for r in TALK]
    np.testing.assert_allclose(bert_scores(texts, references, encoder, 2, kept=Vectors(), block=7), bert_scores(texts, references, encoder, 2, kept=Vectors()), atol=1e-6)


def test_padding_is_never_what_a_token_is_most_like(encoder):
    "Likeness below 0 everywhere: the value does not depend on the neighbours in the batch."
    torch = import_torch()
    ids = np.array([5, 6], "int32")
    there, against = (ids, torch.tensor([[1.0, 0.0], [1.0, 0.0]])), (ids, torch.tensor([[-1.0, 0.0], [-1.0, 0.0]]))
    longer = (np.array([5, 6, 7, 8], "int32"), torch.tensor([[1.0, 0.0]]*4))
    weights = np.ones(10, "float32")
    alone, beside = match_pairs([(there, against)], weights), match_pairs([(there, against), (longer, longer)], weights)
    assert alone[0].tolist() == beside[0].tolist() and alone[0, :2].tolist() == [-1, -1]


def test_an_interrupt_leaves_whole_vectors_behind(encoder, monkeypatch):
    kept, network = Vectors(), BertReader(encoder, 2).open()[1]
    texts = [" ".join(["printer"]*40) + f" {i}" for i in range(400)]
    calls = []

    def stop(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
    hook = network.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        bert_scores(texts, [[t] for t in texts], encoder, 2, kept=kept)
    hook.remove()
    assert 0 < kept.n_read < 400
    np.testing.assert_allclose(bert_scores(texts, [[t] for t in texts], encoder, 2, kept=kept)[:, 2], 1, atol=1e-5)
    assert kept.n_read == 400


def test_counts_add_up_and_empty_texts_are_said(encoder):
    options, method = Options(bertscore_model=str(encoder), bertscore_layer=2), BERTSCORE_METHODS["bertscore"]
    KEPT_VECTORS.clear()
    with pytest.warns(RuntimeWarning, match="1 of 3 pairs"):
        counts = method.count(Batch(["", TALK[0], TALK[1]], [["a"], [TALK[0]], [TALK[2]]]), options)
    assert counts[0].tolist() == [0, 1, 0, 0] and counts.shape == (3, 4)
    assert method.value(counts.sum(0), options, False) == pytest.approx(counts[:, 0].mean())
    assert method.count(Batch([], []), options).shape == (0, 4)


def test_the_signature_names_weights_layer_and_idf(encoder):
    sign = BERTSCORE_METHODS["bertscore"].sign
    first = sign(Options(bertscore_model=str(encoder)))
    assert {"layer:last", "idf:no"} <= set(first) and len(first[0]) == len("model:") + 12
    assert sign(Options(bertscore_model=str(encoder), bertscore_layer=1, bertscore_idf=True))[1:3] == ["layer:1", "idf:references"]


def test_what_cannot_be_read(tmp_path, encoder):
    count = BERTSCORE_METHODS["bertscore"].count
    batch = Batch(["a"], [["a"]])
    with pytest.raises(ValueError, match="bertscore_model is not set.*A folder on this machine"):
        count(batch, Options())
    with pytest.raises(LookupError, match="no/such"):
        count(batch, Options(bertscore_model="no/such"))
    for layer in (7, -1, "x", 1.5):
        with pytest.raises(ValueError, match="layers 0 to 3"):
            count(batch, Options(bertscore_model=str(encoder), bertscore_layer=layer))
    pickled = tmp_path/"pickled"
    pickled.mkdir()
    (pickled/"config.json").write_text("{}")
    (pickled/"pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="could run code when read"):
        count(batch, Options(bertscore_model=str(pickled)))


def test_longer_than_the_model_reads(tmp_path):
    "A tokenizer that names no limit is cut at the positions of the network; RoBERTa counts them from behind its padding."
    for kind in ("bert", "roberta"):
        folder = save_encoder(tmp_path/kind, kind, TALK, longest=40)
        import json
        config = json.loads((folder/"tokenizer_config.json").read_text())
        config.pop("model_max_length", None)
        (folder/"tokenizer_config.json").write_text(json.dumps(config))
        assert open_metric_model(folder, "encoder").most_tokens == 40
        assert ours(folder, ["printer "*200], [["printer "*300]], 2)[0, 2] == pytest.approx(1, abs=1e-5)


def test_weights_follow_references_with_their_copies(encoder):
    reader = BertReader(encoder, 2)
    weights, ids = token_weights(reader, ["the screen", "the screen", "the printer"]), reader.tokens(["the screen"])[0]
    assert weights[ids[-2]] == pytest.approx(np.log(4/3))
    assert weights[ids[0]] == weights[ids[-1]] == 0

"""Answers under a JSON Schema: faults of schemas, hostile answers, and decoding that keeps to a schema under every limit."""

import json
import socket
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from referencing.exceptions import Unresolvable
from schema_table import REFUSED, SCHEMAS, is_valid, obj
from tiny_models import save_model, save_pieces, save_tokenizer

from llmops_workbench.completions import Completion, Model, ScriptedModel
from llmops_workbench.errors import ParameterValueError
from llmops_workbench.grammars import Answer, Grammar, GrammarError, Vocabulary
from llmops_workbench.models import load_local
from llmops_workbench.prompts import Prompt
from llmops_workbench.schemas import coerce, find_violation, mend, read_schema, settle_answer

TEXTS = ["please help", "the printer on floor two is broken, please help", "floor"]


# ---- schemas

@pytest.mark.parametrize("source, said", [
    ({"type": "strng"}, "fault at type"), ({"properties": {"a": {"type": "object", "properties": {"b": {"minLength": -1}}}}}, "properties/a/properties/b/minLength"),
    ({"items": [{"type": "string"}]}, "fault at items"), ({"type": "string", "pattern": "["}, "fault at pattern"), ({"required": "a"}, "fault at required"),
    ({"$ref": "file:///etc/passwd"}, "nothing is fetched"), ({"properties": {"a": {"$ref": "other.json#/x"}}}, "properties/a/$ref"), ({"$ref": "#/$defs/a"}, "leads nowhere"),
    ({"$ref": "#"}, "refers to itself"), ({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}}, "refers to itself"), ({"$defs": {"a": {"$id": "https://x", "type": "null"}}}, "address of its own"),
    ({"name": "string"}, "none of these is a keyword"), ([], "It is a JSON object"), (None, "It is a JSON object"), (3, "It is a JSON object"), ("{", "is not JSON"), ("nowhere.json", "cannot be read"),
    ("a\0b", "cannot be read"), ({"const": float("nan")}, "holds what JSON cannot"), ({"const": b"x"}, "holds what JSON cannot"), ({"$schema": "https://example.org/x"}, "no known draft")])
def test_a_schema_that_is_none_is_refused_with_its_fault(source, said):
    with pytest.raises(ParameterValueError, match=".") as caught:
        read_schema(source)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_deep_schema_is_refused():
    deep = {}
    for _ in range(5000):
        deep = {"items": deep}
    for source in (deep, '{"items":'*5000 + "{}" + "}"*5000):
        with pytest.raises(ParameterValueError):
            read_schema(source)
    deep = {}
    for _ in range(300):
        deep = {"items": deep}
    with pytest.raises(ParameterValueError, match="nested too deeply"):
        read_schema(deep)


def test_nothing_is_fetched(monkeypatch):
    monkeypatch.setattr(socket, "socket", lambda *a, **k: pytest.fail("the network was asked"))
    with pytest.raises(Unresolvable):
        find_violation("1", {"$ref": "https://example.org/schema.json"})
    with pytest.raises(ParameterValueError):
        read_schema({"$ref": "https://example.org/schema.json"})


def test_every_schema_of_the_table_is_read():
    for name, schema in (SCHEMAS | REFUSED).items():
        assert read_schema(json.dumps(schema)) == schema, name


def test_a_prompt_takes_a_pydantic_class_and_refuses_a_broken_schema():
    class Room(BaseModel):
        number: int
        floor: int | None = None
    assert Prompt("p", "{text}", schema=Room).schema["required"] == ["number"]
    with pytest.raises(ParameterValueError, match="fault at type"):
        Prompt("p", "{text}", schema={"type": "strng"})


# ---- answers

HOSTILE = ["["*100_000, "x"*10_000_000, '{"a":['*100_000, "{'"*50_000, "["+","*200_000, '"' + "\\"*200_000, '"'*100_000, "{'" + "' "*200_000, "{/*"*100_000,
           "{" + " "*500_000, "{'" + "'" + " "*500_000, "[NaN,"*10_000, "[1e999]", "9"*100_000, "```"*100_000, "```\n"*50_000, "{#"*100_000, "\ud800", '{"a": "\ud800"}', "\0", "\ufeff{}",
           "{\"a\": Infinity}", "{\"a\": -Infinity}", '{"a":"' + "x"*2_000_000 + '"}', "{" + '"a":{'*2000 + "}"*2001, "\u2028", "[1" * 50_000]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_text_makes_settling_raise(text):
    for schema in ({}, obj(a={"type": "string"}), {"type": "string"}):
        settled, how, problem = settle_answer(text, schema)
        assert how in ("parsed", "repaired", "invalid") and (how == "invalid") == bool(problem) and len(problem) < 1000
        assert settled == text or find_violation(settled, schema) == ""


@settings(max_examples=80, deadline=None)
@given(st.text(alphabet='{}[]",:\'\\ntrue01.-eE+#/*`“” a\n\ud800', max_size=40))
def test_any_text_is_settled(text):
    settled, how, problem = settle_answer(text, obj([], more=True, a={"type": "integer"}))
    assert how == "invalid" and settled == text and problem or isinstance(json.loads(settled), dict)


VALUES = st.recursive(st.none() | st.booleans() | st.integers(-10**15, 10**15) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=8)


@settings(max_examples=40, deadline=None)
@given(VALUES)
def test_json_is_left_as_it_was_written(value):
    text = json.dumps(value, ensure_ascii=False)
    assert settle_answer(text, {}) == (text, "parsed", "")
    assert json.loads(mend(text)) == value or "\ud800" <= max(text) <= "\udfff"


@pytest.mark.parametrize("text, wanted", [
    ('{"a": 1,}', {"a": 1}), ("{'a': 'it\\'s', 'b': True, 'c': None}", {"a": "it's", "b": True, "c": None}), ("{a: 1, b_2: \"x\"}", {"a": 1, "b_2": "x"}),
    ('{"a": [1, 2', {"a": [1, 2]}), ('// c\n{"a": 1 /* x */} # y', {"a": 1}), ("{“a”: “b”}", {"a": "b"}), ("Here:\n```\n{'a': 1}\n```", {"a": 1}), ('{"a": "say "hi" to"}', {"a": 'say "hi" to'}),
    ('{"a": "two\nlines"}', {"a": "two\nlines"}), ("{'a': 'x'} and so on", {"a": "x"})])
def test_what_has_one_meaning_is_mended(text, wanted):
    settled, how, _ = settle_answer(text, {"type": "object"})
    assert (json.loads(settled), how) == (wanted, "repaired")


@pytest.mark.parametrize("text", ['{"a": tru', '{"a": ', '{"a": "pri', '{"a": "b" "c"}', '{"a": 12 apples}', '{"a": -}', '{"a": NaN}', '{"a": 007}', '{"a" 1}', "{'a': 1e999}", '{"a": 1 "b": 2}', "{,}", "yes", ""])
def test_what_would_be_a_guess_stays_broken(text):
    assert settle_answer(text, {"type": "object"})[:2] == (text, "invalid")


@pytest.mark.parametrize("value, schema, wanted", [
    ('"7"', {"type": "integer"}, "7"), ('"7.0"', {"type": "integer"}, '"7.0"'), ('"about 7"', {"type": "integer"}, '"about 7"'), ('"1e5"', {"type": "number"}, "100000.0"), ('"007"', {"type": "integer"}, '"007"'),
    ("7", {"type": "string"}, '"7"'), ('"true"', {"type": "boolean"}, "true"), ("1", {"type": "boolean"}, "1"), ("7.5", {"type": "integer"}, "7.5"), ('{"a": ["3"]}', obj(a={"type": "array", "items": {"type": "integer"}}), '{"a": [3]}'),
    ('{"a": "3"}', obj(a={"anyOf": [{"type": "integer"}, {"type": "null"}]}), '{"a": 3}'), ('"٣"', {"type": "integer"}, '"٣"'), (f'"{"9"*400}"', {"type": "integer"}, f'"{"9"*400}"')])
def test_types_change_only_where_nothing_is_lost(value, schema, wanted):
    assert coerce(value, schema) == wanted.encode().decode() or json.loads(coerce(value, schema)) == json.loads(wanted)


def test_the_violation_is_in_plain_words():
    ticket = SCHEMAS["ticket"]
    for text, words in [('{"product": "vpn"}', 'lacks "priority"'), ('{"product": "fax", "priority": 1}', 'product is "fax", and not one of'), ('{"product": "vpn", "priority": 9}', "against maximum: 4"),
                        ('{"product": "vpn", "priority": 1, "x": 2}', "does not allow"), ('{"product": "vpn", "priority": null}', "priority is null, and integer is wanted"), ("[]", "the answer is a list"), ("{", "not JSON")]:
        assert words in find_violation(text, ticket), text


# ---- grammars

@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    made = {"bytes": save_tokenizer(folder), "fallback": save_pieces(folder, "fallback"), "unigram": save_pieces(folder, "unigram")}
    return {name: (tokenizer, Vocabulary(tokenizer, len(tokenizer) + 5, {tokenizer.eos_token_id})) for name, tokenizer in made.items()}


def write(tokenizer, grammar, limit, seed):
    "An answer by somebody who takes any allowed token."
    draw, answer, ids, bits = np.random.default_rng(seed), grammar.start(limit), [], np.zeros(-(-(len(tokenizer) + 5) // 32), "int32")
    while not answer.is_done and answer.left:
        answer.fill(bits)
        allowed = np.flatnonzero(np.unpackbits(bits.view("uint8"), bitorder="little"))
        assert (tokenizer.eos_token_id in allowed) == answer.matcher.is_accepting(), "the end is allowed exactly when the JSON is complete"
        ids.append(answer.accept(int(draw.choice(allowed))))
    assert len(ids) <= limit
    return tokenizer.decode(ids, skip_special_tokens=True).strip(), answer


@pytest.mark.parametrize("kind, spare", [("bytes", (0, 7)), ("fallback", (1, 40))])
def test_every_schema_is_kept_to_under_every_limit(vocabularies, kind, spare):
    tokenizer, vocabulary = vocabularies[kind]
    for name, schema in SCHEMAS.items():
        grammar = Grammar(vocabulary, schema)
        least = len(grammar.start(250).home)
        for seed, limit in enumerate(least + more for more in spare):
            text, answer = write(tokenizer, grammar, limit, seed)
            assert is_valid(text, schema) and answer.is_complete, f"{name}, {limit} tokens: {text[:200]}"


def test_a_vocabulary_with_gaps_leads_into_no_dead_end(vocabularies):
    tokenizer, vocabulary = vocabularies["unigram"]
    assert not vocabulary.is_whole
    for name in ("ticket", "boolean", "code pattern", "optional value", "format date"):
        for seed in range(3):
            text, _ = write(tokenizer, Grammar(vocabulary, SCHEMAS[name]), 120, seed)
            assert is_valid(text, SCHEMAS[name]), f"{name}: {text}"
    assert Grammar(vocabulary, {"const": "寿司"}).start(50).home is None


def test_what_cannot_be_enforced_is_refused(vocabularies):
    for name, schema in REFUSED.items():
        with pytest.raises(GrammarError) as caught:
            Grammar(vocabularies["bytes"][1], read_schema(schema) | {"x-guidance": {"lenient": True, "coerce_one_of": True}})
        assert "\n" not in str(caught.value), name


def test_far_from_the_end_the_way_home_is_rarely_looked_for(vocabularies, monkeypatch):
    asked, look = [], Answer._way_home
    monkeypatch.setattr(Answer, "_way_home", lambda self, *more: asked.append(1) or look(self, *more))
    tokenizer, vocabulary = vocabularies["bytes"]
    answer = Grammar(vocabulary, {"type": "array", "items": {"type": "integer"}}).start(3000)
    for token in vocabulary.spell("[" + "12,"*150):
        answer.accept(token)
    assert len(asked) < 30


def test_rows_know_nothing_of_each_other(vocabularies):
    tokenizer, vocabulary = vocabularies["bytes"]
    grammar = Grammar(vocabulary, SCHEMAS["ticket"])
    alone = [write(tokenizer, grammar, 60, seed)[0] for seed in range(4)]
    rows = [grammar.start(60) for _ in range(4)]
    rows[0].accept(vocabulary.spell("{")[0])
    assert [write(tokenizer, grammar, 60, seed)[0] for seed in range(4)] == alone and rows[1].left == 60


# ---- models

@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_local(str(save_model(tmp_path_factory.mktemp("tiny"))))


@pytest.mark.parametrize("name", ["ticket", "tree", "order", "map of numbers", "unicode enum", "number", "anything", "similar keys"])
def test_a_random_model_keeps_to_a_schema(model, name):
    for temperature, limit in ((0.0, 120), (1.5, 110)):
        frame = model.generate(TEXTS, schema=SCHEMAS[name], temperature=temperature, seed=3, max_new_tokens=limit)
        assert set(frame["structured"]) == {"constrained"} and all(is_valid(text, SCHEMAS[name]) for text in frame["completion"])
        assert (frame["completion_tokens"] <= limit).all() and set(frame["error"]) == {""}


def test_a_batch_changes_nothing(model):
    together = model.generate(TEXTS, schema=SCHEMAS["ticket"], temperature=1.5, seed=1, max_new_tokens=70)
    for row, text in enumerate(TEXTS):
        assert model.generate([text], schema=SCHEMAS["ticket"], temperature=1.5, seed=1, max_new_tokens=70)["completion"][0] == together["completion"][row]


def test_a_batch_that_is_halved_starts_its_answers_anew(model, monkeypatch):
    whole = model.generate(TEXTS, schema=SCHEMAS["ticket"], temperature=1.5, seed=1, max_new_tokens=70)["completion"].tolist()
    decode = type(model)._decode

    def fragile(self, rows, *rest):
        if len(rows) > 1:
            raise MemoryError
        yield from decode(self, rows, *rest)
    monkeypatch.setattr(type(model), "_decode", fragile)
    assert model.generate(TEXTS, schema=SCHEMAS["ticket"], temperature=1.5, seed=1, max_new_tokens=70)["completion"].tolist() == whole


def test_a_model_that_writes_without_end_is_brought_home_and_says_so(model):
    schema = obj(note={"type": "string"})
    frame = model.generate(TEXTS, schema=schema, max_new_tokens=30)
    assert set(frame["structured"]) == {"constrained"} and "length" in set(frame["finish_reason"])


def test_too_few_tokens_are_warned_of_and_never_called_valid(model):
    with pytest.warns(RuntimeWarning, match="max_new_tokens=4"):
        frame = model.generate(TEXTS, schema=SCHEMAS["ticket"], max_new_tokens=4)
    assert set(frame["structured"]) == {"invalid"} and set(frame["finish_reason"]) == {"length"} and set(frame["error"]) == {""}


def test_a_schema_that_cannot_be_enforced_is_warned_of(model):
    with pytest.warns(RuntimeWarning, match="uniqueItems"):
        frame = model.generate(TEXTS, schema=REFUSED["unique"], max_new_tokens=8)
    assert set(frame["structured"]) <= {"parsed", "repaired", "invalid"}


def test_without_a_schema_nothing_changes(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame = model.generate(TEXTS, max_new_tokens=8)
    assert set(frame["structured"]) == {""} == set(frame["raw_completion"])


def test_stop_texts_do_not_cut_a_json(model):
    frame = model.generate(TEXTS, schema=SCHEMAS["ticket"], stop=["p", "{"], temperature=1.5, max_new_tokens=70)
    assert set(frame["structured"]) == {"constrained"}


def test_a_claim_is_checked():
    class Boaster(Model):
        name = "boaster"
        def complete(self, conversations, sampling):
            for i, text in enumerate(['{"a": 1}', '{"a": ', "so: {'a': '1'}", None]):
                yield i, Completion(text, structured="response_format", error="" if text else "no answer")
    frame = Boaster().generate(["x"]*4, schema=obj(a={"type": "integer"}))
    assert frame["structured"].tolist() == ["response_format", "invalid", "repaired", ""]
    assert frame["raw_completion"].tolist() == ["", "", "so: {'a': '1'}", ""] and frame["completion"][1] == '{"a": '


def test_a_wrong_schema_stops_before_the_first_call():
    asked = []
    with pytest.raises(ParameterValueError, match="fault at type"):
        ScriptedModel(lambda m: asked.append(m) or "x").generate(["a"], schema={"type": "strng"})
    assert asked == []

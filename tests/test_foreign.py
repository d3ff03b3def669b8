"""Metrics that are not ours beside ours: functions of every form, modules of evaluate, what they do wrong."""

import math

import numpy as np
import pandas as pd
import pytest

from llmops_workbench.foreign import Foreign, Told, foreign, foreign_value
from llmops_workbench.measures import METRICS, Metric
from llmops_workbench.metrics import score
from llmops_workbench.options import Batch, Options

PREDICTIONS = ["restart the printer now please", "close the window and the door", "wait for the next one here", "the cat sat on the mat today"]
REFERENCES = [["restart the printer now"], ["close all windows and the door"], ["wait for the next one"], ["a cat sat on the mat"]]
BATCH = Batch(PREDICTIONS, REFERENCES)


def words_shared(prediction, reference):
    return len(set(prediction.split()) & set(reference.split()))


def test_a_function_of_two_texts_takes_its_best_reference():
    batch = Batch(["a b", "c d"], [["a", "a b"], ["x", "c"]])
    most, least = foreign(words_shared).measure(batch), foreign(words_shared, name="fewest", higher_is_better=False).measure(batch)
    assert most.counts.tolist() == [[2, 1, 0], [1, 1, 0]] and least.counts.tolist() == [[1, 1, 0], [0, 1, 0]]
    assert most.corpus is None and most.sign[1] == "agg:mean" and most.sign[0].startswith("foreign:test_foreign.words_shared@")


@pytest.mark.parametrize("give", [list, np.array, lambda v: {"overlap": list(v)}, lambda v: {"overlap": np.array(v), "about": "words"}], ids=["list", "array", "dict", "dict-with-text"])
def test_a_function_of_lists_that_gives_a_value_for_each(give):
    calls = []

    def overlap(predictions, references):
        calls.append(len(predictions))
        return give([words_shared(p, r) for p, r in zip(predictions, references)])
    found = foreign(overlap).measure(BATCH)
    assert found.counts[:, 0].tolist() == [words_shared(p, r[0]) for p, r in zip(PREDICTIONS, REFERENCES)] and found.corpus is None and calls == [4]


@pytest.mark.parametrize("give", [float, lambda v: {"rate": v}, np.float64], ids=["float", "dict", "numpy"])
def test_a_number_that_is_a_mean_and_one_that_is_none(give):
    def mean(predictions, references):
        return give(np.mean([words_shared(p, r) for p, r in zip(predictions, references)]))

    def micro(predictions, references):
        return give(sum(words_shared(p, r) for p, r in zip(predictions, references))/sum(len(p.split()) for p in predictions))
    plain, corpus = foreign(mean).measure(BATCH), foreign(micro).measure(BATCH)
    assert plain.corpus is None and plain.sign[-1] == "agg:mean" and foreign_value(plain.counts.sum(0)) == np.mean([words_shared(p, r[0]) for p, r in zip(PREDICTIONS, REFERENCES)])
    assert corpus.sign[-1] == "agg:corpus" and corpus.corpus == pytest.approx(sum(words_shared(p, r[0]) for p, r in zip(PREDICTIONS, REFERENCES))/sum(len(p.split()) for p in PREDICTIONS))
    assert foreign_value(corpus.counts, sentence=True).tolist() == [words_shared(p, r[0])/len(p.split()) for p, r in zip(PREDICTIONS, REFERENCES)]
    for rows in ([0, 1], [1, 1, 1], [0, 1, 2, 3]):
        assert np.isnan(foreign_value(corpus.counts[rows].sum(0))), "no sample has a value from counts"


def test_lists_of_references_come_as_lists_where_one_example_has_several():
    seen = []

    def look(predictions, references):
        seen.append(references)
        return [0.0]*len(predictions)
    foreign(look).measure(Batch(["a", "b"], [["x"], ["y"]]))
    foreign(look).measure(Batch(["a", "b"], [["x"], ["y", "z"]]))
    assert seen == [["x", "y"], [["x"], ["y", "z"]]]


def test_a_metric_without_references():
    alone, lists = foreign(lambda text: len(text), name="length"), foreign(lambda predictions: [len(p) for p in predictions], name="lengths")
    for metric in (alone, lists):
        assert not metric.metric.references and metric.measure(Batch(["abc", ""], [[], []])).counts[:, 0].tolist() == [3, 0]
    assert foreign(lambda *texts: 1.0, name="free", references=False).metric.references is False
    assert foreign(lambda a, b: [len(x) for x in a], name="said", batched=True).measure(Batch(["abc"], [["x"]])).counts[0, 0] == 3
    assert foreign(math.dist, name="built_in").metric.references


@pytest.mark.parametrize("value", [None, float("nan"), np.nan, np.float32("nan")], ids=["None", "nan", "numpy", "float32"])
def test_no_value_is_not_a_bad_one(value):
    for metric in (foreign(lambda prediction, reference: value if prediction == "b" else 0.5, name="one"),
                   foreign(lambda predictions, references: [value if p == "b" else 0.5 for p in predictions], name="all")):
        counts = metric.measure(Batch(["a", "b"], [["x"], ["x"]])).counts
        assert counts.tolist() == [[0.5, 1, 0], [0, 0, 0]] and foreign_value(counts.sum(0)) == 0.5
        assert np.isnan(foreign_value(counts, sentence=True)[1])


def test_a_value_for_all_with_an_example_that_has_none():
    def odd(predictions, references):
        return float("nan") if predictions == ["b"] else 7.0 if len(predictions) > 1 else 1.0
    found = foreign(odd).measure(Batch(["a", "b"], [["x"], ["x"]]))
    assert found.corpus == 7 and found.counts[1].tolist() == [0, 0, 0] and np.isnan(found.counts[0, 2])
    nothing = foreign(lambda predictions, references: None, name="nothing").measure(Batch(["a", "b"], [["x"], ["x"]]))
    assert nothing.corpus is None and nothing.counts.tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("result, said", [("high", "gave 'high' for example 0"), ([1, 2], r"gave \[1, 2\] for example 0"), (float("inf"), "gave inf for example 0")], ids=["text", "list", "infinite"])
def test_what_is_no_number_is_said(result, said):
    with pytest.raises(ValueError, match=said):
        foreign(lambda prediction, reference: result, name="odd").measure(BATCH)


def test_an_error_names_the_metric_the_example_and_what_was_said():
    def broken(prediction, reference):
        return 1/prediction.count("e")

    def broken_lists(predictions, references):
        return [1/p.count("e") for p in predictions]

    def together(predictions, references):
        if len(predictions) > 1:
            raise RuntimeError("too many")
        return 1.0
    batch = Batch(["here", "there", "no"], [["x"]]*3)
    for metric in (broken, broken_lists):
        with pytest.raises(ValueError, match=f"'{metric.__name__}' failed on example 2: ZeroDivisionError: division by zero") as caught:
            foreign(metric).measure(batch)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(ValueError, match="'together' failed on all 3 examples together: RuntimeError: too many"):
        foreign(together).measure(batch)
    with pytest.raises(ValueError, match="gave 2 values for 3 examples"):
        foreign(lambda predictions, references: [1, 2], name="short").measure(batch)
    with pytest.raises(KeyboardInterrupt):
        foreign(lambda prediction, reference: (_ for _ in ()).throw(KeyboardInterrupt), name="stopped").measure(batch)


@pytest.mark.parametrize("name", [*METRICS, "rouge", "n", "n_missing", "", "a\nb", None])
def test_a_name_that_is_ours_or_none(name):
    with pytest.raises(ValueError, match="cannot be called"):
        foreign(lambda prediction, reference: 1.0, name=name)


def test_what_is_no_metric():
    with pytest.raises(ValueError, match="metric is 'bleu'.*one of our names"):
        foreign("bleu", name="x")


def test_several_values_of_a_dictionary():
    def both(predictions, references):
        return {"p": 0.25, "r": 0.5}
    with pytest.raises(ValueError, match="It gives: p, r. Name one as key"):
        foreign(both).measure(BATCH)
    with pytest.raises(ValueError, match="key is 'q'"):
        foreign(both, key="q").measure(BATCH)
    assert foreign_value(foreign(both, key="r").measure(BATCH).counts.sum(0)) == 0.5
    assert foreign_value(foreign(both, name="p").measure(BATCH).counts.sum(0)) == 0.25


def test_options_are_passed_on():
    def at_least(prediction, reference, n=1):
        return float(words_shared(prediction, reference) >= n)
    assert foreign_value(foreign(at_least, n=99).measure(BATCH).counts.sum(0)) == 0 < foreign_value(foreign(at_least, n=1).measure(BATCH).counts.sum(0))


def test_it_has_what_score_needs():
    metric = foreign(words_shared, name="shared", top=9.0, higher_is_better=False)
    assert isinstance(metric, Foreign) and isinstance(metric.metric, Metric) and isinstance(metric.measure(BATCH), Told)
    assert (metric.name, metric.metric.top, metric.metric.higher_is_better, metric.metric.references) == ("shared", 9.0, False, True)
    counts = metric.method.count(BATCH, Options())
    assert metric.method.value(counts.sum(0), Options(), False) == counts[:, 0].mean() and metric.method.sign(Options())[0].startswith("foreign:")
    assert foreign(lambda predictions, references: 1.0, name="none").measure(Batch([], [])).counts.shape == (0, 3)


def test_other_code_is_another_signature():
    first, second = (foreign(function, name="f").metric.words for function in (lambda prediction, reference: 1.0, lambda prediction, reference: 2.0))
    assert first != second


def test_modules_of_evaluate():
    "A corpus metric, one that is a mean, and one for single references only; the oracle is what our own say."
    pytest.importorskip("evaluate")
    import datasets
    import evaluate

    from llmops_workbench.evaluators import as_evaluate
    bleu, mean = foreign(as_evaluate("bleu"), name="their_bleu").measure(BATCH), foreign(as_evaluate("token_f1"), name="their_f1").measure(BATCH)
    own = score(PREDICTIONS, REFERENCES, ["bleu", "token_f1"])
    assert bleu.corpus == own.summary["bleu"] and bleu.sign == ("foreign:evaluate/bleu", "agg:corpus")
    assert mean.corpus is None and np.allclose(mean.counts[:, 0], own.frame["token_f1"])
    assert foreign_value(mean.counts.sum(0)) == pytest.approx(own.summary["token_f1"])

    class Same(evaluate.Metric):
        def _info(self):
            return evaluate.MetricInfo(description="", citation="", features=datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")}))

        def _compute(self, predictions, references):
            return {"same": float(np.mean([p == r for p, r in zip(predictions, references)]))}
    same = foreign(Same())
    assert same.name == "same" and same.measure(Batch(["a", "b"], [["a"], ["c"]])).counts.tolist() == [[1, 1, 0], [0, 1, 0]]
    with pytest.raises(ValueError, match="takes one reference for each example, and example 1 has 2"):
        same.measure(Batch(["a", "b"], [["a"], ["c", "d"]]))
    with pytest.raises(ValueError, match="cannot be called 'bleu'"):
        foreign(as_evaluate("bleu"))


@pytest.mark.parametrize("value", [1j, object(), {1, 2}, "x", np.array("x"), [1.0]], ids=lambda value: type(value).__name__)
def test_what_is_no_number_is_named(value):
    with pytest.raises(ValueError, match="gave .* for example 0. It gives a number"):
        foreign(lambda prediction, reference: value, name="odd").measure(BATCH)


def test_what_pandas_calls_missing_is_no_value():
    assert foreign(lambda prediction, reference: pd.NA, name="none").measure(BATCH).counts.tolist() == [[0, 0, 0]]*4

"""Every metric as a module of evaluate: with the network off, in combinations, in a suite, by path."""

import os
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("evaluate")

import evaluate
from tiny_judges import save_classifier, save_encoder

from llmops_workbench.evaluators import as_evaluate, corpus_values, module_class, module_script
from llmops_workbench.measures import COSTS, METRICS
from llmops_workbench.metrics import score

PREDICTIONS = ["restart the printer now please", "close the window and the door", '{"a": 1}', ""]
REFERENCES = [["restart the printer now", "restart it now please"], ["close all windows and doors"], ['{"a": 1}'], ["nothing"]]
TEXTUAL = [name for name, m in METRICS.items() if not m.column and not m.model and "sql" not in name and name not in ("json_match", "json_field_f1")]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    texts = [*PREDICTIONS, *(r for rs in REFERENCES for r in rs)]*3
    return {"bertscore_model": str(save_encoder(place/"encoder", "bert", texts)), "perplexity_model": "starter",
            "toxicity_model": str(save_classifier(place/"toxic", texts, ["fine", "toxic"])), "refusal_model": str(save_classifier(place/"refusal", texts, ["answer", "refusal"]))}


@pytest.mark.parametrize("name", TEXTUAL)
def test_a_value_comes_however_it_is_asked(name):
    given = {"predictions": PREDICTIONS, "references": REFERENCES} if METRICS[name].references else {"predictions": PREDICTIONS}
    whole = as_evaluate(name).compute(**given)
    batched, one = as_evaluate(name), as_evaluate(name)
    for part in (slice(0, 3), slice(3, 4)):
        batched.add_batch(**{key: values[part] for key, values in given.items()})
    for i in range(4):
        one.add(**{key.removesuffix("s"): values[i] for key, values in given.items()})
    assert list(whole) == [name] and isinstance(whole[name], float)
    assert batched.compute() == one.compute() == whole
    assert one.compute(**given) == whole, "it can be used again"


@pytest.mark.parametrize("name", ["bleu", "chrf", "rouge", "exact_match", "token_f1", "ter"])
def test_it_is_what_score_says(name):
    values = as_evaluate(name).compute(predictions=PREDICTIONS, references=REFERENCES)
    summary = score(PREDICTIONS, REFERENCES, [name]).summary
    assert values == {key: summary[key] for key in values} and len(values) == (3 if name == "rouge" else 1)
    single = [r[0] for r in REFERENCES]
    assert as_evaluate(name).compute(predictions=PREDICTIONS, references=single) == {key: score(PREDICTIONS, single, [name]).summary[key] for key in values}


@pytest.mark.parametrize("name", [name for name, m in METRICS.items() if m.model])
def test_metrics_with_a_model(name, models):
    given = {"predictions": PREDICTIONS[:2], "references": REFERENCES[:2]} if METRICS[name].references else {"predictions": PREDICTIONS[:2]}
    options = {METRICS[name].model: models[METRICS[name].model]}
    assert as_evaluate(name, **options).compute(**given) == as_evaluate(name).compute(**given, **options)
    with pytest.raises(ValueError, match=f"{METRICS[name].model} is not set"):
        as_evaluate(name).compute(**given)


def test_metrics_of_a_column():
    for name in COSTS:
        assert as_evaluate(name).compute(**{name: [1.0, None, 4.0]}) == {name: 2.5}
    given = dict(predictions=["a", "b"], references=[["a"], ["c", "d"]], confidence=[0.75, 0.5])
    assert as_evaluate("brier").compute(**given) == {"brier": (0.0625 + 0.25)/2}
    assert as_evaluate("calibration_error").compute(**given) == {"calibration_error": (0.25 + 0.5)/2}
    with pytest.raises(ValueError, match="confidence"):
        as_evaluate("brier").compute(predictions=["a"], references=[["a"]])


def test_queries(tmp_path):
    import sqlite3
    with sqlite3.connect(tmp_path/"shop.sqlite") as shop:
        shop.executescript("CREATE TABLE t (a); INSERT INTO t VALUES (1), (2)")
    shop.close()
    module = as_evaluate("sql_match", database=str(tmp_path/"shop.sqlite"))
    assert module.compute(predictions=["SELECT a FROM t", "SELECT 1"], references=["SELECT a FROM t ORDER BY a", "SELECT 2"]) == {"sql_match": 0.5}


def test_a_combination_of_all_that_need_no_model():
    together = evaluate.combine([as_evaluate(name) for name in [*TEXTUAL, *COSTS]])
    costs = {name: [1.0, 2.0, 3.0, 4.0] for name in COSTS}
    found = together.compute(predictions=PREDICTIONS, references=REFERENCES, **costs)
    assert list(found) == [*TEXTUAL, *COSTS] and found["cost"] == 2.5
    for i in range(4):
        together.add(prediction=PREDICTIONS[i], reference=REFERENCES[i], **{name: costs[name][i] for name in COSTS})
    assert together.compute() == found
    assert list(evaluate.combine({"a": as_evaluate("bleu"), "b": as_evaluate("bleu", lowercase=True)}).compute(predictions=["A b c d e"], references=["a b c d e"])) == ["a_bleu", "b_bleu"]


def test_what_it_says_of_itself():
    for name in METRICS:
        module = as_evaluate(name)
        assert module.name == name and METRICS[name].words in module.description and module.module_type == "metric"
    assert "Papineni" in as_evaluate("bleu").citation
    assert issubclass(module_class(), evaluate.Metric) and isinstance(as_evaluate("bleu"), evaluate.EvaluationModule)


def test_slips_are_named():
    with pytest.raises(TypeError, match="Did you mean 'rougeL'"):
        as_evaluate("rougel")
    with pytest.raises(TypeError, match="Did you mean 'use_stemmer'"):
        as_evaluate("rougeL", use_stemer=True)
    with pytest.raises(TypeError, match="Did you mean 'lowercase'"):
        as_evaluate("bleu").compute(predictions=["a"], references=["a"], lowercas=True)
    with pytest.raises(ValueError, match="bleu_tokenize is 'nope'"):
        as_evaluate("bleu", bleu_tokenize="nope")
    with pytest.raises(ValueError, match="Mismatch"):
        as_evaluate("bleu").compute(predictions=["a", "b"], references=["a"])
    with pytest.raises(ValueError, match="No example can be scored"):
        corpus_values("meteor", {"predictions": [None], "references": [["a"]]}, {})


def test_it_leaves_nothing_outside_the_workspace(workspace, tmp_path):
    code = "from llmops_workbench.evaluators import as_evaluate\nas_evaluate('bleu').compute(predictions=['a'], references=['a'])"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "HOME": str(tmp_path), "HF_HOME": str(tmp_path/"hf"), "LLMOPS_WORKSPACE": str(workspace)}, capture_output=True)
    assert not list((tmp_path/"hf").rglob("*.arrow")) and (workspace/"cache"/"evaluate").is_dir()


OFFLINE = """
    import socket, sys, os
    def no(*args, **kwargs): raise AssertionError("the network was asked")
    socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = no
    import evaluate
    from llmops_workbench.evaluators import as_evaluate, module_script
    from llmops_workbench.measures import METRICS
    path = str(module_script())
    for name in METRICS:
        assert evaluate.load(path, name).name == as_evaluate(name).name == name
    given = dict(predictions=["restart the printer now"], references=[["restart the printer now please"]])
    loaded = evaluate.load(path, "bleu", lowercase=True)
    assert loaded.compute(**given) == as_evaluate("bleu", lowercase=True).compute(**given)
    together = evaluate.combine([loaded, evaluate.load(path, "rouge"), evaluate.load(path, "meteor")])
    assert list(together.compute(**given)) == ["bleu", "rouge1", "rouge2", "rougeL", "meteor"]
    try: evaluate.load(path)
    except ValueError as error: assert "No metric was named" in str(error)
    else: raise SystemExit("no error")
    print("all", len(METRICS))
"""


def test_it_loads_by_path_with_the_network_off(tmp_path, workspace):
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(OFFLINE)], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "HF_EVALUATE_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path/"hf"), "LLMOPS_WORKSPACE": str(workspace)})
    assert done.returncode == 0 and done.stdout.split()[-2:] == ["all", str(len(METRICS))], done.stderr[-2000:]


def test_the_script_is_the_same_each_time():
    assert module_script().read_bytes() == module_script().read_bytes() and b"llmops_workbench.evaluators" in module_script().read_bytes()


SUITE = """
import evaluate
from datasets import Dataset
from evaluate.evaluation_suite import SubTask
from llmops_workbench.evaluators import as_evaluate

class Suite(evaluate.EvaluationSuite):
    def __init__(self, name):
        super().__init__(name)
        self.suite = [SubTask(task_type="text-classification", data={folder!r}, split="train", args_for_task={{"metric": metric, "input_column": "text", "label_column": "label"}})
                      for metric in (as_evaluate("exact_match"), evaluate.combine([as_evaluate("exact_match"), as_evaluate("edit_similarity")]))]
"""


def test_an_evaluation_suite_with_a_local_model_and_local_data(tmp_path, monkeypatch):
    "The suite is a script, its model and its data are folders."
    texts = ["the printer is broken", "please help", "a black screen", "thank you all"]*3
    judge = save_classifier(tmp_path/"judge", texts, ["bad", "good"])
    data = tmp_path/"data"
    data.mkdir()
    (data/"train.csv").write_text("text,label\n" + "\n".join(f"{t},{'good' if i % 2 else 'bad'}" for i, t in enumerate(texts)), encoding="utf-8")
    script = tmp_path/"my_suite.py"
    script.write_text(SUITE.format(folder=str(data)), encoding="utf-8")
    found = evaluate.EvaluationSuite.load(str(script)).run(str(judge))
    from llmops_workbench.models import import_transformers
    pipe = import_transformers().pipeline("text-classification", model=str(judge), device="cpu")
    expected = sum(one["label"] == ("good" if i % 2 else "bad") for i, one in enumerate(pipe(texts)))/len(texts)
    assert [one["exact_match"] for one in found] == [expected, expected] and 0 <= found[1]["edit_similarity"] <= 1
    assert 0 < expected < 1

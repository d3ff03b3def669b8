"The compare panel without a browser: what is clicked, what is sent, what is written down, and what hostile names cannot do."
import csv
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import mistune
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmops_workbench import evidence
from llmops_workbench.comparison import Comparison, compare
from llmops_workbench.datasets import read_dataset
from llmops_workbench.errors import ParameterValueError
from llmops_workbench.exports import best_rows, latex_text, markdown_text, paper_table, save_page, to_csv, to_latex, to_markdown, to_page
from llmops_workbench.report import safe_face
from llmops_workbench.store import open_store
from llmops_workbench.widgets.compare import ComparePanel
from llmops_workbench.widgets.curves import Curves, Scatter, curve_points, curves_figure, scatter_figure, smooth
from llmops_workbench.widgets.leaderboard import leaderboard, leaderboard_html, rank_ranges
from llmops_workbench.widgets.panel import Live
from llmops_workbench.widgets.parallel import Parallel, make_axes, parallel_figure, systems_within
from llmops_workbench.widgets.runtable import RunTable, group_values, seed_groups
from llmops_workbench.widgets.slices import slices_html
from llmops_workbench.widgets.winloss import WinLoss, examples_dataset, pair_html, send_examples

HOSTILE = "<img src=x onerror=alert(1)> | **b** $x$ \\input{x} `c` [l](javascript:alert(1)) https://evil.example & 100% #1_a"
VALUES = [-1.0, 0.0, 0.25, 0.5, 1.0, float("nan")]
QUICK = settings(deadline=None, max_examples=60)


def answers(n=40, **noise):
    "Systems that repeat the references with a share of the words exchanged."
    rng = np.random.default_rng(5)
    words = "printer toner laptop vpn screen cable restart client monday please room four".split()
    references = [" ".join(rng.choice(words, 7)) for _ in range(n)]
    def one(share, seed):
        r = np.random.default_rng(seed)
        return [" ".join(w if r.random() > share else str(r.choice(words)) for w in text.split()) for text in references]
    frame = pd.DataFrame({"id": [f"t{k}" for k in range(n)], "task": "", "input": [f"ticket {k} {HOSTILE if k == 0 else ''}" for k in range(n)], "references": [[r] for r in references]})
    return {name: frame.assign(prediction=one(share, seed), latency_s=0.2 + seed) for seed, (name, share) in enumerate(noise.items())}


def compared(systems=None, **options):
    systems = systems or answers(base=0.6, tuned=0.3, other=0.35)
    return compare(systems, metrics=["rougeL", "exact_match"], n_resamples=150, **options)


@pytest.fixture(scope="module")
def result():
    return compared()


def parameters(systems, n=3):
    return pd.DataFrame([(s, f"option_{k}", k) for s in systems for k in range(n)] + [(s, "lr", 10.0**-at) for at, s in enumerate(systems, 2)], columns=["system", "name", "value"])


class Tags(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(html)
    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
    def handle_data(self, data): self.text += data


def harmless(html):
    "No tag of its own from a name, and nothing that acts."
    page = Tags(html)
    assert not {"img", "script", "iframe", "a"} & set(page.tags) and not [name for name, _ in page.attributes if name.startswith("on")]
    return page.text


# What is written down

def cells_of(markdown):
    "Rows of the table as a real parser of Markdown reads them, cells as text; and whether anything but text, strong and a table came of it."
    tree = mistune.create_markdown(renderer="ast", plugins=["table", "url", "strikethrough"])(markdown)
    kinds = set()
    def text(node):
        kinds.add(node["type"])
        return node.get("raw", "") + "".join(map(text, node.get("children", [])))
    table = next(node for node in tree if node["type"] == "table")
    head, body = table["children"]
    rows = [[text(cell) for cell in head["children"]], *([text(cell) for cell in row["children"]] for row in body["children"])]
    return rows, kinds


def test_markdown_comes_back_from_a_parser_with_every_number(result):
    rows, kinds = cells_of(to_markdown(paper_table(result.frame)))
    assert rows[0] == ["system", "rougeL ↑", "exact_match ↑", "latency_s ↓"] and [row[0] for row in rows[1:]] == ["base (baseline)", "tuned", "other"]
    for row in result.frame.itertuples():
        cell = rows[1 + result.summary["systems"].index(row.system)][1 + ["rougeL", "exact_match", "latency_s"].index(row.metric)]
        assert float(re.match(r"[\d.]+", cell)[0]) == pytest.approx(row.value, abs=5e-4 if row.metric != "latency_s" else 5e-3)
        assert ("▲" in cell) == (row.verdict == "better") and ("▼" in cell) == (row.verdict == "worse")
    assert kinds <= {"table", "table_cell", "text", "strong"}


def test_a_hostile_name_stays_in_its_cell(result):
    frame = result.frame.assign(system=result.frame["system"].replace("tuned", HOSTILE), task=HOSTILE)
    rows, kinds = cells_of(to_markdown(paper_table(frame)))
    assert {len(row) for row in rows} == {4} and kinds <= {"table", "table_cell", "text", "strong"}
    assert rows[2][0] == HOSTILE
    assert 'class="x"' not in mistune.html(to_markdown(paper_table(frame))) and "<img" not in mistune.html(to_markdown(paper_table(frame)))


@QUICK
@given(st.text(alphabet=st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), max_size=40))
def test_any_name_is_text_to_markdown_and_to_latex(name):
    rows, kinds = cells_of(f"| a | b |\n| --- | --- |\n| x{markdown_text(name)}x | 1 |\n")
    assert len(rows) == 2 and rows[1][1] == "1" and kinds <= {"table", "table_cell", "text"}
    assert sound(latex_text(name))


def sound(text):
    "Nothing in it means anything to LaTeX but escapes that are known, and braces close."
    rest = re.sub(r"\\(textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar|textasciigrave)\{\}|\\[{}$&#_%]|\{[\[\]*]\}|\$\^\{[+-]\}\$|\$\\(uparrow|downarrow|bullet|approx)\$", "", text)
    return not re.search(r"[\\{}$&#_%~^\[\]*]", rest)


@pytest.mark.parametrize("intervals", ["brackets", "pm", "none"])
def test_latex_is_sound_and_tells_every_value(result, intervals):
    frame = result.frame.assign(system=result.frame["system"].replace("tuned", HOSTILE))
    written = to_latex(paper_table(frame), caption=HOSTILE, intervals=intervals)
    body = written[written.index(r"\midrule") + 8:written.index(r"\bottomrule")].strip().splitlines()
    assert len(body) == 3 and all(line.endswith(r" \\") for line in body)
    for line in body:
        name, *cells = re.split(r"(?<!\\)&", line.removesuffix(r"\\"))
        assert len(cells) == 3 and sound(name.replace("(baseline)", ""))
        for cell in cells: assert re.fullmatch(r"\s*\$(\\mathbf\{[\d.]+\}|[\d.]+)(\^\{[+-]\})?( \\pm [\d.]+)?\$( \{\\footnotesize \$\[[\d.]+, [\d.]+\]\$\})?\s*", cell), cell
    assert sum(r"\mathbf" in line for line in body) >= 1 and sound(re.search(r"\\caption\{(.*)\}\n", written)[1])
    with pytest.raises(ParameterValueError, match="label"): to_latex(paper_table(frame), label="a}b")


def test_csv_is_read_back_whole_and_runs_no_formula(result):
    frame = result.frame.assign(system=result.frame["system"].replace({"tuned": "=HYPERLINK(1)", "other": 'a,"b"\n<c>'}))
    rows = list(csv.DictReader(io.StringIO(to_csv(paper_table(frame)))))
    assert [row["system"] for row in rows] == ["base", "'=HYPERLINK(1)", 'a,"b"\n<c>']
    expected = result.frame[result.frame["metric"] == "rougeL"]
    assert [float(row["rougeL"]) for row in rows] == pytest.approx(expected["value"].tolist(), abs=1e-12) and [row["rougeL verdict"] for row in rows] == expected["verdict"].tolist()


def test_the_page_has_no_script_asks_for_nothing_and_tells_all(result, workspace):
    hostile = compared({HOSTILE if name == "tuned" else name: frame for name, frame in answers(base=0.6, tuned=0.3).items()})
    path = save_page(to_page(ComparePanel(systems={"base": 1, "x": 1}).static_parts(hostile), HOSTILE), "../../etc/<x>")
    assert path.is_relative_to(workspace) and path.parent.name == "reports"
    page = Tags(path.read_text(encoding="utf-8"))
    assert "script" not in page.tags and "a" not in page.tags
    addresses = [value for name, value in page.attributes if name in ("src", "href")]
    assert addresses and all(value.startswith("data:image/") for value in addresses) and not [name for name, _ in page.attributes if name.startswith("on")]
    assert f"{hostile.frame['value'].iloc[0]:.3f}" in page.text and "won / tied / lost" in page.text


@QUICK
@given(st.lists(st.sampled_from(VALUES), max_size=8), st.sampled_from(["rougeL", "ter", "latency_s", "length_ratio"]))
def test_the_best_value_is_the_best_by_hand(values, metric):
    found = best_rows(pd.DataFrame({"task": "", "metric": metric, "value": np.array(values, float)}))
    known = [value for value in values if value == value]
    best = (min if metric in ("ter", "latency_s") else max)(known) if len(known) > 1 and len(set(known)) > 1 and metric != "length_ratio" else None
    assert found.tolist() == [value == best for value in values]


# Ranks, fronts, trends

@QUICK
@given(st.lists(st.tuples(st.sampled_from(VALUES), st.sampled_from([0.0, 0.1, 0.6])), max_size=7), st.booleans())
def test_ranks_are_those_that_counting_gives(points, up):
    low, high = [v - w for v, w in points], [v + w for v, w in points]
    first, last = rank_ranges(low, high, up)
    for at in range(len(points)):
        above = sum(1 for j in range(len(points)) if (low[j] > high[at] if up else high[j] < low[at]))
        below = sum(1 for j in range(len(points)) if (high[j] < low[at] if up else low[j] > high[at]))
        assert (first[at], last[at]) == (above + 1, len(points) - below)


@QUICK
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.floats(0.05, 0.98))
def test_the_exponential_trend_is_that_of_pandas(values, weight):
    assert smooth(values, weight) == pytest.approx(pd.Series(values).ewm(alpha=1 - weight, adjust=True).mean().tolist(), abs=1e-9)


def test_a_trend_passes_over_gaps_and_refuses_what_is_no_weight():
    values = [1.0, float("nan"), 3.0, 5.0]
    assert smooth(values, 0.5)[[0, 2, 3]] == pytest.approx(smooth([1.0, 3.0, 5.0], 0.5)) and np.isnan(smooth(values, 0.5)[1])
    assert smooth([], 0.5).tolist() == [] and smooth(values, 0.5, "none")[3] == 5
    with pytest.raises(ParameterValueError, match="weight"): smooth(values, 1.0)


def test_curves_over_another_metric_and_in_groups():
    curves = pd.concat([pd.DataFrame({"system": s, "metric": m, "step": range(4), "value": [f*(k + 1) for k in range(4)]}) for s in ("a", "b") for m, f in (("loss", 1 if s == "a" else 3), ("tokens", 10))])
    assert curve_points(curves, "loss", "tokens").query("system == 'a'")[["x", "value"]].values.tolist() == [[10, 1], [20, 2], [30, 3], [40, 4]]
    band = curves_figure(curves, "loss", kind="none", members={"a": "g", "b": "g"})
    assert [list(trace.y) for trace in band.data] == [[1, 2, 3, 4], [3, 6, 9, 12], [2, 4, 6, 8]] and band.data[1].fill == "tonexty"
    with_nothing = curves_figure(curves.assign(value=float("nan")), "loss")
    assert len(with_nothing.data) == 0


# Tables

def test_only_the_rows_on_the_screen_travel():
    systems = [f"run {k}" for k in range(20)]
    table = RunTable(pd.DataFrame(columns=["system", "task", "metric", "value", "low", "high", "delta", "delta_low", "delta_high", "verdict"]),
                     pd.DataFrame([(s, f"p{k}", f"{s} {k}") for s in systems for k in range(500)] + [(s, f"same{k}", 1) for s in systems for k in range(100)], columns=["system", "name", "value"]), "run 0")
    assert len(table.shown) == 60 and table.markup.html.count("<tr>") == 61 and "60 of 500 rows shown, of 600" in table.markup.html and len(table.markup.html) < 400_000
    table.handle("search", "", "same")
    assert not table.shown and "Nothing has that name" in table.markup.html
    table.handle("all", "", True)
    assert len(table.shown) == 60
    table.handle("search", "", "p499")
    assert [row.name for row in table.shown] == ["p499"]


def test_the_baseline_stands_first_and_is_asked_for_by_place(result):
    asked = []
    names = {"tuned": HOSTILE}
    frame = result.frame.assign(system=result.frame["system"].replace(names))
    table = RunTable(frame, parameters(["base", HOSTILE, "other"]), "other", asked.append, asked.append)
    assert table.systems == ["other", "base", HOSTILE] and [row.name for row in table.shown][-1] == "lr"
    assert HOSTILE.split(" |")[0] in harmless(table.markup.html)
    table.handle("baseline", "2")
    table.handle("exclude", "1", False)
    assert asked == [HOSTILE, ["base"]]
    table.show(frame[frame["system"] != HOSTILE], parameters(["base", "other"]), "other", [HOSTILE])
    table.handle("include", "0")
    assert asked[-1] == []


def test_no_row_is_left_from_what_was_shown_before(result):
    params = pd.DataFrame([(s, name, value) for s, seed, lr in zip(("base", "tuned", "other"), (0, 1, 2), (1e-3, 1e-3, 1e-4)) for name, value in (("seed", seed), ("lr", lr))], columns=["system", "name", "value"])
    changed = params.assign(value=[7 if name == "seed" else value for name, value in zip(params["name"], params["value"])])
    table = RunTable(result.frame, params, "base")
    def shown(frame, given, baseline, excluded=(), grouped=False):
        "What the table says, and what one that has never shown anything else says."
        left = frame[~frame["system"].isin(excluded)]
        fresh = RunTable(left, given, baseline)
        fresh.show(left, given, baseline, excluded)
        table.show(left, given, baseline, excluded)
        for each in (table, fresh): each.handle("group", "", grouped)
        assert table.markup.html == fresh.markup.html and table.systems[0] == baseline
        return {row.name: row.odd for row in table.shown if row.kind == "parameter"}
    assert shown(result.frame, params, "base") == {"seed": {"tuned", "other"}, "lr": {"other"}}
    assert shown(result.frame, params, "other") == {"seed": {"base", "tuned"}, "lr": {"base", "tuned"}}
    assert shown(result.frame, params, "base", grouped=True) == {"seed": {"other"}, "lr": {"other"}}
    assert shown(result.frame, params, "base", ["tuned"]) == {"seed": {"other"}, "lr": {"other"}}
    assert shown(result.frame, params, "base", ["other"]) == {"seed": {"tuned"}}
    assert shown(result.frame, changed, "base") == {"lr": {"other"}}
    assert shown(result.frame, changed, "other") == {"lr": {"base", "tuned"}}


def test_a_table_that_was_grouped_is_a_table_again_when_nothing_is_alike(result):
    params = pd.DataFrame([(s, name, value) for s, seed, lr in zip(("base", "tuned", "other"), (0, 1, 2), (1e-3, 1e-3, 1e-4)) for name, value in (("seed", seed), ("lr", lr))], columns=["system", "name", "value"])
    table = RunTable(result.frame, params, "base", str, str)
    table.handle("group", "", True)
    assert table.systems == ["base", "other"] and "make baseline" not in table.markup.html
    table.show(result.frame[result.frame["system"] != "tuned"], params, "base", ["tuned"])
    assert "group by seed" not in table.markup.html and "make baseline" in table.markup.html and "±" not in table.markup.html
    table.show(result.frame, params, "base")
    assert table.systems == ["base", "other"] and "group by seed" in table.markup.html


def test_numbers_that_differ_are_not_said_to_be_alike(result):
    params = pd.DataFrame([(s, "seed", at) for at, s in enumerate(("base", "tuned"))] + [("base", "scale", 1234567.0), ("tuned", "scale", 1234568.0)], columns=["system", "name", "value"])
    table = RunTable(result.frame[result.frame["system"] != "other"], params, "base")
    assert {row.name: row.texts for row in table.shown}["scale"] == {"base": "1234567.0", "tuned": "1234568.0"} and not table.members


def test_runs_of_one_configuration_are_one_with_their_spread():
    values = [0.5, 0.7, 0.9, 0.2]
    frame = pd.DataFrame({"system": list("abcd"), "task": "", "metric": "rougeL", "value": values})
    params = pd.DataFrame([(s, name, value) for s, seed, lr in zip("abcd", (1, 2, 3, 1), (1, 1, 1, 2)) for name, value in (("train.seed", seed), ("lr", lr))], columns=["system", "name", "value"])
    members = seed_groups(params, list("abcd"))
    assert members == {"a": "a", "b": "a", "c": "a", "d": "d"}
    first = group_values(frame, members).iloc[0]
    assert (first["n_runs"], first["mean"], first["std"]) == (3, pytest.approx(np.mean(values[:3])), pytest.approx(np.std(values[:3], ddof=1)))
    assert seed_groups(params[:0], ["a", "b"]) == {"a": "a", "b": "b"}
    # No two runs may lie in one folder.
    assert seed_groups(pd.concat([params, pd.DataFrame([(s, "output_dir", f"models/{s}") for s in "abcd"], columns=params.columns)]), list("abcd")) == members


def test_axes_and_brushes(result):
    axes = make_axes(result.frame, parameters(["base", "tuned", "other"]))
    assert [axis.name for axis in axes] == ["lr", "rougeL ↑", "exact_match ↑", "latency_s ↓"][:len(axes)] and axes[0].kind == "log"
    assert [axes[0].places[name] for name in ("base", "tuned", "other")] == pytest.approx([1, 0.5, 0])
    assert systems_within(axes, {"lr": [0.4, 1.0], "rougeL ↑": [0.9, 1.0]}) == ["tuned"]
    assert "<img" not in parallel_figure(make_axes(result.frame.assign(system=HOSTILE + result.frame["system"]), parameters([HOSTILE + "base", HOSTILE + "tuned"]))).to_json().replace("\\u003c", "<").replace("&lt;img", "")


def test_numbers_kept_as_text_are_drawn_as_numbers(result):
    "Runs keep what they were made with as text, and 8 comes before 16."
    params = pd.DataFrame([(s, name, value) for s, rate, size, seed in (("base", "1e-05", "16", None), ("tuned", "0.001", "8", "2"), ("other", "0.0001", "32", "1")) for name, value in (("rate", rate), ("size", size), ("seed", seed)) if value is not None], columns=["system", "name", "value"])
    rate, size, seed, *_ = make_axes(result.frame, params)
    assert (rate.kind, size.kind, seed.kind) == ("log", "number", "number")
    assert [rate.places[s] for s in ("base", "other", "tuned")] == pytest.approx([0, 0.5, 1]) and [size.places[s] for s in ("tuned", "base", "other")] == pytest.approx([0, 1/3, 1])
    assert [text for _, text in size.ticks] == ["8", "20", "32"] and [text for _, text in make_axes(result.frame, params.assign(value=params["value"].replace("32", "32768")))[1].ticks][-1] == "32768"
    told = {line["name"]: line["texts"][:3] for line in Parallel([rate, size, seed], "base").widget.picture["lines"]}
    assert told == {"base": ["1e-05", "16", "not set"], "tuned": ["0.001", "8", "2"], "other": ["0.0001", "32", "1"]}
    assert make_axes(result.frame, params.assign(value=params["value"].replace("8", "auto")))[1].kind == "category"


def test_a_still_line_does_not_pass_a_value_that_a_system_lacks(result):
    params = pd.DataFrame([(s, name, value) for s, values in {"base": ("a", None, "x"), "tuned": ("a", "0.1", "x"), "other": ("b", "0.2", "y")}.items() for name, value in zip(("model", "rate", "data"), values) if value], columns=["system", "name", "value"])
    axes = make_axes(result.frame, params)
    figure = parallel_figure(axes, "base")
    line = next(trace for trace in figure.data if trace.name == "base")
    at = [axis.name for axis in axes].index("rate")
    assert list(line.x) == list(range(len(axes))) and figure.layout.yaxis.range[0] < line.y[at] < 0
    assert [(int(note.x), note.y, note.yanchor) for note in figure.layout.annotations if note.text == "not set"] == [(at, line.y[at], "top")]


def test_a_system_has_one_colour_in_all_charts():
    names = ["asked", "tuned", "other"]
    curves = pd.DataFrame([(system, "loss", step, 1.0 + step) for system in names[1:] for step in range(3)], columns=["system", "metric", "step", "value"])
    frame = pd.DataFrame([(system, "", "rougeL", at/10) for at, system in enumerate(names)], columns=["system", "task", "metric", "value"])
    lines = {line["name"]: line["colour"] for line in Parallel(make_axes(frame, parameters(names)), "asked").widget.picture["lines"]}
    drawn = {trace["name"]: trace["line"]["color"] for trace in Curves(curves, {name: name for name in names}, "asked").chart.figure["data"] if trace.get("name")}
    assert drawn == {name: lines[name] for name in names[1:]}
    alike = curves_figure(curves, "loss", members={"asked": "asked", "tuned": "asked", "other": "other"})
    assert [trace.name for trace in alike.data if trace.name] == ["asked", "other"]  # one of the two runs has a curve
    compared_ = compared(answers(asked=0.6, tuned=0.3, other=0.35))
    for figure in (compared_.figure("differences"), compared_.figure("examples:")):
        assert {trace.name.partition(" (")[0]: trace.marker.color for trace in figure.data} == drawn


def test_no_bar_holds_losses_and_gains():
    figure = compared().figure("examples:")
    # The line between them is seen on white and on black.
    assert figure.layout.template.layout.shapedefaults.line.color == "#888888" and not figure.layout.shapes[0].line.color
    for trace in figure.data: assert np.abs(trace.x).min() == pytest.approx((trace.x[1] - trace.x[0])/2)


def test_hostile_names_are_text_everywhere(result):
    frame = result.frame.assign(system=HOSTILE + result.frame["system"], task=HOSTILE)
    assert HOSTILE.split(" |")[0] in harmless(leaderboard_html(leaderboard(frame)))
    slices = pd.DataFrame([dict(system=HOSTILE, task=HOSTILE, metric=HOSTILE, rule=HOSTILE, n=4, value=0.1, rest_value=0.2, delta=-0.1, low=-0.2, high=0.0, p_adjusted=0.5, verdict="not distinguishable at n = 4")])
    assert HOSTILE.split(" |")[0] in harmless(slices_html(slices, [HOSTILE]))
    # A button that says no more than "examples" is told from its neighbours by what is read out.
    assert ("aria-label", f"Read the examples of {HOSTILE} where {HOSTILE}") in Tags(slices_html(slices, [HOSTILE])).attributes
    turned = pair_html(result.examples.iloc[0].to_dict() | {"prediction": "safe \u202egnp.exe", "system": "a\u2066b"}, "base")
    assert not {"\u202e", "\u2066"} & set(turned) and "⟦U+202E⟧" in turned and "⟦U+2066⟧" in turned
    row = result.examples.iloc[0].to_dict() | {"prediction": HOSTILE, "baseline_prediction": HOSTILE + "x", "input": HOSTILE, "references": [HOSTILE], "system": HOSTILE}
    for against in ("baseline", "reference", "before"): assert HOSTILE.split(" |")[0] in harmless(pair_html(row, HOSTILE, against))
    assert "<img" not in scatter_figure(frame, (HOSTILE, "latency_s"), (HOSTILE, "rougeL")).update_traces(customdata=None).to_json().replace("\\u003c", "<")


def test_what_only_another_stage_has_is_no_difference(result):
    tuned = {"stage": "finetune", "lora_r": "8", "seed": "0"}
    made = {"base": {"stage": "run_grid", "temperature": "0", "seed": "0"}, "tuned": {**tuned, "learning_rate": "0.001", "max_steps": "9"}, "other": {**tuned, "learning_rate": "0.003"}}
    params = pd.DataFrame([(system, name, value) for system, own in made.items() for name, value in own.items()], columns=["system", "name", "value"])
    table = RunTable(result.frame, params, "base")
    told = {row.name: row.texts for row in table.shown if row.kind == "parameter"}
    assert set(told) == {"stage", "learning_rate", "max_steps"} == {axis.name for axis in make_axes(result.frame, params) if not axis.metric}
    assert told["learning_rate"]["base"] == "–" and "other" not in told["max_steps"] and table.markup.html.count("not set") == 1
    # The same of systems of which nobody knows the stage: whatever is missing tells them apart.
    assert {row.name for row in RunTable(result.frame, params[params["name"] != "stage"], "base").shown} >= {"lora_r", "temperature", "max_steps"}


def test_a_figure_that_one_system_has_puts_nobody_in_order(result):
    frame = result.frame[(result.frame["metric"] != "latency_s") | (result.frame["system"] == "base")]
    assert "latency_s" in leaderboard_html(leaderboard(result.frame)) and "latency_s" not in leaderboard_html(leaderboard(frame))
    assert [axis.name for axis in make_axes(frame, pd.DataFrame(columns=["system", "name", "value"]))] == ["rougeL ↑", "exact_match ↑"]
    assert Scatter(result.frame).x.value == ("", "latency_s") and Scatter(frame).x.value == ("", "exact_match")
    assert RunTable(frame, pd.DataFrame(columns=["system", "name", "value"]), "base").markup.html.count("latency_s") == 1


def test_curves_begin_with_the_loss():
    curves = pd.DataFrame([("a", metric, step, 1.0) for metric in ("eval_exact", "learning_rate", "loss") for step in range(3)], columns=["system", "metric", "step", "value"])
    assert Curves(curves).metric.value == "loss" and Curves(curves[curves["metric"] != "loss"]).metric.value == "eval_exact"


# Wins and losses

def test_what_is_clicked_is_what_is_picked(result):
    heard = []
    ids = result.examples["id"].unique()[:5].tolist()
    found = WinLoss(result.examples, "base", {"the first": ids}, heard.append)
    for outcome, sign in (("worse", -1), ("better", 1), ("same", 0)):
        found.buttons[outcome].value = True
        assert np.sign(found.picked()["delta"].round(9)).unique().tolist() in ([sign], [])
        assert [name for name, button in found.buttons.items() if button.value] == [outcome]
    found.buttons["better"].value = True
    shown = [float(found.rows.frame.loc[found.rows.frame["key"] == key, "delta"].iloc[0]) for key in found.rows.table.page["keys"]]
    assert shown == sorted(shown, reverse=True) and shown[0] == result.examples["delta"].max()
    found.buttons["all"].value = True
    found.system.value, found.slice.value = "tuned", "the first"
    assert set(found.picked()["id"]) == set(ids) and set(found.picked()["system"]) == {"tuned"} and heard[-1] == found.selection
    found.rows.handle({"type": "undo"})
    assert len(found.picked()) == 40
    found.rows.table.ticked = ["3"]
    assert found.selection == [result.examples["id"][3]] and read_dataset(found.keep("one")).frame["example"].tolist() == found.selection


def test_kept_examples_start_other_workflows(result, workspace, tmp_path):
    reference = examples_dataset(result.examples, "all-of-it")
    frame = read_dataset(reference).frame
    assert len(frame) == len(result.examples) and frame["id"].is_unique and {"text", "reference", "baseline_answer", "answer"} <= set(frame)
    for workflow in ("explore", "feedback", "prompt"):
        notebook = send_examples(workflow, reference, HOSTILE, tmp_path)
        text = notebook.read_text(encoding="utf-8")
        assert reference in text and notebook.name.startswith(workflow)
    from llmops_workbench.labeling import label
    queue = label(dataset=reference, kind="preference", output_column="baseline_answer", other_column="answer", queue="q", n_rows=0)
    assert len(queue.frame) == len(frame)


# The panel

SCORED, RUNS = [], []


def dress(found):
    "A comparison of runs of a sweep, with what they were made with and how their training went."
    for at, name in enumerate(found.summary["systems"], 2):
        curve = pd.DataFrame({"metric": "loss", "step": range(20), "value": np.linspace(2, 1, 20)})
        found.question.found[name] = replace(found.question.found[name], params={"option_0": "0", "option_1": "1", "lr": f"{10.0**-at:g}"}, curves=lambda curve=curve: curve)
    return found


def dressed(
    systems: dict = {},                    # Systems  # noqa: B006
    baseline: str | None = None,           # The baseline
    metrics: list[str] | None = None,      # Metrics
    rule: str | None = None,               # A slice
) -> Comparison:
    "The stage on systems of a sweep."
    RUNS.append(baseline)
    return dress(compare(systems, baseline=baseline, metrics=metrics or ["rougeL", "exact_match"], rule=rule, n_resamples=150))


def with_a_weakness(name="other"):
    "Answers to two categories of tickets; one system cannot do the second."
    found = answers(n=80, base=0.6, tuned=0.3, other=0.35)
    category = ["network" if k % 4 == 0 else "printer" for k in range(80)]
    found = {system: frame.assign(category=category) for system, frame in found.items()}
    found[name] = found[name].assign(prediction=["nothing at all" if c == "network" else p for c, p in zip(category, found[name]["prediction"])])
    return found


class DressedPanel(ComparePanel):
    stage, first_fields = dressed, ("systems",)


@pytest.fixture
def panel(monkeypatch):
    monkeypatch.setenv("LLMOPS_LIVE", "0")
    RUNS.clear()
    SCORED.clear()
    monkeypatch.setattr(evidence, "score", lambda *given, scoring=evidence.score, **more: SCORED.append(given[2]) or scoring(*given, **more))
    made = DressedPanel(systems=with_a_weakness())
    made.run()
    made.live = Live(made)
    made.live.show(made.result)
    yield made
    made.close()


def test_another_baseline_fewer_systems_and_a_slice_score_nothing_again(panel):
    view = panel.live.kept["view"]
    view.parts["table"].handle("baseline", "1")
    assert panel.result.summary["baseline"] == panel.params["baseline"] == view.baseline.value == "tuned"
    view.parts["table"].handle("exclude", "2", False)
    assert panel.result.summary["systems"] == list(panel.params["systems"]) == ["base", "tuned"]
    view.slice.value = "category is network"
    assert panel.result.summary["n_examples"] == 20 and panel.rule == panel.params["rule"] == "category is network"
    # What is on the screen is what the frozen parameters give.
    again = panel.function(**panel.params)
    pd.testing.assert_frame_equal(again.frame, panel.result.frame)
    assert len(SCORED) == 5 and RUNS.pop() == "tuned"
    view.slice.value = ""
    view.parts["table"].handle("include", "0")
    assert set(panel.params["systems"]) == set(panel.result.summary["systems"]) == {"base", "tuned", "other"}
    assert RUNS == [None] and len(SCORED) == 5 and panel.rule is None


def test_a_run_on_a_slice_can_go_back_to_all_examples(panel):
    made = DressedPanel(systems=with_a_weakness(), rule="category is network")
    made.run()
    assert made.result.summary["n_examples"] == 20 and made.whole.summary["n_examples"] == 80
    made.change(rule=None)
    assert made.result.summary["n_examples"] == 80 and made.params["rule"] is None


def test_signatures_are_on_the_screen_and_only_possible_metrics_are_offered(panel):
    view = panel.live.kept["view"]
    assert {"bleu", "distinct"} <= set(view.metrics.options) and not {"perplexity", "brier", "bertscore", "latency_s"} & set(view.metrics.options)
    view.parts["folded"].selected_index = 2
    shown = view.parts["folded"].children[2].children[0].value
    assert all(signature in shown for signature in panel.result.signatures.values()) and "tok:a-z0-9" in shown


def test_a_metric_that_was_not_measured_runs_the_stage(panel):
    panel.live.kept["view"].metrics.value = ("bleu",)
    panel.wait(60)
    assert RUNS == [None, "base"] and panel.params["metrics"] == ["bleu"] and not panel.error


def test_tabs_are_drawn_when_opened_and_lead_to_each_other(panel):
    view = panel.live.kept["view"]
    assert set(view.parts) == {"table", "folded"}
    for title in ("Examples", "Runs", "Slices", "Export"): view.open(title)
    assert set(view.parts) == {"table", "folded", "examples", "parallel", "only", "curves", "scatter", "slices", "export"}
    view.parts["slices"]._handle_custom_msg({"act": "slice", "value": "0"}, [])
    found = view.parts["examples"]
    assert view.tabs.selected_index == 1 and set(found.picked()["system"]) == {"other"} and len(found.picked()) == len(panel.selection) == 20
    view.parts["scatter"].chart._handle_custom_msg({"kind": "click", "points": [{"customdata": "tuned"}]}, [])
    assert found.system.value == "tuned"
    view.open("Runs")
    parallel = view.parts["parallel"]
    parallel.widget.brushes = {"lr": [0.4, 0.6]}
    assert parallel.chosen == ["tuned"]
    view.parts["only"].click()
    assert panel.result.summary["systems"] == ["base", "tuned"] and view.tabs.selected_index == 2


def test_runs_of_both_kinds_are_offered_the_latest_first(result, workspace):
    store, panel = open_store(), ComparePanel()
    panel.controls()
    panel.offer_runs()
    assert [value for _, value in panel.runs.options] == [""]
    logged = [result.log(store, stage=stage) for stage in ("run_grid", "finetune", "profile", "run_grid")]
    panel.offer_runs()
    assert [value for _, value in panel.runs.options] == [logged[3], logged[1], logged[0]]
    assert ["fine-tuning" in label for label, _ in panel.runs.options] == [False, True, False]


def test_the_static_face_has_every_part_and_nothing_that_acts(panel):
    html = panel.static_html()
    assert safe_face(html) == html
    text = Tags(html).text
    for part in ("won / tied / lost", "Values, differences to the baseline", "What differs between the systems", "category is network", f"{panel.result.frame['value'].iloc[0]:.3f}"): assert part in text, part
    assert Tags(html).tags.count("img") >= 5 and len(html) < 600_000


def test_a_run_in_code_forgets_what_was_left_out(panel):
    panel.exclude(["other"])
    panel.run(systems=answers(base=0.6, tuned=0.3))
    assert panel.whole is panel.result and panel.result.summary["systems"] == ["base", "tuned"] and panel.rule is None


def test_the_export_follows_what_is_shown(panel):
    view = panel.live.kept["view"]
    view.open("Export")
    export = view.parts["export"]
    assert "other" in export.copies["Markdown"].text
    export.intervals.value = "pm"
    assert r"\pm" in export.copies["LaTeX"].text
    panel.exclude(["other"])
    assert "other" not in export.copies["CSV"].text
    export.button.click()
    assert export.path.text.endswith(".html") and not export.said.value

"""Map, reader and recipe without a browser: what each message does, what is sent back, and that text stays text."""

import errno
import json
from fractions import Fraction
from html.parser import HTMLParser

import ipywidgets
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llmops_workbench import catalogue
from llmops_workbench.catalogue import read_workflow
from llmops_workbench.datasets import read_dataset
from llmops_workbench.display import visible
from llmops_workbench.errors import SourceNotFoundError, UserError, WorkspaceError
from llmops_workbench.prompting import plan_grid
from llmops_workbench.recipes import STEPS, read_steps, run_steps
from llmops_workbench.helpdesk import generate_helpdesk
from llmops_workbench.runner import run_workflow
from llmops_workbench.widgets import map as map_module
from llmops_workbench.widgets.explore import ExplorePanel
from llmops_workbench.widgets.map import TextMap, inside, spread
from llmops_workbench.widgets.panel import Live
from llmops_workbench.widgets.reader import MOST_SHOWN, Reader, chat_html, row_html, side_by_side, spans_html, value_html
from llmops_workbench.widgets.recipe import RecipeEditor, join_entry, split_entry
from llmops_workbench.widgets.rows import Rows

HOSTILE = ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "$\\href{javascript:alert(1)}{x}$", "\" onmouseover='alert(1)'", "</div></pre></span>", "&lt;b&gt; &amp;", "\u202eright\u202c", "pass\u200bword", "\x00\x1b[31m", "👩‍👩‍👧 می‌خواهم",
           "a\r\nb\nc\td", "日本語", "{", "[", "x"]
texts = st.one_of(st.text(max_size=20), st.sampled_from(HOSTILE))
by_chance = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


class Page(HTMLParser):
    "Tags, attributes and text of a piece of HTML, read as a browser reads it."
    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.text, self.open = set(), set(), "", []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.open.append(tag)

    def handle_endtag(self, tag): assert self.open.pop() == tag
    def handle_data(self, data): self.text += data


def harmless(page):
    "The page, if it is whole, runs nothing and shows MathJax nothing."
    found = Page(page)
    assert not found.open and found.tags <= {"div", "span", "small", "b", "i", "pre", "mark", "del", "ins"} and found.attributes <= {"style", "dir", "role"}, page
    bare = page.replace("<span>$</span>", "").replace("<span>\\</span>", "")
    assert "$" not in bare and "\\" not in bare and all(visible(c) == c for c in page if c not in "\u200d\u200c\ufe0f")
    return found


# --- the map: places ------------------------------------------------------------------------------------------------


def python_inside(x, y, corners):
    "By the number of edges above a point, exactly; None on an edge."
    n = 0
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]]):
        if ax == bx:
            if x == ax and min(ay, by) <= y <= max(ay, by): return None
            continue
        height = ay + Fraction(by - ay) * (x - ax) / (bx - ax)
        if height == y and min(ax, bx) <= x <= max(ax, bx): return None
        n += (ax > x) != (bx > x) and height > y
    return n % 2 == 1


whole = st.integers(-6, 6)


@settings(max_examples=200, deadline=None)
@given(corners=st.lists(st.tuples(whole, whole), min_size=1, max_size=9), points=st.lists(st.tuples(st.integers(-50, 50), st.integers(-70, 70)), min_size=1, max_size=30))
def test_a_lasso_takes_what_lies_inside_it(corners, points):
    points = [(Fraction(x, 7), Fraction(y, 11)) for x, y in points]
    found = inside([float(x) for x, _ in points], [float(y) for _, y in points], corners).tolist()
    for (x, y), within in zip(points, found):
        expected = python_inside(x, y, corners)
        assert expected is None or within == expected, (x, y)
    assert not inside([np.nan, 0.5, np.nan], [0.5, np.nan, np.nan], [[-9, -9], [9, -9], [9, 9], [-9, 9]]).any()


@by_chance
@given(values=st.lists(st.one_of(st.floats(-1e9, 1e9).map(lambda value: round(value, 3)), st.just(float("nan")), st.integers(0, 3).map(float)), max_size=30))
def test_places_keep_their_order_and_fit_the_canvas(values):
    found = spread(values)
    for a, place in zip(values, found):
        assert np.isnan(place) == np.isnan(a) and (np.isnan(place) or 0 <= place <= 65_535)
    there = sorted((a, place) for a, place in zip(values, found) if a == a)
    assert all(p <= q and (a != b or p == q) for (a, p), (b, q) in zip(there, there[1:]))
    if there and there[0][0] < there[-1][0]: assert (there[0][1], there[-1][1]) == (0, 65_535)


# --- the map: messages ----------------------------------------------------------------------------------------------


def frame_of(n=40, seed=0, without_place=3):
    "Texts with a place, some without, and columns of each kind."
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=n), rng.normal(size=n)
    x[:without_place] = y[:without_place] = np.nan
    return pd.DataFrame({"id": [f"r{i}" for i in range(n)], "text": [f"text number {i} {HOSTILE[i % len(HOSTILE)]}" for i in range(n)], "topic": rng.choice(["x", "y", "<b>z</b>"], n), "many": [f"v{i % 17}" for i in range(n)],
                         "words": np.arange(n) * 3, "share": rng.random(n), "flag": rng.random(n) > 0.5, "x": x, "y": y})


COLOURS = ["topic", "many", "words", "share", "flag"]


def drawn_map(frame, choices=COLOURS, say=lambda row: row["text"]):
    rows = Rows(frame, ["id", "text", "topic"], lambda row: value_html(row["text"]))
    drawn = TextMap(rows, choices, say)
    drawn.sent = []
    drawn.widget.send = lambda content, buffers=None: drawn.sent.append(content)
    return rows, drawn


def says(widget, **message): widget._handle_custom_msg(message, [])
def places(drawn): return np.frombuffer(drawn.widget.points, "<u2").reshape(-1, 2)
def bits(drawn, name): return np.frombuffer(getattr(drawn.widget, name), "uint8")


def test_what_is_sent_is_four_bytes_a_point_and_one_for_its_colour():
    frame = frame_of()
    rows, drawn = drawn_map(frame)
    assert len(drawn.widget.points) == 4 * 37 and len(drawn.widget.codes) == len(drawn.widget.shown) == 37 and drawn.widget.count == "40 of 40 texts, 37 drawn"
    assert (np.argsort(places(drawn)[:, 0], kind="stable") == np.argsort(frame["x"].dropna().to_numpy(), kind="stable")).all()
    state = drawn.widget.get_state(["points", "codes", "shown", "opened", "count", "colour", "choices", "legend"])
    assert not any(text in json.dumps({name: value for name, value in state.items() if not isinstance(value, bytes)}) for text in frame["text"])


def test_a_filter_sends_the_points_that_stay_and_no_point_again():
    rows, drawn = drawn_map(frame_of())
    changed = []
    drawn.widget.observe(lambda change: changed.append(change["name"]))
    rows.filter("words", {"column": "words", "below": 60})
    assert set(changed) == {"shown", "count"} and bits(drawn, "shown").tolist() == [int(i * 3 < 60) for i in range(3, 40)] and drawn.widget.count.startswith("20 of 40 texts")
    rows.handle({"type": "undo"})
    assert bits(drawn, "shown").all() and rows.view.operations == ()


@by_chance
@given(seed=st.integers(0, 5), corners=st.lists(st.tuples(st.integers(0, 65_535), st.integers(0, 65_535)), min_size=3, max_size=7))
def test_a_lasso_keeps_what_is_drawn_inside(seed, corners):
    frame = frame_of(60, seed)
    rows, drawn = drawn_map(frame)
    x, y = spread(frame["x"]), spread(frame["y"])
    says(drawn.widget, type="lasso", corners=[list(corner) for corner in corners])
    sure = {f"r{i}": python_inside(Fraction(x[i]), Fraction(y[i]), corners) for i in range(3, 60)}
    picked = rows.view.rows()["id"].tolist()
    assert set(picked) <= set(sure) and all(within is None or (name in picked) == within for name, within in sure.items())
    assert [name for name, on in zip(frame["id"][3:], bits(drawn, "shown")) if on] == picked


def test_a_lasso_replaces_the_one_before_and_leaves_other_operations():
    rows, drawn = drawn_map(frame_of())
    everywhere, nowhere = [[-1, -1], [70_000, -1], [70_000, 70_000], [-1, 70_000]], [[-9, -9], [-8, -9], [-8, -8]]
    rows.filter("flag", {"column": "flag", "one_of": [True]})
    flagged = len(rows.view)
    says(drawn.widget, type="lasso", corners=nowhere)
    assert len(rows.view) == 0 and not bits(drawn, "shown").any() and len(rows.view.operations) == 2
    says(drawn.widget, type="lasso", corners=everywhere)
    assert len(rows.view.operations) == 2 and len(rows.view.operations[1]["rows"]) == 37
    says(drawn.widget, type="lasso", corners=None)
    assert rows.view.operations == ({"column": "flag", "one_of": [True]},) and len(rows.view) == flagged
    n_past = len(rows.past)
    says(drawn.widget, type="lasso", corners=None)
    assert len(rows.past) == n_past, "taking back what is not there cannot be undone"
    for _ in range(2): rows.handle({"type": "undo"})
    assert len(rows.view) == 0
    # The operations can be written down as they are.
    assert json.loads(json.dumps(rows.view.operations))[1] == {"rows": []}


@pytest.mark.parametrize("column", COLOURS)
def test_the_legend_counts_and_picks_its_colour(column):
    frame = frame_of(120)
    rows, drawn = drawn_map(frame)
    says(drawn.widget, type="colour", by=column)
    codes, legend = bits(drawn, "codes"), drawn.widget.legend
    assert drawn.widget.colour == column and 2 <= len(legend) <= 12 and sum(n for _, n in legend) == 120 and codes.max() < len(legend)
    for at, (label, n) in enumerate(legend):
        says(drawn.widget, type="legend", at=at)
        assert len(rows.view) == n and bits(drawn, "shown").tolist() == (codes == at).astype(int).tolist() and len(rows.view.operations) == 1, label
    says(drawn.widget, type="colour", by="no such column")
    assert drawn.widget.colour == column


def test_a_legend_is_text_with_nothing_hidden():
    frame = frame_of(30).assign(topic=[HOSTILE[i % 6] + "\u202e" * (i % 2) for i in range(30)])
    _, drawn = drawn_map(frame)
    labels = [label for label, _ in drawn.widget.legend]
    assert len(labels) == 6 and all(visible(label) == label for label in labels) and "<script>alert(1)</script>" in [label.replace("⟦U+202E⟧", "") for label in labels]


@pytest.mark.parametrize("text", HOSTILE)
def test_the_tip_of_a_point_is_sent_as_text(text):
    frame = frame_of(6)
    frame.loc[4, "text"] = text
    _, drawn = drawn_map(frame)
    says(drawn.widget, type="hover", index=1)
    assert drawn.sent == [{"type": "hover", "index": 1, "text": visible(text)}]


def test_a_click_opens_a_row_and_an_opened_row_is_marked():
    frame = frame_of()
    rows, drawn = drawn_map(frame)
    says(drawn.widget, type="open", index=5)
    assert rows.table.opened == "r8" and drawn.widget.opened == 5 and "text number 8 " in Page(rows.reader.value).text
    rows.open("r39")
    assert drawn.widget.opened == 36
    rows.open("r1")  # it has no place
    assert drawn.widget.opened == -1 and rows.reader.value
    says(drawn.widget, type="something else")
    assert rows.table.opened == "r1"


def test_of_too_many_points_some_are_drawn_and_all_are_picked(monkeypatch):
    monkeypatch.setattr(map_module, "MOST_POINTS", 10)
    frame = frame_of(48, without_place=0)
    rows, drawn = drawn_map(frame)
    assert len(places(drawn)) == 10 and drawn.widget.count == "48 of 48 texts, 10 drawn"
    says(drawn.widget, type="open", index=3)
    assert rows.table.opened == "r15" and drawn.widget.opened == 3
    says(drawn.widget, type="lasso", corners=[[-1, -1], [70_000, -1], [70_000, 70_000], [-1, 70_000]])
    assert len(rows.view) == 48
    says(drawn.widget, type="legend", at=0)
    assert bits(drawn, "shown").tolist() == rows.view.mask[::5].astype(int).tolist()


def test_another_frame_takes_the_place_of_the_first():
    rows, drawn = drawn_map(frame_of())
    says(drawn.widget, type="colour", by="flag")
    for other, drawn_now in ((frame_of(50, 3, 0), 50), (frame_of(60, 1, 60), 0)):
        rows.show(other)
        drawn.show(["topic", "flag"])
        assert len(places(drawn)) == len(bits(drawn, "codes")) == len(bits(drawn, "shown")) == drawn_now and drawn.widget.colour == "flag"
    drawn.show(["topic"])
    assert drawn.widget.colour == "topic" and drawn.widget.choices == ["topic"]


@pytest.mark.parametrize("n", [20, 80])
def test_a_map_follows_the_table_to_another_frame(n):
    "Fewer rows or more: nobody has to tell it, and none of the old points is left."
    rows, drawn = drawn_map(frame_of(40))
    says(drawn.widget, type="colour", by="flag")
    rows.filter("flag", {"column": "flag", "one_of": [True]})
    frame = frame_of(n, 5, 2)
    rows.show(frame)
    assert len(places(drawn)) == len(bits(drawn, "codes")) == n - 2 and bits(drawn, "shown").tolist() == frame["flag"][2:].astype(int).tolist() and drawn.widget.colour == "flag"
    says(drawn.widget, type="open", index=0)
    assert rows.table.opened == "r2"
    rows.show(frame[["id", "text", "topic"]])
    assert not len(places(drawn)) and drawn.widget.choices == ["topic"]
    rows.show(frame[["id", "text"]].assign(topic="x").rename(columns={"topic": "other"}), ["id", "text"])
    assert not len(places(drawn)) and drawn.widget.choices == ["id"]


def test_a_point_has_both_a_place_across_and_one_up():
    frame = frame_of(40).astype({"x": "Float64"})
    frame.loc[[5, 6, 7], "y"] = [np.nan, np.inf, -np.inf]
    frame.loc[8, "x"] = None
    rows, drawn = drawn_map(frame)
    whole = drawn_map(frame_of(40).drop(index=[5, 6, 7, 8]).reset_index(drop=True))[1]
    assert (places(drawn) == places(whole)).all() and len(places(drawn)) == 33
    says(drawn.widget, type="lasso", corners=[[-1, -1], [70_000, -1], [70_000, 70_000], [-1, 70_000]])
    assert len(rows.view) == 33 and not {"r5", "r6", "r7", "r8"} & set(rows.view.rows()["id"])


# --- the reader: what a cell looks like -----------------------------------------------------------------------------


@by_chance
@given(text=texts)
def test_a_text_is_shown_as_it_is(text):
    if text.lstrip()[:1] in ("{", "["): text = "x" + text
    for page in (value_html(text), value_html(text, ["word", "(", text.strip() or "x"])):
        assert harmless(page).text == visible(text)
    harmless(value_html(text, personal=True))


@by_chance
@given(said=st.lists(texts, min_size=1, max_size=4))
@example(said=HOSTILE)
def test_a_chat_is_shown_turn_by_turn(said):
    roles = ["user", "assistant", "<b>narrator</b>", "system"]
    turns = [{"role": roles[at % 4], "content": text} for at, text in enumerate(said)]
    for page in (chat_html(turns), value_html(json.dumps(turns)), value_html(json.dumps({"messages": turns}))):
        assert harmless(page).text == "".join(visible(turn["role"]) + visible(turn["content"]) for turn in turns)


@by_chance
@given(value=st.dictionaries(texts, st.one_of(texts, st.integers(), st.none(), st.lists(texts, max_size=2)), max_size=3))
def test_json_is_shown_with_its_keys(value):
    page = value_html(json.dumps(value))
    found = harmless(page)
    assert found.tags <= {"pre", "span"} and found.text == visible(json.dumps(value, ensure_ascii=False, indent=1))


@pytest.mark.parametrize("value", [None, float("nan"), np.nan, pd.NaT])
def test_what_is_missing_is_said_to_be(value): assert Page(value_html(value)).text == "missing"


@pytest.mark.parametrize("value, text", [(0, "0"), (False, "False"), (2.5, "2.5"), ("", ""), ("{broken", "{broken"), ("[1, 2", "[1, 2"), (pd.Timestamp("2024-01-01"), "2024-01-01 00:00:00")])
def test_whatever_is_there_is_shown(value, text): assert harmless(value_html(value)).text == text


def test_of_a_long_text_the_beginning_is_shown_and_how_long_it_is():
    page = Page(value_html("w" * MOST_SHOWN + "xyz"))
    assert page.text == "w" * MOST_SHOWN + "… 3 of 20,003 characters are not shown" and "not shown" not in value_html("w" * MOST_SHOWN)


def test_of_a_long_chat_or_object_it_is_said_that_there_is_more():
    long, notice = "w" * MOST_SHOWN + "xyz", "… 3 of 20,003 characters are not shown"
    chat = harmless(value_html(json.dumps([{"role": "user", "content": long}, {"role": "assistant", "content": "short"}])))
    assert chat.text == "user" + long[:-3] + notice + "assistantshort"
    kept = json.dumps({"key": long}, indent=1)
    page = harmless(value_html(json.dumps({"key": long})))
    assert page.text == kept[:MOST_SHOWN] + f"… {len(kept) - MOST_SHOWN:,} of {len(kept):,} characters are not shown"
    beside = harmless(side_by_side([("a", long), ("b", long + "!"), ("c", "short")])).text
    assert beside.count("not shown") == 2 and "3 of 20,003" in beside and "4 of 20,004" in beside
    assert "not shown" not in value_html(json.dumps([{"role": "user", "content": long[:-3]}]))


@by_chance
@given(text=st.text(alphabet="ab<&$ \u200bé", min_size=1, max_size=20), data=st.data(), words=st.lists(st.sampled_from(["a", "b", "ab", "$"]), max_size=2))
def test_every_character_is_shown_once_whatever_was_found(text, data, words):
    starts = data.draw(st.lists(st.integers(0, len(text) - 1), max_size=5))
    ends = [data.draw(st.integers(start + 1, len(text))) for start in starts]
    found = sorted(zip(starts, ends))
    spans = pd.DataFrame({"start": [a for a, _ in found], "end": [b for _, b in found], "type": ["⟪<i>⟫"] * len(found)})
    shown = harmless(spans_html(text, spans, words)).text
    assert shown.replace("⟪<i>⟫", "") == "".join(visible(c) for c in text)
    outlined, last = [], 0
    for start, end in found:
        if start >= last: outlined, last = [*outlined, text[start:end]], end
    assert shown.count("⟪<i>⟫") == len(outlined) and all(f"{visible(part)}⟪<i>⟫" in shown for part in outlined)


def test_personal_data_is_outlined_where_the_row_has_any():
    row = {"id": "a", "text": "Write to ann.lee@example.com", "n_personal": 1}
    assert Page(row_html(row, "text")).text == "aWrite to ann.lee@example.comemail" and Page(row_html({**row, "n_personal": 0}, "text")).text == "aWrite to ann.lee@example.com"


def test_facts_are_told_where_they_say_something():
    row = {"id": "<b>", "text": "t", "n": 3, "zero": 0, "none": None, "nan": np.nan, "no": False, "yes": True, "empty": "", "share": 0.123456, "words": "<i>$x$</i>", "time": pd.NaT}
    page = row_html(row, "text", facts=[name for name in row if name not in ("id", "text")] + ["not there"])
    assert harmless(page).text == "n 3 · yes True · share 0.1235 · words <i>$x$</i><b>t"


def test_columns_beside_are_shown_in_full_and_the_text_once():
    row = {"id": "a", "text": "the text", "answer": "the answer", "raw": None}
    assert harmless(row_html(row, "text", ["text", "answer", "raw", "not there"])).text == "athe textanswerthe answerrawmissingnot theremissing"


@pytest.mark.parametrize("text", HOSTILE)
def test_clusters_stand_side_by_side(text):
    page = side_by_side([(text, text), *((f"{text}{i}", f"{text} again") for i in range(14))])
    found = harmless(page)
    assert found.text.startswith(f"{visible(text)} is kept{visible(text)}") and found.text.endswith("and 3 more") and page.count("flex:1 1 18em") == 12
    assert "more" not in Page(side_by_side([("a", "x"), ("b", "y")])).text


# --- the reader: its tools ------------------------------------------------------------------------------------------

READ = pd.DataFrame({"id": ["a", "b", "<c>"], "text": ["one two three", "one 2 three", "<script>alert(1)</script>"], "query": ["one", None, '{"k": "<b>"}'], "n": [1, 2, 3]})


def reading(frame=READ, on_similar=None):
    reader = Reader("text", ["text", "query"], ["n"], on_similar)
    rows = Rows(frame, ["id", "text"], reader.read, tools=(reader.widget,))
    reader.rows = rows
    return reader, rows


def test_nothing_can_be_pinned_before_a_row_is_open():
    reader, rows = reading()
    assert reader.pin.disabled and rows.reader.value == ""
    rows.open("a")
    assert not reader.pin.disabled and "n 1" in rows.reader.value
    rows.open("no such row")
    assert rows.reader.value == ""


def test_a_pinned_row_is_what_others_differ_from():
    reader, rows = reading()
    rows.open("a")
    reader.pin.value = True
    assert reader.pin.description == "Pinned: a" and "<del" not in rows.reader.value and "n 1" in rows.reader.value
    rows.open("b")
    assert harmless(rows.reader.value).text == "b, as it differs from aone two2 three" and rows.reader.value.count("<del") == rows.reader.value.count("<ins") == 1
    rows.open("<c>")
    assert "<c>, as it differs from a" in harmless(rows.reader.value).text
    rows.open("a")
    assert "<del" not in rows.reader.value
    rows.open("b")
    reader.pin.value = False
    assert reader.pin.description == "Pin this row" and "differs" not in rows.reader.value and "n 2" in rows.reader.value


def test_another_frame_has_no_row_pinned():
    reader, rows = reading()
    rows.open("a")
    reader.pin.value = True
    reader.fields.value = "query"
    other = READ.rename(columns={"text": "body", "query": "answer"})
    reader.show("body", ["body", "answer"], ["n"])
    rows.show(other, ["id", "body"])
    assert not reader.pin.value and reader.pin.disabled and reader.like.disabled and reader.pin.description == "Pin this row" and rows.reader.value == ""
    rows.open("b")
    assert harmless(rows.reader.value).text == "n 2bone 2 threeanswermissing" and not reader.pin.disabled
    reader.pin.value = True
    rows.open("a")
    assert "a, as it differs from b" in Page(rows.reader.value).text


def test_a_field_is_compared_with_the_text():
    reader, rows = reading()
    assert reader.fields.options == (("whole row", ""), ("text as it differs from query", "query"))
    rows.open("a")
    reader.fields.value = "query"
    assert harmless(rows.reader.value).text == "a: text, as it differs from queryone two three" and rows.reader.value.count("<ins") == 1
    rows.open("b")
    assert "b: text, as it differs from query" in Page(rows.reader.value).text and "<del" not in rows.reader.value
    rows.open("<c>")
    harmless(rows.reader.value)
    reader.fields.value = ""
    assert "differs" not in rows.reader.value


def test_words_that_are_searched_are_marked():
    _, rows = reading()
    rows.handle({"type": "search", "text": "two one"})
    rows.open("a")
    assert rows.reader.value.count("<mark") == 3 and "one two three" in harmless(rows.reader.value).text
    rows.handle({"type": "search", "text": ""})
    rows.open("a")
    assert "<mark" not in rows.reader.value


def test_somebody_may_ask_for_texts_like_the_open_one():
    asked = []
    reader, rows = reading(on_similar=lambda row: asked.append(row["id"]))
    assert reader.like.disabled and reader.like in reader.widget.children
    rows.open("b")
    reader.like.click()
    assert asked == ["b"] and reading()[0].like not in reading()[0].widget.children


# --- the recipe: entries --------------------------------------------------------------------------------------------

ENTRIES = ["drop_empty", "redact", "normalise_unicode", {"normalise_unicode": {"form": "NFKC"}}, {"redact": {"mode": "number"}}, {"redact": {}, "off": True}, {"filter_length": {"minimum": 2, "maximum": 1_000_000}}, {"sample": {"n": 3, "by": "label"}},
           {"drop_empty": None}, {"filter_length": {"maximum": 5}, "off": False}, {"map_columns": {"fill": {"both": "<b>{text}</b>"}}}, {"filter_rows": {"keep": [{"column": "text", "contains": "$x$"}]}, "off": True}]


def meaning(entry):
    "A step with all its options."
    (step, options, off), = read_steps([entry])
    return step.name, {**{name: parameter.default for name, parameter in step.parameters.items()}, **options}, off


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_entries_say_the_same_in_their_shortest_form(entry):
    before = json.dumps(entry)
    shortest = join_entry(*split_entry(entry))
    assert meaning(shortest) == meaning(entry) and json.dumps(entry) == before and join_entry(*split_entry(shortest)) == shortest
    name, options, off = split_entry(shortest)
    assert off == (isinstance(shortest, dict) and "off" in shortest) and isinstance(shortest, str) == (not options and not off)


def test_what_is_told_by_default_is_left_out():
    for name, step in STEPS.items():
        defaults = {option: parameter.default for option, parameter in step.parameters.items()}
        assert join_entry(name, defaults) == name and join_entry(name, {}, True) == {name: {}, "off": True}


# --- the recipe: clicks ---------------------------------------------------------------------------------------------


def all_of(widget, kind):
    found = [widget] if isinstance(widget, kind) else []
    for child in getattr(widget, "children", ()): found += all_of(child, kind)
    return found


def button(editor, at, words):
    "The button of a line whose tooltip begins with these words."
    return next(b for b in all_of(editor.list.children[at], ipywidgets.Button) if b.tooltip.startswith(words))


def page_of(editor): return "".join(harmless(w.value).text + "\n" for w in all_of(editor.widget, ipywidgets.HTML))
def switched(entry): return join_entry(*split_entry(entry)[:2], not split_entry(entry)[2])


clicks = st.lists(st.tuples(st.sampled_from(["add", "up", "down", "switch", "out", "undo", "redo", "options"]), st.integers(0, 5), st.sampled_from(["redact", "drop_empty", "sample"])), max_size=15)


@by_chance
@given(start=st.lists(st.sampled_from([entry for entry in ENTRIES if entry != {"drop_empty": None}]), max_size=3), done=clicks)
@example(start=["drop_empty"], done=[("switch", 0, "redact"), ("undo", 0, "redact"), ("add", 0, "redact"), ("redo", 0, "redact"), ("undo", 0, "redact")])
def test_any_clicks_do_what_they_do_to_a_list(start, done):
    told, steps, past, future = [], list(start), [], []
    editor = RecipeEditor(start, told.append)
    for what, at, name in done:
        new = None
        if what == "add":
            editor.menu.value = name
            editor.add.click()
            new = [*steps, name]
        elif what in ("undo", "redo"):
            one, other, clicked = (past, future, editor.undo) if what == "undo" else (future, past, editor.redo)
            assert clicked.disabled == (not one)
            clicked.click()
            if one:
                other.append(steps)
                steps = one.pop()
        elif at < len(steps):
            line = {"up": f"Move {split_entry(steps[at])[0]} up", "down": f"Move {split_entry(steps[at])[0]} down", "switch": "Switch", "out": "Take", "options": "Options"}[what]
            clicked, new = button(editor, at, line), list(steps)
            assert clicked.disabled == (what == "up" and at == 0 or what == "down" and at == len(steps) - 1 or what == "options" and not STEPS[split_entry(steps[at])[0]].parameters)
            if clicked.disabled: continue
            clicked.click()
            if what == "up": new[at - 1], new[at] = new[at], new[at - 1]
            elif what == "down": new[at], new[at + 1] = new[at + 1], new[at]
            elif what == "switch": new[at] = switched(new[at])
            elif what == "out": del new[at]
        if new is not None and new != steps:
            past, future = [*past, steps], []
            steps = new
        assert editor.steps == steps and (editor.undo.disabled, editor.redo.disabled) == (not past, not future) and len(editor.list.children) == max(len(steps), 1)
        assert not told or told[-1] == steps
        read_steps(editor.steps)
    assert editor.wrong.value == "" and start == list(start) and len({json.dumps(s) for s in told}) <= len(told)


def test_a_step_that_is_off_is_struck_through_and_can_be_switched_on_again():
    editor = RecipeEditor([{"redact": {"mode": "mask"}}, "drop_empty"])
    assert "line-through" not in editor.list.children[0].children[0].value and button(editor, 0, "Switch redact off").description == "on"
    button(editor, 0, "Switch redact off").click()
    assert editor.steps[0] == {"redact": {"mode": "mask"}, "off": True} and "line-through" in editor.list.children[0].children[0].value and "line-through" not in editor.list.children[1].children[0].value
    button(editor, 0, "Switch redact on").click()
    assert editor.steps[0] == {"redact": {"mode": "mask"}}


def test_a_list_that_is_handed_out_is_not_the_one_that_is_kept():
    told, given_ = [], ["drop_empty"]
    editor = RecipeEditor(given_, told.append)
    editor.change(["drop_empty", "redact"])
    told[0].append("sample")
    given_.clear()
    assert editor.steps == ["drop_empty", "redact"]
    editor.undo.click()
    assert editor.steps == ["drop_empty"]


@pytest.mark.parametrize("wrong", [["<img src=x onerror=alert(1)>"], [{"redact": {"<script>": 1}}], [{"redact": {"mode": "$\\href{x}{y}$"}}], [{"redact": {}, "sample": {}}], [3], [{"filter_length": {"minimum": -1}}]], ids=str)
def test_a_recipe_that_cannot_be_read_changes_nothing_and_is_explained(wrong):
    told = []
    editor = RecipeEditor(["drop_empty"], told.append)
    editor.change(wrong)
    assert editor.steps == ["drop_empty"] and not told and editor.undo.disabled and 'role="alert"' in editor.wrong.value and len(harmless(editor.wrong.value).text) > 20
    editor.change(["drop_empty", "redact"])
    assert editor.wrong.value == "" and len(told) == 1
    # One that came from elsewhere is named in place of the list, and the next click is refused, too.
    editor.show(wrong)
    assert len(editor.list.children) == 1 and len(harmless(editor.list.children[0].value).text) > 20
    editor.add.click()
    assert editor.steps == wrong and 'role="alert"' in editor.wrong.value and len(told) == 1


@pytest.mark.parametrize("text", HOSTILE)
def test_options_are_shown_as_text(text):
    editor = RecipeEditor([{"map_columns": {"fill": {text or "x": text}}}, {"filter_rows": {"keep": [{"column": "text", "contains": text}]}}])
    page_of(editor)
    for at in (0, 1):
        button(editor, at, "Options").click()
        page_of(editor)


def controls(editor, at): return {c.description: c for c in all_of(editor.list.children[at], (ipywidgets.Text, ipywidgets.Textarea, ipywidgets.IntText, ipywidgets.BoundedIntText, ipywidgets.Dropdown, ipywidgets.Checkbox))}


def test_options_are_typed_into_a_form_and_kept_short():
    told = []
    editor = RecipeEditor(["drop_empty", {"redact": {}, "off": True}], told.append)
    button(editor, 1, "Options").click()
    assert list(controls(editor, 1)) == list(STEPS["redact"].parameters) and not controls(editor, 0)
    controls(editor, 1)["mode"].value = "number"
    assert editor.steps == ["drop_empty", {"redact": {"mode": "number"}, "off": True}] and told == [editor.steps]
    assert controls(editor, 1)["mode"].value == "number", "the form stays open"
    controls(editor, 1)["mode"].value = STEPS["redact"].parameters["mode"].default
    assert editor.steps[1] == {"redact": {}, "off": True}
    editor.undo.click()
    assert editor.steps[1] == {"redact": {"mode": "number"}, "off": True} and controls(editor, 1)["mode"].value == "number"
    button(editor, 1, "Options").click()
    assert not controls(editor, 1)


def test_options_stay_with_their_step():
    entries = [{"redact": {"mode": "number"}}, {"redact": {"mode": "mask"}}, {"sample": {"n": 3}}]
    editor = RecipeEditor(entries)
    shown = lambda: {at: {name: control.value for name, control in controls(editor, at).items()} for at in range(len(editor.steps)) if controls(editor, at)}
    button(editor, 1, "Options").click()
    assert set(shown()) == {1} and shown()[1]["mode"] == "mask"
    button(editor, 0, "Take").click()
    assert set(shown()) == {0} and shown()[0]["mode"] == "mask" and editor.steps == entries[1:]
    controls(editor, 0)["mode"].value = "label"
    assert split_entry(editor.steps[0])[1].get("mode", "label") == "label" and editor.steps[1:] == entries[2:]
    editor.undo.click()
    editor.undo.click()
    assert editor.steps == entries and set(shown()) == {1} and shown()[1]["mode"] == "mask"
    button(editor, 1, "Move redact down").click()
    assert set(shown()) == {2} and shown()[2]["mode"] == "mask"
    button(editor, 2, "Move redact up").click()
    button(editor, 1, "Take").click()
    assert not shown() and editor.steps == [entries[0], entries[2]]
    editor.undo.click()
    assert set(shown()) == {1}
    editor.redo.click()
    editor.add.click()
    assert not shown() and len(editor.steps) == 3
    # Of two steps that say the same it is the one that was opened.
    twice = RecipeEditor(["redact", "redact"])
    button(twice, 1, "Options").click()
    button(twice, 1, "Take").click()
    assert not controls(twice, 0)


def test_an_option_that_is_not_allowed_is_refused_in_a_line():
    told = []
    editor = RecipeEditor([{"filter_rows": {"keep": [{"column": "text", "contains": "x"}]}}], told.append)
    button(editor, 0, "Options").click()
    controls(editor, 0)["keep"].value = '["<img src=x onerror=alert(1)>"'
    assert 'role="alert"' in editor.wrong.value and "keep" in harmless(editor.wrong.value).text and not told and editor.steps == [{"filter_rows": {"keep": [{"column": "text", "contains": "x"}]}}]


def test_after_a_run_each_step_says_what_it_did():
    frame = pd.DataFrame({"id": list("abcde"), "text": ["", "ann.lee@example.com", "x", "x", "y"]})
    steps, seen = ["drop_empty", {"drop_exact_duplicates": {}, "off": True}, "redact", "drop_exact_duplicates", "normalise_whitespace"], []
    counts = run_steps(frame, read_steps(steps), {"": ["text"]})[1]
    editor = RecipeEditor([], on_show=seen.append)
    editor.show(steps, counts)
    lines = [all_of(line, ipywidgets.HTML)[1].value for line in editor.list.children]
    assert [Page(line).text for line in lines] == ["5 in = 4 out + 1 rejected", "off", "4 in = 4 out + 0 rejected, 1 changed", "4 in = 3 out + 1 rejected", "3 in = 3 out + 0 rejected"]
    shows = [at for at in range(5) if any(b.description == "show" for b in all_of(editor.list.children[at], ipywidgets.Button))]
    for at in shows: button(editor, at, "Show what").click()
    assert shows == seen == [0, 2, 3]
    # What was counted holds for the recipe that ran.
    button(editor, 4, "Take").click()
    assert all(len(all_of(line, ipywidgets.HTML)) == 1 for line in editor.list.children)


def test_a_recipe_from_elsewhere_cannot_be_undone_and_the_same_one_can():
    editor = RecipeEditor(["drop_empty"])
    editor.add.click()
    steps = list(editor.steps)
    editor.show(steps, None)
    assert not editor.undo.disabled
    editor.show(["redact"])
    assert editor.undo.disabled and editor.redo.disabled and editor.steps == ["redact"]
    editor.undo.click()
    assert editor.steps == ["redact"]


def test_the_menu_has_every_step_once_with_its_help():
    editor = RecipeEditor([])
    assert sorted(value for _, value in editor.menu.options) == sorted(STEPS) and "No step" in page_of(editor)
    for name in STEPS:
        editor.menu.value = name
        assert Page(editor.help.value).text == visible(STEPS[name].help)


# --- kept rows go on ------------------------------------------------------------------------------------------------


@pytest.fixture
def shown_panel(workspace, tmp_path, monkeypatch):
    "An explore panel with its controls, in a folder of its own."
    monkeypatch.chdir(tmp_path)
    panel = ExplorePanel(dataset=generate_helpdesk(n_rows=150, seed=4)[0], signals=["lengths"])
    panel.live = Live(panel)
    panel.run()
    panel.rows.filter("words", {"column": "words", "at_least": 30})
    return panel


def test_kept_rows_go_on_by_a_click(shown_panel, tmp_path):
    onward = lambda: next(box for box in all_of(shown_panel.live.view, ipywidgets.VBox) if any(isinstance(child, ipywidgets.Output) for child in box.children))
    press = lambda text: next(b for b in all_of(shown_panel.live.view, ipywidgets.Button) if b.description == text).click()
    links = lambda: [out["data"]["text/html"] for out in onward().children[1].outputs]
    assert onward().layout.display == "none"
    press("Keep these rows")
    assert [b.description for b in all_of(onward(), ipywidgets.Button)] == ["Prepare", "Prompt lab", "Label"] and onward().layout.display == "" and not links()
    (tmp_path / "prepare-picked.ipynb").write_text("mine")
    press("Prepare")
    press("Prompt lab")
    assert (tmp_path / "prepare-picked.ipynb").read_text() == "mine"
    assert links() == ['<a href="prepare-picked-2.ipynb">prepare-picked-2.ipynb</a>', '<a href="prompt-picked.ipynb">prompt-picked.ipynb</a>']
    written = read_workflow(tmp_path / "prepare-picked-2.ipynb")
    reference = written.parameters["dataset"].default
    assert len(read_dataset(reference)) == len(shown_panel.rows.view) < 150
    changed = {name for name, parameter in written.parameters.items() if parameter.default != read_workflow("prepare").parameters[name].default}
    assert changed == {"dataset"} and written.parameters["text_column"].default == "text"
    assert "tasks" in read_workflow(tmp_path / "prompt-picked.ipynb").parameters
    # Other rows are kept by another click, and a bad name is said in a line that is only text.
    name = next(field for field in all_of(shown_panel.live.view, ipywidgets.Text) if field.description == "name")
    name.value = "<img src=x>"
    press("Keep these rows")
    said = next(page.value for page in all_of(shown_panel.live.view, ipywidgets.HTML) if 'role="alert"' in page.value and "cannot name" in page.value)
    harmless(said)
    assert onward().layout.display == "none"


def test_a_folder_that_cannot_be_written_is_said(shown_panel, tmp_path, monkeypatch):
    def full(path, content): raise WorkspaceError("no") from OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(catalogue, "write_atomically", full)
    with pytest.raises(WorkspaceError, match="prepare-picked.ipynb' cannot be written: .*full"): shown_panel.send("prepare")
    assert not list(tmp_path.glob("prepare*"))
    with pytest.raises(SourceNotFoundError, match="Did you mean 'prepare'"): shown_panel.send("preprae")


def test_the_notebook_that_was_written_runs_on_these_rows(shown_panel, tmp_path):
    path = shown_panel.send("prepare", name="long")
    reference = read_workflow(path).parameters["dataset"].default
    run = run_workflow(path, output=tmp_path / "done.ipynb")
    assert run.status == "FINISHED" and run.summary["dataset"] == reference and run.summary["n_rows"] == len(shown_panel.rows.view) == len(read_dataset(reference))


def test_the_prompt_lab_takes_kept_rows_of_the_sample(shown_panel):
    values = {name: parameter.default for name, parameter in read_workflow(shown_panel.send("prompt")).parameters.items()}
    plan = plan_grid(**{**values, "n_examples": 2})
    assert values["dataset"].startswith("picked@") and set(values["tasks"]) == {"query", "summary"} and len(plan)


def test_without_a_screen_all_rows_or_those_selected_are_kept(workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tickets = generate_helpdesk(n_rows=100, seed=4)[0].head(40).rename(columns={"text": "body"})
    panel = ExplorePanel(dataset=tickets, text_column="body", signals=["lengths"])
    with pytest.raises(UserError): panel.send("prepare")
    panel.run()
    assert len(read_dataset(panel.keep("all"))) == 40
    panel.selection = tickets["id"].tolist()[3:6]
    written = read_workflow(panel.send("prepare")).parameters
    assert read_dataset(written["dataset"].default).frame["id"].tolist() == panel.selection and written["text_column"].default == "body"
    panel.selection = ["nowhere"]
    with pytest.raises(UserError, match="no rows to keep"): panel.keep()


def test_the_map_follows_its_table_at_once(workspace):
    panel = ExplorePanel(dataset=generate_helpdesk(n_rows=100, seed=4)[0], signals=["lengths", "topics"])
    panel.live = Live(panel)
    panel.run()
    told = []
    panel.rows.table.observe(lambda change: told.append("table"), names=["page"])
    panel.live.__dict__["kept"]["map"].widget.observe(lambda change: told.append("map"), names=["count"])
    panel.observe(lambda change: told.append("selection"), names=["selection"])
    panel.rows.filter("words", {"column": "words", "at_least": 30})
    assert told == ["table", "map", "selection"]


# --- all of it in a panel -------------------------------------------------------------------------------------------


def test_a_panel_that_is_open_takes_another_dataset_over():
    "Fewer rows, more of them, another text column, no map and no tokens, with a row pinned and a column brushed."
    tickets = generate_helpdesk(n_rows=150, seed=4)[0]
    panel = ExplorePanel(dataset=tickets.head(100), signals=["lengths", "tokens", "topics"])
    panel.live = Live(panel)
    panel.run()
    drawn = panel.live.__dict__["kept"]["map"]
    drawn.widget.send = lambda content, buffers=None: sent.append(content["text"])
    for frame, more in ((tickets.head(60), {}), (tickets, {}), (tickets.head(80).rename(columns={"text": "body"}), {"text_column": "body"}), (tickets.head(40), {"text_column": "text", "signals": ["lengths"]}),
                        (tickets.head(90), {"signals": ["lengths", "tokens", "topics"]})):
        panel.rows.open(panel.rows.frame["id"].iloc[3])
        panel.rows.tools.pin.value = True
        panel.rows.filter("words", {"column": "words", "at_least": 3})
        sent = []
        panel.run(dataset=frame, **more)
        column = more.get("text_column", "text")
        assert len(panel.rows.frame) == len(frame) and column in panel.rows.columns and len(places(drawn)) == panel.rows.frame.get("x", pd.Series([], dtype="float64")).notna().sum()
        for name in panel.rows.frame["id"].iloc[[5, 2]]:
            panel.rows.open(name)
            assert visible(frame.set_index("id")[column][name])[:20] in Page(panel.rows.reader.value).text
        if "x" in panel.rows.frame:
            says(drawn.widget, type="hover", index=0)
            assert sent and len(bits(drawn, "shown")) == len(places(drawn))
        panel.rows.filter("words", None)
        assert (f" of {len(frame):,} texts" in "".join(page.value for page in all_of(panel.live.view, ipywidgets.HTML))) == ("tokens" in panel.rows.frame)

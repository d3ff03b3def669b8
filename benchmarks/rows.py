"""What a table of rows costs the kernel: each interaction at a thousand to a million rows of ten columns.

    python benchmarks/rows.py [--rows 1000 10000 100000 1000000] [--repeats 5] [--browser]

Median of the kernel's own work; the browser's share is not in it. With --browser a JupyterLab in a headless Chromium shows the largest frame instead: from what somebody does to what the page shows,
and the bytes that came from the kernel for it. A view answers a question once and keeps the answer, so every repeat asks another one. Written to benchmarks/results/rows.json,
with the exponent of cost against rows between the two largest sizes (1 is linear), and what the process holds beside the frame after each interaction at the largest size.
"""

import argparse
import gc
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

from llmops_workbench.views import View
from llmops_workbench.widgets.rows import page_cells

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "rows.json"


def make_frame(n, seed=0):
    rng = np.random.default_rng(seed)
    words = np.array(["printer", "toner", "password", "login", "vpn", "slow", "mail", "folder", "again", "please", "help", "broken", "floor", "screen", "update"])
    said = words[rng.integers(0, len(words), (n, 6))]
    return pd.DataFrame({
        "id": pd.Series([f"HD-{i:07d}" for i in range(n)], dtype="str"), "text": pd.Series([" ".join(row) + f" {i}" for i, row in enumerate(said)], dtype="str"),
        "title": pd.Series(words[rng.integers(0, len(words), n)] + " " + words[rng.integers(0, len(words), n)], dtype="str"), "channel": pd.Series(np.array(["mail", "chat", "phone"])[rng.integers(0, 3, n)], dtype="str"),
        "language": pd.Series(np.array(["en", "de", "fr", "es", "it"])[rng.integers(0, 5, n)], dtype="str"), "tokens": rng.integers(1, 500, n), "share": rng.random(n), "score": np.where(rng.random(n) < 0.1, np.nan, rng.normal(size=n)),
        "time": pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.integers(0, 15_000_000, n), unit="s"), "flag": rng.random(n) < 0.2})


def once(action):
    start = time.perf_counter()
    action()
    return (time.perf_counter() - start) * 1000


def measure(n, repeats):
    frame, times, process = make_frame(n), {}, psutil.Process()
    gc.collect()
    start, most = process.memory_info().rss, 0
    for k in range(repeats):
        view = View(frame, key="id")
        def add(name, action):
            nonlocal most
            times.setdefault(name, []).append(once(action))
            most = max(most, process.memory_info().rss - start)
        add("first page", lambda view=view: page_cells(view.page(0, 10), list(frame)))
        add("first bars of all columns", lambda view=view: [view.histogram(c) for c in frame])
        narrow = view.add({"column": "tokens", "at_least": 50 + k, "below": 200})
        add("filter a number", lambda narrow=narrow: (len(narrow), narrow.page(0, 10)))
        add("all bars of a filtered view", lambda narrow=narrow: [narrow.histogram(c) for c in frame])
        add("filter a category", lambda narrow=narrow: len(narrow.add({"column": "channel", "one_of": ["mail"]})))
        add("search a word", lambda view=view, k=k: len(view.add({"search": ["toner", "vpn", "slow", "mail", "floor"][k % 5], "in": ["text"]})))
        add("a pattern", lambda view=view, k=k: len(view.add({"column": "text", "matches": f"ton.* {k}"})))
        add("sort by a number", lambda view=view, k=k: view.sort(["tokens", "share", "score"][k % 3]).page(0, 10))
        add("sort by a category", lambda view=view: view.sort("language").page(0, 10))
        add("sort by distinct texts", lambda view=view: view.sort("text").page(0, 10))
        add("a page in the middle", lambda narrow=narrow: page_cells(narrow.page(len(narrow) // 2, 10), list(frame)))
    size = int(frame.memory_usage(deep=True).sum())
    return {name: round(statistics.median(values), 3) for name, values in times.items()}, size, most


# Armed before somebody acts: the clock starts with the event, and stops at the first frame in which the page shows what was asked for.
ARM = """([event, shown]) => {
  const clock = window.clock = { start: null, taken: null }, done = new Function("return " + shown);
  if (event) addEventListener(event, () => { clock.start = performance.now(); }, { capture: true, once: true }); else clock.start = performance.now();
  const look = () => { if (clock.start !== null && done()) clock.taken = performance.now() - clock.start; else requestAnimationFrame(look); };
  requestAnimationFrame(look);
}"""
COUNT = "document.querySelector('.llmops-count')?.textContent || ''"


def measure_browser(n, repeats, chromium):
    "Milliseconds and bytes of each interaction with a table in JupyterLab."
    import nbformat
    sys.path.append(str(HERE.parent / "tests"))
    from lab import Lab, browser_page, jupyter_lab
    times, sizes, received = {}, {}, [0]
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}, cells=[nbformat.v4.new_code_cell(source) for source in (
        f"import sys; sys.path.append({str(HERE)!r}); from rows import make_frame\nfrom llmops_workbench.widgets.rows import Rows\nframe = make_frame({n}); Rows(frame[:10], list(frame), lambda row: '')",
        "table = Rows(frame, list(frame), lambda row: '')\ntable.widget")])
    with tempfile.TemporaryDirectory() as folder:
        for k in range(repeats): nbformat.write(notebook, Path(folder) / f"rows{k}.ipynb")
        with jupyter_lab(folder, LLMOPS_WORKSPACE=os.environ.get("LLMOPS_WORKSPACE", folder)) as (address, token), browser_page(chromium, width=1600) as page:
            def count(frame): received[0] += len(frame)
            page.on("websocket", lambda socket: "/channels" in socket.url and socket.on("framereceived", count))
            lab = Lab(page, address, token)

            def act(name, shown, action, event=None, settle=True):
                lab.wait_until_idle()
                received[0] = 0
                page.evaluate(ARM, [event, shown])
                action()
                page.wait_for_function("() => window.clock.taken !== null", timeout=120_000)
                taken = page.evaluate("window.clock.taken")
                if settle:
                    page.wait_for_function("() => ![...document.querySelectorAll('.llmops-caption')].some(node => node.textContent === '…')", timeout=120_000)
                    lab.wait_until_idle()
                assert page.locator(".llmops-rows tbody tr").count() == 10 and page.locator(".llmops-rows tbody td").count() == 110, "the page holds what it shows and no more"
                times.setdefault(name, []).append(taken)
                sizes.setdefault(name, []).append(received[0])

            def drag(column, first, last):
                bars = page.locator(f'[data-focus="bars {column}"]')
                bars.scroll_into_view_if_needed()
                box = bars.bounding_box()
                page.mouse.move(box["x"] + box["width"] * first, box["y"] + 20)
                page.mouse.down()
                page.mouse.move(box["x"] + box["width"] * last, box["y"] + 20, steps=3)
                page.mouse.up()

            def sorted_by(column): return f"document.querySelector('[data-focus=\"sort {column}\"]')?.closest('th').ariaSort === 'ascending'"

            def run_next():
                page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-cell-and-select-next'); }")

            for k in range(repeats):
                lab.open(f"rows{k}.ipynb")
                run_next()
                page.wait_for_timeout(1000)
                lab.wait_until_idle()
                act("first view, page", f"/^1–10 of {n:,}/.test({COUNT})", run_next, settle=False)
                all_bars = "document.querySelectorAll('.llmops-caption').length === 10 && ![...document.querySelectorAll('.llmops-caption')].some(node => node.textContent === '…')"
                times.setdefault("first view, all bars", []).append(page.wait_for_function(f"() => {all_bars} && performance.now() - window.clock.start", timeout=120_000).json_value())
                lab.wait_until_idle()
                sizes.setdefault("first view, all bars", []).append(received[0])
                act("filter by brush", f"/of [\\d,]+ of {n:,}/.test({COUNT})", lambda k=k: drag("tokens", 0.2 + 0.02 * k, 0.5), "pointerup")
                act("page", f"/^11–20 /.test({COUNT})", lambda: page.locator("[title='next page']").click(), "click")
                act("sort the filtered by distinct texts", sorted_by("text"), lambda: page.locator('[data-focus="sort text"]').click(), "click")
                for _ in range(2): page.locator("[title=undo]").click()  # the order, then the filter
                page.wait_for_function(f"() => /^1–10 of {n:,}$/.test({COUNT})")
                act("sort all by distinct texts", f"{sorted_by('text')} && {COUNT}.startsWith('1–10 of {n:,}')", lambda: page.locator('[data-focus="sort text"]').click(), "click")
                act("sort all by distinct names", sorted_by("id"), lambda: page.locator('[data-focus="sort id"]').click(), "click")
                act("sort all by a number", sorted_by("share"), lambda: page.locator('[data-focus="sort share"]').click(), "click")
                assert not lab.errors() and not page.refused
                lab.page.evaluate("async () => { await window.jupyterapp.shell.currentWidget.sessionContext.shutdown(); }")
    return {"rows": n, "unit": "ms and bytes, median", "shown": {name: {"ms": round(statistics.median(times[name]), 1), "bytes": int(statistics.median(sizes[name]))} for name in times}}


def draw(result, path):
    "Cost against rows, both logarithmic; the dashed line is what twice the rows at twice the cost would be."
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    sizes = [int(size) for size in result["rows"]]
    names = list(result["rows"][str(sizes[-1])])
    colours, marks = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"], "osD^vP"
    figure, axes = plt.subplots(figsize=(7.2, 4.4), dpi=110)
    for at, name in enumerate(sorted(names, key=lambda name: -result["rows"][str(sizes[-1])][name])):
        axes.plot(sizes, [result["rows"][str(size)][name] for size in sizes], color=colours[at % 7], marker=marks[at % 6], ls=("-", "-.")[at // 7], lw=1.4, ms=4, label=f"{name}: {result['rows'][str(sizes[-1])][name]:.0f} ms")
    axes.plot(sizes, [100 * size / 1e6 for size in sizes], color="#777777", ls="--", lw=1, label="slope 1 (linear)")
    axes.axhline(100, color="#bbbbbb", lw=1, zorder=0)
    axes.set(xscale="log", yscale="log", xlabel="rows of ten columns", ylabel="kernel work, ms (median)", title="What a look at a table costs")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7.5, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), title=f"at {sizes[-1]:,} rows", title_fontsize=8)
    figure.savefig(path, bbox_inches="tight")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--browser", action="store_true", help="time the table in a real browser instead")
    args = parser.parse_args()
    before = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if args.browser:
        import shutil
        chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        before["browser"] = measure_browser(max(args.rows), args.repeats, chromium)
        print(json.dumps(before["browser"], indent=1))
        RESULTS.write_text(json.dumps(before, indent=1) + "\n", encoding="utf-8")
        return
    found = {}
    for n in sorted(args.rows):
        found[n], size, more = measure(n, args.repeats)
        print(n, found[n], flush=True)
    small, large = sorted(args.rows)[-2:] if len(args.rows) > 1 else (None, None)
    exponents = {name: round(math.log(found[large][name] / found[small][name]) / math.log(large / small), 2) for name in found[large]} if small else {}
    result = {"python": platform.python_version(), "pandas": pd.__version__, "unit": "ms, median", "rows": {str(n): row for n, row in found.items()}, "exponent": exponents,
              "frame_bytes": size, "held_beside_the_frame_bytes": more, "memory_by_frame": round((size + more) / size, 2), **({"browser": before["browser"]} if "browser" in before else {})}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(result, RESULTS.with_suffix(".png"))
    print(exponents, result["memory_by_frame"])


if __name__ == "__main__":
    main()

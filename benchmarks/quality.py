"""Quality signals beside polars: the same results, asserted, and the ratio of their times; and what the detectors find on text that made none of them.

    python benchmarks/quality.py [--rows 24000] [--repeats 7] [--judge] [--letters]

The two sides take turns in one process, polars with one thread as ours has; each is timed by the processor time it used, and the median is reported
with its spread. `--judge` prints how the detectors do on tickets of seed 0, on Python's own documentation and, where it is there, on the real data in
../shared/data. `--letters` makes the table of letters anew. Written to benchmarks/results/quality.json. polars is no dependency (pip install polars); without it ours is
timed alone and nothing is written.
"""

import argparse
import importlib
import json
import os
import platform
import random
import re
import statistics
import time
import unicodedata
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("POLARS_MAX_THREADS", "1")
os.environ.setdefault("LLMOPS_NUMBA", "1")

import numpy as np
import pandas as pd
from peers import absent, record

from llmops_workbench.helpdesk import generate_helpdesk
from llmops_workbench.quality import find_cut, find_cuts, measure_boilerplate, measure_gibberish, quality_signals
from llmops_workbench.counts import count_texts
from llmops_workbench.text import text_buffer
from llmops_workbench.units import repeated_share

RESULTS = Path(__file__).parent / "results" / "quality.json"
LETTERS = Path(__file__).parent.parent / "llmops_workbench" / "assets" / "quality" / "letters.npy"
SHARED = Path(os.environ.get("LLMOPS_SHARED_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))


def corpus(n_rows):
    "Tickets of several seeds; every tenth carries its first lines twice."
    parts = [generate_helpdesk(n_rows=min(6000, n_rows - start), seed=100 + start // 6000)[0]["text"] for start in range(0, n_rows, 6000)]
    texts = pd.concat(parts, ignore_index=True)
    return texts.where(np.arange(len(texts)) % 10 > 0, texts + "\n" + texts.str.slice(0, 200))


# --- the peer -------------------------------------------------------------------------------------------------------


def polars_counts(frame):
    import polars as pl

    t, n = pl.col("t"), pl.col("t").str.len_chars()
    share = lambda pattern: t.str.count_matches(pattern) / n.clip(1)
    return frame.select(characters=n, words=t.str.count_matches(r"\S+"), sentences=t.str.count_matches(r"[.!?…]+[\"')]*(?:\s+|$)|\n\n|\n- |\w\s*\z"), symbol_share=share(r"[!-/:-@\[-`{-~]"),
                        digit_share=share("[0-9]"), upper_share=share("[A-Z]"))


def polars_line_repeats(frame):
    import polars as pl

    lines = (frame.with_row_index("i").select("i", pl.col("t").str.split("\n").alias("l")).explode("l", empty_as_null=True).with_columns(pl.col("l").str.strip_chars(" \t\r\v\f"))
             .filter(pl.col("l").str.len_bytes() > 0))
    again = ~lines.select("i", pl.col("l").str.to_lowercase()).select(pl.struct("i", "l").is_first_distinct()).to_series()
    shares = lines.with_columns(n=pl.col("l").str.len_chars(), again=again).group_by("i").agg(s=(pl.col("n") * pl.col("again")).sum() / pl.col("n").sum())
    return frame.with_row_index("i").select("i").join(shares, on="i", how="left", maintain_order="left")["s"].fill_null(0.0)


def our_counts(texts):
    counts = count_texts(text_buffer(texts))
    n = counts["characters"].clip(lower=1)
    return pd.DataFrame({"characters": counts["characters"], "words": counts["words"], "sentences": counts["sentences"], "symbol_share": counts["symbols"] / n,
                         "digit_share": counts["digits"] / n, "upper_share": counts["uppercase"] / n})


# --- the clock ------------------------------------------------------------------------------------------------------


def cost(function):
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def compare(name, ours, peer, check, repeats):
    "Ours and the peer's in turns; `check` raises unless the results agree."
    first, pairs = cost(ours)[0], []
    said = check(ours(), peer())
    for _ in range(repeats):
        pairs.append((cost(ours)[0], cost(peer)[0]))
    ratios = sorted(theirs / mine for mine, theirs in pairs)
    return {"what": name, "ours_s": round(statistics.median(p[0] for p in pairs), 4), "peer_s": round(statistics.median(p[1] for p in pairs), 4), "ratio": round(statistics.median(ratios), 2),
            "ratio_low": round(ratios[0], 2), "ratio_high": round(ratios[-1], 2), "first_call_s": round(first, 2), "results": said}


def equal_counts(ours, theirs):
    for name in ("characters", "words", "symbol_share", "digit_share", "upper_share"):
        assert np.allclose(ours[name], theirs[name].to_numpy(), atol=1e-12), f"{name} differs"
    same = (ours["sentences"].to_numpy() == theirs["sentences"].to_numpy()).mean()
    return f"equal; sentences by rule, the peer's by a pattern: the same number in {same:.0%} of texts"


def equal_lines(ours, theirs):
    assert np.allclose(ours, theirs.to_numpy(), atol=1e-12), "the shares differ"
    return f"equal; {(ours > 0).mean():.0%} of texts repeat a line"


def beside_polars(texts, repeats):
    import polars as pl
    frame = pl.DataFrame({"t": texts.tolist()})
    rows = [compare("characters, words, sentences, three shares / polars", lambda: our_counts(texts), lambda: polars_counts(frame), equal_counts, repeats),
            compare("share of repeated lines / polars", lambda: repeated_share(text_buffer(texts), "lines"), lambda: polars_line_repeats(frame), equal_lines, repeats),
            compare("both / polars", lambda: (our_counts(texts), repeated_share(text_buffer(texts), "lines")), lambda: (polars_counts(frame), polars_line_repeats(frame)), lambda a, b: "equal", repeats)]
    print(f"processor time, median of {repeats} (a ratio above 1: ours is quicker); polars {pl.__version__}, one thread\n")
    print(pd.DataFrame(rows).to_string(index=False))
    return rows, pl.__version__


def speed(n_rows, repeats):
    left_out, texts = absent("polars"), corpus(n_rows)
    rows, version = ([], "") if left_out else beside_polars(texts, repeats)
    n_bytes = len(text_buffer(texts).data)
    quality_signals(texts)
    whole = min(cost(lambda: quality_signals(texts))[0] for _ in range(3))
    print(f"\n{n_rows:,} texts, {n_bytes / 1e6:.1f} MB; all signals of quality_signals: {whole:.2f} s, {n_bytes / whole / 1e6:.0f} MB/s")
    record(RESULTS, {"rows": n_rows, "bytes": n_bytes, "repeats": repeats, "python": platform.python_version(), "numpy": np.__version__, "polars": version,
                     "all_signals_s": round(whole, 3), "results": rows}, left_out)


# --- the judge ------------------------------------------------------------------------------------------------------


def struck_at_random(rng, how, n_words):
    "Letters as hands and generators make them."
    rows = ("qwertyuiop", "asdfghjkl", "zxcvbnm", "qwertzuiop", "azertyuiop")
    letters = lambda: rng.choice(rows) if how == "keys" else "abcdefghijklmnopqrstuvwxyz"
    return " ".join("".join(rng.choice(chosen) for _ in range(rng.randrange(3, 11))) for chosen in (letters() for _ in range(n_words)))


def documentation():
    "Paragraphs of the documentation of installed packages: prose, code and tables, none of which made the table of letters."
    found = []
    for name in ("numpy", "scipy.stats", "pandas", "sklearn.linear_model", "argparse", "asyncio", "unittest", "logging", "email", "http.server", "sqlite3", "zipfile", "plotly.graph_objects", "networkx"):
        module = importlib.import_module(name)
        for thing in [module, *(getattr(module, n, None) for n in dir(module))]:
            found += str(getattr(thing, "__doc__", "") or "").split("\n\n")
    return sorted({p.strip() for p in found if len(p.split()) > 3})


def judge_letters():
    frame, truth = generate_helpdesk(n_rows=6000, seed=0)
    rng, sets = random.Random(2), {f"tickets in {language}": frame["text"][(truth["language"] == language).to_numpy()].tolist() for language in ("en", "de", "fr", "es", "it")}
    sets["documentation of packages"] = documentation()
    from faker import Faker
    for locale in ("en_GB", "de_DE", "fr_FR", "es_ES", "it_IT", "pl_PL", "nl_NL", "tr_TR", "fi_FI"):
        fake = Faker(locale)
        fake.seed_instance(7)
        sets[f"names, streets and companies of {locale}"] = [f() for f in (fake.name, fake.street_name, fake.company) for _ in range(300)]
    if SHARED.is_dir():
        sets["naughty strings"] = json.loads((SHARED / "naughty_strings" / "blns.json").read_text(encoding="utf-8"))
        sets["talks"] = (SHARED / "comparemt" / "ted.ref.detok.eng").read_text(encoding="utf-8").splitlines()
        sets["restaurants"] = pd.read_csv(SHARED / "e2e" / "devset.csv")["ref"].tolist()
    for how in ("keys", "letters"):
        for n in (1, 2, 3, 6):
            sets[f"{n} words of random {how}"] = [struck_at_random(rng, how, n) for _ in range(500)]
    rows = []
    for name, texts in sets.items():
        scores = measure_gibberish(text_buffer(texts))
        rows.append({"texts": name, "n": len(texts), "flagged": round(float((scores > .5).mean()), 4), "median": round(float(np.median(scores)), 3), "highest": round(float(scores.max()), 3)})
    print("\ngibberish\n", pd.DataFrame(rows).to_string(index=False), sep="")


def inside_a_word(text, rng):
    "The first half of a text or more, up to the middle of a word."
    places = [m for m in re.finditer("[a-z]{4,}", text) if m.start() > len(text) // 2] or list(re.finditer("[a-z]{4,}", text))
    word = rng.choice(places)
    return text[:rng.randrange(word.start() + 2, word.end() - 1)]


def judge_cuts():
    frame, _ = generate_helpdesk(n_rows=6000, seed=0)
    rng, rows = random.Random(3), []
    def add(name, texts): rows.append({"texts": name, "n": len(texts), "flagged": round(float(np.mean([find_cut(t) != "" for t in texts])), 3)})
    def add_among(name, cut):
        "One text in twenty is cut, the others are whole; recall of the cut ones and how many of the whole ones are flagged."
        chosen = np.arange(len(whole)) % 20 == 7
        flags = (find_cuts(text_buffer([cut(t) if c else t for t, c in zip(whole, chosen)])) != "")
        rows.append({"texts": name, "n": int(chosen.sum()), "flagged": round(float(flags[chosen].mean()), 3), "flagged_of_the_rest": round(float(flags[~chosen].mean()), 4)})
    whole = frame["text"].tolist()
    add("whole tickets", whole)
    add("whole queries (JSON)", frame["query"].tolist())
    add("whole paragraphs of documentation", documentation())
    add("tickets cut anywhere", [t[:rng.randrange(len(t) // 4, len(t) * 3 // 4)] for t in whole if len(t) > 80])
    add("tickets cut between words", [t[:t.index(" ", rng.randrange(len(t) // 4, len(t) * 3 // 4))] for t in whole if " " in t[len(t) * 3 // 4:] and len(t) > 80])
    add("queries cut anywhere", [t[:rng.randrange(len(t) // 4, len(t) * 3 // 4)] for t in frame["query"]])
    add_among("one ticket in twenty cut anywhere", lambda t: t[:rng.randrange(len(t) // 4, len(t) * 3 // 4)])
    add_among("one ticket in twenty cut inside a word of four letters or more", lambda t: inside_a_word(t, rng))
    flags = quality_signals([t[:150] for t in whole])["truncated"] != ""
    rows.append({"texts": "tickets cut at 150 characters, as a column", "n": len(whole), "flagged": round(float(flags[[len(t) > 150 for t in whole]].mean()), 3)})
    print("\ncut off\n", pd.DataFrame(rows).to_string(index=False), sep="")


def judge_boilerplate():
    frame, _ = generate_helpdesk(n_rows=6000, seed=0)
    planted = frame["text"].str.contains("Sent from my phone|think of the trees|may be confidential|Sent on the move|wrote:\n|Original message|^From: Service Desk|^>> ?", regex=True) | \
        frame["text"].str.contains("^(?:From: Service Desk|>> )", regex=True, flags=8)
    found = measure_boilerplate(text_buffer(frame["text"])) > 0
    alone = measure_boilerplate(text_buffer(frame["text"]), 10**9) > 0
    print(f"\nboilerplate: of {planted.sum():,} tickets with a notice or quoted mail {found[planted].mean():.1%} have some, of the others {found[~planted].mean():.1%} "
          f"(by patterns and signatures alone {alone[~planted].mean():.1%})")
    sets = {"documentation": documentation()}
    if SHARED.is_dir():
        sets["e-mails"] = [json.loads(line)["context"] for line in (SHARED / "bipia" / "email_test.jsonl").read_text(encoding="utf-8").splitlines()]
        sets["instructions"] = [json.loads(line)["instruction"] for line in (SHARED / "self_instruct" / "seed_tasks.jsonl").read_text(encoding="utf-8").splitlines()]
    for name, texts in sets.items():
        shares = measure_boilerplate(text_buffer(texts))
        print(f"  {name}: {np.mean(shares > 0):.1%} of {len(texts):,} have some, {np.mean(shares > .5):.1%} are mostly that")


def judge_labels():
    from llmops_workbench.labels import likely_label_errors
    from sklearn.metrics import average_precision_score
    frame, truth = generate_helpdesk(n_rows=6000, seed=0)
    rows = []
    for key in ("intent", "product", "priority"):
        given, right = (column.map(lambda q, key=key: json.loads(q)[key]) for column in (frame["query"], truth["clean_query"]))
        ranked, wrong = likely_label_errors(frame["text"], given), (given != right).to_numpy()
        hits, k, likely = wrong[ranked["row"]], int(wrong.sum()), ranked["likely"].to_numpy()
        rows.append({"label": key, "errors": k, "average_precision": round(average_precision_score(hits, ranked["odds"]), 3), "recall_at_k": round(hits[:k].sum() / k, 3),
                     "recall_at_2k": round(hits[:2 * k].sum() / k, 3), "likely": int(likely.sum()), "precision": round(hits[likely].mean(), 3) if likely.any() else np.nan,
                     "recall": round(hits[likely].sum() / k, 3), "agreement": round(ranked.attrs["agreement"], 3)})
    print("\nlabel errors\n", pd.DataFrame(rows).to_string(index=False), sep="")


# --- the table of letters -------------------------------------------------------------------------------------------

# Word lists: Faker's for the languages that have one, the names of countries, languages, currencies and months in babel for all.
LOREM = {"en": "en_US", "de": "de_DE", "fr": "fr_FR", "es": "es_ES", "it": "it_IT", "cs": "cs_CZ", "da": "da_DK", "nl": "nl_BE", "pl": "pl_PL"}
OTHERS = "pt nl sv da nb fi pl cs sk hu tr ro id hr et lv lt sl ca vi sw fil".split()
UNFOLDED = {"ß": "s", "æ": "a", "ø": "o", "œ": "o", "ł": "l", "đ": "d"}


def letters_of(text):
    "Words of letters a to z: accents are taken off, tokens with anything else are left out."
    for token in text.split():
        word = "".join(c if c.isascii() else UNFOLDED.get(c, unicodedata.normalize("NFD", c)[0]) for c in token.strip(".,;:!?\"'()[]“”„«»…-–—*").lower())
        parts = word.replace("’", "'").replace("-", "'").split("'")
        if all(p.isascii() and p.isalpha() for p in parts) and not (token.isupper() and len(token) <= 5):
            yield from parts


def make_letters():
    import pydoc_data.topics
    from babel import Locale
    groups = {language: Counter() for language in ("en", "de", "fr", "es", "it", *OTHERS)}
    for seed in range(100, 104):
        frame, truth = generate_helpdesk(n_rows=6000, seed=seed)
        for text, language in zip(frame["text"], truth["language"]):
            groups[language].update(letters_of(text))
    for text in pydoc_data.topics.topics.values():
        groups["en"].update(letters_of(text))
    for language, words in groups.items():
        if language in LOREM:
            for word in importlib.import_module(f"faker.providers.lorem.{LOREM[language]}").Provider.word_list:
                words.update(letters_of(word))
        locale = Locale.parse(language)
        for names in (locale.territories, locale.languages, locale.currencies, locale.months["format"]["wide"], locale.days["format"]["wide"]):
            for name in names.values():
                words.update(letters_of(str(name)))
    total = np.zeros((27, 27, 27))
    for language, words in groups.items():
        counts = np.zeros((27, 27, 27))
        for word, n in words.items():
            codes = [0, 0, *(ord(c) - 96 for c in word), 0]
            for i in range(2, len(codes)):
                counts[codes[i - 2], codes[i - 1], codes[i]] += np.log1p(n)  # a word that is everywhere in tickets must not outweigh the language
        total += counts / counts.sum() * 1e5 * (0.15 if language in OTHERS else 1)
    single, pairs = total.sum((0, 1)) / total.sum(), total.sum(0)
    after_one = (pairs + 20 * single) / (pairs.sum(1, keepdims=True) + 20)
    after_two = (total + 8 * after_one) / (total.sum(2, keepdims=True) + 8)
    np.save(LETTERS, np.minimum(np.round(-16 * np.log2(after_two)), 255).astype("uint8"))
    print(f"{LETTERS.name}: {sum(map(len, groups.values())):,} words of {len(groups)} languages, {LETTERS.stat().st_size:,} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=24_000, help="texts in the corpus")
    parser.add_argument("--repeats", type=int, default=7, help="rounds, of which the median counts")
    parser.add_argument("--judge", action="store_true", help="judge the detectors instead of timing them")
    parser.add_argument("--letters", action="store_true", help="make the table of letters")
    options = parser.parse_args()
    if options.letters:
        make_letters()
    elif options.judge:
        for judge in (judge_letters, judge_cuts, judge_boilerplate, judge_labels):
            judge()
    else:
        speed(options.rows, options.repeats)


if __name__ == "__main__":
    main()

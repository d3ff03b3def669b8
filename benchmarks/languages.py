"""How often `detect_languages` is right on text that nobody here wrote, by length, beside other libraries where they are installed, and how fast.

    python benchmarks/languages.py [--catalogues DIR_OR_WHEEL ...] [--per-cell 250] [--rows 3000] [--fit]

The texts are the messages of installed programs, as translated by people: every `*.mo` file below the folders or inside the wheels given (by default /usr/share/locale).
A message that stands untranslated, is mostly placeholders, options or paths, or reads the same in two languages is left out. Lengths are in words; Japanese and Chinese
count two characters as one. Peers (lingua, py3langid) are asked the same messages with the same languages to choose from, and the sample's tickets for the time. Answers differ
between libraries, so what is asserted is that they agree on 99 tickets in 100, and that de-duplication changes nothing. --fit prints the constants of the confidence.
Written to benchmarks/results/languages.json.
"""

import argparse
import gettext
import io
import json
import platform
import re
import statistics
import time
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
from peers import absent, record

from llmops_workbench.helpdesk import generate_helpdesk
from llmops_workbench.languages import LANGUAGES, _detect, _engine, detect_languages, language_codes

RESULTS = Path(__file__).parent / "results" / "languages.json"
FIVE = ["en", "de", "es", "fr", "it"]
LENGTHS = {"1-2": (1, 2), "3-5": (3, 5), "6-10": (6, 10), "11-20": (11, 20), "21-60": (21, 60)}
# Names of places, keys and machine instructions are no language.
NO_LANGUAGE = re.compile(r"iso_|xkeyboard|opcodes|shared-mime|/gas\.|/bfd\.|binutils|/ld\.|/gold\.")


def catalogue_files(places):
    "Language folder and opened file of every catalogue."
    for place in map(Path, places):
        if place.suffix == ".whl":
            with zipfile.ZipFile(place) as wheel:
                for name in sorted(wheel.namelist()):
                    if name.endswith(".mo"):
                        yield name, io.BytesIO(wheel.read(name))
        else:
            for path in sorted(place.rglob("*.mo")):
                yield str(path), io.BytesIO(path.read_bytes())


def messages(places):
    "Language, original and translation of every message."
    for name, file in catalogue_files(places):
        folder = re.search(r"([^/]+)/LC_MESSAGES/", name)
        if not folder or NO_LANGUAGE.search(name) or re.search("@|Latn|Arab", folder[1]):
            continue
        try:
            code = language_codes(folder[1])[0]
            catalogue = gettext.GNUTranslations(file)._catalog
        except (ValueError, OSError):  # a language that is not known, or a file in another encoding than it says
            continue
        for key, text in catalogue.items():
            original = (key[0] if isinstance(key, tuple) else key).split("\x04")[-1]
            if original and original != text:
                yield code, plain(original), plain(text)


def plain(text):
    "Without placeholders, markup and the marks of keyboard shortcuts."
    text = re.sub(r"%(\([a-z_]+\))?[-#0 +']*\d*(\.\d+)?(hh|h|ll|l|z|j|t)?[a-zA-Z%]|\{[^}]*\}|<[^>]*>", " ", text)
    return " ".join(text.replace("_", "").replace("&", "").split())


def worded(text):
    "Whether a message consists of words, rather than of options, paths or code."
    letters = sum(c.isalpha() or unicodedata.category(c)[0] == "M" for c in text)
    return letters >= 3 and letters > 0.7 * len(text) and not re.search(r"(^|\s)--?[a-z]|[/=$|@#~^*\\]|[A-Za-z]\(", text)


def corpus(places, per_cell):
    "language, text and length: at most `per_cell` messages of each language and length."
    rows, english = set(), set()
    for code, original, text in messages(places):
        if worded(original):
            english.add(original)
        if code != "en" and worded(text) and text.lower() != original.lower():
            rows.add((code, text))
    translated = {text for _, text in rows}
    frame = pd.DataFrame(sorted(rows | {("en", text) for text in english - translated}), columns=["language", "text"])
    frame = frame[~frame["text"].duplicated(keep=False)]
    words = frame["text"].map(lambda text: sum(any(map(str.isalpha, word)) for word in text.split()))
    words = words.where(~frame["language"].isin(["ja", "zh"]), frame["text"].str.len() // 2)
    frame["length"] = pd.cut(words, [0, 2, 5, 10, 20, 60], labels=list(LENGTHS)).astype("str")
    frame = frame[frame["length"].isin(LENGTHS)].sample(frac=1, random_state=0)
    return frame[frame.groupby(["language", "length"]).cumcount() < per_cell].reset_index(drop=True)


# --- the peers -----------------------------------------------------------------------------------------------------


def ours(languages):
    return lambda texts: detect_languages(texts, languages)["language"].tolist()


def lingua(languages, low=False):
    from lingua import IsoCode639_1, LanguageDetectorBuilder
    builder = LanguageDetectorBuilder.from_iso_codes_639_1(*[getattr(IsoCode639_1, code.upper().replace("NO", "NB")) for code in languages])
    detector = (builder.with_low_accuracy_mode() if low else builder).build()
    return lambda texts: [found.iso_code_639_1.name.lower().replace("nb", "no") if found else "" for found in map(detector.detect_language_of, texts)]


def lingua_low(languages):
    return lingua(languages, low=True)


def py3langid(languages):
    from py3langid.langid import _load_identifier
    identifier = _load_identifier(norm_probs=True, langs=list(languages))
    return lambda texts: [identifier.classify(text)[0].replace("nb", "no") for text in texts]


def known_to_all(languages):
    "The languages that every installed library can tell."
    try:
        from lingua import IsoCode639_1
    except ImportError:
        return languages
    return [code for code in languages if hasattr(IsoCode639_1, code.upper().replace("NO", "NB"))]


def peers(languages):
    "Name -> function of those that are installed."
    found = {"detect_languages": ours(languages)}
    for build in (lingua, lingua_low, py3langid):
        try:
            found[build.__name__] = build(languages)
        except ImportError:
            pass  # `absent` has said so
    return found


# --- what is measured ----------------------------------------------------------------------------------------------


def accuracy(frame, detect):
    right = pd.Series(detect(frame["text"].tolist()), index=frame.index) == frame["language"]
    return right.groupby(frame["length"]).mean().reindex(LENGTHS).round(4).to_dict()


def calibration(frame, languages):
    "How often it is right among the texts of about one confidence."
    found = detect_languages(frame["text"], languages)
    found = found.assign(right=found["language"] == frame["language"])[found["language"] != ""]
    bands = pd.cut(found["confidence"], [0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1])
    table = found.groupby(bands, observed=True).agg(confidence=("confidence", "mean"), right=("right", "mean"), texts=("right", "size")).round(3)
    return table.rename(index=str).reset_index(names="band").to_dict("records")


def fit(frame):
    "Intercept, and the weights of the logarithms of lead and letters, over both choices of languages."
    from sklearn.linear_model import LogisticRegression
    parts = []
    for languages in (None, FIVE):
        part = frame if languages is None else frame[frame["language"].isin(languages)]
        engine = _engine(languages)
        found = pd.DataFrame([_detect(text, engine) for text in part["text"]], columns=["language", "lead", "letters"], index=part.index)
        parts.append(found.assign(right=found["language"] == part["language"])[found["language"] != ""])
    found = pd.concat(parts)
    model = LogisticRegression(C=1e6).fit(np.c_[np.log(found["lead"] + 0.01), np.log(found["letters"] + 1)], found["right"])
    return [round(float(value), 3) for value in (*model.intercept_, *model.coef_[0])]


def speeds(texts, detectors, repeats=3):
    "Texts a second of processor time; the libraries take turns."
    seconds = {name: [] for name in detectors}
    for detect in detectors.values():
        detect(texts[:20])  # what is loaded on first use is no part of the speed
    for _ in range(repeats):
        for name, detect in detectors.items():
            began = time.process_time()
            detect(texts)
            seconds[name].append(time.process_time() - began)
    return {name: round(len(texts) / statistics.median(times)) for name, times in seconds.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--catalogues", nargs="+", default=["/usr/share/locale"])
    parser.add_argument("--per-cell", type=int, default=250)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    frame, left_out = corpus(given.catalogues, given.per_cell), absent("lingua", "py3langid")
    if given.fit:
        print("intercept, lead, letters:", fit(frame))
        return
    five, shared = frame[frame["language"].isin(FIVE)], known_to_all(sorted(frame["language"].unique()))
    common = frame[frame["language"].isin(shared)]
    result = {"python": platform.python_version(), "machine": platform.machine(), "messages": len(frame), "languages": sorted(frame["language"].unique()),
              "counts": frame["length"].value_counts().reindex(LENGTHS).to_dict()}
    everything = peers(shared)
    result["accuracy"] = {f"detect_languages, any of {len(LANGUAGES)}": accuracy(frame, ours(None))}
    result[f"the {len(shared)} languages of all"] = {name: accuracy(common, detect) for name, detect in everything.items()}
    result["five"] = {name: accuracy(five, detect) for name, detect in peers(FIVE).items()}
    result["calibration"] = {"all": calibration(frame, None), "five": calibration(five, FIVE)}

    tickets, truth = generate_helpdesk(n_rows=given.rows, seed=0)
    texts = tickets["text"].tolist()
    answers = {name: detect(texts) for name, detect in peers(FIVE).items()}
    result["tickets_right"] = {name: round(float(np.mean(np.array(found) == truth["language"].to_numpy())), 4) for name, found in answers.items()}
    for name, found in answers.items():
        agree = np.mean(np.array(found) == np.array(answers["detect_languages"]))
        assert agree >= 0.99, f"{name} agrees on {agree:.2%} of the tickets only"
    assert detect_languages(texts * 2, FIVE)["language"].tolist() == answers["detect_languages"] * 2
    result["texts_per_s"] = {"five": speeds(texts, peers(FIVE)), f"{len(shared)}": speeds(texts[:1000], everything)}
    result["times_faster"] = {case: {name: round(values["detect_languages"] / value, 1) for name, value in values.items()} for case, values in result["texts_per_s"].items()}
    print(json.dumps(result, indent=1))
    record(given.output, result, left_out)


if __name__ == "__main__":
    main()

"""Personal data and secrets: recall and precision by type, false alarms on text without any, and the time beside Presidio and detect-secrets.

    python benchmarks/safety.py [--rows 6000] [--seed 0] [--peer-rows 300] [--repeats 3]

A span counts when start, end and type are those of the truth. The rules were tuned on helpdesk seeds 100 to 102; judge on another. Names of the sample come from Faker's lists,
which the rules know too, so the figure without the lists is the honest one for names that no list has. The peers are optional: without them their lines are left out. To have them, make an
environment of their own (presidio-analyzer brings spaCy): `pip install presidio-analyzer detect-secrets faker fastcore pandas pyarrow pyyaml numpy`, then run this file with it from the checkout's root.
Written to benchmarks/results/safety.json.
"""

import argparse
import json
import platform
import random
import re
import statistics
import string
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pandas as pd
from peers import absent, record

from llmops_workbench.credentials import find_secrets
from llmops_workbench.helpdesk import generate_helpdesk
from llmops_workbench.pseudonyms import pseudonymise
from llmops_workbench.safety import find_pii, redact

RESULTS = Path(__file__).parent / "results" / "safety.json"


def cost(function):
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def spans_of(frame):
    return set(map(tuple, frame[["row", "start", "end", "type"]].values.tolist()))


def judge(gold, found, who):
    rows = []
    for kind in sorted({kind for *_, kind in gold}):
        true, said = {g for g in gold if g[3] == kind}, {f for f in found if f[3] == kind}
        hits = len(true & said)
        rows.append({"by": who, "type": kind, "true": len(true), "found": len(said), "recall": round(hits / len(true), 4), "precision": round(hits / len(said), 4) if said else None})
    return rows


# --- helpdesk ------------------------------------------------------------------------------------------------------


def helpdesk(n_rows, seed):
    frame, truth = generate_helpdesk(n_rows=n_rows, seed=seed)
    gold = {(row, a, b, kind) for row, spans in enumerate(truth["pii"]) for a, b, kind in json.loads(spans)}
    texts, rows = frame["text"].tolist(), []
    for who, options in {"rules": {}, "rules, no lists": {"lists": False}, "rules, text by text": {"learn": False}, "rules, text by text, no lists": {"learn": False, "lists": False}}.items():
        seconds, found = cost(lambda o=options: find_pii(texts, **o))
        judged = judge(gold, spans_of(found), who)
        rows += judged if who == "rules" else [row for row in judged if row["type"] == "name"]
        if who == "rules":
            per_row = seconds / n_rows
            by_language = {}
            for language, part in truth.groupby("language"):
                mine, true = {s for s in spans_of(found) if s[0] in set(part.index)}, {g for g in gold if g[0] in set(part.index)}
                by_language[language] = {"numbers_recall": round(len({g for g in true & mine if g[3] != "name"}) / len({g for g in true if g[3] != "name"}), 4),
                                         "names_recall": round(len({g for g in true & mine if g[3] == "name"}) / len({g for g in true if g[3] == "name"}), 4)}
            clean = [i for i, spans in enumerate(truth["pii"]) if spans == "[]"]
            alarms = len(set(found["row"]) & set(clean))
    steps = {"find_pii": per_row, "find_secrets": cost(lambda: find_secrets(texts))[0] / n_rows, "redact, spans given": cost(lambda: redact(texts, found))[0] / n_rows,
             "pseudonymise, spans given": cost(lambda: pseudonymise(texts, found))[0] / n_rows}
    return {"spans": rows, "by_language": by_language, "rows_without_personal_data": len(clean), "of_these_flagged": alarms,
            "false_secrets": len(find_secrets(texts)), "microseconds_a_row": {step: round(s * 1e6, 1) for step, s in steps.items()}}


# --- numbers that look like something ------------------------------------------------------------------------------


def luhn_total(digits):
    return sum(sum(divmod(2 * int(d), 10)) if i % 2 else int(d) for i, d in enumerate(reversed(digits)))


def look_alikes(n, seed):
    "Texts full of numbers that belong to nobody, each kind by itself."
    rng = random.Random(seed)
    digits = lambda k: "".join(rng.choice(string.digits) for _ in range(k))
    def luhn(k, first="4"):
        body = first + digits(k - 1 - len(first))
        return body + str(-luhn_total(body + "0") % 10)
    makers = {"order with a valid card number": lambda: f"Order {luhn(16)} is late", "IMEI": lambda: f"IMEI {luhn(15, '35')}", "ticket": lambda: f"see INC-{digits(5)} and HD-{digits(6)}",
              "asset": lambda: f"the tag is LT-{digits(4)}, serial {digits(10)}", "version": lambda: f"version {rng.randrange(9)}.{rng.randrange(30)}.{rng.randrange(99)}.{rng.randrange(250)} crashed",
              "date and time": lambda: f"on {rng.randrange(1, 29):02d}.{rng.randrange(1, 13):02d}.20{digits(2)} {rng.randrange(24):02d}:{rng.randrange(60):02d}, 20{digits(2)}-11-25 09:00:{digits(2)}",
              "hash": lambda: f"commit {''.join(rng.choice('0123456789abcdef') for _ in range(40))}", "time stamp": lambda: f"at {1_600_000_000_000 + rng.randrange(10**11)} ms",
              "amount": lambda: f"we paid {rng.randrange(1, 999)},{digits(3)},{digits(3)}.{digits(2)} USD", "error code": lambda: f"error 0x{digits(8)} and 554 5.4.14",
              "random 16 digits": lambda: f"the value {digits(16)} was read"}
    return {kind: find_pii([make() for _ in range(n)])["row"].nunique() for kind, make in makers.items()}


# --- secrets -------------------------------------------------------------------------------------------------------


def canaries(seed):
    "One text with a secret for each form, in five surroundings, and where it stands."
    rng = random.Random(seed)
    alnum, b32 = string.ascii_letters + string.digits, string.ascii_uppercase + "234567"
    draw = lambda signs, n: "".join(rng.choice(signs) for _ in range(n))
    forms = {"aws": lambda: "AKIA" + draw(b32, 16), "github": lambda: "ghp_" + draw(alnum, 36), "gitlab": lambda: "glpat-" + draw(alnum, 20), "slack": lambda: f"xoxb-{draw(string.digits, 12)}-{draw(string.digits, 12)}-{draw(alnum, 24)}",
             "openai": lambda: f"sk-proj-{draw(alnum, 74)}T3BlbkFJ{draw(alnum, 74)}", "openai, old": lambda: f"sk-{draw(alnum, 20)}T3BlbkFJ{draw(alnum, 20)}", "anthropic": lambda: f"sk-ant-api03-{draw(alnum, 93)}AA",
             "google": lambda: "AIza" + draw(alnum, 35), "stripe": lambda: "sk_" + "live_" + draw(alnum, 24), "azure": lambda: draw(alnum, 3) + "8Q~" + draw(alnum, 34), "npm": lambda: "npm_" + draw(alnum, 36),
             "pypi": lambda: "pypi-AgEIcHlwaS5vcmc" + draw(alnum, 130), "hugging face": lambda: "hf_" + draw(string.ascii_letters, 34), "sendgrid": lambda: f"SG.{draw(alnum, 22)}.{draw(alnum, 43)}",
             "password in an address": lambda: f"postgres://app:{draw(alnum, 12)}@db:5432/x", "bearer": lambda: "Authorization: Bearer " + draw(alnum, 40), "api_key": lambda: f'api_key = "{draw(alnum, 32)}"',
             "password": lambda: f"password: {draw(alnum, 9)}7!", "private key": lambda: "-----BEGIN PRIVATE KEY-----\n" + draw(alnum, 800) + "\n-----END PRIVATE KEY-----"}
    around = ("{}", "Hi, here it is: {} bye", "export X={}\n", "<td>{}</td>", "> {}\n")
    return [(kind, frame.format(make())) for kind, make in forms.items() for frame in around for _ in range(4)]


def sources():
    root = Path(sysconfig.get_paths()["stdlib"])
    return [path.read_text(encoding="utf-8", errors="replace") for folder in (root, root / "email", root / "http", root / "json", root / "asyncio") for path in sorted(folder.glob("*.py"))]


def detect_secrets_peer():
    "detect-secrets with its default rules and filters, on files, as its command line runs it; None where it is not installed."
    try:
        from detect_secrets import SecretsCollection
        from detect_secrets.settings import default_settings
    except ImportError:
        return None
    def flagged(texts):
        counts = []
        with tempfile.TemporaryDirectory() as folder, default_settings():
            for at, text in enumerate(texts):
                path = Path(folder) / f"part{at}.py"
                path.write_text(text, encoding="utf-8", errors="replace")
                found = SecretsCollection()
                found.scan_file(str(path))
                counts.append(sum(1 for _ in found))
        return counts
    return flagged


def secrets(seed):
    planted, code = canaries(seed), sources()
    texts = [text for _, text in planted]
    seconds, found = cost(lambda: find_secrets(texts + code))
    rows, hit = Counter(kind for kind, _ in planted), Counter(planted[row][0] for row in set(found["row"]) if row < len(planted))
    result = {"planted": len(planted), "recall": round(sum(hit.values()) / len(planted), 4), "missed": {kind: n - hit[kind] for kind, n in rows.items() if hit[kind] < n},
              "source_files": len(code), "source_lines": sum(text.count("\n") for text in code), "alarms_in_sources": int((found["row"] >= len(planted)).sum()), "seconds": round(seconds, 3)}
    if peer := detect_secrets_peer():
        their_seconds, counts = cost(lambda: peer(texts + code))
        result["detect-secrets"] = {"recall": round(sum(c > 0 for c in counts[:len(texts)]) / len(texts), 4), "alarms_in_sources": sum(counts[len(texts):]), "seconds": round(their_seconds, 3),
                                    "ratio": round(their_seconds / seconds, 1)}
    return result


# --- Presidio ------------------------------------------------------------------------------------------------------

THEIRS = {"EMAIL_ADDRESS": "email", "PHONE_NUMBER": "phone", "CREDIT_CARD": "card", "IBAN_CODE": "iban", "IP_ADDRESS": "ip_address", "US_SSN": "national_id", "UK_NINO": "national_id", "ES_NIF": "national_id",
          "ES_NIE": "national_id", "IT_FISCAL_CODE": "national_id", "DE_TAX_ID": "national_id", "US_ITIN": "national_id"}


def presidio_peer():
    "Presidio's patterns on a blank spaCy pipeline, kept off the network; None where it is not installed."
    try:
        import spacy
        import tldextract
        from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
        from presidio_analyzer.nlp_engine import SpacyNlpEngine
        from presidio_analyzer.predefined_recognizers import PhoneRecognizer
    except ImportError:
        return None
    tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=())
    tldextract.extract = tldextract.tldextract.TLD_EXTRACTOR
    class Blank(SpacyNlpEngine):
        def load(self): self.nlp = {"en": spacy.blank("en")}
        def is_loaded(self): return self.nlp is not None
    engine = Blank(models=[{"lang_code": "en", "model_name": "en"}])
    engine.load()
    registry = RecognizerRegistry()
    registry.load_predefined_recognizers(languages=["en"])
    registry.recognizers = [r for r in registry.recognizers if r.name not in ("SpacyRecognizer", "PhoneRecognizer")]
    registry.add_recognizer(PhoneRecognizer(supported_regions=("US", "GB", "DE", "FR", "ES", "IT")))
    analyzer = AnalyzerEngine(nlp_engine=engine, registry=registry, supported_languages=["en"])
    entities = [e for e in THEIRS if e in analyzer.get_supported_entities("en")]
    def find(texts):
        out = set()
        for row, text in enumerate(texts):
            taken = []
            for result in sorted(analyzer.analyze(text, language="en", entities=entities, score_threshold=0.35), key=lambda r: (-r.score, r.start - r.end)):
                if all(result.end <= a or b <= result.start for a, b in taken):
                    taken.append((result.start, result.end))
                    out.add((row, result.start, result.end, THEIRS[result.entity_type]))
        return out
    return find


def beside_presidio(n_rows, seed, repeats):
    peer = presidio_peer()
    if peer is None:
        return None
    frame, truth = generate_helpdesk(n_rows=max(100, n_rows), seed=seed)
    texts = frame["text"].tolist()
    gold = {(row, a, b, kind) for row, spans in enumerate(truth["pii"]) for a, b, kind in json.loads(spans) if kind != "name"}
    types = sorted({kind for *_, kind in gold})
    mine, theirs = [], []
    peer(texts[:3])
    for _ in range(repeats):
        seconds, a = cost(lambda: spans_of(find_pii(texts, types=types)))
        mine.append(seconds)
        seconds, b = cost(lambda: peer(texts))
        theirs.append(seconds)
    ratios = sorted(t / m for m, t in zip(mine, theirs))
    return {"rows": len(texts), "ours_ms_a_row": round(statistics.median(mine) / len(texts) * 1e3, 3), "presidio_ms_a_row": round(statistics.median(theirs) / len(texts) * 1e3, 3),
            "ratio": round(statistics.median(ratios), 1), "ratio_low": round(ratios[0], 1), "ratio_high": round(ratios[-1], 1),
            "both_found": len(gold & a & b), "only_ours": len(gold & a - b), "only_theirs": len(gold & b - a), "spans": judge(gold, a, "rules") + judge(gold, b, "presidio")}


def prose():
    "Documentation of Python: no personal data in it, save a few authors."
    from pydoc_data import topics
    texts = list(topics.topics.values())
    return {"texts": len(texts), "characters": sum(map(len, texts)), "personal": find_pii(texts)["type"].value_counts().to_dict(), "secrets": len(find_secrets(texts)),
            "addresses_for_mail_in_it": len(re.findall(r"\w@\w+\.\w", " ".join(texts)))}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=6000, help="tickets")
    parser.add_argument("--seed", type=int, default=0, help="seed of the tickets; not 100 to 102")
    parser.add_argument("--peer-rows", type=int, default=6000, help="tickets for Presidio, which takes most of the time")
    parser.add_argument("--repeats", type=int, default=3, help="rounds beside Presidio, of which the median counts")
    options, left_out = parser.parse_args(), absent("presidio_analyzer", "detect_secrets")
    result = {"rows": options.rows, "seed": options.seed, "python": platform.python_version(), "pandas": pd.__version__, "helpdesk": helpdesk(options.rows, options.seed),
              "look_alikes_flagged_of_500": look_alikes(500, options.seed), "python_documentation": prose(), "secrets": secrets(options.seed), "presidio": beside_presidio(options.peer_rows, options.seed, options.repeats)}
    print(pd.DataFrame(result["helpdesk"]["spans"]).to_string(index=False))
    print(json.dumps({key: value for key, value in result["helpdesk"].items() if key != "spans"}, indent=1))
    for part in ("look_alikes_flagged_of_500", "python_documentation", "secrets"):
        print(part, json.dumps(result[part], indent=1))
    if result["presidio"]:
        print(pd.DataFrame(result["presidio"]["spans"]).to_string(index=False))
        print(json.dumps({key: value for key, value in result["presidio"].items() if key != "spans"}, indent=1))
    record(RESULTS, result, left_out)


if __name__ == "__main__":
    main()

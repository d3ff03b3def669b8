"""How attack likeness does on text that its rules were not written from, and how fast.

    python benchmarks/injection.py [--shared ../shared/data]

Tickets of seed 0 (the rules were tried on seed 101; all seeds share their phrases, so that is the better case), instructions, mails and strings that others wrote, and the documentation of Python's
own library. Shares with Wilson intervals of 95 %. Written to benchmarks/results/injection.json.
"""

import argparse
import json
import platform
import re
import sysconfig
import time
from pathlib import Path

import numpy as np

from llmops_workbench.helpdesk import generate_helpdesk
from llmops_workbench.injection import INJECTION_THRESHOLD, score_injection

RESULTS = Path(__file__).parent / "results" / "injection.json"


def wilson(hits, n, z=1.96):
    if not n: return [0.0, 1.0]
    p, d = hits / n, 1 + z * z / n
    middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [round(float(max((middle - half) / d, 0)), 4), round(float(min((middle + half) / d, 1)), 4)]


def documentation(n=4000):
    found = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))[:400]:
        found += [text for text in re.findall(r'"""(.*?)"""', path.read_text(encoding="utf-8", errors="ignore"), re.S) if len(text) > 80]
    return found[:n]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    args = parser.parse_args()
    frame, truth = generate_helpdesk(n_rows=6000, seed=0)
    kinds = {kind: frame["text"][truth["attack"] == kind].tolist() for kind in sorted(set(truth["attack"]) - {"", "benign_lookalike"})}
    sets = {"attacks, all": ("flagged", sum(kinds.values(), [])), **{f"attacks, {kind}": ("flagged", texts) for kind, texts in kinds.items()},
            "harmless look-alikes": ("kept", frame["text"][truth["attack"] == "benign_lookalike"].tolist()), "other tickets": ("kept", frame["text"][truth["attack"] == ""].tolist()),
            "Python's documentation": ("kept", documentation())}
    if args.shared.is_dir():
        lines = lambda name, key: [json.loads(line)[key] for line in (args.shared / name).read_text(encoding="utf-8").splitlines()]
        sets |= {"instructions (self_instruct)": ("kept", lines("self_instruct/user_oriented_instructions.jsonl", "instruction")), "mails (bipia, test)": ("kept", lines("bipia/email_test.jsonl", "context")),
                 "naughty strings": ("kept", json.loads((args.shared / "naughty_strings/blns.json").read_text(encoding="utf-8"))),
                 "injected questions without their context (bipia, test)": ("flagged", sum(json.loads((args.shared / "bipia/text_attack_test.json").read_text(encoding="utf-8")).values(), []))}
    rows = []
    for name, (wanted, texts) in sets.items():
        start = time.perf_counter()
        hits = int((score_injection(texts) >= INJECTION_THRESHOLD).sum())
        seconds = time.perf_counter() - start
        rows.append({"texts": name, "n": len(texts), "should be": wanted, "flagged": hits, "share": round(hits / max(len(texts), 1), 4), "interval": wilson(hits, len(texts)), "texts_per_s": round(len(texts) / seconds)})
        print(rows[-1])
    RESULTS.write_text(json.dumps({"python": platform.python_version(), "threshold": INJECTION_THRESHOLD, "results": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

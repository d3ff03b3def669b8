"""The gate: cleaning the notebooks, exporting the package and making README.md change nothing.

Works on a copy, so it needs no clean git tree and leaves the checkout alone. `--write-readme` makes README.md and stops.
"""

import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
SOURCES = ["nbs", "llmops_workbench", "pyproject.toml", "README.md", "LICENSE"]


def make_readme(root: Path) -> str:
    "README.md as markdown from nbs/index.ipynb; pictures are found from the repository's root."
    done = subprocess.run(
        [BIN / "jupyter", "nbconvert", "--to", "markdown", "--stdout", "--log-level", "ERROR", root / "nbs/index.ipynb"],
        capture_output=True, text=True, check=True)
    return done.stdout.replace("](images/", "](nbs/images/").strip() + "\n"


def differences(mine: Path, made: Path) -> list[str]:
    "Files below `nbs` and `llmops_workbench` that are not the same on both sides."
    def files(root):
        return {p.relative_to(root) for folder in ("nbs", "llmops_workbench") for p in (root / folder).rglob("*")
                if p.is_file() and "__pycache__" not in p.parts and ".ipynb_checkpoints" not in p.parts}
    ours, theirs = files(mine), files(made)
    both = ours & theirs
    return sorted(map(str, (ours ^ theirs) | {p for p in both if not filecmp.cmp(mine / p, made / p, shallow=False)}))


def main() -> int:
    if "--write-readme" in sys.argv:
        (ROOT / "README.md").write_text(make_readme(ROOT), encoding="utf-8")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "llmops_workbench"
        copy.mkdir()
        for name in SOURCES:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
            elif source.exists():
                shutil.copy2(source, copy / name)
        failures = []
        for command, what in (("nbdev-clean", "nbdev-clean changes"), ("nbdev-export", "nbdev-export changes")):
            subprocess.run([BIN / command], cwd=copy, check=True, capture_output=True)
            failures += [f"{what} {path}" for path in differences(ROOT, copy) if not any(path in f for f in failures)]
        if not (ROOT / "README.md").exists() or (ROOT / "README.md").read_text(encoding="utf-8") != make_readme(copy):
            failures.append("README.md is not what nbs/index.ipynb makes")
    for failure in failures:
        print(f"{failure}: call `make export` and commit the result.")
    if not failures:
        print("Clean, export and README change nothing.")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())

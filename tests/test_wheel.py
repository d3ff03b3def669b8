"""The wheel works alone: built, installed beside nothing of the checkout, used from another directory."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


def run(command, cwd, **environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("LLMOPS_", "PYTHON"))}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env={**clean, **environment}, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT], ROOT)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A virtual environment that holds the wheel and nothing of the checkout.

    Its dependencies are those already installed here, seen through a .pth file: what is under test is the wheel, not the index.
    The editable install of the checkout is kept out by not processing the .pth and finder files of that directory.
    """
    folder = tmp_path_factory.mktemp("alone") / "venv"
    run([sys.executable, "-m", "venv", "--without-pip", folder], ROOT)
    site = Path(next((folder / "lib").glob("python*"))) / "site-packages"
    # A plain path entry puts the packages on sys.path without running the .pth files in them.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    python = folder / "bin" / "python"
    run([sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel], ROOT)
    where = run([python, "-c", "import llmops_workbench; print(llmops_workbench.__file__)"], folder)
    assert str(site) in where, where
    return python


@pytest.fixture(scope="module")
def project(installed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere") / "my project"
    run([installed.parent / "llmops", "init", folder], folder.parent)
    return folder


def test_the_wheel_holds_what_it_needs(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in ("workflows/explore.ipynb", "workflows/home.ipynb", "assets/starter/model.safetensors", "pipelines/helpdesk.yaml"):
        assert f"llmops_workbench/{wanted}" in names
    assert not [n for n in names if n.startswith(("tests/", "nbs/", "benchmarks/"))]
    assert wheel.stat().st_size < 16_000_000


def test_init_list_run(installed, project):
    workflows = json.loads(run([installed.parent / "llmops", "list", "--json"], project))
    assert {"explore", "prepare", "prompt", "finetune", "compare", "monitor"} <= {w["name"] for w in workflows}
    done = json.loads(run([installed.parent / "llmops", "run", "explore", "--json"], project))
    assert done["status"] == "FINISHED"
    output = Path(done["output"])
    assert output.is_file() and output.stat().st_size < 1_000_000
    assert project in output.parents, "a project keeps its runs to itself"


def test_the_notebooks_open_from_there(installed, project):
    "Every notebook that `init` laid down is valid and runs from the project's folder by the plain papermill command."
    notebooks = sorted(p for p in project.rglob("*.ipynb") if "workspace" not in p.parts)
    assert "home.ipynb" in {p.name for p in notebooks}
    home = next(p for p in notebooks if p.name == "home.ipynb")
    run([installed, "-m", "papermill", home, home.parent / "out.ipynb"], home.parent)

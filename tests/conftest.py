"""What the tests share: a workspace of their own, the optional real data, a Chromium where there is one."""

import os
import shutil
import socket
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ARTEFACTS = ROOT / "tests" / "artefacts"

# Before anything imports torch or mlflow, in this process and in those it starts.
os.environ.update(OMP_WAIT_POLICY="PASSIVE", MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="1", HF_HUB_OFFLINE="1")
for name in ("LLMOPS_RUN_ID", "LLMOPS_LIVE", "LLMOPS_STORE", "LLMOPS_SETTINGS"):
    os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def workspace(tmp_path_factory, monkeypatch):
    "Every test has an empty workspace, so nothing it leaves behind is seen by another or by the user."
    folder = tmp_path_factory.mktemp("workspace")
    monkeypatch.setenv("LLMOPS_WORKSPACE", str(folder))
    return folder


@pytest.fixture(scope="session")
def shared_data():
    "The folder of real public data; tests that want it skip where it is not."
    for folder in (os.environ.get("LLMOPS_SHARED_DATA"), ROOT.parent / "shared" / "data"):
        if folder and Path(folder).is_dir():
            return Path(folder)
    pytest.skip("no real data here: put it in ../shared/data or name its folder in LLMOPS_SHARED_DATA")


@pytest.fixture(scope="session")
def translations(shared_data):
    "The reference and two translations of TED talks, detokenised."
    folder = shared_data / "comparemt"
    if not folder.is_dir():
        pytest.skip("the comparemt texts are not here")
    return {kind: (folder / f"ted.{kind}.detok.eng").read_text(encoding="utf-8").splitlines() for kind in ("ref", "sys1", "sys2")}


def find_chromium():
    "Path of a Chromium, or None."
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session")
def chromium():
    "Path of a Chromium; browser tests skip where there is none."
    if found := find_chromium():
        return found
    pytest.skip("no Chromium here: `make browser` installs it where it may")


@pytest.fixture(scope="session")
def artefacts():
    "Screenshots and the like, kept for a person to look at."
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    return ARTEFACTS


@pytest.fixture
def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]

"""No telemetry and no hidden download: the pipeline runs with every socket but loopback refused, in all its processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


# Loaded by every Python process that inherits PYTHONPATH: the command, the kernels and the training workers alike.
GUARD = '''
import os, socket

LOG = os.environ["SOCKET_GUARD_LOG"]
LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0")

def refuse(what, address):
    with open(LOG, "a") as log: log.write(f"{os.getpid()} {what} {address!r}\\n")
    raise ConnectionRefusedError(f"refused by the test: {what} {address!r}")

def local(host): return host is None or not host or str(host).startswith(LOOPBACK)

_connect, _connect_ex, _getaddrinfo, _sendto = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo, socket.socket.sendto

def connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and not local(address[0]): refuse("connect", address)
    return _connect(self, address)

def connect_ex(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and not local(address[0]): refuse("connect", address)
    return _connect_ex(self, address)

def sendto(self, *args):
    if self.family in (socket.AF_INET, socket.AF_INET6) and not local(args[-1][0]): refuse("sendto", args[-1])
    return _sendto(self, *args)

def getaddrinfo(host, *args, **kwargs):
    name = host.decode() if isinstance(host, bytes) else host
    if not local(name) and name != socket.gethostname(): refuse("look-up", name)
    return _getaddrinfo(host, *args, **kwargs)

socket.socket.connect, socket.socket.connect_ex, socket.socket.sendto, socket.getaddrinfo = connect, connect_ex, sendto, getaddrinfo
'''


@pytest.fixture
def guarded(tmp_path, workspace):
    "Environment in which a connection beyond loopback is refused and written down; and the file it is written to."
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    log = tmp_path / "connections.log"
    log.touch()
    return {**os.environ, "PYTHONPATH": str(tmp_path / "guard"), "SOCKET_GUARD_LOG": str(log), "LLMOPS_WORKSPACE": str(workspace)}, log


def test_the_guard_refuses_and_writes_down(guarded):
    "The guard is worth nothing if it does not bite: first show that it does."
    environment, log = guarded
    done = subprocess.run([sys.executable, "-c", "import urllib.request as r; r.urlopen('http://192.0.2.1/', timeout=2)"],
                          env=environment, capture_output=True, text=True)
    assert done.returncode != 0 and "refused by the test" in done.stderr
    assert "192.0.2.1" in log.read_text()


@pytest.mark.slow
def test_the_pipeline_runs_with_no_network(guarded, tmp_path):
    environment, log = guarded
    done = subprocess.run([Path(sys.executable).parent / "llmops", "pipeline", "run", "helpdesk",
                           "-p", "max_minutes", "0.2", "-p", "n_examples", "12"],
                          env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert log.read_text() == ""

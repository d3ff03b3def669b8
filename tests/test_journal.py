"What no page should show of the journal: writers killed at random moments, two replays at once, forks, full disks."
import logging
import multiprocessing
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from point_sink import Sink

from llmops_workbench.errors import WorkspaceError
from llmops_workbench.journal import Journal, replay_journals

WRITER = '''
import os, sys
from point_sink import Sink
from llmops_workbench.journal import Journal
folder, sink, first = sys.argv[1:]
journal = Journal(folder, Sink(sink), batch=50, every_s=0.01)
value = int(first)
while True:
    journal.append("run", "loss", value)
    os.write(1, b"%d\\n" % value)  # acknowledged
    value += 1
'''


@pytest.fixture(autouse=True)
def children_find_the_sink(monkeypatch): monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@pytest.fixture
def sink(tmp_path): return Sink(tmp_path/"sink.db")


@pytest.fixture
def folder(tmp_path): return tmp_path/"journal"


def test_no_acknowledged_point_is_lost_or_doubled_by_kill_9(folder, sink):
    rng, acknowledged, first = random.Random(7), [], 0
    for _ in range(15):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder), str(folder.parent/"sink.db"), str(first)], stdout=subprocess.PIPE)
        head = writer.stdout.readline()  # it is at work: from here on any moment may be the last
        time.sleep(rng.uniform(0, 0.08))
        writer.send_signal(signal.SIGKILL)
        lines = (head + writer.stdout.read()).decode().split("\n")
        writer.stdout.close()
        writer.wait()
        acknowledged += [int(line) for line in lines[:-1]]
        first = acknowledged[-1] + 2  # one more may have been committed and not acknowledged
    waiting = len(list(folder.glob("*-*.db")))
    replay_journals(folder, sink)
    kept = sink.values()
    assert waiting > 0 and len(acknowledged) > 100
    assert set(acknowledged) <= set(kept) and len(kept) == len(set(kept)) and len(kept) <= len(acknowledged) + 15
    assert not list(folder.glob("*-*"))
    assert sink.connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_crash_between_store_and_mark_does_not_double(folder, sink):
    code = '''
from point_sink import Sink
import os, signal, sys
from llmops_workbench.journal import Journal
class Deadly(Sink):
    def __call__(self, run, points):
        super().__call__(run, points)
        os.kill(os.getpid(), signal.SIGKILL)
journal = Journal(sys.argv[1], Deadly(sys.argv[2]), every_s=60)
for value in range(7): journal.append("run", "loss", value)
journal.flush()
'''
    dead = subprocess.run([sys.executable, "-c", code, str(folder), str(folder.parent/"sink.db")])
    assert dead.returncode == -signal.SIGKILL
    assert sink.values() == list(range(7))  # the store has them all, and the journal does not know
    assert replay_journals(folder, sink) == 7
    assert sink.values() == list(range(7))


def test_the_end_of_the_process_flushes(folder, sink):
    code = '''
from point_sink import Sink
import sys
from llmops_workbench.journal import Journal
journal = Journal(sys.argv[1], Sink(sys.argv[2]), every_s=60)
for value in range(5): journal.append("run", "loss", value)
if sys.argv[3] == "error": raise ValueError("the work failed")
'''
    for number, end in enumerate(["quietly", "error"]):
        subprocess.run([sys.executable, "-c", code, str(folder), str(folder.parent/"sink.db"), end], capture_output=True)
        assert len(sink.values()) == 5*(number + 1)
    assert not list(folder.glob("*-*"))


def test_living_journals_are_left_alone_and_two_replays_share_the_dead(folder, sink):
    living = Journal(folder, sink, every_s=60)
    living.append("run", "loss", 1000)
    code = "import sys, os, signal\nfrom llmops_workbench.journal import Journal\njournal = Journal(sys.argv[1], None, every_s=60)\n" \
           "for value in range(400): journal.append('run', 'loss', value)\nos.kill(os.getpid(), signal.SIGKILL)"
    for _ in range(2): subprocess.run([sys.executable, "-c", code, str(folder)])
    seen = []
    def slow(run, points):
        seen.extend(points)
        time.sleep(0.01)
    threads = [threading.Thread(target=replay_journals, args=(folder, slow, 20)) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert sorted(point.value for point in seen) == sorted([*range(400)]*2)
    assert living.pending() == 1 and living.close() == 0 and sink.values() == [1000]


def test_eight_threads_lose_nothing(folder, sink):
    journal = Journal(folder, sink, batch=100, every_s=0.01)
    def work(number):
        for value in range(200): journal.append("run", "loss", 1000*number + value)
    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    journal.close()
    assert sink.values() == sorted(1000*number + value for number in range(8) for value in range(200))


def _in_child(journal):
    for value in range(100, 110): journal.append("run", "loss", value)
    journal.close()


def test_a_forked_child_has_a_journal_of_its_own(folder, sink):
    journal = Journal(folder, sink, every_s=60)
    journal.append("run", "loss", 1)
    child = multiprocessing.get_context("fork").Process(target=_in_child, args=(journal,))
    child.start()
    child.join()
    assert child.exitcode == 0 and journal.pending() == 1
    journal.append("run", "loss", 2)
    journal.close()
    assert sink.values() == [1, 2, *range(100, 110)]


def test_a_child_that_ends_takes_nothing_with_it(folder, sink):
    "A forked child let go of its copy of the connection, which deleted the log that its living parent went on writing."
    code = """
import os, signal, sys
from llmops_workbench.journal import Journal
def nothing(run, points): raise ConnectionError("away")
journal = Journal(sys.argv[1], nothing, every_s=60)
journal.append("run", "loss", 0)
if not os.fork():
    journal.append("run", "loss", 100)
    sys.exit()
os.wait()
for value in range(1, 10): journal.append("run", "loss", value)
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code, str(folder)])
    replay_journals(folder, sink)
    assert sink.values() == [*range(10), 100]


def test_the_caller_does_not_wait_for_a_store_that_hangs(folder):
    release = threading.Event()
    kept = []
    def hanging(run, points):
        release.wait(60)
        kept.extend(points)
    journal = Journal(folder, hanging, batch=10, every_s=0.01)
    for value in range(500): journal.append("run", "loss", value)
    assert journal.pending() == 500 and not kept  # all acknowledged while the store has not taken one
    release.set()
    journal.close()
    assert [point.value for point in kept] == list(range(500))


def test_a_full_disk_is_said_and_costs_nothing_that_was_acknowledged(folder, sink):
    journal = Journal(folder, sink, every_s=60)
    journal.append("run", "loss", 0)
    pages = journal._connection.execute("PRAGMA page_count").fetchone()[0]
    journal._connection.execute(f"PRAGMA max_page_count={pages + 2}")
    acknowledged = 1
    with pytest.raises(WorkspaceError, match="full"):
        for value in range(1, 100_000):
            journal.append("run", "loss", value)
            acknowledged += 1
    assert journal.pending() == acknowledged
    assert journal.flush() == acknowledged
    journal.append("run", "loss", acknowledged)  # there is space again
    journal.close()
    assert sink.values() == list(range(acknowledged + 1))


def test_a_store_that_is_down_is_mentioned_once_and_asked_less_often(folder, caplog):
    calls = []
    def away(run, points):
        calls.append(time.monotonic())
        raise ConnectionError("nobody answers")
    journal = Journal(folder, away, every_s=0.02)
    with caplog.at_level(logging.WARNING):
        journal.append("run", "loss", 1)
        while len(calls) < 4: time.sleep(0.01)
        assert len([r for r in caplog.records if "nobody answers" in r.message]) == 1
    gaps = [later - earlier for earlier, later in zip(calls, calls[1:])]
    assert gaps[-1] > gaps[0]
    journal.write = lambda run, points: None
    journal.close()


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
    (tmp_path/"file").write_text("")
    with pytest.raises(WorkspaceError, match="Cannot make the lock file"): Journal(tmp_path/"file"/"journal", None).append("run", "loss", 1)

"What no page should show of jobs: killed workers, dead parents, restarted kernels, and eight callers at once."
import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from llmops_workbench import jobs
from llmops_workbench.errors import JobError, WorkspaceError
from llmops_workbench.jobs import Context, Job, attach_job, collect_job, find_job, list_jobs, start_job
from llmops_workbench.locks import file_lock, try_lock

WORKERS = '''
import os, signal, subprocess, sys, time

def count(context, to=1000, pause_s=0.01):
    saved = context.dir/"saved"
    first = int(saved.read_text()) if context.resumed and saved.exists() else 0
    for done in range(first + 1, to + 1):
        time.sleep(pause_s)
        context.event("number", value=done, padding="x"*2000)
        temporary = saved.with_suffix(".new")
        temporary.write_text(str(done))
        os.replace(temporary, saved)
        context.progress(done, to, f"counted {done}")
        if context.stop_requested: break
    return {"last": done}

def deaf(context):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"])
    context.event("child", pid=child.pid)
    while True: time.sleep(1)

def environment(context):
    return {"wait": os.environ["OMP_WAIT_POLICY"], "session": os.getsid(0) == os.getpid(), "stdin": sys.stdin.read()}

def numbers(context):
    import numpy as np
    context.event("loss", value=np.float32(0.5), missing=float("nan"))
    return object()
'''


@pytest.fixture
def root(tmp_path, monkeypatch):
    (tmp_path/"workers.py").write_text(WORKERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("workers", None)
    yield tmp_path/"jobs"
    for job_id in list_jobs(tmp_path/"jobs")["job_id"]: attach_job(job_id, tmp_path/"jobs").kill(grace_s=0)


def until(condition, limit_s=60):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def worker_pid(job): return json.loads((job.dir/"process.json").read_text())["pid"]


def numbers_of(job): return [event["value"] for event in job.events() if event["kind"] == "number"]


def test_killed_worker_is_lost_and_goes_on_without_losing_or_repeating_an_event(root):
    job = start_job("workers:count", {"to": 60}, root=root)
    for kills in range(1, 4):
        until(lambda least=12*kills: job.status()["done"] >= least)
        os.kill(worker_pid(job), signal.SIGKILL)
        status = job.wait(timeout_s=60)
        assert status["state"] == "lost" and "resume" in status["error"]
        with open(job.dir/"events.jsonl", "ab") as file: file.write(b'{"seq": 999, "kind": "hal')  # as if killed inside a write
        seen = numbers_of(job)
        assert seen == sorted(seen) and 999 not in [event["seq"] for event in job.events()]
        job.resume()
        assert job.status()["state"] in jobs.ACTIVE_STATES
    status = job.wait(timeout_s=60)
    assert (status["state"], status["attempt"], status["result"]) == ("completed", 4, {"last": 60})
    # A kill between an event and its save repeats that number once; none may be missing, and the sequence has no gap.
    assert sorted(set(numbers_of(job))) == list(range(1, 61)) and len(numbers_of(job)) <= 63
    assert [event["seq"] for event in job.events()] == list(range(1, len(job.events()) + 1))


def test_kill_ends_a_deaf_worker_and_what_it_started(root):
    job = start_job("workers:deaf", root=root)
    until(lambda: job.events())
    child = job.events()[0]["pid"]
    assert jobs.process_mark(child)
    assert job.kill(grace_s=0.2)["state"] == "cancelled"
    until(lambda: not jobs.process_mark(child))
    assert not job.is_alive()
    with pytest.raises(JobError, match="killed before it had finished"): job.get_result()


def test_who_watches_a_kill_sees_a_kill_and_no_loss(root, monkeypatch):
    job = start_job("workers:count", root=root)
    until(lambda: job.status()["done"] >= 1)
    seen, end = [], Job._end
    def end_and_look(self, *arguments):
        ended = end(self, *arguments)
        seen.append(attach_job(self.job_id, root).status()["state"])  # before the killer has written the last word
        return ended
    monkeypatch.setattr(Job, "_end", end_and_look)
    job.kill()
    assert seen == ["cancelled"]
    assert job.resume().status()["state"] in jobs.ACTIVE_STATES
    job.kill()


def test_stop_is_taken_back_by_resume(root):
    job = start_job("workers:count", {"to": 40}, root=root)
    until(lambda: job.status()["done"] >= 3)
    job.stop()
    stopped = job.wait(timeout_s=60)
    assert stopped["state"] == "cancelled" and 3 <= stopped["result"]["last"] < 40
    assert job.get_result() == stopped["result"]
    assert job.resume().wait(timeout_s=60)["result"] == {"last": 40}
    assert job.stop()["state"] == "completed" and not (job.dir/"stop").exists()


def test_job_survives_the_death_of_its_parent_and_is_found_by_another_process(root):
    code = f"""
        import os, signal, sys
        sys.path.insert(0, {str(root.parent)!r})
        from llmops_workbench.jobs import start_job
        print(start_job("workers:count", {{"to": 60, "pause_s": 0.02}}, key="one", root={str(root)!r}).job_id, flush=True)
        os.killpg(os.getpid(), signal.SIGKILL)
    """
    parent = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, start_new_session=True)
    assert parent.returncode == -signal.SIGKILL
    job = attach_job(parent.stdout.strip(), root)
    assert job.status()["state"] in jobs.ACTIVE_STATES
    assert find_job("one", root).job_id == job.job_id
    assert start_job("workers:count", {"to": 5}, key="one", root=root).job_id == job.job_id
    assert job.wait(timeout_s=60)["state"] == "completed"


def test_job_survives_a_kernel_restart(root):
    from jupyter_client.manager import start_new_kernel
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        def run(code):
            outputs = []
            reply = client.execute_interactive(textwrap.dedent(code), timeout=60, output_hook=lambda message: outputs.append(message["content"]))
            assert reply["content"]["status"] == "ok", reply["content"]
            return "".join(output.get("text", "") for output in outputs)
        head = f"import sys; sys.path.insert(0, {str(root.parent)!r})\nfrom llmops_workbench.jobs import *\nroot = {str(root)!r}\n"
        job_id = run(head + "print(start_job('workers:count', {'to': 300, 'pause_s': 0.02}, key='k', root=root).job_id)").strip()
        job = attach_job(job_id, root)
        until(lambda: job.status()["done"] >= 2)
        manager.interrupt_kernel()
        manager.restart_kernel(now=False)
        client.wait_for_ready(timeout=60)
        again = run(head + "job = start_job('workers:count', {'to': 300}, key='k', root=root)\nprint(job.job_id, job.status()['state'])")
        assert again.split() == [job_id, "running"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    job.stop()
    assert job.wait(timeout_s=60)["state"] == "cancelled" and len(list_jobs(root)) == 1


def _ask(root): return start_job("workers:count", {"to": 1000, "pause_s": 0.02}, key="same", root=root).job_id


def test_eight_processes_asking_at_once_get_one_job(root):
    with multiprocessing.get_context("fork").Pool(8) as pool: ids = pool.map(_ask, [root]*8, chunksize=1)
    assert len(set(ids)) == 1 and len(list_jobs(root)) == 1
    job = attach_job(ids[0], root)
    assert job.status()["state"] in jobs.ACTIVE_STATES
    job.stop()
    job.wait(timeout_s=60)
    assert _ask(root) != ids[0]


def test_two_resumes_make_one_process(root):
    job = start_job("workers:count", {"to": 1000, "pause_s": 0.02}, root=root)
    until(lambda: job.status()["done"] >= 2)
    job.kill()
    with multiprocessing.get_context("fork").Pool(4) as pool: pool.map(_resume, [job.dir]*4, chunksize=1)
    assert job.status()["attempt"] == 2


def _resume(folder): Job(folder).resume()


def test_resume_attaches_to_another_job_of_its_key(root):
    first = start_job("workers:count", key="k", root=root)
    first.kill()
    second = start_job("workers:count", key="k", root=root)
    assert first.resume().job_id == second.job_id and first.status()["state"] == "cancelled"


def test_a_reused_process_number_is_not_the_job(root):
    job = start_job("workers:count", {"to": 1}, root=root)
    job.wait(timeout_s=60)
    record = json.loads((job.dir/"process.json").read_text())
    (job.dir/"status.json").write_text(json.dumps({**job.status(), "state": "running"}))
    (job.dir/"process.json").write_text(json.dumps({**record, "pid": os.getpid()}))
    assert job.status()["state"] == "lost"
    assert job.kill()["state"] == "lost"  # and this very process, which has the number, lives
    (job.dir/"process.json").write_text(json.dumps({**record, "pid": os.getpid(), "mark": jobs.process_mark(os.getpid())}))
    assert job.status()["state"] == "running"
    (job.dir/"process.json").unlink()


def test_progress_is_cheap_and_its_last_word_is_written(root):
    job = jobs._make_job(root, "workers:count", {}, "count", None)
    context, written = Context(job.dir), []
    write, context._write = context._write, lambda: (written.append(1), write())
    for done in range(1, 20_001): context.progress(done, 20_000, f"step {done}")
    elapsed = time.time() - json.loads((job.dir/"job.json").read_text())["created"]
    assert len(written) <= elapsed/Context.write_every_s + 2
    until(lambda: json.loads((job.dir/"status.json").read_text())["done"] == 20_000)


def test_readers_never_see_half_a_status(root):
    job = start_job("workers:count", {"to": 150, "pause_s": 0.002}, root=root)
    states = [job.status()["state"]]
    while states[-1] in jobs.ACTIVE_STATES: states.append(job.status()["state"])
    assert states[-1] == "completed" and len(states) > 100


def test_worker_has_a_session_no_input_and_patient_threads(root, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    result = start_job("workers:environment", root=root).get_result(timeout_s=60)
    assert result == {"wait": "PASSIVE", "session": True, "stdin": ""}


def test_a_result_that_is_not_json_fails_with_its_type_and_numpy_events_are_plain(root):
    job = start_job("workers:numbers", root=root)
    status = job.wait(timeout_s=60)
    assert status["state"] == "failed" and "object" in status["error"] and not status["user_error"]
    assert job.events()[0]["value"] == 0.5


def test_eta_follows_the_phase(root):
    context = Context(jobs._make_job(root, "workers:count", {}, "count", None).dir)
    context.progress(500, 1000)  # a resumed job has not done these 500 in no time
    assert context._status["eta_s"] is None
    time.sleep(0.02)
    context.progress(510, 1000)
    assert 0.5 <= context._status["eta_s"] <= 60
    context.progress(0, 4, "evaluating")
    assert context._status["eta_s"] is None


def test_wait_reports_progress_and_gives_up_in_time(root):
    job, seen = start_job("workers:count", {"to": 10_000}, root=root), []
    assert job.wait(timeout_s=1.5, on_progress=seen.append)["state"] == "running"
    assert len(seen) >= 2 and seen[-1]["done"] > 0 and seen[-1]["total"] == 10_000
    with pytest.raises(JobError, match="is running"): job.get_result(timeout_s=0)


def test_workspace_that_cannot_be_written_says_so(tmp_path, root):
    (tmp_path/"file").write_text("")
    with pytest.raises(WorkspaceError, match="a file stands where a folder is needed"): start_job("workers:count", root=tmp_path/"file")
    with pytest.raises(WorkspaceError, match="Cannot make the lock file"): start_job("workers:count", key="k", root=tmp_path/"file")


def test_a_lock_outlives_neither_its_block_nor_a_forked_child(tmp_path):
    with file_lock(tmp_path/"a.lock"):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
        child.start()
    try: assert try_lock(tmp_path/"a.lock") is not None
    finally:
        child.kill()
        child.join()


def test_a_lock_file_may_be_removed_without_letting_two_in(tmp_path, monkeypatch):
    "Removing the file of a lock let one process hold the old file and another a new one of the same name."
    path, flock = tmp_path/"a.lock", fcntl.flock
    holder = try_lock(path)
    def between_opening_and_locking(handle, how):
        monkeypatch.setattr(fcntl, "flock", flock)
        holder.release(remove=True)
        assert not path.exists()
        flock(handle, how)
    monkeypatch.setattr(fcntl, "flock", between_opening_and_locking)
    second = try_lock(path)
    assert second is not None and path.exists() and try_lock(path) is None
    second.release(remove=True)
    assert not path.exists()


# Collecting

def test_an_interrupt_of_the_wait_stops_the_job_and_is_passed_on(root):
    job = start_job("workers:count", {"to": 100_000}, root=root)

    def stop(status):
        if status["done"]: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): collect_job(job.job_id, "workers:count", "count", stop, root)
    assert job.wait(60)["state"] == "cancelled" and job.status()["done"] < 100_000


def test_a_job_of_another_kind_is_not_waited_for(root):
    from llmops_workbench.finetuning import collect_finetune
    from llmops_workbench.prompting import collect_grid
    job = start_job("workers:count", {"to": 100_000}, root=root)
    for collect, kind in ((collect_grid, "grid"), (collect_finetune, "fine-tune")):
        with pytest.raises(JobError, match=f"is no {kind}. It runs workers:count"): collect(job)
    assert job.status()["state"] in ("pending", "running")

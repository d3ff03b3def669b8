"""What benchmarks share: a peer in an interpreter of its own, asked line by line, so that two libraries that cannot live in one environment take turns;
which peers are there; and results that are only written down when nothing was left out."""

import json
import subprocess
import sys


class Peer:
    "A script started as `PYTHON script --serve ...`; it answers each line on its standard input with a line of JSON."
    def __init__(self, python, script, *arguments):
        self.child = subprocess.Popen([python, script, "--serve", *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def ask(self, line="go"):
        self.child.stdin.write(f"{line}\n")
        self.child.stdin.flush()
        return json.loads(self.child.stdout.readline())

    def close(self):
        self.child.stdin.close()
        self.child.wait()


def absent(*packages, python=sys.executable):
    "Which of the packages an interpreter lacks; it is said, because less is measured for it."
    code = "import importlib.util, sys; print(*[name for name in sys.argv[1:] if importlib.util.find_spec(name) is None])"
    found = subprocess.run([python, "-c", code, *packages], capture_output=True, text=True, check=True).stdout.split()
    for name in found:
        print(f"Left out: {name}, which {python} has not. Install it, or name an interpreter that has it where the script takes --peers.", flush=True)
    return found


def record(path, result, left_out=()):
    "Write the results down, unless peers were left out: what was found beside them stays."
    if left_out:
        print(f"{path.name} stays as it is: {', '.join(left_out)} had no part in this run.", flush=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

"""A peer in an interpreter of its own, asked line by line, so that two libraries that cannot live in one environment take turns."""

import json
import subprocess


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

"A store in a file, for the journal: it keeps each point once, as MLflow does, and can be killed at any moment too."
import sqlite3


class Sink:
    def __init__(self, path):
        self.connection = sqlite3.connect(path, check_same_thread=False, timeout=60)
        self.connection.execute("CREATE TABLE IF NOT EXISTS kept (run, name, value, step, time, PRIMARY KEY (run, name, step, time))")
    def __call__(self, run, points):
        with self.connection: self.connection.executemany("INSERT OR IGNORE INTO kept VALUES (?,?,?,?,?)", [(run, *point) for point in points])
    def values(self): return sorted(int(row[0]) for row in self.connection.execute("SELECT value FROM kept"))

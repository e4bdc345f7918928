"""Twenty processes that use one ledger at random and are killed at random: ``python -m tests.state.chaos``.

This process stays small and without threads, so that each of them is a fork of it. Each writes down what the ledger has
acknowledged, after the ledger has; nobody tidies up after a kill.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from pathlib import Path

from cloudai.errors import LedgerError, SpecError
from cloudai.state.leader import leading
from cloudai.state.ledger import Ledger

PROCESSES = 20
NAMES = [f"run-{i}" for i in range(12)]


def main(path: Path, url: str, seconds: float, logs: Path, seed: int) -> None:
    choose = random.Random(seed)
    Ledger(path, url=url)
    alive = [child(path, url, logs) for _ in range(PROCESSES)]
    killed, end = 0, time.monotonic() + seconds
    while time.monotonic() < end or killed < PROCESSES:
        time.sleep(choose.uniform(0, 0.1))
        victim = alive.pop(choose.randrange(PROCESSES))
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
        killed += 1
        alive.append(child(path, url, logs))
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    print(killed)


def child(path: Path, url: str, logs: Path) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            Process(path, url, logs).run()
        finally:
            os._exit(1)  # only an error ends it by itself
    return pid


class Process:
    def __init__(self, path: Path, url: str, logs: Path) -> None:
        self.ledger = Ledger(path, url=url)
        self.me = os.getpid()
        self.choose = random.Random(self.me)
        self.log = os.open(logs / str(self.me), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.count = 0

    def run(self) -> None:
        acts = [self.create, self.want, self.want, self.observe, self.observe, self.observe, self.hold, self.lead]
        while True:
            try:
                self.choose.choice(acts)(self.choose.choice(NAMES))
            except LedgerError as error:
                self.say("fault", str(error).replace("\n", " "))
                raise

    def say(self, *words: object) -> None:
        os.write(self.log, (" ".join(map(str, words)) + "\n").encode())

    def token(self) -> str:
        self.count += 1
        return f"{self.me}.{self.count}"

    def create(self, name: str) -> None:
        with contextlib.suppress(SpecError):
            self.ledger.create("run", name, {"by": self.me}, {})
            self.say("created", name)

    def exists(self, name: str) -> bool:
        return any(record.name == name for record in self.ledger.records("run"))

    def want(self, name: str) -> None:
        if self.exists(name):
            token = self.token()
            self.ledger.want("run", name, {token: 1})
            self.say("wanted", name, token)

    def observe(self, name: str) -> None:
        if self.exists(name):
            token = self.token()
            self.ledger.observe("run", name, self.choose.choice(["running", "recovering"]), {token: 1}, event=token)
            self.say("observed", name, token)

    def hold(self, name: str) -> None:
        if self.exists(name):
            self.ledger.hold("run", name)
            self.ledger.renew_lease("run", name, 60)

    def lead(self, name: str) -> None:
        """Lead for a moment, and write down times at which the lead was certainly ours."""
        with leading(self.ledger.home) if not self.ledger.url else contextlib.nullcontext(True) as leads:
            lead = self.ledger.lead()
            if leads and lead.held():
                tenure = self.token()
                self.say("led", tenure, time.monotonic())
                for _ in range(self.choose.randrange(8)):
                    time.sleep(self.choose.uniform(0, 0.01))
                    at = time.monotonic()
                    if not lead.held():
                        break
                    self.say("led", tenure, at)
            lead.release()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]))

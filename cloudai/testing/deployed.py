"""Deployments on the bench, and what happens while one is looked at."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import pytest

from cloudai.drivers.protocols import DeploymentStatus, Revision, RevisionId, RevisionStatus
from cloudai.testing.bench import Bench

__all__ = ["A", "B", "Deployed", "Meanwhile", "rows_of"]

_REAL_PATIENCE = 30.0
"""Seconds."""
A, B = RevisionId("v1.0.0"), RevisionId("v1.1.0-3f2a9c")


@dataclass
class Deployed:
    """A deployment on the bench, and the words that tests about it use."""

    bench: Bench
    driver: Any
    name: str

    def apply(self, revision: Revision, driver: Any = None) -> RevisionId:
        """Apply a revision under the key that cloudai would use."""
        given: RevisionId = (driver or self.driver).apply(self.name, revision, key=f"{self.name}/{revision.id}")
        return given

    def up(self, *ids: RevisionId) -> Deployed:
        """Bring revisions up and wait until they are ready."""
        for revision in ids:
            self.apply(self.bench.ready_revision(self.name, revision))
        self.wait(lambda: all(self.look(revision).ready for revision in ids), f"{self.name}: {', '.join(ids)} ready")
        return self

    def route(self, traffic: Mapping[RevisionId, int]) -> Deployed:
        """Route, and wait until it is so."""
        self.driver.route(self.name, traffic)
        wanted = {revision: share for revision, share in traffic.items() if share}
        self.wait(lambda: self.traffic() == wanted, f"{self.name}: the traffic {wanted}")
        return self

    def answers_with(self, revision: RevisionId) -> Deployed:
        """Bring a revision up, give it all the traffic, and wait until the deployment answers."""
        self.up(revision).route({revision: 100})
        self.wait(lambda: self.status().ready, f"{self.name}: the deployment ready")
        return self

    def scale(self, revision: RevisionId, replicas: int) -> Deployed:
        """Say that there should be so many replicas, again and again as cloudai does, until it is so."""

        def is_so() -> bool:
            self.driver.scale(self.name, revision, replicas)
            found = self.look(revision)
            return found.replicas == found.ready_replicas == replicas

        self.wait(is_so, f"{self.name}: {replicas} replicas of {revision}")
        return self

    def status(self, driver: Any = None) -> DeploymentStatus:
        """Return what the driver says now."""
        found: DeploymentStatus = (driver or self.driver).inspect(self.name)
        return found

    def look(self, revision: RevisionId) -> RevisionStatus:
        """Return what is known of a revision; one that is not there has nothing."""
        missing = RevisionStatus(revision, ready=False, replicas=0, traffic=0)
        return next((found for found in self.status().revisions if found.id == revision), missing)

    def traffic(self, driver: Any = None) -> dict[RevisionId, int]:
        """Return the share of each revision that has one."""
        return {found.id: found.traffic for found in self.status(driver).revisions if found.traffic}

    def alive(self) -> set[RevisionId]:
        """Return the revisions that have a replica."""
        return {found.id for found in self.status().revisions if found.replicas}

    def wait(self, condition: Callable[[], Any], what: str) -> None:
        """Let time pass until it is so."""
        self.bench.until(condition, what)

    def refuses(self, kinds: tuple[type[Exception], ...], act: Callable[[], Any], clause_name: str, what: str) -> None:
        """Fail unless an act raises one of these and the traffic stays as it was."""
        before = self.traffic()
        try:
            act()
        except kinds:
            pass
        else:
            names = " or ".join(kind.__name__ for kind in kinds)
            pytest.fail(f"{clause_name}: {what} was accepted; raise {names}")
        assert self.traffic() == before, f"{clause_name}: {what} was refused, and the traffic is {self.traffic()}, not {before}"


def rows_of(deployed: Deployed, driver: Any = None) -> set[tuple[Any, ...]]:
    """Return what is known of the revisions that are up."""
    up = [revision for revision in deployed.status(driver).revisions if revision.replicas]
    return {(r.id, r.ready, r.replicas, r.traffic, tuple(r.pids)) for r in up}


class Meanwhile:
    """Does something again and again in a thread while the block runs; its first error is raised at the end."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self._act = act
        self._count = 0
        self._error: Exception | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)

    def _go_on(self) -> None:
        while not self._over.is_set() and self._error is None:
            try:
                self._act()
            except Exception as error:  # noqa: BLE001  it is raised in the test's own thread
                self._error = error
            self._count += 1
            self._over.wait(0.001)

    def wait_for_more(self, count: int) -> None:
        """Wait until it was done a few times more; in real time, for threads know no other."""
        enough, deadline = self._count + count, time.monotonic() + _REAL_PATIENCE
        while self._count < enough and self._error is None and time.monotonic() < deadline:
            time.sleep(0.001)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._over.set()
        self._thread.join(_REAL_PATIENCE)
        if self._error is not None:
            raise self._error

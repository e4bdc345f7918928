"""Jobs on the bench: started, waited for, read, and cancelled when the test ends."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from cloudai.drivers.protocols import Job, JobId, JobStatus, Offer
from cloudai.testing.bench import Bench

__all__ = ["ENDS", "Jobs", "Reader", "echoed", "followed", "same_lines"]

ENDS = ("succeeded", "failed", "preempted", "lost", "cancelled")


class Jobs:
    """Submits jobs, waits for them, and cancels them at the end of the test."""

    def __init__(self, bench: Bench, driver: Any) -> None:
        self._bench, self._driver = bench, driver
        self._started: list[JobId] = []

    def offer(self, job: Job) -> Offer:
        """Return an offer that the job can be submitted to."""
        offers: list[Offer] = [offer for offer in self._driver.offers(job.needs) if offer.available]
        assert offers, f"the driver offers no place for {job.needs}: let the bench's jobs need less"
        return offers[0]

    def submit(self, job: Job, driver: Any = None) -> JobId:
        """Submit a job under its name as the key."""
        job_id: JobId = (driver or self._driver).submit(job, self.offer(job), key=job.name)
        self._started.append(job_id)
        return job_id

    def status(self, job_id: JobId) -> JobStatus:
        """Return what the driver says now."""
        status: JobStatus = self._driver.status(job_id)
        return status

    def running(self, job: Job) -> JobId:
        """Submit a job and wait until it runs."""
        job_id = self.submit(job)
        self._bench.until(lambda: self.status(job_id).phase == "running", f"{job.name} running")
        return job_id

    def ended(self, job: Job) -> JobId:
        """Submit a job and wait until it has ended."""
        job_id = self.submit(job)
        self.end_of(job_id)
        return job_id

    def end_of(self, job_id: JobId) -> JobStatus:
        """Wait until a job has ended, and return how."""

        def look() -> JobStatus | None:
            status = self.status(job_id)
            return status if status.phase in ENDS else None

        status = self._bench.until(look, f"the end of {job_id}")
        assert status is not None
        return status

    def lines(self, job_id: JobId, driver: Any = None) -> list[str]:
        """Return the lines that a job wrote."""
        return [line.text for line in (driver or self._driver).logs(job_id)]

    def close(self) -> None:
        """Cancel what was started; what a test is about was looked at before."""
        for job_id in self._started:
            with contextlib.suppress(Exception):
                self._driver.cancel(job_id)


class Reader:
    """Follows a job in a thread, because the test has to let time pass meanwhile."""

    def __init__(self, driver: Any, job_id: JobId) -> None:
        self.lines: list[str] = []
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._read, args=(driver, job_id), daemon=True)
        self._thread.start()

    def _read(self, driver: Any, job_id: JobId) -> None:
        try:
            self.lines.extend(line.text for line in driver.logs(job_id, follow=True))
        except Exception as error:  # noqa: BLE001  it is raised in the test's own thread
            self.error = error

    def is_done(self) -> bool:
        """Whether it has ended; gives the thread a moment, since a simulated clock runs ahead of it."""
        self._thread.join(0.002)
        if self.error is not None:
            raise self.error
        return not self._thread.is_alive()


def followed(bench: Bench, driver: Any, job_id: JobId) -> list[str]:
    """Follow a job to its end, and return its lines."""
    reader = Reader(driver, job_id)
    bench.until(reader.is_done, "follow-ends-with-the-job: the end of logs(follow=True)")
    return reader.lines


def same_lines(clause_name: str, found: Sequence[str], wanted: Sequence[str]) -> None:
    """Compare lines; what a place adds of its own before and after them does not matter."""
    kept = [line for line in found if line in set(wanted)]
    assert kept == list(wanted), f"{clause_name}: {len(wanted)} lines were written, {len(kept)} of them were read" + (
        "" if len(kept) != len(wanted) else ", in another order"
    )


def echoed(
    bench: Bench, jobs: Jobs, words: Sequence[str], env: dict[str, str], ask: Sequence[str]
) -> tuple[list[str], dict[str, str | None]]:
    """Run a job that writes what it was given, and return that."""
    job = bench.echoing_job(bench.name("echo"), words, env, ask)
    if job is None:
        pytest.skip("the driver starts no process: there are no arguments that could arrive")
    job_id = jobs.ended(job)
    lines = [line for line in jobs.lines(job_id) if line.startswith("[")]
    assert lines, f"the job that writes what it was given wrote {jobs.lines(job_id)}"
    found_words, found_env = json.loads(lines[-1])
    return found_words, found_env

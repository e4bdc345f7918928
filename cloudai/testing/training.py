"""The contract of a `TrainDriver`, clause by clause."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from cloudai.drivers.protocols import JobId, TrainDriver
from cloudai.errors import NotFoundError, PlacementError
from cloudai.testing.bench import Bench, is_running
from cloudai.testing.clauses import clause
from cloudai.testing.jobs import ENDS, Jobs, Reader, echoed, followed, same_lines
from cloudai.testing.sharing import DriverConformance, at_once

__all__ = ["TrainDriverConformance"]

_ORDER = {"starting": 0, "running": 1}
_WORDS = ("two words", "it's", 'a "quote"', "ü → 日本", "line\nbreak", "$HOME `id` ; #", "", "--flag", "back\\slash")
_REMEMBERED = "CLOUDAI_CONFORMANCE_ONLY_HERE"


class TrainDriverConformance(DriverConformance):
    """What a driver that runs jobs must do; subclass it beside a fixture ``bench``."""

    protocol: ClassVar[type] = TrainDriver
    act: ClassVar[str] = "train"

    @pytest.fixture
    def jobs(self, bench: Bench, driver: Any) -> Iterator[Jobs]:
        """Make what submits jobs and cancels them when the test ends."""
        made = Jobs(bench, driver)
        yield made
        made.close()

    @clause("submit-is-idempotent")
    def test_a_key_starts_one_job(self, bench: Bench, driver: Any, jobs: Jobs) -> None:
        """The same key gives the same job and starts nothing: at once, from a new object, from many threads, after its end."""
        job = bench.printing_job(bench.name("once"), ["one line"])
        first = jobs.submit(job)
        others = [jobs.submit(job), jobs.submit(job, bench.guarded())]
        others += at_once([lambda: jobs.submit(job)] * 4)
        before = jobs.end_of(first)
        others.append(jobs.submit(job, bench.guarded()))
        assert set(others) == {first}, f"submit-is-idempotent: the key {job.name!r} gave the ids {sorted({first, *others})}"
        assert jobs.status(first) == before, "submit-is-idempotent: a submit after the end has changed the ended job"
        written = jobs.lines(first).count("one line")
        assert written == 1, f"submit-is-idempotent: the job ran {written} times; keep what was started where the work is"

    @clause("gone-offers-are-refused")
    def test_an_offer_that_is_gone_starts_nothing(self, bench: Bench, driver: Any, jobs: Jobs) -> None:
        """An offer that cannot be had any more is refused with PlacementError, and nothing was started."""
        job = bench.succeeding_job(bench.name("late"))
        gone = bench.gone(jobs.offer(job))
        before = bench.footprint()
        try:
            driver.submit(job, gone, key=job.name)
        except PlacementError:
            started = bench.footprint() - before
            assert not started, f"gone-offers-are-refused: the offer was refused, and {sorted(map(str, started))} was started"
        else:
            pytest.fail("gone-offers-are-refused: an offer with available=False was taken; raise PlacementError")

    @clause("jobs-are-found-again")
    def test_a_new_object_finds_the_job(self, bench: Bench, driver: Any, jobs: Jobs) -> None:
        """A driver made in a new process finds a running job by its id, reads its lines and ends it."""
        ended = jobs.ended(bench.printing_job(bench.name("before"), ["kept"]))
        running = jobs.running(bench.endless_job(bench.name("going")))
        other = bench.guarded()
        try:
            phases = other.status(running).phase, other.status(ended).phase
            assert phases == ("running", "succeeded"), f"jobs-are-found-again: a new object says {phases}"
            assert "kept" in [line.text for line in other.logs(ended)], "jobs-are-found-again: a new object has not the lines"
        except NotFoundError as error:
            pytest.fail(f"jobs-are-found-again: {error.what}; keep the state where the work is, not in memory")
        other.cancel(running)
        bench.until(
            lambda: jobs.status(running).phase in ENDS, "jobs-are-found-again: the end of a job that a new object ended"
        )

    @clause("phases-go-forward")
    def test_phases_only_go_forward(self, bench: Bench, jobs: Jobs) -> None:
        """A job goes from starting to running to one end, and stays there."""
        for job in (bench.succeeding_job(bench.name("forward")), bench.failing_job(bench.name("fails"), 3)):
            job_id = jobs.submit(job)
            seen = self._phases_until_ended(bench, jobs, job_id)
            ranks = [_ORDER.get(phase, 2) for phase in seen]
            assert ranks == sorted(ranks), f"phases-go-forward: the phases were {seen}"
            last = jobs.status(job_id)
            for _ in range(3):
                bench.clock.pause(bench.step)
                assert jobs.status(job_id) == last, "phases-go-forward: what is said of a job has changed after its end"

    def _phases_until_ended(self, bench: Bench, jobs: Jobs, job_id: JobId) -> list[str]:
        seen: list[str] = []

        def look() -> bool:
            phase = jobs.status(job_id).phase
            known = phase in _ORDER or phase in ENDS
            assert known, f"phases-go-forward: {phase!r} is no phase"
            seen.append(phase)
            return phase in ENDS

        bench.until(look, "the end of the job")
        return seen

    @clause("success-means-exit-0")
    def test_success_is_exit_code_0(self, bench: Bench, jobs: Jobs) -> None:
        """A job that ends with 0 has succeeded, and only such a job."""
        good = jobs.end_of(jobs.submit(bench.succeeding_job(bench.name("good"))))
        bad = jobs.end_of(jobs.submit(bench.failing_job(bench.name("bad"), 1)))
        assert (good.phase, good.exit_code) == ("succeeded", 0), f"success-means-exit-0: exit code 0 gave {good}"
        assert bad.phase != "succeeded", f"success-means-exit-0: exit code 1 gave {bad}"

    @clause("failures-say-why")
    def test_a_failure_has_its_exit_code_and_a_reason(self, bench: Bench, jobs: Jobs) -> None:
        """A job that ends with another exit code has failed, with that code and a reason in words."""
        status = jobs.end_of(jobs.submit(bench.failing_job(bench.name("seven"), 7)))
        assert status.phase in ("failed", "succeeded"), f"failures-say-why: exit code 7 gave the phase {status.phase!r}"
        if status.phase == "failed":  # another clause is about a failure that is called a success
            assert status.exit_code == 7, f"failures-say-why: exit code 7 is reported as {status.exit_code}"
            assert status.reason.strip(), "failures-say-why: a failed job must have a reason"

    @clause("kills-are-told")
    def test_a_job_killed_from_outside_has_not_succeeded(self, bench: Bench, jobs: Jobs) -> None:
        """A job that was killed, preempted or lost ends as failed, preempted or lost, with a reason."""
        job_id = jobs.running(bench.endless_job(bench.name("killed")))
        if not bench.interrupt(job_id):
            pytest.skip("the bench cannot kill a job from outside")
        status = jobs.end_of(job_id)
        assert status.phase in ("failed", "preempted", "lost"), f"kills-are-told: a killed job is {status.phase!r}"
        assert status.exit_code != 0, "kills-are-told: a killed job has the exit code 0"
        assert status.reason.strip(), "kills-are-told: a killed job must have a reason"

    @clause("cancel-ends-the-job")
    def test_cancel_ends_a_job(self, bench: Bench, driver: Any, jobs: Jobs) -> None:
        """A cancelled job ends, as cancelled and never as succeeded, and nothing of it is left running."""
        job_id = jobs.running(bench.endless_job(bench.name("unwanted")))
        pid = jobs.status(job_id).pid
        driver.cancel(job_id)
        status = jobs.end_of(job_id)
        assert status.phase == "cancelled", f"cancel-ends-the-job: a cancelled job is {status.phase!r}"
        if pid is not None:
            bench.until(lambda: not is_running(pid), f"cancel-ends-the-job: the end of process {pid}")

    @clause("cancel-after-the-end-is-harmless")
    def test_cancel_after_the_end_changes_nothing(self, bench: Bench, driver: Any, jobs: Jobs) -> None:
        """To cancel a job that has ended, or was cancelled, does nothing: what succeeded stays succeeded."""
        cancelled = jobs.running(bench.endless_job(bench.name("cancelled")))
        driver.cancel(cancelled)
        jobs.end_of(cancelled)
        ended = [jobs.ended(bench.succeeding_job(bench.name("done"))), jobs.ended(bench.failing_job(bench.name("bad"), 2))]
        for job_id in [*ended, cancelled]:
            before = jobs.status(job_id)
            for _ in range(2):
                try:
                    driver.cancel(job_id)
                except Exception as error:  # noqa: BLE001  whatever it is, it breaks the clause
                    pytest.fail(f"cancel-after-the-end-is-harmless: cancel of an ended job raised {error!r}; do nothing there")
            assert jobs.status(job_id) == before, "cancel-after-the-end-is-harmless: cancel has changed an ended job"

    @clause("cancel-of-unknown-is-harmless")
    def test_cancel_of_an_unknown_job_does_nothing(self, bench: Bench, driver: Any) -> None:
        """To cancel a job that never was does nothing, and makes none."""
        unknown = JobId(bench.name("never"))
        try:
            driver.cancel(unknown)
            driver.cancel(unknown)
        except Exception as error:  # noqa: BLE001  whatever it is, it breaks the clause
            pytest.fail(f"cancel-of-unknown-is-harmless: cancel of an unknown job raised {error!r}; do nothing there")

    @clause("unknown-jobs-are-not-found")
    def test_an_unknown_job_is_not_found(self, bench: Bench, driver: Any) -> None:
        """Status and lines of a job that never was are NotFoundError, not an empty answer."""
        unknown = JobId(bench.name("never"))
        for what, act in (
            ("status", lambda: driver.status(unknown)),
            ("logs", lambda: list(driver.logs(unknown))),
            ("logs(follow=True)", lambda: list(driver.logs(unknown, follow=True))),
        ):
            try:
                given = act()
            except NotFoundError:
                continue
            pytest.fail(f"unknown-jobs-are-not-found: {what} of an unknown job gave {given!r}; raise NotFoundError")

    @clause("logs-are-complete")
    def test_all_lines_are_there_in_order(self, bench: Bench, jobs: Jobs) -> None:
        """All lines that a job wrote are there, in order and unchanged, once, however often they are read."""
        wanted = ["first", "", "  indented  ", "ü → 日本", "a" * 5000, *(f"line {number}" for number in range(300))]
        job_id = jobs.ended(bench.printing_job(bench.name("writer"), wanted))
        for _ in range(2):
            same_lines("logs-are-complete", jobs.lines(job_id), wanted)

    @clause("logs-are-of-one-job")
    def test_lines_are_of_their_own_job(self, bench: Bench, jobs: Jobs) -> None:
        """A job's lines are its own, also when another runs at the same time under a similar name."""
        stem = bench.name("twin")
        ids = {
            tag: jobs.submit(bench.printing_job(name, [f"{tag} wrote this"]))
            for tag, name in (("one", stem), ("two", f"{stem}.1"), ("three", f"{stem}1"))
        }
        for tag, job_id in ids.items():
            jobs.end_of(job_id)
            found = {line for line in jobs.lines(job_id) if line.endswith("wrote this")} - {f"{tag} wrote this"}
            assert not found, f"logs-are-of-one-job: the lines of {job_id!r} have those of another job: {found}"

    @clause("follow-ends-with-the-job")
    def test_follow_reads_until_the_job_ends(self, bench: Bench, driver: Any, jobs: Jobs) -> None:
        """``logs(follow=True)`` goes on while the job runs, has every line, and ends when it has ended."""
        wanted = [f"line {number}" for number in range(20)]
        job_id = jobs.submit(bench.printing_job(bench.name("followed"), wanted))
        same_lines("follow-ends-with-the-job", followed(bench, driver, job_id), wanted)
        endless = jobs.running(bench.endless_job(bench.name("endless")))
        reader = Reader(driver, endless)
        for _ in range(3):
            bench.clock.pause(bench.step)
            assert not reader.is_done(), "follow-ends-with-the-job: logs(follow=True) has ended while the job runs"
        driver.cancel(endless)
        bench.until(reader.is_done, "follow-ends-with-the-job: the end of logs(follow=True) after the job was cancelled")

    @clause("arguments-arrive-unchanged")
    def test_arguments_arrive_unchanged(self, bench: Bench, jobs: Jobs) -> None:
        """A job gets its arguments as they are: spaces, quotes, other scripts, line breaks, nothing at all."""
        words, _ = echoed(bench, jobs, _WORDS, {}, ())
        assert tuple(words) == _WORDS, f"arguments-arrive-unchanged: {list(_WORDS)} arrived as {words}"

    @clause("environment-arrives-unchanged")
    def test_the_environment_arrives_unchanged_and_stays_with_its_job(self, bench: Bench, jobs: Jobs) -> None:
        """A job gets its variables as they are, and no other job gets them."""
        env = {f"CLOUDAI_CONFORMANCE_{number}": word for number, word in enumerate(_WORDS)}
        _, found = echoed(bench, jobs, (), {**env, _REMEMBERED: "secret"}, tuple(env))
        assert found == env, f"environment-arrives-unchanged: {env} arrived as {found}"
        _, leaked = echoed(bench, jobs, (), {}, (_REMEMBERED,))
        assert leaked == {_REMEMBERED: None}, "environment-arrives-unchanged: a job has a variable that another was given"

    @clause("times-are-consistent")
    def test_times_are_consistent(self, bench: Bench, jobs: Jobs) -> None:
        """`started_at` stays as it is, `ended_at` comes with the end, and both are between submit and now."""
        before = bench.clock.now()
        job_id = jobs.running(bench.endless_job(bench.name("timed")))
        running = jobs.status(job_id)
        bench.driver.cancel(job_id)
        ended = jobs.end_of(job_id)
        after = bench.clock.now()
        assert running.started_at is not None, "times-are-consistent: a running job has no started_at"
        assert running.ended_at is None, "times-are-consistent: a running job has an ended_at"
        assert ended.started_at == running.started_at, "times-are-consistent: started_at has changed"
        assert ended.ended_at is not None, "times-are-consistent: an ended job has no ended_at"
        ordered = before - 2 <= running.started_at <= ended.ended_at <= after + 2
        assert ordered, f"times-are-consistent: {before} ≤ {running.started_at} ≤ {ended.ended_at} ≤ {after} does not hold"

    @clause("costs-never-fall")
    def test_costs_never_fall(self, bench: Bench, jobs: Jobs) -> None:
        """What a job has cost so far never gets less, and is never below 0 or without a number."""
        job_id = jobs.running(bench.endless_job(bench.name("costly")))
        costs = []
        for _ in range(4):
            costs.append(jobs.status(job_id).cost)
            bench.clock.pause(bench.step)
        bench.driver.cancel(job_id)
        costs.append(jobs.end_of(job_id).cost)
        said = [cost for cost in costs if cost is not None]
        known = all(cost >= 0 for cost in said) and len(said) in (0, len(costs))
        assert known, f"costs-never-fall: the costs were {costs}; say a number each time, or None always"
        assert said == sorted(said), f"costs-never-fall: the costs were {said}"

    @clause("long-names-are-legal")
    def test_names_of_63_characters(self, bench: Bench, jobs: Jobs) -> None:
        """A name of 63 characters and the number of an attempt is a legal key, and two long ones are not confused."""
        stem = bench.name("n").ljust(62, "x")
        names = [f"{stem}{tail}" for tail in ("a.1", "a.12", "b.1", "a")]
        ids = [jobs.submit(bench.printing_job(name, [f"I am {number}"])) for number, name in enumerate(names)]
        assert len(set(ids)) == len(names), f"long-names-are-legal: {len(names)} keys gave the ids {sorted(set(ids))}"
        for job_id in ids:
            status = jobs.end_of(job_id)
            assert status.phase == "succeeded", f"long-names-are-legal: the job {job_id!r} is {status}"

    @clause("close-leaves-what-runs")
    def test_close_leaves_jobs_running(self, bench: Bench, jobs: Jobs) -> None:
        """After `close`, and after a second one, what the driver started goes on."""
        starter = bench.guarded()
        job_id = jobs.submit(bench.endless_job(bench.name("left")), starter)
        bench.until(lambda: jobs.status(job_id).phase == "running", "the job running")
        starter.close()
        starter.close()
        bench.clock.pause(bench.step)
        assert jobs.status(job_id).phase == "running", "close-leaves-what-runs: the job has ended with the driver object"

    @clause("safe-from-many-threads")
    def test_jobs_from_many_threads(self, bench: Bench, driver: Any, jobs: Jobs) -> None:
        """One driver object may submit and look from several threads at once."""
        batch = [bench.printing_job(bench.name(f"thread-{number}"), [f"mine {number}"]) for number in range(4)]
        ids = at_once([lambda job=job: jobs.submit(job) for job in batch])  # type: ignore[misc]
        for number, job_id in enumerate(ids):
            jobs.end_of(job_id)
            found = f"mine {number}" in jobs.lines(job_id)
            assert found, f"safe-from-many-threads: {job_id!r} was started beside others and has not its own line"
        phases = {status.phase for status in at_once([lambda: driver.status(ids[0])] * 8)}
        assert phases == {"succeeded"}, f"safe-from-many-threads: eight threads were told {phases} of one ended job"

    @clause("errors-are-ours")
    def test_only_errors_of_ours_come_out(self, bench: Bench, jobs: Jobs) -> None:
        """Whatever goes wrong is a CloudAIError already in the driver, also while an iterator is being read."""
        failed = jobs.ended(bench.failing_job(bench.name("failed"), 5))
        driver, unknown = bench.connect(), JobId(bench.name("never"))
        self.raw_errors(
            [
                ("check", driver.check),
                ("offers", lambda: driver.offers(bench.impossible())),
                ("status of an unknown job", lambda: driver.status(unknown)),
                ("logs of an unknown job", lambda: driver.logs(unknown)),
                ("logs of a failed job", lambda: driver.logs(failed)),
                ("logs(follow=True) of a failed job", lambda: driver.logs(failed, follow=True)),
                ("close", driver.close),
            ]
        )

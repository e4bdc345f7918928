"""Drivers that break one clause each. Not collected by itself: test_broken_drivers runs it and looks at what failed.

A docstring's first word is the clause; the rest says how a real driver comes to it.
"""

from __future__ import annotations

import inspect
import math
import sys
from dataclasses import replace

import pytest

from cloudai.drivers.protocols import LogLine, RevisionId
from cloudai.errors import DriverError, NotFoundError
from cloudai.testing import ServeDriverConformance, TelemetryDriverConformance, TrainDriverConformance
from cloudai.testing.clauses import clauses_of
from tests.testing.memory import RUNNING, STARTING, MemoryBench, MemoryDriver, MemoryJob, sample

ENDED = ("succeeded", "failed", "preempted", "lost", "cancelled")

# ── offers ──


class PriceIsNaN(MemoryDriver):
    """offers-are-priced: the price list has a hole."""

    def offers(self, needs):
        return [replace(offer, price_per_hour=math.nan) if offer.spot else offer for offer in super().offers(needs)]


class PriceWithoutSource(MemoryDriver):
    """offers-are-priced: nobody knows where the price comes from."""

    def offers(self, needs):
        return [replace(offer, source="") for offer in super().offers(needs)]


class SilentRefusal(MemoryDriver):
    """offers-say-why-not: it says no, and not why."""

    def offers(self, needs):
        return [replace(offer, why_not="") for offer in super().offers(needs)]


class PromisesAnything(MemoryDriver):
    """impossible-needs-are-refused: it does not look at the number of cores."""

    def offers(self, needs):
        return super().offers(replace(needs, cpus=1))


class ProbesByStarting(MemoryDriver):
    """looking-starts-nothing: it finds out what is free by starting something."""

    def offers(self, needs):
        self.world.jobs["probe"] = MemoryJob(None, self.world.clock.now())
        return super().offers(needs)


class ProblemWithoutFix(MemoryDriver):
    """check-says-the-fix: it complains."""

    def check(self):
        return [replace(problem, fix="") for problem in super().check()]


class UnclaimedSpot(MemoryDriver):
    """capabilities-are-kept: it offers spot machines and does not say that it can."""

    capabilities = replace(MemoryDriver.capabilities, spot=False)


# ── training ──


class StartsAgainAfterTheEnd(MemoryDriver):
    """submit-is-idempotent: it looks for the key among what runs only."""

    def submit(self, job, offer, *, key):
        with self.world.lock:
            if key in self.world.jobs and self.status(key).phase in ENDED:
                del self.world.jobs[key]
            return super().submit(job, offer, key=key)


class TakesGoneOffers(MemoryDriver):
    """gone-offers-are-refused: it does not ask whether the place is still there."""

    def submit(self, job, offer, *, key):
        return super().submit(job, replace(offer, available=True), key=key)


class ForgetsEndedJobs(MemoryDriver):
    """jobs-are-found-again: what has ended is known only to the object that saw it."""

    def __init__(self, world):
        super().__init__(world)
        self.seen = set()

    def status(self, job_id):
        status = super().status(job_id)
        if status.phase in ENDED and job_id not in self.seen:
            raise NotFoundError(f"there is no job {job_id!r}", fix="none")
        return status

    def submit(self, job, offer, *, key):
        self.seen.add(key)
        return super().submit(job, offer, key=key)


class GoesBackwards(MemoryDriver):
    """phases-go-forward: while the place restarts its agent, a running job is called starting again."""

    def status(self, job_id):
        status = super().status(job_id)
        kind, age = self.world.jobs[job_id].job.argv[0], self.world.clock.now() - self.world.jobs[job_id].submitted
        restarting = kind != "endless" and STARTING + 1 <= age < STARTING + 2 < STARTING + RUNNING
        return replace(status, phase="starting") if restarting else status


class CallsWarningsSuccess(MemoryDriver):
    """success-means-exit-0: exit code 1 was only a warning where its author comes from."""

    def status(self, job_id):
        status = super().status(job_id)
        return replace(status, phase="succeeded") if status.exit_code == 1 else status


class FailsWithoutReason(MemoryDriver):
    """failures-say-why: failed."""

    def status(self, job_id):
        status = super().status(job_id)
        return replace(status, reason="") if status.phase == "failed" else status


class HidesPreemption(MemoryDriver):
    """kills-are-told: whatever is gone and has no exit code must have ended well."""

    def status(self, job_id):
        status = super().status(job_id)
        return replace(status, phase="succeeded", exit_code=0) if status.phase == "preempted" else status


class CancelSucceeds(MemoryDriver):
    """cancel-ends-the-job: a cancelled job ended as it was told to, so it is a success."""

    def status(self, job_id):
        status = super().status(job_id)
        return replace(status, phase="succeeded", exit_code=0) if status.phase == "cancelled" else status


class CancelOfEndedRaises(MemoryDriver):
    """cancel-after-the-end-is-harmless: the place answers 409 and the driver passes it on."""

    def cancel(self, job_id):
        if job_id in self.world.jobs and self.status(job_id).phase in ENDED:
            raise DriverError("409: it has ended", fix="none")
        super().cancel(job_id)


class CancelOfUnknownRaises(MemoryDriver):
    """cancel-of-unknown-is-harmless: the place answers 404 and the driver passes it on."""

    def cancel(self, job_id):
        self._job(job_id)
        super().cancel(job_id)


class UnknownIsSilent(MemoryDriver):
    """unknown-jobs-are-not-found: what has no lines yet and what never was look the same."""

    def logs(self, job_id, *, follow=False):
        return super().logs(job_id, follow=follow) if job_id in self.world.jobs else iter(())


class DropsEmptyLines(MemoryDriver):
    """logs-are-complete: an empty line is no line."""

    def logs(self, job_id, *, follow=False):
        return (line for line in super().logs(job_id, follow=follow) if line.text)


class MixesLogs(MemoryDriver):
    """logs-are-of-one-job: it selects lines by the beginning of the name."""

    def logs(self, job_id, *, follow=False):
        yield from super().logs(job_id, follow=follow)
        for other in sorted(self.world.jobs):
            if other != job_id and other.startswith(job_id):
                yield from super().logs(other)


class DoesNotFollow(MemoryDriver):
    """follow-ends-with-the-job: follow is not done yet."""

    def logs(self, job_id, *, follow=False):
        return super().logs(job_id)


class JoinsArguments(MemoryDriver):
    """arguments-arrive-unchanged: a shell reads them once more."""

    def submit(self, job, offer, *, key):
        return super().submit(replace(job, argv=tuple(word.replace("\n", " ") for word in job.argv)), offer, key=key)


class LeaksEnvironment(MemoryDriver):
    """environment-arrives-unchanged: it sets variables in its own process for all that come after."""

    def submit(self, job, offer, *, key):
        self.world.__dict__.setdefault("env", {}).update(job.env)
        return super().submit(replace(job, env=dict(self.world.env)), offer, key=key)


class StartsAtTheEnd(MemoryDriver):
    """times-are-consistent: the start is known only after the end."""

    def status(self, job_id):
        status = super().status(job_id)
        return status if status.ended_at else replace(status, started_at=None)


class RefundsCosts(MemoryDriver):
    """costs-never-fall: it says what is left of the budget."""

    def status(self, job_id):
        status = super().status(job_id)
        return status if status.cost is None else replace(status, cost=100 - status.cost)


class CutsNames(MemoryDriver):
    """long-names-are-legal: the place takes 63 characters, the rest is cut off."""

    def submit(self, job, offer, *, key):
        return super().submit(job, offer, key=key[:63])


class CloseEndsJobs(MemoryDriver):
    """close-leaves-what-runs: it tidies up."""

    def submit(self, job, offer, *, key):
        self.__dict__.setdefault("mine", []).append(key)
        return super().submit(job, offer, key=key)

    def close(self):
        for job_id in self.__dict__.get("mine", []):
            self.cancel(job_id)


class LeaksWhileReading(MemoryDriver):
    """errors-are-ours: the connection breaks in the middle of the lines of a failed job."""

    def logs(self, job_id, *, follow=False):
        yield from super().logs(job_id, follow=follow)
        if self.status(job_id).phase == "failed":
            yield LogLine("…")
            raise OSError("the connection broke")


# ── serving ──


class AppliesUnderAnotherName(MemoryDriver):
    """apply-gives-no-traffic: the place has names of its own."""

    def apply(self, name, revision, *, key):
        super().apply(name, revision, key=key)
        return RevisionId(key)


class AppliesAnew(MemoryDriver):
    """apply-is-idempotent: it replaces the revision each time."""

    def apply(self, name, revision, *, key):
        with self.world.lock:
            old = self.world.deployments.get(name, {}).pop(revision.id, None)
            super().apply(name, revision, key=key)
            if old is not None:
                new = self.world.deployments[name][revision.id]
                new.applied, new.pids = old.applied, self.new_pids(len(old.pids))
        return revision.id


class LeavesTheDead(MemoryDriver):
    """apply-brings-back: the key is known, so there is nothing to do."""

    def apply(self, name, revision, *, key):
        known = revision.id in self.world.deployments.get(name, {})
        return revision.id if known else super().apply(name, revision, key=key)


class ScalesAnew(MemoryDriver):
    """scale-is-kept: a new number of replicas is a new set of them."""

    def scale(self, name, revision, replicas):
        with self.world.lock:
            super().scale(name, revision, replicas)
            found = self.world.deployments[name][revision]
            found.pids = self.new_pids(len(found.pids))


class CountsTheDead(MemoryDriver):
    """scale-replaces-the-dead: there are as many as asked for, it says, and does not look whether they live."""

    def replace_dead(self, name, found):
        pass


class AppliesToTheSleeping(MemoryDriver):
    """asleep-is-ready: it takes a revision without replicas for a dead one."""

    def apply(self, name, revision, *, key):
        with self.world.lock:
            found = self.world.deployments.get(name, {}).get(revision.id)
            if found is not None and not found.pids:
                found.pids = self.new_pids(1)
            return super().apply(name, revision, key=key)


class ScalesBelowNothing(MemoryDriver):
    """scale-refuses-the-impossible: a negative number is a list without its end."""

    def check_count(self, replicas):
        pass


class RoundsTraffic(MemoryDriver):
    """traffic-is-as-asked: the place knows tenths only."""

    def route(self, name, traffic):
        rounded = {revision: round(share, -1) for revision, share in traffic.items()}
        super().route(name, rounded if sum(rounded.values()) == 100 else traffic)


class AcceptsNinety(MemoryDriver):
    """shares-sum-to-100: the rest goes nowhere."""

    def check_shares(self, traffic):
        if sum(traffic.values()) != 90:
            super().check_shares(traffic)


class RoutesToUnready(MemoryDriver):
    """only-ready-revisions-get-traffic: it will be up soon."""

    def check_ready(self, name, revision, share):
        if revision not in self.world.deployments.get(name, {}):
            super().check_ready(name, revision, share)


class RoutesOneByOne(MemoryDriver):
    """route-is-atomic: one call of the place's interface for each share."""

    def route(self, name, traffic):
        with self.world.lock:
            self.check_shares(traffic)
            for revision, share in traffic.items():
                self.check_ready(name, revision, share)
                self.world.traffic.setdefault(name, {})[revision] = share
            self.world.traffic[name] = {revision: share for revision, share in traffic.items() if share}


class ForgetsTheAddress(MemoryDriver):
    """deployments-are-found-again: the address is told once, to whoever starts it."""

    def apply(self, name, revision, *, key):
        self.__dict__.setdefault("mine", set()).add(name)
        return super().apply(name, revision, key=key)

    def inspect(self, name):
        status = super().inspect(name)
        return status if name in self.__dict__.get("mine", ()) else replace(status, url="")


class SplitsUnclaimed(MemoryDriver):
    """split-is-refused-without-routing: it claims no routing and takes any table."""

    capabilities = replace(MemoryDriver.capabilities, routing="no")


class RetiresTraffic(MemoryDriver):
    """retire-refuses-traffic: whoever says retire means it."""

    def check_idle(self, name, revision):
        pass


class RetiresNothing(MemoryDriver):
    """retire-ends-the-revision: without traffic it costs little, and it may be of use."""

    def retire(self, name, revision):
        self.check_idle(name, revision)


class DeleteLeavesOne(MemoryDriver):
    """delete-ends-everything: the last page of a listing is not read."""

    def delete(self, name):
        with self.world.lock:
            left = dict(sorted(self.world.deployments.get(name, {}).items())[:1])
            super().delete(name)
            if left:
                self.world.deployments[name] = left


class RoutesNeighbours(MemoryDriver):
    """deployments-are-apart: it finds what to route by the revision's name alone."""

    def route(self, name, traffic):
        super().route(name, traffic)
        for other in list(self.world.traffic):
            if set(traffic) <= set(self.world.deployments[other]):
                self.world.traffic[other] = dict(self.world.traffic[name])


class UnreadyWithoutReason(MemoryDriver):
    """unready-revisions-say-why: not ready."""

    def _look(self, name, revision):
        return replace(super()._look(name, revision), reason="")


class ReadyBeforeTraffic(MemoryDriver):
    """ready-means-answering: all revisions are up, so it is ready."""

    def inspect(self, name):
        status = super().inspect(name)
        return replace(status, ready=bool(status.revisions) and all(found.ready for found in status.revisions))


class LeaksWhileRouting(MemoryDriver):
    """errors-are-ours: a dictionary that has not the name."""

    def route(self, name, traffic):
        self.check_shares(traffic)
        self.world.deployments[name]
        super().route(name, traffic)


# ── telemetry ──


class SamplesWithoutIds(MemoryDriver):
    """samples-are-aligned: it has lost the ids."""

    def samples(self, name, *, since, limit):
        return [replace(found, ids=()) for found in super().samples(name, since=since, limit=limit)]


class IgnoresLimit(MemoryDriver):
    """samples-respect-limit: all of it."""

    def samples(self, name, *, since, limit):
        return super().samples(name, since=since, limit=10**6)


class FutureMeansAlways(MemoryDriver):
    """samples-respect-since: a time that cannot be is taken for none."""

    def samples(self, name, *, since, limit):
        late = since.timestamp() > self.world.clock.now() + 3600
        return super().samples(name, since=since.fromtimestamp(0, since.tzinfo) if late else since, limit=limit)


class NewestFirst(MemoryDriver):
    """samples-can-be-read-on: the newest rows are the interesting ones."""

    def samples(self, name, *, since, limit):
        times = sorted((at, rev) for of, rev, at in self.world.rows if of == name and at > since.timestamp())
        return [sample(RevisionId(rev), at) for at, rev in times[-limit:]] if limit else []


class MetricIsInfinite(MemoryDriver):
    """metrics-are-numbers: a mean over no requests."""

    def metrics(self, name, *, since):
        for metric in super().metrics(name, since=since):
            yield metric
            yield replace(metric, name="mean_seconds", value=math.inf)


class CountsSinceLastLook(MemoryDriver):
    """counters-never-fall: a counter that is read begins at 0 again."""

    def metrics(self, name, *, since):
        last = self.world.__dict__.setdefault("last", {})
        for metric in super().metrics(name, since=since):
            key = metric.labels["revision"]
            yield replace(metric, value=metric.value - last.get(key, 0.0))
            last[key] = metric.value


class MeasuresTomorrow(MemoryDriver):
    """metrics-respect-since: since is for others."""

    def metrics(self, name, *, since):
        return super().metrics(name, since=since.fromtimestamp(0, since.tzinfo))


class UnknownRaises(MemoryDriver):
    """unknown-deployments-are-empty: the place answers 404 and the driver passes it on."""

    def metrics(self, name, *, since):
        if name not in self.world.deployments:
            raise NotFoundError(f"there is no deployment {name!r}", fix="none")
        return super().metrics(name, since=since)


SUITES = (TrainDriverConformance, ServeDriverConformance, TelemetryDriverConformance)
BROKEN = {
    name: kind
    for name, kind in inspect.getmembers(sys.modules[__name__], inspect.isclass)
    if issubclass(kind, MemoryDriver) and kind is not MemoryDriver
}


def _on_bench(driver, suite):
    """Make the suite's subclass that runs it on a bench with a broken driver."""

    @pytest.fixture
    def bench(self):
        made = MemoryBench()
        made.kind = driver
        return made

    return type(f"Test_{driver.__name__}_{suite.__name__}", (suite,), {"bench": bench})


def clause_of(driver):
    return driver.__doc__.partition(":")[0]


def suites_of(driver):
    """Return the suites that have the clause which a driver breaks."""
    return [suite for suite in SUITES if clause_of(driver) in clauses_of(suite)]


for _driver in BROKEN.values():
    for _suite in suites_of(_driver):
        _made = _on_bench(_driver, _suite)
        globals()[_made.__name__] = _made

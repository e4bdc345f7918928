"""The contract of a `ServeDriver`, clause by clause."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest

from cloudai.drivers.protocols import RevisionId, RevisionStatus, ServeDriver
from cloudai.errors import CloudAIError, DriverError, SpecError
from cloudai.testing.bench import Bench
from cloudai.testing.clauses import clause
from cloudai.testing.deployed import A, B, Deployed, Meanwhile, rows_of
from cloudai.testing.sharing import DriverConformance, at_once

__all__ = ["ServeDriverConformance"]


class ServeDriverConformance(DriverConformance):
    """What a driver that keeps deployments up must do; subclass it beside a fixture ``bench``."""

    protocol: ClassVar[type] = ServeDriver
    act: ClassVar[str] = "serve"

    @pytest.fixture
    def pair(self, bench: Bench, driver: Any) -> Deployed:
        """Make a deployment with two ready revisions, all traffic on the first; the tests of a bench share it."""
        return Deployed(bench, driver, bench.shared).up(A, B).route({A: 100})

    @pytest.fixture
    def own(self, bench: Bench, driver: Any) -> Iterator[Deployed]:
        """Name a deployment of the test's own, with nothing in it yet."""
        made = Deployed(bench, driver, bench.name("own"))
        yield made
        with contextlib.suppress(Exception):
            driver.delete(made.name)

    @clause("apply-gives-no-traffic")
    def test_a_new_revision_has_no_traffic(self, pair: Deployed) -> None:
        """A revision that was applied has no traffic until it is routed to, and the others keep theirs."""
        extra = RevisionId("extra")
        given = pair.apply(pair.bench.ready_revision(pair.name, extra))
        assert given == extra, f"apply-gives-no-traffic: apply of {extra!r} returned {given!r}"
        pair.wait(lambda: pair.look(extra).ready, "apply-gives-no-traffic: the new revision ready")
        assert pair.traffic() == {A: 100}, f"apply-gives-no-traffic: after apply the traffic is {pair.traffic()}"
        pair.driver.retire(pair.name, extra)

    @clause("apply-is-idempotent")
    def test_apply_again_changes_nothing(self, pair: Deployed) -> None:
        """Applied again under its key, by this object, a new one or many threads, a revision that is up stays as it is."""
        before = rows_of(pair)
        again = pair.bench.ready_revision(pair.name, A)
        pair.apply(again)
        pair.apply(again, pair.bench.guarded())
        at_once([lambda: pair.apply(again)] * 4)
        assert rows_of(pair) == before, f"apply-is-idempotent: {before} became {rows_of(pair)}"

    @clause("apply-brings-back")
    def test_apply_brings_a_dead_revision_back(self, pair: Deployed) -> None:
        """A revision that has died is not called ready, and comes back when it is applied again."""
        pids = set(pair.look(B).pids)
        killed = pair.bench.kill_revision(pair.name, B)
        if not killed:
            pytest.skip("the bench cannot kill a revision from outside")
        pair.wait(lambda: _is_gone(pair.look(B), pids), "apply-brings-back: no replica of the killed revision any more")
        pair.apply(pair.bench.ready_revision(pair.name, B))
        pair.wait(lambda: pair.look(B).ready, "apply-brings-back: the revision ready again")

    @clause("traffic-is-as-asked")
    def test_traffic_is_what_was_asked_for(self, pair: Deployed) -> None:
        """What `inspect` says is what was routed, sums to 100, and the answers come from there."""
        tables = [{B: 100}, {A: 100}]
        if pair.driver.capabilities.routing != "no":
            tables = [{A: 99, B: 1}, {A: 50, B: 50}, {A: 0, B: 100}, *tables]
        for table in tables:
            pair.driver.route(pair.name, table)
            wanted = {revision: share for revision, share in table.items() if share}
            pair.wait(lambda wanted=wanted: pair.traffic() == wanted, f"traffic-is-as-asked: {wanted}")  # type: ignore[misc]
            if len(wanted) == 1 and (answer := pair.bench.ask(pair.name)) is not None:
                assert answer in wanted, f"traffic-is-as-asked: with the traffic {wanted}, {answer!r} has answered"

    @clause("split-is-refused-without-routing")
    def test_a_split_is_refused_where_it_is_not_claimed(self, pair: Deployed) -> None:
        """A driver whose `routing` is "no" refuses to split the traffic."""
        if pair.driver.capabilities.routing != "no":
            pytest.skip("the driver splits traffic")
        pair.refuses(
            (SpecError, DriverError),
            lambda: pair.driver.route(pair.name, {A: 50, B: 50}),
            "split-is-refused-without-routing",
            "a split",
        )

    @clause("shares-sum-to-100")
    def test_wrong_shares_are_refused(self, pair: Deployed) -> None:
        """Shares that do not sum to 100, or one below 0, are a SpecError, and the traffic stays as it was."""
        for table in ({B: 90}, {A: 90, B: 20}, {}, {A: 150, B: -50}, {A: 0, B: 0}):
            pair.refuses(
                (SpecError,), lambda table=table: pair.driver.route(pair.name, table), "shares-sum-to-100", f"{table}"  # type: ignore[misc]
            )  # fmt: skip

    @clause("only-ready-revisions-get-traffic")
    def test_no_traffic_for_what_is_not_up(self, pair: Deployed) -> None:
        """A revision that is not there or not ready gets no traffic: DriverError, and the traffic stays as it was."""
        name, stuck, nobody = pair.name, RevisionId("stuck"), RevisionId("nobody")
        pair.apply(pair.bench.stuck_revision(name, stuck))
        for revision in (nobody, stuck):
            pair.refuses(
                (DriverError,),
                lambda revision=revision: pair.driver.route(name, {revision: 100}),  # type: ignore[misc]
                "only-ready-revisions-get-traffic",
                f"traffic for {revision!r}",
            )
        pair.driver.retire(name, stuck)
        with pytest.raises(CloudAIError):
            pair.driver.route(pair.bench.name("no-deployment"), {A: 100})

    @clause("route-is-atomic")
    def test_route_is_all_or_nothing(self, pair: Deployed) -> None:
        """A table of which one part cannot be had changes nothing at all."""
        if pair.driver.capabilities.routing == "no":
            pytest.skip("the driver does not split traffic")
        pair.refuses(
            (DriverError,),
            lambda: pair.driver.route(pair.name, {B: 60, RevisionId("nobody"): 40}),
            "route-is-atomic",
            "a table with a revision that is not there",
        )

    @clause("route-is-atomic")
    def test_no_half_of_a_table_is_ever_seen(self, pair: Deployed) -> None:
        """Whoever looks while the traffic is moved sees the old table or the new one."""
        tables: list[dict[RevisionId, int]] = [{A: 100}, {B: 100}]
        seen: list[dict[RevisionId, int]] = []
        with Meanwhile(lambda: seen.append(pair.traffic(pair.bench.driver))) as looks:
            for table in tables * 5:
                pair.driver.route(pair.name, table)
            looks.wait_for_more(1)
        halves = [table for table in seen if table not in tables]
        assert not halves, f"route-is-atomic: while the traffic moved between {tables}, it was {halves[0]}"

    @clause("route-loses-no-request")
    def test_requests_go_on_while_the_traffic_moves(self, pair: Deployed) -> None:
        """While the traffic is moved from one revision to the other, every request is answered."""
        if pair.bench.ask(pair.name) is None:
            pytest.skip("the bench cannot send requests")
        answers: list[RevisionId | None] = []
        with Meanwhile(lambda: answers.append(pair.bench.ask(pair.name))) as requests:
            for table in ({B: 100}, {A: 100}) * 3:
                pair.driver.route(pair.name, table)
                requests.wait_for_more(3)
        assert set(answers) <= {A, B}, f"route-loses-no-request: {set(answers)} have answered"

    @clause("retire-refuses-traffic")
    def test_a_revision_with_traffic_cannot_be_retired(self, pair: Deployed) -> None:
        """To retire a revision that has traffic is a SpecError, and it stays up."""
        pair.refuses(
            (SpecError,), lambda: pair.driver.retire(pair.name, A), "retire-refuses-traffic", "to retire what has traffic"
        )
        assert pair.look(A).ready, "retire-refuses-traffic: retire was refused, and the revision is not ready any more"

    @clause("retire-ends-the-revision")
    def test_retire_ends_one_revision(self, pair: Deployed) -> None:
        """A retired revision has no replica left, the others stay; to retire it again, or one that never was, is harmless."""
        extra = RevisionId("retired")
        pair.up(extra)
        for revision in (extra, extra, RevisionId("nobody")):
            pair.driver.retire(pair.name, revision)
        pair.driver.retire(pair.bench.name("no-deployment"), extra)
        pair.wait(lambda: extra not in pair.alive(), "retire-ends-the-revision: the end of the retired revision")
        left = {A, B} <= pair.alive() and pair.traffic() == {A: 100}
        assert left, f"retire-ends-the-revision: left are {pair.alive()} with the traffic {pair.traffic()}"

    @clause("scale-is-kept")
    def test_a_revision_has_as_many_replicas_as_asked_for(self, own: Deployed) -> None:
        """After `scale` there are so many, with the same traffic; said or applied again, by any object, nothing changes."""
        _needs_scaling(own).answers_with(A)
        for count in (3, 1, 2):
            own.scale(A, count)
            assert own.traffic() == {A: 100}, f"scale-is-kept: with {count} replicas the traffic is {own.traffic()}"
        before = rows_of(own)
        own.driver.scale(own.name, A, 2)
        own.bench.guarded().scale(own.name, A, 2)
        assert rows_of(own) == before, f"scale-is-kept: said again, {before} became {rows_of(own)}"
        own.apply(own.bench.ready_revision(own.name, A))
        assert own.look(A).replicas == 2, f"scale-is-kept: after apply there are {own.look(A).replicas} replicas, not 2"

    @clause("scale-replaces-the-dead")
    def test_scale_again_replaces_what_died(self, own: Deployed) -> None:
        """Of replicas that have died, `scale` with the same number starts as many again, which can be routed to."""
        _needs_scaling(own).answers_with(A).scale(A, 2)
        pids = set(own.look(A).pids)
        if not own.bench.kill_revision(own.name, A):
            pytest.skip("the bench cannot kill a revision from outside")
        own.wait(lambda: _is_gone(own.look(A), pids), "scale-replaces-the-dead: the end of the killed replicas")
        own.scale(A, 2)
        own.route({A: 100})

    @clause("asleep-is-ready")
    def test_a_revision_without_replicas_is_asleep(self, own: Deployed) -> None:
        """Scaled to zero a revision has no replica, is ready, keeps its traffic, may be routed to, and can be woken up."""
        _needs_scaling(own, to_zero=True).answers_with(A).scale(A, 0)
        other = own.bench.guarded()
        for status in (own.status(), own.status(other)):
            found = (status.ready, [(r.ready, r.replicas, r.ready_replicas, r.traffic) for r in status.revisions])
            assert found == (True, [(True, 0, 0, 100)]), f"asleep-is-ready: a revision without replicas is {status}"
        own.apply(own.bench.ready_revision(own.name, A))
        assert not own.look(A).replicas, "asleep-is-ready: apply has woken it up; it has not died"
        own.route({A: 100}).scale(A, 1)
        assert own.bench.ask(own.name) in (A, None), "asleep-is-ready: after its sleep another revision has answered"

    @clause("scale-refuses-the-impossible")
    def test_numbers_and_revisions_that_cannot_be(self, pair: Deployed) -> None:
        """Fewer than no replica is a SpecError, a revision that is not there a DriverError; nothing changes then."""
        _needs_scaling(pair)
        before = rows_of(pair)
        nobody, nowhere = RevisionId("nobody"), pair.bench.name("nowhere")
        cases = [(SpecError, pair.name, A, -1), (DriverError, pair.name, nobody, 1), (DriverError, nowhere, A, 1)]
        for kind, name, revision, count in cases:
            said = f"scale-refuses-the-impossible: {count} replicas of {revision!r} were accepted; raise {kind.__name__}"
            try:
                pair.driver.scale(name, revision, count)
            except kind:
                continue
            pytest.fail(said)
        assert rows_of(pair) == before, f"scale-refuses-the-impossible: {before} became {rows_of(pair)}"

    @clause("scaling-loses-no-request")
    def test_requests_go_on_while_replicas_come_and_go(self, own: Deployed) -> None:
        """While the number of replicas goes up and down, every request is answered."""
        _needs_scaling(own).answers_with(A)
        if own.bench.ask(own.name) is None:
            pytest.skip("the bench cannot send requests")
        with Meanwhile(lambda: own.bench.ask(own.name)) as requests:
            for count in (2, 1):
                own.scale(A, count)
                requests.wait_for_more(3)

    @clause("unknown-deployments-are-empty")
    def test_an_unknown_deployment_is_empty(self, bench: Bench, driver: Any) -> None:
        """Of a deployment that never was, `inspect` says that nothing is there, and makes nothing."""
        name = bench.name("nobody")
        for _ in range(2):
            status = driver.inspect(name)
            empty = (status.name, status.url, status.ready, tuple(status.revisions)) == (name, "", False, ())
            assert empty, f"unknown-deployments-are-empty: inspect of an unknown deployment gave {status}"
        driver.delete(name)

    @clause("ready-means-answering")
    def test_ready_means_that_it_answers(self, own: Deployed) -> None:
        """A deployment is ready once a ready revision has its traffic, not before; then it has a url and answers."""
        own.up(A)
        assert not own.status().ready, "ready-means-answering: it is called ready before anything was routed"
        own.route({A: 100})
        own.wait(lambda: own.status().ready, "ready-means-answering: the deployment ready")
        assert own.status().url, "ready-means-answering: it is ready and has no url"
        assert own.bench.ask(own.name) in (A, None), "ready-means-answering: another revision has answered"

    @clause("deployments-are-found-again")
    def test_a_new_object_finds_the_deployment(self, pair: Deployed) -> None:
        """A driver made in a new process sees the same revisions, traffic and url, and may change them."""
        other = pair.bench.guarded()
        mine, found = pair.status(), pair.status(other)
        same = (found.url, found.ready, rows_of(pair, other)) == (mine.url, mine.ready, rows_of(pair))
        assert same, f"deployments-are-found-again: one object says {mine}, a new one {found}; keep no state in memory"
        other.route(pair.name, {B: 100})
        pair.wait(lambda: pair.traffic() == {B: 100}, "deployments-are-found-again: the traffic that a new object has routed")

    @clause("delete-ends-everything")
    def test_delete_ends_everything(self, own: Deployed) -> None:
        """After `delete` nothing is there, to delete again is harmless, and the same name begins anew."""
        own.up(A, B).route({A: 100})
        for _ in range(2):
            own.driver.delete(own.name)
            own.wait(lambda: not own.status().revisions, "delete-ends-everything: no revision any more")
        gone = own.status()
        assert (gone.url, gone.ready) == ("", False), f"delete-ends-everything: after delete there is {gone}"
        own.up(B)
        assert own.alive() == {B}, f"delete-ends-everything: a new deployment of the name has {own.alive()}"
        assert own.traffic() == {}, f"delete-ends-everything: a new deployment of the name has the traffic {own.traffic()}"

    @clause("deployments-are-apart")
    def test_deployments_do_not_touch_each_other(self, pair: Deployed, own: Deployed) -> None:
        """What is done to one deployment, its end included, changes no other, also where the revisions have the same names."""
        neighbour = Deployed(own.bench, own.driver, f"{pair.name}-2")
        before = rows_of(pair)
        neighbour.up(B).route({B: 100})
        assert rows_of(pair) == before, f"deployments-are-apart: {before} became {rows_of(pair)}"
        neighbour.driver.delete(neighbour.name)
        assert rows_of(pair) == before, f"deployments-are-apart: the end of another changed {before} to {rows_of(pair)}"

    @clause("unready-revisions-say-why")
    def test_a_revision_that_does_not_come_up_says_why(self, pair: Deployed) -> None:
        """A revision that stays stuck or crashes is not ready, has no traffic, and says why in words."""
        name, stuck, crashed = pair.name, RevisionId("stays-stuck"), RevisionId("crashes")
        pair.apply(pair.bench.stuck_revision(name, stuck))
        pair.apply(pair.bench.crashing_revision(name, crashed))
        for revision in (stuck, crashed):
            pair.wait(lambda revision=revision: pair.look(revision).reason, f"unready-revisions-say-why: {revision}")  # type: ignore[misc]
            found = pair.look(revision)
            assert not found.ready, f"unready-revisions-say-why: {revision!r} is called ready"
            assert not found.traffic, f"unready-revisions-say-why: {revision!r} has traffic"
            pair.driver.retire(name, revision)
        ready = [r for r in pair.status().revisions if r.ready and r.reason]
        assert not ready, f"unready-revisions-say-why: {ready} are ready and say why they are not"

    @clause("long-names-are-legal")
    def test_a_name_of_63_characters(self, bench: Bench, driver: Any) -> None:
        """A deployment may have a name of 63 characters."""
        long = Deployed(bench, driver, bench.name("n").ljust(63, "x"))
        try:
            long.up(A).route({A: 100})
        finally:
            driver.delete(long.name)

    @clause("close-leaves-what-runs")
    def test_close_leaves_deployments_up(self, pair: Deployed) -> None:
        """After `close`, and after a second one, the deployment goes on."""
        starter = pair.bench.guarded()
        before = rows_of(pair, starter)
        starter.close()
        starter.close()
        assert rows_of(pair) == before, "close-leaves-what-runs: the deployment has changed with the end of a driver object"

    @clause("safe-from-many-threads")
    def test_a_deployment_from_many_threads(self, pair: Deployed) -> None:
        """One driver object may look at a deployment and route it from several threads at once."""
        acts: list[Callable[[], Any]] = [pair.status] * 6 + [lambda: pair.driver.route(pair.name, {A: 100})] * 2
        shares = [sum(r.traffic for r in found.revisions) for found in at_once(acts) if found is not None]
        assert set(shares) == {100}, f"safe-from-many-threads: looking while others look and route gave the sums {shares}"

    @clause("errors-are-ours")
    def test_only_errors_of_ours_come_out(self, pair: Deployed) -> None:
        """Whatever goes wrong is a CloudAIError already in the driver, also while an iterator is being read."""
        driver, nobody = pair.bench.connect(), pair.bench.name("nobody")
        self.raw_errors(
            [
                ("check", driver.check),
                ("offers", lambda: driver.offers(pair.bench.impossible())),
                ("inspect of an unknown deployment", lambda: driver.inspect(nobody)),
                ("route of an unknown deployment", lambda: driver.route(nobody, {A: 100})),
                ("route to an unknown revision", lambda: driver.route(pair.name, {RevisionId("nobody"): 100})),
                ("route to nothing", lambda: driver.route(pair.name, {})),
                ("retire of an unknown revision", lambda: driver.retire(pair.name, RevisionId("nobody"))),
                ("delete of an unknown deployment", lambda: driver.delete(nobody)),
                ("close", driver.close),
            ]
        )


def _needs_scaling(deployed: Deployed, *, to_zero: bool = False) -> Deployed:
    """Skip the test where the driver is not asked to scale, or cannot let a revision sleep."""
    can = deployed.driver.capabilities
    if can.autoscaling != "asked" or (to_zero and not can.scale_to_zero):
        pytest.skip("the driver is not asked to scale, or not to zero")
    return deployed


def _is_gone(revision: RevisionStatus, pids: set[int]) -> bool:
    """Whether a revision is seen to have died, or has already come back in other processes."""
    return not revision.replicas or (bool(pids) and not pids & set(revision.pids))

"""What the suites for training, serving and telemetry have in common: fixtures, and the clauses of every driver."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import Any, ClassVar

import pytest

from cloudai.drivers.protocols import Capabilities, Driver, Needs, Offer, Problem
from cloudai.errors import CloudAIError
from cloudai.testing.bench import Bench
from cloudai.testing.clauses import Conformance, clause

__all__ = ["DriverConformance", "at_once"]


def at_once(acts: Iterable[Callable[[], Any]]) -> list[Any]:
    """Do several things in a thread each, at the same time, and return what each gave; the first error is raised."""
    acts = list(acts)
    with ThreadPoolExecutor(len(acts)) as pool:
        return [done.result() for done in [pool.submit(act) for act in acts]]


class DriverConformance(Conformance):
    """The clauses that hold for every driver; the suites extend it."""

    protocol: ClassVar[type] = Driver
    act: ClassVar[str] = ""
    """The capability that the suite is about."""

    @pytest.fixture
    def driver(self, bench: Bench) -> Iterator[Any]:
        """Make a driver object, guarded as the registry would."""
        made = bench.guarded()
        yield made
        with contextlib.suppress(Exception):
            made.close()

    @clause("capabilities-are-kept")
    def test_name_and_capabilities_are_those_of_the_driver(self, bench: Bench) -> None:
        """Name and capabilities are constant, and there is a method for whatever is claimed."""
        driver, other = bench.connect(), bench.connect()
        assert isinstance(driver.name, str), "capabilities-are-kept: name must be a str"
        assert driver.name, "capabilities-are-kept: name must not be empty"
        assert isinstance(driver.capabilities, Capabilities), (
            "capabilities-are-kept: capabilities must be a cloudai.drivers.protocols.Capabilities"
        )
        same = (driver.name, driver.capabilities) == (other.name, other.capabilities)
        assert same, "capabilities-are-kept: two objects of the driver differ in name or capabilities"
        assert getattr(driver.capabilities, self.act), f"capabilities-are-kept: set {self.act}=True in the Capabilities"
        assert isinstance(driver, self.protocol), (
            f"capabilities-are-kept: it says that it can {self.act} and lacks a method of {self.protocol.__name__}"
        )

    @clause("capabilities-are-kept")
    def test_what_it_does_not_claim_is_not_offered(self, driver: Any) -> None:
        """No GPU, spot machine or number of workers is offered that the capabilities do not name."""
        claims = driver.capabilities
        offers = _available(driver, Needs())
        assert claims.spot or not any(o.spot for o in offers), "capabilities-are-kept: it offers spot machines; set spot=True"
        if not claims.gpu:
            assert not _available(driver, Needs(gpus=1)), "capabilities-are-kept: it offers GPUs; set gpu=True"
        many = Needs(workers=claims.max_workers + 1)
        assert not _available(driver, many), (
            f"capabilities-are-kept: it offers {many.workers} workers; raise max_workers, or say why not"
        )

    @clause("check-says-the-fix")
    def test_each_problem_has_a_fix(self, driver: Any) -> None:
        """`check` yields Problems, each with what is missing and what to do."""
        for problem in driver.check():
            assert isinstance(problem, Problem), f"check-says-the-fix: {problem!r} is no Problem"
            assert problem.what.strip(), "check-says-the-fix: a problem must say what is missing"
            assert problem.fix.strip(), f"check-says-the-fix: {problem.what!r} must say what to do"

    @clause("offers-are-priced")
    def test_an_offer_has_a_price_with_its_source(self, bench: Bench, driver: Any) -> None:
        """An offer names its driver and place; its price is finite and not negative, with currency, source and date."""
        offers = [*driver.offers(Needs()), *driver.offers(bench.impossible())]
        assert offers, "offers-are-priced: offers() must say something, also where nothing is available"
        for offer in offers:
            _check_offer(offer, driver.name)

    @clause("offers-say-why-not")
    def test_an_unavailable_offer_says_why(self, bench: Bench, driver: Any) -> None:
        """An offer that is not available says why; one that is does not."""
        for offer in [*driver.offers(Needs()), *driver.offers(bench.impossible())]:
            if offer.available:
                assert not offer.why_not, f"offers-say-why-not: {offer.place!r} is available and says {offer.why_not!r}"
                assert not offer.temporary, f"offers-say-why-not: {offer.place!r} is available, nothing has to pass"
            else:
                assert offer.why_not.strip(), f"offers-say-why-not: {offer.place!r} is not available and says no reason"

    @clause("impossible-needs-are-refused")
    def test_nothing_is_available_for_impossible_needs(self, bench: Bench, driver: Any) -> None:
        """What no place can carry is refused with a reason, not accepted or passed over in silence."""
        offers = list(driver.offers(bench.impossible()))
        able = [offer.place for offer in offers if offer.available]
        assert offers, "impossible-needs-are-refused: offer the place with available=False and the reason in why_not"
        assert not able, f"impossible-needs-are-refused: {able} are offered for {bench.impossible()}"

    @clause("looking-starts-nothing")
    def test_looking_starts_nothing(self, bench: Bench) -> None:
        """`check` and `offers` start nothing and leave nothing behind."""
        before = bench.footprint()
        driver = bench.guarded()
        for _ in range(2):
            list(driver.check())
            list(driver.offers(Needs()))
        driver.close()
        started = bench.footprint() - before
        assert not started, f"looking-starts-nothing: check() or offers() has started {sorted(map(str, started))}"

    @clause("safe-from-many-threads")
    def test_offers_from_many_threads(self, driver: Any) -> None:
        """One driver object may be asked from several threads at once."""
        found = at_once([lambda: [offer.place for offer in driver.offers(Needs())]] * 8)
        same = all(places == found[0] for places in found)
        assert same, "safe-from-many-threads: the offers differ between threads that asked at the same time"

    def raw_errors(self, acts: Iterable[tuple[str, Callable[[], Any]]]) -> None:
        """Do each act on a driver that nobody guards, read what it gives to its end, and fail for a foreign error."""
        for what, act in acts:
            try:
                given = act()
                if isinstance(given, Iterable):
                    list(given)
            except CloudAIError:
                continue
            except Exception as error:  # noqa: BLE001  finding them is what this is for
                pytest.fail(
                    f"errors-are-ours: {what} let {type(error).__name__}: {error} out; "
                    "raise a class of cloudai.errors with a fix, also while what you return is being read"
                )


def _available(driver: Any, needs: Needs) -> list[Offer]:
    return [offer for offer in driver.offers(needs) if offer.available]


def _check_offer(offer: Offer, name: str) -> None:
    assert offer.driver == name, f"offers-are-priced: an offer of {name!r} says driver={offer.driver!r}"
    assert offer.place.strip(), "offers-are-priced: an offer must name its place"
    price = offer.price_per_hour
    assert isinstance(price, int | float), f"offers-are-priced: the price {price!r} is no number"
    assert math.isfinite(price), f"offers-are-priced: the price of {offer.place!r} is {price}"
    assert price >= 0, f"offers-are-priced: the price of {offer.place!r} is {price}, below 0"
    assert offer.currency.strip(), f"offers-are-priced: the price of {offer.place!r} has no currency"
    assert offer.source.strip(), f"offers-are-priced: the price of {offer.place!r} does not say where it comes from"
    try:
        date.fromisoformat(offer.as_of[:10])
    except ValueError:
        pytest.fail(f"offers-are-priced: as_of={offer.as_of!r} of {offer.place!r} is no date like 2026-11-24")

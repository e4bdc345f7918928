"""Plans: what is chosen and why, and what the numbers rest on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import cloudai
from cloudai.drivers.protocols import Needs, Offer
from cloudai.errors import PlacementError, SpecError
from cloudai.planning import catalog
from cloudai.planning.estimate import Estimate
from cloudai.planning.plan import Plan, choose
from cloudai.planning.spending import Span, spending

DATA = (np.random.default_rng(0).normal(size=(300, 8)), np.arange(300) % 2)


def an_offer(driver="local", price=1.0, **more):
    return Offer(driver, "here", price, "USD", "a list", "2026-11-24", **more)


def network():
    return torch.nn.Linear(8, 2)


def test_the_cheapest_that_can_be_launched_on_the_driver_asked_for():
    offers = [an_offer(price=3), an_offer(price=2), an_offer(price=1, available=False, why_not="no"), an_offer("other", 0.1)]
    assert choose(offers, "local").price_per_hour == 2
    assert choose(offers, "nothing") is None


def test_published_prices_are_for_comparison_and_never_chosen(home):
    found = catalog.reference_offers(Needs(gpus=1))
    assert {offer.driver for offer in found} == {"aws", "azure", "gcp"}
    assert all(not offer.available and offer.why_not and offer.source and offer.as_of for offer in found)
    assert catalog.reference_offers(Needs(gpus=10_000)) == []
    assert [o.place for o in catalog.reference_offers(Needs(gpus=1, gpu_type="H100")) if "H100" not in o.place] == []


def test_a_plan_is_free_and_leaves_nothing(home):
    plan = cloudai.plan(network(), DATA, epochs=3)
    assert plan.offer.driver == "local"
    assert len(cloudai.costs()) == 0
    assert not (home / "store").exists()


def test_it_says_place_time_cost_basis_and_why_not_elsewhere(home, monkeypatch):
    monkeypatch.setenv("CLOUDAI_LOCAL_PRICE_PER_HOUR", "3600")
    plan = cloudai.plan(network(), DATA, epochs=3)
    low, high = plan.cost
    assert (low, high) == (plan.estimate.low, plan.estimate.high)
    text = plan.explain()
    for word in (
        "this machine",
        "computed: 6 operations",
        "CLOUDAI_LOCAL_PRICE_PER_HOUR",
        "leaves out",
        "for comparison only",
        "✓",
    ):
        assert word in text
    assert "<script" not in plan._repr_mimebundle_()["text/html"]


def test_a_price_that_is_not_counted_says_so(home):
    assert "own machine, not counted" in cloudai.plan(network(), DATA).explain()


def test_a_function_of_ones_own_is_an_unknown_and_says_so(home):
    def work(context):
        return None

    plan = cloudai.plan(work)
    assert plan.cost is None
    assert "unknown: the first run of your own function" in plan.explain()


def test_the_second_time_the_basis_is_the_first_run(home):
    run = cloudai.plan(network(), DATA, epochs=2).apply().wait(60)
    again = cloudai.plan(network(), DATA, epochs=4)
    assert again.estimate.basis == "measured: 1 earlier run of this work"
    assert again.estimate.low < 2 * run._record.status["seconds"] < again.estimate.high
    assert cloudai.plan(torch.nn.Linear(8, 3), DATA, epochs=4).estimate.basis.startswith("computed")


def test_where_nothing_fits_apply_says_why():
    offers = [an_offer(available=False, why_not="this machine has no GPU")]
    plan = Plan("train x", Needs(gpus=1), None, offers, Estimate(1, 2, "b"), lambda: None)
    assert "nowhere" in plan.explain()
    with pytest.raises(PlacementError, match="local: this machine has no GPU"):
        plan.apply()


def test_spending_adds_up_spans_at_a_price_with_its_source():
    price = {"per_hour": 3600.0, "currency": "EUR", "source": "a list, 2026-01-01"}
    spent = spending([Span(10.0, 12.0, price), Span(20.0, None, price), Span(None, None, price)], 23.0)
    assert (spent.seconds, spent.amount, spent.currency) == (5.0, 5.0, "EUR")
    assert "a list" in str(spent)
    assert spending([], 0.0).basis == "no place was taken yet"


def test_what_the_place_has_billed_counts_and_only_the_time_since_is_estimated():
    price = {"per_hour": 3600.0, "currency": "USD", "source": "a list"}
    spent = spending([Span(0.0, 10.0, price, billed=7.0), Span(10.0, None, price, billed=2.0, billed_at=12.0)], 15.0)
    assert spent.amount == 7.0 + 2.0 + 3.0
    assert "as billed by the place" in spent.basis


def test_a_clock_that_was_set_back_makes_no_negative_cost():
    price = {"per_hour": 1.0, "currency": "USD", "source": "a list"}
    assert spending([Span(100.0, None, price)], 50.0).amount == 0.0


def test_spot_is_chosen_only_where_it_is_asked_for():
    offers = [an_offer(price=1, spot=True), an_offer(price=3)]
    assert choose(offers, "local").price_per_hour == 3
    assert choose(offers, "local", spot=True).price_per_hour == 1
    plan = Plan("train x", Needs(), offers[1], offers, Estimate(1, 2, "b"), lambda: None)
    assert "may be taken away: spot_policy='spot' takes it" in plan.explain()


def test_a_driver_without_spot_machines_refuses_the_policy(home):
    with pytest.raises(SpecError, match="'local' has no spot machines"):
        cloudai.train(network(), DATA, spot_policy="spot")

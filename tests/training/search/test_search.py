"""Searches on the simulated cloud: the real core, hours in a moment."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import cloudai
from cloudai import Search, choice, errors, integers, log_uniform, settings, uniform
from cloudai.artifacts.store import Store
from cloudai.drivers.simulated.world import Preemption, World, Zone
from cloudai.state import handles
from cloudai.state.ledger import Ledger, open_ledger
from cloudai.testing.simulation import Simulation
from tests.flow.work import weights

INPUTS = np.random.default_rng(0).normal(size=(120, 4)).astype("float32")
DATA = INPUTS, (INPUTS[:, 0] > 0).astype(int)
SPACE = {"lr": log_uniform(1e-4, 1e-1), "batch_size": choice(16, 32)}


def network():
    torch.manual_seed(0)
    return torch.nn.Linear(4, 2)


def train(search, work=None, data=DATA, **options):
    loop = {} if callable(work) and not isinstance(work, torch.nn.Module) else {"epochs": 4}
    given = {"on": "simulated", "name": "s", "model_name": "m", **loop, **options}
    return cloudai.train(work or network(), data, search=search, **given)


def report(name, values, attempt=1):
    """Write down what a trial's worker would have reported by now."""
    folder = Store(settings.current().store).at(f"runs/{name}")
    rows = [[step, {"val_loss": value}, 0.0] for step, value in enumerate(values, start=1)]
    folder.write(f"metrics/{attempt:04d}-000000.json", str(rows).replace("'", '"').encode())
    folder.write_json("status.json", {"attempt": attempt, "files": len(values), "step": len(values)})


def events(name="s"):
    return [event.what for event in open_ledger().events("run", name)]


def test_a_search_ends_with_the_best_trials_model_and_counts_what_all_have_cost():
    with Simulation() as simulation:
        run = train(Search(SPACE, trials=4, grace=None)).wait(progress=False)
        trials = run.trials
        assert [trial.phase for trial in trials] == ["succeeded"] * 4
        assert trials.best.value == min(trial.value for trial in trials) == run.metrics["val_loss"]
        assert run.cost.amount == sum(trial.cost.amount for trial in trials) == simulation.bill.total == 4.0
        assert cloudai.costs().totals == {"USD": 4.0}, "trials are not counted twice"
        alone = cloudai.train(network(), DATA, on="simulated", model_name="alone", epochs=4, **trials.best.parameters)
        assert weights(alone.wait(progress=False)) == weights(run), "the best trial is what its parameters give"
        assert run.model.name == "m"
        assert (run.model.lineage["run"], run.model.lineage["trial"]) == ("s", trials.best.name)
        assert cloudai.load_model("m").verify().digest == run.model.digest
        assert sorted({model for model, *_ in open_ledger().models()}) == ["alone", "m"], "the others' are not kept"
        assert Store(settings.current().store).list("models") == ["alone", "m"]
        with pytest.raises(errors.NotReadyError, match="is a trial, and its search keeps one model"):
            _ = cloudai.attach(f"run/{trials.best.name}").model


def test_the_card_shows_the_best_so_far_and_every_trial_in_text_and_html():
    with Simulation() as simulation:
        run = train(Search(SPACE, trials=3, parallel=2))
        simulation.advance("30m")
        report("s-001", [0.5])
        simulation.advance()
        text, html = str(run), run._repr_mimebundle_()["text/html"]
        for said in ("best so far", "val_loss 0.5 with lr 0.000470488, batch_size 32", "2 running, 1 waiting; 2 at once"):
            assert said in text
            assert said in html
        assert "✓  s-001" in str(run.trials)
        assert repr(run.trials) == "Trials(3, best='s-001')"
        assert run.status.phase == "running"


def test_a_weak_trial_is_stopped_at_its_rung_and_its_place_goes_to_the_next():
    with Simulation() as simulation:
        run = train(Search(SPACE, trials=3, reduction=2, parallel=2), epochs=8)
        simulation.advance("30m")
        report("s-001", [0.5])
        simulation.advance()
        report("s-002", [0.9])
        simulation.advance()
        weak = cloudai.attach("run/s-002")
        reason = "stopped early at step 1: val_loss 0.9 is not among the best 1/2 of 2"
        assert (weak.phase, weak.status.reason) == ("cancelled", reason)
        assert [trial.phase for trial in run.trials] == ["running", "stopped", "running"]
        assert run.trials[1].cost.seconds == pytest.approx(29 * 60), "what is stopped costs nothing more"
        assert f"s-002 is to be {reason}" in events()
        run.wait(progress=False)
        assert run.trials.best.name != "s-002"


def test_the_last_that_could_succeed_is_not_stopped():
    def work(context):
        context.report({"val_loss": context.config["x"]})
        context.report({"val_loss": context.config["x"]})
        if context.config["x"] < 0.5:
            raise ValueError("too good to be true")
        return torch.nn.Linear(4, 2)

    search = Search({"config.x": uniform(0, 1)}, trials=2, parallel=1)
    drawn = [parameters["config.x"] for parameters in search.drawn(3)]
    assert drawn[0] < 0.5 < drawn[1]
    with Simulation():
        run = train(search, work, seed=3).wait(progress=False)
        assert [trial.phase for trial in run.trials] == ["failed", "succeeded"]


def test_one_after_the_other_takes_the_same_decisions_again():
    def once():
        with Simulation():
            run = train(Search(SPACE, trials=5, parallel=1), seed=3).wait(progress=False)
            assert run.exact
            return events(), weights(run)

    first = once()
    assert first == once()
    assert any("stopped early" in event for event in first[0])


def test_side_by_side_is_not_called_exact():
    with Simulation():
        run = train(Search(SPACE, trials=2, parallel=2)).wait(progress=False)
        assert "which one is stopped early depends on which came first" in run.why_not_exact


def test_trials_that_fail_do_not_fail_the_search_and_where_all_fail_it_says_the_first_error():
    def work(context):
        if context.config["width"] > 2:
            raise ValueError(f"width {context.config['width']} is too wide")
        context.report({"val_loss": 1 / context.config["width"]})
        return torch.nn.Linear(4, context.config["width"])

    with Simulation():
        run = train(Search({"config.width": integers(1, 4)}, trials=4), work).wait(progress=False)
        assert {t.parameters["config.width"]: t.phase for t in run.trials if t.phase != "stopped"}[2] == "succeeded"
        assert sorted(trial.phase for trial in run.trials).count("failed") == 2
        assert "is too wide" in str(run)
        assert run.model.signature.outputs[0].shape == (-1, 2)
        bad = train(Search({"config.width": integers(3, 4)}, trials=2), work, name="bad")
        with pytest.raises(
            errors.RunFailedError, match=r"no trial succeeded; bad-001 failed: ValueError: width . is"
        ) as caught:
            bad.wait(progress=False)
        assert "raise ValueError" in caught.value.frames


def test_a_metric_that_is_never_reported_is_named():
    def work(context):
        context.report({"loss": 1.0})

    with Simulation():
        run = train(Search({"config.x": choice(1, 2)}, metric="lost"), work)
        with pytest.raises(errors.RunFailedError, match="it never reported 'lost'"):
            run.wait(progress=False)


def test_cancelling_ends_every_trial_and_the_bill():
    with Simulation() as simulation:
        run = train(Search(SPACE, trials=4, parallel=2))
        simulation.advance("31m")
        assert len(cloudai.ps()) == 3
        run.cancel()
        simulation.advance("1m")
        assert run.phase == "cancelled"
        assert len(cloudai.ps()) == 0
        assert cloudai.attach("run/s-001").status.reason == "with its search: cancelled"
        spent = simulation.bill.total
        simulation.advance("5h")
        assert simulation.bill.total == spent == run.cost.amount == 1.0


def test_a_search_that_nobody_holds_ends_with_its_lease_and_so_do_its_trials():
    with Simulation() as simulation:
        run = train(Search(SPACE, trials=4), lease="40m")
        simulation.advance("5m")
        handles._handles.discard(run)  # as if its process had ended
        simulation.advance("3h")
        run.refresh()
        assert run.phase == "cancelled"
        assert "lease has passed" in run.status.reason
        assert len(cloudai.ps()) == 0
        assert simulation.bill.total < 2 * 50 / 60, run


def test_what_one_holds_elsewhere_is_not_cleaned_up_trial_by_trial():
    with Simulation() as simulation:
        run = train(Search(SPACE, trials=2))
        simulation.advance("10m")
        assert len(cloudai.ps()) == 3, run
        assert {str(holder) for entry in cloudai.ps().entries for holder in entry.holders} == {"this process"}


def test_a_trial_on_a_spot_machine_that_is_taken_away_comes_back():
    world = World(zones=[Zone(name="a", price=3.0, spot=1.0)], preemptions=[Preemption(at="30m")])
    with Simulation(world) as simulation:
        run = train(Search(SPACE, trials=2, grace=None), spot_policy="spot").wait(progress=False)
        assert [cloudai.attach(f"run/{trial.name}").status.preemptions for trial in run.trials] == [1, 1]
        assert run.cost.amount == pytest.approx(simulation.bill.total)


@pytest.mark.parametrize("deed", [("run", "s-001"), ("run", "s-002")])
def test_a_supervisor_that_dies_between_its_note_and_its_deed_is_followed_by_one_that_does_it(deed, monkeypatch):
    create, died = Ledger.create, []

    def dies_once(self, kind, name, *rest, **options):
        if (kind, name) == deed and not died:
            died.append(name)
            raise errors.LedgerError("killed here", fix="start another")
        return create(self, kind, name, *rest, **options)

    with Simulation() as simulation:
        monkeypatch.setattr(Ledger, "create", dies_once)
        run = train(Search(SPACE, trials=2, grace=None))
        with pytest.raises(errors.LedgerError, match="killed here"):
            simulation.advance("1m")
        assert [trial.name for trial in run.wait(progress=False).trials] == ["s-001", "s-002"]
        assert died


def test_a_store_that_fails_at_the_end_is_waited_for(monkeypatch):
    remove, refused = Store.remove, []

    def refuses_once(self, key):
        if key.startswith("models/s-002/") and not refused:
            refused.append(key)
            raise errors.StoreError("the store is away", fix="wait", temporary=True)
        remove(self, key)

    with Simulation():
        monkeypatch.setattr(Store, "remove", refuses_once)
        run = train(Search(SPACE, trials=2, grace=None)).wait(progress=False)
        assert "waiting: the store is away" in events()
        assert run.model.version == "1.0.0", "written once"
        assert Store(settings.current().store).list("models") == ["m"]


def test_a_model_of_the_users_that_has_a_trials_name_is_left_alone():
    with Simulation():
        own = cloudai.train(network(), DATA, on="simulated", name="own", model_name="s-002", epochs=1).wait(progress=False)
        before = own.model.uri, own.model.digest
        run = train(Search(SPACE, trials=2, grace=None)).wait(progress=False)
        assert run.phase == "succeeded"
        assert (cloudai.load_model("s-002").uri, cloudai.load_model("s-002").digest) == before
        store = Store(settings.current().store)
        assert sorted(store.list("models")) == ["m", "s-002"]
        assert store.list("models/s-002") == [own.model.version, "claims"]
        assert store.list("models/s-002/claims") == [f"{own.model.version}.json"]


def test_a_store_that_refuses_ends_the_search_and_all_its_trials(monkeypatch):
    def refuses(*_, **__):
        raise errors.StoreError("the key is not valid", fix="renew it")

    with Simulation() as simulation:
        run = train(Search(SPACE, trials=3))
        simulation.advance("5m")
        monkeypatch.setattr("cloudai.training.search.advance.reports_of", refuses)
        simulation.advance("5m")
        assert (run.phase, run.status.reason) == ("failed", "the key is not valid")
        assert open_ledger().get("run", "s").status["fix"] == "renew it"
        assert {trial.phase for trial in run.trials} == {"cancelled"}
        assert {trial.reason for trial in run.trials} == {"with its search, which failed"}
        assert cloudai.attach("run/s-001").phase == "cancelled"
        assert len(cloudai.ps()) == 0


def test_a_run_that_has_a_trials_name_is_left_alone():
    with Simulation() as simulation:
        other = cloudai.train(network(), DATA, on="simulated", name="s-002", epochs=1)
        run = train(Search(SPACE, trials=2))
        simulation.advance("5m")
        assert run.phase == "failed"
        assert "there is a run 's-002' already" in run.status.reason
        assert {trial.phase for trial in run.trials} == {"cancelled"}
        other.wait(progress=False)
        assert cloudai.attach("run/s-001").phase == "cancelled"


def a_function(context):
    """Work of a user's own."""


@pytest.mark.parametrize(
    ("space", "options", "says"),
    [
        ({"lrr": uniform(0, 1)}, {}, r"the search has 'lrr', which is no option.*\n.*did you mean 'lr'"),
        ({"config.width": choice(1)}, {}, "'config.width', which is no option of the built-in loop"),
        ({"validation": uniform(0.1, 0.2)}, {}, "'validation' cannot be searched"),
        ({"max_length": choice(8)}, {}, "'max_length', which is no option"),
        ({"lr": uniform(0, 1)}, {"work": a_function}, r"you pass a function\n.*config.lr"),
        ({"lr": choice(0.1, "fast")}, {}, "lr='fast'"),
        ({"batch_size": choice(15)}, {"num_workers": 2}, "batch_size=15 cannot be split"),
        ({"lr": uniform(0, 1)}, {"lr": 0.1}, "lr= is searched, and given too"),
        ({"lr": uniform(0, 1)}, {"metric": "acc"}, r"the metric 'acc' is not reported\n.*'val_accuracy'"),
        ({"lr": uniform(0, 1)}, {"validation": 0.0}, "the metric 'val_loss' is not reported"),
        ({"lr": uniform(0, 1)}, {"name": "n" * 60}, "too long for a search"),
        ({"config.key": choice("AKIA" + "IOSFODNN7EXAMPLE")}, {"work": a_function}, "looks like a secret"),
    ],
)
def test_what_cannot_be_searched_is_refused_at_once(space, options, says):
    metric = options.get("metric", "val_loss")
    options = {name: value for name, value in options.items() if name != "metric"}
    with Simulation():
        with pytest.raises(errors.SpecError, match=f"(?s){says}"):
            train(Search(space, metric=metric), **options)
        assert len(cloudai.costs()) == 0


def test_a_search_must_be_one():
    with Simulation(), pytest.raises(errors.SpecError, match=r"search= is a dict\n.*cloudai.Search"):
        train({"lr": uniform(0, 1)})


def test_a_plan_says_what_all_trials_cost_and_starts_them():
    with Simulation():
        search = Search(SPACE, trials=4, parallel=2)
        plan = cloudai.plan(network(), DATA, on="simulated", epochs=4, search=search)
        one = cloudai.plan(network(), DATA, on="simulated", epochs=4)
        assert "4 trials, 2 at once" in plan.explain()
        assert plan.estimate.high == pytest.approx(2 * one.estimate.high, rel=0.01)
        assert plan.cost[1] == pytest.approx(4 * one.cost[1], rel=0.01)
        assert one.cost[0] < plan.cost[0] < 4 * one.cost[0]
        run = plan.apply()
        assert len(run.trials) == 4
        run.cancel()


def test_a_deployment_takes_the_model_of_a_search():
    with Simulation():
        run = train(Search(SPACE, trials=2))
        deployment = cloudai.deploy(run, on="simulated", lease=None).wait(24 * 3600)
        assert deployment.model.digest == run.model.digest


def test_logs_say_which_trial_wrote_them():
    with Simulation():
        run = train(Search(SPACE, trials=2)).wait(progress=False)
        lines = list(run.logs())
        assert any(line.startswith("s-001: step") for line in lines)
        assert any(line.startswith("s-002: step") for line in lines)


def test_a_store_that_is_away_does_not_keep_a_search_from_being_found(monkeypatch):
    def away(*_, **__):
        raise errors.StoreError("the store is away", fix="wait", temporary=True)

    with Simulation():
        run = train(Search(SPACE, trials=2, grace=None)).wait(progress=False)
        seen = run.metrics
        with monkeypatch.context() as patch:
            patch.setattr("cloudai.training.search.run.reports_of", away)
            run.refresh()
            back = cloudai.attach("run/s")
            assert (run.metrics, back.metrics, back.cost) == (seen, {}, run.cost)
            assert "its progress may be old: the store is away" in str(back)
        back.refresh()
        assert back.metrics == seen
        assert "may be old" not in str(back)


def test_logs_wait_for_a_trial_that_is_noted_and_not_yet_recorded(monkeypatch):
    create, refused = Ledger.create, []

    def dies_once(self, kind, name, *rest, **options):
        if name == "s-002" and not refused:
            refused.append(name)
            raise errors.LedgerError("killed here", fix="start another")
        return create(self, kind, name, *rest, **options)

    with Simulation() as simulation:
        monkeypatch.setattr(Ledger, "create", dies_once)
        run = train(Search(SPACE, trials=2, grace=None))
        with pytest.raises(errors.LedgerError, match="killed here"):
            simulation.advance("1m")
        run.refresh()
        assert [trial.phase for trial in run.trials] == ["running", "running"]
        assert {line.partition(":")[0] for line in run.logs()} <= {"s-001"}
        assert {line.partition(":")[0] for line in run.logs(follow=True)} == {"s-001", "s-002"}


def test_a_budget_is_for_all_trials_together_and_a_stopped_search_goes_on_with_a_larger_one():
    with Simulation() as simulation:
        run = train(Search(SPACE, trials=4, grace=None), budget=cloudai.Budget(usd=2.5), lease=None)
        with pytest.raises(errors.RunFailedError, match=r"(?s)2 of 4 trials are done with at most 2.50 USD.*resume\("):
            run.wait(progress=False)
        assert [trial.phase for trial in run.trials] == ["succeeded", "succeeded", "limited", "limited"]
        assert 2.3 < simulation.bill.total <= 2.5
        assert run.cost.amount == pytest.approx(simulation.bill.total)
        run.resume(budget=cloudai.Budget(usd=6)).wait(progress=False)
        assert [trial.phase for trial in run.trials] == ["succeeded"] * 4
        assert [cloudai.attach(f"run/{trial.name}").status.attempt for trial in run.trials] == [1, 1, 2, 2]
        assert run.cost.amount == pytest.approx(simulation.bill.total)
        assert simulation.bill.total < 4.5, "it went on from its checkpoints"
        assert run.model.name == "m"


def test_a_deadline_is_for_all_trials():
    with Simulation() as simulation:
        run = train(Search(SPACE, trials=4, grace=None), deadline="90m")
        simulation.advance("80m")
        assert run.phase == "running"
        simulation.advance("12m")
        assert (run.phase, "the deadline" in run.status.reason) == ("stopped", True)
        assert simulation.bill.lines[-1].end <= 1.5


def test_a_profile_is_of_a_trial():
    with Simulation(), pytest.raises(errors.NotReadyError, match="is a search"):
        train(Search(SPACE, trials=2)).profile()

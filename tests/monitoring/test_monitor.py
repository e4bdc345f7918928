"""A monitor whose look fails: it says why, tries again less and less often, and goes on when that is over."""

from __future__ import annotations

import numpy as np
import pytest

import cloudai
from cloudai.drivers.simulated.deployments import Traffic
from cloudai.errors import DriverError
from cloudai.monitoring import monitor
from cloudai.testing.simulation import Simulation
from tests.flow import work

INPUTS = np.random.default_rng(0).normal(size=(200, 16)).astype("float32")


@pytest.fixture
def watched(home):
    traffic = {"digits": Traffic(INPUTS, per_minute=60)}
    with Simulation(durations={"*": "10m"}, traffic=traffic) as simulation:
        run = cloudai.train(
            work.network(), (INPUTS, np.arange(200) % 4), on="simulated", name="first", model_name="digits", epochs=1
        ).wait(progress=False)
        cloudai.deploy(run, on="simulated", lease=None).wait(3600)
        yield simulation, cloudai.monitor("digits", every="10m")


def test_a_look_that_fails_is_noted_and_tried_again(watched, monkeypatch):
    simulation, watch = watched
    looks = []

    def broken(*args, **kwargs):
        looks.append(simulation.clock.now())
        raise DriverError("the telemetry does not answer", fix="see that it runs")

    with monkeypatch.context() as patch:
        patch.setattr(monitor, "_samples", broken)
        simulation.advance("20m")
        watch.refresh()
        assert watch.phase == "watching"
        assert "the telemetry does not answer" in watch.card().text()
        assert "see that it runs" in watch.card().text()
        assert not watch.reports
        assert 5 < len(looks) < 40, "less and less often, at last once a minute"
        events = [e.what for e in watch._ledger.events("monitor", watch.name)]
        assert sum("does not answer" in what for what in events) == 1
    simulation.advance("2m")
    watch.refresh()
    assert len(watch.reports) == 1
    assert "does not answer" not in watch.card().text()
    watch.stop()
    simulation.advance("1s")
    assert watch.phase == "stopped"

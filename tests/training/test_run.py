"""A run's handle where its folder cannot be read, and what a run costs that is given up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import cloudai
from cloudai import errors, settings
from cloudai.drivers.simulated.world import World, Zone
from cloudai.errors import IntegrityError
from cloudai.state.ledger import open_ledger
from cloudai.testing.simulation import Simulation
from cloudai.training import advance
from tests.flow import work

DATA = np.zeros((40, 16), dtype="float32"), np.arange(40) % 4


def test_a_folder_that_cannot_be_read_keeps_what_was_read_before_and_the_card_says_why(home):
    with Simulation(durations={"*": "1h"}) as simulation:
        run = cloudai.train(work.network(), DATA, on="simulated", name="first", epochs=1)
        simulation.advance("30m")
        step = run.status.step
        assert step is not None
        path = Path(settings.current().store) / "runs/first/status.json"
        before = path.read_text()
        path.write_text("{")
        run.refresh()
        assert run.status.step == step
        assert "its progress may be old" in run.card().text()
        again = cloudai.attach("run/first")
        assert (again.phase, again.status.step) == ("running", None)
        path.write_text(before)
        run.wait(progress=False)
        assert "may be old" not in run.card().text()


def test_a_run_that_is_given_up_is_charged_until_its_job_ended(home, monkeypatch):
    with Simulation(World(zones=[Zone(name="a", price=6.0, boot=0)]), durations={"*": "1h"}) as simulation:
        run = cloudai.train(work.network(), DATA, on="simulated", name="first", epochs=1)
        simulation.advance("30m")

        def broken(self):
            raise IntegrityError("the job is not what it was", fix="see who can write there")

        monkeypatch.setattr(advance._Advance, "step", broken)
        advance.advance(open_ledger(), open_ledger().get("run", "first"))
        simulation._cloud.timeline.happen()
        run.refresh()
        assert run.phase == "failed"
        assert run._record.status["attempts"][-1]["billed"] == pytest.approx(simulation.bill.total) == pytest.approx(3.0)
        with pytest.raises(errors.RunFailedError, match="not what it was"):
            run.wait(progress=False)

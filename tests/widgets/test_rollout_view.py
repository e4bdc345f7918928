"""The widget of a rollout, on a real deployment and without a browser."""

from __future__ import annotations

import pytest

import cloudai
from cloudai import widgets
from tests.conftest import wait_until


@pytest.fixture
def on_trial(deployment):
    """The deployment, with its canary at a fifth of the traffic."""
    if not deployment.split.canary:
        deployment.rollback() if deployment.split.previous else None
        deployment.wait().canary(cloudai.load_model("digits"))
    return deployment.canary(percent=20).wait()


@pytest.fixture
def view(on_trial):
    made = widgets.show(on_trial)
    made.paint()
    yield made
    made.close()


def choose(view, percent: int) -> None:
    """Move the slider as the browser does."""
    view.share.set_state({"value": percent})


def enabled(view) -> dict[str, bool]:
    return {name: not getattr(view, name).disabled for name in ("share", "promote", "rollback")}


def test_it_shows_who_has_which_traffic(view):
    assert view.share.value == 20
    assert "<td>v1.0.0</td><td>80 %</td>" in view._picture.value
    assert "ready" in view._phase.value


def test_the_slider_moves_the_traffic(view, on_trial):
    choose(view, 45)
    assert on_trial.wait().traffic == {"v1.0.0": 55, "v1.0.1": 45}
    wait_until(lambda: "<td>v1.0.1</td><td>45 %</td>" in view._picture.value, what="the new share in the table")
    assert view.share.value == 45


def test_a_share_changed_elsewhere_moves_the_slider_and_is_no_wish(view, on_trial):
    wishes = []
    view.attempt = wishes.append
    cloudai.attach("deployment/digits").canary(percent=35)
    wait_until(lambda: view.share.value == 35, what="the slider's move")
    assert wishes == []
    assert on_trial.split.percent == 35


def test_what_is_refused_is_shown_and_the_slider_goes_back(view, on_trial):
    cloudai.attach("deployment/digits").rollback()
    for _ in range(2):  # the share that is so now differs from the one before, and then it does not
        choose(view, 60)
        assert "there is no canary" in view._problem.value
        assert view.share.value == 0
    assert on_trial.split.canary == ""


def test_promote_and_roll_back(view, on_trial):
    assert enabled(view) == {"share": True, "promote": True, "rollback": True}
    view.promote.click()
    assert enabled(view) == {"share": False, "promote": False, "rollback": True}
    assert on_trial.wait().traffic == {"v1.0.1": 100}
    view.rollback.click()
    assert enabled(view) == {"share": False, "promote": False, "rollback": False}
    assert on_trial.wait().traffic == {"v1.0.0": 100}


def test_a_view_ends_with_its_deployment(home):
    from tests.flow.work import data, network, recorded_model

    deployment = cloudai.deploy(recorded_model(network(), data()[0], name="short"), name="short")
    view = widgets.show(deployment)
    deployment.delete()
    wait_until(lambda: not view._thread.is_alive(), what="the end of the view's thread")
    assert "deleted" in view._phase.value
    assert enabled(view) == {"share": False, "promote": False, "rollback": False}

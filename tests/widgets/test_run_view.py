"""The widget of a run, on real runs and without a browser."""

from __future__ import annotations

import time

import pytest

import cloudai
from cloudai import widgets
from cloudai.errors import SpecError
from tests.conftest import wait_until

EVIL = "<script>alert(1)</script>"


def learn(context):
    for step in range(1, 41):
        time.sleep(0.05)
        context.report({"loss": 1 / step})


def go_on(context):
    step = 0
    while True:
        step += 1
        time.sleep(0.05)
        context.report({"loss": 1 / step})


def fail(context):
    raise ValueError("<script>alert(1)</script>")


class Watched:
    """A run's view, and everything that it sent to the browser."""

    def __init__(self, run: cloudai.Run) -> None:
        began = time.monotonic()
        self.run, self.view = run, widgets.show(run)
        self.shown_after = time.monotonic() - began
        self.phases, self.pictures = [self.view._phase.value], [self.view._picture.value]
        self.view._phase.observe(lambda change: self.phases.append(change["new"]), "value")
        self.view._picture.observe(lambda change: self.pictures.append(change["new"]), "value")
        self.began = began

    def ended(self) -> Watched:
        wait_until(lambda: not self.view._thread.is_alive(), what="the end of the view's thread")
        return self


@pytest.fixture(scope="module")
def runs(shared_home):
    """Runs that succeed, fail and go on, at the same time."""
    return {work.__name__: Watched(cloudai.train(work, name=work.__name__.replace("_", "-"))) for work in (learn, go_on, fail)}


@pytest.fixture
def queued(home):
    """A run that has only just been asked for."""
    yield cloudai.train(go_on, name="queued")
    cloudai.cleanup().apply()


def test_showing_a_run_blocks_nothing(runs):
    assert max(watched.shown_after for watched in runs.values()) < 0.5


def test_it_follows_a_run_to_its_end(runs):
    watched = runs["learn"].ended()
    seen = " ".join(watched.phases)
    assert [phase in seen for phase in ("queued", "running", "succeeded")] == [True] * 3
    last = watched.pictures[-1]
    assert "<svg" in last
    assert "loss: 1 → 0.025 over step 0 to 39" in last
    assert "USD for" in last
    assert "succeeded" in last
    assert watched.view.cancel.disabled


def test_it_paints_at_most_twice_a_second(runs):
    watched = runs["learn"].ended()
    assert len(watched.pictures) <= 2 + 2 * (time.monotonic() - watched.began)


def test_cancel_ends_the_run(runs):
    watched = runs["go_on"]
    wait_until(lambda: "<svg" in watched.view._picture.value, what="the curve")
    assert not watched.view.cancel.disabled
    watched.view.cancel.click()
    assert watched.view.cancel.disabled
    assert watched.view.cancel.description == "Cancelling …"
    watched.ended()
    assert watched.run.phase == "cancelled"
    assert "cancelled" in watched.view._phase.value
    assert watched.view.cancel.disabled
    assert watched.view.cancel.description == "Cancel"


def test_what_users_wrote_is_escaped(runs):
    watched = runs["fail"].ended()
    assert "failed" in watched.view._phase.value
    assert "ValueError" in watched.pictures[-1]
    assert EVIL not in " ".join(watched.pictures)
    bundle = watched.view._repr_mimebundle_()
    assert EVIL in bundle["text/plain"]
    assert EVIL not in bundle["text/html"]


def test_readers_without_widgets_get_the_card(runs):
    watched = runs["learn"].ended()
    bundle = watched.view._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == watched.view.box.model_id
    assert bundle["text/plain"].startswith("Run learn\n")
    assert "<table>" in bundle["text/html"]
    assert str(watched.view) == watched.run.card().text()
    assert repr(watched.view) == "RunView('run/learn', phase='succeeded')"


def test_how_far_it_is_shows_only_where_that_is_known(runs):
    assert runs["learn"].view.progress.layout.display == "none"


def test_a_run_has_one_view_wherever_it_is_shown(queued):
    view = widgets.show(queued)
    assert widgets.show(queued) is view
    view.close()
    assert widgets.show(queued) is not view


def test_a_closed_view_stops_and_leaves_its_card(queued):
    view = widgets.show(queued)
    view.close()
    view._thread.join(2)
    assert not view._thread.is_alive()
    assert set(view._repr_mimebundle_()) == {"text/plain", "text/html"}
    assert view.box.comm is None
    assert view.cancel.comm is None
    view.close()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (SpecError("<b>no</b>", fix="<i>try</i>"), ["&lt;b&gt;no&lt;/b&gt;", "&lt;i&gt;try&lt;/i&gt;"]),
        (OSError("<b>broken</b>"), ["OSError", "&lt;b&gt;broken&lt;/b&gt;"]),
    ],
)
def test_an_error_of_a_button_is_shown_until_something_works(queued, error, words):
    view = widgets.show(queued)

    def act():
        raise error

    button = view.button("Do", "Does it", act)
    button.click()
    assert view._problem.layout.display is None
    assert "role='alert'" in view._problem.value
    assert all(word in view._problem.value for word in words)
    view.attempt(lambda: None)
    assert view._problem.layout.display == "none"
    assert view._problem.value == ""


def test_a_click_that_comes_too_late_does_nothing(queued):
    done = []
    button = widgets.show(queued).button("Do", "Does it", lambda: done.append(1))
    button.disabled = True
    button.click()
    assert done == []


def test_enabled_widgets_are_what_a_cell_shows(queued):
    widgets.enable()
    try:
        bundle = queued._repr_mimebundle_()
        assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == widgets.show(queued).box.model_id
        assert bundle["text/plain"].startswith("Run queued\n")
    finally:
        widgets.disable()
    assert set(queued._repr_mimebundle_()) == {"text/plain", "text/html"}


def test_there_is_no_widget_for_other_things(home):
    with pytest.raises(SpecError, match="no widget for a Inventory"):
        widgets.show(cloudai.ps())

"""How ranks and who tells them to end hear of each other; without Ray, which only carries the questions."""

from __future__ import annotations

import pytest

from cloudai.training.limits import RESERVE, Countdown, Limits, Pulse
from cloudai.training.ranks import Notice, Pace, RankStop
from tests.conftest import wait_until


@pytest.fixture
def notice():
    notice = Notice()
    yield notice
    notice.tell("the end of the test", "")  # ends the listeners


def test_rank_0_says_how_long_its_steps_and_checkpoints_take(notice):
    first, second = RankStop(notice.hear, 0), RankStop(notice.hear, 1)
    second.checkpoint_took(9.0)
    first.checkpoint_took(3.0)
    first.checkpoint_took(2.0)
    for _ in range(3):
        first()
    wait_until(lambda: notice.pace() == Pace(first.pulse.recent, 3.0), what="its pace")
    assert notice.pace().step > 0


def test_a_checkpoint_that_is_wanted_at_once_is_asked_for_once_and_by_rank_0_alone(notice):
    first, second = RankStop(notice.hear, 0), RankStop(notice.hear, 1)
    assert not first.hurries()
    notice.hurry("it may soon be taken")
    wait_until(lambda: first.notice and second.notice, what="the notice")
    assert (first.notice, first.hurries(), second.hurries()) == ("it may soon be taken", True, False)
    assert not first.hurries()
    assert first() == ""
    notice.hurry("it may really be taken")
    wait_until(first.hurries, what="another wish")


def test_all_ranks_hear_why_they_should_end(notice):
    stops = [RankStop(notice.hear, rank) for rank in (0, 1)]
    notice.tell("the machine is taken", "it is taken at noon")
    for stop in stops:
        assert wait_until(stop, what="the reason") == "the machine is taken"
        assert stop.notice == "it is taken at noon"


def test_a_notice_that_does_not_answer_leaves_a_rank_at_its_work():
    answers = iter([None, Notice().hear(None)._replace(reason="over")])
    stop = RankStop(lambda pace: next(answers), 0)
    assert stop() == ""
    assert wait_until(stop, what="the answer after") == "over"


def test_who_tells_ranks_of_long_steps_to_end_does_so_a_step_and_a_checkpoint_before():
    now = 0.0
    pulse = Pulse(lambda: now)
    countdown = Countdown(Limits(until=1000.0), 0.0, pulse)
    countdown.others_take(300.0)
    countdown.others_take(30.0)  # the pace of now counts
    countdown.checkpoint_took(5.0)
    while not countdown():
        now += 0.2
        pulse.beat()
    assert now == pytest.approx(1000.0 - 30.0 - 2 * 5.0 - RESERVE, abs=0.5)

"""Requests that wait for a replica, in a real router."""

from __future__ import annotations

import threading
import time

import pytest

from tests.conftest import wait_until
from tests.serving.processes import ask, body_of

INFER = "/v2/models/scaler/infer"


@pytest.fixture(scope="module")
def server(start_once):
    return start_once.server("v1", factor=2).wait_until_ready()


@pytest.fixture
def sleeping(start, tmp_path):
    """A router whose one revision is asleep, and the file by which it tells so."""
    (tmp_path / "home").mkdir()
    news = tmp_path / "home" / "news" / "deployment.d"
    router = start.router(news_file=news, max_waiting=3, timeout=8)
    router.route({"v1": 100}, {"v1": []})
    router.wait_until_ready()
    wait_until(news.exists)
    news.unlink()  # that it is there itself
    return router, news


class Asking:
    """Requests in threads of their own."""

    def __init__(self, router, count=1):
        self.answers = []
        self._threads = [threading.Thread(target=self._ask, args=(router,)) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _ask(self, router):
        begun = time.monotonic()
        answer = ask(router.port, "POST", INFER, body_of([[3, 0]]))
        self.answers.append((answer, time.monotonic() - begun))

    def wait(self):
        for thread in self._threads:
            thread.join(20)
        return self.answers


def metric(router, name):
    lines = router.get("/metrics").body.decode().splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)), 0.0)


def test_a_request_waits_says_so_and_is_answered_as_soon_as_a_replica_is_there(sleeping, server):
    router, news = sleeping
    asking = Asking(router, 2)
    wait_until(news.exists)
    wait_until(lambda: metric(router, "cloudai_waiting") == 2)
    assert router.get("/internal/ongoing").json == {"v1": 2}
    news.unlink()  # as the supervisor does
    routed = time.monotonic()
    router.route({"v1": 100}, {"v1": server})
    answers = asking.wait()
    assert time.monotonic() - routed < 3
    assert [(answer.status, answer.y) for answer, _ in answers] == [(200, [6.0])] * 2
    assert metric(router, 'cloudai_cold_starts_total{revision="v1"}') == 1
    assert 0 < metric(router, 'cloudai_cold_start_seconds_sum{revision="v1"}') <= max(took for _, took in answers)
    assert metric(router, "cloudai_waiting") == 0


def test_no_more_wait_than_may(sleeping, server):
    router, _ = sleeping
    asking = Asking(router, 3)
    wait_until(lambda: metric(router, "cloudai_waiting") == 3)
    refused = router.infer([[1, 0]])
    assert (refused.status, refused.headers["retry-after"]) == (429, "1")
    assert refused.json["error"] == "3 requests wait for a replica already"
    router.route({"v1": 100}, {"v1": server})
    assert {answer.status for answer, _ in asking.wait()} == {200}


def test_nobody_waits_beyond_the_deadline(start, tmp_path):
    (tmp_path / "home").mkdir()
    router = start.router(news_file=tmp_path / "home" / "news" / "deployment.d", timeout=0.5)
    router.route({"v1": 100}, {"v1": []})
    router.wait_until_ready()
    begun = time.monotonic()
    late = router.infer([[1, 0]])
    assert 0.4 < time.monotonic() - begun < 3
    assert (late.status, late.headers["retry-after"]) == (503, "1")
    assert late.json["error"] == "no replica of v1 became ready in time"
    assert metric(router, "cloudai_cold_starts_total{") == 0


def test_where_nobody_would_hear_it_nobody_waits(start):
    router = start.router()
    router.route({"v1": 100}, {"v1": []})
    router.wait_until_ready()
    begun = time.monotonic()
    assert router.infer([[1, 0]]).status == 503
    assert time.monotonic() - begun < 5


def test_who_waits_for_a_revision_goes_to_another_when_the_traffic_does(sleeping, server):
    router, _ = sleeping
    asking = Asking(router)
    wait_until(lambda: metric(router, "cloudai_waiting") == 1)
    router.route({"v2": 100}, {"v2": server})
    [(answer, _)] = asking.wait()
    assert (answer.status, answer.headers["x-cloudai-revision"]) == (200, "v2")


def test_the_last_replica_has_died_and_its_successor_is_waited_for(start, sleeping, server):
    router, news = sleeping
    mortal = start.server("mortal").wait_until_ready()
    router.route({"v1": 100}, {"v1": mortal})
    assert router.infer([[1, 0]]).status == 200
    mortal.kill()
    asking = Asking(router)
    wait_until(news.exists)
    router.route({"v1": 100}, {"v1": server})
    [(answer, _)] = asking.wait()
    assert (answer.status, answer.y) == (200, [6.0])
    assert metric(router, "cloudai_cold_starts_total{") == 0, "that is no cold start"


def test_while_another_revision_answers_nobody_waits_for_a_dead_one_but_the_supervisor_is_told(start, sleeping, server):
    router, news = sleeping
    mortal = start.server("mortal").wait_until_ready()
    router.route({"dead": 50, "v1": 50}, {"dead": mortal, "v1": server})
    mortal.kill()
    assert {router.infer([[1, 0]]).headers["x-cloudai-revision"] for _ in range(20)} == {"v1"}
    assert news.exists()

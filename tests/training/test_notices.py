"""Interruption notices, read from a real server that speaks the metadata services of the clouds."""

from __future__ import annotations

import json
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

import cloudai
from cloudai.artifacts.store import Store
from cloudai.training import notices
from cloudai.training.job import PREEMPTED
from cloudai.training.limits import Limits
from cloudai.training.notices import Aws, Azure, Google, Notice
from cloudai.training.stopping import StopSignal
from tests.conftest import kill, wait_until
from tests.flow import work


class Metadata:
    """A machine's metadata service: what it answers is set, what was asked is kept."""

    def __init__(self):
        self.answers = {}
        self.asked = []
        self.token = "token-1"
        self.changed = threading.Condition()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self):
                assert self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
                self._answer(service.token)

            def do_GET(self):
                where = urlsplit(self.path)
                query = parse_qs(where.query)
                service.asked.append((where.path, query, dict(self.headers)))
                if where.path.startswith("/latest/") and self.headers["X-aws-ec2-metadata-token"] != service.token:
                    self.send_error(401)
                elif where.path.startswith("/computeMetadata/") and self.headers["Metadata-Flavor"] != "Google":
                    self.send_error(403)
                elif where.path.startswith("/metadata/") and self.headers["Metadata"] != "true":
                    self.send_error(400)
                else:
                    self._answer(service.wait(where.path, query))

            def _answer(self, text):
                if text is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("ETag", str(hash(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def wait(self, path, query):
        with self.changed:
            if query.get("wait_for_change"):
                etag, seconds = query["last_etag"][0], float(query["timeout_sec"][0])
                self.changed.wait_for(lambda: str(hash(self.answers.get(path))) != etag, seconds)
            return self.answers.get(path)

    def say(self, path, text):
        with self.changed:
            self.answers[path] = text
            self.changed.notify_all()


@pytest.fixture
def metadata():
    service = Metadata()
    yield service
    service.server.shutdown()
    service.server.server_close()


@pytest.fixture(autouse=True)
def _sigterm():
    """A StopSignal takes it over for the life of its process, which here is that of all tests."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


ACTION = "/latest/meta-data/spot/instance-action"
ADVICE = "/latest/meta-data/events/recommendations/rebalance"
TAKE = json.dumps({"action": "terminate", "time": "2026-11-24T12:03:10Z"})


def test_aws_says_when_it_takes_the_machine_and_when_it_may(metadata):
    aws = Aws(metadata.url)
    assert aws.look() is None
    metadata.say(ADVICE, json.dumps({"noticeTime": "2026-11-24T11:50:00Z"}))
    assert aws.look() == Notice("AWS says since 11:50:00 UTC that it may soon take this machine", final=False)
    metadata.say(ACTION, TAKE)
    assert aws.look() == Notice("AWS will take this machine at 12:03:10 UTC", final=True)


def test_aws_gives_a_new_token_where_the_old_one_is_not_good_any_more(metadata):
    aws = Aws(metadata.url)
    aws.look()
    metadata.token = "token-2"
    with pytest.raises(OSError, match="401"):
        aws.look()
    assert aws.look() is None


def test_google_answers_as_soon_as_that_changes(metadata):
    metadata.say("/computeMetadata/v1/instance/preempted", "FALSE")
    metadata.say("/computeMetadata/v1/instance/maintenance-event", "NONE")
    google = Google(metadata.url)
    assert google.look() is None
    threading.Timer(0.2, metadata.say, ("/computeMetadata/v1/instance/preempted", "TRUE")).start()
    begin = time.monotonic()
    assert google.look() == Notice("Google Cloud takes this machine within 30 seconds", final=True)
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(("event", "final"), [("TERMINATE_ON_HOST_MAINTENANCE", True), ("MIGRATE_ON_HOST_MAINTENANCE", False)])
def test_google_tells_of_maintenance(metadata, event, final):
    metadata.say("/computeMetadata/v1/instance/preempted", "FALSE")
    metadata.say("/computeMetadata/v1/instance/maintenance-event", event)
    assert Google(metadata.url).look().final is final


def azure_event(kind, *machines, at="Mon, 19 Sep 2016 18:29:47 GMT"):
    return {"EventId": "1", "EventType": kind, "Resources": list(machines), "EventStatus": "Scheduled", "NotBefore": at}


def test_azure_tells_of_other_machines_too_which_does_not_matter(metadata):
    metadata.say("/metadata/instance/compute/name", "mine")
    path, azure = "/metadata/scheduledevents", Azure(metadata.url)
    metadata.say(path, json.dumps({"DocumentIncarnation": 1, "Events": []}))
    assert azure.look() is None
    metadata.say(path, json.dumps({"Events": [azure_event("Preempt", "other")]}))
    assert azure.look() is None
    metadata.say(path, json.dumps({"Events": [azure_event("Freeze", "mine"), azure_event("Preempt", "other", "mine")]}))
    assert azure.look() == Notice("Azure will take this machine at 18:29:47 UTC", final=True)
    metadata.say(path, json.dumps({"Events": [azure_event("Freeze", "mine", at="")]}))
    assert azure.look() == Notice("Azure will hold this machine for a moment now (Freeze)", final=False)
    assert {query["api-version"][0] for where, query, _ in metadata.asked if where == path} == {"2020-07-01"}


@pytest.mark.parametrize("nonsense", ["", "{}", "[]", "null", '{"action": 3, "time": "soon"}', "<html>"])
def test_an_answer_that_makes_no_sense_is_no_notice_and_looked_at_again(metadata, nonsense):
    metadata.say(ACTION, nonsense)
    told, pauses = [], []

    def wait(seconds):
        pauses.append(seconds)
        metadata.say(ACTION, TAKE)
        return len(pauses) > 3

    notices.watch(Aws(metadata.url), told.append, wait)
    assert [notice.final for notice in told] == [True]
    assert pauses == [10.0], "longer after a failure"


def test_an_address_where_nobody_is_asked_less_and_less():
    pauses = []
    notices.watch(Aws("http://127.0.0.1:9"), pytest.fail, lambda seconds: pauses.append(seconds) or len(pauses) == 6)
    assert pauses == [10.0, 20.0, 40.0, 60.0, 60.0, 60.0]


def test_a_notice_is_passed_on_once(metadata):
    metadata.say(ADVICE, json.dumps({"noticeTime": "2026-11-24T11:50:00Z"}))
    told, looks = [], []
    notices.watch(Aws(metadata.url), told.append, lambda seconds: looks.append(seconds) or len(looks) == 3)
    assert len(told) == 1


@pytest.mark.parametrize(
    ("files", "cloud"),
    [
        ({"sys_vendor": "Amazon EC2\n"}, Aws),
        ({"product_name": "Google Compute Engine"}, Google),
        ({"sys_vendor": "Microsoft Corporation", "chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77"}, Azure),
    ],
)
def test_a_machine_of_a_cloud_is_known_by_its_firmware(tmp_path, monkeypatch, files, cloud):
    monkeypatch.delenv(notices.METADATA, raising=False)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert isinstance(notices.here(tmp_path), cloud)
    monkeypatch.setenv(notices.METADATA, "none")
    assert notices.here(tmp_path) is None


def test_a_laptop_asks_nobody(tmp_path, monkeypatch):
    monkeypatch.delenv(notices.METADATA, raising=False)
    (tmp_path / "sys_vendor").write_text("LENOVO")
    (tmp_path / "chassis_asset_tag").write_text("No Asset Information")
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a request was made"))
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("a name was looked up"))
    assert notices.here(tmp_path) is None
    assert notices.here(tmp_path / "no-such-folder") is None
    before = {thread.name for thread in threading.enumerate()}
    assert StopSignal(None, Limits(), notices.here(tmp_path))() == ""
    assert "cloudai-notices" not in {thread.name for thread in threading.enumerate()} - before


@pytest.mark.parametrize(
    ("value", "said"), [("amazon", "aws, google, azure or none"), ("aws=file:///etc/passwd", "no http:// address")]
)
def test_what_names_no_cloud_is_said(monkeypatch, caplog, value, said):
    monkeypatch.setenv(notices.METADATA, value)
    assert notices.here() is None
    assert said in caplog.text


def test_advice_asks_for_one_checkpoint_and_an_end_for_the_end(metadata):
    metadata.say(ADVICE, json.dumps({"noticeTime": "2026-11-24T11:50:00Z"}))
    aws = Aws(metadata.url)
    aws.pause = 0.01
    stop = StopSignal(None, Limits(), aws)
    wait_until(stop.hurries, what="a wish for a checkpoint")
    assert not stop.hurries()
    assert stop() == ""
    metadata.say(ACTION, TAKE)
    assert wait_until(stop, what="the end") == "AWS will take this machine at 12:03:10 UTC"
    assert (stop.code(143), stop.code(0), stop.code(1)) == (PREEMPTED, 0, 1)


def test_a_run_whose_machine_is_taken_comes_back_and_that_is_no_failure(home, metadata, monkeypatch):
    monkeypatch.setenv(notices.METADATA, f"aws={metadata.url}")
    run = cloudai.train(work.network(), work.data(), epochs=400, name="taken", max_failures=0)
    wait_until(lambda: run.status.step, 60, "the first step")
    metadata.say(ACTION, TAKE)
    wait_until(lambda: run.status.preemptions == 1, 60, "the preemption")
    metadata.say(ACTION, None)
    events = [event.what for event in run._ledger.events("run", "taken")]
    told = next(event for event in events if "AWS will take this machine at 12:03:10 UTC" in event)
    step = int(told.rpartition(" ")[2])
    assert f"coming back from step {step}" in told
    assert run._record.status["attempts"][0]["failure"] is False
    wait_until(lambda: run.status.attempt == 2 and run.status.resumed_from == step, 60, "the second attempt")
    run.cancel()


def test_a_machine_that_is_gone_before_its_worker_could_end_is_no_failure_either(home, metadata, monkeypatch):
    monkeypatch.setenv(notices.METADATA, f"aws={metadata.url}")
    metadata.say(ACTION, TAKE)
    run = cloudai.train(work.one_long_step, name="gone", max_failures=0, lease=None)
    folder = Store(cloudai.settings.current().store).at("runs/gone")
    assert wait_until(lambda: notices.noted(folder, 1), 60, "the notice").final
    metadata.say(ACTION, None)
    kill(wait_until(lambda: next(iter(run._record.status.get("attempts", [])), {}).get("pid"), what="the worker"))
    wait_until(lambda: run.status.preemptions == 1, 60, "the preemption")
    attempt = run._record.status["attempts"][0]
    assert (attempt["failure"], attempt["final"]) == (False, True)
    assert attempt["notice"] == "AWS will take this machine at 12:03:10 UTC"
    run.cancel()


def test_a_notice_counts_for_the_attempt_that_got_it_and_a_store_that_is_away_is_no_error(tmp_path, caplog):
    folder = Store(str(tmp_path))
    notices.note(folder, 2, Notice("it may be taken", final=False))
    assert notices.noted(folder, 2) == Notice("it may be taken", final=False)
    assert notices.noted(folder, 3) is None
    (tmp_path / "file").touch()
    notices.note(Store(str(tmp_path / "file")), 2, Notice("it is taken", final=True))
    assert "cannot be written down" in caplog.text

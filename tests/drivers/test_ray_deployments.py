"""Deployments on Ray Serve without a cluster: what its dashboard says is understood, what is ordered of it, what is refused."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

import cloudai
from cloudai.drivers.protocols import Needs, Revision, RevisionId, Scaling
from cloudai.drivers.ray.api import Api
from cloudai.drivers.ray.deployments import Deployments, Found, gate_config, revision_order
from cloudai.drivers.ray.desk import desk_key, serve_address
from cloudai.errors import DriverError, PlacementError, SpecError, StoreError
from cloudai.state.tokens import ensure_token, read_token
from tests.flow import work

ARGV = ("-m", "cloudai.serving.server", "--model", "s3://b/m", "--max-body", "2000", "--timeout", "3", "--max-in-flight", "9")


@pytest.fixture
def token_file(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the-token-of-the-cluster")
    ensure_token(tmp_path / "token")
    return tmp_path / "token"


def revision(token_file, **more):
    argv = (*ARGV, "--lease-file", "/home/me/lease", *(("--token-file", str(token_file)) if token_file else ()))
    return Revision(RevisionId("v1"), argv, {"OMP_NUM_THREADS": "2"}, Needs(2, 2**30, 1, "A100"), **more)


def app(status, *states, user_config=None, message=""):
    replicas = [{"state": state, "pid": number} for number, state in enumerate(states, 1)]
    deployment = {"replicas": replicas, "message": message, "deployment_config": {"user_config": user_config}}
    return {"status": status, "message": "", "deployments": {"Gate" if user_config else "Replica": deployment}}


def found(**revisions):
    config = {"traffic": {"a": 60, "b": 40}, "token": "0", "desk": "1", "package": "p"}
    gate = {"app": app("RUNNING", "RUNNING", user_config=config)}
    others = {"app-2": app("RUNNING", "RUNNING"), "app-2.a": app("RUNNING", "RUNNING"), "other": app("RUNNING", "RUNNING")}
    return Found("app", {"applications": {**gate, **others, **{f"app.{name}": value for name, value in revisions.items()}}})


def test_what_ray_serve_says_is_put_in_the_words_of_the_contract():
    status = found(a=app("RUNNING", "RUNNING", "STARTING"), b=app("UNHEALTHY", "RUNNING")).status("n", "http://x")
    assert (status.url, status.ready, status.pids) == ("http://x", True, (1,))
    assert [(r.id, r.ready, r.replicas, r.ready_replicas, r.traffic, r.pids) for r in status.revisions] == [
        ("a", True, 2, 1, 60, (1, 2)), ("b", True, 1, 1, 40, (1,)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("said", "ready", "replicas", "reason"),
    [
        (app("DEPLOYING", message="no room yet"), False, 1, "no room yet"),
        (app("DEPLOYING", "STARTING"), False, 1, "Ray Serve says DEPLOYING"),
        (app("DEPLOY_FAILED", message="it crashed"), False, 0, "it crashed"),
        (app("UNHEALTHY", "STARTING"), False, 1, "Ray Serve says UNHEALTHY"),
        (app("DELETING", "RUNNING"), False, 1, "Ray Serve says DELETING"),
        (app("RUNNING"), True, 0, ""),
        (app("RUNNING", "UPDATING"), True, 1, ""),
    ],
)
def test_a_revision_that_is_not_ready_says_why(said, ready, replicas, reason):
    found_one = found(a=said).status("n", "u").revisions[0]
    assert (found_one.ready, found_one.replicas, found_one.reason) == (ready, replicas, reason)


ONE = {"num_replicas": 1, "autoscaling_config": None}
OWN = {"autoscaling_config": {"min_replicas": 0, "max_replicas": 3, "target_ongoing_requests": 4.0}}


@pytest.mark.parametrize(
    ("told", "scaling", "same"),
    [
        (ONE, Scaling(), True),
        (ONE, Scaling(2, 2), False),
        (ONE, Scaling(0, 3, 4.0), False),
        (
            OWN,
            Scaling(0, 3, 4.0),
            True,
        ),
        (
            OWN,
            Scaling(0, 3, 5.0),
            False,
        ),
        (OWN, Scaling(3, 3), False),
    ],
)
def test_another_number_of_replicas_is_seen(token_file, told, scaling, same):
    said = app("RUNNING", "RUNNING")
    said["deployments"]["Replica"]["deployment_config"] = told
    assert found(v1=said).is_scaled(revision(token_file, scaling=scaling)) is same
    assert found(v1={**said, "deployments": {}}).is_scaled(revision(token_file, scaling=scaling)), "it is not there yet"


def test_a_deployment_without_its_gate_is_not_ready_and_has_no_url():
    nothing = Found("app", {"applications": {}}).status("n", "u")
    assert (nothing.url, nothing.ready, nothing.revisions) == ("", False, ())
    gone = Found("app", {"applications": {"app": app("DELETING", "RUNNING", user_config={"traffic": {"a": 100}})}})
    assert (gone.traffic, gone.gate_is_up, gone.names) == ({}, False, ["app"])


def test_what_the_cluster_is_told_has_digests_and_nothing_of_this_machine(token_file):
    config, ordered = (
        gate_config("app", revision(token_file), {}),
        revision_order(revision(token_file, scaling=Scaling(0, 4, 3))),
    )
    assert config["token"] == hashlib.sha256(read_token(token_file).encode()).hexdigest()
    assert config["desk"] == hashlib.sha256(desk_key("app").encode()).hexdigest()
    assert (config["traffic"], config["max_body"], config["timeout"]) == ({}, 2000, 8.0)
    assert ordered["argv"] == list(ARGV)
    assert ordered["resources"] == {
        "num_cpus": 2,
        "num_gpus": 1,
        "memory": 2**30,
        "resources": {"accelerator_type:A100": 0.001},
    }
    assert ordered["scaling"] == {"min_replicas": 0, "max_replicas": 4, "target_ongoing_requests": 3}
    said = json.dumps([config, ordered])
    assert not any(secret in said for secret in (read_token(token_file), "the-token-of-the-cluster", str(token_file), "lease"))


def test_a_new_token_changes_what_the_gate_goes_by_and_leaves_its_traffic(token_file):
    known = {**gate_config("app", revision(token_file), {}), "traffic": {"v1": 100}, "timeout": 99.0}
    assert gate_config("app", revision(token_file), known) == known
    token_file.unlink()
    ensure_token(token_file)
    changed = gate_config("app", revision(token_file), known)
    assert changed["token"] != known["token"]
    assert {**changed, "token": ""} == {**known, "token": ""}


def test_nothing_is_served_without_tokens_or_on_a_port_of_its_own(token_file, monkeypatch):
    with pytest.raises(SpecError, match="without a token"):
        gate_config("app", revision(None), {})
    with pytest.raises(SpecError, match="one port"):
        revision_order(revision(token_file, port=8080))
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("HOME", str(token_file.parent))
    with pytest.raises(PlacementError, match="no token for the Ray cluster"):
        gate_config("app", revision(token_file), {})


def test_the_driver_has_a_key_for_each_deployment_and_says_the_clusters_token_to_none(token_file, monkeypatch):
    keys = {desk_key("one"), desk_key("two")}
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another-cluster")
    assert len(keys | {desk_key("one")}) == 3


def test_ray_serve_is_asked_on_the_dashboards_host_or_where_it_is_said(home, monkeypatch):
    assert serve_address("https://head.example:8265", 8000) == "http://head.example:8000"
    assert serve_address("http://[::1]:8265", 8001) == "http://[::1]:8001"
    monkeypatch.setenv("CLOUDAI_RAY_SERVE_ADDRESS", "https://models.example/")
    assert serve_address("http://127.0.0.1:8265", 8000) == "https://models.example"
    monkeypatch.setenv("CLOUDAI_RAY_INGRESS", "fastest")
    with pytest.raises(SpecError, match="ray_ingress"):
        cloudai.settings.current()


class Dashboard(BaseHTTPRequestHandler):
    """Answers what Ray Serve has, and takes nothing."""

    said = b'{"applications": {}}'

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.said)

    def do_POST(self):
        self.send_response(500)
        self.end_headers()
        self.wfile.write(b"nothing should have been asked for")

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def deployments(token_file):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Dashboard)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Deployments(Api(f"http://127.0.0.1:{server.server_port}"))
    server.shutdown()
    server.server_close()


def test_what_is_wrong_is_said_before_anything_is_asked_of_the_cluster(deployments):
    for traffic in ({}, {RevisionId("a"): 90}, {RevisionId("a"): 150, RevisionId("b"): -50}):
        with pytest.raises(SpecError, match="sum to 100"):
            deployments.route("d", traffic, "")
    with pytest.raises(DriverError, match="'a' of 'd' is not up"):
        deployments.route("d", {RevisionId("a"): 100}, "")
    deployments.retire("d", RevisionId("a"))
    deployments.delete("d")
    assert list(deployments.metrics("d")) == list(deployments.samples("d", 0.0, 10)) == []


def test_a_model_on_this_machine_is_no_model_for_a_cluster_elsewhere(home, monkeypatch):
    model = work.recorded_model(torch.nn.Linear(8, 2), np.ones((3, 8), "float32"), name="small")
    with pytest.raises(SpecError, match="no Ray cluster is set"):
        cloudai.deploy(model, on="ray")
    monkeypatch.setenv("CLOUDAI_RAY_ADDRESS", "https://ray.example:8265")
    with pytest.raises(StoreError, match="cannot reach the model in") as refused:
        cloudai.deploy(model, on="ray")
    assert "CLOUDAI_STORE" in refused.value.fix

"""TLS: real servers and a real router, with certificates of the tests' own authorities, asked by curl and by our client."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import ssl
import subprocess

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cloudai.errors import DriverError, RequestError, SpecError
from cloudai.serving.client import curl_line, predict
from cloudai.serving.doors import Doors, check_exposure
from cloudai.serving.process import ProcessOptions
from cloudai.serving.tls import ServerTls, check_tls, name_for
from cloudai.specs.tls import Tls
from cloudai.state.tokens import read_token, renew_token
from tests.serving.certificates import Authority, Pair, pem_key
from tests.serving.processes import body_of

X = {"x": np.array([[1, 0]], "float32")}
READY = "/v2/health/ready"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def authority(folder):
    return Authority(folder)


@pytest.fixture(scope="module")
def clients(folder):
    return Authority(folder, "clients")


@pytest.fixture(scope="module")
def pair(authority):
    return authority.sign("server")


@pytest.fixture(scope="module")
def client_pair(clients):
    return clients.sign("client", client=True)


def options_of(pair, **more):
    return {"tls_certificate": str(pair.certificate), "tls_key": str(pair.key), **more}


def tls_of(pair, **more):
    return Tls(certificate=pair.certificate, key=pair.key, **more)


@pytest.fixture(scope="module")
def server(start_once, pair):
    return start_once.server(**options_of(pair)).wait_until_ready()


@pytest.fixture(scope="module")
def mutual(start_once, pair, clients):
    return start_once.server("mutual", host="0.0.0.0", **options_of(pair, client_ca=str(clients.file))).wait_until_ready()


def curl(*words):
    return subprocess.run(["curl", "-sS", "-m", "10", *map(str, words)], capture_output=True, text=True)


def connect(port, context):
    raw = socket.create_connection(("127.0.0.1", port), timeout=10)
    return context.wrap_socket(raw, server_hostname="localhost")


def trusting(authority, pair=None):
    context = ssl.create_default_context(cafile=authority.file)
    if pair is not None:
        context.load_cert_chain(pair.certificate, pair.key)
    return context


def test_curl_and_our_client_trust_it_and_only_it(server, authority, clients, pair):
    assert server.state["url"] == f"https://127.0.0.1:{server.port}"
    for host in ("127.0.0.1", "localhost"):
        answer = curl("--cacert", authority.file, f"https://{host}:{server.port}{READY}")
        assert '"ready":true' in answer.stdout, answer.stderr
    assert curl("--cacert", clients.file, f"{server.state['url']}{READY}").returncode == 60  # not verified
    assert predict(server.state["url"], "scaler", X, tls=tls_of(pair))["y"].tolist() == [2]


def test_our_client_says_what_it_does_not_trust(server, authority):
    with pytest.raises(RequestError, match=r"the certificate of 127.0.0.1:\d+ is not trusted: unable to get local issuer"):
        predict(server.state["url"], "scaler", X)
    other = authority.sign("other")  # of the same authority and with the same names
    with pytest.raises(RequestError, match="is not trusted"):
        predict(server.state["url"], "scaler", X, tls=tls_of(other))


def test_the_curl_line_works_in_a_shell(server, pair):
    line = curl_line(server.state["url"], "scaler", X, tls=tls_of(pair))
    assert '"data":[2.0]' in subprocess.run(["sh", "-c", line], capture_output=True, text=True).stdout


def test_only_modern_tls(server, authority):
    context = trusting(authority)
    assert connect(server.port, context).version() == "TLSv1.3"
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with connect(server.port, context) as connection:
        assert connection.version() == "TLSv1.2"
        assert connection.cipher()[0].startswith("ECDHE")
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        connect(server.port, context)


def test_plain_http_and_noise_are_dropped_and_fill_no_log(server, authority):
    before = server.log.read_text()
    for noise in (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"\x00" * 64, b"\x16\x03\x01\xff\xff", b""):
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as raw:
            raw.sendall(noise)
            raw.shutdown(socket.SHUT_WR)
            assert b"HTTP/1.1 200" not in raw.recv(1000)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        connect(server.port, ssl.create_default_context())  # hangs up in the middle of the handshake
    assert '"ready":true' in curl("--cacert", authority.file, f"{server.state['url']}{READY}").stdout
    assert server.log.read_text() == before


def test_without_a_client_certificate_nothing_is_answered(mutual, authority, clients, pair, client_pair):
    url = f"https://localhost:{mutual.port}"
    shown = ("--cacert", authority.file, "--cert", client_pair.certificate, "--key", client_pair.key)
    assert '"ready":true' in curl(*shown, url + READY).stdout
    late = clients.sign("late", client=True, start=-3, end=-1)
    others = [authority.sign("stranger", client=True), late, clients.sign("wrong", client=False)]
    bad = [("--cert", other.certificate, "--key", other.key) for other in others]
    refused = [curl("--cacert", authority.file, *words, url + READY) for words in ([], *bad)]
    assert all(answer.returncode in {52, 56} and not answer.stdout for answer in refused)  # an empty reply, or none
    tls = tls_of(pair, client_certificate=client_pair.certificate, client_key=client_pair.key)
    assert predict(url, "scaler", X, tls=tls)["y"].tolist() == [2]
    with pytest.raises(DriverError, match=r"broke off.*\nFix: .*it may ask for a Tls\(client_certificate=…\)"):
        predict(url, "scaler", X, tls=tls_of(pair))


def test_a_client_certificate_stands_for_the_token_and_the_host(mutual, authority, client_pair):
    assert mutual.state["url"] == f"https://localhost:{mutual.port}"
    connection = http.client.HTTPSConnection("localhost", mutual.port, context=trusting(authority, client_pair))
    connection.request("POST", "/v2/models/scaler/infer", body_of([[1, 0]]), {"host": "models.example"})
    assert json.loads(connection.getresponse().read())["outputs"][0]["data"] == [2.0]


def test_a_session_is_not_resumed_past_the_check_of_the_certificate(mutual, authority, client_pair):
    context = trusting(authority, client_pair)
    first = connect(mutual.port, context)
    first.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n")
    first.recv(1000)
    raw = socket.create_connection(("127.0.0.1", mutual.port), timeout=10)
    again = context.wrap_socket(raw, server_hostname="localhost", session=first.session)
    assert not again.session_reused
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # which resumes sessions, and shows certificates to whoever listens
    with pytest.raises((ssl.SSLError, ConnectionError)):
        connect(mutual.port, context)


def test_renewed_files_hold_from_the_next_connection_on(start, authority, clients, tmp_path):
    used = Pair(tmp_path / "used.pem", tmp_path / "used.key")
    first, second = authority.sign("first"), authority.sign("second", names=("localhost", "models.example"))
    for part in ("certificate", "key"):
        shutil.copy(getattr(first, part), getattr(used, part))
    server = start.server(**options_of(used))
    server.wait_until_ready()

    def names():
        with connect(server.port, trusting(authority)) as connection:
            return {value for _, value in connection.getpeercert()["subjectAltName"]}

    kept = http.client.HTTPSConnection("localhost", server.port, context=trusting(authority))
    kept.request("GET", READY)
    kept.getresponse().read()
    assert "models.example" not in names()
    shutil.copy(second.certificate, used.certificate)  # the key is still the old one
    assert "models.example" not in names()
    shutil.copy(second.key, used.key)
    assert "models.example" in names()
    used.certificate.write_bytes(authority.sign("gone", end=-0.5).certificate.read_bytes())
    assert "models.example" in names()
    used.key.unlink()
    assert "models.example" in names()
    kept.request("GET", READY)
    assert kept.getresponse().status == 200
    log = server.log.read_text()
    assert log.count("the last certificate stays in force") == 3
    assert "PRIVATE" not in log


def test_other_authorities_of_clients_hold_from_the_next_connection_on(authority, clients, pair, client_pair, tmp_path):
    trusted = tmp_path / "clients.pem"
    shutil.copy(clients.file, trusted)
    tls = tls_of(pair, client_ca=trusted, client_certificate=client_pair.certificate, client_key=client_pair.key)
    listener = ServerTls(tls)
    assert shakes_hands(listener.context, trusting(authority, client_pair))
    shutil.copy(authority.file, trusted)
    assert not shakes_hands(listener.context, trusting(authority, client_pair))
    assert shakes_hands(listener.context, trusting(authority, authority.sign("let-in", client=True)))


def shakes_hands(server, client):
    """Whether a server lets a client in: the last word is the server's."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    asked = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (asking, asked, asking, asked):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLError:
            return False
    return True


def test_it_drains_with_open_connections(start, authority, pair):
    server = start.server(**options_of(pair), drain_delay=0.0).wait_until_ready()
    idle = [connect(server.port, trusting(authority)) for _ in range(3)]
    assert server.terminate().exit_code(5) == 0
    assert all(connection.fileno() for connection in idle)


BAD = {
    "missing": (lambda p, a: p.certificate.unlink(), "server.pem cannot be read: No such file"),
    "no key": (lambda p, a: p.key.unlink(), "server.key cannot be read: No such file"),
    "open key": (lambda p, a: p.key.chmod(0o640), "others can read the key"),
    "no certificate in it": (lambda p, a: p.certificate.write_text("hello"), "server.pem holds no certificate in PEM"),
    "no key in it": (lambda p, a: p.key.write_bytes(p.certificate.read_bytes()), "server.key holds no private key in PEM"),
    "other key": (lambda p, a: p.key.write_bytes(pem_key(a.key)), "does not go with the certificate"),
    "broken key": (lambda p, a: p.key.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n"), "does not go with the certificate"),
    "locked key": (
        lambda p, a: p.key.write_bytes(pem_key(ec.generate_private_key(ec.SECP256R1()), b"word")), "is encrypted",
    ),
    "expired": (lambda p, a: replace(p, a.sign("x", start=-3, end=-1)), "certificate has expired"),
    "too early": (lambda p, a: replace(p, a.sign("x", start=1)), "certificate is not yet valid"),
    "of a client": (lambda p, a: replace(p, a.sign("x", client=True)), "unsuitable certificate purpose"),
}  # fmt: skip


def replace(pair, other):
    pair.certificate.write_bytes(other.certificate.read_bytes())
    pair.key.write_bytes(other.key.read_bytes())


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named(tmp_path, case):
    authority = Authority(tmp_path)
    pair = authority.sign("server")
    check_tls(tls_of(pair))
    spoil, what = BAD[case]
    spoil(pair, authority)
    with pytest.raises(SpecError, match=what):
        check_tls(tls_of(pair))


def test_bad_files_of_clients_are_named(pair, clients, authority, client_pair, tmp_path):
    def checked(**more):
        check_tls(tls_of(pair, **more))

    with pytest.raises(SpecError, match=r"the client_ca .*nothing cannot be read"):
        checked(client_ca=tmp_path / "nothing")
    with pytest.raises(SpecError, match=r"server.key holds no certificate in PEM"):
        checked(client_ca=pair.key)
    shown = {"client_certificate": client_pair.certificate, "client_key": client_pair.key}
    checked(client_ca=clients.file, **shown)
    with pytest.raises(SpecError, match=r"client.pem is not accepted: unable to get local issuer certificate"):
        checked(client_ca=authority.file, **shown)
    with pytest.raises(SpecError, match="without its client_key"):
        checked(client_ca=clients.file, client_certificate=client_pair.certificate)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({}, "without a token\nFix: use 127.0.0.1, or give --token-file or --client-ca"),
        ({"token": True}, "without TLS: the token would travel for all to read\nFix: give --tls-certificate and --tls-key"),
        ({"tls": True}, "without a token"),
        ({"ca": True}, "TLS needs a certificate and its key"),
        ({"tls": True, "open_key": True, "token": True}, "others can read the key"),
    ],
)
def test_beyond_this_machine_only_with_tls_and_a_way_to_know_who_asks(tmp_path, authority, clients, options, what):
    given = {"state": tmp_path / "state", "host": "0.0.0.0"}
    pair = authority.sign("exposed")
    if options.get("token"):
        given["token_file"] = tmp_path / "token"
    if options.get("tls"):
        given |= options_of(pair)
    if options.get("ca"):
        given["client_ca"] = clients.file
    if options.get("open_key"):
        pair.key.chmod(0o644)
    with pytest.raises(SpecError) as caught:
        check_exposure(ProcessOptions.of(**given))
        Doors.open(ProcessOptions.of(**given))
    assert what in str(caught.value)


def test_plain_http_beyond_this_machine_is_for_whoever_asks_for_it(start, tmp_path):
    renew_token(tmp_path / "token")
    server = start.server(host="0.0.0.0", token_file=str(tmp_path / "token"), plain_http="true").wait_until_ready()
    headers = {"authorization": f"Bearer {read_token(tmp_path / 'token')}"}
    assert server.infer([[1, 0]], headers=headers).y == [2]
    assert server.infer([[1, 0]]).status == 401
    assert "the token travels in plain HTTP to 0.0.0.0" in server.log.read_text()


def test_the_router_speaks_tls_and_its_servers_do_not_need_to(start, tmp_path, authority, pair):
    renew_token(tmp_path / "token")
    token = {"token_file": str(tmp_path / "token")}
    behind = start.server(**token).wait_until_ready()
    router = start.router(host="0.0.0.0", **token, **options_of(pair)).wait_until_ready()
    router.route({"a": 100}, {"a": behind})
    assert predict(router.state["url"], "scaler", X, token=read_token(tmp_path / "token"), tls=tls_of(pair))["y"].tolist() == [
        2
    ]
    assert behind.state["url"].startswith("http://127.0.0.1")


@pytest.mark.parametrize(
    ("host", "names", "name"),
    [
        ("127.0.0.1", ("models.example",), "127.0.0.1"),
        ("127.0.0.1", ("models.example", "localhost"), "localhost"),
        ("127.0.0.1", ("127.0.0.1", "localhost"), "127.0.0.1"),
        ("0.0.0.0", ("*.example", "models.example"), "models.example"),
        ("::", ("10.0.0.7",), "10.0.0.7"),
        ("0.0.0.0", (), "127.0.0.1"),
        ("10.0.0.7", ("models.example",), "10.0.0.7"),
    ],
)
def test_the_address_has_a_name_that_the_certificate_knows(host, names, name):
    assert name_for(host, names) == name

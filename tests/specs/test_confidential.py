"""What is taken for a secret and what is not, and that none survives in a text."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import textwrap
import urllib.parse

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudai.errors import CaptureError, SpecError
from cloudai.specs import confidential
from cloudai.specs.code_secrets import refuse_secrets_in_code
from cloudai.specs.confidential import (
    environment_secrets,
    has_credentials,
    is_secret_name,
    redact,
    refuse_credentials,
    refuse_secrets,
    why_secret,
)

SECRET_NAMES = [
    "password", "PGPASSWORD", "db_password", "dbPassword", "MLFLOW_TRACKING_PASSWORD", "passphrase", "secret", "client_secret",
    "AWS_SECRET_ACCESS_KEY", "api_key", "apiKey", "APIKEY", "WANDB_API_KEY", "private_key", "token", "HF_TOKEN", "access-token",
    "mysql_pwd", "AWS_SESSION_TOKEN",
]  # fmt: skip
ORDINARY_NAMES = [
    "tokenizer", "tokens", "token_count", "max_tokens", "eos_token", "pad_token", "mask_token", "token_type_ids", "keyboard",
    "key", "sort_key", "primary_key", "keys", "passwordless", "password_field", "passes", "secretary", "secrets_count", "pwd",
    "OLDPWD", "TOKENIZERS_PARALLELISM", "AWS_WEB_IDENTITY_TOKEN_FILE", "compass", "bypass", "lr", "num_classes",
]  # fmt: skip
LONG = "s3cr-" + "v" * 20
FORMS = [
    "AKIA" + "Z" * 16, "ghp_" + "a1" * 18, "github_pat_" + "A1" * 30, "glpat-" + "x" * 20, "hf_" + "Ab" * 17,
    "sk-proj-" + "a1B2" * 10, "sk-ant-api03-" + "a1B2" * 10, "xoxb-" + "1" * 24, "AIza" + "B" * 35,
    "-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc\n-----END RSA PRIVATE KEY-----",
]  # fmt: skip


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_a_secrets_name_is_one_in_any_spelling(name):
    assert is_secret_name(name)
    assert why_secret(name, LONG) == "it is named like one"
    with pytest.raises(SpecError) as caught:
        refuse_secrets({"deep": [{"er": ({name: LONG},)}]}, "config")
    assert f"config['deep'][0]['er'][0][{name!r}]" in caught.value.what
    assert LONG not in str(caught.value)
    assert "os.environ" in caught.value.fix


@pytest.mark.parametrize("name", ORDINARY_NAMES)
def test_ordinary_names_are_not_refused(name):
    assert not is_secret_name(name)
    refuse_secrets({name: LONG}, "config")
    refuse_secrets_in_code({"m.py": f"{name.replace('-', '_')} = {LONG!r}".encode()})


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=20))
@settings(max_examples=200, deadline=None)
def test_a_name_is_judged_by_its_last_words(name):
    assert not is_secret_name(f"{name}_count")
    assert not is_secret_name(f"{name}izer")
    assert is_secret_name(f"{name}_password")
    assert is_secret_name(f"{name}_api_key")


@pytest.mark.parametrize(
    "value", ["", "none", None, 3, 0.5, True, "changeme", "<your token>", "${TOKEN}", "%s", "api_key", "two words"]
)
def test_a_placeholder_is_no_secret(value):
    refuse_secrets({"api_key": value, "password": value}, "config")


@pytest.mark.parametrize("value", FORMS)
def test_a_known_form_is_one_under_any_name_and_in_any_text(value):
    assert why_secret("x", value) == "it has the form of one"
    assert redact(f"before {value} after") == "before [redacted] after"
    with pytest.raises(CaptureError) as caught:
        refuse_secrets_in_code({"m.py": f"def f():\n    return g({value!r})\n".encode()})
    assert "m.py, line 2" in caught.value.what
    assert value not in str(caught.value)


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_ordinary_texts_stay_as_they_are(text):
    if "://" not in text:
        assert redact(text) == text


@pytest.mark.parametrize(
    "text", ["loss 0.5 at step 3", "sk-learn", "task-based-approach-to-learning", "s3://bucket/me@x", "mask-rcnn"]
)
def test_what_looks_a_little_like_one_stays(text):
    assert redact(text) == text
    assert why_secret("note", text) == ""


def test_the_value_of_a_secret_variable_is_found_in_any_form(monkeypatch):
    secret = 'p/q"r\\s+42é' + "x" * 8
    monkeypatch.setenv("SOME_DEPLOY_TOKEN", secret)
    monkeypatch.setenv("PGPASSWORD", "postgres")
    assert ("SOME_DEPLOY_TOKEN", secret) in environment_secrets()
    assert why_secret("note", f"x{secret}y") == "it holds the value of $SOME_DEPLOY_TOKEN"
    for text in (secret, repr(secret), f"{ {'a': secret} }", urllib.parse.quote(secret, safe="")):
        assert "[redacted: $SOME_DEPLOY_TOKEN]" in redact(text)
        assert "p/q" not in redact(text)
    assert redact("a database of postgres") == "a database of postgres", "a plain word is in every text"


@pytest.mark.parametrize(
    "url", ["https://me:hunter2@h/x", "https://hunter2@h", "s3://key:hunter2@bucket", "simplecache::s3://k:hunter2@b", "pg://u:hunter2@h:5432/d"]
)  # fmt: skip
def test_a_password_in_an_address_is_refused_and_blackened(url):
    assert has_credentials(url)
    with pytest.raises(SpecError, match="the store's address holds a user name or password") as caught:
        refuse_credentials(url, "the store's address")
    assert "hunter2" not in str(caught.value) + redact(f"cannot open {url}: no")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("api_key = 'abc-def-1'", "‘api_key’ in m.py, line 1"),
        ("client.token = 'abc-def-1'", "‘token’"),
        ("os.environ['API_KEY'] = 'abc-def-1'", "‘API_KEY’"),
        ("api_key: str = 'abc-def-1'", "‘api_key’"),
        ("def f(a, password='abc-def-1'): pass", "‘password’"),
        ("def f(*, secret='abc-def-1'): pass", "‘secret’"),
        ("connect(user='me', password='abc-def-1')", "‘password’"),
        ("options = {'lr': 1, 'access_token': b'abc-def-1'}", "‘access_token’"),
        ("api_keys = 1; api_key = ['abc-def-1', 'ghi-jkl-2']", "‘api_key’"),
        ("if (token := 'abc-def-1'): pass", "‘token’"),
    ],
)
def test_a_secret_in_code_is_named_with_its_place(code, says):
    with pytest.raises(CaptureError) as caught:
        refuse_secrets_in_code({"ok.py": b"x = 1", "m.py": code.encode()})
    assert says in caught.value.what
    assert "abc-def-1" not in str(caught.value)


@pytest.mark.parametrize(
    "code",
    [
        "api_key = os.environ['WANDB_API_KEY']", "password = getpass('password: ')", "def f(token=None): pass",
        "tokens = {'eos_token': '</s>', 'pad_token': '<pad_value>'}", "TOKEN_VARIABLE = 'HF_TOKEN'", "token = 'HF_TOKEN'",
        "def broken(:",
    ],
)  # fmt: skip
def test_code_that_reads_its_secrets_is_fine(code):
    refuse_secrets_in_code({"m.py": code.encode()})


def test_a_process_of_ours_logs_prints_and_dies_without_secrets(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", LONG)
    code = """
    import logging, os
    from cloudai.specs.confidential import start_log
    start_log()
    start_log()
    secret = os.environ["SOME_API_KEY"]
    print("printed", secret, flush=True)
    logging.getLogger("x").warning("logged %s", secret)
    try:
        raise ValueError(secret)
    except ValueError:
        logging.exception("caught")
    raise RuntimeError("died of " + secret)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    out = done.stdout + done.stderr
    assert LONG not in out
    assert out.count("[redacted: $SOME_API_KEY]") == 4
    assert out.count("logged") == 1


def test_a_log_handler_blackens_also_arguments_and_tracebacks(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", LONG)
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(confidential._Formatter("%(message)s"))
    log = logging.Logger("alone")
    log.addHandler(handler)
    log.error("it was %r", {"key": LONG})
    assert LONG not in stream.getvalue()
    assert "it was" in stream.getvalue()

from __future__ import annotations

import pytest

from cloudai.serving.asgi import HttpError
from cloudai.serving.openai_prompts import Prompts
from tests.serving import writers

HELLO = [{"role": "user", "content": "hello"}]


def test_without_a_chat_template_the_error_says_what_to_do():
    with pytest.raises(HttpError) as refused:
        Prompts(writers.writer(chat_template=None)).of_chat(HELLO)
    assert (refused.value.status, refused.value.code) == (400, "no_chat_template")
    assert "/v1/completions" in refused.value.fix


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('roles must take turns') }}", "roles must take turns"),
        ("{{ messages[0].tools.name }}", "no attribute 'tools'"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
    ],
)
def test_a_template_that_refuses_or_wants_too_much(template, says):
    with pytest.raises(HttpError, match=says) as refused:
        Prompts(writers.writer(chat_template=template)).of_chat(HELLO)
    assert refused.value.status == 400


def test_tokens_and_texts():
    prompts = Prompts(writers.writer())
    assert prompts.text([*prompts.of_text("hé"), 0]) == "hé"  # what only marks an end is no text
    assert prompts.of_text("") == [0]  # a model needs one token at least
    for bad in ([1, 257], [999]):
        with pytest.raises(HttpError, match="there is no token"):
            prompts.of_tokens(bad)
    with pytest.raises(HttpError, match="half a character at 1"):
        prompts.of_text("a\ud800")
    with pytest.raises(HttpError, match="half a character"):
        prompts.of_chat([{"role": "user", "content": "\ud800"}])

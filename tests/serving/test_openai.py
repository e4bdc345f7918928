"""OpenAI's own client against real server processes."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import threading
import time

import numpy as np
import openai
import psutil
import pytest

from tests.conftest import wait_until
from tests.serving import writers

HELLO = [{"role": "user", "content": "hello"}]
GREEDY = {"model": "tiny", "temperature": 0}


def client(served, kind=openai.OpenAI, **options):
    given = {"api_key": "none", "max_retries": 0, "timeout": 60} | options
    return kind(base_url=f"http://127.0.0.1:{served.port}/v1", **given)


@pytest.fixture(scope="module")
def server(start_once):
    return start_once.writer(name="tiny").wait_until_ready()


@pytest.fixture(scope="module")
def slow(start_once):
    return start_once.writer(name="slow", kind="slow", max_in_flight=4).wait_until_ready()


@pytest.fixture
def ask(server):
    return client(server)


def metric(served, name, **labels):
    for line in served.get("/metrics").body.decode().splitlines():
        if line.startswith(name + "{") and all(
            f'{key}="{value}"' for key, value in labels.items() if f'{key}="{value}"' in line
        ):
            return float(line.rpartition(" ")[2])
    raise AssertionError(f"{name} is not counted")


def test_the_deployment_is_the_one_model(ask):
    assert [model.id for model in ask.models.list()] == ["tiny"]
    assert ask.models.retrieve("tiny@1.0.0").owned_by == "cloudai"


def test_a_chat_whole_and_as_a_stream(ask):
    whole = ask.chat.completions.create(messages=HELLO, max_completion_tokens=20, **GREEDY)
    prompt = len(writers.tokenizer()("<user>hello\n<assistant>")["input_ids"])
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (prompt, 20)
    assert whole.usage.total_tokens == prompt + 20
    assert whole.choices[0].finish_reason == "length"
    assert whole.choices[0].message.role == "assistant"
    usage = {"include_usage": True}
    stream = ask.chat.completions.create(messages=HELLO, max_tokens=20, stream=True, stream_options=usage, **GREEDY)
    *parts, last = list(stream)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    assert parts[0].choices[0].delta.role == "assistant"
    assert [part.choices[0].finish_reason for part in parts][-2:] == [None, "length"]
    assert (last.choices, last.usage) == ([], whole.usage)
    assert len({part.id for part in parts}) == 1


def test_messages_go_through_the_models_own_template(ask):
    messages = [{"role": "developer", "content": "be kind"}, {"role": "user", "content": [{"type": "text", "text": "hé"}]}]
    chat = ask.chat.completions.create(messages=messages, max_tokens=8, **GREEDY)
    prompt = "<system>be kind\n<user>hé\n<assistant>"
    written = ask.completions.create(prompt=prompt, max_tokens=8, **GREEDY)
    assert chat.choices[0].message.content == written.choices[0].text
    assert chat.usage == written.usage


def test_completions_of_several_prompts_are_those_of_the_model_itself(ask):
    prompts = ["one", "another one", "é"]
    answer = ask.completions.create(prompt=prompts, **GREEDY)
    expected = writers.writer().answers({"text": np.array(prompts, object)})["continuation"].tolist()
    assert [choice.text for choice in answer.choices] == expected  # 16 tokens are the default of both
    tokens = [writers.tokenizer()(prompt)["input_ids"] for prompt in prompts]
    assert ask.completions.create(prompt=tokens, **GREEDY).choices == answer.choices
    assert ask.completions.create(prompt=tokens[0], **GREEDY).choices[0].text == expected[0]
    assert answer.usage.prompt_tokens == sum(map(len, tokens))


def test_several_choices_are_streamed_side_by_side_and_a_seed_gives_them_again(ask):
    asked = {"model": "tiny", "prompt": "abc", "n": 3, "seed": 7, "max_tokens": 10}
    whole = [choice.text for choice in ask.completions.create(**asked).choices]
    assert len(set(whole)) == 3
    texts = {0: "", 1: "", 2: ""}
    for part in ask.completions.create(stream=True, **asked):
        texts[part.choices[0].index] += part.choices[0].text
    assert list(texts.values()) == whole
    assert ask.completions.create(**asked | {"seed": 8}).choices[0].text != whole[0]


def test_a_stop_string_ends_a_text_before_it(ask):
    text = ask.completions.create(prompt="abc", max_tokens=30, **GREEDY).choices[0].text
    stop = text[4:6]
    choice = ask.completions.create(prompt="abc", max_tokens=30, stop=[stop], **GREEDY).choices[0]
    assert (choice.text, choice.finish_reason) == (text[: text.index(stop)], "stop")


def test_likelihoods_of_tokens(ask):
    chat = ask.chat.completions.create(messages=HELLO, max_tokens=3, logprobs=True, top_logprobs=2, **GREEDY)
    content = chat.choices[0].logprobs.content
    assert len(content) == 3
    assert all(one.top_logprobs[0].logprob == one.logprob <= 0 for one in content)  # greedy: the likeliest
    done = ask.completions.create(prompt="abc", max_tokens=3, logprobs=1, **GREEDY)
    assert [len(done.choices[0].logprobs.tokens), len(done.choices[0].logprobs.top_logprobs)] == [3, 3]


@pytest.mark.parametrize(
    ("options", "param", "says"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"extra_body": {"top_k": 3}}, "top_k", "did you mean 'top_p'"),
        ({"logit_bias": {"1": 5}}, "logit_bias", "not supported"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"temperature": "1"}, "temperature", "valid number"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages.0", ""),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages.0.con", ""),
        ({"messages": [{"role": "user", "content": "a" * 400}]}, "messages", "takes 256 in all"),
        ({"max_tokens": 250}, "messages", "ask for at most"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "differ"),
        ({"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "streams only"),
        ({"stop": [""]}, "stop", "at least 1"),
    ],
)
def test_what_cannot_be_done_is_refused_and_says_where(ask, options, param, says):
    with pytest.raises(openai.BadRequestError) as refused:
        ask.chat.completions.create(**{"model": "tiny", "messages": HELLO} | options)
    problem = refused.value.body
    assert set(problem) == {"message", "type", "param", "code"}
    assert problem["type"] == "invalid_request_error"
    assert problem["param"].startswith(param)
    assert says in problem["message"]


def test_values_that_ask_for_nothing_are_taken(ask):
    nothing = {"tools": [], "response_format": {"type": "text"}, "logit_bias": {}, "store": False, "user": "me"}
    assert ask.chat.completions.create(messages=HELLO, max_tokens=1, **nothing, **GREEDY).choices


def test_bodies_that_are_none(server):
    for body in (
        b"",
        b"{",
        b"[]",
        b'{"model": "tiny", "prompt": "\\ud800"}',
        b'{"model": "tiny", "prompt": [999]}',
        b"[" * 9999,
    ):
        answer = server.post("/v1/completions", body)
        assert answer.status == 400, body
        assert answer.json["error"]["type"] == "invalid_request_error"
    assert server.get("/v1/completions").status == 405
    assert server.get("/v1/nothing").json["error"]["type"] == "not_found_error"


def test_another_models_name_is_not_here(ask):
    with pytest.raises(openai.NotFoundError) as refused:
        ask.completions.create(model="gpt-4", prompt="x")
    assert refused.value.body["code"] == "model_not_found"
    assert "'tiny'" in refused.value.body["message"]


def test_without_a_chat_template_the_error_says_what_to_do(start):
    silent = start.writer(kind="silent").wait_until_ready()
    with pytest.raises(openai.BadRequestError) as refused:
        client(silent).chat.completions.create(messages=HELLO, **GREEDY)
    assert refused.value.body["code"] == "no_chat_template"
    assert "/v1/completions" in refused.value.body["message"]
    assert client(silent).completions.create(prompt="x", **GREEDY).choices


def test_many_at_once_with_the_asynchronous_client(server, ask):
    alone = [ask.completions.create(prompt=f"text {n}", max_tokens=12, **GREEDY).choices[0].text for n in range(6)]

    async def together():
        async with client(server, openai.AsyncOpenAI) as several:
            answers = [several.completions.create(prompt=f"text {n}", max_tokens=12, **GREEDY) for n in range(6)]
            stream = await several.completions.create(prompt="text 0", max_tokens=12, stream=True, **GREEDY)
            streamed = "".join([part.choices[0].text async for part in stream])
            return [answer.choices[0].text for answer in await asyncio.gather(*answers)], streamed

    assert asyncio.run(together()) == (alone, alone[0])


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(server):
    body = json.dumps({"prompt": "abc", "max_tokens": 3, "stream": True, **GREEDY})
    url = f"http://127.0.0.1:{server.port}/v1/completions"
    done = subprocess.run(["curl", "-sN", url, "-d", body], capture_output=True, timeout=30, check=True)
    events = done.stdout.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: {") for event in events[:-2])


def test_a_client_that_goes_away_frees_its_place(slow):
    stream = client(slow).completions.create(prompt="abc", max_tokens=200, stream=True, **GREEDY)
    next(iter(stream))
    assert metric(slow, "ml_num_requests_running") == 1
    stream.close()
    wait_until(lambda: metric(slow, "ml_num_requests_running") == 0)
    wait_until(lambda: metric(slow, "ml_inference_in_flight") == 0)
    with pytest.raises(openai.APITimeoutError):  # a whole answer is broken off as well
        client(slow, timeout=0.5).completions.create(prompt="abc", max_tokens=200, **GREEDY)
    wait_until(lambda: metric(slow, "ml_num_requests_running") == 0)
    assert metric(slow, "ml_generation_tokens_total") < 200


def test_more_than_there_are_places_is_refused_with_the_time_to_wait(slow):
    streams = [client(slow).completions.create(prompt="a", max_tokens=200, stream=True, **GREEDY) for _ in range(4)]
    with pytest.raises(openai.RateLimitError) as refused:
        client(slow).completions.create(prompt="a", **GREEDY)
    assert int(refused.value.response.headers["retry-after"]) >= 1
    assert refused.value.body["type"] == "rate_limit_error"
    for stream in streams:
        stream.close()
    wait_until(lambda: metric(slow, "ml_inference_in_flight") == 0)
    assert client(slow).completions.create(prompt="a", max_tokens=1, **GREEDY).choices


def test_a_text_that_takes_too_long(start):
    stuck = start.writer(kind="stuck", timeout=1.5).wait_until_ready()
    with pytest.raises(openai.APIStatusError) as refused:
        client(stuck).completions.create(prompt="abc", max_tokens=20, **GREEDY)
    assert refused.value.status_code == 504
    assert "stream the answer" in refused.value.body["message"]
    parts = list(client(stuck).completions.create(prompt="abc", max_tokens=3, stream=True, **GREEDY))
    assert parts[-1].choices[0].finish_reason == "length"  # a stream may take longer: no second of silence was too long


def test_a_model_that_fails_says_nothing_of_why(start):
    failing = start.writer(kind="failing").wait_until_ready()
    with pytest.raises(openai.InternalServerError) as refused:
        client(failing).completions.create(prompt="!", **GREEDY)
    assert "secret" not in str(refused.value.body)
    assert "secret of the model" in failing.log.read_text()
    assert client(failing).completions.create(prompt="abc", max_tokens=1, **GREEDY).choices


def test_told_to_end_it_finishes_streams_and_cuts_those_that_take_too_long(start):
    slow = start.writer(kind="slow", drain_timeout=10).wait_until_ready()
    stream = iter(client(slow).completions.create(prompt="abc", max_tokens=60, stream=True, **GREEDY))
    next(stream)
    slow.terminate()
    assert [part.choices[0].finish_reason for part in stream][-1] == "length"
    assert slow.exit_code() == 0
    hasty = start.writer(name="hasty", kind="slow", drain_timeout=0.5).wait_until_ready()
    stream = iter(client(hasty).completions.create(prompt="abc", max_tokens=200, stream=True, **GREEDY))
    next(stream)
    hasty.terminate()
    with pytest.raises(openai.APIError, match="cut off"):
        list(stream)
    assert hasty.exit_code() == 0


def test_embeddings_are_the_models_vectors(start):
    server = start.writer(kind="embedder").wait_until_ready()
    texts = ["abc", "another text", ""]
    answer = client(server).embeddings.create(model="tiny", input=texts)  # the client asks for base64
    expected = writers.embedder().answers({"text": np.array(texts, object)})["vector"]
    assert np.allclose([entry.embedding for entry in answer.data], expected, atol=1e-6)
    assert [entry.index for entry in answer.data] == [0, 1, 2]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == len("abcanother text")
    numbers = server.post("/v1/embeddings", json.dumps({"model": "tiny", "input": "abc"})).json["data"][0]["embedding"]
    coded = server.post("/v1/embeddings", json.dumps({"model": "tiny", "input": "abc", "encoding_format": "base64"}))
    assert np.frombuffer(base64.b64decode(coded.json["data"][0]["embedding"]), "<f4").tolist() == numbers
    for options, param in (({"dimensions": 3}, "dimensions"), ({"input": []}, "input"), ({"input": "a" * 60}, "input")):
        with pytest.raises(openai.BadRequestError) as refused:
            client(server).embeddings.create(**{"model": "tiny", "input": "x"} | options)
        assert refused.value.body["param"].startswith(param)
    with pytest.raises(openai.NotFoundError):
        client(server).completions.create(model="tiny", prompt="x")


def test_through_the_router_pieces_come_at_once_and_the_token_is_the_key(start, tmp_path):
    token = tmp_path / "token"
    token.write_text("a-token-of-thirty-two-characters-or-more\n")
    token.chmod(0o600)
    given = {"token_file": str(token)}
    slow = start.writer(kind="slow", timeout=1.0, **given).wait_until_ready()
    router = start.router(timeout=1.5, **given).wait_until_ready()
    router.route({"a": 100}, {"a": slow})
    with pytest.raises(openai.AuthenticationError) as refused:
        client(router).models.list()
    assert refused.value.body["type"] == "authentication_error"
    ask = client(router, api_key=token.read_text().strip())
    begun = time.monotonic()
    times = []
    for _ in ask.completions.create(prompt="abc", max_tokens=120, stream=True, **GREEDY):
        times.append(time.monotonic() - begun)
    assert times[-1] > 2.0  # longer than the time for a request: only silence ends a stream
    assert times[0] < times[-1] / 2
    assert sum(later - earlier > 0.005 for earlier, later in zip(times, times[1:], strict=False)) > 50  # not all at the end
    stream = ask.completions.create(prompt="abc", max_tokens=200, stream=True, **GREEDY)
    next(iter(stream))
    stream.close()
    key = {"authorization": f"Bearer {token.read_text().strip()}"}
    running = 'ml_num_requests_running{instance="127.0.0.1:'
    wait_until(
        lambda: f'{running}{slow.port}",model_name="tiny",version="1.0.0"}} 0.0' in slow.get("/metrics", **key).body.decode()
    )


@pytest.mark.slow
def test_memory_is_flat_over_thousands_of_short_texts(server):
    process = psutil.Process(server.process.pid)

    def some(count):
        def work():
            ask = client(server)
            for number in range(count // 8):
                ask.completions.create(model="tiny", prompt=f"text {number}", max_tokens=2 + number % 9)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return process.memory_info().rss

    before = some(1000)
    assert some(3000) - before < 12 * 2**20

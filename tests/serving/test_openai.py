"""OpenAI's own client against real server processes."""

from __future__ import annotations

import asyncio
import base64
import itertools
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

TOKEN = "a-token-of-thirty-two-characters-or-more"
HELLO = [{"role": "user", "content": "hello"}]
GREEDY = {"model": "tiny", "temperature": 0}


def client(served, kind=openai.OpenAI, **options):
    given = {"api_key": TOKEN, "max_retries": 0, "timeout": 60} | options
    return kind(base_url=f"http://127.0.0.1:{served.port}/v1", **given)


@pytest.fixture(scope="module")
def token_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("token") / "token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    return str(path)


@pytest.fixture(scope="module")
def server(start_once, token_file):
    return start_once.writer(timeout=2.0, max_in_flight=8, token_file=token_file).wait_until_ready()


@pytest.fixture
def ask(server):
    return client(server)


@pytest.fixture
def pause(server):
    """Let each step of the model take longer, so that there is time to do something meanwhile."""

    def seconds(duration, served=server):
        (served.folder / "pause").write_text(str(duration))

    yield seconds
    (server.folder / "pause").unlink(missing_ok=True)


def post(served, path, body):
    return served.post(path, body, authorization=f"Bearer {TOKEN}")


def metric(served, name):
    lines = served.get("/metrics", authorization=f"Bearer {TOKEN}").body.decode().splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))


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
        answer = post(server, "/v1/completions", body)
        assert answer.status == 400, body
        assert answer.json["error"]["type"] == "invalid_request_error"
    assert server.get("/v1/completions", authorization=f"Bearer {TOKEN}").status == 405
    assert post(server, "/v1/nothing", "").json["error"]["type"] == "not_found_error"


def test_another_models_name_is_not_here(ask):
    with pytest.raises(openai.NotFoundError) as refused:
        ask.completions.create(model="gpt-4", prompt="x")
    assert refused.value.body["code"] == "model_not_found"
    assert "'tiny'" in refused.value.body["message"]


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
    done = subprocess.run(
        ["curl", "-sN", url, "-H", f"authorization: Bearer {TOKEN}", "-d", body], capture_output=True, timeout=30, check=True
    )
    events = done.stdout.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: {") for event in events[:-2])


def test_a_client_that_goes_away_frees_its_place(server, pause):
    pause(0.02)
    before = metric(server, "ml_generation_tokens_total")
    stream = client(server).completions.create(prompt="abc", max_tokens=200, stream=True, **GREEDY)
    next(iter(stream))
    assert metric(server, "ml_num_requests_running") == 1
    stream.close()
    wait_until(lambda: metric(server, "ml_num_requests_running") == 0)
    with pytest.raises(openai.APITimeoutError):  # a whole answer is broken off as well
        client(server, timeout=0.3).completions.create(prompt="abc", max_tokens=200, **GREEDY)
    wait_until(lambda: metric(server, "ml_num_requests_running") == 0)
    wait_until(lambda: metric(server, "ml_inference_in_flight") == 0)
    assert metric(server, "ml_generation_tokens_total") - before < 200


def test_more_than_there_are_places_is_refused_with_the_time_to_wait(server, pause, ask):
    pause(0.02)
    streams = [ask.completions.create(prompt="a", max_tokens=200, stream=True, **GREEDY) for _ in range(8)]
    with pytest.raises(openai.RateLimitError) as refused:
        ask.completions.create(prompt="a", **GREEDY)
    assert int(refused.value.response.headers["retry-after"]) >= 1
    assert refused.value.body["type"] == "rate_limit_error"
    for stream in streams:
        stream.close()
    wait_until(lambda: metric(server, "ml_inference_in_flight") == 0)
    assert ask.completions.create(prompt="a", max_tokens=1, **GREEDY).choices


def test_a_text_that_takes_too_long_unless_it_is_streamed(pause, ask):
    pause(0.5)
    with pytest.raises(openai.APIStatusError) as refused:
        ask.completions.create(prompt="abc", max_tokens=20, **GREEDY)
    assert refused.value.status_code == 504
    assert "stream the answer" in refused.value.body["message"]
    parts = list(ask.completions.create(prompt="abc", max_tokens=6, stream=True, **GREEDY))
    assert parts[-1].choices[0].finish_reason == "length"  # three seconds, but no two of silence
    pause(4)
    with pytest.raises(openai.APIStatusError) as refused:  # nothing was sent yet: the status can still say it
        ask.completions.create(prompt="abc", max_tokens=6, stream=True, **GREEDY)
    assert refused.value.status_code == 504


def test_a_model_that_fails_says_nothing_of_why(server, ask):
    with pytest.raises(openai.InternalServerError) as refused:
        ask.completions.create(prompt="!!", **GREEDY)
    assert "secret" not in str(refused.value.body)
    assert "secret of the model" in server.log.read_text()
    assert ask.completions.create(prompt="abc", max_tokens=1, **GREEDY).choices


def test_told_to_end_it_finishes_what_it_can_and_cuts_off_the_rest(start, token_file, pause):
    server = start.writer(drain_timeout=2.5, token_file=token_file).wait_until_ready()
    pause(0.02, server)
    asked = {"prompt": "abc", "stream": True, **GREEDY}
    short, long = (iter(client(server).completions.create(max_tokens=count, **asked)) for count in (20, 250))
    next(short)
    next(long)
    server.terminate()
    assert [part.choices[0].finish_reason for part in short][-1] == "length"
    with pytest.raises(openai.APIError, match="cut off"):
        list(long)
    assert server.exit_code() == 0


def test_embeddings_are_the_models_vectors(start):
    server = start.writer(kind="embedder").wait_until_ready()
    texts = ["abc", "another text", ""]
    answer = client(server).embeddings.create(model="tiny", input=texts)  # the client asks for base64
    expected = writers.embedder().answers({"text": np.array(texts, object)})["vector"]
    assert np.allclose([entry.embedding for entry in answer.data], expected, atol=1e-6)
    assert [entry.index for entry in answer.data] == [0, 1, 2]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == len("abcanother text")
    one = {"model": "tiny", "input": "abc"}
    numbers = server.post("/v1/embeddings", json.dumps(one)).json["data"][0]["embedding"]
    coded = server.post("/v1/embeddings", json.dumps(one | {"encoding_format": "base64"}))
    assert np.frombuffer(base64.b64decode(coded.json["data"][0]["embedding"]), "<f4").tolist() == numbers
    for options, param in (({"dimensions": 3}, "dimensions"), ({"input": []}, "input"), ({"input": "a" * 60}, "input")):
        with pytest.raises(openai.BadRequestError) as refused:
            client(server).embeddings.create(**{"model": "tiny", "input": "x"} | options)
        assert refused.value.body["param"].startswith(param)
    with pytest.raises(openai.NotFoundError):
        client(server).completions.create(model="tiny", prompt="x")


def test_through_the_router_pieces_come_at_once_and_the_token_is_the_key(start, server, token_file, pause):
    router = start.router(timeout=1.0, token_file=token_file).wait_until_ready()
    router.route({"a": 100}, {"a": server})
    with pytest.raises(openai.AuthenticationError) as refused:
        client(router, api_key="none").models.list()
    assert refused.value.body["type"] == "authentication_error"
    pause(0.1)
    ask, begun = client(router), time.monotonic()
    stream = ask.completions.create(prompt="abc", max_tokens=20, stream=True, **GREEDY)
    times = [time.monotonic() - begun for _ in stream]
    assert times[-1] > 1.5  # longer than the router's time: only silence ends a stream
    assert sum(later - earlier > 0.05 for earlier, later in itertools.pairwise(times)) > 8  # they did not come together
    stream = ask.completions.create(prompt="abc", max_tokens=200, stream=True, **GREEDY)
    next(iter(stream))
    stream.close()
    wait_until(lambda: metric(server, "ml_num_requests_running") == 0)


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

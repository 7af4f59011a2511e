"""What is refused, and how: the whole way of a request but for Ray and for sockets."""

import asyncio
import json
import tracemalloc
from base64 import b64encode
from contextlib import asynccontextmanager

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from benchmarks.bad_requests import bad_requests, encoded, infer
from pumer.evaluation.predict import Predictor
from pumer.serving import app as application
from pumer.serving.app import About, Reply, Server
from pumer.serving.model import ServedModel
from pumer.serving.protocols import Chat, Infer, RefusedRequest, parsed
from pumer.serving.replica import Replica
from pumer.settings.serve import ServeConfig
from pumer.utils.errors import InputError

PIXELS = 2**22
RED = encoded(Image.new("RGB", (50, 30), "red"), "PNG")
BASE64 = b64encode(RED).decode()


@pytest.fixture(scope="module")
def model(tiny_vilt):
    return ServedModel(ServeConfig(model=str(tiny_vilt), max_image_pixels=PIXELS))


def served(config, ask, images=1, tokens=None):
    return Server(config, About("tiny", "pytorch", images, tokens), ask, lambda: True)


@asynccontextmanager
async def client_of(server):
    transport = httpx.ASGITransport(server.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def answering(model):
    """A server whose model answers one question after the other."""

    async def ask(asked):
        try:
            (reply,) = model.replies([model.read(asked)])
        except InputError as error:
            return Reply(str(error), refused=True)
        assert isinstance(reply, Reply), reply
        return reply

    return served(model.config, ask)


def post(server, path, **options):
    async def send():
        async with client_of(server) as client:
            return await client.post(path, **options)

    return asyncio.run(send())


def line_of(response):
    error = response.json()["error"]
    line = error["message"] if isinstance(error, dict) else error
    assert line and "\n" not in line and len(line) <= 300 and "Traceback" not in line
    return line


def test_bad_requests_are_refused_in_one_line(model):
    server = answering(model)
    most = model.config.max_request_bytes

    async def send_all():
        async with client_of(server) as client:
            for bad in bad_requests("tiny", 60, most, PIXELS):
                content = pieces(bad.content) if isinstance(bad.content, list) else bad.content
                yield bad.kind, await client.request(bad.method, bad.path, content=content)

    async def check():
        async for kind, response in send_all():
            assert 400 <= response.status_code < 500, (kind, response.text)
            line_of(response)

    asyncio.run(check())
    assert server._held == server._waiting == 0


async def pieces(content):
    for each in content:
        yield each


def test_a_good_request_is_answered_as_alone(model, tiny_vilt):
    server, predictor = answering(model), Predictor(tiny_vilt)
    expected = predictor(Image.new("RGB", (50, 30), "red"), ["what colour is it", "is this blue"])
    asked = {"content": RED, "params": {"question": "what colour is it"}}
    assert post(server, "/answer", **asked).json() == {"answer": expected[0]}
    body = infer([BASE64, BASE64], ["what colour is it", "is this blue"], id="7")
    found = post(server, "/v2/models/tiny/infer", json=body | {"outputs": [{"name": "score"}, {"name": "answer"}]})
    score, answer = found.json()["outputs"]
    assert answer == {"name": "answer", "shape": [2], "datatype": "BYTES", "data": expected}
    assert found.json()["id"] == "7" and len(set(score["data"])) == 2


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([BASE64, "image", "BYTES"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)


@given(st.data())
@settings(max_examples=150)
def test_any_json_is_answered_or_refused(data):
    async def ask(asked):
        return Reply("yes", score=1.0)

    body = infer([BASE64], ["is it?"])
    place = data.draw(st.sampled_from([None, "id", "inputs", "outputs", "parameters", "name", "shape", "data", "more"]))
    if place is None:
        body = data.draw(ANYTHING)
    elif place in ("name", "shape", "data"):
        body["inputs"][data.draw(st.integers(0, 1))][place] = data.draw(ANYTHING)
    else:
        body[place] = data.draw(ANYTHING)
    server = served(ServeConfig(model="small:vilt"), ask, tokens=64)
    content = json.dumps(body).encode()
    for path in ("/v2/models/tiny/infer", "/v1/chat/completions"):
        response = post(server, path, content=content)
        assert response.status_code in (200, 400)
        if response.status_code == 400:
            line_of(response)


def test_an_unknown_key_is_named():
    with pytest.raises(RefusedRequest, match="'paths'"):
        parsed(json.dumps(infer([BASE64], ["?"], paths=1)).encode(), Infer, ServeConfig(model="small:vilt"))


LONG = 12_000
"""Values in a list: fewer than a body may have in all."""


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (Infer, {"inputs": [1] * LONG}),
        (Infer, {"inputs": [], **{str(number): 1 for number in range(LONG)}}),
        (Infer, {"inputs": [], "outputs": [1] * LONG}),
        (Infer, {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [1] * LONG}]}),
        (Infer, {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [[1] * LONG]}]}),
        (Infer, {"inputs": [{"name": "image", "shape": ["1"] * LONG, "datatype": "BYTES", "data": []}]}),
        (Infer, {"inputs": [{"name": "image", "shape": [1] * LONG, "datatype": "BYTES", "data": []}]}),
        (Chat, {"messages": [1] * LONG}),
        (Chat, {"messages": [{"role": "user", "content": "hello"}] * 1025}),
        (Chat, {"messages": [{"role": "user", "content": [1] * LONG}]}),
    ],
)
def test_errors_are_not_collected(kind, body):
    """Else a small body takes a thousand times its memory."""
    with pytest.raises(ValidationError) as found:
        kind.model_validate_json(json.dumps(body))
    assert found.value.error_count() <= 7  # a field that is missing or wrong, or a kind that an entry may have


@pytest.mark.parametrize("character", ["[],", "{},", '{"":[', "1,"])
def test_values_are_counted_before_they_are_read(character):
    body = b'{"inputs":[' + character.encode() * 2**20
    tracemalloc.start()
    with pytest.raises(RefusedRequest, match=str(most := 10_000 + 2**14)):
        parsed(body, Infer, ServeConfig(model="small:vilt"))
    assert tracemalloc.get_traced_memory()[1] < 2**20 and most < 2**20
    tracemalloc.stop()


def test_a_text_may_have_many_commas():
    config = ServeConfig(model="small:vilt")
    text = ",[{" * 3000
    body = json.dumps(infer([BASE64] * 16, [text] * 16)).encode()
    with pytest.raises(RefusedRequest, match="commas"):
        parsed(body, Infer, config)
    assert parsed(json.dumps(infer([BASE64], [text])).encode(), Infer, config).asked(config)[0].text == text


def test_a_question_that_fails_ends_the_others_of_its_request():
    ended = []

    async def ask(asked):
        if asked.text == "bad":
            raise RefusedRequest(503, "no replica")
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(asked.text)

    server = served(ServeConfig(model="small:vilt"), ask)
    response = post(server, "/v2/models/tiny/infer", json=infer([BASE64] * 3, ["one", "bad", "two"]))
    assert response.status_code == 503 and "no replica" in line_of(response)
    assert sorted(ended) == ["one", "two"] and server._waiting == 0


def test_a_cluster_that_is_gone_is_not_ready():
    def gone():
        raise ConnectionError("no cluster\nat all")

    server = Server(ServeConfig(model="small:vilt"), About("tiny", "pytorch", 1), None, gone)

    async def check():
        async with client_of(server) as client:
            return await client.get("/v2/health/ready")

    response = asyncio.run(check())
    assert response.status_code == 503
    line_of(response)


def test_what_is_too_much_is_refused(monkeypatch):
    config = ServeConfig(model="small:vilt", max_waiting=16, timeout_s=0.2)
    forever = asyncio.Event

    async def never(asked):
        await forever().wait()

    async def crowd():
        async with client_of(server) as client:
            ask = [client.post("/answer", params={"question": "is it?"}, content=RED) for _ in range(20)]
            return [response.status_code for response in await asyncio.gather(*ask)]

    server = served(config, never)
    assert sorted(asyncio.run(crowd())) == [429] * 4 + [504] * 16
    monkeypatch.setattr(application, "HELD", 2 * len(RED))
    assert sorted(asyncio.run(crowd())) == [429] * 18 + [504] * 2
    assert server._held == server._waiting == 0
    metrics = server.metrics.get_sample_value
    assert metrics("pumer_requests_total", {"to": "answer", "status": "504"}) == 18


def test_a_failure_is_one_line_and_the_servers_fault():
    async def ask(asked):
        raise RuntimeError("two\nlines")

    response = post(served(ServeConfig(model="small:vilt"), ask), "/answer", params={"question": "?"}, content=RED)
    assert response.status_code == 500 and "two" not in line_of(response)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"stream": True}, "stream"),
        ({"n": 2}, "n:"),
        ({"temperature": 0.7}, "0.7"),
        ({"max_tokens": 65}, "65"),
        ({"max_tokens": 0}, "0"),
        ({"model": "other"}, "other"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "assistant", "content": "hello"}]}, "assistant"),
        ({"messages": [{"role": "tool", "content": "hello"}]}, "role"),
        ({"messages": [{"role": "user", "content": "x" * 10_001}]}, "10001"),
        *(
            ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}, named)
            for url, named in (
                ("http://127.0.0.1:1/cat.png", "http://127.0.0.1:1/cat.png"),
                ("file:///etc/passwd", "file:///etc/passwd"),
                ("/etc/passwd", "/etc/passwd"),
                ("data:image/png;base64,?", "base64"),
            )
        ),
    ],
)
def test_chats_that_cannot_be_answered_are_refused(changed, named):
    async def ask(asked):
        raise AssertionError(asked)

    server = served(ServeConfig(model="small:vilt"), ask, tokens=64)
    body = {"messages": [{"role": "user", "content": "hello"}]} | changed
    response = post(server, "/v1/chat/completions", json=body)
    assert 400 <= response.status_code < 500
    assert named in line_of(response)


def test_images_of_many_kinds_are_taken(model):
    picture = Image.effect_noise((70, 40), 80).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [
        encoded(picture.convert("CMYK"), "JPEG"),
        encoded(picture.convert("I;16"), "PNG"),
        encoded(picture.convert("RGBA"), "WEBP"),
        encoded(picture, "JPEG", exif=exif),
        encoded(picture, "GIF", save_all=True, append_images=[Image.new("RGB", picture.size)]),
    ]
    server = answering(model)
    found = [post(server, "/answer", params={"question": "is it blue"}, content=file).status_code for file in files]
    assert found == [200] * len(files)


def test_a_replica_answers_in_batches_as_alone(tiny_vilt):
    """Without Ray: a replica is a class of its own."""
    questions = ["what colour is this", "is it blue", "is this", "what", "is it red or green or blue"]
    pictures = [Image.effect_noise((20 + 11 * n, 90 - 9 * n), 90).convert("RGB") for n in range(7)]
    pairs = [(picture, text) for picture in pictures for text in questions]
    config = ServeConfig(model=str(tiny_vilt), max_batch_size=8)
    sent = [json.dumps(infer([b64encode(encoded(p, "PNG")).decode()], [t])).encode() for p, t in pairs]
    bodies = [parsed(body, Infer, config) for body in sent]
    predictor = Predictor(tiny_vilt)
    expected = [predictor(*pair) for pair in pairs]

    async def ask_all():
        replica = Replica(config)
        return await asyncio.gather(*(replica(body.asked(config)[0]) for body in bodies))

    replies = asyncio.run(ask_all())
    assert [reply.text for reply in replies] == expected
    assert len(set(expected)) > 1
    assert sum(reply.batch for reply in replies) == len(pairs)
    assert max(reply.batch for reply in replies) > 1


def test_a_replica_goes_on_after_an_error(tiny_vilt, monkeypatch):
    """Of whatever answers, and of what hands it over."""
    (asked,) = _questions("is it")

    async def check():
        replica = Replica(ServeConfig(model=str(tiny_vilt)))
        with monkeypatch.context() as patched:
            patched.setattr(replica._model, "replies", lambda batch: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                await replica(asked)
        assert (await replica(asked)).text
        replica._working.cancel()
        await asyncio.wait([replica._working])
        return await replica(asked)

    assert asyncio.run(asyncio.wait_for(check(), 60)).text


def test_what_fails_in_a_batch_fails_alone(model, monkeypatch):
    asked = [model.read(each) for each in (*_questions("is it"), *_questions("what"))]
    whole = model._choose

    def choose(batch):
        if any(example.text == "what" for example in batch):
            raise RuntimeError("broken")
        return whole(batch)

    monkeypatch.setattr(model, "_choose", choose)
    good, bad = model.replies(asked)
    assert isinstance(good, Reply) and isinstance(bad, RuntimeError)


def _questions(text):
    config = ServeConfig(model="small:vilt")
    return parsed(json.dumps(infer([BASE64], [text])).encode(), Infer, config).asked(config)

"""Models that generate, by OpenAI's form of chats; without Ray and without sockets."""

import asyncio
import json
from base64 import b64encode

import httpx
import numpy as np
import pytest
from PIL import Image
from tiny.decoders import DECODERS
from tiny.processors import PROCESSORS

import pumer
from benchmarks.bad_requests import encoded, infer
from pumer import PuMerConfig, Step
from pumer.evaluation.predict import Predictor
from pumer.generative import answers, conversed, load_generative
from pumer.serving.app import About, Server
from pumer.serving.replica import Replica
from pumer.settings.serve import ServeConfig

REDUCED = PuMerConfig(schedule=(Step(stack="decoder", layer=1, prune_ratio=0.5, merge_ratio=0.2),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("llava")
    pumer.save(pumer.patch(DECODERS["llava"].model(), REDUCED), path)
    PROCESSORS["llava"]().save_pretrained(path)
    return path


def noise(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40 + seed, 60, 3), dtype=np.uint8))


def image(seed):
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64(seed)}"}}


def base64(seed):
    return b64encode(encoded(noise(seed), "PNG")).decode()


def send(config, *requests):
    """The responses to requests that come all at once."""

    async def all_at_once():
        replica = Replica(config)
        server = Server(config, replica.about(), replica, lambda: True)
        transport = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await asyncio.gather(*(client.post(path, json=body) for path, body in requests))

    return asyncio.run(all_at_once())


def chat(*messages, **options):
    return "/v1/chat/completions", {"messages": list(messages), **options}


def user(*parts):
    return {"role": "user", "content": list(parts)}


def text(words):
    return {"type": "text", "text": words}


def test_chats_are_answered_in_a_batch_as_alone(folder):
    config = ServeConfig(model=str(folder), max_new_tokens=6)
    turns = [
        [user(image(1), text("what colour is it ?"))],
        [user(text("is this red ?"), image(2))],
        [user(image(3), text("what is it ?")), {"role": "assistant", "content": "blue"}, user(text("is it red ?"))],
        [user(image(1), image(2), text("what is this ?"))],
    ]
    responses = send(config, *(chat(*messages) for messages in turns), chat(*turns[0], max_tokens=2, temperature=0.0))
    model, processor = load_generative(folder, device="cpu")
    for messages, response in zip([*turns, turns[0]], responses, strict=True):
        seeds = [n for n in (1, 2, 3) for m in messages if image(n) in _parts(m["content"])]
        pictures = iter([noise(seed) for seed in seeds])
        plain = [
            {"role": m["role"], "content": [_plain(part, pictures) for part in _parts(m["content"])]} for m in messages
        ]
        length = 2 if response is responses[-1] else 6
        inputs = conversed(processor, [plain])
        (expected,) = answers(model, processor, inputs, length)
        (choice,) = response.json()["choices"]
        assert choice["message"] == {"role": "assistant", "content": expected}
        assert choice["finish_reason"] == "length"
        prompt = inputs["input_ids"].shape[1]
        usage = {"prompt_tokens": prompt, "completion_tokens": length, "total_tokens": prompt + length}
        assert response.json()["usage"] == usage


def _parts(content):
    return [text(content)] if isinstance(content, str) else content


def _plain(part, pictures):
    return part if part["type"] == "text" else {"type": "image", "image": next(pictures)}


def test_the_token_that_ends_an_answer_ends_it(folder, tmp_path):
    """The first token that the model says is made its end."""
    alone = chat(user(image(1), text("what ?")), max_tokens=4)
    (before,) = send(ServeConfig(model=str(folder)), alone)
    first = before.json()["choices"][0]["message"]["content"].split()[1]
    pumer.save(pumer.load(folder), tmp_path)
    processor = PROCESSORS["llava"]()
    processor.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "generation_config.json").read_text())
    end = processor.tokenizer.convert_tokens_to_ids(first)
    (tmp_path / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": [end, 2]}))
    (after,) = send(ServeConfig(model=str(tmp_path)), alone)
    (choice,) = after.json()["choices"]
    assert choice["finish_reason"] == "stop"
    assert after.json()["usage"]["completion_tokens"] == 2


def test_a_question_is_asked_as_it_is(folder):
    body = infer([base64(1), base64(2)], ["what colour is it ?", "is this red ?"])
    (response,) = send(ServeConfig(model=str(folder), max_new_tokens=5), ("/v2/models/" + folder.name + "/infer", body))
    predictor = Predictor(folder, prompt="{question}", max_new_tokens=5)
    expected = [predictor(noise(1), "what colour is it ?"), predictor(noise(2), "is this red ?")]
    assert response.json()["outputs"][0]["data"] == expected


@pytest.mark.slow
def test_an_exported_model_that_generates_is_served(folder, tmp_path):
    """As the model itself; a question without its one image, or with two, is refused alone."""
    out, model = tmp_path / "out", pumer.load(folder)
    pumer.export(model, out, "torch", text_length=24, processor=PROCESSORS["llava"]())
    assert Replica(ServeConfig(model=str(out))).about() == About("out", "torch", 1, 64)
    turns = [
        *([user(image(seed), text("is this red ?"))] for seed in (1, 2)),
        [user(text("what ?"))],
        [user(image(1), image(2), text("what ?"))],
    ]
    chats = [*(chat(*messages, max_tokens=5) for messages in turns), chat(*turns[0], max_tokens=2)]
    responses = send(ServeConfig(model=str(out)), *chats)
    expected = send(ServeConfig(model=str(folder)), *chats)
    assert [response.status_code for response in responses] == [200, 200, 400, 400, 200]
    for response, own in zip(responses, expected, strict=True):
        if response.status_code == 200:
            assert response.json()["choices"] == own.json()["choices"]
            assert response.json()["usage"] == own.json()["usage"]


def test_a_model_that_cannot_be_served_is_named(tmp_path, tiny_vilt):
    assert "max_new_tokens=5" in Replica(ServeConfig(model=str(tiny_vilt), max_new_tokens=5)).about()
    (tmp_path / "config.json").write_text("{}")
    assert str(tmp_path) in Replica(ServeConfig(model=str(tmp_path))).about()

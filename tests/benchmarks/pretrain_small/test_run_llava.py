"""The small LLaVA: its prompts are those of its training, and a training that was interrupted goes on."""

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import conversations
from benchmarks.pretrain_small import pool_llava, run_llava, small_llava
from benchmarks.pretrain_small.settings import LlavaTrainingConfig
from pumer.generative import answers, load_generative, prompt, prompts
from pumer.utils.errors import InputError
from pumer.utils.shipped import SMALL
from pumer.world import scenes
from pumer.world.questions import ask


@pytest.fixture(scope="module")
def words():
    return small_llava.tokenizer()


def test_every_ascii_text_is_known(words):
    text = "".join(map(chr, range(32, 127)))
    assert words.unk_token_id not in words(text).input_ids
    assert len(words.tokenize("answer the question using a single word or phrase.")) == 10


def test_a_conversation_is_what_the_chat_template_makes_of_it(words):
    source, processor = pool_llava.Conversations(words, 3), small_llava.processor()
    batch = source.batch(0, 4)
    for index in range(4):
        rng = scenes.generator(3, "pretrain", index)
        scene = scenes.make_scene(rng)
        turns = [ask(scene, rng) for _ in range(pool_llava.TURNS)]
        suffix = f"\n{small_llava.INSTRUCTION}" if rng.integers(4) == 0 else ""
        messages = []
        for number, each in enumerate(turns):
            image = [{"type": "image", "image": Image.fromarray(scenes.render(scene))}] * (number == 0)
            text = {"type": "text", "text": each.text + suffix}
            messages.append({"role": "user", "content": [*image, text]})
            messages.append({"role": "assistant", "content": [{"type": "text", "text": each.answer}]})
        found = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
        expected = found["input_ids"][0, 1 + small_llava.PATCHES :]
        ids, labels = batch.ids[index][: len(expected)], batch.labels[index][: len(expected)]
        assert (ids == expected).all() and not batch.ids[index, len(expected) :].any()
        pixels = batch.images[index].permute(2, 0, 1).float() / 127.5 - 1
        assert torch.allclose(found["pixel_values"][0], pixels, atol=1e-5)
        # A label is the token that follows, and the benchmark's labels are of the same answers.
        said = conversations.answers(expected[None], processor)[0]
        assert (labels[:-1].where(labels[:-1] >= 0, -100) == said[1:]).all()
        found = words.decode(said[said >= 0]).split("</s>")[:-1]
        assert [each.strip() for each in found] == [each.answer for each in turns]


def test_facts_are_those_of_the_one_object_that_is_asked_about(words):
    batch = pool_llava.Conversations(words, 3).batch(0, 8)
    known = batch.facts[:, :, 0, 0] >= 0
    assert 0.3 < known.float().mean() < 1
    assert (batch.about.any(2) | ~known).all()
    asked = (batch.turns >= 0) & (batch.labels >= 0)
    assert (asked.sum(1) == pool_llava.TURNS).all()


def test_patches_that_are_asked_about_stay(words):
    batch = pool_llava.Conversations(words, 3).batch(0, 4)
    keep = pool_llava.shown(batch, 100)
    assert (keep.diff(dim=1) > 0).all()
    left = torch.zeros(4, small_llava.PATCHES, dtype=torch.bool).scatter(1, keep, True)
    assert (left | ~batch.about.any(1)).all()


@pytest.mark.slow
def test_training_goes_on_and_writes_a_model_that_answers(tmp_path):
    settings = {"out": tmp_path / "run", "layers": 6, "width": 32, "batch_size": 2, "save_minutes": 0.0}
    run_llava.run(LlavaTrainingConfig(minutes=0.001, **settings))
    before = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    folder = run_llava.run(LlavaTrainingConfig(minutes=0.03, **settings))
    after = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert 0 < before["step"] < after["step"]
    model, processor = load_generative(folder, dtype=torch.float32)
    inputs = prompt(processor, [Image.fromarray(np.zeros((50, 80, 3), np.uint8))], "what is it?")
    assert isinstance(answers(model, processor, inputs, 3)[0], str)


def test_a_broken_state_is_named(tmp_path):
    (tmp_path / "state.pt").write_bytes(b"broken")
    with pytest.raises(InputError, match=f"{tmp_path / 'state.pt'} is no state"):
        run_llava.run(LlavaTrainingConfig(out=tmp_path))


def test_the_shipped_checkpoint_answers():
    folder, asked = SMALL["small:llava"], [conversations.Asked.draw(index) for index in range(4)]
    assert (folder / "model.safetensors").stat().st_size < 8_000_000 and (folder / "README.md").exists()
    model, processor = load_generative("small:llava", dtype=torch.float32)
    inputs = prompts(
        processor, [([Image.fromarray(scenes.render(each.scene))], each.questions[0].text) for each in asked]
    )
    right = [
        said == each.questions[0].answer for said, each in zip(answers(model, processor, inputs), asked, strict=True)
    ]
    assert sum(right) >= 3

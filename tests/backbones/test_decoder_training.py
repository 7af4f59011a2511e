"""Training with a reduction inside the decoder: losses, gradients, checkpoints, adapters, transformers' Trainer."""

import dataclasses

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny.decoder_examples import DECODER_EXAMPLES
from tiny.decoders import DECODERS, IMAGE, PAD, Sample, text
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments

import pumer
from pumer.reducers import METHODS

PUMER, *_ = DECODER_EXAMPLES["pumer"]
kinds = pytest.mark.parametrize("family", ["llava", "qwen3_vl", "smolvlm"])


def batch(family, padding="right"):
    """Two prompts; images, padding and the first words have no labels."""
    tiny = DECODERS[family]
    inputs = tiny.batch([tiny.sample(1), tiny.sample(2, images=2, before=7, after=3)], padding=padding)
    ids = inputs["input_ids"]
    inputs["labels"] = torch.where((ids == IMAGE) | (ids == PAD), -100, ids)
    inputs["labels"][:, :4] = -100
    return inputs


def loss_of(model, inputs):
    """In float64, as transformers' own is not."""
    logits = model(**inputs).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1), inputs["labels"][:, 1:].flatten())


def gradients(model, inputs):
    """Of each weight that has one."""
    model.zero_grad(set_to_none=True)
    loss_of(model, inputs).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@kinds
def test_the_loss_is_that_of_the_logits(family):
    model, inputs = pumer.patch(DECODERS[family].model().double(), PUMER), batch(family)
    with torch.no_grad():
        assert float(model(**inputs).loss) == pytest.approx(float(loss_of(model, inputs)), rel=1e-5)


@kinds
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("method", ["pumer", "attention-received", "interaction"])
def test_checkpointing_changes_no_gradient(family, reentrant, method):
    config, *_ = DECODER_EXAMPLES[method]
    model, inputs = pumer.patch(DECODERS[family].model().double(), config).train(), batch(family)
    expected = gradients(model, inputs)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    found = gradients(model, inputs)
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("family", ["qwen2_5_vl"])
def test_adapters_around_a_patched_model_and_in_one(family):
    """LoRA may come before the patch or after it, and stays when the patch goes."""
    inputs, lora = batch(family), LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    answers = []
    for patched_first in (True, False):
        model = DECODERS[family].model().double()
        if patched_first:
            pumer.patch(model, PUMER)
        torch.manual_seed(1)
        model = get_peft_model(model, lora)
        if not patched_first:
            pumer.patch(model, PUMER)
        trained = gradients(model, inputs)
        assert trained and all("lora" in name and gradient.isfinite().all() for name, gradient in trained.items())
        with torch.no_grad():
            reduced, words = model(**inputs).logits, model.generate(**{**inputs, "labels": None}, max_new_tokens=3)
            pumer.unpatch(model)
            answers.append((reduced, words, model(**inputs).logits))
    torch.testing.assert_close(answers[0], answers[1], atol=0, rtol=0)
    assert (answers[0][0] - answers[0][2]).abs().max() > 1e-3
    pumer.patch(model, PUMER)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(**inputs).logits.detach(), answers[0][0], atol=1e-5, rtol=0)
    assert pumer.reduction(merged) == PUMER


@pytest.mark.parametrize("family", ["llava"])
def test_the_trainer_of_transformers(family, tmp_path):
    tiny, model = DECODERS[family], pumer.patch(DECODERS[family].model(), PUMER)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}

    def collate(samples):
        inputs = tiny.batch(samples, padding="right", dtype=torch.float32)
        return inputs | {"labels": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)}

    settings = TrainingArguments(
        tmp_path,
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        gradient_checkpointing=True,
        remove_unused_columns=False,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    prompts = [tiny.sample(seed, before=2 + seed) for seed in range(4)]
    trainer = Trainer(model, settings, train_dataset=prompts, data_collator=collate)
    assert 0 < trainer.train().training_loss < 50
    changed = [name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])]
    assert "lm_head.weight" in changed and any("layers.0" in name for name in changed)
    again = type(pumer.unpatch(model)).from_pretrained(tmp_path / "checkpoint-2")
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name])


ASKING = ("pumer", "fastv", "pyramiddrop", "sparsevlm", "dart", "attention-received", "interaction", "illava")


@pytest.mark.parametrize("before", [None, "cdpruner", "simignore"])
@pytest.mark.parametrize("method", ASKING)
@torch.no_grad()
def test_an_answer_that_is_given_for_training_does_not_ask(method, before):
    """The first token that is said has the same logits whatever is said: those of the prompt alone."""
    if before is not None and method != "fastv":
        pytest.skip("one method inside is enough")
    tiny = DECODERS["llava"]
    config, *_ = DECODER_EXAMPLES[method]
    if before is not None:
        config = dataclasses.replace(config, before=METHODS[before](prune_ratio=0.5))
    model = pumer.patch(tiny.model().double(), config)
    prompt, found = tiny.sample(1, after=8), []
    alone = model(**tiny.batch([prompt], padding="right")).logits[0, -1]
    for seed in range(3):
        answer = text(6, seed)
        inputs = tiny.batch([Sample([*prompt.ids, *answer], prompt.images)], padding="right")
        inputs["labels"] = inputs["input_ids"].clone()
        inputs["labels"][:, : len(prompt.ids)] = -100
        found.append(model(**inputs).logits[0, len(prompt.ids) - 1])
    for logits in found:
        torch.testing.assert_close(logits, alone, atol=1e-9, rtol=0)


@pytest.mark.parametrize("method", ["pumer", "illava", "sparsevlm", "pooling", "interaction"])
@torch.no_grad()
def test_autocast_decides_as_full_precision_does(method):
    tiny = DECODERS["llava"]
    config, *_ = DECODER_EXAMPLES[method]
    model = pumer.patch(tiny.model(), config)
    inputs = tiny.batch([tiny.sample(1), tiny.sample(2, before=9)], padding="right", dtype=torch.float32)
    seen = []
    state = model.model.pumer_reduction
    decide = type(state).decide

    def watched(reducer, cues):
        seen.append((torch.is_autocast_enabled("cpu"), decide(state, reducer, cues)))
        return seen[-1][1]

    state.decide = watched
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(**inputs)
    assert seen and not any(on for on, _ in seen)

import numpy as np
import pytest
import torch
from PIL import Image
from tiny.decoders import DECODERS
from tiny.processors import PROCESSORS

import pumer
from pumer import PuMerConfig, Step
from pumer.generative import is_generative, load_generative

CONFIG = PuMerConfig(schedule=(Step(stack="decoder", layer=1, prune_ratio=0.5, merge_ratio=0.2),))


def saved(name, folder, config=CONFIG):
    """A tiny model, which it also gives back, in a folder with its processor."""
    model = DECODERS[name].model()
    pumer.save(model if config is None else pumer.patch(model, config), folder)
    PROCESSORS[name]().save_pretrained(folder)
    return model


def prompt(processor, *conversations):
    """Model inputs of questions about images: each conversation is images and then a text."""
    asked = [
        [{"role": "user", "content": [*({"type": "image", "image": x} for x in images), {"type": "text", "text": t}]}]
        for *images, t in conversations
    ]
    return processor.apply_chat_template(
        asked, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs={"padding": True}
    )


def noise(width, height):
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_saved_model_answers_as_before(name, tmp_path):
    model = saved(name, tmp_path)
    loaded, processor = load_generative(tmp_path, device="cpu")
    assert not loaded.training and pumer.reduction(loaded) == CONFIG
    inputs = prompt(processor, (noise(64, 40), "what colour is it ?"), (noise(30, 70), "is this red ?"))
    assert inputs["attention_mask"][:, -1].all()  # padded on the left
    answers = [m.generate(**inputs, max_new_tokens=5, do_sample=False) for m in (model, loaded)]
    assert torch.equal(*answers)


def test_weights_come_in_the_number_format_asked_for(tmp_path):
    saved("llava", tmp_path, config=None)
    model, _ = load_generative(str(tmp_path), dtype=torch.bfloat16, device="cpu")
    assert model.dtype == torch.bfloat16 and pumer.reduction(model) is None


def test_what_cannot_generate_is_refused(tmp_path, tiny_vilt):
    assert not is_generative(tiny_vilt)
    with pytest.raises(pumer.InputError, match="ViltForQuestionAnswering"):
        load_generative(tiny_vilt)
    with pytest.raises(pumer.InputError, match="nowhere"):
        load_generative(tmp_path / "nowhere")


def test_a_processor_is_needed_and_its_chat_template(tmp_path):
    pumer.save(DECODERS["llava"].model(), tmp_path)
    with pytest.raises(pumer.InputError, match=r"processor\.save_pretrained"):
        load_generative(tmp_path)
    processor = PROCESSORS["llava"]()
    processor.chat_template = None
    processor.save_pretrained(tmp_path)
    with pytest.raises(pumer.InputError, match="chat template"):
        load_generative(tmp_path)


def test_a_lost_weight_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    saved("llava", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in weights if "layers.3.mlp.up_proj" in name)
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(pumer.InputError, match=r"layers\.3\.mlp\.up_proj"):
        load_generative(tmp_path)

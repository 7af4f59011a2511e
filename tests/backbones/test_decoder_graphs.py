"""Graphs of generative models: an exported prompt, a compiled one, compiled decoding; all without a look at data."""

import pytest
import torch
from tiny.decoders import DECODERS, IMAGE
from torch import nn
from transformers import CompileConfig

import pumer
from pumer import PuMerConfig, Step
from pumer.utils.errors import InputError

STEPS = (
    Step(stack="decoder", layer=0, prune_ratio=0.3, merge_ratio=0.2),
    Step(stack="decoder", layer=1, prune_ratio=0.3),
)


class AfterEncoding(nn.Module):
    """The prompt of a model whose images are encoded: how many pixels there are is data to some vision encoders."""

    def __init__(self, model, encoded):
        super().__init__()
        self.model, self.encoded = model, encoded

    def forward(self, features, inputs):
        self.encoded.pooler_output = features
        return self.model(**inputs, mm_encoder_outputs={"image": self.encoded}, use_cache=False).logits


def prepared(family):
    """A model that has been patched and restored ten times, patched; inputs; those of the language model."""
    tiny = DECODERS[family]
    model, inputs = tiny.model(layers=3), tiny.batch([tiny.sample(1)], padding="left", dtype=torch.float32)
    tokens = int((inputs["input_ids"] == IMAGE).sum())
    config = PuMerConfig(schedule=STEPS, image_tokens=tokens)
    for _ in range(10):
        pumer.unpatch(pumer.patch(model, config))
    pumer.patch(model, config)
    names = ("pixel_values", "image_grid_thw", "image_sizes", "pixel_attention_mask")
    encoded = model.model.get_image_features(**{k: inputs[k] for k in names if k in inputs}, return_dict=True)
    rest = {name: value for name, value in inputs.items() if name != "pixel_values"}
    if "image_grid_thw" in rest:
        grid, kinds = rest.pop("image_grid_thw"), rest.pop("mm_token_type_ids")
        rest["position_ids"], _ = model.model.get_rope_index(
            rest["input_ids"], image_grid_thw=grid, attention_mask=rest["attention_mask"], mm_token_type_ids=kinds
        )
    return model, inputs, AfterEncoding(model, encoded), (encoded.pooler_output, rest)


@pytest.mark.parametrize("family", ["llava", pytest.param("qwen3_vl", marks=pytest.mark.slow)])
@torch.no_grad()
def test_graphs_give_the_eager_answers_after_many_patches(family):
    model, inputs, module, given = prepared(family)
    eager = model(**inputs).logits
    assert torch.equal(torch.export.export(module, given, strict=False).module()(*given), eager)
    assert torch.equal(torch.compile(module, fullgraph=True, backend="eager")(*given), eager)

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiling = CompileConfig(backend="eager", fullgraph=True, mode=None)
    compiling._compile_all_devices = True
    settings = {"max_new_tokens": 5, "do_sample": False}
    compiled = model.generate(**inputs, **settings, cache_implementation="static", compile_config=compiling)
    assert torch.equal(compiled, model.generate(**inputs, **settings))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@torch.no_grad()
def test_a_number_of_image_tokens_that_is_not_the_prompts_is_refused():
    model, inputs, *_ = prepared("llava")
    pumer.patch(model, PuMerConfig(schedule=STEPS, image_tokens=7))
    with pytest.raises(InputError, match="image_tokens is 7"):
        model(**inputs)


@torch.no_grad()
def test_a_compiled_prompt_asks_for_the_number_of_image_tokens():
    _, _, module, given = prepared("llava")
    pumer.patch(module.model, PuMerConfig(schedule=STEPS))
    with pytest.raises(Exception, match="image_tokens"):
        torch.compile(module, fullgraph=True, backend="eager")(*given)

"""Patching in the company of everything else that wraps or changes a model."""

import pytest
import tokenizers
import torch
import transformers
from tiny import GRIDS, HEADS, TINY, answer
from torch import nn

import pumer
from pumer import DynamicViTConfig, InputError, NoReduction, PuMerConfig, Step
from pumer.patching import reductions

VILT = TINY["vilt"]
CONFIG = PuMerConfig(layers=(0, 2), prune_ratio=0.2, merge_ratio=0.3, text_merge_ratio=0.3)
OTHER = PuMerConfig(layers=(1,), merge_ratio=0.4)


@pytest.fixture
def model():
    return VILT.build()


@pytest.fixture
def inputs():
    return VILT.batch(GRIDS)


@pytest.fixture
def unreduced(inputs):
    return answer(pumer.patch(VILT.build(), NoReduction()), inputs)


@pytest.fixture
def reduced(inputs):
    return answer(pumer.patch(VILT.build(), CONFIG), inputs)


# ---------------------------------------------------------------- words back at their places

ON_ALL_STATES = {"ViltModel", "MeterModel", "ViltForMaskedLM", "MeterForMaskedLM", "ViltForTokenClassification"}


@pytest.mark.parametrize(("backbone", "head"), HEADS)
def test_words_are_put_back_where_a_head_reads_them_and_nowhere_else(backbone, head, monkeypatch):
    case = TINY[backbone]
    model, inputs = pumer.patch(case.build(head), case.fit(CONFIG)), case.batch(GRIDS, head)
    (state,) = reductions(model)
    assert state.expands == (head in ON_ALL_STATES)
    expected = list(model(**inputs).values())
    monkeypatch.setattr(state, "expands", not state.expands)
    if head in ON_ALL_STATES:
        assert not all(torch.equal(a, b) for a, b in zip(model(**inputs).values(), expected, strict=True))
    else:
        assert all(torch.equal(a, b) for a, b in zip(model(**inputs).values(), expected, strict=True))


@pytest.mark.parametrize("backbone", TINY)
def test_a_model_inside_anything_else_puts_words_back(backbone, inputs):
    case = TINY[backbone]
    head = case.build()
    for model in (case.root(head), nn.ModuleList([case.root(head)]), type("Subclass", (type(head),), {})(head.config)):
        (state,) = reductions(pumer.patch(model, case.fit(CONFIG)))
        assert state.expands
        pumer.unpatch(model)
    assert not reductions(pumer.patch(nn.Sequential(head), case.fit(CONFIG)))[0].expands


def test_a_model_that_two_heads_share_puts_words_back_if_one_of_them_reads_them():
    answers, words, inputs = VILT.build(), VILT.build("ViltForMaskedLM"), VILT.batch(GRIDS)
    words.vilt = answers.vilt
    expected = answer(pumer.patch(words, CONFIG), inputs)
    for heads in ([answers, words], [words, answers]):
        pumer.patch(nn.ModuleList(heads), CONFIG)
        assert torch.equal(answer(words, inputs), expected)


# ---------------------------------------------------------------- contexts


def test_reduction_tells_the_config(model):
    assert pumer.reduction(model) is None
    assert pumer.reduction(pumer.patch(model, CONFIG)) == CONFIG
    assert pumer.reduction(pumer.patch(model, NoReduction())) == NoReduction()
    assert pumer.reduction(pumer.unpatch(model)) is None


def test_unpatching_what_is_not_patched_does_nothing(model):
    before = [type(module) for module in model.modules()]
    assert pumer.unpatch(model) is model
    assert [type(module) for module in model.modules()] == before
    assert pumer.unpatch(linear := nn.Linear(2, 2)) is linear


def test_patched_restores_what_was_there(model, inputs, reduced):
    with pumer.patched(model, CONFIG) as same:
        assert same is model
        assert torch.equal(answer(model, inputs), reduced)
        with pumer.patched(model, OTHER):
            assert pumer.reduction(model) == OTHER
        assert pumer.reduction(model) == CONFIG
        assert torch.equal(answer(model, inputs), reduced)
    assert pumer.reduction(model) is None
    assert type(model.vilt) is transformers.ViltModel


def test_patched_restores_after_an_exception(model):
    pumer.patch(model, CONFIG)
    with pytest.raises(KeyError), pumer.patched(model, OTHER):
        raise KeyError
    assert pumer.reduction(model) == CONFIG
    with pytest.raises(InputError), pumer.patched(model, PuMerConfig(layers=(99,), prune_ratio=0.1)):
        pass
    assert pumer.reduction(model) == CONFIG, "a refused config must leave the model as it was"


def test_disabled_is_the_fast_path_without_reduction(model, inputs, unreduced, reduced):
    pumer.patch(model, CONFIG)
    with pumer.disabled(model) as same:
        assert same is model
        assert torch.equal(answer(model, inputs), unreduced)
        with pumer.disabled(model):
            assert torch.equal(answer(model, inputs), unreduced)
        assert torch.equal(answer(model, inputs), unreduced), "leaving the inner block must not switch it on"
        assert pumer.reduction(model) == CONFIG
    assert torch.equal(answer(model, inputs), reduced)
    with pytest.raises(KeyError), pumer.disabled(model):
        raise KeyError
    assert torch.equal(answer(model, inputs), reduced)


def test_patched_inside_disabled_and_trace_leaves_them_in_force(model, inputs, unreduced):
    pumer.patch(model, CONFIG)
    with pumer.disabled(model), pumer.trace(model) as trace:
        with pumer.patched(model, OTHER):
            answer(model, inputs)
        assert len(trace.forwards) == 0, "the inner patch is another reduction"
        assert torch.equal(answer(model, inputs), unreduced)
        assert len(trace.forwards) == 1
    assert not torch.equal(answer(model, inputs), unreduced)


def test_two_models_in_one_module_keep_their_own_reduction(inputs, unreduced, reduced):
    """A student beside its teacher, as distillation holds them."""
    pair = nn.ModuleDict({"teacher": VILT.build(), "student": VILT.build()})
    pumer.patch(pair["teacher"], NoReduction())
    pumer.patch(pair["student"], CONFIG)
    with pumer.patched(pair, OTHER):
        assert [state.config for state in reductions(pair)] == [OTHER, OTHER]
    assert torch.equal(answer(pair["teacher"], inputs), unreduced)
    assert torch.equal(answer(pair["student"], inputs), reduced)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("call", [pumer.disabled, pumer.trace])
def test_not_patched(model, call):
    with pytest.raises(InputError, match=r"not patched.*pumer\.patch"), call(model):
        pass


def test_unsupported_model():
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=9
    )
    with pytest.raises(InputError, match=r"BertModel cannot be patched.*ViltModel"):
        pumer.patch(transformers.BertModel(config), CONFIG)


@pytest.mark.parametrize("config", [{"method": "pumer", "layers": [1]}, None, "pumer", PuMerConfig])
def test_what_is_no_config(model, config):
    with pytest.raises(InputError, match="not a reduction config"):
        pumer.patch(model, config)


def test_layer_12_of_12():
    model = VILT.build(layers=12)
    with pytest.raises(InputError, match="layer 12 does not exist; vilt has 12 of them, 0 to 11"):
        pumer.patch(model, PuMerConfig(layers=(2, 12), prune_ratio=0.1))
    with pytest.raises(InputError, match="layer 12"):
        pumer.patch(model, PuMerConfig(layers=(12,)))  # even if nothing is removed there
    assert pumer.reduction(model) is None
    pumer.patch(model, PuMerConfig(layers=(0, 11), prune_ratio=0.1))


def test_vision_layers_of_a_model_without_a_vision_encoder(model):
    with pytest.raises(InputError, match="no vision layers"):
        pumer.patch(model, PuMerConfig(schedule=(Step(stack="vision", layer=1, merge_ratio=0.1),)))


def test_a_replaced_forward_is_refused(model, inputs):
    hooks = pytest.importorskip("accelerate.hooks")
    hooks.add_hook_to_module(model.vilt.encoder.layer[1], hooks.ModelHook())
    with pytest.raises(InputError, match=r"'encoder\.layer\.1' was replaced.*device_map"):
        pumer.patch(model, CONFIG)
    hooks.remove_hook_from_module(model, recurse=True)
    pumer.patch(model, CONFIG)


def test_hooks_set_after_patching_work_and_forbid_unpatching(model, inputs, reduced):
    hooks = pytest.importorskip("accelerate.hooks")
    pumer.patch(model, CONFIG)
    hooks.add_hook_to_module(model.vilt, hooks.ModelHook())
    assert torch.equal(answer(model, inputs), reduced)
    with pytest.raises(InputError, match="remove its hooks"):
        pumer.unpatch(model)
    assert torch.equal(answer(model, inputs), reduced)
    hooks.remove_hook_from_module(model, recurse=True)
    pumer.unpatch(model)


def test_accelerates_dispatch_is_refused(model):
    accelerate = pytest.importorskip("accelerate")
    # hooks on every module, as device_map sets them; all of it stays on the CPU
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    with pytest.raises(InputError, match="device_map"):
        pumer.patch(model, CONFIG)


# ---------------------------------------------------------------- compiled models


@pytest.fixture
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_dynamo")
@pytest.mark.parametrize("in_place", [True, False])
def test_compiled_models_see_every_change(inputs, in_place):
    model, config = VILT.build(layers=1), PuMerConfig(layers=(0,), merge_ratio=0.4)
    with torch.no_grad():
        reduced = answer(pumer.patch(model, config), inputs)
        unreduced = answer(pumer.patch(model, NoReduction()), inputs)
        compiled = torch.compile(model, backend="eager")
        if in_place:
            model.compile(backend="eager")
            compiled = model
        assert pumer.patch(compiled, NoReduction()) is compiled
        assert torch.equal(answer(compiled, inputs), unreduced)
        pumer.patch(compiled, config)
        assert pumer.reduction(compiled) == config
        assert torch.equal(answer(compiled, inputs), reduced)
        with pumer.disabled(compiled):
            assert torch.equal(answer(compiled, inputs), unreduced)
        assert torch.equal(answer(compiled, inputs), reduced)
        with pytest.raises(InputError, match="compiled model cannot be traced"), pumer.trace(compiled):
            pass
    pumer.unpatch(compiled)
    assert type(model.vilt) is transformers.ViltModel


@pytest.mark.usefixtures("_fresh_dynamo")
def test_a_compiled_model_is_never_traced_silently(inputs):
    model = pumer.patch(VILT.build(layers=1), NoReduction())
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        answer(compiled, inputs)
        with pumer.trace(model), pytest.raises(Exception, match=r"."):
            answer(compiled, inputs)


# ---------------------------------------------------------------- adapters, quantisation, pipelines


def lora(model):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["query", "value"], init_lora_weights=False)
    torch.manual_seed(1)
    return peft.get_peft_model(model, config)


def test_lora_before_and_after_patching_is_the_same(inputs):
    before = pumer.patch(lora(VILT.build()), CONFIG).eval()
    after = lora(pumer.patch(VILT.build(), CONFIG)).eval()
    assert pumer.reduction(before) == pumer.reduction(after) == CONFIG
    out = answer(before, inputs)
    assert torch.equal(answer(after, inputs), out)
    with pumer.disabled(after):
        assert not torch.equal(answer(after, inputs), out)
    merged = after.merge_and_unload()
    torch.testing.assert_close(answer(merged, inputs), out, atol=1e-5, rtol=0)
    assert pumer.reduction(merged) == CONFIG
    pumer.unpatch(before)
    assert pumer.reduction(before) is None


def test_lora_trains_on_a_patched_model(inputs):
    model = lora(pumer.patch(VILT.build(), CONFIG)).train()
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.05)
    losses = []
    for _ in range(4):
        loss = (answer(model, inputs) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    frozen = [p for n, p in model.named_parameters() if "lora" not in n]
    assert all(p.grad is None for p in frozen)
    adapters = [p for n, p in model.named_parameters() if "lora" in n]
    assert adapters and all(p.grad is not None and p.grad.any() for p in adapters)


class Packed(nn.Linear):
    """Integer weights, two in a byte and flat or one in a byte, as bitsandbytes' linear layers hold them."""

    def __init__(self, linear, bits):
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.bits, self.scale = bits, linear.weight.detach().abs().max() / (2 ** (bits - 1) - 1)
        whole = (linear.weight.detach() / self.scale).round().to(torch.int8)
        if bits == 4:
            pairs = (whole + 8).to(torch.uint8).view(-1, 2)
            whole = (pairs[:, :1] << 4) | pairs[:, 1:]
        self.weight, self.bias = nn.Parameter(whole, requires_grad=False), linear.bias

    def forward(self, x):
        whole = self.weight
        if self.bits == 4:
            whole = torch.cat([whole >> 4, whole & 15], dim=1).to(x.dtype).view(self.out_features, -1) - 8
        return nn.functional.linear(x, whole.to(x.dtype) * self.scale, self.bias)


def packed(model, bits):
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, Packed(child, bits))
    return model


def dynamic(model):
    quantise = getattr(getattr(torch.ao, "quantization", None), "quantize_dynamic", None)
    if quantise is None or "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("this torch quantises no linear layers on a CPU")
    return quantise(model, {nn.Linear}, dtype=torch.qint8)


QUANTISE = {"dynamic": dynamic, "int8": lambda model: packed(model, 8), "int4": lambda model: packed(model, 4)}
LEARNS = DynamicViTConfig(layers=(0, 2), prune_ratio=0.3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", QUANTISE)
@pytest.mark.parametrize(("backbone", "head"), HEADS)
def test_quantised_linear_layers(backbone, head, kind):
    case, quantise = TINY[backbone], QUANTISE[kind]
    config, inputs = case.fit(CONFIG), case.batch(GRIDS, head)
    with torch.no_grad():
        full = answer(pumer.patch(case.build(head), config), inputs)
        model = quantise(case.build(head))
        assert not any(type(module) is nn.Linear for module in model.modules())
        plain, fast = answer(model, inputs), answer(pumer.patch(model, NoReduction()), inputs)
        # dynamic scales are those of a whole batch, padding included: rounded otherwise in another order
        torch.testing.assert_close(fast, plain, **({"atol": 0.5, "rtol": 0} if kind == "dynamic" else {}))
        low = answer(pumer.patch(model, config), inputs)
        assert pumer.reduction(model) == config and low.isfinite().all()
        torch.testing.assert_close(answer(quantise(pumer.patch(case.build(head), config)), inputs), low)
        if kind != "int4" and full.shape[-1] > 1:
            assert torch.cosine_similarity(low, full, dim=-1).mean() > 0.9
        learns = pumer.patch(model, case.fit(LEARNS))
        assert answer(learns, inputs).isfinite().all()
        assert answer(pumer.unpatch(model), inputs).equal(plain) or backbone == "vilt"  # which shuffles its patches


class Answering(transformers.Pipeline):
    """Question answering as the removed task of transformers did it; loading, batching and devices are the base's."""

    def _sanitize_parameters(self, **settings):
        return {}, {}, {}

    def preprocess(self, sample):
        text = self.tokenizer(sample["question"], return_tensors="pt")
        return {
            "input_ids": text["input_ids"],
            "attention_mask": text["attention_mask"],
            "pixel_values": sample["image"][None],
        }

    def _forward(self, inputs):
        return self.model(**inputs)

    def postprocess(self, output):
        return output["logits"][0]


def word_tokenizer():
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "what", "colour", "is", "it", "the", "cat"])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")


@pytest.mark.parametrize("batch_size", [1, 3])
def test_transformers_pipeline(model, batch_size):
    ask = transformers.pipeline(
        "feature-extraction",  # a name is asked for; the class below decides
        model=pumer.patch(model, CONFIG),
        tokenizer=word_tokenizer(),
        feature_extractor=transformers.ViltImageProcessorPil(),  # batching wants one, if only to ask how it pads
        pipeline_class=Answering,
        device="cpu",
    )
    questions = ["what colour is it", "is it", "what is the colour the cat is"]
    samples = [{"question": question, "image": torch.randn(3, 48, 48)} for question in questions]
    answers = ask(samples, batch_size=batch_size)
    with pumer.trace(ask.model) as trace:
        ask(samples, batch_size=batch_size)
    assert len(trace.forwards) == 3 // batch_size and all(
        told.places == (("fusion", 0), ("fusion", 2)) for told in trace.forwards
    )
    for sample, logits in zip(samples, answers, strict=True):
        alone = ask.preprocess(sample)
        torch.testing.assert_close(logits, answer(model, alone)[0], atol=1e-5, rtol=0)


def test_dtype_and_device_moves_keep_the_reduction(model, inputs):
    pumer.patch(model, CONFIG).to(torch.float64)
    assert pumer.reduction(model) == CONFIG
    inputs["pixel_values"] = inputs["pixel_values"].double()
    assert answer(model, inputs).dtype == torch.float64


def test_state_dict_loads_into_a_patched_model(model, inputs, reduced):
    target = pumer.patch(VILT.build(seed=3), CONFIG)
    target.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(answer(target, inputs), reduced)

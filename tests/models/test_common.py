"""What transformers' common model tests check of its own models, of METER, and of patched METER and ViLT.

Written from what `ModelTesterMixin` of transformers 5.23 looks at, in its names. What is checked elsewhere, or does not
apply, stands in ELSEWHERE and NOT_APPLICABLE.
"""

import inspect

import pytest
import torch
from tiny import GRIDS, HEADS, TINY, WORDS, answer
from torch import Tensor

import pumer
from pumer import InputError, PuMerConfig
from pumer.models.meter import MeterConfig

NOT_APPLICABLE = {
    "attention_outputs": "by design: fused attention forms no matrix; `test_attentions_are_refused`",
    "retain_grad_hidden_states_attentions": "its attentions; hidden states: `test_hidden_states_output`",
    "capture_outputs_decorator": "METER's outputs are two streams, which its forward collects itself",
    "hidden_states_output of a head of METER": "by design: a pair (text, image), for the two streams differ in length",
    "hidden_states_output's lengths": "by design: a patched model's tokens become fewer; the trace has the lengths",
    "feed_forward_chunking's memory": "patched layers ignore it: their inputs are short; the numbers are the same",
    "eager_matches_sdpa_inference of attentions": "none are given",
    "sdpa_can_dispatch_on_flash, flash_attn_*, flex_attention_*": "need a GPU; a patched model has kernels of its own",
    "multi_gpu_data_parallel_forward, model_parallelism, *_offload_*": "need GPUs; hooks: tests/test_patching.py",
    "disk_offload_bin, disk_offload_safetensors": "device_map is refused with the way out: tests/test_patching.py",
    "generation, past_key_values, cache": "neither model generates",
    "model_outputs_equivalence of ViltForImagesAndTextClassification's states": "its own forward fails, unpatched too",
    "head_pruning": "transformers 5 has none",
    "problem_types": "only of sequence classifiers in transformers' mapping; losses: tests/models/meter",
    "keep_in_fp32_modules, reverse_loading_mapping": "neither model has any",
    "resize_position_vector_embeddings": "no such method; image sizes: tests/test_image_size.py",
    "sliding_window, chunked_attention": "neither model has any",
}
"""Common checks that do not apply, and why."""

ELSEWHERE = {
    "batching_equivalence": "law 1, tests/test_laws.py",
    "torch_compile_for_training, sdpa_can_compile_dynamic": "law 2, and tests/test_compile.py",
    "determinism": "law 8",
    "torch_export": "law 2",
    "torchscript": "tests/test_export.py",
    "training_gradient_checkpointing_use_reentrant": "tests/backbones/test_hooks.py",
    "load_save_without_tied_weights": "tests/models/meter/test_heads_meter.py",
}
"""Common checks that have a place of their own."""

CONFIG = PuMerConfig(layers=(0, 2), prune_ratio=0.2, merge_ratio=0.3, text_merge_ratio=0.3)
MODELS = [(backbone, head, patched) for backbone, head in HEADS for patched in (False, True)]
MODELS = [case for case in MODELS if case[0] == "meter" or case[2]]  # unpatched ViLT is transformers' own

each_model = pytest.mark.parametrize(("backbone", "head", "patched"), MODELS)
each_body = pytest.mark.parametrize(  # what heads have no part in
    ("backbone", "head", "patched"), [case for case in MODELS if case[1].endswith(("Model", "MaskedLM"))]
)
each_first = pytest.mark.parametrize(("backbone", "head"), [(name, case.heads[0]) for name, case in TINY.items()])
CLOSE = {"atol": 1e-5, "rtol": 0}


def ready(backbone, model, patched):
    return pumer.patch(model, TINY[backbone].fit(CONFIG)).eval() if patched else model.eval()


def build(backbone, head, patched, **settings):
    return ready(backbone, TINY[backbone].build(head, **settings), patched)


def inputs_of(backbone, head):
    return TINY[backbone].batch(GRIDS, head)


def labels_of(model, head, inputs):
    """Labels of a head's loss; None where it has none."""
    B = len(inputs["input_ids"])
    if head.endswith("QuestionAnswering"):
        return torch.rand(B, model.config.num_labels)
    if head.endswith(("MaskedLM", "TokenClassification")):
        return inputs["input_ids"] % 7
    if head.endswith("ImagesAndTextClassification"):
        return torch.arange(B) % model.config.num_labels
    return None


def flat(value):
    """All tensors in an output, in order."""
    if isinstance(value, Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value
    return [x for part in values if part is not None for x in flat(part)]


# ---------------------------------------------------------------- saving and loading


@each_model
def test_save_load(backbone, head, patched, tmp_path):
    """Also: can_use_safetensors, torch_save_load, weights_reload_no_missing_tied_weights, correct_missing_keys."""
    model, inputs = build(backbone, head, patched), inputs_of(backbone, head)
    plain, expected = TINY[backbone].build(head), answer(model, inputs)
    assert model.state_dict().keys() == plain.state_dict().keys()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists() and model.config.architectures == [head]
    loaded, report = type(plain).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(answer(ready(backbone, loaded, patched), inputs), expected, **CLOSE)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    plain.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    torch.testing.assert_close(answer(ready(backbone, plain, patched), inputs), expected, **CLOSE)


@pytest.mark.parametrize(
    ("backbone", "head", "dtype"),
    [(name, case.heads[0], dtype) for name, case in TINY.items() for dtype in (torch.float16, torch.bfloat16)],
    ids=str,
)
@pytest.mark.parametrize("patched", [False, True])
def test_loaded_in_half_precision(backbone, head, patched, dtype, tmp_path):
    """Of bc_torch_dtype and load_save in other dtypes."""
    build(backbone, head, patched, initializer_range=0.05).save_pretrained(tmp_path)
    model = ready(backbone, type(TINY[backbone].build(head)).from_pretrained(tmp_path, dtype=dtype), patched)
    assert {x.dtype for x in model.parameters()} == {dtype} == {model.dtype}
    inputs = {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs_of(backbone, head).items()}
    with torch.no_grad():
        output = answer(model, inputs)
    assert output.dtype == dtype and output.isfinite().all()


@pytest.mark.parametrize(("backbone", "head"), HEADS)
def test_base_and_head_load_each_other(backbone, head, tmp_path):
    """Of save_load_keys and from_pretrained with another head: only what a head adds is missing."""
    model, base = build(backbone, head, True), TINY[backbone].heads[1]
    model.save_pretrained(tmp_path / "head")
    loaded = type(TINY[backbone].build(base)).from_pretrained(tmp_path / "head")
    weights = model.base_model.state_dict()
    for name, x in loaded.state_dict().items():
        assert name not in weights or torch.equal(x, weights[name])
    loaded.save_pretrained(tmp_path / "base")
    back, report = type(TINY[backbone].build(head)).from_pretrained(tmp_path / "base", output_loading_info=True)
    prefix = f"{back.base_model_prefix}."
    assert not [name for name in report["missing_keys"] if name.startswith(prefix) and "pooler" not in name]
    assert all(x.isfinite().all() for x in back.parameters())


@each_first
def test_can_load_ignoring_mismatched_shapes(backbone, head, tmp_path):
    model = build(backbone, head, True)
    model.save_pretrained(tmp_path)
    cls = type(TINY[backbone].build(head))
    with pytest.raises(RuntimeError):
        cls.from_pretrained(tmp_path, num_labels=42)
    other = ready(backbone, cls.from_pretrained(tmp_path, num_labels=42, ignore_mismatched_sizes=True), True)
    assert answer(other, inputs_of(backbone, head)).shape == (3, 42)


@each_first
def test_loaded_onto_a_device(backbone, head, tmp_path):
    """Of cpu_offload: one device is no split. Classes that may not be split are there, under their names."""
    model = build(backbone, head, True)
    model.save_pretrained(tmp_path)
    loaded = type(TINY[backbone].build(head)).from_pretrained(tmp_path, device_map="cpu")
    inputs = inputs_of(backbone, head)
    torch.testing.assert_close(answer(ready(backbone, loaded, True), inputs), answer(model, inputs), **CLOSE)
    names = {type(module).__name__ for module in model.modules()}
    whole = model._no_split_modules or []
    assert all(name in names or "Embeddings" in name or name == "ViltSelfAttention" for name in whole)
    assert {"vilt": "ViltLayer", "meter": "MeterCrossModalLayer"}[backbone] in names


# ---------------------------------------------------------------- initialisation


@pytest.mark.parametrize("head", TINY["meter"].heads)
def test_initialization(head):
    """Also: can_init_all_missing_weights, init_weights_can_init_buffers."""
    config = TINY["meter"].build(head).config
    config.initializer_range = config.text_config.initializer_range = 1e-10  # transformers takes 0 for its default
    torch.manual_seed(0)
    model = type(TINY["meter"].build(head))(config)
    for name, parameter in model.named_parameters():
        if "vision_model" not in name:  # CLIP's own has scales of its own
            assert parameter.detach().round(decimals=6).abs().unique().tolist() in ([0.0], [1.0]), name
    loaded = type(model).from_pretrained(None, config=config, state_dict={})
    assert all(x.isfinite().all() for x in (*loaded.parameters(), *loaded.buffers()))
    assert {name for name, x in loaded.named_buffers()} == {name for name, x in model.named_buffers()}
    for (name, x), y in zip(loaded.named_buffers(), model.buffers(), strict=True):
        assert torch.equal(x, y), name


# ---------------------------------------------------------------- forward


@each_model
def test_forward_signature(backbone, head, patched):
    """Also: model_main_input_name."""
    model = build(backbone, head, patched)
    names = list(inspect.signature(model.forward).parameters)
    assert names[0] == model.main_input_name == "input_ids"
    stock = list(inspect.signature(TINY[backbone].build(head).forward).parameters)
    assert [name for name in names if name in stock] == [name for name in stock if name in names]
    assert {*inputs_of(backbone, head), "output_hidden_states"} <= {*names}


@each_model
def test_attentions_are_refused(backbone, head, patched):
    model, inputs = build(backbone, head, patched), inputs_of(backbone, head)
    assert "attentions" not in model(**inputs)
    with pytest.raises(InputError, match="output_attentions=True"):
        model(**inputs, output_attentions=True)
    model = build(backbone, head, patched, attn_implementation="eager")
    model.config.output_attentions = True
    with pytest.raises(InputError, match="output_attentions=True"):
        model(**inputs)
    assert model(**inputs, output_attentions=False) is not None


@each_model
def test_hidden_states_output(backbone, head, patched):
    """By argument and by config; one more than layers, of each stream and image; gradients reach the first."""
    model, inputs = build(backbone, head, patched), inputs_of(backbone, head)
    output = model(**inputs, output_hidden_states=True)
    states = [x for name, part in output.items() if name.endswith("hidden_states") for x in flat(part)]
    images = 2 if head in TINY[backbone].two_images else 1
    assert len(states) == 4 * images * (2 if backbone == "meter" else 1)
    assert all(x.shape[0] == 3 and x.shape[2] == 32 for x in states)
    states[0].retain_grad()
    answer_of = output.logits if "logits" in output else output.pooler_output
    answer_of.flatten()[0].backward()
    assert states[0].grad is not None and states[0].grad.any()
    assert not any(name.endswith("hidden_states") for name in model(**inputs))
    model.config.output_hidden_states = True
    again = model(**inputs)
    assert all(torch.equal(a, b) for a, b in zip(flat(again), flat(output), strict=True))


@each_model
def test_model_outputs_equivalence(backbone, head, patched):
    model, inputs = build(backbone, head, patched), inputs_of(backbone, head)
    labels = labels_of(model, head, inputs)
    states = {} if head == "ViltForImagesAndTextClassification" else {"output_hidden_states": True}
    for more in ({}, states, {} if labels is None else {"labels": labels}):
        as_dict, as_tuple = model(**inputs, **more), model(**inputs, **more, return_dict=False)
        assert isinstance(as_tuple, tuple)
        assert all(torch.equal(a, b) for a, b in zip(flat(as_tuple), flat(as_dict), strict=True))


@each_model
def test_inputs_embeds_matches_input_ids(backbone, head, patched):
    """Also: inputs_embeds, model_get_set_embeddings, enable_input_require_grads."""
    model, inputs = build(backbone, head, patched), inputs_of(backbone, head)
    words = model.get_input_embeddings()
    assert words.weight.shape[0] == WORDS
    expected, ids = answer(model, inputs), inputs.pop("input_ids")
    torch.testing.assert_close(answer(model, inputs | {"inputs_embeds": words(ids).clone()}), expected, **CLOSE)
    model.set_input_embeddings(torch.nn.Embedding(WORDS, 32))
    assert model.get_input_embeddings() is not words
    assert not torch.equal(answer(model, inputs | {"input_ids": ids}), expected)


@each_body
def test_feed_forward_chunking(backbone, head, patched):
    model, inputs = build(backbone, head, patched), inputs_of(backbone, head)
    expected = answer(model, inputs)
    for module in model.modules():
        if hasattr(module, "chunk_size_feed_forward"):
            module.chunk_size_feed_forward = 1
    torch.testing.assert_close(answer(model, inputs), expected, **CLOSE)


@each_body
def test_can_set_attention_dynamically(backbone, head, patched):
    """Also: eager_matches_sdpa_inference, config_attn_implementation_setter; patched attention is always fused."""
    if backbone == "vilt":
        pytest.skip("transformers' ViLT has eager attention only")
    model, inputs = build(backbone, head, patched), inputs_of(backbone, head)
    expected = answer(model, inputs)
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        torch.testing.assert_close(answer(model, inputs), expected, **CLOSE)


# ---------------------------------------------------------------- embeddings


@pytest.mark.parametrize("size", [WORDS + 10, WORDS - 15])
@each_body
def test_resize_tokens_embeddings(backbone, head, patched, size):
    """Also: resize_embeddings_untied. Words that are left keep their rows."""
    model, inputs = build(backbone, head, patched), inputs_of(backbone, head)
    inputs["input_ids"] = inputs["input_ids"].clamp(max=WORDS - 16)
    expected, before = answer(model, inputs), model.get_input_embeddings().weight.clone()
    model.resize_token_embeddings(size, mean_resizing=False)
    after, kept = model.get_input_embeddings().weight, min(size, WORDS)
    assert after.shape[0] == size and torch.equal(after[:kept], before[:kept])
    output = answer(model, inputs)
    if head.endswith("MaskedLM"):
        assert output.shape[-1] == size
        output, expected = output[..., :kept], expected[..., :kept]
    torch.testing.assert_close(output, expected, **CLOSE)


@pytest.mark.parametrize("backbone", TINY)
def test_tied_weights_keys(backbone, tmp_path):
    """Tied before and after patching, saving and loading, and resizing."""
    (head,) = (head for head in TINY[backbone].heads if head.endswith("MaskedLM"))
    model = build(backbone, head, True, tie_word_embeddings=True)

    def tied(model):
        words, decoder = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        return words is decoder or words.data_ptr() == decoder.data_ptr()

    assert tied(model) and tied(pumer.unpatch(model))
    model.save_pretrained(tmp_path)
    loaded = ready(backbone, type(TINY[backbone].build(head)).from_pretrained(tmp_path), True)
    assert tied(loaded)
    loaded.resize_token_embeddings(WORDS + 4, mean_resizing=False)
    assert tied(loaded)


# ---------------------------------------------------------------- training


@each_model
def test_training_gradient_checkpointing(backbone, head, patched):
    """Also: training, gradient_checkpointing_enable_disable. A loss is a scalar, and reaches every weight."""
    model, inputs = build(backbone, head, patched).train(), inputs_of(backbone, head)
    model.gradient_checkpointing_enable()
    layers = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
    assert layers and all(layer.gradient_checkpointing for layer in layers)
    labels = labels_of(model, head, inputs)
    loss = (answer(model, inputs) ** 2).sum() if labels is None else model(**inputs, labels=labels).loss
    assert loss.ndim == 0 and loss.isfinite()
    loss.backward()
    silent = [name for name, x in model.named_parameters() if x.grad is None or not x.grad.any()]
    unused = ("pooler", "image_layers.2") if head in TINY[backbone].per_word else ("key.bias", "k_proj.bias")
    assert not [name for name in silent if not any(part in name for part in (*unused, "key.bias", "k_proj.bias"))]
    model.gradient_checkpointing_disable()
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


# ---------------------------------------------------------------- configuration


def test_config(tmp_path):
    """What transformers' ConfigTester looks at, and internal_model_config_and_subconfig_are_same."""
    model = build("meter", "MeterForQuestionAnswering", True)
    config = model.config
    config.to_json_file(tmp_path / "one.json")
    config.save_pretrained(tmp_path)
    for again in (
        MeterConfig.from_json_file(tmp_path / "one.json"),
        MeterConfig.from_pretrained(tmp_path),
        MeterConfig.from_dict(config.to_dict()),
    ):
        assert again.to_dict() == config.to_dict()
    assert isinstance(MeterConfig().text_config, type(config.text_config))
    assert model.base_model.text_model.config is config.text_config
    assert model.base_model.vision_model.config is config.vision_config
    config.num_labels = 3
    assert (len(config.id2label), len(config.label2id)) == (3, 3)
    assert MeterConfig(output_hidden_states=True, num_labels=2).output_hidden_states


def test_every_exception_has_a_reason():
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert all(reason for reason in (NOT_APPLICABLE | ELSEWHERE).values())
    assert not tests & {*NOT_APPLICABLE, *ELSEWHERE}

"""A compiled model answers as the model does, whatever its inputs are padded to; it never replays an old graph."""

import copy
import io
from dataclasses import replace

import pytest
import tiny
import torch
from PIL import Image
from rich.console import Console
from tiny import GRIDS, HEADS, TINY, answer
from torch import nn

import pumer
from pumer import Buckets, InputError, NoReduction, PuMerConfig
from pumer.compiling.buckets import Sizes, cut
from pumer.compiling.graphs import CudaGraph, Pool, constants_of, inductor
from pumer.evaluation import predict
from pumer.profiling import benchmark
from pumer.reducers import tables
from pumer.settings.benchmark import BenchmarkConfig
from pumer.settings.predict import PredictConfig

ODD = ((9, 5, 3), (4, 5, 2), (7, 2, 3))
"""Words, patch rows and columns of a batch in which everything needs padding."""

CONFIG = PuMerConfig(layers=(0, 2), prune_ratio=0.2, merge_ratio=0.3, text_merge_ratio=0.3)
OTHER = PuMerConfig(layers=(2,), merge_ratio=0.4)
SHALLOW = PuMerConfig(layers=(0,), prune_ratio=0.2, merge_ratio=0.3, text_merge_ratio=0.3)
EXACT = Buckets(batch=(), words=(), grid=1)

needs_gpu = pytest.mark.gpu
backends = pytest.mark.parametrize("backbone", TINY)


@pytest.fixture
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def build(backbone="vilt", config=CONFIG, **settings):
    case = TINY[backbone]
    return pumer.patch(case.build(**settings), case.fit(config))


def compiled(model, **settings):
    return pumer.compile(model, **{"backend": "eager"} | settings)


def check(got, expected):
    """The same class, keys and shapes, and the same values."""
    assert type(got) is type(expected)
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    elif isinstance(expected, tuple | list):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            check(one, other)
    elif expected is not None:
        assert list(got) == list(expected)
        for name in expected:
            check(got[name], expected[name])


@torch.no_grad()
def same(fast, inputs, **options):
    check(fast(**inputs, **options), fast.model(**inputs, **options))


# ---------------------------------------------------------------- equal to the model


@pytest.mark.parametrize(("backbone", "head"), HEADS)
@pytest.mark.parametrize("config", [NoReduction(), CONFIG], ids=["none", "pumer"])
def test_every_head(backbone, head, config):
    case = TINY[backbone]
    fast = compiled(build(backbone, config, head=head))
    for grids in (ODD, ODD[:1], GRIDS, ((17, 1, 1), (2, 6, 6))):
        inputs = case.batch(grids, head=head)
        for options in ({}, {"output_hidden_states": True}, {"return_dict": False}):
            same(fast, inputs, **options)
    assert not fast._warned
    alone = {name: x for name, x in inputs.items() if "mask" not in name}
    same(fast, alone | {"token_type_ids": torch.ones_like(inputs["input_ids"])})


@pytest.mark.parametrize(("backbone", "example"), tiny.GRID, ids=tiny.label)
def test_every_config(backbone, example):
    fast = compiled(pumer.patch(TINY[backbone].build(), example.config))
    for grids in (ODD, GRIDS):
        same(fast, TINY[backbone].batch(grids))
    with pumer.disabled(fast):
        same(fast, TINY[backbone].batch(ODD))


@backends
def test_inputs_really_are_padded(backbone):
    model, seen = build(backbone), []
    model.register_forward_pre_hook(lambda _, args, inputs: seen.append(inputs), with_kwargs=True)
    inputs = TINY[backbone].batch(ODD)
    compiled(model)(**inputs | {"labels": None, "pixel_values": inputs["pixel_values"].clone()})
    assert seen[0]["input_ids"].shape == (3, 9), "gradients are enabled"
    with torch.no_grad():
        compiled(model)(**inputs)
        compiled(model, buckets=Buckets(batch=(2, 5), words=(12,), grid=3))(**inputs)
        compiled(model, buckets=EXACT)(**inputs)
    _, default, given, exact = seen
    assert default["input_ids"].shape == default["attention_mask"].shape == (4, 16)
    assert torch.equal(default["attention_mask"][:3, :9], inputs["attention_mask"])
    assert not default["attention_mask"][:, 9:].any()
    assert torch.equal(default["input_ids"][3], default["input_ids"][2])
    assert given["input_ids"].shape == (5, 12)
    assert exact["input_ids"].shape == (3, 9)
    if backbone == "vilt":
        assert default["pixel_values"].shape == (4, 3, 48, 32)
        assert default["pixel_mask"].sum() == inputs["pixel_mask"].sum() + inputs["pixel_mask"][2].sum()
        assert given["pixel_mask"].shape == (5, 48, 24)
        assert exact["pixel_mask"].shape == (3, 40, 24)


def test_images_that_cannot_be_padded():
    """A rest of a patch, a mask of another size, and a limit that the padded grid would exceed."""
    fast, inputs = compiled(build()), TINY["vilt"].batch(ODD)
    wider = {name: torch.nn.functional.pad(inputs[name], (0, 4, 0, 5)) for name in ("pixel_values", "pixel_mask")}
    same(fast, inputs | wider)
    same(fast, inputs | {"pixel_mask": torch.ones(3, 5, 3)})
    fast.model.config.max_image_length = 15
    same(fast, inputs)
    same(compiled(build(config=replace(CONFIG, max_image_tokens=15))), inputs)


def test_texts_up_to_the_last_position():
    for backbone in TINY:
        fast = compiled(build(backbone))
        most = fast.config.max_position_embeddings
        same(fast, TINY[backbone].batch(((most, 2, 2), (most - 1, 2, 2))))
        assert fast.graph_count == 1


def test_image_type():
    for head, backbone in (("MeterModel", "meter"), ("ViltModel", "vilt")):
        fast, inputs = compiled(build(backbone, head=head)), TINY[backbone].batch(ODD)
        for kind in (1, 2):
            same(fast, inputs, image_token_type_idx=kind)
        assert fast.graph_count == 2


# ---------------------------------------------------------------- graphs


def test_one_graph_per_bucket():
    fast = compiled(build())
    with torch.no_grad():
        for grids in (ODD, (*ODD, ODD[0]), ((16, 6, 4), (1, 1, 1), (2, 2, 2))):
            fast(**TINY["vilt"].batch(grids))
            assert fast.graph_count == 1
        with torch.inference_mode():
            fast(**TINY["vilt"].batch(ODD))
            assert fast.graph_count == 1, "inference mode can use what no_grad has made"
        with torch.autocast("cpu", torch.bfloat16):
            fast(**TINY["vilt"].batch(ODD))
            assert fast.graph_count == 2
        fast(**TINY["vilt"].batch(ODD, text=17))
        assert fast.graph_count == 3
    fast.reset()
    assert fast.graph_count == 0
    fast.warm_up(TINY["vilt"].batch(grids) for grids in (ODD, ODD[:1], ODD))
    assert fast.graph_count == 2


def test_the_least_recently_used_graph_is_dropped():
    fast, made = compiled(build(), max_graphs=2), []
    fast._make = lambda inputs, options, make=fast._make: made.append(len(inputs["input_ids"])) or make(inputs, options)
    for size in (1, 2, 1, 3, 1, 2):  # 3 is a batch of 4
        with torch.no_grad():
            fast(**TINY["vilt"].batch(ODD[:size]))
        assert fast.graph_count <= 2
    assert made == [1, 2, 4, 2]


# ---------------------------------------------------------------- every change is seen


def test_patching_and_disabling(caplog):
    model, inputs = build(), TINY["vilt"].batch(ODD)
    fast = compiled(model)
    for _ in range(2):
        same(fast, inputs)
        assert pumer.reduction(fast) == CONFIG
        with pumer.disabled(fast):
            same(fast, inputs)
        with pumer.patched(fast, OTHER):
            assert pumer.reduction(model) == OTHER
            same(fast, inputs)
    assert fast.graph_count == 3
    same(pumer.patch(fast, CONFIG, slice_size=2), inputs)
    assert fast.graph_count == 4
    with torch.no_grad():
        assert not torch.allclose(answer(fast, inputs), answer(pumer.patch(model, NoReduction()), inputs), atol=1e-3)
    assert pumer.patch(fast, CONFIG) is fast
    pumer.unpatch(fast)
    assert pumer.reduction(model) is None
    same(fast, inputs)
    assert "the model is not patched" in caplog.text


def test_traces():
    model, inputs = build(), TINY["vilt"].batch(ODD)
    fast = compiled(model)
    with pytest.raises(InputError, match="compiled model cannot be traced"), pumer.trace(fast):
        pass
    with torch.no_grad(), pumer.trace(model) as trace:
        fast(**inputs)
    assert len(trace.forwards) == 1


@pytest.mark.parametrize(("backbone", "backend"), [("vilt", "eager"), ("meter", "eager"), ("vilt", "inductor")])
@pytest.mark.usefixtures("_fresh_dynamo")
def test_weights(backbone, backend, monkeypatch):
    monkeypatch.setattr("pumer.compiling.compile.inductor", lambda forward: inductor(forward, "eager"))
    inputs = TINY[backbone].batch(ODD)
    fast = compiled(build(backbone, SHALLOW, layers=1), backend=backend)
    other = TINY[backbone].build(layers=1, seed=1)
    same(fast, inputs)
    same(fast, TINY[backbone].batch(GRIDS[:2], seed=9))
    assert fast.graph_count == 2
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.mul_(0.9)
    same(fast, inputs)
    assert fast.graph_count == 2, "values that change in place need no new graph"
    fast.model.load_state_dict(other.state_dict())
    same(fast, inputs)
    fast.model.load_state_dict({name: x.clone() for name, x in other.state_dict().items()}, assign=True)
    same(fast, inputs)
    assert fast.graph_count == 1
    fast.to(torch.float64)
    same(fast, tiny.to(inputs, torch.float64))
    fast.model.classifier = nn.Linear(fast.model.classifier[0].in_features, 2).double()
    same(fast, tiny.to(inputs, torch.float64))


def test_the_model_is_reached_through():
    model = build("meter")
    fast = compiled(model)
    assert fast.model is model
    assert fast.config is model.config
    assert fast.device == model.device
    assert [*fast.parameters()] == [*model.parameters()]
    assert fast.encode_text(torch.ones(1, 3, dtype=torch.int64)).states.shape == (1, 3, 32)
    with pytest.raises(AttributeError, match="no attribute 'encode_sound'"):
        fast.encode_sound  # noqa: B018
    assert not fast.training
    assert fast.train().model.training
    assert not fast.eval().model.training


def test_saved_as_the_model(tmp_path):
    fast = compiled(build())
    pumer.save(fast, tmp_path)
    again = pumer.load(tmp_path)
    assert pumer.reduction(again) == CONFIG
    assert again.state_dict().keys() == fast.model.state_dict().keys()


# ---------------------------------------------------------------- the model itself answers


def fallbacks(backbone):
    inputs = TINY[backbone].batch(ODD)
    words, pixels = inputs["input_ids"], inputs["pixel_values"]
    embedded = torch.randn(3, 9, 32)
    return inputs, {
        "argument labels": {"labels": torch.rand(3, 7)},
        "argument inputs_embeds": {"inputs_embeds": embedded, "input_ids": None},
        "input_ids or pixel_values missing": {"input_ids": None},
        "texts of other shapes": {"attention_mask": torch.ones(3, 8)},
        "images that do not fit": {"pixel_values": pixels[:2]},
        "more words than positions": {
            "input_ids": words.repeat(1, 6)[:, :44],
            "attention_mask": torch.ones(3, 44, dtype=torch.int64),
        },
        "output_attentions": {"output_attentions": True},
    }


@backends
def test_other_calls_are_the_models_own(backbone, caplog):
    """With its answers, and its errors."""
    fast = compiled(build(backbone))
    inputs, cases = fallbacks(backbone)
    for reason, change in cases.items():
        with torch.no_grad():
            try:
                expected = fast.model(**inputs | change)
            except (InputError, IndexError, RuntimeError) as error:
                with pytest.raises(type(error)):
                    fast(**inputs | change)
            else:
                check(fast(**inputs | change), expected)
        assert reason in caplog.text
    with torch.no_grad():
        check(fast(inputs["input_ids"], **{k: x for k, x in inputs.items() if k != "input_ids"}), fast.model(**inputs))
    assert "positional arguments" in caplog.text
    assert fast.graph_count == 0


def test_gradients_and_training(caplog):
    fast, inputs = compiled(build()), TINY["vilt"].batch(ODD)
    fast(**inputs).logits.sum().backward()
    assert fast.model.classifier[0].weight.grad is not None
    fast(**inputs)
    assert caplog.text.count("gradients are enabled") == 1
    with torch.no_grad():
        fast.train()(**inputs)
    assert "training mode" in caplog.text
    assert fast.graph_count == 0
    fast.eval().requires_grad_(False)
    assert not fast(**inputs).logits.requires_grad
    assert fast.graph_count == 1


def test_image_index_of_retrieval():
    fast = compiled(build("meter", head="MeterForImageAndTextRetrieval"))
    inputs = TINY["meter"].batch(ODD)
    same(fast, inputs | {"pixel_values": inputs["pixel_values"][:2]}, image_index=torch.tensor([0, 1, 1]))
    assert fast.graph_count == 0


def test_the_models_own_errors():
    fast, inputs = compiled(build("meter")), TINY["meter"].batch(ODD)
    with torch.no_grad(), pytest.raises(InputError, match="resize the images"):
        fast(**inputs | {"pixel_values": inputs["pixel_values"][..., :40]})
    fast = compiled(build(config=replace(CONFIG, max_image_tokens=14)))
    with torch.no_grad(), pytest.raises(InputError, match="max_image_tokens"):
        fast(**TINY["vilt"].batch(ODD))


# ---------------------------------------------------------------- refused


def test_refused_models(caplog):
    with pytest.raises(InputError, match=r"not patched.*pumer\.patch\(model, pumer\.NoReduction\(\)\)"):
        pumer.compile(TINY["vilt"].build())
    with pytest.raises(InputError, match="Linear is not a transformers model"):
        pumer.compile(nn.Linear(1, 1))
    with pytest.raises(InputError, match="CompiledModel is not a transformers model"):
        pumer.compile(compiled(build()))
    with pytest.raises(InputError, match="cannot be copied"):
        copy.deepcopy(compiled(build()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "trt"}, "backend 'trt' is unknown; allowed: cudagraph, inductor, eager"),
        ({"backend": "cudagraph"}, "the model is on cpu"),
        ({"max_graphs": 0}, "max_graphs is 0; give an integer above 0"),
        ({"max_graphs": True}, "max_graphs is True"),
    ],
)
def test_refused_settings(settings, message):
    with pytest.raises(InputError, match=message):
        pumer.compile(build(), **settings)


@pytest.mark.parametrize(
    "settings",
    [{"batch": (8, 1)}, {"batch": (1, 1)}, {"words": (0,)}, {"words": 16}, {"words": (8.0,)}, {"grid": 0}],
    ids=str,
)
def test_refused_buckets(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        Buckets(**settings)


def test_buckets():
    default = Buckets()
    assert [default.batch_size(n) for n in (1, 2, 3, 5, 8, 33)] == [1, 2, 4, 8, 8, 64]
    assert [default.text_length(n, 512) for n in (1, 8, 9, 17, 33, 40, 41, 50)] == [8, 8, 16, 24, 40, 40, 48, 64]
    assert default.text_length(38, 39) == 39
    assert [default.pixels(n, 32) for n in (32, 64, 352)] == [64, 64, 384]
    given = Buckets(batch=[1, 8], words=(32,), grid=4)
    assert hash(given) == hash(Buckets(batch=(1, 8), words=(32,), grid=4))
    assert [given.batch_size(n) for n in (1, 2, 9)] == [1, 8, 9]
    assert [given.text_length(n, 64) for n in (1, 33)] == [32, 33]


def test_an_output_that_is_no_batch():
    with pytest.raises(InputError, match=r"a tensor \(\).*Buckets\(batch=\(\)\)"):
        cut({"score": torch.tensor(1.0)}, Sizes(4, 8), 3, None)


# ---------------------------------------------------------------- torch.compile and CUDA graphs


QUICK = {("vilt", "ViltForImagesAndTextClassification"), ("meter", "MeterForMaskedLM")}
"""A head that sees two images, and one with an answer for each word."""


@pytest.mark.usefixtures("_fresh_dynamo")
@pytest.mark.parametrize(
    ("backbone", "head", "backend"),
    [pytest.param(*head, "eager", marks=() if head in QUICK else pytest.mark.slow) for head in HEADS]
    + [(backbone, case.heads[0], "aot_eager") for backbone, case in TINY.items()],
)
def test_one_graph_of_torch_compile(backbone, head, backend, monkeypatch):
    monkeypatch.setattr("pumer.compiling.compile.inductor", lambda forward: inductor(forward, backend))
    fast = compiled(build(backbone, SHALLOW, head=head, layers=1), backend="inductor")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(2):
            same(fast, TINY[backbone].batch(ODD, head=head, seed=seed))
        with torch.inference_mode():
            check(fast(**TINY[backbone].batch(ODD, head=head)), fast.model(**TINY[backbone].batch(ODD, head=head)))
    assert fast.graph_count == 1


@pytest.mark.usefixtures("_fresh_dynamo")
@pytest.mark.parametrize("backbone", ["vilt", pytest.param("meter", marks=pytest.mark.slow)])
def test_inductor(backbone):
    """As users get it on a CPU."""
    fast = pumer.compile(build(backbone, PuMerConfig(layers=(0,), prune_ratio=0.2, merge_ratio=0.3), layers=1))
    for seed in range(2):
        same(fast, TINY[backbone].batch(ODD, seed=seed))
    with torch.inference_mode():  # whose tensors autograd refuses
        inputs = {name: x.clone() for name, x in TINY[backbone].batch(ODD).items()}
        check(fast(**inputs), fast.model(**inputs))
        assert fast.graph_count == 1


@pytest.mark.usefixtures("_fresh_dynamo")
def test_many_graphs_of_torch_compile(monkeypatch):
    """More than dynamo keeps of one function."""
    monkeypatch.setattr("pumer.compiling.compile.inductor", lambda forward: inductor(forward, "eager"))
    fast = compiled(pumer.patch(TINY["vilt"].build(layers=1), NoReduction()), backend="inductor", buckets=EXACT)
    with torch._dynamo.config.patch(recompile_limit=2, error_on_recompile=True):
        for words in (3, 4, 5, 6, 3):
            same(fast, TINY["vilt"].batch(((words, 2, 2),)))
    assert fast.graph_count == 4


@pytest.mark.usefixtures("_fresh_dynamo")
def test_what_torch_compile_cannot_do():
    run = inductor(lambda inputs: inputs["x"].tolist() and print("a graph break"), "eager")
    with pytest.raises(InputError, match=r"torch\.compile failed \(.*\); give backend=") as caught:
        run({"x": torch.ones(2)})
    assert "\n" not in str(caught.value)


def test_constants_are_found():
    """What a graph must keep alive: the tables, and nothing that is computed or given."""
    model, inputs, cpu = build(), TINY["vilt"].batch(GRIDS), torch.device("cpu")
    weights = {x.data_ptr() for x in (*model.parameters(), *inputs.values())}
    with torch.no_grad():
        model(**inputs)
        found = constants_of(lambda inputs: model(**inputs), inputs)
        again = constants_of(lambda inputs: model(**inputs), inputs)
    assert not {x.data_ptr() for x in found} & weights
    assert [x.data_ptr() for x in found] == [x.data_ptr() for x in again]
    assert tables.integers(cpu, 0, 1).data_ptr() in {x.data_ptr() for x in found}


# ---------------------------------------------------------------- commands


@pytest.fixture
def made(monkeypatch):
    """How many graphs the commands make; nothing is compiled."""
    found = []
    monkeypatch.setattr("pumer.compiling.compile.inductor", lambda forward: found.append(forward) or forward)
    return found


def test_benchmark(tiny_vilt, made):
    settings = {"batch_sizes": (1, 2), "pairs": 1, "memory_batch": 0, "device": "cpu", "progress": False}
    reductions = {"half": {"method": "pumer", "layers": [2], "prune_ratio": 0.5}}
    config = BenchmarkConfig(model=str(tiny_vilt), reductions=reductions, text_length=9, compile=True, **settings)
    result = benchmark.run(config, Console(file=io.StringIO()))
    assert len(made) == 4, "two sizes of two models; transformers' own is not compiled"
    assert result["what"].endswith(", compiled")
    assert result["provenance"]["config"]["compile"] is True


def test_predict(tiny_vilt, tmp_path, made):
    for number in range(3):
        Image.new("RGB", (32, 32), (80 * number, 0, 200)).save(tmp_path / f"{number}.png")
    rows = [f"{number}.png,what colour is {'it ' * number}?" for number in range(3)]
    (tmp_path / "asked.csv").write_text("\n".join(["image,question", *rows]))
    for name, compiles in (("plain", False), ("fast", True)):
        out = tmp_path / f"{name}.csv"
        asked = {"questions": tmp_path / "asked.csv", "images": tmp_path, "batch_size": 2}
        predict.run(PredictConfig(model=str(tiny_vilt), out=out, compile=compiles, **asked))
        assert bool(made) is compiles
    assert (tmp_path / "fast.csv").read_text() == (tmp_path / "plain.csv").read_text()
    with pytest.raises(InputError, match="compile is for questions=FILE"):
        predict.run(PredictConfig(model=str(tiny_vilt), out=tmp_path / "out.json", compile=True))


# ---------------------------------------------------------------- on a GPU


@needs_gpu
@pytest.mark.parametrize(("backbone", "head"), HEADS)
@pytest.mark.parametrize("backend", ["cudagraph", "inductor"])
def test_gpu_every_head(backbone, head, backend):
    if backend == "inductor" and head != TINY[backbone].heads[0]:
        pytest.skip("slow; one head is enough")
    fast = pumer.compile(build(backbone, head=head).cuda(), backend=backend)
    for seed in range(3):
        for grids in (ODD, ODD[:1], GRIDS):
            inputs = on_gpu(TINY[backbone].batch(grids, head=head, seed=seed))
            same(fast, inputs)
            with torch.inference_mode():
                first, second = answer(fast, inputs), answer(fast, inputs)
            assert torch.equal(first, second), "deterministic, and the first was not overwritten"
    assert not fast._warned


def on_gpu(inputs):
    return {name: x.cuda() for name, x in inputs.items()}


@needs_gpu
@backends
def test_gpu_interleaved_graphs(backbone):
    """Graphs that share a pool do not disturb each other, in any order, nor do other streams and other allocations."""
    fast = pumer.compile(build(backbone).cuda(), max_graphs=6)
    batches = [on_gpu(TINY[backbone].batch(((words, 2, 2),) * n)) for words in (3, 12, 20) for n in (1, 2, 4)]
    with torch.inference_mode():
        expected = [answer(fast.model, inputs) for inputs in batches]
        kept = []
        for round_ in range(4):
            order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(round_)).tolist()
            for index in order:
                stream = torch.cuda.Stream() if index % 2 else torch.cuda.current_stream()
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    got = answer(fast, batches[index])
                torch.cuda.current_stream().wait_stream(stream)
                kept.append((index, got))
                torch.randn(1000, 1000, device="cuda")
            tables._KEPT.clear()
            torch.cuda.empty_cache()
        for index, got in kept:
            torch.testing.assert_close(got, expected[index], atol=1e-5, rtol=1e-5)
    assert fast.graph_count == 6


@needs_gpu
def test_gpu_changes():
    model, inputs = build().cuda(), on_gpu(TINY["vilt"].batch(ODD))
    fast = pumer.compile(model, max_graphs=1)
    same(fast, inputs)
    with pumer.disabled(fast):
        same(fast, inputs)
    pumer.patch(fast, OTHER)
    same(fast, inputs)
    with torch.no_grad():
        model.classifier[0].weight.mul_(2)
    same(fast, inputs)
    state = TINY["vilt"].build(seed=1).state_dict()
    model.load_state_dict({name: x.cuda() for name, x in state.items()}, assign=True)
    same(fast, inputs)
    for _ in range(2):
        with torch.autocast("cuda", torch.bfloat16), torch.no_grad():
            torch.testing.assert_close(answer(fast, inputs), answer(model, inputs), atol=2e-2, rtol=2e-2)
        with torch.no_grad():
            model.classifier[3].weight.mul_(2)  # a graph must not hold on to a converted copy
    fast.half()
    with torch.no_grad():
        half = tiny.to(inputs, torch.float16)
        torch.testing.assert_close(answer(fast, half), answer(model, half), atol=2e-2, rtol=2e-2)
    fast.cpu()
    with pytest.raises(InputError, match="'cudagraph' is for CUDA"):
        pumer.compile(model, backend="cudagraph")


@needs_gpu
def test_gpu_what_cannot_be_captured():
    model, inputs = build().cuda(), on_gpu(TINY["vilt"].batch(ODD))
    fast = pumer.compile(model)
    handle = model.classifier.register_forward_hook(lambda module, given, logits: logits * logits.sum().item())
    with torch.no_grad(), pytest.raises(InputError, match="cannot be captured in a CUDA graph") as caught:
        fast(**inputs)
    assert "\n" not in str(caught.value)
    handle.remove()
    same(fast, inputs)


@needs_gpu
def test_gpu_a_graph_by_itself():
    x = torch.arange(4.0, device="cuda")
    graph = CudaGraph(lambda inputs: {"y": inputs["input_ids"] * 2}, {"input_ids": x}, Pool(), [], "it")
    first, second = graph({"input_ids": x})["y"], graph({"input_ids": x + 1})["y"]
    assert torch.equal(first, 2 * x)
    assert torch.equal(second, 2 * x + 2)

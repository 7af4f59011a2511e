"""`pumer.compile`: a patched model as CUDA graphs or compiled graphs, one for each bucket of input sizes."""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NoReturn, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pumer import kernels
from pumer.backbones import DECODERS, Reduction, roots
from pumer.compiling.buckets import IMAGE, TEXT, Buckets, Sizes, cut, padded, with_masks
from pumer.compiling.graphs import CudaGraph, Pool, Runner, Watch, constants_of, inductor
from pumer.reducers import ReleasedPuMerConfig
from pumer.utils.errors import InputError

logger = logging.getLogger(__name__)

Backend = Literal["cudagraph", "inductor", "eager"]
BACKENDS = get_args(Backend)
OPTIONS = ("output_hidden_states", "return_dict", "image_token_type_idx")


def compile(
    model: PreTrainedModel, backend: Backend | None = None, buckets: Buckets | None = None, max_graphs: int = 32
) -> "CompiledModel":
    """Compile a patched model for inference; inputs are padded to a few sizes, each of which has one graph.

    Args:
        model: A transformers model of a supported family, with any head, patched with any reduction. It stays usable;
            what is patched, disabled or loaded in it later holds in the compiled model as well.
        backend: "cudagraph" records the kernels of an eager forward once and replays them, without the cost of
            launching each; "inductor" is ``torch.compile`` as one graph with static shapes, replayed in the same way on
            a GPU; "eager" compiles nothing. None: "cudagraph" on a GPU, "inductor" on a CPU.
        buckets: The sizes that inputs are padded to.
        max_graphs: Graphs kept; beyond this the one that was used longest ago is dropped.

    Returns:
        A module that is called like the model.

    Raises:
        InputError: If the model is not patched, or is not one of transformers' (as one that is compiled already), and
            for an unknown backend or a number of graphs below 1.

    Example:
        >>> compiled = pumer.compile(pumer.patch(model, pumer.PuMerConfig(layers=(2, 5, 8), prune_ratio=0.1)))
        >>> with torch.inference_mode():
        ...     logits = compiled(**inputs).logits
    """
    return CompiledModel(model, backend, buckets or Buckets(), max_graphs)


class CompiledModel(nn.Module):
    """A patched model, and the graphs it has been compiled to so far; see `compile`.

    It is called with the model's keyword arguments, and returns the same class, keys and shapes as the model, and the
    same values up to the rounding of another batch size and length. Weights are the model's own. Attributes that are
    not there are the model's: ``compiled.config``, ``compiled.encode_text(...)``.

    A graph is made when a bucket is used for the first time (see `warm_up`). Another reduction (`pumer.patch`,
    `pumer.disabled`) has graphs of its own. Once weights are moved, replaced or converted, all graphs are made anew;
    values that change in place do not need that. After any other change of the model, such as new forward hooks or
    another adapter, call `reset`.

    Batches are always padded. Words and images are padded only where no output shows it: not for base models, unknown
    heads and ``output_hidden_states``, whose outputs have one row for each token that is left, nor for
    `ReleasedPuMerConfig`, which counts padding.

    The model itself, not compiled, answers calls in training mode, with gradients enabled (and weights or inputs that
    require them), with positional arguments, with arguments other than `TEXT`, `IMAGE` and `OPTIONS`, with texts longer
    than its positions, inside `pumer.trace`, and while it is not patched. The first such call of each kind logs a
    warning. So unusable inputs raise the model's own errors.
    """

    def __init__(self, model: PreTrainedModel, backend: Backend | None, buckets: Buckets, max_graphs: int) -> None:
        super().__init__()
        if not isinstance(model, PreTrainedModel):
            inside = "the model inside it (of a PEFT model, merge_and_unload() gives it)"
            raise InputError(f"{type(model).__name__} is not a transformers model; give {inside}")
        self._watch = Watch(model)
        if any(isinstance(part, family.root) for part in model.modules() for family in DECODERS.values()):
            raise InputError(
                f"a {type(model).__name__} is compiled by its own generate; call model.generate(..., "
                'cache_implementation="static")'
            )
        if not self._watch.reductions():
            wrong = f"{type(model).__name__} is not patched, and transformers' own forward cannot be captured"
            raise InputError(f"{wrong}; call pumer.patch(model, pumer.NoReduction()) first")
        if backend is not None and backend not in BACKENDS:
            raise InputError(f"backend {backend!r} is unknown; allowed: {', '.join(BACKENDS)}, or None")
        if isinstance(max_graphs, bool) or not isinstance(max_graphs, int) or max_graphs < 1:
            raise InputError(f"max_graphs is {max_graphs!r}; give an integer above 0")
        self._family = roots(model)[0][1]
        self._orig_mod = model  # the name that torch.compile uses: `pumer.patching.unwrapped` looks there
        self.training = model.training
        self.buckets, self.max_graphs = buckets, max_graphs
        self._chosen = backend
        self._graphs: dict[tuple[Any, ...], Runner] = {}
        self._pool: Pool | None = None
        self._warned: set[str] = set()
        self._lock = threading.RLock()
        self._backend()

    @property
    def model(self) -> PreTrainedModel:
        """The model that was compiled."""
        return self._orig_mod

    @property
    def graph_count(self) -> int:
        """Graphs that are kept at present."""
        return len(self._graphs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("_orig_mod"), name)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise InputError("a compiled model cannot be copied or pickled; copy or save its .model, then compile that")

    def warm_up(self, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Make the graphs of these inputs (arguments of a forward) now, not at the first request of their size."""
        with torch.inference_mode():
            for batch in batches:
                self(**batch)

    def reset(self) -> None:
        """Drop all graphs; they are made again when they are needed."""
        with self._lock:
            self._drop(len(self._graphs))

    def _drop(self, count: int) -> None:
        """Drop the graphs that were used longest ago, once no GPU works on them any more."""
        if count > 0 and self._pool is not None:
            self._pool.idle.synchronize()
        for key in list(self._graphs)[:count]:
            del self._graphs[key]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's."""
        if torch.compiler.is_compiling():  # someone compiles what is around it
            return self.model(*args, **kwargs)
        with self._lock:
            states = self._watch.reductions()
        reason = "positional arguments" if args else self._unsupported(kwargs, states)
        if reason is not None:
            if reason not in self._warned:
                logger.warning("not compiled: %s; the model itself answers", reason)
            self._warned.add(reason)
            return self.model(*args, **kwargs)
        # One mode for all callers, so that none makes a graph, or a buffer, that another cannot use.
        with torch.inference_mode(False), torch.no_grad():
            return self._answer(kwargs, states)

    def _unsupported(self, given: Mapping[str, Any], states: list[Reduction]) -> str | None:
        """Why the model itself must answer a call, or None."""
        model, tensors = self.model, {name: given[name] for name in (*TEXT, *IMAGE) if given.get(name) is not None}
        known = {*tensors, *OPTIONS, "output_attentions"}
        if others := [name for name, value in given.items() if value is not None and name not in known]:
            return f"argument {others[0]}"
        if model.training:
            return "training mode (model.eval() ends it)"
        if not states:
            return "the model is not patched"
        if any(each.recorder is not None for each in states):
            return "a trace"
        if any(each.enabled != (each.disabling == 0) for each in states):  # which a graph would not tell apart
            return "pumer.disabled in another thread or task"
        if given.get("output_attentions") or model.config.output_attentions:
            return "output_attentions"
        if not all(isinstance(x, Tensor) for x in tensors.values()) or not {"input_ids", "pixel_values"} <= {*tensors}:
            return "input_ids or pixel_values missing"
        if torch.is_grad_enabled() and any(x.requires_grad for x in (*tensors.values(), *model.parameters())):
            return "gradients are enabled (torch.inference_mode() switches them off)"
        return _misfit(model, tensors, self._family.reads_pairs(model))

    def _answer(self, kwargs: Mapping[str, Any], states: list[Reduction]) -> Any:
        model = self.model
        inputs = {name: kwargs[name] for name in (*TEXT, *IMAGE) if kwargs.get(name) is not None}
        options = {name: kwargs[name] for name in OPTIONS if kwargs.get(name) is not None}
        for name in ("output_hidden_states", "return_dict"):
            options.setdefault(name, bool(getattr(model.config, name)))
        (batch, words), per_word = inputs["input_ids"].shape, isinstance(model, tuple(self._family.word_heads))
        exact = options["output_hidden_states"] or any(
            isinstance(each.config, ReleasedPuMerConfig) or (each.expands and not per_word) for each in states
        )
        inputs = with_masks(inputs, images=self._family.pixel_mask)
        sizes = self._sizes(inputs, exact)
        inputs = padded(inputs, sizes, _pad_id(model))
        with self._lock:
            if self._watch.moved():  # graphs refer to the addresses of the weights
                self._drop(len(self._graphs))
            runner = self._runner(inputs, options, states)
            replayed = isinstance(runner, CudaGraph)
            output = runner(inputs) if replayed else None  # whose buffers one call uses at a time
        if not replayed:
            output = runner(inputs)
        return cut(output, sizes, batch, words if per_word and not exact else None)

    def _sizes(self, inputs: Mapping[str, Tensor], exact: bool) -> Sizes:
        """What a batch is padded to; ``exact`` leaves words and images as they are."""
        config, (batch, words), pixels = self.model.config, inputs["input_ids"].shape, inputs["pixel_values"]
        batch = self.buckets.batch_size(batch)
        if exact:
            return Sizes(batch, words)
        words = self.buckets.text_length(words, config.max_position_embeddings)
        mask, patch = inputs.get("pixel_mask"), config.patch_size
        if not self._family.pixel_mask or mask is None or mask.shape[-2:] != (shape := pixels.shape[-2:]):
            return Sizes(batch, words)
        height, width = (self.buckets.pixels(side, patch) for side in shape)
        most = getattr(config, "max_image_length", None)  # above which transformers' ViLT draws some at random
        sampled = -1 if most is None else most
        if any(side % patch for side in shape) or 0 <= sampled < (height // patch) * (width // patch):
            return Sizes(batch, words)  # the model would cut the rest of a patch, or refuse so many
        return Sizes(batch, words, height, width)

    def _runner(self, inputs: dict[str, Tensor], options: dict[str, Any], states: list[Reduction]) -> Runner:
        """The graph of these inputs, made if there is none."""
        kind = inputs["input_ids"].device.type
        autocast = (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
        shapes = tuple((name, x.shape, x.dtype) for name, x in inputs.items())
        reduced = tuple((each.config, each.enabled, each.slice_size) for each in states)
        key = (shapes, tuple(sorted(options.items())), autocast, reduced, kernels.enabled())
        runner = self._graphs.pop(key, None) or self._make(inputs, options)
        self._graphs[key] = runner  # the last one is the one used last
        self._drop(len(self._graphs) - self.max_graphs)
        return runner

    def _make(self, inputs: dict[str, Tensor], options: dict[str, Any]) -> Runner:
        model, device, backend = self.model, inputs["input_ids"].device, self._backend()

        def eager(inputs: dict[str, Tensor]) -> Any:
            return model(**inputs, **options)

        if backend == "eager":
            return eager
        eager(inputs)  # raises the model's own errors, for inputs that it refuses
        forward: Callable[[dict[str, Tensor]], Any] = inductor(eager) if backend == "inductor" else eager
        if device.type != "cuda":
            return forward
        if self._pool is None or not self._graphs:
            self._pool = Pool()
        return CudaGraph(forward, inputs, self._pool, constants_of(eager, inputs), type(model).__name__)

    def _backend(self) -> str:
        device = self.model.device
        if self._chosen == "cudagraph" and device.type != "cuda":
            wrong = f"backend 'cudagraph' is for CUDA, but the model is on {device}"
            raise InputError(f"{wrong}; move it with .to('cuda'), or give backend='inductor'")
        return self._chosen or ("cudagraph" if device.type == "cuda" else "inductor")


def _misfit(model: PreTrainedModel, inputs: Mapping[str, Tensor], pairs: bool) -> str | None:
    """What is wrong with the shapes of inputs, which padding could hide; None if nothing is."""
    words, pixels, device = inputs["input_ids"], inputs["pixel_values"], model.device
    if any(x.device != device for x in inputs.values()):
        return "inputs on another device"
    if words.ndim != 2 or not words.numel() or any(inputs[n].shape != words.shape for n in TEXT if n in inputs):
        return "texts of other shapes than (batch, words)"
    if words.shape[1] > model.config.max_position_embeddings:
        return "more words than positions"
    if pixels.ndim < 4 + pairs or len(pixels) != len(words):
        return "images that do not fit the texts"
    mask = inputs.get("pixel_mask")
    if mask is not None and (mask.ndim, len(mask)) != (pixels.ndim - 1, len(pixels)):
        return "a pixel_mask that does not fit the images"
    return None


def _pad_id(model: PreTrainedModel) -> int:
    """Word id in padding: RoBERTa counts positions by it."""
    return getattr(model.config, "text_config", model.config).pad_token_id or 0

"""How one forward of fixed shapes is made fast: captured in a CUDA graph, or compiled by torch's inductor."""

from collections.abc import Callable, Mapping
from operator import is_
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

from pumer.backbones import BACKBONES, Reduction
from pumer.utils.errors import InputError, out_of_memory
from pumer.utils.files import first_line

Runner = Callable[[dict[str, Tensor]], Any]
"""From inputs by name, always of the same shapes, to the model's output."""

WARM_UP = 3
"""Forwards before a capture, as torch advises: they make what is made once, such as cuBLAS's workspace."""


class Watch:
    """Notices changes of a model that its graphs do not survive; written for speed, since every call asks."""

    def __init__(self, model: nn.Module) -> None:
        self._parts: list[nn.Module | None] = [model]
        self._roots: list[nn.Module] = []
        self._held: list[Mapping[str, Tensor | None]] = []
        self._tensors: list[Tensor] = []
        self._addresses: list[int] = []
        self._dtypes: list[torch.dtype] = []

    def reductions(self) -> list[Reduction]:
        """The state of every patched part of the model, as it is now."""
        parts = self._parts[:1]
        for part in parts:  # grows on the way
            if part is not None and part._modules:
                parts += part._modules.values()
        if parts != self._parts:  # at the beginning, and when a module was replaced
            self._parts, modules = parts, [part for part in parts if part is not None]
            kinds = tuple(family.root for family in BACKBONES.values())
            self._roots = [module for module in modules if isinstance(module, kinds)]
            self._held = [held for module in modules for held in (module._parameters, module._buffers)]
        states = [root.__dict__.get("pumer_reduction") for root in self._roots]
        return [state for state in states if state is not None]

    def moved(self) -> bool:
        """Whether a weight or buffer was replaced, moved or converted since this was asked last."""
        tensors = [x for held in self._held if held for x in held.values() if x is not None]
        addresses, dtypes = [x.data_ptr() for x in tensors], [x.dtype for x in tensors]
        same = len(tensors) == len(self._tensors) and all(map(is_, tensors, self._tensors))
        moved = not same or addresses != self._addresses or dtypes != self._dtypes
        self._tensors, self._addresses, self._dtypes = tensors, addresses, dtypes
        return moved


def inductor(forward: Runner, backend: str = "inductor") -> Runner:
    """A forward as one graph of ``torch.compile`` with static shapes, made at its first call."""
    # Graphs are kept by code object, up to a limit: with one of its own, no other size of the model counts towards it.
    own = FunctionType(forward.__code__.replace(), forward.__globals__, closure=forward.__closure__)
    compiled = torch.compile(own, fullgraph=True, dynamic=False, backend=backend)

    def run(inputs: dict[str, Tensor]) -> Any:
        try:
            return compiled({name: _plain(x) for name, x in inputs.items()})
        except TorchDynamoException as error:
            remedy = "give backend='cudagraph' on a GPU, or call the model itself"
            raise InputError(f"torch.compile failed ({first_line(error)}); {remedy}") from error

    return run


class Pool:
    """Memory that CUDA graphs share; it cannot be used again once its last graph is gone."""

    def __init__(self) -> None:
        self.handle = torch.cuda.graph_pool_handle()
        self.idle = torch.cuda.Event()  # when the last replay is over


class CudaGraph:
    """A forward captured in a CUDA graph.

    The graph reads and writes memory at fixed addresses: inputs are copied into its own buffers, and its output is
    copied before the next replay overwrites it. What is computed between is in memory that all graphs of a pool share,
    so that one of them runs after the other, in whichever stream.
    """

    def __init__(
        self, forward: Runner, inputs: Mapping[str, Tensor], pool: Pool, constants: list[Tensor], name: str
    ) -> None:
        """Capture a forward that does not wait for the GPU; constants, see `constants_of`, must stay alive with it."""
        self._inputs = {name: x.clone() for name, x in inputs.items()}
        self._device, self._pool, self._constants = inputs["input_ids"].device, pool, constants
        self._forward = forward  # what it was compiled to, and that code's constants, must stay alive
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device), _without_cache(self._device.type):
            stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    forward(self._inputs)
            current.wait_stream(stream)
            try:
                # thread_local: what other threads do to the GPU meanwhile, such as pinning memory, is not forbidden
                with torch.cuda.graph(self._graph, pool=pool.handle, capture_error_mode="thread_local"):
                    self._output = forward(self._inputs)
            except RuntimeError as error:
                if out_of_memory(error):
                    raise
                why, remedy = first_line(_cause(error)), "give backend='inductor', or call the model itself"
                raise InputError(f"{name} cannot be captured in a CUDA graph ({why}); {remedy}") from error

    def __call__(self, inputs: Mapping[str, Tensor]) -> Any:
        """Replay the graph; returns a copy of its output."""
        with torch.cuda.device(self._device):
            self._pool.idle.wait()
            for name, x in inputs.items():
                self._inputs[name].copy_(x, non_blocking=True)
            self._graph.replay()
            output = tree_map_only(Tensor, torch.clone, self._output)
            self._pool.idle.record()
        return output


def constants_of(forward: Runner, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Tensors that a forward reads, beside its inputs and the weights, once it has been run before.

    A graph must keep them alive: `pumer.reducers.tables` forgets its tables in time, and memory is used again.
    """
    with _without_cache(inputs["input_ids"].device.type), _Constants(inputs) as constants:
        forward(inputs)
    return [x for x in constants.found.values() if not isinstance(x, nn.Parameter)]


class _Constants(TorchDispatchMode):
    """Finds the tensors that operators read and none has made."""

    def __init__(self, inputs: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: dict[int, Tensor] = {}
        self._made = {x.untyped_storage().data_ptr() for x in inputs.values()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_iter((args, kwargs)):
            if isinstance(x, Tensor) and (address := x.untyped_storage().data_ptr()) not in self._made:
                self.found.setdefault(address, x)
        made = {x.untyped_storage().data_ptr() for x in tree_iter(result) if isinstance(x, Tensor)}
        self._made |= made - self.found.keys()
        return result


def _without_cache(kind: str) -> torch.autocast:
    """Autocast as it is, but with every weight converted where it is used: a cache would not see new values."""
    return torch.autocast(
        kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind), cache_enabled=False
    )


def _plain(x: Tensor) -> Tensor:
    """A tensor that differs from others of its shape in its values alone."""
    return x.clone() if x.is_inference() else x.contiguous()


def _cause(error: BaseException) -> BaseException:
    """The first of the errors that led to this one: leaving a capture that failed fails once more."""
    while error.__context__ is not None:
        error = error.__context__
    return error

"""What a model family provides: all that the rest of the library asks about it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedModel

from pumer.backbones import subclasses
from pumer.reducers.base import Place

Head = Literal["question_answering", "image_pair", "retrieval"]
"""What a task asks of a model: one answer to a text about an image, the same about two images, how well both fit."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is patched in the models of a family.

    Attributes:
        name: transformers' ``model_type``.
        root: The transformers class that is patched wherever it occurs in a model.
        classes: transformers class to its patched subclass, for the root and the modules below it, and for those that
            hold one.
        faster: Those of ``classes`` that are replaced for speed alone; a user's subclass of one stays as it is.
        layers: From a root module to the layers of each stack, in the order in which they run.
        widths: From a root module to the width of each stack.
        tokens: From a root module to the tokens of each stack that a reduction without regard to modality can choose
            from: those of the longest text, where it is in the same stream, and of an image of the model's size; of
            stacks that see prompts of any length, none.
        unsupported_reason: From a root module, a stack and a layer of it to the reason why it cannot reduce, or None.
        whole: Stacks whose output has a state for every token that entered, so that none may be pruned there.
        spreads: Whether its layers may be on several devices, by accelerate's hooks (``device_map``).
    """

    name: str
    root: type[nn.Module]
    classes: dict[type[nn.Module], type[Any]]
    faster: frozenset[type[nn.Module]] = frozenset()
    layers: Callable[[Any], dict[str, Sequence[nn.Module]]]
    widths: Callable[[Any], dict[str, int]]
    tokens: Callable[[Any], dict[str, int]]
    unsupported_reason: Callable[[Any, str, int], str | None] = lambda root, stack, layer: None
    whole: frozenset[str] = frozenset()
    spreads: bool = False

    def __post_init__(self) -> None:
        """Give each subclass its parent's ``__name__``: ``save_pretrained`` writes that into the config."""
        for parent, patched in self.classes.items():
            patched.__name__ = parent.__name__
            subclasses.like_its_parent(patched, parent)

    def carriers(self, root: nn.Module) -> list[nn.Module]:
        """The modules of a root that look the reduction up; the first one is the root."""
        return [root]

    def touched(self, root: nn.Module, places: Sequence[Place]) -> Iterable[nn.Module]:
        """The modules of a root that are patched for a config that names these places, if their class is."""
        return root.modules()

    def patched_class(self, cls: type[nn.Module]) -> type[nn.Module] | None:
        """The class that takes a class's place, or None if it stays; a user's subclass gets one of its own.

        Raises:
            InputError: If a user's subclass overrides a method that is replaced.
        """
        parent = next((base for base in cls.__mro__ if base in self.classes), None)
        if parent is None or issubclass(cls, self.classes[parent]) or (cls is not parent and parent in self.faster):
            return None
        patched = self.classes[parent]
        return patched if cls is parent else subclasses.combined(patched, cls)

    def original_class(self, cls: type[nn.Module]) -> type[nn.Module] | None:
        """The class whose place a patched class takes; None for a class that is not patched."""
        own = subclasses.original(cls)
        return own or next((parent for parent, patched in self.classes.items() if cls is patched), None)

    def is_patched(self, module: nn.Module) -> bool:
        """Whether the class of a module is patched, even if another library has changed it since then."""
        return isinstance(module, tuple(self.classes.values()))


@dataclass(frozen=True, kw_only=True)
class Backbone(Family):
    """A family whose models answer by a head: all that the rest of the library asks about it.

    Attributes:
        encoders: From a root module to the module that runs each stack.
        embedders: From a root module to the modules that run before the cross-modal layers.
        example_bytes: From a root module to the bytes of activations that one example holds at most in inference,
            roughly, before anything is reduced.
        heads: Model class of each head, all of which read the pooled vector alone.
        word_heads: Classes of heads with one output for each word.
        image_processor: Class that reads images with Pillow.
        processor: From such an image processor and a tokenizer to the processor.
        presets: Full-size models with random weights, by name.
        separable: Whether images and texts are encoded apart: models have ``encode_image`` and ``encode_text``, and
            take ``encoded_text``, ``encoded_image`` and ``image_index``.
        pixel_mask: Whether images may be padded, marked by a ``pixel_mask``.
        set_image_size: Makes a root module read images of another size; None where it takes any size as it is.
        encoder_parameters: Prefixes of the parameters, in a model with a head, that see one modality only.
        modality_embeddings: Name, in a root module, of the embedding with one row for text and one for each image.
        head_modules: Names of the modules that heads, also those of pre-training, add to the body.
        old_names: Pattern of names of tensors in older checkpoints to their names now.
        restore: Applies settings of a loaded model's config that transformers ignores.
    """

    encoders: Callable[[Any], dict[str, nn.Module]]
    embedders: Callable[[Any], Sequence[nn.Module]]
    example_bytes: Callable[[Any], int]
    heads: Mapping[Head, type[PreTrainedModel]]
    word_heads: frozenset[type[PreTrainedModel]] = frozenset()
    image_processor: type[Any]
    processor: Callable[[Any, Any], Any]
    presets: Mapping[str, Callable[[], PreTrainedModel]] = field(default_factory=dict)
    separable: bool = False
    pixel_mask: bool = False
    set_image_size: Callable[[Any, int], None] | None = None
    encoder_parameters: tuple[str, ...] = ()
    modality_embeddings: str = ""
    head_modules: tuple[str, ...] = ("classifier", "rank_output")
    old_names: Mapping[str, str] = field(default_factory=dict)
    restore: Callable[[nn.Module], Any] = lambda model: None

    @property
    def model_classes(self) -> dict[str, type[Any]]:
        """Classes of whole models by name."""
        return {cls.__name__: cls for cls in (self.root, *self.heads.values(), *self.word_heads)}

    def reads_pairs(self, model: nn.Module) -> bool:
        """Whether the head of a model reads several images at once."""
        pair = self.heads.get("image_pair")
        return pair is not None and isinstance(model, pair)

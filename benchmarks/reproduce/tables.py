"""Which cells each table has, in which rows, and what the paper prints there."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, Literal

from benchmarks.reproduce.cells import RETRIEVAL, Cell, reduced
from benchmarks.reproduce.paper import (
    FIGURE_5_SPEEDUP,
    TABLE_1,
    TABLE_2,
    TABLE_2_PUMER,
    TABLE_3,
    TABLE_4,
    TABLE_4_ORIGINAL,
    TABLE_7,
    Figures,
)
from benchmarks.reproduce.settings import PAIRS
from benchmarks.reproduce.setup import Setup, pumer_cell
from pumer.backbones import BACKBONES
from pumer.reducers import PuMerConfig, config_from_dict, config_to_dict
from pumer.reducers.pumer import VISION_PRESETS
from pumer.tasks import TASKS

SEEDS_OF_VILT = 3
DIRECTIONS = ("TR", "IR")
RATIOS = ("prune_ratio", "merge_ratio", "text_merge_ratio")

_LAYERS = {"layers": [2, 5, 8]}
_PUMER = [
    {**_LAYERS, "prune_ratio": prune, "merge_ratio": merge, "text_merge_ratio": text}
    for prune, merge, text in ((0.1, 0.2, 0.2), (0.1, 0.3, 0.2), (0.2, 0.4, 0.2))
]
_PRUNING = [{**_LAYERS, "prune_ratio": ratio} for ratio in (0.33, 0.45, 0.65)]
_OTHER_PUMERS = [
    {"layers": [2, 4, 6, 8], "prune_ratio": 0.1, "merge_ratio": 0.3, "text_merge_ratio": 0.2},
    {"layers": list(range(1, 10)), "prune_ratio": 0.05, "merge_ratio": 0.2, "text_merge_ratio": 0.05},
]
STRENGTHS: dict[str, list[dict[str, Any]]] = {
    "pumer": [*_PUMER, *_OTHER_PUMERS],
    "pumer-released": _PUMER,
    "tome": [{"layers": list(range(12)), "merge_count": count} for count in (10, 13, 17)],
    "dynamicvit": [settings | {"ratio_weight": 20.0} for settings in _PRUNING],
    "evit": _PRUNING,
    "cls": _PRUNING,
    "attention-received": _PRUNING,
    "l2norm": _PRUNING,
    "random": _PRUNING,
    "pooling": [{**_LAYERS, "merge_ratio": ratio} for ratio in (0.33, 0.45)],
}
"""Settings of every method in Figure 5: about 1.7, 2.0 and 2.5 times fewer multiply-accumulates than the original's,
for the small ViLT and 18 words. PuMer has two more: the paper's for SNLI-VE (2.2 times fewer), and many small steps in
place of three large ones (2.5 times). Pooling has no third: it averages at most every other token. DynamicViT's ratio
loss weighs ten times what its paper has, or a hundred steps end in training with far more tokens than inference keeps.
"""
RESOLUTION = "smaller images"
SIZES = (320, 288, 256)
"""Pixels where the model's own are 384: 1.5, 1.8 and 2.3 times fewer multiply-accumulates."""
VISION_LAYERS = {"world": (1, 2, 3), "full": VISION_PRESETS["meter"][0]}
"""Where METER's vision encoder merges, by scale: the small one has 4 layers, the full-size one 11."""
VISION_RATIOS = (0.1, 0.2, 0.3)


@dataclass(frozen=True)
class Row:
    """One model on one task.

    Attributes:
        model: what it is called.
        cell: of the first seed.
        seeds: how many there shall be.
        direction: of retrieval: "TR" finds the text for an image, "IR" the image for a text; else "".
        paper: what the paper has in its place.
        series: line of a plot that it belongs to.
    """

    model: str
    cell: Cell
    seeds: int = 1
    direction: str = ""
    paper: Figures | None = None
    series: str = ""

    @property
    def pair(self) -> str:
        """Backbone and task."""
        return f"{self.cell.backbone}/{self.cell.task}"

    @property
    def where(self) -> str:
        """The same, with the direction of retrieval."""
        return f"{self.pair} {self.direction}".rstrip()

    @property
    def changed(self) -> bool:
        """Whether it is another model than the original, fast or small in some way."""
        return self.cell != self.cell.original and self.cell.blank == "none"

    @property
    def tuned(self) -> tuple[Cell, ...]:
        """A cell per seed."""
        return tuple(replace(self.cell, seed=seed) for seed in range(self.seeds))

    @property
    def untuned(self) -> tuple[Cell, ...]:
        """The same without fine-tuning."""
        return tuple(cell.untuned for cell in self.tuned) if self.changed else ()


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        name: on the command line.
        title: with the paper's name of it.
        note: below it.
        rows: in order.
        kind: what its columns are: of "cells", of full-size models' "macs", or of "training".
    """

    name: str
    title: str
    note: str
    rows: tuple[Row, ...] = ()
    kind: Literal["cells", "macs", "training"] = "cells"

    @property
    def pairs(self) -> set[str]:
        """Backbones and tasks that it is about, such as "vilt/nlvr2"."""
        return {row.pair for row in self.rows}

    def of(self, pairs: Collection[str]) -> "Table":
        """The rows of some of them."""
        return replace(self, rows=tuple(row for row in self.rows if row.pair in pairs))

    @property
    def cells(self) -> list[Cell]:
        """What must be tested: the first seed of all rows before the second of any; what was not fine-tuned last."""
        tuned = [cell for row in self.rows for cell in row.tuned]
        untuned = [cell for row in self.rows for cell in row.untuned if self.kind == "cells"]
        return sorted(tuned, key=attrgetter("seed")) + sorted(untuned, key=attrgetter("seed"))


def tables(setup: Setup, seeds: int | None = None) -> dict[str, Table]:
    """All tables by name.

    Args:
        setup: for the recipes, which say what PuMer is.
        seeds: of every row; None: three for the ViLT rows of Table 1 whose original is trained here, else one.
    """
    made = (make(setup, seeds) for make in _MAKERS)
    return {table.name: table for table in made}


def _table_1(setup: Setup, seeds: int | None) -> Table:
    rows = [
        row
        for backbone in BACKBONES
        for task in TASKS
        for row in _pair(setup, backbone, task, seeds or _seeds(setup, f"{backbone}/{task}"))
    ]
    note = (
        "Retrieval: recall@1 of text retrieval (TR: the text for an image) and of image retrieval (IR). Where PuMer's "
        "ratios are given, they differ from the paper's for the task. Small models: VQAv2's rates were chosen "
        "on the questions of this table, those of retrieval on COCO's restval images, which none is tested on."
    )
    return Table("table1", "Table 1: five tasks, two models", note, tuple(rows))


def _seeds(setup: Setup, pair: str) -> int:
    """One where the original is given: it has no others."""
    return SEEDS_OF_VILT if pair.startswith("vilt/") and pair not in setup.trained else 1


def _pair(setup: Setup, backbone: str, task: str, seeds: int) -> Iterator[Row]:
    original, pumer = Cell(backbone, task), pumer_cell(setup, backbone, task)
    for direction in DIRECTIONS if task in RETRIEVAL else ("",):
        before, after = TABLE_1.get(f"{backbone}/{task} {direction}".rstrip(), (None, None))
        yield Row("original", original, seeds, direction, before)
        yield Row(_pumer_name(pumer), pumer, seeds, direction, after)


def _vision(setup: Setup, seeds: int | None) -> Table:
    """What the paper has not: fewer tokens before the cross-modal layers, where most of METER's arithmetic is."""
    pumer = pumer_cell(setup, "meter", "vqav2")
    rows = [Row("original", pumer.original, seeds or 1), Row("PuMer", pumer, seeds or 1)]
    fusion = config_to_dict(config_from_dict(pumer.settings or {}))
    for ratio in VISION_RATIOS:
        seeing = [{"stack": "vision", "layer": layer, "merge_ratio": ratio} for layer in VISION_LAYERS[setup.scale]]
        cell = _changed(pumer, fusion | {"schedule": [*seeing, *fusion["schedule"]]})
        rows.append(Row(f"and {ratio} merged in vision layers", cell, seeds or 1))
    layers = ", ".join(map(str, VISION_LAYERS[setup.scale]))
    note = f"Image tokens are also merged in layers {layers} of the vision encoder; the ratio is of those that enter."
    return Table("vision", "Beyond the paper: merging in METER's vision encoder too", note, tuple(rows))


def _pumer_name(cell: Cell) -> str:
    """PuMer; with its ratios, where they are not the paper's for the task."""
    settings = cell.settings or {}
    papers = PuMerConfig.preset(cell.backbone, cell.task)
    if config_from_dict(settings) == papers:
        return "PuMer"
    ratios = [str(settings[name]) for name in RATIOS if name in settings]
    return f"PuMer, {' / '.join(ratios) or 'another schedule'}"


def _unimodal(setup: Setup, seeds: int | None) -> Table:
    """Unimodal baselines; retrieval has nothing to rank by without one of the two inputs."""
    rows = []
    for backbone in BACKBONES:
        for task in TASKS:
            if task not in RETRIEVAL:
                cell = Cell(backbone, task)
                rows += [Row("original", cell, seeds or 1)]
                rows += [Row("text only", replace(cell, blank="image"), seeds or 1)]
                rows += [Row("image only", replace(cell, blank="text"), seeds or 1)]
    note = "Fine-tuned and tested with a grey image, or with an empty sentence, by the original's recipe."
    return Table("twins", "Unimodal baselines: what can be answered from either input alone", note, tuple(rows))


def _table_2(setup: Setup, seeds: int | None) -> Table:
    """Smaller images, unreduced, against PuMer."""
    original, pumer = Cell("meter", "vqav2"), pumer_cell(setup, "meter", "vqav2")
    own = max(TABLE_2)

    def pixels(size: int) -> int | None:
        return None if size == own else size * setup.native // own

    rows = [
        Row(f"{pixels(size)} pixels", replace(original, image_size=pixels(size)), seeds or 1, paper=numbers)
        for size, numbers in TABLE_2.items()
        if size != own
    ]
    for size, numbers in TABLE_2_PUMER.items():
        name = f"PuMer, {pixels(size) or setup.native} pixels"
        rows.append(Row(name, replace(pumer, image_size=pixels(size)), seeds or 1, paper=numbers))
    rows.append(Row(f"original, {setup.native} pixels", original, seeds or 1, paper=TABLE_2[own]))
    note = (
        "Models for smaller images are fine-tuned by PuMer's recipe, without a teacher; PuMer for smaller images "
        "has the unreduced model for them as teacher."
    )
    return Table("table2", "Table 2: smaller images against PuMer", note, tuple(rows))


def _table_3(setup: Setup, seeds: int | None) -> Table:
    """PuMer without one of its parts."""
    pumer = pumer_cell(setup, "vilt", "vqav2")
    settings = pumer.settings or {}
    parts = {
        "original": pumer.original,
        "PuMer": pumer,
        "without pruning": _changed(pumer, settings | {"prune_ratio": 0.0}),
        "without merging": _changed(pumer, settings | {"merge_ratio": 0.0, "text_merge_ratio": 0.0}),
        "without distillation": replace(pumer, teacher=False),
    }
    rows = [Row(name, cell, seeds or 1, paper=TABLE_3[name]) for name, cell in parts.items()]
    note = "What is not fine-tuned knows no distillation: there the last row is PuMer's."
    return Table("table3", "Table 3: without pruning, merging, distillation", note, tuple(rows))


def _table_4(setup: Setup, seeds: int | None) -> Table:
    """Ratios, number of layers, locations."""
    rows = []
    for choice, designs in TABLE_4.items():
        for (layers, *ratios), numbers in designs.items():
            settings = {"method": "pumer", "layers": list(layers), **dict(zip(RATIOS, ratios, strict=True))}
            name = f"{choice}: layers {', '.join(map(str, layers))}; {' / '.join(map(str, ratios))}"
            rows.append(Row(name, reduced("vilt", "snli_ve", settings), seeds or 1, paper=numbers))
    rows.append(Row("original", Cell("vilt", "snli_ve"), seeds or 1, paper=TABLE_4_ORIGINAL))
    note = "Ratios: of pruning / image merging / text merging."
    return Table("table4", "Table 4: ratios, number of layers, locations", note, tuple(rows))


def _figure_5(setup: Setup, seeds: int | None) -> Table:
    """All methods at several strengths, and smaller images."""
    original = Cell("vilt", "vqav2")
    rows = [Row("original", original, seeds or 1)]
    for method, strengths in STRENGTHS.items():
        for settings in strengths:
            cell = reduced("vilt", "vqav2", {"method": method, **settings})
            rows.append(Row(f"{method}: {_described(settings)}", cell, seeds or 1, series=method))
    for size in SIZES:
        cell = replace(original, image_size=size * setup.native // max(TABLE_2))
        rows.append(Row(f"{RESOLUTION}: {cell.image_size} pixels", cell, seeds or 1, series=RESOLUTION))
    note = (
        "All start from the same checkpoint and are fine-tuned for as many steps at the same rates, with the original "
        "as teacher; smaller images without one. Small models: PuMer, ToMe and EViT were part of the checkpoint's "
        "pre-training, the others were not, and the rates were chosen, among three, on the questions of this table. "
        "What PuMer has at a method's speed is interpolated between its settings next to it, but those that another "
        "of its settings beats in speed and accuracy; more settings of PuMer were tried than of any other. "
        f"The paper has PuMer above DynamicViT and ToMe at {FIGURE_5_SPEEDUP}x, and prints no numbers."
    )
    return Table("figure5", "Figure 5: accuracy against throughput, all methods", note, tuple(rows))


def _table_7(setup: Setup, seeds: int | None) -> Table:
    """Full-size models, which are not trained for it."""
    rows = [Row("", Cell(backbone, task)) for backbone, task in (where.split("/") for where in TABLE_7)]
    note = (
        "Exact, of the layers' shapes: matrix products and convolutions, the reduction's own included; 384 pixels, 32 "
        "words, one example. METER encodes the sentence about two images once here; the paper's count has it twice."
    )
    return Table("table7", "Table 7: multiply-accumulates of the full-size models", note, tuple(rows), "macs")


def _training(setup: Setup, seeds: int | None) -> Table:
    """What fine-tuning took."""
    rows = []
    for pair in PAIRS:
        backbone, task = pair.split("/")
        pumer = pumer_cell(setup, backbone, task)
        rows += [Row("original", pumer.original), Row("PuMer, with teacher", pumer)]
        if pair == "vilt/vqav2":
            rows.append(Row("PuMer, without", replace(pumer, teacher=False)))
            rows.append(
                Row(
                    "DynamicViT, with teacher",
                    reduced(backbone, task, {"method": "dynamicvit", **STRENGTHS["dynamicvit"][1]}),
                )
            )
    note = (
        "From the runs themselves, which may have shared the machine, evaluations that stop them included; a step "
        "alone is timed by benchmarks/training_step.py. The paper sees 15 to 20% faster training than with learned "
        "pruning (DynamicViT)."
    )
    return Table("training", "Training time", note, tuple(rows), "training")


def _changed(cell: Cell, settings: Mapping[str, Any]) -> Cell:
    return replace(cell, reduction=json.dumps(settings, sort_keys=True))


def _described(settings: Mapping[str, Any]) -> str:
    parts = [f"{name.replace('_', ' ')} {value}" for name, value in settings.items() if name != "layers"]
    layers = settings["layers"]
    shown = f"{layers[0]} to {layers[-1]}" if len(layers) > 4 else ", ".join(map(str, layers))
    return ", ".join([f"layers {shown}", *parts])


_MAKERS: Sequence[Callable[[Setup, int | None], Table]] = (
    _table_1,
    _table_2,
    _table_3,
    _table_4,
    _table_7,
    _figure_5,
    _vision,
    _training,
    _unimodal,
)


def chosen(all_tables: Mapping[str, Table], only: Sequence[str], pairs: Sequence[str]) -> list[Table]:
    """Some of the tables, with the rows of some of the pairs of backbone and task.

    Args:
        all_tables: by name.
        only: names; none: all.
        pairs: such as "vilt/nlvr2"; none: all.
    """
    found = [table for name, table in all_tables.items() if not only or name in only]
    if not pairs:
        return found
    return [table.of(pairs) for table in found if table.pairs & set(pairs)]

"""Does the text decide which patches are pruned? On the built-in world, where the place of every object is known.

Asks several questions about each image of split "val" and prunes with the same weights in three ways: by the text's
attention (PuMer), by the image's own [CLS] (modality-agnostic) and by chance; nothing is merged. After every reducing
layer it measures how much of the objects that the question is about is left, and how similar the remaining patches of
two questions about one image are. Writes `benchmarks/results/text-matters.json` and a figure.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

import pumer
from benchmarks.common import RESULTS, parser
from benchmarks.pretrain_small.patches import patch_objects
from pumer.checkpoint import load, load_processor
from pumer.evaluation.statistics import bootstrap
from pumer.reducers import ClsPruningConfig, PuMerConfig, RandomPruningConfig, ReductionConfig
from pumer.utils.files import write_json
from pumer.utils.provenance import collect
from pumer.utils.shipped import SMALL
from pumer.visualization import drawing, shapes
from pumer.world.questions import ask
from pumer.world.scenes import Scene, generator, make_scene, render
from pumer.world.sentences import Question

IMAGES = Path(__file__).parent.parent / "docs" / "images"
METHODS: dict[str, type[PuMerConfig | ClsPruningConfig | RandomPruningConfig]] = {
    "text": PuMerConfig,
    "[CLS]": ClsPruningConfig,
    "chance": RandomPruningConfig,
}
LAYERS = {"vilt": (2, 5, 8), "meter": (0, 2, 4, 6)}
RATIOS = (0.1, 0.3)
QUESTIONS = 4
"""About each image."""
_NEXT = {"text": "[CLS]", "[CLS]": "chance"}
"""The method that each must beat."""
Asked = tuple[Scene, list[Question]]


def main() -> None:
    """Parse, measure, write."""
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=500)
    options.add_argument("--batch", type=int, default=16, help="images per forward")
    options.add_argument("--out", type=Path, default=RESULTS / "text-matters.json")
    options.add_argument("--figure", type=Path, default=IMAGES / "text-matters.png")
    arguments = options.parse_args()
    asked = [draw_questions(index) for index in range(arguments.images)]
    rows = []
    for backbone in LAYERS:
        for ratio in RATIOS:
            title = f"{backbone}, {ratio:g} pruned in each of layers {', '.join(map(str, LAYERS[backbone]))}"
            measured = {
                name: measure(Pruner(backbone, reduction(backbone, name, ratio)), asked, arguments.batch, title)
                for name in METHODS
            }
            rows += [{"backbone": backbone, "prune_ratio": ratio, **row} for row in compare(measured, LAYERS[backbone])]
            Console().print(shown(rows, backbone, ratio, title))
    settings = {"images": arguments.images, "questions": QUESTIONS, "split": "val"}
    write_json(arguments.out, {"rows": rows, "provenance": collect(settings)})
    figure("vilt", 0.3, asked[0]).quantize(256).save(arguments.figure, optimize=True)


def draw_questions(index: int) -> Asked:
    """A scene with different questions, each about some of its objects."""
    rng = generator(0, "val", index)
    scene = make_scene(rng)
    found: dict[str, Question] = {}
    while len(found) < QUESTIONS:
        question = ask(scene, rng)
        if question.targets:
            found[question.text] = question
    return scene, list(found.values())


def reduction(backbone: str, method: str, ratio: float) -> ReductionConfig:
    """Pruning alone, at the paper's layers."""
    return METHODS[method](layers=LAYERS[backbone], prune_ratio=ratio)


def measure(left: "Pruner", asked: Sequence[Asked], batch: int, title: str) -> list[list[dict[str, float]]]:
    """What is left after each layer, per image: shares of all patches and of the named objects', likeness."""
    found = []
    for start in track(range(0, len(asked), batch), title, transient=True):
        part = asked[start : start + batch]
        for (scene, questions), kept in zip(part, left(part), strict=True):
            owner = patch_objects(scene).reshape(-1)
            named = [np.isin(owner, (*question.targets, *question.anchors)) for question in questions]
            found.append([_after_layer(kept[:, layer], named) for layer in range(kept.shape[1])])
    return found


def _after_layer(kept: np.ndarray, named: Sequence[np.ndarray]) -> dict[str, float]:
    """Means over the questions about an image; kept is (questions, patches)."""
    return {
        "patches": float(kept.mean()),
        "named": float(np.mean([row[about].mean() for row, about in zip(kept, named, strict=True)])),
        "likeness": float(np.mean([(a & b).sum() / (a | b).sum() for a, b in combinations(kept, 2)])),
    }


class Pruner:
    """A small model that reports which patches are left for a question.

    Args:
        backbone: "vilt" or "meter", whose shipped checkpoint is taken.
        config: what prunes.
    """

    def __init__(self, backbone: str, config: ReductionConfig) -> None:
        checkpoint = str(SMALL[f"small:{backbone}"])
        self.model, self.processor = pumer.patch(load(checkpoint), config).eval(), load_processor(checkpoint)

    @torch.inference_mode()
    def __call__(self, asked: Sequence[Asked]) -> np.ndarray:
        """Bool (images, questions, layers, patches)."""
        images = [Image.fromarray(render(scene)) for scene, questions in asked for _ in questions]
        texts = [question.text for _, questions in asked for question in questions]
        with pumer.trace(self.model) as trace:
            self.model(**self.processor(images, texts, padding=True, return_tensors="pt"))
        (recorded,) = trace.forwards
        pruned, cell = recorded.pruned_at[:, recorded.text_tokens :], recorded.patch_cell
        order = cell.masked_fill(cell < 0, cell.shape[1]).argsort(dim=1)[:, : int((cell[0] >= 0).sum())]
        pruned = pruned.gather(1, order)
        left = torch.stack([(pruned < 0) | (pruned > place) for place in range(len(recorded.places))], dim=1)
        return left.unflatten(0, (len(asked), QUESTIONS)).numpy()


def compare(measured: Mapping[str, list[list[dict[str, float]]]], layers: Sequence[int]) -> list[dict[str, Any]]:
    """Rows per layer and method; intervals by bootstrap over images, differences paired."""
    rows = []
    for number, layer in enumerate(layers):
        values: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
        for method, images in measured.items():
            for name in images[0][number]:
                values[method][name] = np.array([image[number][name] for image in images])
        for method, columns in values.items():
            row: dict[str, Any] = {"layer": layer, "method": method, "images": len(columns["named"])}
            row |= {name: bootstrap(column.tolist()) for name, column in columns.items()}
            if method in _NEXT:
                more = columns["named"] - values[_NEXT[method]]["named"]
                row |= {"against": _NEXT[method], "more": bootstrap(more.tolist())}
            rows.append(row)
    return rows


def shown(rows: Sequence[Mapping[str, Any]], backbone: str, ratio: float, title: str) -> Table:
    """The rows of one model and ratio."""
    made = Table(title=title, title_justify="left")
    for name in ("layer", "pruned by", "patches left", "of named objects", "more than the next", "likeness"):
        made.add_column(name, justify="right")
    for row in rows:
        if (row["backbone"], row["prune_ratio"]) == (backbone, ratio):
            more = _percent(row["more"], sign="+") if "more" in row else ""
            numbers = [_percent(row[name]) for name in ("patches", "named")]
            made.add_row(str(row["layer"]), row["method"], *numbers, more, _percent(row["likeness"]))
    return made


def _percent(interval: Mapping[str, float], sign: str = "") -> str:
    mean, low, high = (format(100 * interval[key], f"{sign}.1f") for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def figure(backbone: str, ratio: float, asked: Asked) -> Image.Image:
    """One image: a row per question, a column per method; pruned patches are grey, named objects framed."""
    scene, questions = asked
    rows = []
    left = {method: Pruner(backbone, reduction(backbone, method, ratio))([asked])[0][:, -1] for method in METHODS}
    for number, question in enumerate(questions):
        panels = [
            drawing.panel(_drawn(scene, question, kept), f"by {method}", [drawing.Key(f"{kept.sum()} patches left")])
            for method, kept in ((method, found[number]) for method, found in left.items())
        ]
        rows += [drawing.lines([question.text], shapes.WIDTH), drawing.beside(panels)]
    return drawing.framed(drawing.stacked(rows)).image(1)


def _drawn(scene: Scene, question: Question, kept: np.ndarray) -> drawing.Page:
    edge, side = 264, round(len(kept) ** 0.5)
    shown = Image.fromarray(render(scene)).resize((edge, edge), Image.Resampling.BICUBIC)
    page = drawing.Page(edge, edge, [shapes.ImageShape(0, 0, edge, edge, shown)])
    page.place(drawing.hatched([None if left else shapes.GONE for left in kept], side, side, edge, edge), 0, 0)
    scale = edge / scene.config.image_size
    for index in (*question.targets, *question.anchors):
        box = [scale * place for place in scene.objects[index].box]
        page.shapes.append(shapes.Strokes(0, 0, drawing.frame(*box), shapes.INK, 3))
    return page


if __name__ == "__main__":
    main()

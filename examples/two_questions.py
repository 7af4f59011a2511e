"""What a reduced model keeps, prunes and merges for two questions about one image: the drawing at the top of README.

python examples/two_questions.py docs/images/tokens.png
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

from PIL import Image

import pumer
from pumer.tasks import Example
from pumer.tasks.session import Session
from pumer.visualization.drawing import Drawing, Page, frame, palette, together
from pumer.visualization.shapes import INK, ImageShape, Strokes
from pumer.visualization.visualize import ask
from pumer.world.scenes import Scene, generator, make_scene, render
from pumer.world.sentences import matching

SCENE = 93
"""Number of a validation scene of the built-in world whose two objects are far from each other."""
QUESTIONS = {
    "what color is the large dotted triangle?": {"size": 1, "texture": 2, "shape": 2},
    "where is the striped circle?": {"texture": 1, "shape": 0},
}
"""With the attributes of what each is about, see `pumer.world.sentences.matching`."""
REDUCTION = pumer.PuMerConfig(layers=(2, 5, 8), prune_ratio=0.25, merge_ratio=0.15, text_merge_ratio=0.2)
"""As many tokens as the paper's, 145 -> 31, but more of them pruned than merged, so that one sees what is kept."""
WIDTH = 1065
"""Pixels of the PNG file."""


def main() -> None:
    """Draw the scene, ask, and write the drawing, a PNG file with few colours, an SVG or a GIF."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="PNG, SVG or GIF file to write")
    out = parser.parse_args().out
    drawing = asked(make_scene(generator(0, "val", SCENE)))
    if out.suffix == ".png":
        page = drawing.last
        image = page.image(WIDTH / page.width)
        few = image.quantize(palette=palette([page], [image]), dither=Image.Dither.NONE)
        few.save(out, format="PNG", optimize=True)
    else:
        drawing.save(out)


def asked(scene: Scene) -> Drawing:
    """The small ViLT that ships, reduced, before each question: one drawing below the other."""
    session, image, drawings = Session.open("small:vilt"), Image.fromarray(render(scene)), []
    pumer.patch(session.model, REDUCTION)
    for question, attributes in QUESTIONS.items():
        (target,) = matching(scene, attributes)
        drawing = ask(session, Example(0, (image,), question)).drawing
        drawings.append(replace(drawing, page=partial(framed, drawing, scene.objects[target].box, image.width)))
    return together(drawings)


def framed(drawing: Drawing, box: tuple[int, int, int, int], pixels: int, at: int) -> Page:
    """A page of a drawing with a frame around what is asked about, in images so many pixels wide."""
    page = drawing.page(at)
    for shown in [shape for shape in page.shapes if isinstance(shape, ImageShape)]:
        sides = frame(*(edge * shown.width / pixels for edge in box))
        page.shapes.append(Strokes(shown.left, shown.top, sides, INK, 3))
    return page


if __name__ == "__main__":
    main()

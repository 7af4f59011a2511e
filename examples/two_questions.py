"""What a reduced model keeps, prunes and merges for two questions about one image: the drawing at the top of README.

python examples/two_questions.py docs/images/tokens.png
"""

import argparse
from pathlib import Path

from PIL import Image

import pumer
from pumer.tasks import Example
from pumer.tasks.session import Session
from pumer.visualization.drawing import INK, Drawing, Page, Picture, Strokes, together
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
        page = drawing.pages[-1]
        pixels = page.image(WIDTH / page.width).quantize(128, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        pixels.save(out, format="PNG", optimize=True)
    else:
        drawing.save(out)


def asked(scene: Scene) -> Drawing:
    """The small ViLT that ships, reduced, before each question: one drawing below the other."""
    session, image, drawings = Session.open("small:vilt"), Image.fromarray(render(scene)), []
    pumer.patch(session.model, REDUCTION)
    for question, attributes in QUESTIONS.items():
        (target,) = matching(scene, attributes)
        drawings.append(ask(session, Example(0, (image,), question))[1])
        for page in drawings[-1].pages:
            page.shapes += [frame(shape, scene.objects[target].box, image.width) for shape in images_of(page)]
    return together(drawings)


def images_of(page: Page) -> list[Picture]:
    """The image, and the one with what was pruned."""
    return [shape for shape in page.shapes if isinstance(shape, Picture)]


def frame(shown: Picture, box: tuple[int, int, int, int], pixels: int) -> Strokes:
    """The object that is asked about, in an image so many pixels wide."""
    left, top, right, bottom = (edge * shown.width / pixels for edge in box)
    sides = (left, top, right, top), (right, top, right, bottom), (left, bottom, right, bottom), (left, top, left, bottom)
    return Strokes(shown.left, shown.top, sides, INK, 3)


if __name__ == "__main__":
    main()

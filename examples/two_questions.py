"""What a reduced model keeps, prunes and merges for two questions about one image: the drawing at the top of README.

python examples/two_questions.py docs/images/tokens.png
"""

import argparse
import tempfile
from pathlib import Path

from PIL import Image

import pumer
from pumer.tasks import Example
from pumer.tasks.session import Session
from pumer.visualization.drawing import stacked
from pumer.visualization.visualize import ask
from pumer.world.scenes import Scene, generator, make_scene, render
from pumer.world.sentences import Question
from pumer.world.sentences import ask as ask_about

PAPER = pumer.PuMerConfig.preset("vilt", "vqav2")


def main() -> None:
    """Draw a scene, ask, and write the drawing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="PNG file to write")
    parser.add_argument("--scene", type=int, default=0, help="number of the world's validation scene")
    arguments = parser.parse_args()
    drawing = answered(*questions(arguments.scene))
    drawing.quantize(256).save(arguments.out, format="PNG", optimize=True)


def questions(number: int) -> tuple[Scene, list[Question]]:
    """A scene of the built-in world and the first two questions that are about different objects of it."""
    rng = generator(0, "val", number)
    scene = make_scene(rng)
    first = second = ask_about(scene, rng)
    while not (first.targets and second.targets) or set(first.targets) & set(second.targets):
        first, second = second, ask_about(scene, rng)
    return scene, [first, second]


def answered(scene: Scene, asked: list[Question]) -> Image.Image:
    """The small ViLT that ships, reduced as in the paper, before each question: one drawing below the other."""
    session = Session.open("small:vilt")
    pumer.patch(session.model, PAPER)
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "scene.png"
        Image.fromarray(render(scene)).save(image)
        examples = [Example(0, (image,), question.text) for question in asked]
        return stacked([ask(session, example)[1] for example in examples])


if __name__ == "__main__":
    main()

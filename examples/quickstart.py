"""Ask a model about your own image, unreduced and reduced, and draw what became of every token.

    python examples/quickstart.py photo.jpg "what is on the sofa?"
    python examples/quickstart.py photo.jpg "is there a red circle?" --model small:vilt

The first downloads ViLT fine-tuned on VQAv2 from the Hugging Face hub (470 MB). The second uses a small model that
ships with the package; it knows only the shapes and colours of the built-in data, so its answers about a photo mean
little, but the drawing shows what is pruned and merged.
"""

import argparse
import sys
from pathlib import Path

import pumer

REDUCTION = pumer.PuMerConfig(layers=(2, 5, 8), prune_ratio=0.1, merge_ratio=0.3, text_merge_ratio=0.2)
"""The paper's: in layers 2, 5 and 8 prune 10% of the patches, merge 30% of the patches and 20% of the words."""


def main() -> None:
    """Read the arguments, print the answers and write the drawing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path, help="image file")
    parser.add_argument("question")
    parser.add_argument("--model", default="dandelin/vilt-b32-finetuned-vqa", help="hub name, folder or small:vilt")
    parser.add_argument("--out", type=Path, default=Path("tokens.png"), help="drawing to write")
    arguments = parser.parse_args()

    predictor = pumer.Predictor(arguments.model)
    model = pumer.patch(predictor.model, REDUCTION)
    with pumer.disabled(model):
        print(f"unreduced: {predictor(arguments.image, arguments.question)}")
    with pumer.trace(model) as trace:
        answer = predictor(arguments.image, arguments.question)
    print(f"reduced:   {answer}")
    print(pumer.plan(model, text_length=8))  # tokens and multiply-accumulates of each layer, for 8 words
    drawing = pumer.draw(trace, arguments.image, arguments.question, answer)
    drawing.save(arguments.out)
    print(f"drawing:   {arguments.out}")


if __name__ == "__main__":
    try:
        main()
    except pumer.InputError as error:  # an image or a model that cannot be read: one line says which, and what to do
        sys.exit(f"error: {error}")

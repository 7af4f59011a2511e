"""Fixtures: folders with a tiny checkpoint and its processor, as `from_pretrained` reads them."""

import pytest
import torch

ANSWERS = ("blue", "green", "red", "yes", "no")


@pytest.fixture(scope="session")
def tiny_vilt(tmp_path_factory):
    """Folder of a random ViLT of 12 thin layers for 32-pixel images (4 x 4 patches), with its processor."""
    from transformers import BertTokenizer, ViltConfig, ViltForQuestionAnswering, ViltImageProcessorPil, ViltProcessor

    folder = tmp_path_factory.mktemp("tiny-vilt")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "colour", "is", "this", "it", "?", *ANSWERS]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    config = ViltConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=12,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=12,
        image_size=32,
        patch_size=8,
        initializer_range=0.2,
        id2label=dict(enumerate(ANSWERS)),
        label2id={answer: index for index, answer in enumerate(ANSWERS)},
    )
    torch.manual_seed(0)
    ViltForQuestionAnswering(config).save_pretrained(folder)
    images = ViltImageProcessorPil(
        size={"shortest_edge": 32}, size_divisor=8, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    ViltProcessor(images, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_meter(tiny_vilt, tmp_path_factory):
    """Folder of a random METER of 3 pairs for 32-pixel images (4 x 4 patches), with ViLT's words and answers."""
    from transformers import AutoTokenizer

    from pumer.models.meter import MeterConfig, MeterForQuestionAnswering, MeterImageProcessorPil, MeterProcessor

    folder = tmp_path_factory.mktemp("tiny-meter")
    tokenizer = AutoTokenizer.from_pretrained(tiny_vilt)
    shape = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "initializer_range": 0.2}
    text = {"num_hidden_layers": 1, "vocab_size": len(tokenizer), "max_position_embeddings": 13, "pad_token_id": 0}
    vision = {"num_hidden_layers": 2, "image_size": 32, "patch_size": 8}
    config = MeterConfig(
        text_config=shape | text,
        vision_config=shape | vision,
        num_cross_modal_pairs=3,
        id2label=dict(enumerate(ANSWERS)),
        label2id={answer: index for index, answer in enumerate(ANSWERS)},
        **shape,
    )
    torch.manual_seed(0)
    MeterForQuestionAnswering(config).save_pretrained(folder)
    images = MeterImageProcessorPil(size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    MeterProcessor(images, tokenizer).save_pretrained(folder)
    return folder

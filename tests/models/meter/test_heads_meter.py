"""METER's heads: losses, what is shared, and encodings that are kept."""

import pytest
import torch
from tiny import TINY
from transformers import AutoModelForMaskedLM, AutoModelForVisualQuestionAnswering

import pumer
from pumer.models import meter
from pumer.utils.errors import InputError

HEADS = [head for head in TINY["meter"].heads if head != "MeterModel"]
GRIDS = [(10, 6, 6), (6, 6, 6), (3, 6, 6)]


def build(head, **settings):
    return TINY["meter"].build(f"MeterFor{head}", layers=1, **settings)


def largest(a, b):
    return (a - b).abs().max().item()


@pytest.mark.parametrize("head", HEADS)
def test_saved_and_loaded(head, tmp_path):
    model, inputs = TINY["meter"].build(head), TINY["meter"].batch(GRIDS, head)
    pumer.save(model, tmp_path)
    again = pumer.load(tmp_path)
    assert type(again) is type(model)
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    # Where a weight lies in memory decides how some processors add up a product with one column.
    with torch.no_grad():
        assert torch.allclose(again(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("auto", "head"),
    [(AutoModelForVisualQuestionAnswering, "QuestionAnswering"), (AutoModelForMaskedLM, "MaskedLM")],
)
def test_auto_classes(auto, head, tmp_path):
    build(head).save_pretrained(tmp_path)
    assert type(auto.from_pretrained(tmp_path)).__name__ == f"MeterFor{head}"


@pytest.mark.parametrize("head", HEADS)
def test_outputs(head):
    model, inputs = TINY["meter"].build(head), TINY["meter"].batch(GRIDS, head)
    output = model(**inputs, output_hidden_states=True)
    assert model(**inputs).hidden_states is None
    pairs = output.hidden_states if head in TINY["meter"].two_images else [output.hidden_states]
    for text, image in pairs:
        assert [len(text), len(image)] == [4, 4]
        assert (text[0].shape, image[0].shape) == ((3, 10, 32), (3, 37, 32))
    assert torch.equal(model(**inputs, return_dict=False)[0], output.logits)


# ---------------------------------------------------------------- losses


def test_question_answering_sums_over_the_answers():
    model, labels = build("QuestionAnswering"), torch.rand(3, 7)
    output = model(**TINY["meter"].batch(GRIDS), labels=labels)
    probability = output.logits.sigmoid()
    entropy = -(labels * probability.log() + (1 - labels) * (1 - probability).log())
    assert output.loss.item() == pytest.approx(entropy.sum(dim=1).mean().item(), rel=1e-4)


def test_cross_entropies():
    model, labels = build("ImagesAndTextClassification"), torch.tensor([0, 6, 2])
    output = model(**TINY["meter"].batch(GRIDS, "MeterForImagesAndTextClassification"), labels=labels)
    assert output.loss.item() == pytest.approx(-output.logits.log_softmax(1)[range(3), labels].mean().item(), rel=1e-4)
    model, words = build("MaskedLM"), torch.full((3, 10), -100)
    words[0, 2], words[1, 4] = 7, 8
    output = model(**TINY["meter"].batch(GRIDS), labels=words)
    log = output.logits.log_softmax(2)
    assert output.loss.item() == pytest.approx(-(log[0, 2, 7] + log[1, 4, 8]).item() / 2, rel=1e-4)


def test_retrieval_takes_no_labels():
    with pytest.raises(InputError, match="retrieval takes no labels"):
        build("ImageAndTextRetrieval")(**TINY["meter"].batch(GRIDS), labels=torch.ones(3))


@pytest.mark.parametrize("head", HEADS)
def test_every_weight_learns(head):
    model, inputs = TINY["meter"].build(head), TINY["meter"].batch(GRIDS, head)
    model(**inputs).logits.square().sum().backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    unused = {"text_pooler", "image_pooler"} if head == "MeterForMaskedLM" else set()
    if head == "MeterForMaskedLM":  # nothing reads the image after the last pair
        unused.add(f"image_layers.{model.config.num_cross_modal_pairs - 1}")
    assert {name for name in without if not any(word in name for word in unused)} == set()


# ---------------------------------------------------------------- what is shared


def test_the_decoder_of_words_is_tied(tmp_path):
    model = build("MaskedLM", tie_word_embeddings=True)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    apart = build("MaskedLM", tie_word_embeddings=False)
    assert apart.get_output_embeddings().weight is not apart.get_input_embeddings().weight


def test_a_vocabulary_can_grow():
    model = build("MaskedLM", tie_word_embeddings=True)
    model.resize_token_embeddings(120)
    assert model(**TINY["meter"].batch(GRIDS)).logits.shape == (3, 10, 120)


def test_a_tie_between_different_widths_is_refused():
    wide = {"hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 1}
    with pytest.raises(InputError, match="width 48 cannot score states of width 32; set tie_word_embeddings=False"):
        build("MaskedLM", tie_word_embeddings=True, text_config=wide)


# ---------------------------------------------------------------- two images


def test_each_image_meets_the_sentence():
    model = build("ImagesAndTextClassification")
    inputs = TINY["meter"].batch(GRIDS, "MeterForImagesAndTextClassification")
    text = model.encode_text(inputs["input_ids"], inputs["attention_mask"])
    images = [model.encode_image(image) for image in inputs["pixel_values"].unbind(dim=1)]
    with torch.no_grad():
        pooled = [model.meter.fuse(text, image, kind).pooler_output for kind, image in enumerate(images, start=1)]
        logits = model(**inputs).logits
        assert largest(logits, model.classifier(torch.cat(pooled, dim=1))) < 1e-5
        assert largest(logits, model(encoded_text=text, encoded_image=images).logits) < 1e-5


def test_the_sentence_is_encoded_once():
    model = build("ImagesAndTextClassification")
    calls = []
    model.meter.text_model.register_forward_hook(lambda *_: calls.append(1))
    model(**TINY["meter"].batch(GRIDS, "MeterForImagesAndTextClassification"))
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values": torch.zeros(3, 3, 48, 48)}, "reads .batch, 2 images"),
        ({"pixel_values": torch.zeros(3, 1, 3, 48, 48)}, "reads .batch, 2 images"),
        ({"pixel_values": None}, "exactly one of pixel_values and encoded_image"),
        ({"pixel_values": None, "encoded_image": []}, "2 encodings, one per image"),
    ],
)
def test_a_wrong_number_of_images_is_refused(change, message):
    inputs = TINY["meter"].batch(GRIDS, "MeterForImagesAndTextClassification")
    with pytest.raises(InputError, match=message):
        build("ImagesAndTextClassification")(**inputs | change)


def test_too_few_kinds_of_tokens_are_refused():
    with pytest.raises(InputError, match="modality_type_vocab_size is 2 but 2 images need 3"):
        build("ImagesAndTextClassification", modality_type_vocab_size=2)


# ---------------------------------------------------------------- retrieval over all pairs


@pytest.mark.parametrize("reduced", [False, True])
def test_kept_encodings_score_as_separate_pairs_do(reduced):
    images, captions = 5, 25
    model = build("ImageAndTextRetrieval")
    if reduced:
        steps = (pumer.Step(stack="vision", layer=0, merge_ratio=0.3), pumer.Step(layer=0, merge_ratio=0.3))
        model = pumer.patch(model, pumer.PuMerConfig(schedule=steps))
    samples = [TINY["meter"].sample(i, 3 + i % 8, 6, 6) for i in range(captions)]
    inputs = TINY["meter"].collate(samples)
    with torch.no_grad():
        texts = model.encode_text(inputs["input_ids"], inputs["attention_mask"])
        pictures = model.encode_image(inputs["pixel_values"][:images])
        scores = [
            model(encoded_text=texts, encoded_image=pictures.select([i] * captions)).logits[:, 0] for i in range(images)
        ]
        for i in range(images):
            apart = [
                model(sample.words[None], pixel_values=samples[i].images[0][None]).logits[0, 0] for sample in samples
            ]
            assert largest(scores[i], torch.stack(apart)) < 1e-5
    assert torch.stack(scores).std() > 1e-2


def test_an_image_with_several_texts_is_given_once():
    model = build("ImageAndTextRetrieval")
    inputs = TINY["meter"].batch([(3 + i, 6, 6) for i in range(6)])
    pixels, index = inputs["pixel_values"][:2], torch.tensor([0, 0, 0, 1, 1, 0])
    with torch.no_grad():
        scores = model(**inputs | {"pixel_values": pixels, "image_index": index}).logits
        encoded = model.encode_image(pixels)
        kept = model(**inputs | {"pixel_values": None, "encoded_image": encoded, "image_index": index}).logits
        assert largest(scores, model(**inputs | {"pixel_values": pixels[index]}).logits) < 1e-6
        assert largest(scores, kept) < 1e-6
    with pytest.raises(InputError, match="exactly one of pixel_values and encoded_image"):
        model(**inputs, encoded_image=encoded, image_index=index)


def test_heads_are_exported():
    assert set(HEADS) <= set(meter.__all__)

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForVisualQuestionAnswering, ViltForMaskedLM, ViltForQuestionAnswering

import pumer
from pumer.checkpoint import HEADS_FILE
from pumer.models.meter import MeterForMaskedLM
from pumer.tasks import NLVR2, SNLIVE, Flickr30k, VQAv2
from pumer.utils.errors import InputError


def test_same_labels_keep_the_head(tiny_vilt):
    saved = ViltForQuestionAnswering.from_pretrained(tiny_vilt)
    labels = [saved.config.id2label[index] for index in range(5)]
    model = VQAv2.model(str(tiny_vilt), labels)
    assert all(torch.equal(ours, saved.state_dict()[name]) for name, ours in model.state_dict().items())


def test_other_labels_keep_known_rows(tiny_vilt, tmp_path):
    saved = ViltForQuestionAnswering.from_pretrained(tiny_vilt)
    model = VQAv2.model(str(tiny_vilt), ["brown", "red", "yes"])
    old, new = saved.classifier[-1], model.classifier[-1]
    assert new.weight.shape == (3, 32)
    for row, label in ((1, "red"), (2, "yes")):
        assert torch.equal(new.weight[row], old.weight[saved.config.label2id[label]])
        assert torch.equal(new.bias[row], old.bias[saved.config.label2id[label]])
    assert new.bias[0] == 0
    model.save_pretrained(tmp_path)
    again = ViltForQuestionAnswering.from_pretrained(tmp_path)
    assert again.config.id2label == {0: "brown", 1: "red", 2: "yes"}
    assert again.num_labels == 3
    assert torch.equal(again.classifier[-1].weight, new.weight)


def test_checkpoint_without_head_gets_one(tiny_vilt, tmp_path):
    body = ViltForMaskedLM.from_pretrained(tiny_vilt)
    body.save_pretrained(tmp_path)
    torch.manual_seed(1)
    model = VQAv2.model(str(tmp_path), ["red", "blue"])
    assert model.classifier[-1].out_features == 2
    for name, parameter in body.vilt.named_parameters():
        assert torch.equal(model.vilt.get_parameter(name), parameter)


def test_new_head_depends_on_the_seed_alone(tiny_vilt):
    heads = []
    for _ in range(2):
        torch.manual_seed(3)
        heads.append(VQAv2.model(str(tiny_vilt), ["brown", "red"]).classifier[-1].weight)
    assert torch.equal(*heads)


@pytest.mark.parametrize("task", [VQAv2, Flickr30k])
def test_what_cannot_be_used_is_refused(task, tiny_vilt, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertForMaskedLM"]}))
    with pytest.raises(InputError, match="is a 'bert' model; this task needs 'vilt' or 'meter'"):
        task.model(str(tmp_path), ["red"])
    (tmp_path / "config.json").write_text((tiny_vilt / "config.json").read_text())
    with pytest.raises(InputError, match=r"weights of .* cannot be loaded"):
        task.model(str(tmp_path), ["red"])


@pytest.fixture(params=["tiny_vilt", "tiny_meter"])
def checkpoint(request):
    """Folder of a question-answering model of each backbone."""
    return request.getfixturevalue(request.param)


MODALITY = {"vilt": "embeddings.token_type_embeddings.weight", "meter": "modality_embeddings.weight"}


def test_a_second_image_starts_as_the_first(checkpoint, tmp_path):
    saved = AutoModelForVisualQuestionAnswering.from_pretrained(checkpoint)
    modality = MODALITY[saved.config.model_type]
    model = NLVR2.model(str(checkpoint), NLVR2.fixed_labels)
    assert (model.config.num_images, model.config.modality_type_vocab_size) == (2, 3)
    assert (model.classifier[-1].out_features, model.config.id2label) == (2, {0: "False", 1: "True"})
    for name, parameter in saved.base_model.named_parameters():
        ours = model.base_model.get_parameter(name)
        assert torch.equal(ours[:2] if name == modality else ours, parameter), name
    table = model.base_model.get_parameter(modality)
    assert torch.equal(table[2], table[1])
    assert not torch.equal(table[1], table[0])
    model.save_pretrained(tmp_path)
    again = NLVR2.model(str(tmp_path), NLVR2.fixed_labels)
    assert all(torch.equal(ours, again.state_dict()[name]) for name, ours in model.state_dict().items())


def test_a_second_image_for_a_model_of_words(tiny_meter, tmp_path):
    body = MeterForMaskedLM.from_pretrained(tiny_meter)
    body.save_pretrained(tmp_path)
    model = NLVR2.model(str(tmp_path), NLVR2.fixed_labels)
    assert all(
        torch.equal(parameter, model.meter.get_parameter(name))
        for name, parameter in body.meter.named_parameters()
        if name != MODALITY["meter"]
    )


def test_entailment_starts_from_question_answering(checkpoint):
    saved = AutoModelForVisualQuestionAnswering.from_pretrained(checkpoint)
    model = SNLIVE.model(str(checkpoint), SNLIVE.fixed_labels)
    assert type(model) is type(saved)
    assert tuple(model.config.id2label.values()) == SNLIVE.fixed_labels
    assert all(torch.equal(p, model.base_model.get_parameter(name)) for name, p in saved.base_model.named_parameters())


def test_question_answering_starts_from_a_model_of_two_images(checkpoint, tmp_path):
    pair = NLVR2.model(str(checkpoint), NLVR2.fixed_labels)
    pair.save_pretrained(tmp_path)
    model = VQAv2.model(str(tmp_path), ["red", "blue"])
    assert model.classifier[-1].out_features == 2
    assert all(torch.equal(p, model.base_model.get_parameter(name)) for name, p in pair.base_model.named_parameters())


def ranking(folder):
    return Flickr30k.model(str(folder), ())


def test_answering_questions_gives_the_body(checkpoint):
    torch.manual_seed(1)
    model = ranking(checkpoint)
    saved = load_file(checkpoint / "model.safetensors")
    body = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("rank_output.")}
    assert all(torch.equal(tensor, saved[name]) for name, tensor in body.items())
    assert model.config.num_labels == 1
    torch.manual_seed(1)
    assert torch.equal(ranking(checkpoint).rank_output.weight, model.rank_output.weight)


def test_a_ranking_is_kept(checkpoint, tmp_path):
    model = ranking(checkpoint)
    pumer.save(model, tmp_path)
    assert torch.equal(ranking(tmp_path).rank_output.weight, model.rank_output.weight)


@pytest.mark.parametrize("apart", [False, True])
def test_a_matching_layer_gives_its_second_row(checkpoint, tmp_path, apart):
    weights = load_file(checkpoint / "model.safetensors")
    width = ranking(checkpoint).rank_output.in_features
    matching = {"itm_score.fc.weight": torch.randn(2, width), "itm_score.fc.bias": torch.randn(2)}
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    save_file(weights if apart else weights | matching, tmp_path / "model.safetensors", {"format": "pt"})
    if apart:
        save_file(matching, tmp_path / HEADS_FILE)
    model = ranking(tmp_path)
    assert torch.equal(model.rank_output.weight, matching["itm_score.fc.weight"][1:])
    assert torch.equal(model.rank_output.bias, matching["itm_score.fc.bias"][1:])

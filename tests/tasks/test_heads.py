import json

import pytest
import torch
from transformers import ViltForMaskedLM, ViltForQuestionAnswering

from pumer.errors import InputError
from pumer.tasks import VQAv2


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


def test_other_model_type_is_refused(tmp_path):
    config = {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="is a 'bert' model; this task needs 'vilt'"):
        VQAv2.model(str(tmp_path), ["red"])


def test_folder_without_weights_is_refused(tiny_vilt, tmp_path):
    (tmp_path / "config.json").write_text((tiny_vilt / "config.json").read_text())
    with pytest.raises(InputError, match=r"weights of .* cannot be loaded"):
        VQAv2.model(str(tmp_path), ["red"])

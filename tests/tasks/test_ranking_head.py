import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ViltForImageAndTextRetrieval, ViltForQuestionAnswering

import pumer
from pumer.checkpoint import HEADS_FILE
from pumer.models.meter import MeterForImageAndTextRetrieval
from pumer.tasks.ranking_head import ranking_from
from pumer.utils.errors import InputError

MODELS = {"vilt": ViltForImageAndTextRetrieval, "meter": MeterForImageAndTextRetrieval}


@pytest.fixture(params=["vilt", "meter"])
def checkpoint(request, tiny_vilt, tiny_meter):
    """A question-answering model."""
    return {"vilt": tiny_vilt, "meter": tiny_meter}[request.param]


def test_answering_questions_gives_the_body(checkpoint):
    torch.manual_seed(1)
    model = ranking_from(str(checkpoint), MODELS)
    saved = load_file(checkpoint / "model.safetensors")
    body = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("rank_output.")}
    assert all(torch.equal(tensor, saved[name]) for name, tensor in body.items())
    assert model.config.num_labels == 1
    torch.manual_seed(1)
    assert torch.equal(ranking_from(str(checkpoint), MODELS).rank_output.weight, model.rank_output.weight)


def test_a_ranking_is_kept(checkpoint, tmp_path):
    model = ranking_from(str(checkpoint), MODELS)
    pumer.save(model, tmp_path)
    assert torch.equal(ranking_from(str(tmp_path), MODELS).rank_output.weight, model.rank_output.weight)


@pytest.mark.parametrize("apart", [False, True])
def test_a_matching_layer_gives_its_second_row(checkpoint, tmp_path, apart):
    weights = load_file(checkpoint / "model.safetensors")
    width = ranking_from(str(checkpoint), MODELS).rank_output.in_features
    matching = {"itm_score.fc.weight": torch.randn(2, width), "itm_score.fc.bias": torch.randn(2)}
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    save_file(weights if apart else weights | matching, tmp_path / "model.safetensors", {"format": "pt"})
    if apart:
        save_file(matching, tmp_path / HEADS_FILE)
    model = ranking_from(str(tmp_path), MODELS)
    assert torch.equal(model.rank_output.weight, matching["itm_score.fc.weight"][1:])
    assert torch.equal(model.rank_output.bias, matching["itm_score.fc.bias"][1:])


def test_what_cannot_be_used_is_refused(tiny_vilt, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertForMaskedLM"]}))
    with pytest.raises(InputError, match="is a 'bert' model; this task needs 'vilt' or 'meter'"):
        ranking_from(str(tmp_path), MODELS)
    ViltForQuestionAnswering.from_pretrained(tiny_vilt).config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"weights of .* cannot be loaded"):
        ranking_from(str(tmp_path), MODELS)

"""Users' own subclasses of what is patched."""

import copy
import pickle

import pytest
import torch
import transformers
from tiny import GRIDS, TINY, answer
from torch import nn
from transformers.models.roberta.modeling_roberta import RobertaLayer
from transformers.models.vilt.modeling_vilt import ViltLayer

import pumer
from pumer import InputError, NoReduction, PuMerConfig
from pumer.models import meter
from pumer.models.meter.modeling_meter import MeterCrossModalLayer

CONFIG = PuMerConfig(layers=(0, 2), prune_ratio=0.2, merge_ratio=0.3, text_merge_ratio=0.3)


class Told:
    """What users add."""

    def name_of(self):
        return f"mine: {type(self).__name__}"


class OwnVilt(Told, transformers.ViltModel):
    def get_input_embeddings(self):
        return self.embeddings.text_embeddings.word_embeddings


class OwnMeter(Told, meter.MeterModel):
    def forward(self, *args, **kwargs):  # which a patched model does not replace
        return super().forward(*args, **kwargs)


class OwnViltLayer(Told, ViltLayer):
    pass


class OwnMeterLayer(Told, MeterCrossModalLayer):
    pass


class OwnWords(RobertaLayer):
    """A class that is replaced for speed alone."""

    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


class OwnAnswers(Told, transformers.ViltForQuestionAnswering):
    def forward(self, **kwargs):
        return super().forward(**kwargs)


class OwnMeterAnswers(Told, meter.MeterForQuestionAnswering):
    pass


OWN = {
    "vilt": {
        transformers.ViltModel: OwnVilt,
        ViltLayer: OwnViltLayer,
        transformers.ViltForQuestionAnswering: OwnAnswers,
    },
    "meter": {
        meter.MeterModel: OwnMeter,
        MeterCrossModalLayer: OwnMeterLayer,
        RobertaLayer: OwnWords,
        meter.MeterForQuestionAnswering: OwnMeterAnswers,
    },
}


def own(backbone, *only):
    """The tiny model, made of a user's classes."""
    model = TINY[backbone].build()
    for module in model.modules():
        cls = OWN[backbone].get(type(module))
        if cls is not None and (not only or cls in only):
            module.__class__ = cls
    return model


@pytest.fixture(params=TINY)
def backbone(request):
    return request.param


@pytest.fixture
def case(backbone):
    return TINY[backbone]


@pytest.mark.parametrize("config", [NoReduction(), CONFIG], ids=["none", "pumer"])
def test_patched_like_the_class_it_derives_from(backbone, case, config):
    inputs, model = case.batch(GRIDS), own(backbone)
    classes = [type(module) for module in model.modules()]
    expected = answer(pumer.patch(case.build(), case.fit(config)), inputs)
    for _ in range(2):
        pumer.patch(model, case.fit(config))
    assert torch.equal(answer(model, inputs), expected)
    assert [type(module).__name__ for module in model.modules()] == [cls.__name__ for cls in classes]
    root = case.root(model)
    assert (
        isinstance(root, type(pumer.unpatch(own(backbone)).base_model))
        and root.name_of() == f"mine: {type(root).__name__}"
    )
    assert [type(module) for module in pumer.unpatch(model).modules()] == classes


def test_copied_and_pickled(backbone, case):
    inputs, model = case.batch(GRIDS), pumer.patch(own(backbone), case.fit(CONFIG))
    expected = answer(model, inputs)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert [type(module) for module in twin.modules()] == [type(module) for module in model.modules()]
        assert torch.equal(answer(twin, inputs), expected)
        pumer.unpatch(twin)
        assert pumer.reduction(model) == case.fit(CONFIG)


def test_saved_under_its_own_name(backbone, case, tmp_path):
    root = case.root(pumer.patch(own(backbone), case.fit(CONFIG)))
    root.save_pretrained(tmp_path)
    cls = OWN[backbone][next(parent for parent in OWN[backbone] if parent.__name__.endswith("Model"))]
    assert root.config.architectures == [cls.__name__]
    again = pumer.patch(cls.from_pretrained(tmp_path).eval(), case.fit(CONFIG))
    assert torch.equal(again(**case.batch(GRIDS)).pooler_output, root.eval()(**case.batch(GRIDS)).pooler_output)


def test_traced_disabled_planned_and_split(backbone, case):
    inputs, model = case.batch(GRIDS), pumer.patch(own(backbone), case.fit(CONFIG))
    with pumer.trace(model) as trace:
        answer(model, inputs)
    assert len(trace.forwards) == 1
    with pumer.disabled(model):
        off = answer(model, inputs)
    assert torch.equal(off, answer(pumer.patch(case.build(), NoReduction()), inputs))
    plain = pumer.patch(case.build(), case.fit(CONFIG))
    assert pumer.plan(model, image_size=48, text_length=10) == pumer.plan(plain, image_size=48, text_length=10)


def test_a_subclass_that_replaces_what_is_patched_is_refused(backbone, case):
    for parent, _ in list(OWN[backbone].items())[:2]:
        patched = {"MeterModel": "fuse"}.get(parent.__name__, "forward")
        cls = type("Mine", (parent,), {patched: lambda self, *args, **kwargs: None})
        between = type("Between", (cls,), {})
        for mine in (cls, between):
            model = case.build()
            module = next(module for module in model.modules() if type(module) is parent)
            module.__class__ = mine
            classes = [type(module) for module in model.modules()]
            with pytest.raises(InputError, match=rf"^Mine\.{patched} cannot be patched.*{parent.__name__}[^\n]*$"):
                pumer.patch(model, case.fit(CONFIG))
            assert [type(module) for module in model.modules()] == classes


def test_a_convolution_of_another_kind_stays_as_it_is(backbone, case):
    class Doubled(nn.Conv2d):
        def _conv_forward(self, x, weight, bias):
            return super()._conv_forward(x, 2 * weight, bias)

    model, inputs = case.build(), case.batch(GRIDS)
    (conv,) = (module for module in model.modules() if type(module) is nn.Conv2d)
    conv.__class__ = Doubled
    plain = answer(model, inputs)
    torch.testing.assert_close(answer(pumer.patch(model, NoReduction()), inputs), plain, atol=1e-5, rtol=0)
    assert type(conv) is Doubled


def test_a_class_that_was_replaced_after_patching_is_refused(backbone, case):
    """As fully_shard does it."""
    model = pumer.patch(case.build(), case.fit(CONFIG))
    layer = next(iter(case.root(model).encoder.children()))[0]
    layer.__class__ = type(f"FSDP{type(layer).__name__}", (type(layer),), {})
    for call in (pumer.unpatch, lambda model: pumer.patch(model, NoReduction())):
        with pytest.raises(InputError, match=r"class of 'encoder\..*\.0' was replaced.*fully_shard"):
            call(model)
    assert pumer.reduction(model) == case.fit(CONFIG)
    assert answer(model, case.batch(GRIDS)).isfinite().all()

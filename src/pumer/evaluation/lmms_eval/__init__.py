r"""A model of lmms-eval (the extra ``[lmms-eval]``): generative models, reduced, on that library's tasks.

Once both are installed, lmms-eval knows the model by the name "pumer":

    lmms_eval --model pumer --tasks mme --batch_size 8 --model_args \
        'pretrained=llava-hf/llava-1.5-7b-hf,reduction=pumer,schedule=[{stack: decoder,layer: 2,prune_ratio: 0.2}]'

``reduction=none`` measures the same model unreduced. See `pumer.evaluation.lmms_eval.chat.ChatModel` for all settings.
"""

from typing import Any


def manifest() -> Any:
    """What lmms-eval's entry-point group ``lmms_eval.models`` asks for; torch and transformers are not imported."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="pumer", chat_class_path=f"{__name__}.chat.ChatModel")

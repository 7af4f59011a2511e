"""METER: RoBERTa and CLIP's vision transformer, fused by pairs of cross-modal layers; known to the Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForVisualQuestionAnswering,
    AutoProcessor,
    AutoTokenizer,
    RobertaTokenizer,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # transformers' own wants torchvision

from pumer.models.meter.configuration_meter import MeterConfig
from pumer.models.meter.encoding_meter import MeterEncoding
from pumer.models.meter.heads_meter import (
    MeterForImageAndTextRetrieval,
    MeterForImagesAndTextClassification,
    MeterForMaskedLM,
    MeterForQuestionAnswering,
)
from pumer.models.meter.modeling_meter import MeterModel, MeterModelOutput, MeterPreTrainedModel
from pumer.models.meter.processing_meter import MeterImageProcessorPil, MeterProcessor

__all__ = [
    "MeterConfig",
    "MeterEncoding",
    "MeterForImageAndTextRetrieval",
    "MeterForImagesAndTextClassification",
    "MeterForMaskedLM",
    "MeterForQuestionAnswering",
    "MeterImageProcessorPil",
    "MeterModel",
    "MeterModelOutput",
    "MeterPreTrainedModel",
    "MeterProcessor",
]

AutoConfig.register("meter", MeterConfig)
AutoModel.register(MeterConfig, MeterModel)
AutoModelForVisualQuestionAnswering.register(MeterConfig, MeterForQuestionAnswering)
AutoModelForMaskedLM.register(MeterConfig, MeterForMaskedLM)
AutoTokenizer.register(MeterConfig, fast_tokenizer_class=RobertaTokenizer)
AutoImageProcessor.register(MeterConfig, image_processor_classes={"pil": MeterImageProcessorPil})
AutoProcessor.register(MeterConfig, MeterProcessor)

# SPDX-License-Identifier: Apache-2.0
"""SViT, the Vision Transformer with Super Token Sampling, for Hugging Face Transformers.

Importing the package registers its classes with the Auto classes, once or any number of times. It loads no optional
package but torchvision, which Transformers loads as well.
"""

import warnings
from importlib import import_module
from importlib.metadata import version

from transformers.utils import is_torchvision_available

from svit_hf.extras import TORCHVISION_REMEDY, torchvision_error


# before anything of Transformers that would import torchvision
if _error := torchvision_error():
    is_torchvision_available.cache_clear()
    warnings.warn(
        f"the installed torchvision cannot be imported and is not used ({_error}). {TORCHVISION_REMEDY}. Until then "
        "images are prepared by Pillow (`SViTImageProcessorPil`).",
        stacklevel=2,
    )

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForVideoClassification,
)

# not from transformers itself: before 5.18 it has only a placeholder there where torchvision is missing
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from svit_hf.hub.remote_code import save_with_code
from svit_hf.model.configuration_svit import SViTConfig
from svit_hf.model.configuration_video_svit import SViTVideoConfig
from svit_hf.model.image_processing_pil_svit import SViTImageProcessorPil
from svit_hf.model.modeling_svit import (
    SuperTokenAttention,
    SViTBackbone,
    SViTForImageClassification,
    SViTModel,
    SViTPreTrainedModel,
)
from svit_hf.model.modeling_video_svit import SViTForVideoClassification, SViTVideoModel
from svit_hf.model.super_tokens_svit import register_super_token_sampler
from svit_hf.other_models import apply_super_tokens, merge_into_super_tokens


__version__ = version("svit-hf")

__all__ = [
    "SViTBackbone",
    "SViTConfig",
    "SViTForImageClassification",
    "SViTForVideoClassification",
    "SViTImageProcessorPil",
    "SViTModel",
    "SViTPreTrainedModel",
    "SViTVideoConfig",
    "SViTVideoModel",
    "SuperTokenAttention",
    "apply_super_tokens",
    "build_model",
    "load_backbone",
    "merge_into_super_tokens",
    "register_super_token_sampler",
    "save_with_code",
]

_image_processors: dict[str, type] = {"pil": SViTImageProcessorPil}
if is_torchvision_available():
    from transformers import AutoVideoProcessor

    from svit_hf.model.image_processing_svit import SViTImageProcessor
    from svit_hf.model.video_processing_svit import SViTVideoProcessor

    _image_processors["torchvision"] = SViTImageProcessor
    __all__ += ["SViTImageProcessor", "SViTVideoProcessor"]
    AutoVideoProcessor.register(SViTVideoConfig, SViTVideoProcessor, exist_ok=True)

AutoConfig.register(SViTConfig.model_type, SViTConfig, exist_ok=True)
AutoModel.register(SViTConfig, SViTModel, exist_ok=True)
AutoModelForImageClassification.register(SViTConfig, SViTForImageClassification, exist_ok=True)
AutoBackbone.register(SViTConfig, SViTBackbone, exist_ok=True)
AutoConfig.register(SViTVideoConfig.model_type, SViTVideoConfig, exist_ok=True)
AutoModel.register(SViTVideoConfig, SViTVideoModel, exist_ok=True)
AutoModelForVideoClassification.register(SViTVideoConfig, SViTForVideoClassification, exist_ok=True)
for _config in (SViTConfig, SViTVideoConfig):
    AutoImageProcessor.register(_config, image_processor_classes=_image_processors, exist_ok=True)


def __getattr__(name: str) -> object:
    if name in ("build_model", "load_backbone"):
        # only then: they load eight heads of Transformers
        return getattr(import_module("svit_hf.tasks.models"), name)
    if name in ("SViTImageProcessor", "SViTVideoProcessor"):
        state = "cannot be imported" if torchvision_error() else "is not installed"
        raise ImportError(f"`{name}` needs torchvision, which {state}; use `SViTImageProcessorPil`.")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

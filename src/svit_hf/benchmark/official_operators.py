# SPDX-License-Identifier: Apache-2.0
"""The official operators, from a file that is imported by its path, with the weights of one of our models.

The file has a class `STViTAsReleased(config, drop_path_rate)` whose parameters have the names of the official
checkpoints; `config` has the keys of `OFFICIAL_FIELDS`, named as in hhb072/STViT@c9ed9a4 (`models/stvit.py`).
"""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from svit_hf.convert.key_mapping import is_dropped, official_shape, to_official
from svit_hf.errors import SViTError
from svit_hf.model.modeling_svit import SViTForImageClassification


CLASS_NAME = "STViTAsReleased"

# official name -> field of SViTConfig
OFFICIAL_FIELDS = {
    "embed_dim": "hidden_sizes",
    "depths": "depths",
    "num_heads": "num_attention_heads",
    "stoken_size": "super_token_sizes",
    "n_iter": "num_sampling_iterations",
    "layerscale": "use_layer_scale",
    "projection": "projection_dim",
    "num_classes": "num_labels",
}


def import_baseline(path: Path) -> ModuleType:
    """Import the file with the official operators.

    Raises:
        SViTError: If it cannot be imported or does not have the class.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise SViTError(f"`baseline` is {str(path)!r}, which is no Python file.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    # the file is the user's, and so is whatever it raises
    except Exception as error:
        raise SViTError(f"`baseline` is {str(path)!r}, which cannot be imported: {error!r}") from error
    if not hasattr(module, CLASS_NAME):
        raise SViTError(f"`baseline` is {str(path)!r}, which has no class {CLASS_NAME!r}.")
    return module


def with_official_operators(model: nn.Module, baseline: ModuleType) -> nn.Module:
    """Return the official network with the weights of `model`.

    Args:
        model: A `SViTForImageClassification`.
        baseline: What `import_baseline` returned.

    Raises:
        SViTError: If the official network has other weights than the model.
    """
    assert isinstance(model, SViTForImageClassification)
    config: dict[str, Any] = {name: getattr(model.config, field) for name, field in OFFICIAL_FIELDS.items()}
    official: nn.Module = getattr(baseline, CLASS_NAME)(config, model.config.drop_path_rate)
    missing, unexpected = official.load_state_dict(_official_state_dict(model), strict=False)
    left_out = [key for key in missing if not is_dropped(key)]
    if left_out or unexpected:
        raise SViTError(
            f"`baseline` has other weights than the model: {len(left_out)} that the model lacks "
            f"({', '.join(left_out[:3])}), {len(unexpected)} that it does not know ({', '.join(unexpected[:3])})."
        )
    return official.train(model.training)


def _official_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    state = {}
    for key, tensor in model.state_dict().items():
        official_key = to_official(key)
        assert official_key is not None, f"no official name for {key}"
        state[official_key] = tensor.reshape(official_shape(key, tuple(tensor.shape)))
    return state

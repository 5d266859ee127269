# SPDX-License-Identifier: Apache-2.0
"""Entry points of `torch.hub`: `torch.hub.load(REPOSITORY, "svit_small", num_labels=10)`."""

import sys
from pathlib import Path
from typing import Any


# as torch.hub reads it before it lets an entry point run; those of the package are installed with it
dependencies = ["torch", "transformers", "huggingface_hub", "safetensors", "numpy", "PIL"]


def svit_small(**kwargs: Any) -> Any:
    """Return SViT-S as `svit_hf.SViTForImageClassification`, untrained; `kwargs` are fields of `SViTConfig`."""
    return _classifier("small", kwargs)


def svit_base(**kwargs: Any) -> Any:
    """Return SViT-B, likewise."""
    return _classifier("base", kwargs)


def svit_large(**kwargs: Any) -> Any:
    """Return SViT-L, likewise."""
    return _classifier("large", kwargs)


def pretrained(name_or_path: str, **kwargs: Any) -> Any:
    """Return what `SViTForImageClassification.from_pretrained` makes of a folder or an id of the Hub."""
    return _package().SViTForImageClassification.from_pretrained(name_or_path, **kwargs)


def _classifier(layout: str, kwargs: dict[str, Any]) -> Any:
    package = _package()
    return package.SViTForImageClassification(getattr(package.SViTConfig, layout)(**kwargs))


def _package() -> Any:
    try:
        import svit_hf
    # a checkout that is not installed
    except ModuleNotFoundError:
        sys.path.insert(0, str(Path(__file__).parent / "src"))
        import svit_hf
    return svit_hf

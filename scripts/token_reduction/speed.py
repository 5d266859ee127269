# SPDX-License-Identifier: Apache-2.0
"""Whole networks for pictures of one size: as they are, compiled, and in ONNX Runtime."""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from scripts.token_reduction.contestants import Changed, Features, contestants_of
from torch import nn

from svit_hf.export.exporting import exporters_to_stderr


# those of each contestant that take about half of the time at 504 pixels
SETTINGS = {"merged once": ["0.45"], "merged twice": ["0.35, 0.2"], "ToMe": ["0.065"]}


class Network(nn.Module):
    """From pixels to features of all patches, all in one.

    Args:
        model: Whose weights it has.
        features: From pixels to features, by these weights.
    """

    def __init__(self, model: nn.Module, features: Features):
        super().__init__()
        self.model = model
        self.features = features
        self.train(model.training)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the states of all tokens."""
        return self.features(pixels)


def networks_of(model: Any, names: Iterable[str]) -> Iterator[tuple[str, str, Network]]:
    """Yield the name, setting and network of some contestants, each with a copy of the model.

    Args:
        model: A `Dinov2Model` of 12 layers.
        names: Keys of `SETTINGS`.
    """
    for name in names:
        for setting in SETTINGS[name]:
            own = copy.deepcopy(model)
            features = contestants_of(own)[name][setting]
            if isinstance(features, Changed):
                # for good: to change a model is nothing that a graph could hold
                features.change(own)
                features = features.as_it_is
            yield name, setting, Network(own, features)


def compile_network(network: nn.Module, pixels: torch.Tensor, backend: str = "inductor") -> Features:
    """Compile a network into one graph for pictures of one size; PyTorch's error says what cannot be in it."""
    return torch.compile(network, fullgraph=True, dynamic=False, backend=backend)


def run_in_onnx(network: nn.Module, pixels: torch.Tensor) -> Features:
    """Export a network to ONNX for pictures of the size of `pixels`, and return what computes the same by that."""
    import onnxruntime

    with exporters_to_stderr():
        program = torch.onnx.export(network, (pixels,), dynamo=True)
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options)
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


FORMS: dict[str, Callable[[nn.Module, torch.Tensor], Features]] = {
    "eager": lambda network, pixels: network,
    "compiled": compile_network,
    "ONNX Runtime": run_in_onnx,
}

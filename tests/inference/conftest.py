# SPDX-License-Identifier: Apache-2.0
"""What tests of inference share: the code that a compiler is given."""

import pytest
import torch


@pytest.fixture
def compile_and_compare():
    """Return a function that compiles a classifier as one graph, compares its logits, and returns the graph's code."""

    def compare(model, **tolerance):
        graphs = []

        def backend(graph, inputs):
            graphs.append(graph.print_readable(print_output=False))
            return graph.forward

        torch._dynamo.reset()
        images = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            compiled = torch.compile(model, backend=backend, fullgraph=True)
            torch.testing.assert_close(compiled(images).logits, model(images).logits, **tolerance)
        (code,) = graphs
        return code

    return compare

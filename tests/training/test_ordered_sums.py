# SPDX-License-Identifier: Apache-2.0
"""One process here; `test_other_ranks.py` has several."""

import torch
from torch import nn

from svit_hf.training.ordered_sums import OrderedSums, sum_in_order


def test_vectors_are_added_one_after_the_other():
    vectors = [torch.randn(1000) * 10**power for power in (0, 3, -3, 2)]
    total = sum_in_order(vectors)
    torch.testing.assert_close(total, ((vectors[0] + vectors[1]) + vectors[2]) + vectors[3], rtol=0, atol=0)
    # in another order, other bits
    assert not torch.equal(total, sum_in_order(vectors[::-1]))


def test_gradients_are_means_over_micro_batches_in_the_layout_of_their_parameters():
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    model.bias.requires_grad_(False)
    unused = nn.Parameter(torch.ones(5))
    sums = OrderedSums([*model.parameters(), unused], micro_batches=2)
    batches = [torch.randn(2, 3, 8, 8) for _ in range(2)]
    for batch in batches:
        loss = model(batch).square().mean()
        loss.backward()
        sums.add(loss.detach(), torch.ones(6))
        assert model.weight.grad is None
    loss, statistics = sums.finish(6)
    losses = [model(batch).square().mean() for batch in batches]
    (expected,) = torch.autograd.grad(sum(losses) / 2, [model.weight])
    torch.testing.assert_close(model.weight.grad, expected)
    assert model.weight.grad.stride() == model.weight.stride()
    torch.testing.assert_close(loss, sum(losses).detach())
    assert statistics.tolist() == [2.0] * 6
    assert unused.grad.tolist() == [0.0] * 5
    assert model.bias.grad is None

# SPDX-License-Identifier: Apache-2.0
"""One rank here; `test_several_ranks.py` has two."""

import torch
from torch import nn

from svit_hf.training.agreement import Agreement


def network():
    return nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))


def pass_forward(agreement, model, batch):
    agreement.start_micro_batch()
    model(batch)
    return agreement.end_micro_batch()


def exchange(agreement, loss=3.0, norm=2.0):
    return agreement.exchange(torch.tensor(loss), torch.tensor(norm), (8, 1, 0, 1))


def test_signals_come_back_as_they_were():
    is_finite, signals = exchange(Agreement(network(), torch.device("cpu"), 1))
    assert is_finite
    assert signals.read() == (3.0, 8, 1, 2.0, 0, 1)
    assert signals.read().is_finite


def test_statistics_of_a_non_finite_update_are_put_back():
    for bad in ({"loss": float("nan")}, {"norm": float("inf")}, {}):
        model = network()
        agreement = Agreement(model, torch.device("cpu"), 1)
        pass_forward(agreement, model, torch.randn(4, 2))
        exchange(agreement)
        good = {name: value.clone() for name, value in model.state_dict().items() if "running" in name}
        pass_forward(agreement, model, torch.randn(4, 2) if bad else torch.full((4, 2), float("inf")))
        is_finite, signals = exchange(agreement, **bad)
        assert not is_finite
        assert not signals.read().is_finite
        # the counts are told all the same
        assert signals.read().num_images == 8
        after = {name: value for name, value in model.state_dict().items() if "running" in name}
        torch.testing.assert_close(after, good, rtol=0, atol=0)


def test_frozen_norms_are_left_out():
    model = network()
    model[0].eval()
    agreement = Agreement(model, torch.device("cpu"), 1)
    assert [tensor.data_ptr() for tensor in agreement.statistics] == [
        model[1].running_mean.data_ptr(),
        model[1].running_var.data_ptr(),
    ]
    assert not Agreement(model.eval(), torch.device("cpu"), 1).statistics


def test_an_update_moves_statistics_once_in_whatever_order_its_micro_batches_come():
    batches = [torch.randn(8, 2) * scale for scale in (1, 2, 4, 8)]
    results = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        model = nn.BatchNorm1d(2, momentum=0.1)
        agreement = Agreement(model, torch.device("cpu"), 4)
        for index in order:
            pass_forward(agreement, model, batches[index])
        exchange(agreement)
        results.append(model.state_dict())
        assert model.num_batches_tracked == 1
    expected = 0.1 * torch.stack([batch.mean(0) for batch in batches]).mean(0)
    for result in results:
        torch.testing.assert_close(result["running_mean"], expected)
    torch.testing.assert_close(results[0], results[1])

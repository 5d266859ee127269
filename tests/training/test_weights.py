# SPDX-License-Identifier: Apache-2.0
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from svit_hf.training.weights import WeightAverage


def network():
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def change(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    model.train()(torch.randn(8, 2))


def values_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_average_is_that_of_torch():
    model = network()
    average = WeightAverage(model, 0.9)
    reference = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    # torch copies in its first update, ours has the copy already
    reference.update_parameters(model)
    for update in range(4):
        change(model)
        average.step(update)
        reference.update_parameters(model)
    with average.in_place():
        values = values_of(model)
    expected = dict(reference.module.state_dict())
    # torch rounds an average of counters down, ours copies them
    expected["1.num_batches_tracked"] = model[1].num_batches_tracked
    torch.testing.assert_close(values, expected)
    # running statistics are averaged, too
    assert values["1.num_batches_tracked"] == 4
    assert not torch.equal(values["1.running_mean"], model[1].running_mean)


def test_exchange_gives_everything_back_exactly_also_after_an_error():
    model = network()
    average = WeightAverage(model, 0.5)
    change(model)
    average.step(0)
    before = values_of(model)
    with average.in_place():
        inside = values_of(model)
    try:
        with average.in_place():
            torch.testing.assert_close(values_of(model), inside, rtol=0, atol=0)
            raise KeyError
    except KeyError:
        pass
    torch.testing.assert_close(values_of(model), before, rtol=0, atol=0)
    assert not torch.equal(inside["0.weight"], before["0.weight"])


def test_warm_up_lets_the_decay_grow():
    average = WeightAverage(network(), 0.99, warmup=True)
    assert [average.decay_at(update) for update in (0, 8, 10_000)] == [0.1, 0.5, 0.99]
    assert WeightAverage(network(), 0.99).decay_at(0) == 0.99


def test_starts_anew_at_the_present_values():
    model = network()
    average = WeightAverage(model, 0.9)
    first = values_of(model)
    change(model)
    second = values_of(model)
    with average.in_place():
        torch.testing.assert_close(values_of(model), first, rtol=0, atol=0)
    average.start_here()
    model.load_state_dict(first)
    with average.in_place():
        torch.testing.assert_close(values_of(model), second, rtol=0, atol=0)

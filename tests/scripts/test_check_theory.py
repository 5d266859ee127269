# SPDX-License-Identifier: Apache-2.0
"""The statements of docs/concepts/theory.md in a small form, and the parts of the program that prints them."""

import oracle
import pytest
import torch
from scripts.check_theory import (
    METHODS,
    approximate,
    check_factorization,
    dense_association,
    effective_rank,
    main,
    measure_layers,
    multiply_adds,
    rank_correlation,
)
from torch.utils.flop_counter import FlopCounterMode
from transformers import Dinov2Config, Dinov2Model

from svit_hf import SuperTokenAttention
from svit_hf.model.super_tokens_svit import sample_super_tokens


# worst case measured, float64, cells 2 to 8: 1.8e-14
FLOAT64_TOLERANCE = 1e-12


@pytest.mark.parametrize("cell", [2, 3])
def test_attention_is_a_product_of_rank_at_most_the_number_of_super_tokens(cell):
    checked = check_factorization(cell, edge=12)
    assert checked["error"] < FLOAT64_TOLERANCE
    assert checked["G"] == (12 // cell) ** 2
    assert checked["singular value G"] > 1e-9 > 1e-14 > checked["G + 1"]
    assert checked["row of Q, inside"] > checked["at the border"]


def test_association_is_spread_as_the_oracle_does():
    association = sample_super_tokens(torch.randn(1, 4, 6, 8), (3, 2)).association
    expected = oracle.dense_association(association, (2, 4), (3, 2))[0]
    torch.testing.assert_close(dense_association(association, (2, 4), (3, 2)), expected)


@pytest.mark.parametrize("cell", [1, 2, 4])
def test_formula_is_what_torch_counts(cell):
    attention = SuperTokenAttention(16, num_heads=2, cell_size=cell, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        attention(torch.randn(1, 16, 8, 8))
    assert counter.get_total_flops() == 2 * multiply_adds(64, 16, cell)


def test_effective_rank_of_known_matrices():
    assert effective_rank(torch.eye(5)) == pytest.approx(5)
    assert effective_rank(torch.ones(5, 5)) == pytest.approx(1, abs=1e-3)


def test_with_a_super_token_for_each_token_nothing_is_lost():
    query, key, value = torch.randn(3, 6, 4, dtype=torch.float64)
    each = torch.eye(6, dtype=torch.float64)
    outputs = approximate(query, key, value, each, each)
    for method in ("super tokens", "super keys", "Nystrom", "best of rank G"):
        torch.testing.assert_close(outputs[method], outputs["exact"])
    expected = (query @ query.T).softmax(-1) @ outputs["exact"]
    torch.testing.assert_close(outputs["agents"], expected)


def test_the_best_map_of_a_rank_is_the_best():
    query, key, spread = (torch.randn(12, width, dtype=torch.float64) for width in (4, 4, 3))
    cells = torch.eye(3, dtype=torch.float64).repeat_interleave(4, dim=0)
    # with the identity as values, outputs are the maps themselves
    outputs = approximate(query, key, torch.eye(12, dtype=torch.float64), spread.softmax(-1), cells)
    errors = {method: (outputs[method] - outputs["exact"]).norm().item() for method in METHODS}
    assert min(errors, key=errors.__getitem__) == "best of rank G"
    assert torch.linalg.matrix_rank(outputs["super tokens"]) <= 3


def test_layers_of_a_vision_transformer():
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=56)
    rows = list(measure_layers(Dinov2Model(config).eval(), [torch.randn(1, 3, 56, 84)] * 2))
    assert [row["layer"] for row in rows] == [0, 1]
    assert all(1 <= row["effective rank"] <= 24 for row in rows)
    assert all(row["best of rank G"] < row["super tokens"] < 1 for row in rows)


def test_rank_correlation_follows_the_order_alone():
    assert rank_correlation([1, 2, 3], [1, 10, 11]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [9, 4, 1]) == pytest.approx(-1)


@pytest.mark.parametrize("words", [["--data", "pictures"], ["--figure", "theory.png"], ["--rounds", "0"]], ids=str)
def test_what_does_not_go_together_is_refused(words, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert words[0].strip("-") in capsys.readouterr().err

# SPDX-License-Identifier: Apache-2.0
"""Drawings of super tokens: the hard assignment against loops, boundaries and colours on grids small enough to see."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_config

from svit_hf import SViTModel
from svit_hf.model.super_tokens_svit import sample_super_tokens
from svit_hf.visualization import assign_places, draw_boundaries, fill_with_mean_colours, memberships


LEFT_RIGHT = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1]])


def assign_with_loops(association, cell_size, size):
    """Look at every token and every neighbour by itself."""
    columns, rows = -(-size[1] // cell_size[1]), -(-size[0] // cell_size[0])
    assignment = torch.empty(size, dtype=torch.int64)
    for y in range(size[0]):
        for x in range(size[1]):
            row, column = y // cell_size[0], x // cell_size[1]
            token = y % cell_size[0] * cell_size[1] + x % cell_size[1]
            best = -1.0
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    share = association[row * columns + column, token, (dy + 1) * 3 + dx + 1].item()
                    if 0 <= row + dy < rows and 0 <= column + dx < columns and share > best:
                        best = share
                        assignment[y, x] = (row + dy) * columns + column + dx
    return assignment


@pytest.mark.parametrize(
    ("size", "cell_size"),
    [((8, 12), (4, 4)), ((7, 10), (3, 4)), ((3, 5), (4, 2)), ((4, 4), (4, 4))],
    ids=["whole-cells", "padded", "one-row", "one-cell"],
)
def test_assignment_equals_loops(size, cell_size):
    association = sample_super_tokens(torch.randn(2, 6, *size), cell_size, 2).association

    for of_one_image in association:
        assignment = assign_places(of_one_image, cell_size, size)
        assert assignment.equal(assign_with_loops(of_one_image, cell_size, size))


@pytest.mark.parametrize("super_tokens", [None, range(2, 5)], ids=["all", "some"])
def test_memberships_equal_loops(super_tokens):
    (association,) = sample_super_tokens(torch.randn(1, 6, 7, 10), (3, 4), 1).association
    rows, columns = 3, 3
    expected = torch.zeros(rows * columns, 7, 10)
    for y in range(7):
        for x in range(10):
            for k in range(9):
                row, column = y // 3 + k // 3 - 1, x // 4 + k % 3 - 1
                if 0 <= row < rows and 0 <= column < columns:
                    share = association[y // 3 * columns + x // 4, y % 3 * 4 + x % 4, k]
                    expected[row * columns + column, y, x] = share

    found = memberships(association, (3, 4), (7, 10), super_tokens)
    assert found.equal(expected if super_tokens is None else expected[2:5])


def test_places_between_tokens_are_interpolated():
    # two super tokens side by side; of the left cell's two columns, the right one belongs a little more to the right
    association = torch.zeros(2, 2, 9)
    association[0, 0, 4] = association[1, :, 4] = 1.0
    association[0, 1, 4], association[0, 1, 5] = 0.4, 0.6

    assigned = assign_places(association, (1, 2), (1, 4), (1, 16))
    assert assign_places(association, (1, 2), (1, 4)).tolist() == [[0, 1, 1, 1]]
    # token centres are at 1.5 and 5.5: shares cross at 1.5 + 4 * 0.5 / 0.6 = 4.83
    assert assigned[0].tolist() == [0] * 5 + [1] * 11


def test_many_super_tokens_are_assigned_as_if_at_once(monkeypatch):
    (association,) = sample_super_tokens(torch.randn(1, 6, 8, 12), (2, 2), 1).association
    at_once = assign_places(association, (2, 2), (8, 12), (16, 24))
    monkeypatch.setattr("svit_hf.visualization.super_tokens.MAPS_AT_A_TIME", 5)

    assert assign_places(association, (2, 2), (8, 12), (16, 24)).equal(at_once)


def test_associations_of_a_model_fit():
    model = SViTModel(tiny_config()).eval()

    with torch.no_grad():
        outputs = model(torch.randn(1, 3, 72, 56), output_associations=True)

    # stage 1 has a quarter of the image's height and width, and cells of 4
    assignment = assign_places(outputs.associations[0][0], (4, 4), (18, 14))
    assert assignment.shape == (18, 14)
    assert assignment.min() >= 0
    assert assignment.max() < 5 * 4


@pytest.mark.parametrize("shape", [(1, 6, 16, 9), (5, 16, 9), (6, 8, 9), (6, 16, 8)], ids=str)
def test_association_of_another_grid_is_refused(shape):
    with pytest.raises(ValueError, match=r"`association` has the shape .* has \(6, 16, 9\)"):
        assign_places(torch.rand(shape), (4, 4), (8, 12))


def test_boundary_is_where_super_tokens_meet():
    image = Image.new("RGB", (8, 4), (10, 20, 30))

    drawn = np.array(draw_boundaries(image, LEFT_RIGHT, colour=(255, 0, 0)))

    is_line = (drawn == (255, 0, 0)).all(axis=-1)
    assert is_line[:, 3].all()
    assert is_line.sum() == 4
    assert (drawn[~is_line] == (10, 20, 30)).all()


def test_boundary_between_rows_is_as_wide_as_asked():
    drawn = np.array(draw_boundaries(Image.new("L", (4, 8)), LEFT_RIGHT.T, colour=(255, 0, 0), width=2))

    assert (drawn[..., 0] == 255).any(axis=1).tolist() == [False, False, True, True, False, False, False, False]


def test_fill_is_the_mean_of_each_super_token():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 3), dtype=np.uint8)

    filled = np.array(fill_with_mean_colours(Image.fromarray(pixels), LEFT_RIGHT))

    for half in (np.s_[:, :4], np.s_[:, 4:]):
        expected = pixels[half].reshape(-1, 3).mean(axis=0).round()
        assert (filled[half] == expected).all()


@pytest.mark.parametrize("draw", [draw_boundaries, fill_with_mean_colours], ids=lambda draw: draw.__name__)
def test_drawing_keeps_the_size_and_refuses_what_is_no_grid(draw):
    image = Image.new("L", (13, 7))

    drawn = draw(image, LEFT_RIGHT)
    assert (drawn.size, drawn.mode) == ((13, 7), "RGB")
    with pytest.raises(ValueError, match=r"`assignment` has the shape \(1, 2, 4\)"):
        draw(image, LEFT_RIGHT.unsqueeze(0))

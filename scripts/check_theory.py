# SPDX-License-Identifier: Apache-2.0
"""Check what docs/concepts/theory.md says of super token attention, and print its numbers.

    python -m scripts.check_theory
    python -m scripts.check_theory --model VIT --data trashnet6 --limit 4 --figure theory.png

The second form adds a table for the attention maps of a trained DINOv2 of Transformers, on pictures of the test split,
and draws all of it.
Shape letters are those of `super_tokens_svit.py`, and `N` tokens. Run it from the root of a checkout.
"""

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch.nn import functional as F

from svit_hf import SuperTokenAttention
from svit_hf.benchmark.report import align
from svit_hf.files import whole_file
from svit_hf.model.cells_svit import join_cells
from svit_hf.model.super_tokens_svit import gather_neighbours, sample_super_tokens, sample_super_tokens_masked


METHODS = ("super tokens", "super keys", "agents", "Nystrom", "best of rank G")
_IMAGE_SIZE = 224
# of the layers of the trained model, in patches
_CELLS = (2, 4, 8)
_ROUNDS = 15


def dense_association(
    association: torch.Tensor, grid_size: tuple[int, int], cell_size: tuple[int, int]
) -> torch.Tensor:
    """Spread the association of one image, `(1, G, P, 9)`, over all pairs: `(N, G)`."""
    num_cells = grid_size[0] * grid_size[1]
    # number of each neighbour from 1, so that 0 is what is outside
    numbers = gather_neighbours(torch.arange(1, num_cells + 1).view(1, *grid_size, 1)).squeeze(-1)  # (1, G, 9)
    dense = association.new_zeros(*association.shape[:3], num_cells + 1)
    dense.scatter_add_(3, numbers[:, :, None].expand(association.shape), association)
    size = grid_size[0] * cell_size[0], grid_size[1] * cell_size[1]
    return join_cells(dense[..., 1:], cell_size, size).flatten(2)[0].T


def check_factorization(cell: int, edge: int = 24, channels: int = 16, num_heads: int = 2) -> dict[str, float]:
    """Compare super token attention with the product of three matrices, in float64, on made-up tokens.

    Returns:
        The relative error; the number G of super tokens; singular values G and G + 1 of the map of the first head,
        relative to the largest; the sums of rows of Q in the middle and, the smallest, at the border.
    """
    generator = torch.Generator().manual_seed(cell)
    tokens = torch.randn(1, channels, edge, edge, generator=generator, dtype=torch.float64)
    torch.manual_seed(cell)
    attention = SuperTokenAttention(channels, num_heads, cell_size=cell).double().eval()
    with torch.no_grad():
        # attention of weights as they are drawn is almost flat, and a flat map has rank 1
        attention.self_attention.qkv.weight.mul_(8)
        expected = attention(tokens).flatten(2)[0].T  # (N, C)
        association = sample_super_tokens(tokens, (cell, cell)).association
        spread = dense_association(association, (edge // cell, edge // cell), (cell, cell))  # Q
        means = spread / spread.sum(0)  # Q, its columns divided by their mass
        own = attention.self_attention
        flat = tokens.flatten(2)[0].T
        super_tokens = means.T @ flat  # (G, C)
        packed = F.linear(super_tokens, own.qkv.weight[:, :, 0, 0], own.qkv.bias).unflatten(1, (num_heads, 3, -1))
        heads, singular = [], []
        for head in range(num_heads):
            query, key, _ = packed[:, head].unbind(1)
            full_map = spread @ (query @ key.T * own.scaling).softmax(-1) @ means.T  # (N, N)
            singular.append(torch.linalg.svdvals(full_map))
            rows = slice((3 * head + 2) * own.head_dim, 3 * (head + 1) * own.head_dim)
            # the bias of the values, which all super tokens have, comes back with the sums of rows of Q
            bias = spread.sum(1, keepdim=True) * own.qkv.bias[rows]
            heads.append(full_map @ flat @ own.qkv.weight[rows, :, 0, 0].T + bias)
        product = torch.cat(heads, 1) @ own.projection.weight[:, :, 0, 0].T
        product = product + spread.sum(1, keepdim=True) * own.projection.bias
        sums = spread.sum(1).view(edge, edge)
    num_super_tokens, values = (edge // cell) ** 2, singular[0] / singular[0][0]
    return {
        "cell": cell,
        "error": ((product - expected).norm() / expected.norm()).item(),
        "G": num_super_tokens,
        "singular value G": values[num_super_tokens - 1].item(),
        "G + 1": values[num_super_tokens].item(),
        "row of Q, inside": sums[edge // 2, edge // 2].item(),
        "at the border": min(sums[0].min().item(), sums[:, 0].min().item()),
    }


def multiply_adds(num_tokens: int, channels: int, cell: int) -> float:
    """Count what super token attention multiplies: three passes over 9 neighbours, and attention among super tokens.

    `27 N C + 4 G C^2 + 2 G^2 C` with `G = N / cell^2`; with a cell of 1, `4 N C^2 + 2 N^2 C` of plain attention.
    """
    num_super_tokens = num_tokens / cell**2
    attention = 4 * num_super_tokens * channels**2 + 2 * num_super_tokens**2 * channels
    return attention if cell == 1 else 27 * num_tokens * channels + attention


def time_cells(cells: Sequence[int], edge: int = 56, channels: int = 64, rounds: int = _ROUNDS) -> dict[int, float]:
    """Return the median processor time of super token attention with each cell, in milliseconds."""
    tokens = torch.randn(1, channels, edge, edge, generator=torch.Generator().manual_seed(0))
    layers = {cell: SuperTokenAttention(channels, num_heads=1, cell_size=cell).eval() for cell in cells}
    taken: dict[int, list[float]] = {cell: [] for cell in cells}
    with torch.no_grad():
        # by turns, so that a busy machine is busy for all; the first round warms up
        for number in range(rounds + 1):
            for cell, layer in layers.items():
                start = time.process_time()
                layer(tokens)
                if number:
                    taken[cell].append(1000 * (time.process_time() - start))
    return {cell: median(times) for cell, times in taken.items()}


def effective_rank(matrix: torch.Tensor) -> float:
    """Return the exponential of the entropy of the singular values (Roy and Vetterli, EUSIPCO 2007)."""
    values = torch.linalg.svdvals(matrix)
    shares = values / values.sum()
    return torch.special.entr(shares).sum().exp().item()


def approximate(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spread: torch.Tensor, cells: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return what each method gives for one head, all with `G` super tokens, agents or landmarks.

    Args:
        query: Scaled, `(N, D)`.
        key: `(N, D)`.
        value: `(N, D)`.
        spread: The association Q, `(N, G)`.
        cells: Which cell each token is in, as a matrix of ones and zeros, `(N, G)`.
    """
    mass = spread.sum(0)
    means, pooled = (spread / mass).T, (cells / cells.sum(0)).T  # (G, N)
    super_query, super_key, super_value = means @ query, means @ key, means @ value
    cell_query, cell_key = pooled @ query, pooled @ key
    # a super token stands for as many keys as it has mass, as in `apply_super_tokens`
    bias = mass.log()
    left, right = (query @ cell_key.T).softmax(-1), (cell_query @ key.T).softmax(-1)
    full_map = (query @ key.T).softmax(-1)
    u, s, vh = torch.linalg.svd(full_map)
    rank = spread.shape[1]
    return {
        "exact": full_map @ value,
        "super tokens": spread @ (super_query @ super_key.T + bias).softmax(-1) @ super_value,
        "super keys": (query @ super_key.T + bias).softmax(-1) @ super_value,
        # agent attention (Han et al., arXiv 2312.08874): pooled queries gather, and hand on
        "agents": (query @ cell_query.T).softmax(-1) @ (right @ value),
        # Nystromformer (Xiong et al., arXiv 2102.03902): landmarks are means of cells
        "Nystrom": left @ torch.linalg.pinv((cell_query @ cell_key.T).softmax(-1)) @ (right @ value),
        "best of rank G": u[:, :rank] * s[:rank] @ (vh[:rank] @ value),
    }


def measure_layers(model: Any, pictures: Sequence[torch.Tensor], cell: int = 2) -> Iterator[dict[str, float]]:
    """Compare the attention of each layer of a DINOv2 with what approximates it, on its own inputs.

    Args:
        model: `Dinov2Model`, in eval mode.
        pictures: Pixel values, `(1, 3, H, W)`; a multiple of patch times cell.
        cell: Edge of a cell, in patches.

    Yields:
        For each layer its number, the mean effective rank of its maps, and the median of the relative error of each
        method, over heads and pictures. Only patches take part.
    """
    attentions = [module for module in model.modules() if hasattr(module, "q_proj")]
    inputs: list[torch.Tensor] = []
    hooks = [
        attention.register_forward_pre_hook(
            lambda _, args, kwargs: inputs.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
        for attention in attentions
    ]
    with torch.no_grad():
        for pixels in pictures:
            model(pixels)
    for hook in hooks:
        hook.remove()
    num_heads, patch = model.config.num_attention_heads, model.config.patch_size
    for layer, attention in enumerate(attentions):
        ranks: list[float] = []
        errors: dict[str, list[float]] = {method: [] for method in METHODS}
        for pixels, states in zip(pictures, inputs[layer :: len(attentions)], strict=True):
            grid = pixels.shape[-2] // patch, pixels.shape[-1] // patch
            for outputs, rank in _heads(attention, states[0, -grid[0] * grid[1] :], grid, num_heads, cell):
                ranks.append(rank)
                exact = outputs["exact"]
                for method in METHODS:
                    errors[method].append(((outputs[method] - exact).norm() / exact.norm()).item())
        yield {"layer": layer, "effective rank": fmean(ranks)} | {name: median(each) for name, each in errors.items()}


@torch.no_grad()
def _heads(
    attention: Any, patches: torch.Tensor, grid: tuple[int, int], num_heads: int, cell: int
) -> Iterator[tuple[dict[str, torch.Tensor], float]]:
    cells = grid[0] // cell, grid[1] // cell
    tokens = patches.T.unflatten(1, grid).unsqueeze(0)
    spread = dense_association(sample_super_tokens_masked(tokens, (cell, cell)).association, cells, (cell, cell))
    own = F.one_hot(torch.tensor(4), 9).float().expand(1, cells[0] * cells[1], cell * cell, 9)
    in_cell = dense_association(own, cells, (cell, cell))
    query, key, value = (
        projection(patches).double().unflatten(1, (num_heads, -1)).transpose(0, 1)  # (A, N, D)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query = query * query.shape[-1] ** -0.5
    for head in range(num_heads):
        outputs = approximate(query[head], key[head], value[head], spread.double(), in_cell.double())
        yield outputs, effective_rank((query[head] @ key[head].T).softmax(-1))


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's correlation of values that all differ."""
    places = [torch.tensor(values).argsort().argsort().double() for values in (first, second)]
    return torch.corrcoef(torch.stack(places))[0, 1].item()


def draw(costs: Sequence[Mapping[str, float]], layers: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw cost and time against the cell, and the errors of the methods against the layer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    cells = [row["cell"] for row in costs]
    for name, style in (("relative cost", "--"), ("relative time", "o-")):
        left.loglog(cells, [row[name] for row in costs], style, label=name)
    left.set_xticks(cells, [f"{cell:g}" for cell in cells])
    left.minorticks_off()
    left.set(xlabel="edge of a cell, in tokens", ylabel="relative to the fastest cell")
    numbers = [row["layer"] for row in layers]
    for method in METHODS:
        right.plot(numbers, [row[method] for row in layers], "o-", markersize=4, label=method)
    right.set(xlabel="layer", ylabel="relative error of the output", ylim=(0, 1.4))
    ranks = right.twinx()
    ranks.bar(numbers, [row["effective rank"] for row in layers], color="tab:gray", alpha=0.25)
    ranks.set_ylabel("effective rank of the map (bars)")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    with whole_file(path) as file:
        figure.savefig(file, dpi=80, format="png")


def _print(rows: Sequence[Mapping[str, float]]) -> None:
    cells = [tuple(f"{value:.4g}" for value in row.values()) for row in rows]
    print(align([tuple(rows[0]), *cells]), end="\n\n", flush=True)


def main(words: list[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", type=Path, help="folder of a Dinov2Model")
    parser.add_argument("--data", type=Path, help="folder of parquet files with pictures")
    parser.add_argument("--limit", type=int, default=4, help="pictures of the test split")
    parser.add_argument("--figure", type=Path, help="a .png file; only with `--model`")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help="of the times")
    options = parser.parse_args(words)
    if (options.model is None) != (options.data is None) or min(options.limit, options.rounds) < 1:
        parser.error("`--model` and `--data` belong together; `--limit` and `--rounds` are at least 1")
    if options.figure is not None and options.model is None:
        parser.error("`--figure` needs `--model`")
    torch.set_num_threads(1)
    _print([check_factorization(cell) for cell in (2, 3, 4, 6, 8)])
    times = time_cells((1, 2, 4, 7, 8, 14), rounds=options.rounds)
    best = min(times, key=times.__getitem__)
    least = multiply_adds(56 * 56, 64, best)
    costs = [
        {
            "cell": cell,
            "M multiply-adds": multiply_adds(56 * 56, 64, cell) / 1e6,
            "relative cost": multiply_adds(56 * 56, 64, cell) / least,
            "processor time, ms": milliseconds,
            "relative time": milliseconds / times[best],
        }
        for cell, milliseconds in times.items()
    ]
    _print(costs)
    if options.model is not None:
        from transformers import AutoModel

        from svit_hf.samplers.comparison import read_examples, to_pixels
        from svit_hf.tasks.rows import parquet_rows

        model = AutoModel.from_pretrained(options.model).eval()
        examples = read_examples(parquet_rows(options.data, "test"), options.limit, _IMAGE_SIZE)
        pictures = [to_pixels(example.picture) for example in examples]
        layers, *others = ([*measure_layers(model, pictures, cell)] for cell in _CELLS)
        _print(layers)
        _print(
            [
                {"cell": cell} | {method: median(row[method] for row in rows) for method in METHODS}
                for cell, rows in zip(_CELLS, (layers, *others), strict=True)
            ]
        )
        for method in METHODS:
            correlation = rank_correlation(*([row[name] for row in layers] for name in ("effective rank", method)))
            print(f"rank correlation of the error of {method} with the effective rank: {correlation:.2f}")
        if options.figure is not None:
            draw(costs, layers, options.figure)


if __name__ == "__main__":
    main()

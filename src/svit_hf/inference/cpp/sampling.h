// SPDX-License-Identifier: Apache-2.0
// Super token sampling and upsampling, cell by cell, for inference on a CPU; all sums are float32.
//
// Letters as in kernels/README.md: G cells of P tokens, C channels, association (B, G, P, 9).

#pragma once

#include "norms.h"

namespace {

constexpr int64_t NEIGHBOURS = 9;

// Cells of a batch of maps; cells divide the maps.
struct Grid {
  int64_t B, C, H, W, cell_height, cell_width, rows, columns;

  Grid(const at::Tensor& like, int64_t height, int64_t width, int64_t cell_height, int64_t cell_width)
      : B(like.size(0)), C(like.size(1)), H(height), W(width), cell_height(cell_height), cell_width(cell_width),
        rows(height / cell_height), columns(width / cell_width) {
    TORCH_CHECK(H % cell_height == 0 && W % cell_width == 0 && C % LANES == 0, "Cells of ", cell_height, " x ", cell_width,
                " have to divide the map, ", H, " x ", W, ", and registers of ", LANES, " floats its ", C, " channels.");
  }

  int64_t cells() const { return B * rows * columns; }
  int64_t tokens_of_cell() const { return cell_height * cell_width; }

  // Where the first token of a cell, counted over all images, begins in (B, H, W, C).
  int64_t first_token(int64_t cell) const {
    const int64_t image = cell / (rows * columns), row = cell / columns % rows, column = cell % columns;
    return ((image * H + row * cell_height) * W + column * cell_width) * C;
  }

  // Where its other tokens begin after that.
  std::vector<int64_t> token_offsets() const {
    std::vector<int64_t> offsets;
    for (int64_t y = 0; y < cell_height; y++)
      for (int64_t x = 0; x < cell_width; x++) offsets.push_back((y * W + x) * C);
    return offsets;
  }

  // The cell in the direction `k` of 9, or -1 outside.
  int64_t neighbour(int64_t cell, int64_t k) const {
    const int64_t row = cell / columns % rows + k / 3 - 1, column = cell % columns + k % 3 - 1;
    if (row < 0 || row >= rows || column < 0 || column >= columns) return -1;
    return (cell / (rows * columns) * rows + row) * columns + column;
  }
};

// The columns of a product for the affinity of a token to its neighbours: nine, and others that nobody reads.
constexpr int64_t COLUMNS = 16;

// Means of cells by channel, (B, C, Gh + 2, Gw + 2) with zeros outside of the grid, so that the neighbours of a cell are
// three times three numbers next to each other; scaled for the affinity.
struct Means {
  const Grid& grid;
  const int64_t row, plane;
  std::vector<float> numbers;

  explicit Means(const Grid& grid)
      : grid(grid), row(grid.columns + 2), plane((grid.rows + 2) * row), numbers(grid.B * grid.C * plane + 1, 0.0f) {}

  // The number of the upper left neighbour of a cell, in the first channel.
  float* corner(int64_t cell) {
    const int64_t image = cell / (grid.rows * grid.columns);
    return &numbers[image * grid.C * plane + cell / grid.columns % grid.rows * row + cell % grid.columns];
  }
};

// The association of one cell: softmax of the products of its tokens, (P, C), with the means of its neighbours.
// `turned` is zero beyond ten columns.
void associate(const Grid& grid, int64_t cell, const float* tokens, Means& means, float* association, bool masks,
               float* turned, float* affinity) {
  typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));
  const float* corner = means.corner(cell);
  for (int64_t c = 0; c < grid.C; c++, corner += means.plane)
    // the fourth number is replaced by the next three, and the tenth column is one that nobody reads
    for (int64_t y = 0; y < 3; y++)
      *reinterpret_cast<Four*>(turned + c * COLUMNS + 3 * y) = *reinterpret_cast<const Four*>(corner + y * means.row);
  bool is_masked[NEIGHBOURS];
  for (int64_t k = 0; k < NEIGHBOURS; k++) is_masked[k] = masks && grid.neighbour(cell, k) < 0;
  const int64_t P = grid.tokens_of_cell();
  multiply(tokens, turned, affinity, P, COLUMNS, grid.C, grid.C, false);
  // a register has one neighbour of many tokens, so that nothing is summed within one
  for (int64_t p = 0; p < P; p += LANES) {
    Floats shares[NEIGHBOURS], largest = Floats{} - INFINITY, sum{};
    float column[LANES];
    for (int64_t k = 0; k < NEIGHBOURS; k++) {
      for (int64_t i = 0; i < LANES; i++) column[i] = affinity[(p + i) * COLUMNS + k];
      shares[k] = is_masked[k] ? Floats{} - INFINITY : load(column);
      largest = shares[k] > largest ? shares[k] : largest;
    }
    for (int64_t k = 0; k < NEIGHBOURS; k++) sum += shares[k] = exponential(shares[k] - largest);
    const Floats factor = 1.0f / sum;
    for (int64_t k = 0; k < NEIGHBOURS; k++) {
      store(column, shares[k] * factor);
      for (int64_t i = 0; i < std::min(LANES, P - p); i++) association[(p + i) * NEIGHBOURS + k] = column[i];
    }
  }
}

template <typename T>
void sample(const Grid& grid, const T* tokens, const LayerNorm& norm, bool masks, float* association, T* super_tokens) {
  const int64_t C = grid.C, P = grid.tokens_of_cell(), cells = grid.cells();
  const auto buffers = buffer<float>(cells * NEIGHBOURS * (C + 1));
  const auto statistics = buffer<Statistics>(cells * P);
  float *sums = buffers.get(), *masses = sums + cells * NEIGHBOURS * C;
  const std::vector<int64_t> offsets = grid.token_offsets();
  const float scale = 1.0f / (P * std::sqrt(static_cast<float>(C)));
  Means means(grid);
  at::parallel_for(0, cells, 4, [&](int64_t begin, int64_t end) {
    for (int64_t cell = begin; cell < end; cell++) {
      const T* first = tokens + grid.first_token(cell);
      Statistics* known = statistics.get() + cell * P;
      for (int64_t p = 0; p < P; p++) known[p] = measure(first + offsets[p], C, norm.eps);
      float* centre = means.corner(cell) + means.row + 1;
      for (int64_t c = 0; c < C; c += LANES) {
        Floats sum{};
        for (int64_t p = 0; p < P; p++) sum += normalized(first + offsets[p], known[p], norm, c);
        for (int64_t i = 0; i < LANES; i++) centre[(c + i) * means.plane] = sum[i] * scale;
      }
    }
  });
  at::parallel_for(0, cells, 4, [&](int64_t begin, int64_t end) {
    const auto states = buffer<float>(P * C), affinity = buffer<float>(round_up(P, LANES) * COLUMNS);
    std::vector<float> turned(C * COLUMNS, 0.0f);
    for (int64_t cell = begin; cell < end; cell++) {
      float* shares = association + cell * P * NEIGHBOURS;
      const T* first = tokens + grid.first_token(cell);
      for (int64_t p = 0; p < P; p++)
        for (int64_t c = 0; c < C; c += LANES)
          store(states.get() + p * C + c, normalized(first + offsets[p], statistics[cell * P + p], norm, c));
      associate(grid, cell, states.get(), means, shares, masks, turned.data(), affinity.get());
      for (int64_t c = 0; c < C; c += LANES) {
        Floats sum[NEIGHBOURS] = {};
        for (int64_t p = 0; p < P; p++) {
          const Floats token = load(states.get() + p * C + c);
          for (int64_t k = 0; k < NEIGHBOURS; k++) sum[k] += token * shares[p * NEIGHBOURS + k];
        }
        for (int64_t k = 0; k < NEIGHBOURS; k++) store(sums + (cell * NEIGHBOURS + k) * C + c, sum[k]);
      }
      for (int64_t k = 0; k < NEIGHBOURS; k++) {
        float mass = 0.0f;
        for (int64_t p = 0; p < P; p++) mass += shares[p * NEIGHBOURS + k];
        masses[cell * NEIGHBOURS + k] = mass;
      }
    }
    at::native::cpublas::brgemm_release(false);
  });
  at::parallel_for(0, cells, 16, [&](int64_t begin, int64_t end) {
    for (int64_t cell = begin; cell < end; cell++) {
      float mass = 1e-12f;
      for (int64_t k = 0; k < NEIGHBOURS; k++) {
        const int64_t other = grid.neighbour(cell, k);
        // what the other has for this cell lies in the opposite direction
        if (other >= 0) mass += masses[other * NEIGHBOURS + NEIGHBOURS - 1 - k];
      }
      for (int64_t c = 0; c < C; c += LANES) {
        Floats sum{};
        for (int64_t k = 0; k < NEIGHBOURS; k++) {
          const int64_t other = grid.neighbour(cell, k);
          if (other >= 0) sum += load(sums + (other * NEIGHBOURS + NEIGHBOURS - 1 - k) * C + c);
        }
        store(super_tokens + cell * C + c, sum * (1.0f / mass));
      }
    }
  });
}

// One round of normalising and sampling: super tokens (B, C, Gh, Gw), and association, as `sample_super_tokens`.
std::tuple<at::Tensor, at::Tensor> sample_super_tokens(const at::Tensor& tokens, const at::Tensor& norm_weight,
                                                       const at::Tensor& norm_bias, double eps, int64_t cell_height,
                                                       int64_t cell_width, bool masks) {
  const auto layout = at::MemoryFormat::ChannelsLast;
  const at::Tensor inputs = tokens.contiguous(layout);
  const at::Tensor weight = norm_weight.to(at::kFloat).contiguous(), bias = norm_bias.to(at::kFloat).contiguous();
  const Grid grid(tokens, tokens.size(2), tokens.size(3), cell_height, cell_width);
  const LayerNorm norm{weight.data_ptr<float>(), bias.data_ptr<float>(), static_cast<float>(eps)};
  at::Tensor super_tokens = at::empty({grid.B, grid.C, grid.rows, grid.columns}, inputs.options(), layout);
  at::Tensor association =
      at::empty({grid.B, grid.rows * grid.columns, grid.tokens_of_cell(), NEIGHBOURS}, inputs.options().dtype(at::kFloat));
  float* shares = association.data_ptr<float>();
  if (inputs.scalar_type() == at::kFloat)
    sample(grid, inputs.data_ptr<float>(), norm, masks, shares, super_tokens.data_ptr<float>());
  else
    sample(grid, inputs.data_ptr<BFloat16>(), norm, masks, shares, super_tokens.data_ptr<BFloat16>());
  return {super_tokens, association};
}

template <typename T>
void upsample(const Grid& grid, const T* super_tokens, const float* association, const T* shortcut, T* results) {
  const int64_t C = grid.C, P = grid.tokens_of_cell();
  const std::vector<int64_t> offsets = grid.token_offsets();
  at::parallel_for(0, grid.cells(), 4, [&](int64_t begin, int64_t end) {
    for (int64_t cell = begin; cell < end; cell++) {
      const float* shares = association + cell * P * NEIGHBOURS;
      const int64_t first = grid.first_token(cell);
      for (int64_t c = 0; c < C; c += LANES) {
        Floats states[NEIGHBOURS];
        for (int64_t k = 0; k < NEIGHBOURS; k++) {
          const int64_t other = grid.neighbour(cell, k);
          states[k] = other < 0 ? Floats{} : load(super_tokens + other * C + c);
        }
        for (int64_t p = 0; p < P; p++) {
          const int64_t token = first + offsets[p] + c;
          Floats sum = shortcut ? load(shortcut + token) : Floats{};
          for (int64_t k = 0; k < NEIGHBOURS; k++) sum += states[k] * shares[p * NEIGHBOURS + k];
          store(results + token, sum);
        }
      }
    }
  });
}

// Spread super tokens (B, C, Gh, Gw) over a map, as `upsample_tokens`, and add the residual if there is one.
at::Tensor upsample_tokens(const at::Tensor& super_tokens, const at::Tensor& association, int64_t cell_height,
                           int64_t cell_width, const std::optional<at::Tensor>& residual) {
  const auto layout = at::MemoryFormat::ChannelsLast;
  const at::Tensor states = super_tokens.contiguous(layout), shares = association.to(at::kFloat).contiguous();
  const Grid grid(states, states.size(2) * cell_height, states.size(3) * cell_width, cell_height, cell_width);
  const at::Tensor shortcut = residual ? residual->to(states.scalar_type()).contiguous(layout) : at::Tensor();
  at::Tensor results = at::empty({grid.B, grid.C, grid.H, grid.W}, states.options(), layout);
  auto run = [&](auto zero) {
    using T = decltype(zero);
    upsample<T>(grid, states.data_ptr<T>(), shares.data_ptr<float>(), shortcut.defined() ? shortcut.data_ptr<T>() : nullptr,
                results.data_ptr<T>());
  };
  if (states.scalar_type() == at::kFloat) run(float{}); else run(BFloat16{});
  return results;
}

}  // namespace

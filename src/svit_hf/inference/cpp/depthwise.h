// SPDX-License-Identifier: Apache-2.0
// The depthwise convolution of the position embedding and of the feed-forward, and what the stem does between convolutions.

#pragma once

#include "vectors.h"

namespace {

// rows of a piece of work
constexpr int64_t DEPTHWISE_ROWS = 8;

// A depthwise 3x3 convolution of `rows` rows of `(W, width)`; `before` and `after`: whether there are rows beside them.
template <typename From, typename To>
void convolve(const From* wide, const From* nothing, const float* taps, const float* bias, To* mixed, int64_t rows,
              int64_t W, int64_t width, bool before, bool after) {
  for (int64_t c = 0; c < width; c += LANES) {
    Floats w[9];
    for (int tap = 0; tap < 9; tap++) w[tap] = load(taps + tap * width + c);
    const Floats start = load(bias + c);
    for (int64_t y = 0; y < rows; y++) {
      const From* here = wide + y * W * width + c;
      const From* above = y > 0 || before ? here - W * width : nothing;
      const From* below = y + 1 < rows || after ? here + W * width : nothing;
      To* to = mixed + y * W * width + c;
      Floats a = load(above), h = load(here), b = load(below);
      // the sums of this column, which lacks its right neighbour, and of the next one, which has its left neighbour alone
      Floats sum = start + w[1] * a + w[4] * h + w[7] * b;
      Floats next = start + w[0] * a + w[3] * h + w[6] * b;
      for (int64_t x = 1; x < W; x++) {
        a = load(above + x * width), h = load(here + x * width), b = load(below + x * width);
        store(to + (x - 1) * width, sum + w[2] * a + w[5] * h + w[8] * b);
        sum = next + w[1] * a + w[4] * h + w[7] * b;
        next = start + w[0] * a + w[3] * h + w[6] * b;
      }
      store(to + (W - 1) * width, sum);
    }
  }
}

// A depthwise convolution of `tokens`, (B, C, H, W), with taps (9, C) and bias (C,) in float32; zeros outside.
at::Tensor depthwise(const at::Tensor& tokens, const at::Tensor& taps, const at::Tensor& bias) {
  const auto layout = at::MemoryFormat::ChannelsLast;
  const at::Tensor inputs = tokens.contiguous(layout);
  const int64_t B = tokens.size(0), C = tokens.size(1), H = tokens.size(2), W = tokens.size(3);
  TORCH_CHECK(C % LANES == 0, "`tokens` have ", C, " channels; allowed are multiples of ", LANES, ".");
  at::Tensor outputs = at::empty_like(inputs, inputs.options(), layout);
  const int64_t blocks = (H + DEPTHWISE_ROWS - 1) / DEPTHWISE_ROWS;
  auto run = [&](auto zero) {
    using T = decltype(zero);
    const T* from = inputs.data_ptr<T>();
    T* to = outputs.data_ptr<T>();
    at::parallel_for(0, B * blocks, 1, [&](int64_t begin, int64_t end) {
      const std::vector<T> nothing(W * C);
      for (int64_t job = begin; job < end; job++) {
        const int64_t top = job % blocks * DEPTHWISE_ROWS, rows = std::min(DEPTHWISE_ROWS, H - top);
        const int64_t first = (job / blocks * H + top) * W * C;
        convolve<T, T>(from + first, nothing.data(), taps.data_ptr<float>(), bias.data_ptr<float>(), to + first, rows, W, C,
                       top > 0, top + rows < H);
      }
    });
  };
  if (inputs.scalar_type() == at::kFloat) run(float{}); else run(BFloat16{});
  return outputs;
}

// GELU and then the batch norm of evaluation mode, in place, of (B, C, H, W) in channels_last memory.
void gelu_and_normalize_(const at::Tensor& states, const at::Tensor& mean, const at::Tensor& variance, const at::Tensor& weight,
                         const at::Tensor& bias, double eps) {
  const int64_t C = states.size(1), tokens = states.numel() / std::max<int64_t>(C, 1);
  TORCH_CHECK(C % LANES == 0 && states.is_contiguous(at::MemoryFormat::ChannelsLast),
              "`states` have to be in channels_last memory, with a multiple of ", LANES, " channels.");
  std::vector<float> factors(C), shifts(C);
  const at::Tensor numbers[] = {mean.to(at::kDouble), variance.to(at::kDouble), weight.to(at::kDouble), bias.to(at::kDouble)};
  const double* of[4];
  for (int i = 0; i < 4; i++) of[i] = numbers[i].data_ptr<double>();
  for (int64_t c = 0; c < C; c++) {
    const double factor = of[2][c] / std::sqrt(of[1][c] + eps);
    factors[c] = factor, shifts[c] = of[3][c] - of[0][c] * factor;
  }
  auto run = [&](auto zero) {
    using T = decltype(zero);
    T* values = states.data_ptr<T>();
    at::parallel_for(0, tokens, 256, [&](int64_t begin, int64_t end) {
      for (int64_t c = 0; c < C; c += LANES) {
        const Floats a = load(factors.data() + c), b = load(shifts.data() + c);
        for (int64_t i = begin; i < end; i++) {
          T* value = values + i * C + c;
          store(value, gelu<T>(load(value)) * a + b);
        }
      }
    });
  };
  if (states.scalar_type() == at::kFloat) run(float{}); else run(BFloat16{});
}

}  // namespace

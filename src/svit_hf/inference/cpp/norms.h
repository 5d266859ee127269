// SPDX-License-Identifier: Apache-2.0
// LayerNorm over the channels of single tokens.

#pragma once

#include "vectors.h"

namespace {

struct LayerNorm {
  const float *weight, *bias;
  float eps;
};

// What the norm does to a token: it is multiplied by `scale` less `shift`.
struct Statistics {
  float scale, shift;
};

// C is a multiple of LANES.
template <typename T>
Statistics measure(const T* from, int64_t C, float eps) {
  Floats sum{}, squares{};
  for (int64_t c = 0; c < C; c += LANES) sum += load(from + c);
  const float mean = sum_of(sum) / C;
  for (int64_t c = 0; c < C; c += LANES) {
    const Floats rest = load(from + c) - mean;
    squares += rest * rest;
  }
  const float scale = 1.0f / std::sqrt(sum_of(squares) / C + eps);
  return {scale, mean * scale};
}

template <typename T>
inline Floats normalized(const T* from, Statistics statistics, const LayerNorm& norm, int64_t c) {
  return (load(from + c) * statistics.scale - statistics.shift) * load(norm.weight + c) + load(norm.bias + c);
}

}  // namespace

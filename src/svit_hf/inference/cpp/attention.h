// SPDX-License-Identifier: Apache-2.0
// Multi-head self-attention over all tokens of a map, from LayerNorm to the shortcut, for inference on a CPU.
//
// A head of an image is one piece of work: query, key and value by one product, then rows of weights that stay in the
// cache, softmax in float32. The projection of all heads follows. The scale of the products is part of the weights.

#pragma once

#include "norms.h"

namespace {

// tokens of a product: those whose attention weights stay in the first cache, and any others
constexpr int64_t ATTENTION_ROWS = 32, PRODUCT_ROWS = 64;

// Bring the weights of attention, (3C, C) and (3C,) with the query, key and value of a head next to each other, and (C, C)
// and (C,), into the order of `attention`, products in `dtype`.
std::vector<at::Tensor> pack_attention(const at::Tensor& qkv, const at::Tensor& qkv_bias, const at::Tensor& projection,
                                       const at::Tensor& projection_bias, int64_t num_heads, double scale,
                                       at::ScalarType dtype) {
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16, "`dtype` is ", dtype, "; allowed are float32 and bfloat16.");
  const int64_t C = projection.size(0), D = C / num_heads;
  TORCH_CHECK(C % num_heads == 0 && D % LANES == 0, "A head has ", D, " channels; allowed are multiples of ", LANES, ".");
  auto pack_it = dtype == at::kFloat ? pack_all<float> : pack_all<BFloat16>;
  at::Tensor weight = qkv.to(at::kFloat).clone().view({num_heads, 3 * D, C});
  at::Tensor bias = qkv_bias.to(at::kFloat).clone().view({num_heads, 3 * D});
  weight.narrow(1, 0, D).mul_(scale);
  bias.narrow(1, 0, D).mul_(scale);
  return {pack_it(weight.transpose(1, 2).to(dtype)), bias, pack_it(projection.to(dtype).t().unsqueeze(0)),
          projection_bias.to(at::kFloat).contiguous()};
}

// Add the bias to (N, D) numbers of a product whose rows have `stride`, and round them.
template <typename T>
void keep(const float* from, T* to, const float* bias, int64_t N, int64_t D, int64_t stride) {
  for (int64_t n = 0; n < N; n++)
    for (int64_t d = 0; d < D; d += LANES) store(to + n * D + d, load(from + n * stride + d) + load(bias + d));
}

// Turn a key (N, D) into what the product with a query wants, (D, row); pairs of bfloat16 stay together.
template <typename T>
void turn(const T* from, T* to, int64_t N, int64_t D, int64_t row) {
  typedef int32_t Unit __attribute__((may_alias));
  const int64_t units = D * sizeof(T) / sizeof(Unit);
  const Unit* source = reinterpret_cast<const Unit*>(from);
  Unit* target = reinterpret_cast<Unit*>(to);
  for (int64_t d = 0; d < units; d++)
    for (int64_t n = 0; n < N; n++) target[d * row + n] = source[n * units + d];
}

// Interleave two tokens at a time of a value (N, D), after which comes a token of zeros where N is odd.
void interleave(const BFloat16* from, BFloat16* to, int64_t N, int64_t D) {
  for (int64_t n = 0; n < N; n += 2)
    for (int64_t d = 0; d < D; d += LANES) {
      const Ints first = (Ints)load(from + n * D + d), second = n + 1 < N ? (Ints)load(from + (n + 1) * D + d) : Ints{};
      store(reinterpret_cast<float*>(to + n * D + 2 * d), (Floats)(((first >> 16) & 0xffff) | second));
    }
}

// Exponentials of a row of `row` numbers, of which `N` count, less the largest; returns the reciprocal of their sum.
template <typename T>
float exponentiate(float* affinity, T* weights, int64_t N, int64_t row) {
  std::fill(affinity + N, affinity + row, -INFINITY);
  Floats most = load(affinity);
  for (int64_t n = LANES; n < row; n += LANES) {
    const Floats more = load(affinity + n);
    most = more > most ? more : most;
  }
  const float largest = largest_of(most);
  Floats sum{};
  for (int64_t n = 0; n < row; n += LANES) {
    const Floats weight = exponential(load(affinity + n) - largest);
    sum += weight;
    store(weights + n, weight);
  }
  return 1.0f / sum_of(sum);
}

// Memory for one head.
template <typename T>
struct HeadBuffers {
  const int64_t row, even;
  std::unique_ptr<float[]> states, affinity, sums;
  std::unique_ptr<T[]> query, key, turned_key, value, interleaved, weights;

  HeadBuffers(int64_t N, int64_t D)
      : row(round_up(N, LANES)), even(round_up(N, 2)), states(buffer<float>(N * 3 * D)),
        affinity(buffer<float>(ATTENTION_ROWS * row)), sums(buffer<float>(ATTENTION_ROWS * D)), query(buffer<T>(N * D)),
        key(buffer<T>(N * D)), turned_key(buffer<T>(row * D)), value(buffer<T>(N * D)), interleaved(buffer<T>(even * D)),
        weights(buffer<T>(ATTENTION_ROWS * row)) {
    // columns without a token, whose products nobody reads
    std::fill_n(turned_key.get(), row * D, T(0.0f));
  }
};

template <typename T>
void attend_to_head(const T* tokens, const T* qkv, const float* bias, T* attended, int64_t N, int64_t C, int64_t D,
                    HeadBuffers<T>& of) {
  float* states = of.states.get();
  for (int64_t i = 0; i < N; i += PRODUCT_ROWS)
    multiply(tokens + i * C, qkv, states + i * 3 * D, std::min(PRODUCT_ROWS, N - i), 3 * D, C, C, false);
  keep(states, of.query.get(), bias, N, D, 3 * D);
  keep(states + D, of.key.get(), bias + D, N, D, 3 * D);
  keep(states + 2 * D, of.value.get(), bias + 2 * D, N, D, 3 * D);
  turn(of.key.get(), of.turned_key.get(), N, D, of.row);
  const T* value = of.value.get();
  int64_t num_values = N;
  if constexpr (!std::is_same_v<T, float>) {
    interleave(value, of.interleaved.get(), N, D);
    value = of.interleaved.get(), num_values = of.even;
  }
  for (int64_t i = 0; i < N; i += ATTENTION_ROWS) {
    const int64_t count = std::min(ATTENTION_ROWS, N - i);
    float scales[ATTENTION_ROWS];
    multiply(of.query.get() + i * D, of.turned_key.get(), of.affinity.get(), count, of.row, D, D, false);
    for (int64_t j = 0; j < count; j++)
      scales[j] = exponentiate(of.affinity.get() + j * of.row, of.weights.get() + j * of.row, N, of.row);
    multiply(of.weights.get(), value, of.sums.get(), count, D, num_values, of.row, false);
    for (int64_t j = 0; j < count; j++)
      for (int64_t d = 0; d < D; d += LANES)
        store(attended + (i + j) * C + d, load(of.sums.get() + j * D + d) * scales[j]);
  }
}

template <typename T>
void attend(const at::Tensor& inputs, const std::vector<at::Tensor>& packed, const LayerNorm* norm, const at::Tensor& residual,
            at::Tensor& outputs) {
  const int64_t B = inputs.size(0), C = inputs.size(1), N = inputs.size(2) * inputs.size(3);
  const int64_t heads = packed[0].size(0), D = C / heads;
  const T *tokens = inputs.data_ptr<T>(), *qkv = packed[0].data_ptr<T>(), *projection = packed[2].data_ptr<T>();
  const float *qkv_bias = packed[1].data_ptr<float>(), *projection_bias = packed[3].data_ptr<float>();
  const T* shortcut = residual.defined() ? residual.data_ptr<T>() : nullptr;
  T* results = outputs.data_ptr<T>();
  at::Tensor attended = at::empty_like(outputs), before;
  if (norm) {
    before = at::empty_like(outputs);
    T* to = before.data_ptr<T>();
    at::parallel_for(0, B * N, PRODUCT_ROWS, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        const Statistics statistics = measure(tokens + i * C, C, norm->eps);
        for (int64_t c = 0; c < C; c += LANES) store(to + i * C + c, normalized(tokens + i * C, statistics, *norm, c));
      }
    });
    tokens = to;
  }
  T* between = attended.data_ptr<T>();
  at::parallel_for(0, B * heads, 1, [&](int64_t begin, int64_t end) {
    HeadBuffers<T> buffers(N, D);
    for (int64_t job = begin; job < end; job++) {
      const int64_t image = job / heads, head = job % heads;
      attend_to_head(tokens + image * N * C, qkv + head * C * 3 * D, qkv_bias + head * 3 * D, between + image * N * C + head * D,
                     N, C, D, buffers);
    }
    at::native::cpublas::brgemm_release(!std::is_same_v<T, float>);
  });
  const int64_t blocks = (B * N + PRODUCT_ROWS - 1) / PRODUCT_ROWS;
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    const auto sums = buffer<float>(PRODUCT_ROWS * C);
    for (int64_t i = begin * PRODUCT_ROWS; i < std::min(end * PRODUCT_ROWS, B * N); i += PRODUCT_ROWS) {
      const int64_t count = std::min(PRODUCT_ROWS, B * N - i);
      multiply(between + i * C, projection, sums.get(), count, C, C, C, false);
      for (int64_t j = 0; j < count; j++)
        for (int64_t c = 0; c < C; c += LANES) {
          const Floats sum = load(sums.get() + j * C + c) + load(projection_bias + c);
          store(results + (i + j) * C + c, shortcut ? sum + load(shortcut + (i + j) * C + c) : sum);
        }
    }
    at::native::cpublas::brgemm_release(!std::is_same_v<T, float>);
  });
}

at::Tensor attention(const at::Tensor& tokens, const std::vector<at::Tensor>& packed,
                     const std::optional<at::Tensor>& norm_weight, const std::optional<at::Tensor>& norm_bias, double eps,
                     const std::optional<at::Tensor>& residual) {
  const auto layout = at::MemoryFormat::ChannelsLast;
  const at::Tensor inputs = tokens.contiguous(layout);
  TORCH_CHECK(packed.size() == 4 && packed[0].size(1) == tokens.size(1) && packed[0].scalar_type() == tokens.scalar_type(),
              "`packed` is not what `pack_attention` makes for tokens of ", tokens.size(1), " channels in ",
              tokens.scalar_type(), ".");
  const at::Tensor shortcut = residual ? residual->to(tokens.scalar_type()).contiguous(layout) : at::Tensor();
  at::Tensor weight, bias;
  LayerNorm norm{nullptr, nullptr, static_cast<float>(eps)};
  if (norm_weight) {
    weight = norm_weight->to(at::kFloat).contiguous(), bias = norm_bias->to(at::kFloat).contiguous();
    norm.weight = weight.data_ptr<float>(), norm.bias = bias.data_ptr<float>();
  }
  at::Tensor outputs = at::empty_like(inputs, inputs.options(), layout);
  if (inputs.numel() == 0) return outputs;
  if (inputs.scalar_type() == at::kFloat) attend<float>(inputs, packed, norm_weight ? &norm : nullptr, shortcut, outputs);
  else attend<BFloat16>(inputs, packed, norm_weight ? &norm : nullptr, shortcut, outputs);
  return outputs;
}

}  // namespace

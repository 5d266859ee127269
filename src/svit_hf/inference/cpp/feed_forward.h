// SPDX-License-Identifier: Apache-2.0
// The convolutional feed-forward without its wide map in memory, for inference on a CPU.
//
// An image is cut into tiles of rows, and the wide map into chunks of channels. For one tile and one chunk: a matrix
// product widens the tokens of the tile and of the rows beside it, GELU follows in place, the depthwise convolution makes
// the operand of a second product, and that adds to the sums of the tile. All of it stays in the cache of a core.
// Products are oneDNN's, through `at::native::cpublas::brgemm`; what is between them is float32.
//
// Letters as in kernels/README.md: batch B, channels C, wide channels F, feature map H x W. Memory is (B, H, W, C).

#pragma once

#include "depthwise.h"

namespace {

// tokens of a tile, so that its sums and a chunk of its wide map fit into the cache of a core, and of a product
constexpr int64_t TILE_TOKENS = 784, PRODUCT_TOKENS = 128;
// rows of a tile, since those beside it are computed twice
constexpr int64_t FEWEST_ROWS = 8;

// Add the bias and apply GELU, in place, to `(tokens, width)`.
template <typename T>
void activate(float* values, const float* bias, int64_t tokens, int64_t width) {
  for (int64_t c = 0; c < width; c += LANES) {
    const Floats shift = load(bias + c);
    int64_t i = 0;
    // four at a time, since each step of a polynomial waits for the one before it
    for (; i + 4 <= tokens; i += 4) {
      float* first = values + i * width + c;
      Floats x[4];
      for (int j = 0; j < 4; j++) x[j] = load(first + j * width) + shift;
      for (int j = 0; j < 4; j++) x[j] = gelu<T>(x[j]);
      for (int j = 0; j < 4; j++) store(first + j * width, x[j]);
    }
    for (; i < tokens; i++) store(values + i * width + c, gelu<T>(load(values + i * width + c) + shift));
  }
}

// Bring the weights of a feed-forward, (F, C), (F,), (F, 9), (F,), (C, F) and (C,), into the order of `feed_forward`,
// products in `dtype`; F and the C of the result are padded with zeros to whole registers.
std::vector<at::Tensor> pack_feed_forward(at::Tensor widen, at::Tensor widen_bias, at::Tensor taps, at::Tensor taps_bias,
                                          at::Tensor narrow, at::Tensor narrow_bias, at::ScalarType dtype) {
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16, "`dtype` is ", dtype, "; allowed are float32 and bfloat16.");
  const int64_t C = widen.size(1), whole_C = round_up(C, LANES);
  const int64_t width = std::min<int64_t>(dtype == at::kFloat ? 64 : 128, round_up(widen.size(0), LANES));
  const int64_t F = round_up(widen.size(0), width), chunks = F / width;
  auto pack_it = dtype == at::kFloat ? pack_all<float> : pack_all<BFloat16>;
  widen = pad(widen.to(dtype), 0, F).view({chunks, width, C}).transpose(1, 2);
  narrow = pad(pad(narrow.to(dtype), 1, F), 0, whole_C).t().contiguous().view({chunks, width, whole_C});
  taps = pad(taps.to(at::kFloat), 0, F).view({chunks, width, 9}).transpose(1, 2).contiguous();
  auto in_chunks = [&](const at::Tensor& bias) { return pad(bias.to(at::kFloat), 0, F).view({chunks, width}).contiguous(); };
  return {pack_it(widen), in_chunks(widen_bias), taps, in_chunks(taps_bias), pack_it(narrow),
          pad(narrow_bias.to(at::kFloat), 0, whole_C).contiguous()};
}

template <typename T>
void mix(const at::Tensor& tokens, const std::vector<at::Tensor>& packed, const at::Tensor& residual, at::Tensor& outputs) {
  const int64_t B = tokens.size(0), C = tokens.size(1), H = tokens.size(2), W = tokens.size(3);
  const int64_t chunks = packed[0].size(0), width = packed[0].size(2), whole_C = packed[5].size(0);
  const T *all_tokens = tokens.data_ptr<T>(), *widen = packed[0].data_ptr<T>(), *narrow = packed[4].data_ptr<T>();
  const float *widen_bias = packed[1].data_ptr<float>(), *taps = packed[2].data_ptr<float>();
  const float *taps_bias = packed[3].data_ptr<float>(), *narrow_bias = packed[5].data_ptr<float>();
  const T* shortcut = residual.defined() ? residual.data_ptr<T>() : nullptr;
  T* results = outputs.data_ptr<T>();

  // tiles for the cache; where that gives too few for all threads, these divide the chunks of a tile
  const int64_t threads = at::get_num_threads();
  const int64_t tiles = std::max<int64_t>(std::min((H * W + TILE_TOKENS - 1) / TILE_TOKENS, H / FEWEST_ROWS), 1);
  const int64_t parts = std::min((threads + B * tiles - 1) / (B * tiles), chunks);
  const int64_t most_rows = (H + tiles - 1) / tiles, size = most_rows * W * whole_C;
  const auto shared_sums = buffer<float>(parts > 1 ? B * tiles * parts * size : 0);
  // Add up the sums of the parts of a tile, the bias and the shortcut.
  auto finish = [&](int64_t image, int64_t tile, const float* sums) {
    const int64_t top = tile * H / tiles, bottom = (tile + 1) * H / tiles;
    for (int64_t i = 0; i < (bottom - top) * W; i++) {
      const int64_t token = ((image * H + top) * W + i) * C;
      for (int64_t c = 0; c < C; c += LANES) {
        Floats sum = load(narrow_bias + c);
        for (int64_t part = 0; part < parts; part++) sum += load(sums + part * size + i * whole_C + c);
        if (shortcut) sum += load_some(shortcut + token + c, C - c);
        store_some(results + token + c, sum, C - c);
      }
    }
  };
  at::parallel_for(0, B * tiles * parts, 1, [&](int64_t begin, int64_t end) {
    const auto wide = buffer<float>((most_rows + 2) * W * width), own_sums = buffer<float>(parts > 1 ? 0 : size);
    const auto mixed = buffer<T>(most_rows * W * width);
    const std::vector<float> nothing(W * width, 0.0f);
    for (int64_t job = begin; job < end; job++) {
      const int64_t image = job / parts / tiles, tile = job / parts % tiles, part = job % parts;
      const int64_t first_chunk = part * chunks / parts, end_of_chunks = (part + 1) * chunks / parts;
      const int64_t top = tile * H / tiles, bottom = (tile + 1) * H / tiles;
      const int64_t first = std::max<int64_t>(top - 1, 0), last = std::min(bottom + 1, H);
      const int64_t read = (last - first) * W, made = (bottom - top) * W;
      const T* from = all_tokens + (image * H + first) * W * C;
      float* sums = parts > 1 ? shared_sums.get() + job * size : own_sums.get();
      for (int64_t chunk = first_chunk; chunk < end_of_chunks; chunk++) {
        for (int64_t i = 0; i < read; i += PRODUCT_TOKENS) {
          const int64_t count = std::min(PRODUCT_TOKENS, read - i);
          float* values = wide.get() + i * width;
          multiply(from + i * C, widen + chunk * C * width, values, count, width, C, C, false);
          activate<T>(values, widen_bias + chunk * width, count, width);
        }
        convolve<float, T>(wide.get() + (top - first) * W * width, nothing.data(), taps + chunk * 9 * width,
                           taps_bias + chunk * width, mixed.get(), bottom - top, W, width, first < top, bottom < last);
        multiply(mixed.get(), narrow + chunk * width * whole_C, sums, made, whole_C, width, width, chunk > first_chunk);
      }
      if (parts == 1) finish(image, tile, sums);
    }
    at::native::cpublas::brgemm_release(!std::is_same_v<T, float>);
  });
  if (parts > 1)
    at::parallel_for(0, B * tiles, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) finish(i / tiles, i % tiles, shared_sums.get() + i * parts * size);
    });
}

at::Tensor feed_forward(const at::Tensor& tokens, const std::vector<at::Tensor>& packed,
                        const std::optional<at::Tensor>& residual) {
  const auto layout = at::MemoryFormat::ChannelsLast;
  const at::Tensor inputs = tokens.contiguous(layout);
  const at::Tensor shortcut = residual ? residual->to(tokens.scalar_type()).contiguous(layout) : at::Tensor();
  at::Tensor outputs = at::empty_like(inputs, inputs.options(), layout);
  TORCH_CHECK(packed.size() == 6 && packed[0].size(1) == tokens.size(1) && packed[0].scalar_type() == tokens.scalar_type(),
              "`packed` is not what `pack_feed_forward` makes for tokens of ", tokens.size(1), " channels in ",
              tokens.scalar_type(), ".");
  TORCH_CHECK(!shortcut.defined() || shortcut.sizes() == tokens.sizes(), "`residual` has another shape than `tokens`.");
  if (inputs.numel() == 0) return outputs;
  if (inputs.scalar_type() == at::kFloat) mix<float>(inputs, packed, shortcut, outputs);
  else mix<BFloat16>(inputs, packed, shortcut, outputs);
  return outputs;
}

}  // namespace

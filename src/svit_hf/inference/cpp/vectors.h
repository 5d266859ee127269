// SPDX-License-Identifier: Apache-2.0
// What the operators share: registers of floats, GELU and the exponential on them, and matrix products.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <type_traits>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

using at::BFloat16;
using at::native::cpublas::brgemm;

// a register of floats, in the vectors of GCC and Clang
#ifdef __AVX512F__
constexpr int64_t LANES = 16;
#else
constexpr int64_t LANES = 8;
#endif
typedef float Floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

int64_t round_up(int64_t number, int64_t multiple) { return (number + multiple - 1) / multiple * multiple; }

inline Floats load(const float* from) { return *reinterpret_cast<const Floats*>(from); }

inline Floats load(const BFloat16* from) {
  return (Floats)(__builtin_convertvector(*reinterpret_cast<const Halves*>(from), Ints) << 16);
}

inline void store(float* to, Floats values) { *reinterpret_cast<Floats*>(to) = values; }

inline void store(BFloat16* to, Floats values) {
#ifdef __AVX512BF16__
  *reinterpret_cast<Halves*>(to) = (Halves)_mm512_cvtneps_pbh((__m512)values);
#else
  // to the nearest, ties to even; a NaN stays one
  const Ints bits = (Ints)values;
  const Ints rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  *reinterpret_cast<Halves*>(to) = __builtin_convertvector(values == values ? rounded : Ints{} + 0x7fc0, Halves);
#endif
}

// The first `count` numbers, up to a register of them; the others are zeros.
template <typename T>
Floats load_some(const T* from, int64_t count) {
  if (count >= LANES) return load(from);
  T buffer[LANES] = {};
  std::memcpy(buffer, from, count * sizeof(T));
  return load(buffer);
}

template <typename T>
void store_some(T* to, Floats values, int64_t count) {
  if (count >= LANES) return store(to, values);
  T buffer[LANES];
  store(buffer, values);
  std::memcpy(to, buffer, count * sizeof(T));
}

// GELU is x+ - d T(d), where d = |x| and T is the upper tail of the normal distribution: here a polynomial of d, scaled
// to -1 to 1, beyond whose range T is as good as zero. Fitted for this, so that the largest error of GELU is least:
// 5e-7 with the rounding of float32, and 1.6e-5 where the result is rounded to bfloat16.
constexpr float FINE_RANGE = 5.5f, COARSE_RANGE = 4.5f;
constexpr float FINE[] = {
    1.84702652e-3f, -7.52518186e-3f, -5.66716306e-4f, 3.64261456e-2f, -3.61146890e-2f, -5.71352057e-2f,
    1.28595129e-1f, -2.97387671e-2f, -1.61574334e-1f, 2.16675535e-1f, -5.16269766e-2f, -1.76864833e-1f,
    2.71902978e-1f, -2.06830174e-1f, 9.45578963e-2f, -2.50076056e-2f, 2.97977100e-3f};
constexpr float COARSE[] = {
    -1.93342734e-2f, 2.93144506e-2f, 4.99204470e-2f, -1.28872350e-1f, 3.72243673e-2f,
    1.56382844e-1f, -2.46440932e-1f, 1.80929482e-1f, -7.13451356e-2f, 1.22210849e-2f};

template <typename T>
inline Floats gelu(Floats x) {
  constexpr bool is_fine = std::is_same_v<T, float>;
  constexpr float range = is_fine ? FINE_RANGE : COARSE_RANGE;
  const auto& coefficients = [&]() -> const auto& {
    if constexpr (is_fine) return FINE; else return COARSE;
  }();
  const Floats distance = (Floats)((Ints)x & 0x7fffffff);
  const Floats limited = distance < range ? distance : Floats{} + range;
  const Floats place = limited * (2.0f / range) - 1.0f;
  Floats tail = Floats{} + coefficients[0];
  for (size_t k = 1; k < std::size(coefficients); k++) tail = tail * place + coefficients[k];
  return x * 0.5f + distance * 0.5f - limited * tail;
}

// 2^(x log2(e)) for x up to 0: below -87 as good as zero.
inline Floats exponential(Floats x) {
  const Floats power = x * 1.44269504f;
  const Floats limited = power < -126.0f ? Floats{} - 126.0f : power;
  // adding this leaves the nearest whole number in the lowest bits
  const float magic = 12582912.0f;
  const Floats shifted = limited + magic;
  const Floats rest = limited - (shifted - magic);
  Floats result = rest * 1.33335581e-3f + 9.61812911e-3f;
  result = result * rest + 5.55041087e-2f;
  result = result * rest + 2.40226507e-1f;
  result = result * rest + 6.93147181e-1f;
  result = result * rest + 1.0f;
  return (Floats)((Ints)result + ((Ints)shifted << 23));
}

// Fold the halves of a register onto each other until one number is left.
template <typename Join>
inline float fold(Floats values, Join join) {
  typedef float Eight __attribute__((vector_size(32), aligned(4), may_alias));
  typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));
  const float* all = reinterpret_cast<const float*>(&values);
  Eight eight = *reinterpret_cast<const Eight*>(all);
  if constexpr (LANES == 16) eight = join(eight, *reinterpret_cast<const Eight*>(all + 8));
  const float* half = reinterpret_cast<const float*>(&eight);
  const Four four = join(*reinterpret_cast<const Four*>(half), *reinterpret_cast<const Four*>(half + 4));
  return join(join(four[0], four[1]), join(four[2], four[3]));
}

inline float sum_of(Floats values) {
  return fold(values, [](auto a, auto b) { return a + b; });
}

inline float largest_of(Floats values) {
  return fold(values, [](auto a, auto b) { return a > b ? a : b; });
}

// Memory that nobody has written to.
template <typename T>
std::unique_ptr<T[]> buffer(int64_t size) {
  return std::unique_ptr<T[]>(new T[size]);
}

// C (M, N) += or = A (M, K) B (K, N), where `pack` has stored B.
template <typename T>
void multiply(const T* A, const T* B, float* C, int64_t M, int64_t N, int64_t K, int64_t row_of_A, bool adds) {
  brgemm(M, N, K, row_of_A, N, N, adds, A, B, C, !std::is_same_v<T, float>);
}

// Store a matrix (K, N) as oneDNN wants it, bfloat16 with pairs of rows interleaved.
template <typename T>
void pack(const T* from, T* to, int64_t K, int64_t N) {
  if constexpr (std::is_same_v<T, float>) {
    std::memcpy(to, from, K * N * sizeof(T));
  } else {
    for (int64_t k = 0; k < K; k++)
      for (int64_t n = 0; n < N; n++) to[(k / 2 * N + n) * 2 + k % 2] = from[k * N + n];
  }
}

template <typename T>
at::Tensor pack_all(const at::Tensor& matrices) {  // (number, K, N)
  const at::Tensor from = matrices.contiguous();
  at::Tensor to = at::empty_like(from);
  for (int64_t i = 0; i < from.size(0); i++)
    pack(from[i].data_ptr<T>(), to[i].data_ptr<T>(), from.size(1), from.size(2));
  return to;
}

at::Tensor pad(const at::Tensor& tensor, int64_t dim, int64_t size) {
  std::vector<int64_t> missing = tensor.sizes().vec();
  missing[dim] = size - missing[dim];
  return missing[dim] ? at::cat({tensor, tensor.new_zeros(missing)}, dim) : tensor;
}

}  // namespace

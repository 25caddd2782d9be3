// out[T, N] = prologue(x)[T, K] · w[N, K]ᵀ, with w packed into panels of 2W columns, and an epilogue.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "micro.h"

namespace twodeep {

// Rows whose inputs stay in the second-level cache while a block of panels passes by.
inline constexpr int kRowBlock = 96;
// Bytes of a panel that stay in the first-level cache while the row tiles of a block pass by.
inline constexpr int kDepthBytes = 40960;
// Bytes between the weights in use and those fetched: at two rows of work for each row of a panel, the time memory takes to answer.
inline constexpr int kPrefetch = 4096;
// Rows of a full tile: with two vectors of columns, six rows fill the sixteen registers of AVX2.
inline constexpr int kTileRows = 6;

// What a panel's elements are multiplied with: inputs as they are, or two of them rounded to bf16.
template <class B>
using Input = std::conditional_t<std::is_same_v<B, Bf16Pair>, Bf16Pair, float>;

// Inputs that one element of a panel spans.
template <class B>
inline constexpr int kSpan = std::is_same_v<B, Bf16Pair> ? 2 : 1;

template <class B>
struct Gemm {
  const float* x;         // [T, K]
  const B* w;             // [panels][depth][2W]
  const float* scale;     // [panels * 2W], or null
  const float* norm;      // [K] weight of an RMS norm over x, or null
  const float* residual;  // [T, N], or null
  float* out;             // [T, N]
  int rows, k, n, panels;
  float eps;
  bool gated;  // panels alternate between gate and up: out = silu(gate) * up, and n counts the pairs of columns

  int depth() const { return (k + kSpan<B> - 1) / kSpan<B>; }
};

template <int W>
float sum_squares(const float* x, int k) {
  using F = typename Vec<W>::f32;
  F squares{};
  int i = 0;
  for (; i + W <= k; i += W) {
    const F v = load<F>(x + i);
    squares += v * v;
  }
  float sum = sum_lanes<W>(squares);
  for (; i < k; ++i) sum += x[i] * x[i];
  return sum;
}

template <int W>
void rms_norm(const float* x, const float* weight, float eps, int k, float* y) {
  using F = typename Vec<W>::f32;
  const float factor = 1.0f / std::sqrt(sum_squares<W>(x, k) / static_cast<float>(k) + eps);
  int i = 0;
  for (; i + W <= k; i += W) store(y + i, load<F>(x + i) * factor * load<F>(weight + i));
  for (; i < k; ++i) y[i] = x[i] * factor * weight[i];
}

// What rounding took from one pair of inputs.
struct Remainder {
  int at;  // index of the pair
  Bf16Pair value;
};

// Inputs larger than this many times the root mean square of their row are multiplied with what rounding took from them, too. They
// are few, and most of a product's error is theirs: with them, log-probabilities are as close to float32 as with unrounded inputs.
inline constexpr float kLarge = 2.5f;

// To nearest even, without the branch of `to_bf16`, which would keep the loop around it from being vectorised. NaN stays NaN.
inline uint32_t round_half(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return (u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : rounded;
}

inline float unrounded(uint32_t half) {
  float x;
  half <<= 16;
  std::memcpy(&x, &half, 4);
  return x;
}

// Rounds x[0 … k) to pairs y, and appends the remainders of the large ones.
template <int W>
void round_pairs(const float* x, int k, Bf16Pair* y, std::vector<Remainder>& remainders) {
  for (int i = 0; i < k / 2; ++i) y[i] = round_half(x[2 * i]) | round_half(x[2 * i + 1]) << 16;
  if (k % 2) y[k / 2] = round_half(x[k - 1]);
  const float large = kLarge * std::sqrt(sum_squares<W>(x, k) / static_cast<float>(k));
  const auto keep = [&](int i) {
    const float next = i + 1 < k ? x[i + 1] : 0.0f;
    if (!(std::fabs(x[i]) > large || std::fabs(next) > large)) return;
    const Bf16Pair pair = y[i / 2];
    remainders.push_back({i / 2, round_half(x[i] - unrounded(pair & 0xffffu)) | round_half(next - unrounded(pair >> 16)) << 16});
  };
  int i = 0;
  for (; i + W <= k; i += W) {
    float most = 0.0f;
    for (int j = 0; j < W; ++j) most = std::fabs(x[i + j]) > most ? std::fabs(x[i + j]) : most;
    if (most > large)
      for (int j = 0; j < W; j += 2) keep(i + j);
  }
  for (; i < k; i += 2) keep(i);
}

// Adds the products of a row's remainders to its raw products with panels [first, last).
template <int W>
void add_remainders(const Gemm<Bf16Pair>& g, const Remainder* begin, const Remainder* end, int first, int last, float* c) {
  using F = typename Vec<W>::f32;
  using U = typename Vec<W>::u32;
  const size_t panel = static_cast<size_t>(g.depth()) * 2 * W;
  const auto add = [&](auto panels, int p) {
    constexpr int kVectors = 2 * decltype(panels)::value;
    F acc[kVectors];
    float* at = c + static_cast<size_t>(p - first) * 2 * W;
    for (int j = 0; j < kVectors; ++j) acc[j] = load<F>(at + j * W);
    for (const Remainder* r = begin; r != end; ++r) {
      const U x = U{} + r->value;
      for (int j = 0; j < kVectors; ++j) dot_pairs<W>(acc[j], load<U>(g.w + (p + j / 2) * panel + (2 * r->at + j % 2) * W), x);
    }
    for (int j = 0; j < kVectors; ++j) store(at + j * W, acc[j]);
  };
  int p = first;
  for (; p + 4 <= last; p += 4) add(std::integral_constant<int, 4>{}, p);
  for (; p < last; ++p) add(std::integral_constant<int, 1>{}, p);
}

// x / (1 + e^-x), for any x: the exponential is taken of -|x|, which cannot overflow.
template <int W>
[[gnu::always_inline]] inline typename Vec<W>::f32 silu(typename Vec<W>::f32 x) {
  using F = typename Vec<W>::f32;
  constexpr float kLog2e = 1.44269504f;
  const F magnitude = x < 0.0f ? -x : x;
  const F e = exp2_nonpositive<W>(magnitude * -kLog2e);
  return x * (x < 0.0f ? e : splat<F>(1.0f)) / (1.0f + e);
}

// Panels that a tile of `rows` rows takes at once: few rows leave registers for a second one and need its independent chains, and
// so do the 32 registers of AVX-512.
template <int W>
constexpr int tile_panels(int rows) {
  return W == 16 || rows <= 2 ? 2 : 1;
}

template <int W, class B>
[[gnu::noinline]] void tile(int rows, int panels, const Input<B>* a, size_t lda, const B* b, size_t panel, int k, float* c, size_t ldc,
                            bool accumulate) {
  switch (rows * 2 + panels - 1) {
#define TILE(R, P) \
  case R * 2 + P - 1: \
    if constexpr (P <= tile_panels<W>(R)) { \
      typename Vec<W>::f32 acc[R][P][2] = {}; \
      if (accumulate) load_tile<W, R, P>(acc, c, ldc); \
      advance<W, R, P>(acc, a, lda, b, panel, k, reinterpret_cast<const char*>(b + (P - 1) * panel) + kPrefetch); \
      store_tile<W, R, P>(acc, c, ldc); \
    } \
    return;
    TILE(1, 1) TILE(2, 1) TILE(3, 1) TILE(4, 1) TILE(5, 1) TILE(6, 1)
    TILE(1, 2) TILE(2, 2) TILE(3, 2) TILE(4, 2) TILE(5, 2) TILE(6, 2)
#undef TILE
  }
}

// Rows [row, row + rows) times panels [first, last). `a`: the prepared inputs of these rows. `c`: room for their raw products.
template <int W, class B>
void multiply(const Gemm<B>& g, const Input<B>* a, size_t lda, int rows, int first, int last, float* c, size_t ldc) {
  constexpr int kColumns = 2 * W;
  constexpr int kDepthBlock = kDepthBytes / (kColumns * static_cast<int>(sizeof(B)));
  const int whole = g.depth();
  const size_t panel = static_cast<size_t>(whole) * kColumns;
  const int steps = rows <= kTileRows ? 1 : (whole + kDepthBlock - 1) / kDepthBlock;
  const int depth = (whole + steps - 1) / steps;
  // Tiles of about one height: a low one at the end would have too few chains to keep the multipliers busy.
  const int tiles = (rows + kTileRows - 1) / kTileRows;
  const int most = tile_panels<W>((rows + tiles - 1) / tiles);
  for (int k = 0; k < whole; k += depth) {
    const int size = std::min(depth, whole - k);
    for (int p = first; p < last;) {
      const int width = std::min(most, last - p);
      const B* b = g.w + p * panel + static_cast<size_t>(k) * kColumns;
      for (int t = 0; t < tiles; ++t) {
        const int r = rows * t / tiles, tall = rows * (t + 1) / tiles - r;
        float* corner = c + r * ldc + static_cast<size_t>(p - first) * kColumns;
        tile<W>(tall, width, a + r * lda + k, lda, b, panel, size, corner, ldc, k > 0);
      }
      p += width;
    }
  }
}

// From raw products to one row of the output: columns [first * 2W, last * 2W) of the panels, cut off at the width of the output.
template <int W, class B>
void finish(const Gemm<B>& g, const float* c, int row, int first, int last) {
  using F = typename Vec<W>::f32;
  constexpr int kColumns = 2 * W;
  float* out = g.out + static_cast<size_t>(row) * g.n;
  const float* residual = g.residual ? g.residual + static_cast<size_t>(row) * g.n : nullptr;
  const int stride = g.gated ? 2 : 1;
  for (int p = first; p < last; p += stride) {
    const int column = p / stride * kColumns;
    for (int h = 0; h < kColumns; h += W) {
      const int at = (p - first) * kColumns + h;
      F y = load<F>(c + at);
      if (g.scale) y *= load<F>(g.scale + p * kColumns + h);
      if (g.gated) {
        F up = load<F>(c + at + kColumns);
        if (g.scale) up *= load<F>(g.scale + (p + 1) * kColumns + h);
        y = silu<W>(y) * up;
      }
      const int width = std::min(W, g.n - column - h);
      if (width == W) {
        if (residual) y += load<F>(residual + column + h);
        store(out + column + h, y);
      } else {
        float lanes[W];
        store(lanes, y);
        for (int i = 0; i < width; ++i) out[column + h + i] = lanes[i] + (residual ? residual[column + h + i] : 0.0f);
      }
    }
  }
}

}  // namespace twodeep

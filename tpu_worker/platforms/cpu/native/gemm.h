// out[T, N] = prologue(x)[T, K] · w[N, K]ᵀ, with w packed into panels of 2W columns, and an epilogue.
#pragma once

#include <algorithm>
#include <cmath>

#include "micro.h"
#include "parallel.h"

namespace twodeep {

// Rows whose inputs stay in the second-level cache while a block of panels passes by.
inline constexpr int kRowBlock = 120;
// Bytes between the weights in use and those fetched: at two rows of work for each row of a panel, the time memory takes to answer.
inline constexpr int kPrefetch = 4096;
// Bytes of a panel that stay in the first-level cache while the row tiles of a block pass by.
inline constexpr int kDepthBytes = 40960;
// Rows of a full tile: with two vectors of columns, six rows fill the sixteen registers of AVX2.
inline constexpr int kTileRows = 6;

// Inputs of a block, where weights are of few bits.
inline constexpr int kBlock = 32;

// Inputs that a row of a panel spans, how many elements it has, and how many bytes.
template <class B>
inline constexpr int kSpan = 1;
template <int W, class B>
inline constexpr int kRowElements = 2 * W;
template <int W, class B>
inline constexpr size_t kRowBytes = kRowElements<W, B> * sizeof(B);

// Scratch memory: what all threads read of the caller's, and what a thread has for itself.
enum { kPrepared, kProducts, kExpanded, kSummands };

// What is done to a gate before it multiplies. The last one is gpt-oss's: both are clamped, and 1 is added to what it multiplies.
enum class Activation : int32_t { kNone, kSilu, kGeluTanh, kClampedSwiglu };

struct BlockRows;

// Weights in blocks of one kind, as those see them who multiply with several kinds: each has a library of its own (block_kind.cc), so
// that only those are compiled that a model has.
struct BlockKind {
  int span, bytes;  // inputs of a unit, and its bytes, for all columns of a panel
  // Multiplies `count` rows with panels [first, last) of those at `panels`, which are `all` of `depth` units. c: room for raw products.
  void (*multiply)(const uint8_t* panels, int depth, int all, const BlockRows& rows, int count, int first, int last, float* c, size_t ldc);
  // Lays rows [n, k] out as a file has them.
  void (*pack)(const uint8_t* rows, int n, int k, bool gated, uint8_t* panels);
};

// For each type B of panel elements there are, in narrow.h or blocks.cc, `prepare`, which returns the inputs of all rows as they
// are multiplied, and `multiply`, which multiplies some of them with some panels. uint8_t is a weight in blocks, of any kind.
template <class B>
struct Gemm {
  const float* x;         // [T, K]
  const B* w;             // [panels][depth][kRowElements]
  const float* norm;      // [K] weight of an RMS norm over x, or null
  const float* residual;  // [T, N], or null
  float* out;             // [T, N]
  int rows, k, n, panels;
  float eps;
  Activation activation;  // but for none, panels alternate between gate and up: out = activation(gate) * up, n counts pairs of columns
  const int32_t* from = nullptr;   // [rows]: which row of x each one is; null: they are the rows of x
  const float* bias = nullptr;     // [N], added to products before anything else is done to them, or null; if gated, to those of the gate,
  const float* bias_up = nullptr;  // [N], and to the others
  const BlockKind* kind = nullptr;  // of blocks
  int stride = 0;                   // between rows of `out` and `residual`, if that is not N

  bool gated() const { return activation != Activation::kNone; }
  int depth() const { return (k + span() - 1) / span(); }
  int span() const { return std::is_same_v<B, uint8_t> ? kind->span : kSpan<B>; }
  // Of a row of a panel.
  int elements() const { return std::is_same_v<B, uint8_t> ? kind->bytes : kRowElements<kLanes, B>; }
  size_t panel_size() const { return static_cast<size_t>(depth()) * elements(); }
  size_t to_row(int row) const { return static_cast<size_t>(row) * (stride ? stride : n); }
};

// How the depth of a panel is cut into pieces of about one size.
struct DepthCuts {
  int depth, count, size;

  // No more than `most` in a piece, and but for the last one a multiple of `unit`, which divides `most`.
  DepthCuts(int depth, int most, int unit)
      : depth(depth), count((depth + most - 1) / most), size(((depth + count - 1) / count + unit - 1) / unit * unit) {}
  int begin(int cut) const { return std::min(cut * size, depth); }
};

template <int W>
float sum_squares(const float* x, int k) {
  using F = typename Vec<W>::f32;
  F squares[4] = {};
  int i = 0;
  for (; i + 4 * W <= k; i += 4 * W)
    for (int j = 0; j < 4; ++j) {
      const F v = load<F>(x + i + j * W);
      squares[j] += v * v;
    }
  for (; i + W <= k; i += W) squares[0] += load<F>(x + i) * load<F>(x + i);
  float sum = sum_lanes<W>((squares[0] + squares[1]) + (squares[2] + squares[3]));
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

// A row of inputs, normed if need be.
template <int W, class B>
const float* input_row(const Gemm<B>& g, int row) {
  const float* x = g.x + static_cast<size_t>(g.from ? g.from[row] : row) * g.k;
  if (!g.norm) return x;
  float* normed = scratch<kProducts>(g.k);
  rms_norm<W>(x, g.norm, g.eps, g.k, normed);
  return normed;
}

// x / (1 + e^-s), with s = x for silu, and for gelu twice the argument of its hyperbolic tangent: (1 + tanh(s / 2)) / 2 is the same
// logistic function. For any x: the exponential is taken of -|s|, which cannot overflow.
template <int W>
[[gnu::always_inline]] inline typename Vec<W>::f32 activate(Activation activation, typename Vec<W>::f32 x) {
  using F = typename Vec<W>::f32;
  constexpr float kLog2e = 1.44269504f, kLinear = 1.59576912f, kCubic = 0.0713548163f;  // sqrt(8 / pi), and that times 0.044715
  const F s = activation == Activation::kGeluTanh ? x * (kLinear + kCubic * x * x) : x;
  const F magnitude = s < 0.0f ? -s : s;
  const F e = exp2_nonpositive<W>(magnitude * -kLog2e);
  return x * (s < 0.0f ? e : splat<F>(1.0f)) / (1.0f + e);
}

// What a gated weight yields of a gate and of what it multiplies. The constants of the clamped one are those of gpt-oss (OpenAI 2025).
template <int W>
[[gnu::always_inline]] inline typename Vec<W>::f32 gated(Activation activation, typename Vec<W>::f32 gate, typename Vec<W>::f32 up) {
  using F = typename Vec<W>::f32;
  if (activation != Activation::kClampedSwiglu) return activate<W>(activation, gate) * up;
  constexpr float kLimit = 7.0f, kSlope = 1.702f;
  const F limit = splat<F>(kLimit);
  gate = gate > limit ? limit : gate;
  up = up > limit ? limit : up;
  up = up < -limit ? -limit : up;
  return activate<W>(Activation::kSilu, gate * kSlope) * (1.0f / kSlope) * (up + 1.0f);
}

// W numbers of a bias from `column` on, zeros behind its end.
template <int W>
[[gnu::always_inline]] inline typename Vec<W>::f32 bias_at(const float* bias, int column, int n) {
  if (column + W <= n) return load<typename Vec<W>::f32>(bias + column);
  float lanes[W] = {};
  for (int i = 0; column + i < n; ++i) lanes[i] = bias[column + i];
  return load<typename Vec<W>::f32>(lanes);
}

// From raw products to one row of the output: columns [first * 2W, last * 2W) of the panels, cut off at the width of the output.
template <int W, class B>
void finish(const Gemm<B>& g, const float* c, int row, int first, int last) {
  using F = typename Vec<W>::f32;
  constexpr int kColumns = 2 * W;
  float* out = g.out + g.to_row(row);
  const float* residual = g.residual ? g.residual + g.to_row(row) : nullptr;
  const int stride = g.gated() ? 2 : 1;
  for (int p = first; p < last; p += stride) {
    const int column = p / stride * kColumns;
    for (int h = 0; h < kColumns; h += W) {
      const int at = (p - first) * kColumns + h;
      F y = load<F>(c + at);
      if (g.bias) y += bias_at<W>(g.bias, column + h, g.n);
      if (g.gated()) {
        F up = load<F>(c + at + kColumns);
        if (g.bias_up) up += bias_at<W>(g.bias_up, column + h, g.n);
        y = gated<W>(g.activation, y, up);
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

// Calls body(row, panel, column) for each output feature (a row of the weight): where in the panels it belongs.
template <class Body>
void place_rows(int n, bool gated, const Body& body) {
  constexpr int kColumns = 2 * kLanes;
  const int half = gated ? n / 2 : n;
  for (int row = 0; row < n; ++row) {
    const int feature = row < half ? row : row - half;
    body(row, feature / kColumns * (gated ? 2 : 1) + (row < half ? 0 : 1), feature % kColumns);
  }
}

}  // namespace twodeep

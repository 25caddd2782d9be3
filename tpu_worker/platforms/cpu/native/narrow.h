// Products with weights of floats: bf16 as they are widened to f32, or in pairs where the machine multiplies bf16 by bf16; or f32.
#pragma once

#include "gemm.h"

namespace twodeep {

// What panels are made of in this library, on this machine.
using Narrow = std::conditional_t<kFloat32, float, std::conditional_t<kDotsPairs, Bf16Pair, uint16_t>>;

template <>
inline constexpr int kSpan<Bf16Pair> = 2;

// What a panel's elements are multiplied with: inputs as they are, or two of them rounded to bf16.
template <class B>
using Input = std::conditional_t<std::is_same_v<B, Bf16Pair>, Bf16Pair, float>;

template <int W, class B>
DepthCuts depth_cuts(const Gemm<B>& g) {
  return {g.depth(), kDepthBytes / (2 * W * static_cast<int>(sizeof(B))), 16};
}

// Inputs larger than this many times the root mean square of their row are multiplied with what rounding took from them, too. They
// are few, and most of a product's error is theirs: with them, log-probabilities are as close to float32 as with unrounded inputs.
inline constexpr float kLarge = 2.5f;

// What rounding took from the large inputs of rows: pairs, in the order of the inputs.
struct Remainders {
  Bf16Pair* values;
  int* at;      // index of each in the row's pairs
  int* ends;    // [rows][blocks]: how many there are up to the end of each block of the depth
  int most;     // per row; row r begins at r * most
  int blocks;

  Remainders from(int row) const {
    const size_t offset = static_cast<size_t>(row) * most;
    return {values + offset, at + offset, ends + static_cast<size_t>(row) * blocks, most, blocks};
  }

  // Room for a row of k inputs, and for a vector more. If more than k / kLarge² were that large, they alone would exceed the mean square.
  template <int W>
  static int room(int k) {
    return static_cast<int>(static_cast<float>(k) / (kLarge * kLarge) * 1.01f) + 1 + W / 2;
  }
};

// Inputs of some rows as they are multiplied: row r at values + r * stride.
template <class B>
struct Rows {
  const Input<B>* values;
  size_t stride;
  Remainders remainders;  // where inputs are rounded

  Rows from(int row) const { return {values + row * stride, stride, remainders.from(row)}; }
};

// Rounds x[0 … k) to pairs, which it writes to y and up to W / 2 more, and keeps the remainders of the large ones.
template <int W>
void round_row(const float* x, int k, const DepthCuts& blocks, Bf16Pair* y, const Remainders& remainders) {
  using F = typename Vec<W>::f32;
  using H = typename Vec<W>::half_u32;
  const F large = splat<F>(kLarge * std::sqrt(sum_squares<W>(x, k) / static_cast<float>(k)));
  H lanes;
  for (int j = 0; j < W / 2; ++j) lanes[j] = j;
  int count = 0;
  const auto round = [&](const float* from, int pair) {
    const F v = load<F>(from);
    const H pairs = to_pairs<W>(v);
    const uint32_t kept = pairs_beyond<W>(v, large);
    store(y + pair, pairs);
    store(remainders.values + count, compress<W>(to_pairs<W>(v - from_pairs<W>(pairs)), kept));
    store(remainders.at + count, compress<W>(lanes + static_cast<uint32_t>(pair), kept));
    count += __builtin_popcount(kept);
  };
  for (int block = 0; block < blocks.count; ++block) {
    const int end = 2 * blocks.begin(block + 1);
    int i = 2 * blocks.begin(block);
    for (; i + W <= std::min(end, k); i += W) round(x + i, i / 2);
    if (i < std::min(end, k)) {
      float last[W] = {};
      std::memcpy(last, x + i, (k - i) * sizeof(float));
      round(last, i / 2);
    }
    remainders.ends[block] = count;
  }
}

// Adds the products of the remainders of R rows in one block of the depth.
template <int W, int R, int P>
[[gnu::always_inline]] inline void add_remainders(typename Vec<W>::f32 (&acc)[R][P][2], const Remainders& remainders, int block,
                                                  const Bf16Pair* b, size_t panel) {
  using U = typename Vec<W>::u32;
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const Remainders row = remainders.from(r);
    for (int i = block ? row.ends[block - 1] : 0; i < row.ends[block]; ++i) {
      const U x = U{} + row.values[i];
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) dot_pairs<W>(acc[r][p][h], load<U>(b + p * panel + (2 * row.at[i] + h) * W), x);
    }
  }
}

// The inputs of all rows as they are multiplied: as they are, normed, or normed and rounded, in memory of this thread.
template <class B>
Rows<B> prepare(const Pool& pool, const Gemm<B>& g, int threads) {
  if (!g.norm && !g.from) return Rows<B>{g.x, static_cast<size_t>(g.k), {}};
  const size_t stride = g.k + kLanes;
  float* values = scratch<kPrepared>(g.rows * stride);
  parallel_for(pool, g.rows, threads, [&](int r) { std::memcpy(values + r * stride, input_row<kLanes>(g, r), g.k * sizeof(float)); });
  return Rows<B>{values, stride, {}};
}

inline Rows<Bf16Pair> prepare(const Pool& pool, const Gemm<Bf16Pair>& g, int threads) {
  const size_t rows = g.rows;
  const DepthCuts blocks = depth_cuts<kLanes>(g);
  const size_t stride = g.depth() + kLanes;  // more than a row: rows a power of two apart would share cache sets
  const int most = Remainders::room<kLanes>(g.k);
  auto* values = reinterpret_cast<Bf16Pair*>(scratch<kPrepared>(rows * (stride + 2 * most + blocks.count)));
  auto* remainders = values + rows * stride;
  auto* at = reinterpret_cast<int*>(remainders + rows * most);
  const Rows<Bf16Pair> all{values, stride, {remainders, at, at + rows * most, most, blocks.count}};
  parallel_for(pool, g.rows, threads, [&](int r) {
    round_row<kLanes>(input_row<kLanes>(g, r), g.k, blocks, values + r * stride, all.remainders.from(r));
  });
  return all;
}

// Panels that a tile of `rows` rows takes at once: few rows leave registers for a second one and need its independent chains, and
// so do the 32 registers of AVX-512.
template <int W>
constexpr int tile_panels(int rows) {
  return W == 16 || rows <= 2 ? 2 : 1;
}

// Blocks [begin, end) of the depth, for the first R of `rows` and P panels from b on.
template <int W, int R, int P, class B>
[[gnu::always_inline]] inline void tile(const Rows<B>& rows, const B* b, size_t panel, const DepthCuts& blocks, int begin, int end,
                                        Ahead ahead, float* c, size_t ldc) {
  typename Vec<W>::f32 acc[R][P][2] = {};
  if (begin > 0) load_tile<W, R, P>(acc, c, ldc);
  for (int block = begin; block < end; ++block) {
    const int from = blocks.begin(block), size = blocks.begin(block + 1) - from;
    const B* at = b + static_cast<size_t>(from) * 2 * W;
    // Without other tiles there is nothing to be early for but the stream itself, of which the processor sees a part.
    const Ahead here = ahead.from ? ahead : Ahead{reinterpret_cast<const char*>(at + (P - 1) * panel) + kPrefetch, kRowBytes<W, B>, 64};
    advance<W, R, P>(acc, rows.values + from, rows.stride, at, panel, size, here);
    if constexpr (std::is_same_v<B, Bf16Pair>) add_remainders<W, R, P>(acc, rows.remainders, block, b, panel);
  }
  store_tile<W, R, P>(acc, c, ldc);
}

template <int W, class B>
[[gnu::noinline]] void tile(int tall, int wide, const Rows<B>& rows, const B* b, size_t panel, const DepthCuts& blocks, int begin,
                            int end, Ahead ahead, float* c, size_t ldc) {
  switch (tall * 2 + wide - 1) {
#define TILE(R, P) \
  case R * 2 + P - 1: \
    if constexpr (P <= tile_panels<W>(R)) tile<W, R, P>(rows, b, panel, blocks, begin, end, ahead, c, ldc); \
    return;
    TILE(1, 1) TILE(2, 1) TILE(3, 1) TILE(4, 1) TILE(5, 1) TILE(6, 1)
    TILE(1, 2) TILE(2, 2) TILE(3, 2) TILE(4, 2) TILE(5, 2) TILE(6, 2)
#undef TILE
  }
}

// `count` rows times panels [first, last). c: room for their raw products.
template <class B>
void multiply(const Gemm<B>& g, const Rows<B>& rows, int count, int first, int last, float* c, size_t ldc) {
  constexpr int W = kLanes, kColumns = 2 * W;
  const DepthCuts blocks = depth_cuts<W>(g);
  const size_t panel = static_cast<size_t>(g.depth()) * kColumns;
  // Tiles of about one height: a low one at the end would have too few chains to keep the multipliers busy.
  const int tiles = (count + kTileRows - 1) / kTileRows;
  const int most = tile_panels<W>((count + tiles - 1) / tiles);
  // One tile of rows passes once by all of a panel, several pass by one block of it after the other. The sums are the same.
  const int stride = tiles == 1 ? blocks.count : 1;
  for (int block = 0; block < blocks.count; block += stride)
    for (int p = first; p < last; p += most)
      for (int t = 0; t < tiles; ++t) {
        const int r = count * t / tiles, tall = count * (t + 1) / tiles - r;
        // Each of the tiles fetches its share of the panels that come after these.
        const size_t share = (kRowBytes<W, B> + tiles - 1) / tiles;
        const bool ends = p + 2 * most > g.panels;
        const char* next = reinterpret_cast<const char*>(g.w + (p + most) * panel + static_cast<size_t>(blocks.begin(block)) * kColumns);
        Ahead ahead{next + t * share * blocks.size, share, (most - 1) * static_cast<ptrdiff_t>(panel * sizeof(B))};
        if (tiles == 1) ahead = {nullptr, 0, 0};
        else if (ends) ahead = {g.w, 0, 0};
        tile<W>(tall, std::min(most, last - p), rows.from(r), g.w + p * panel, panel, blocks, block, block + stride, ahead,
                c + r * ldc + static_cast<size_t>(p - first) * kColumns, ldc);
      }
}

}  // namespace twodeep

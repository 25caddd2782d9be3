// Products with weights of 4 or 8 bits, in blocks of 32 inputs that share a scale and perhaps a minimum, as GGUF files hold them: the
// products with the quants of a block are summed first, and the sum is scaled.
//
// Where pairs of bf16 are multiplied, quants become pairs of whole numbers, which bf16 holds exactly, and inputs are rounded; in each
// block the largest of them keeps what rounding took from it. Where not, quants become f32 and inputs stay.
#pragma once

#include "gemm.h"

namespace twodeep {

// What quants are multiplied with, and how many there are in a block, and for eight inputs of a block.
using Factor = std::conditional_t<kDotsPairs, Bf16Pair, float>;
inline constexpr int kFactors = kDotsPairs ? kBlock / 2 : kBlock, kFactorsOf8 = kFactors / 4;

// A vector of quants of as many output features, each as its factor needs it.
template <int W>
using Quants = std::conditional_t<kDotsPairs, typename Vec<W>::u32, typename Vec<W>::f32>;

template <int W>
[[gnu::always_inline]] inline void multiply_add(typename Vec<W>::f32& sum, Quants<W> quants, Factor factor) {
  if constexpr (kDotsPairs) {
    dot_pairs<W>(sum, quants, Quants<W>{} + factor);
  } else {
    sum += quants * factor;
  }
}

// The following hold a block of each of 2W output features: weight = scale * quant + minimum. quants(q, i, half) are those for factor
// i of inputs 8q to 8q + 7.

// 4 bits: word q of a feature holds input 8q + 2j in its nibble j and input 8q + 2j + 1 in nibble 4 + j.
template <int W>
struct Block4 {
  uint32_t words[4][2][W];
  uint16_t scale[2 * W], minimum[2 * W];  // f16

  [[gnu::always_inline]] Quants<W> quants(int q, int i, int half) const {
    using U = typename Vec<W>::u32;
    const U word = load<U>(words[q][half]);
    if constexpr (kDotsPairs) {
      return (word >> (4 * i) & 0x000f000fu) | 0x43004300u;  // 128 more, as bf16
    } else {
      return __builtin_convertvector((typename Vec<W>::i32)(word >> (i / 2 * 4 + i % 2 * 16) & 0xfu), typename Vec<W>::f32);
    }
  }
  [[gnu::always_inline]] typename Vec<W>::f32 scales(int half) const { return from_f16<W>(scale + half * W); }
  [[gnu::always_inline]] typename Vec<W>::f32 minima(int half) const {
    return from_f16<W>(minimum + half * W) - (kDotsPairs ? 128.0f : 0.0f) * scales(half);
  }
};

// 8 bits: what belongs to one factor of one feature lies side by side. All minima are zero.
template <int W>
struct Block8 {
  int8_t bytes[kFactors][2][W][kBlock / kFactors];
  uint16_t scale[2 * W];  // f16

  [[gnu::always_inline]] Quants<W> quants(int q, int i, int half) const {
    const int8_t* of_factor = bytes[q * kFactorsOf8 + i][half][0];
    if constexpr (kDotsPairs) {
      return pairs_of_bytes<W>(of_factor);
    } else {
      return widen<W>(of_factor);
    }
  }
  [[gnu::always_inline]] typename Vec<W>::f32 scales(int half) const { return from_f16<W>(scale + half * W); }
  [[gnu::always_inline]] typename Vec<W>::f32 minima(int) const { return typename Vec<W>::f32{}; }
};

template <int W>
inline constexpr int kSpan<Block4<W>> = kBlock;
template <int W>
inline constexpr int kSpan<Block8<W>> = kBlock;
template <int W>
inline constexpr int kRowElements<W, Block4<W>> = 1;
template <int W>
inline constexpr int kRowElements<W, Block8<W>> = 1;

// Either, as it is multiplied: for many rows this is worth the memory, which is in the first-level cache.
template <int W>
struct Expanded {
  Factor all[kFactors][2][W];
  float scale[2 * W], minimum[2 * W];

  template <class B>
  void fill(const B& block) {
    for (int q = 0; q < 4; ++q)
#pragma GCC unroll 8
      for (int i = 0; i < kFactorsOf8; ++i)
        for (int half = 0; half < 2; ++half) store(all[q * kFactorsOf8 + i][half], block.quants(q, i, half));
    for (int half = 0; half < 2; ++half) {
      store(scale + half * W, block.scales(half));
      store(minimum + half * W, block.minima(half));
    }
  }
  [[gnu::always_inline]] Quants<W> quants(int q, int i, int half) const { return load<Quants<W>>(all[q * kFactorsOf8 + i][half]); }
  [[gnu::always_inline]] typename Vec<W>::f32 scales(int half) const { return load<typename Vec<W>::f32>(scale + half * W); }
  [[gnu::always_inline]] typename Vec<W>::f32 minima(int half) const { return load<typename Vec<W>::f32>(minimum + half * W); }
};

// Inputs of some rows as they are multiplied. Of each row: factors [blocks][kFactors], of each block the sum of the inputs that these
// stand for, one more factor, and the index in the block of that which it belongs to.
struct BlockRows {
  float* data;
  int blocks;

  static size_t stride(int blocks) { return static_cast<size_t>(blocks) * (kFactors + 3) + 16; }
  BlockRows from(int row) const { return {data + row * stride(blocks), blocks}; }
  Factor* factors() const { return reinterpret_cast<Factor*>(data); }
  float* sums() const { return data + static_cast<size_t>(blocks) * kFactors; }
  Factor* rests() const { return reinterpret_cast<Factor*>(sums() + blocks); }
  int32_t* at() const { return reinterpret_cast<int32_t*>(sums() + 2 * blocks); }
};

// One row of x[0 … k), with zeros up to whole blocks, as it is multiplied.
template <int W>
void prepare_row(const float* x, int k, const BlockRows& row) {
  using F = typename Vec<W>::f32;
  using U = typename Vec<W>::u32;
  constexpr int kVectors = kBlock / W;
  for (int b = 0; b < row.blocks; ++b) {
    float values[kBlock] = {};
    std::memcpy(values, x + b * kBlock, std::min(kBlock, k - b * kBlock) * sizeof(float));
    F sum = {};
    if constexpr (kDotsPairs) {
      using H = typename Vec<W>::half_u32;
      Bf16Pair rests[kFactors];
      U lanes, largest = {};
      for (int j = 0; j < W; ++j) lanes[j] = j;
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const F value = load<F>(values + v * W);
        const H pairs = to_pairs<W>(value);
        store(row.factors() + b * kFactors + v * W / 2, pairs);
        store(rests + v * W / 2, to_pairs<W>(value - from_pairs<W>(pairs)));
        sum += from_pairs<W>(pairs);
        // The magnitude, with the index in place of its last bits.
        const U key = ((U)value & 0x7fffffe0u) | (lanes + static_cast<uint32_t>(v * W));
        largest = key > largest ? key : largest;
      }
      const int at = (max_lanes<W>(largest) & (kBlock - 1)) / 2;
      row.at()[b] = at;
      row.rests()[b] = rests[at];
      row.sums()[b] = sum_lanes<W>(sum) + (from_bf16(rests[at]) + from_bf16(rests[at] >> 16));
    } else {
      for (int v = 0; v < kVectors; ++v) sum += load<F>(values + v * W);
      std::memcpy(row.factors() + b * kFactors, values, sizeof values);
      row.sums()[b] = sum_lanes<W>(sum);
    }
  }
}

// The inputs of all rows as they are multiplied, in memory of this thread.
template <class B>
BlockRows prepare(const Pool& pool, const Gemm<B>& g, int threads) {
  const BlockRows all{scratch<kPrepared>(g.rows * BlockRows::stride(g.depth())), g.depth()};
  parallel_for(pool, g.rows, threads, [&](int r) { prepare_row<kLanes>(input_row<kLanes>(g, r), g.k, all.from(r)); });
  return all;
}

// What to fetch meanwhile: of every block some lines, from as many bytes further on than those for the block before.
template <int kLines>
struct Lines {
  const char* from;
  size_t step;

  [[gnu::always_inline]] void fetch(int block) const {
#pragma GCC unroll 32
    for (int i = 0; i < kLines; ++i) __builtin_prefetch(from + block * step + i * 64);
  }
};

// Blocks [begin, end) of R rows, where `blocks` holds that of `begin` and those after it.
template <int W, int R, class B, int kLines>
[[gnu::always_inline]] inline void tile(const BlockRows& rows, const B* blocks, int begin, int end, Lines<kLines> ahead, float* c,
                                        size_t ldc) {
  using F = typename Vec<W>::f32;
  const size_t stride = BlockRows::stride(rows.blocks);
  F acc[R][1][2] = {};
  if (begin > 0) load_tile<W, R, 1>(acc, c, ldc);
  for (int b = begin; b < end; ++b) {
    const B& block = blocks[b - begin];
    ahead.fetch(b - begin);
    F sums[R][2] = {};
    const Factor* factors = rows.factors() + b * kFactors;
    for (int q = 0; q < 4; ++q, factors += kFactorsOf8)
#pragma GCC unroll 8
      for (int i = 0; i < kFactorsOf8; ++i) {
        const Quants<W> lo = block.quants(q, i, 0), hi = block.quants(q, i, 1);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          multiply_add<W>(sums[r][0], lo, factors[r * stride + i]);
          multiply_add<W>(sums[r][1], hi, factors[r * stride + i]);
        }
      }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      if constexpr (kDotsPairs) {
        const int at = rows.at()[r * stride + b];
        const Factor rest = rows.rests()[r * stride + b];
        for (int half = 0; half < 2; ++half) multiply_add<W>(sums[r][half], block.quants(at / kFactorsOf8, at % kFactorsOf8, half), rest);
      }
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        acc[r][0][half] += block.scales(half) * sums[r][half];
        acc[r][0][half] += block.minima(half) * rows.sums()[r * stride + b];
      }
    }
  }
  store_tile<W, R, 1>(acc, c, ldc);
}

template <int W, int kFewest, class B, int kLines>
[[gnu::noinline]] void tile(int tall, const BlockRows& rows, const B* blocks, int begin, int end, Lines<kLines> ahead, float* c,
                            size_t ldc) {
  switch (tall) {
#define TILE(R) \
  case R: \
    if constexpr (R >= kFewest) tile<W, R>(rows, blocks, begin, end, ahead, c, ldc); \
    return;
    TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6)
#undef TILE
  }
}

// `count` rows times panels [first, last). c: room for their raw products.
template <class B>
void multiply(const Gemm<B>& g, const BlockRows& rows, int count, int first, int last, float* c, size_t ldc) {
  constexpr int W = kLanes, kColumns = 2 * W;
  using Wide = Expanded<W>;
  const int depth = g.depth(), tiles = (count + kTileRows - 1) / kTileRows;
  if (tiles == 1) {
    for (int p = first; p < last; ++p) {
      const B* panel = g.w + static_cast<size_t>(p) * depth;
      const Lines<(sizeof(B) + 63) / 64> ahead{reinterpret_cast<const char*>(panel) + kPrefetch, sizeof(B)};
      tile<W, 1>(count, rows, panel, 0, depth, ahead, c + static_cast<size_t>(p - first) * kColumns, ldc);
    }
    return;
  }
  const DepthCuts cuts(depth, kDepthBytes / static_cast<int>(sizeof(Wide)), 1);
  auto* wide = reinterpret_cast<Wide*>(scratch<kExpanded>(cuts.size * sizeof(Wide) / sizeof(float)));
  for (int cut = 0; cut < cuts.count; ++cut)
    for (int p = first; p < last; ++p) {
      const int begin = cuts.begin(cut), end = cuts.begin(cut + 1);
      const B* blocks = g.w + static_cast<size_t>(p) * depth + begin;
      for (int b = begin; b < end; ++b) wide[b - begin].fill(blocks[b - begin]);
      // Each of the tiles fetches its share of the panel that comes next.
      constexpr int kLines = 4, kShares = (sizeof(B) + kLines * 64 - 1) / (kLines * 64);
      const char* next = reinterpret_cast<const char*>(p + 1 < g.panels ? blocks + depth : g.w);
      for (int t = 0; t < tiles; ++t) {
        const int r = count * t / tiles;
        tile<W, kTileRows / 2>(count * (t + 1) / tiles - r, rows.from(r), wide, begin, end,
                               Lines<kLines>{next + t % kShares * kLines * 64, sizeof(B)},
                               c + r * ldc + static_cast<size_t>(p - first) * kColumns, ldc);
      }
    }
}

}  // namespace twodeep

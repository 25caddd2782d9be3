// Products with weights of few bits, in blocks of 32 inputs that share a scale and perhaps a minimum, as GGUF files hold them: the
// products with the quants of a block are summed first, and the sum is scaled.
//
// Where pairs of bf16 are multiplied, quants become pairs of whole numbers, which bf16 holds exactly, and inputs are rounded; in each
// block the largest of them keeps what rounding took from it. Where not, quants become f32 and inputs stay.
#pragma once

#include "gemm.h"

namespace twodeep {

// What quants are multiplied with, and how many there are in a block, and for eight inputs of a block.
using Factor = std::conditional_t<kRoundsInputs, Bf16Pair, float>;
inline constexpr int kFactors = kRoundsInputs ? kBlock / 2 : kBlock, kFactorsOf8 = kFactors / 4;

// A vector of quants of as many output features, each as its factor needs it.
template <int W>
using Quants = std::conditional_t<kRoundsInputs, typename Vec<W>::u32, typename Vec<W>::f32>;

template <int W>
[[gnu::always_inline]] inline void multiply_add(typename Vec<W>::f32& sum, Quants<W> quants, Factor factor) {
  if constexpr (kRoundsInputs) {
    dot_pairs<W>(sum, quants, Quants<W>{} + factor);
  } else {
    sum += quants * factor;
  }
}

// A unit of weights is a number of blocks of each of 2W output features (block_kinds.h): kBlocks of them, each of kGroups groups of
// inputs with a scale of their own. weight = scale * quant + minimum, where kMinima; quants(j, q, i, half) are those of block j for factor
// i of its inputs 8q to 8q + 7.

// One of them as it is multiplied: for many rows this is worth the memory, which is in the first-level cache.
template <int W, int G, bool kWithMinima>
struct Expanded {
  static constexpr int kBlocks = 1, kGroups = G;
  static constexpr bool kMinima = kWithMinima;
  Factor all[kFactors][2][W];
  float scale[G][2 * W], minimum[G][2 * W];

  template <class B>
  void fill(const B& unit, int j) {
    for (int q = 0; q < 4; ++q)
#pragma GCC unroll 8
      for (int i = 0; i < kFactorsOf8; ++i)
        for (int half = 0; half < 2; ++half) store(all[q * kFactorsOf8 + i][half], unit.quants(j, q, i, half));
    for (int g = 0; g < G; ++g)
      for (int half = 0; half < 2; ++half) {
        store(scale[g] + half * W, unit.scales(j, g, half));
        if constexpr (kMinima) store(minimum[g] + half * W, unit.minima(j, g, half));
      }
  }
  [[gnu::always_inline]] Quants<W> quants(int, int q, int i, int half) const {
    return load<Quants<W>>(all[q * kFactorsOf8 + i][half]);
  }
  [[gnu::always_inline]] typename Vec<W>::f32 scales(int, int g, int half) const {
    return load<typename Vec<W>::f32>(scale[g] + half * W);
  }
  [[gnu::always_inline]] typename Vec<W>::f32 minima(int, int g, int half) const {
    return load<typename Vec<W>::f32>(minimum[g] + half * W);
  }
};

// Inputs of some rows as they are multiplied, by weights of any kind. Of each row: factors [blocks][kFactors], of each block the sum of
// the inputs that these stand for, those of its halves, one more factor, and the index in the block of that which it belongs to.
struct BlockRows {
  float* data;
  int blocks;

  static size_t stride(int blocks) { return static_cast<size_t>(blocks) * (kFactors + 5) + 16; }
  BlockRows from(int row) const { return {data + row * stride(blocks), blocks}; }
  Factor* factors() const { return reinterpret_cast<Factor*>(data); }
  float* sums() const { return data + static_cast<size_t>(blocks) * kFactors; }
  float* sums_of_halves() const { return sums() + blocks; }  // [blocks][2]
  Factor* rests() const { return reinterpret_cast<Factor*>(sums() + 3 * blocks); }
  int32_t* at() const { return reinterpret_cast<int32_t*>(sums() + 4 * blocks); }
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
    constexpr int kOfHalf = kVectors / 2;
    F sums[2] = {};  // of the halves
    if constexpr (kRoundsInputs) {
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
        sums[v / kOfHalf] += from_pairs<W>(pairs);
        // The magnitude, with the index in place of its last bits.
        const U key = ((U)value & 0x7fffffe0u) | (lanes + static_cast<uint32_t>(v * W));
        largest = key > largest ? key : largest;
      }
      const int at = (max_lanes<W>(largest) & (kBlock - 1)) / 2;
      row.at()[b] = at;
      row.rests()[b] = rests[at];
    } else {
      for (int v = 0; v < kVectors; ++v) sums[v / kOfHalf] += load<F>(values + v * W);
      std::memcpy(row.factors() + b * kFactors, values, sizeof values);
    }
    float* halves = row.sums_of_halves() + 2 * b;
    for (int half = 0; half < 2; ++half) halves[half] = sum_lanes<W>(sums[half]);
    if constexpr (kRoundsInputs) {
      const Bf16Pair rest = row.rests()[b];
      halves[row.at()[b] / (kFactors / 2)] += from_bf16(rest) + from_bf16(rest >> 16);
    }
    row.sums()[b] = halves[0] + halves[1];
  }
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

// Units [begin, end) of R rows, where `units` holds that of `begin` and those after it.
template <int W, int R, class B, int kLines>
[[gnu::always_inline]] inline void tile(const BlockRows& rows, const B* units, int begin, int end, Lines<kLines> ahead, float* c,
                                        size_t ldc) {
  using F = typename Vec<W>::f32;
  constexpr int kGroups = B::kGroups, kOfGroup = 4 / kGroups;
  const size_t stride = BlockRows::stride(rows.blocks);
  F acc[R][1][2] = {};
  if (begin > 0) load_tile<W, R, 1>(acc, c, ldc);
  for (int b = begin * B::kBlocks; b < end * B::kBlocks; ++b) {
    const int from_begin = b - begin * B::kBlocks, j = from_begin % B::kBlocks;
    const B& unit = units[from_begin / B::kBlocks];
    ahead.fetch(from_begin);
    const Factor* factors = rows.factors() + b * kFactors;
    for (int g = 0; g < kGroups; ++g) {
      F sums[R][2] = {};
      for (int q = g * kOfGroup; q < (g + 1) * kOfGroup; ++q, factors += kFactorsOf8)
#pragma GCC unroll 8
        for (int i = 0; i < kFactorsOf8; ++i) {
          const Quants<W> lo = unit.quants(j, q, i, 0), hi = unit.quants(j, q, i, 1);
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) {
            multiply_add<W>(sums[r][0], lo, factors[r * stride + i]);
            multiply_add<W>(sums[r][1], hi, factors[r * stride + i]);
          }
        }
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const F scale = unit.scales(j, g, half);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          if constexpr (kRoundsInputs && kGroups == 1) {
            const int at = rows.at()[r * stride + b];
            multiply_add<W>(sums[r][half], unit.quants(j, at / kFactorsOf8, at % kFactorsOf8, half), rows.rests()[r * stride + b]);
          }
          acc[r][0][half] += scale * sums[r][half];
        }
        if constexpr (B::kMinima) {
          const F minimum = unit.minima(j, g, half);
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) {
            const float sum = kGroups == 1 ? rows.sums()[r * stride + b] : rows.sums_of_halves()[r * stride + 2 * b + g];
            acc[r][0][half] += minimum * sum;
          }
        }
      }
    }
    if constexpr (kRoundsInputs && kGroups > 1) {  // the rest is of one of the groups
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const int at = rows.at()[r * stride + b];
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          F product = {};
          multiply_add<W>(product, unit.quants(j, at / kFactorsOf8, at % kFactorsOf8, half), rows.rests()[r * stride + b]);
          acc[r][0][half] += unit.scales(j, at * kGroups / kFactors, half) * product;
        }
      }
    }
  }
  store_tile<W, R, 1>(acc, c, ldc);
}

template <int W, int kFewest, class B, int kLines>
[[gnu::noinline]] void tile(int tall, const BlockRows& rows, const B* units, int begin, int end, Lines<kLines> ahead, float* c,
                            size_t ldc) {
  switch (tall) {
#define TILE(R) \
  case R: \
    if constexpr (R >= kFewest) tile<W, R>(rows, units, begin, end, ahead, c, ldc); \
    return;
    TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6)
#undef TILE
  }
}

// Some panels of weights in units: [panels][depth], of which `all` are there.
template <class B>
struct Panels {
  const B* units;
  int depth, all;
};

// `count` rows times panels [first, last). c: room for their raw products.
template <class B>
void multiply(const Panels<B>& w, const BlockRows& rows, int count, int first, int last, float* c, size_t ldc) {
  constexpr int W = kLanes, kColumns = 2 * W, kBytes = sizeof(B) / B::kBlocks;
  using Wide = Expanded<W, B::kGroups, B::kMinima>;
  const int depth = w.depth, tiles = (count + kTileRows - 1) / kTileRows;
  if (tiles == 1) {
    for (int p = first; p < last; ++p) {
      const B* panel = w.units + static_cast<size_t>(p) * depth;
      const Lines<(kBytes + 63) / 64> ahead{reinterpret_cast<const char*>(panel) + kPrefetch, kBytes};
      tile<W, 1>(count, rows, panel, 0, depth, ahead, c + static_cast<size_t>(p - first) * kColumns, ldc);
    }
    return;
  }
  const DepthCuts cuts(depth, std::max(1, kDepthBytes / static_cast<int>(B::kBlocks * sizeof(Wide))), 1);
  auto* wide = reinterpret_cast<Wide*>(scratch<kExpanded>(cuts.size * B::kBlocks * sizeof(Wide) / sizeof(float)));
  for (int cut = 0; cut < cuts.count; ++cut)
    for (int p = first; p < last; ++p) {
      const int begin = cuts.begin(cut), end = cuts.begin(cut + 1);
      const B* units = w.units + static_cast<size_t>(p) * depth + begin;
      for (int u = begin; u < end; ++u)
        for (int j = 0; j < B::kBlocks; ++j) wide[(u - begin) * B::kBlocks + j].fill(units[u - begin], j);
      // Each of the tiles fetches its share of the panel that comes next.
      constexpr int kLines = 4, kShares = (kBytes + kLines * 64 - 1) / (kLines * 64);
      const char* next = reinterpret_cast<const char*>(p + 1 < w.all ? units + depth : w.units);
      for (int t = 0; t < tiles; ++t) {
        const int r = count * t / tiles;
        tile<W, kTileRows / 2>(count * (t + 1) / tiles - r, rows.from(r), wide, begin * B::kBlocks, end * B::kBlocks,
                               Lines<kLines>{next + t % kShares * kLines * 64, kBytes},
                               c + r * ldc + static_cast<size_t>(p - first) * kColumns, ldc);
      }
    }
}

}  // namespace twodeep

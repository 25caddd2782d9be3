// The micro kernel that matrix products and attention share: a few rows of f32 times panels of 2W columns of numbers, narrow ones mostly.
#pragma once

#include "vec.h"

namespace twodeep {

// One row of a panel: 2W numbers as two vectors of f32.
template <int W>
[[gnu::always_inline]] inline void widen(const uint16_t* b, typename Vec<W>::f32& lo, typename Vec<W>::f32& hi) {
  using F = typename Vec<W>::f32;
  using U = typename Vec<W>::u32;
  const U raw = load<U>(b);
  lo = (F)(raw << 16);
  hi = (F)(raw & 0xffff0000u);
}

template <int W>
[[gnu::always_inline]] inline void widen(const float* b, typename Vec<W>::f32& lo, typename Vec<W>::f32& hi) {
  lo = load<typename Vec<W>::f32>(b);
  hi = load<typename Vec<W>::f32>(b + W);
}

// Where a column's number lies in a row of a panel of B.
template <int W, class B>
[[gnu::always_inline]] inline int column_index(int column) {
  return std::is_same_v<B, uint16_t> ? pair_index<W>(column) : column;
}

[[gnu::always_inline]] inline void narrow(float x, uint16_t& to) { to = to_bf16(x); }
[[gnu::always_inline]] inline void narrow(float x, float& to) { to = x; }

// What to fetch meanwhile, for what comes soon: in each step two cache lines, `gap` bytes apart, `step` bytes further on than before.
struct Ahead {
  const void* from;
  size_t step;
  ptrdiff_t gap;

  [[gnu::always_inline]] void fetch(int i) const {
    const char* line = static_cast<const char*>(from) + i * step;
    __builtin_prefetch(line);
    __builtin_prefetch(line + gap);
  }
};

// acc[r][p] += sum over i < k of a[r][i] * b[p][i], for R rows and P panels.
// a: row r at a + r * lda. b: panel p at b + p * panel, rows of 2W numbers.
// Every element is one chain of fused multiply-adds in the order of i, whatever R and P: a row's bits do not depend on its company.
template <int W, int R, int P, class B>
[[gnu::always_inline]] inline void advance(typename Vec<W>::f32 (&acc)[R][P][2], const float* a, size_t lda, const B* b, ptrdiff_t panel,
                                           int k, Ahead ahead) {
  using F = typename Vec<W>::f32;
  constexpr int kBytes = 2 * W * sizeof(B), kPerLine = kBytes < 64 ? 64 / kBytes : 1;  // rows of a panel in a cache line
  for (int i = 0; i < k; ++i) {
    if (i % kPerLine == 0) ahead.fetch(i);
    F w[P][2];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) widen<W>(b + p * panel + i * 2 * W, w[p][0], w[p][1]);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const F x = splat<F>(a[r * lda + i]);
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) acc[r][p][h] += x * w[p][h];
    }
  }
}

// The same for pairs of inputs: k counts pairs, and each instruction advances every chain by two inputs.
template <int W, int R, int P>
[[gnu::always_inline]] inline void advance(typename Vec<W>::f32 (&acc)[R][P][2], const Bf16Pair* a, size_t lda, const Bf16Pair* b,
                                           ptrdiff_t panel, int k, Ahead ahead) {
  using U = typename Vec<W>::u32;
  for (int i = 0; i < k; ++i) {
    ahead.fetch(i);
    U w[P][2];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) w[p][h] = load<U>(b + p * panel + (2 * i + h) * W);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const U x = U{} + a[r * lda + i];
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) dot_pairs<W>(acc[r][p][h], w[p][h], x);
    }
  }
}

// Moves R x P tiles of accumulators from and to memory: 2W columns of panel p at c + r * ldc + p * 2W.
template <int W, int R, int P>
[[gnu::always_inline]] inline void load_tile(typename Vec<W>::f32 (&acc)[R][P][2], const float* c, size_t ldc) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) acc[r][p][h] = load<typename Vec<W>::f32>(c + r * ldc + (2 * p + h) * W);
}

template <int W, int R, int P>
[[gnu::always_inline]] inline void store_tile(const typename Vec<W>::f32 (&acc)[R][P][2], float* c, size_t ldc) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) store(c + r * ldc + (2 * p + h) * W, acc[r][p][h]);
}

}  // namespace twodeep

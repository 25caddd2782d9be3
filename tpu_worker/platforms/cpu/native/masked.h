// Rows of logits of which a mask allows a part: bit b of word w is column 32 w + b.
#pragma once

#include "parallel.h"
#include "vec.h"

namespace twodeep {

// Index of the first of the largest of the allowed ones of x[0 … n), which are finite or -inf; -1 if that is -inf, or none is allowed.
template <int W>
int32_t first_largest_allowed(const float* x, const uint32_t* mask, int n) {
  using F = typename Vec<W>::f32;
  float largest = -__builtin_inff();
  int32_t at = -1;
  const auto look_at = [&](int i) {
    if (x[i] > largest) {
      largest = x[i];
      at = i;
    }
  };
  for (int base = 0; base < n; base += 32) {
    uint32_t bits = mask[base / 32];
    if (bits == 0) continue;
    const int width = std::min(32, n - base);
    if (width < 32) bits &= (1u << width) - 1;
    if (bits == ~0u) {  // as in most words where text is free: only a new largest is searched for
      F top = load<F>(x + base);
      for (int i = W; i < 32; i += W) {
        const F v = load<F>(x + base + i);
        top = v > top ? v : top;
      }
      if (max_lanes<W>(top) <= largest) continue;
    }
    for (; bits; bits &= bits - 1) look_at(base + __builtin_ctz(bits));
  }
  return at;
}

// What both calls work on: rows [M] of logits [R, V], with R or more behind the last one, and their masks [M, ceil(V / 32)].
struct Masked {
  explicit Masked(const Call& call)
      : logits(call.operand(0)), width(static_cast<int>(logits.dim(1))), rows(call.operand(1).data<int32_t>()) {
    const Buffer bits = call.operand(2);
    if (bits.dim(0) != call.operand(1).dim(0) || bits.dim(1) != (width + 31) / 32)
      throw Refusal{"the masks are not those of the rows, or of another vocabulary"};
    words = bits.dim(1);
    masks = bits.data<uint32_t>();
    all = static_cast<int>(bits.dim(0));
    while (count < all && rows[count] >= 0 && rows[count] < logits.dim(0)) ++count;
  }
  template <class Body>
  void each(const Call& call, const Body& body) const {
    const int threads = static_cast<size_t>(count) * width < (256 << 10) ? 1 : call.pool().num_threads();
    parallel_for(call.pool(), count, threads, [&](int i) { body(i, static_cast<size_t>(rows[i]) * width, masks + i * words); });
  }

  const Buffer logits;
  const int width;
  const int32_t* rows;
  const uint32_t* masks = nullptr;
  int64_t words = 0;
  int all = 0, count = 0;
};

// Operands: as above. Result: [M] the most likely token of each row, -1 behind them.
inline void pick(const Call& call) {
  const Masked masked(call);
  const float* x = masked.logits.data<float>();
  int32_t* tokens = call.result(0).data<int32_t>();
  std::fill(tokens + masked.count, tokens + masked.all, -1);
  masked.each(call, [&](int i, size_t at, const uint32_t* mask) { tokens[i] = first_largest_allowed<kLanes>(x + at, mask, masked.width); });
}

// Operands: as above. Result: the logits themselves, -inf where the masks do not allow a token.
inline void mask(const Call& call) {
  const Masked masked(call);
  float* x = call.result(0).data<float>();
  if (x != masked.logits.data<float>()) throw Refusal{"mask: logits are changed where they lie"};
  masked.each(call, [&](int, size_t at, const uint32_t* mask) {
    for (int base = 0; base < masked.width; base += 32) {
      const uint32_t bits = mask[base / 32];
      if (bits == ~0u) continue;
      const int width = std::min(32, masked.width - base);
      for (int i = 0; i < width; ++i) x[at + base + i] = bits >> i & 1 ? x[at + base + i] : -__builtin_inff();
    }
  });
}

}  // namespace twodeep

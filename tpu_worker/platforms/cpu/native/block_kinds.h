// The kinds of blocks that GGUF files hold weights in, by ggml's names: how their numbers lie in panels, and how they come there from
// rows as a file has them. The layouts of the latter are ggml's (ggml-org/llama.cpp, ggml-common.h and ggml-quants.c).
//
// A kind is made of quants, 32 for each block of each of 2W output features, and of scales. A unit is what one set of scales is for: a
// block, or eight blocks (256 inputs) where a file has two levels of scales. weight = scale * quant + minimum, all exact in f32 as
// they are in the file: nothing is rounded here.
#pragma once

#include "blocks.h"

namespace twodeep {

// Quants of up to 7 bits become bf16 by putting them into the last bits of 128, and f32 by conversion. `kept` selects their bits.
template <int W>
[[gnu::always_inline]] inline Quants<W> whole(typename Vec<W>::u32 bits, uint32_t kept) {
  if constexpr (kRoundsInputs) {
    return (bits & (kept | kept << 16)) | 0x43004300u;
  } else {
    return __builtin_convertvector((typename Vec<W>::i32)(bits & kept), typename Vec<W>::f32);
  }
}

inline constexpr float kWholeOffset = kRoundsInputs ? 128.0f : 0.0f;

// Factor i of eight inputs: which of four fields of a word's lower half it starts at, and what is added for the upper half.
[[gnu::always_inline]] inline constexpr int field(int i) { return kRoundsInputs ? i : i / 2; }
[[gnu::always_inline]] inline constexpr int upper(int i) { return kRoundsInputs ? 0 : i % 2 * 16; }

// 4 bits, 0 to 15: word q of a feature holds input 8q + 2j in its nibble j and input 8q + 2j + 1 in nibble 4 + j.
template <int W>
struct Nibbles {
  static constexpr float kOffset = kWholeOffset;
  uint32_t words[4][2][W];

  [[gnu::always_inline]] typename Vec<W>::u32 low(int q, int i, int half) const {
    return load<typename Vec<W>::u32>(words[q][half]) >> (4 * field(i) + upper(i));
  }
  [[gnu::always_inline]] Quants<W> quants(int q, int i, int half) const { return whole<W>(low(q, i, half), 0xf); }

  void set(int column, const uint8_t* quants) {
    for (int q = 0; q < 4; ++q) {
      uint32_t word = 0;
      for (int j = 0; j < 8; ++j) word |= (quants[8 * q + j] & 0xfu) << (j / 2 * 4 + j % 2 * 16);
      words[q][column / W][column % W] = word;
    }
  }
};

// 5 bits, 0 to 31: the fifth of input 2j is bit j, that of input 2j + 1 bit 16 + j.
template <int W>
struct Fives {
  static constexpr float kOffset = kWholeOffset;
  Nibbles<W> nibbles;
  uint32_t fifth[2][W];

  [[gnu::always_inline]] Quants<W> quants(int q, int i, int half) const {
    constexpr uint32_t kLow = 0x000f000fu;
    const auto high = load<typename Vec<W>::u32>(fifth[half]) >> (4 * q) << 4;
    return whole<W>((nibbles.low(q, i, half) & kLow) | (high >> (field(i) + upper(i)) & ~kLow), 0x1f);
  }

  void set(int column, const uint8_t* quants) {
    nibbles.set(column, quants);
    uint32_t bits = 0;
    for (int j = 0; j < kBlock; ++j) bits |= (quants[j] >> 4 & 1u) << (j / 2 + j % 2 * 16);
    fifth[column / W][column % W] = bits;
  }
};

// 6 bits, 0 to 63: of inputs 16t and up, word t holds the upper two bits of input 2j in bits 2j and 2j + 1, of input 2j + 1 in 16 more.
template <int W>
struct Sixes {
  static constexpr float kOffset = kWholeOffset;
  Nibbles<W> nibbles;
  uint32_t upper_two[2][2][W];

  [[gnu::always_inline]] Quants<W> quants(int q, int i, int half) const {
    constexpr uint32_t kLow = 0x000f000fu;
    const auto high = load<typename Vec<W>::u32>(upper_two[q / 2][half]) >> (q % 2 * 8) << 4;
    return whole<W>((nibbles.low(q, i, half) & kLow) | (high >> (2 * field(i) + upper(i)) & ~kLow), 0x3f);
  }

  void set(int column, const uint8_t* quants) {
    nibbles.set(column, quants);
    for (int t = 0; t < 2; ++t) {
      uint32_t bits = 0;
      for (int j = 0; j < 16; ++j) bits |= (quants[16 * t + j] >> 4 & 3u) << (j / 2 * 2 + j % 2 * 16);
      upper_two[t][column / W][column % W] = bits;
    }
  }
};

// 8 bits with a sign: what belongs to one factor of one feature lies side by side.
template <int W>
struct Bytes {
  static constexpr float kOffset = 0.0f;
  static constexpr int kEach = kBlock / kFactors;
  int8_t bytes[kFactors][2][W][kEach];

  [[gnu::always_inline]] Quants<W> quants(int q, int i, int half) const {
    const int8_t* of_factor = bytes[q * kFactorsOf8 + i][half][0];
    if constexpr (kRoundsInputs) {
      return pairs_of_bytes<W>(of_factor);
    } else {
      return widen<W>(of_factor);
    }
  }

  void set(int column, const uint8_t* quants) {
    for (int i = 0; i < kFactors; ++i) std::memcpy(bytes[i][column / W][column % W], quants + i * kEach, kEach);
  }
};

// Small floats are f16 with fewer bits of exponent and fraction, subnormals included, and a power of two times as much: so they become
// f32. Where pairs are multiplied, which all have 16 lanes of 32 bits, bf16 is looked up, by the last five bits of each half word.
template <int W>
[[gnu::always_inline]] inline Quants<W> from_halves(typename Vec<W>::u32 halves) {
  const auto low = __builtin_convertvector(halves, typename Vec<W>::u16);
  return (Quants<W>)from_f16<W>((const uint16_t*)&low);
}

template <int W>
[[gnu::always_inline]] inline typename Vec<W>::u32 look_up(const uint16_t* table, typename Vec<W>::u32 halves) {
  typename Vec<W>::u32 found;
  asm("vpermw %1, %2, %0" : "=v"(found) : "v"(load<typename Vec<W>::u32>(table)), "v"(halves));  // only if kRoundsInputs
  return found;
}

// bf16 of FP4, and of the subnormals of FP8.
alignas(64) inline constexpr uint16_t kFp4[32] = {0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0,
                                                  0x8000, 0xbf00, 0xbf80, 0xbfc0, 0xc000, 0xc040, 0xc080, 0xc0c0};
alignas(64) inline constexpr uint16_t kTinyFp8[32] = {0x0000, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60};

// FP4 (e2m1): a sign, two bits of the exponent and one of the fraction.
template <int W>
struct Fp4 {
  static constexpr float kOffset = 0.0f, kTimes = kRoundsInputs ? 1.0f : 16384.0f;
  Nibbles<W> nibbles;

  [[gnu::always_inline]] Quants<W> quants(int q, int i, int half) const {
    const auto bits = nibbles.low(q, i, half);
    if constexpr (kRoundsInputs) {
      return look_up<W>(kFp4, bits & 0x000f000fu);
    } else {
      return from_halves<W>((bits & 7u) << 9 | (bits & 8u) << 12);
    }
  }

  void set(int column, const uint8_t* quants) { nibbles.set(column, quants); }
};

// FP8 (e4m3): a sign, four bits of the exponent and three of the fraction. A word of a feature holds inputs 4j and 4j + 2 in the bytes
// of its lower half, the inputs behind each of these in the upper half.
template <int W>
struct Fp8 {
  static constexpr float kOffset = 0.0f, kTimes = kRoundsInputs ? 1.0f : 256.0f;
  uint32_t words[8][2][W];

  [[gnu::always_inline]] Quants<W> quants(int q, int i, int half) const {
    const int pair = field(i);
    const auto bits = load<typename Vec<W>::u32>(words[2 * q + pair / 2][half]) >> (pair % 2 * 8 + upper(i));
    if constexpr (kRoundsInputs) {
      using H = typename Vec<W>::halves;
      const auto magnitude = bits & 0x007f007fu;
      const H normal = (H)((magnitude << 4) + 0x3c003c00u), tiny = (H)look_up<W>(kTinyFp8, magnitude);
      return (Quants<W>)((H)magnitude < 8 ? tiny : normal) | (bits & 0x00800080u) << 8;
    } else {
      return from_halves<W>((bits & 0x7fu) << 7 | (bits & 0x80u) << 8);
    }
  }

  void set(int column, const uint8_t* quants) {
    for (int w = 0; w < 8; ++w) {
      const uint8_t* four = quants + 4 * w;
      words[w][column / W][column % W] = four[0] | four[2] << 8 | four[1] << 16 | static_cast<uint32_t>(four[3]) << 24;
    }
  }
};

// A scale for each block; its minimum is that of a quant `kZero`, which stands for 0.
template <int W, int kZero>
struct Scales {
  static constexpr int kBlocks = 1, kGroups = 1;
  static constexpr bool kMinima = kZero != 0;
  uint16_t scale[2 * W];  // f16

  [[gnu::always_inline]] typename Vec<W>::f32 scales(int, int, int half) const { return from_f16<W>(scale + half * W); }
  [[gnu::always_inline]] typename Vec<W>::f32 minima(int j, int g, int half) const {
    return scales(j, g, half) * -static_cast<float>(kZero);
  }
};

// A scale and a minimum for each block.
template <int W>
struct ScalesAndMinima {
  static constexpr int kBlocks = 1, kGroups = 1;
  static constexpr bool kMinima = true;
  uint16_t scale[2 * W], minimum[2 * W];  // f16

  [[gnu::always_inline]] typename Vec<W>::f32 scales(int, int, int half) const { return from_f16<W>(scale + half * W); }
  [[gnu::always_inline]] typename Vec<W>::f32 minima(int, int, int half) const { return from_f16<W>(minimum + half * W); }
};

// Of B blocks one scale, a number of f32, and a zero point: weight = scale * (quant - zero).
template <int W, int B>
struct ScaleAndZero {
  static constexpr int kBlocks = B, kGroups = 1;
  static constexpr bool kMinima = true;
  float scale[2 * W];
  int8_t zero[2 * W];

  [[gnu::always_inline]] typename Vec<W>::f32 scales(int, int, int half) const {
    return load<typename Vec<W>::f32>(scale + half * W);
  }
  [[gnu::always_inline]] typename Vec<W>::f32 minima(int j, int g, int half) const {
    return scales(j, g, half) * -widen<W>(zero + half * W);
  }
};

// The same without a zero point.
template <int W, int B>
struct OneScale {
  static constexpr int kBlocks = B, kGroups = 1;
  static constexpr bool kMinima = false;
  float scale[2 * W];

  [[gnu::always_inline]] typename Vec<W>::f32 scales(int, int, int half) const {
    return load<typename Vec<W>::f32>(scale + half * W);
  }
};

// Of eight blocks, each of G groups of inputs: a scale, of which each group's is a multiple; kZero as above.
template <int W, int G, int kZero>
struct Multiples {
  static constexpr int kBlocks = 8, kGroups = G;
  static constexpr bool kMinima = kZero != 0;
  int8_t multiple[8][G][2 * W];
  uint16_t scale[2 * W];  // f16

  [[gnu::always_inline]] typename Vec<W>::f32 scales(int j, int g, int half) const {
    return widen<W>(multiple[j][g] + half * W) * from_f16<W>(scale + half * W);
  }
  [[gnu::always_inline]] typename Vec<W>::f32 minima(int j, int g, int half) const {
    return scales(j, g, half) * -static_cast<float>(kZero);
  }
};

// The same with minima, which are multiples of one that is subtracted.
template <int W, int G>
struct MultiplesAndMinima {
  static constexpr int kBlocks = 8, kGroups = G;
  static constexpr bool kMinima = true;
  int8_t multiple[8][G][2 * W], minimum_multiple[8][G][2 * W];
  uint16_t scale[2 * W], minimum[2 * W];  // f16

  [[gnu::always_inline]] typename Vec<W>::f32 scales(int j, int g, int half) const {
    return widen<W>(multiple[j][g] + half * W) * from_f16<W>(scale + half * W);
  }
  [[gnu::always_inline]] typename Vec<W>::f32 minima(int j, int g, int half) const {
    return widen<W>(minimum_multiple[j][g] + half * W) * -from_f16<W>(minimum + half * W);
  }
};

// A unit of 2W output features.
template <int W, class Q, class S>
struct Unit {
  static constexpr int kBlocks = S::kBlocks, kGroups = S::kGroups;
  static constexpr bool kMinima = S::kMinima || Q::kOffset != 0.0f;
  Q blocks[kBlocks];
  S of_blocks;

  // Those of block j: see `Block`.
  [[gnu::always_inline]] Quants<W> quants(int j, int q, int i, int half) const { return blocks[j].quants(q, i, half); }
  [[gnu::always_inline]] typename Vec<W>::f32 scales(int j, int g, int half) const { return of_blocks.scales(j, g, half); }
  [[gnu::always_inline]] typename Vec<W>::f32 minima(int j, int g, int half) const {
    using F = typename Vec<W>::f32;
    const F offset = scales(j, g, half) * -Q::kOffset;
    if constexpr (!S::kMinima) return offset;
    const F minimum = of_blocks.minima(j, g, half);
    if constexpr (Q::kOffset == 0.0f) return minimum;
    return minimum + offset;
  }
};

// Quants of 32 inputs from nibbles: those of the lower ones come first.
inline void split_nibbles(const uint8_t* pairs, uint8_t* quants) {
  for (int i = 0; i < 16; ++i) {
    quants[i] = pairs[i] & 15;
    quants[16 + i] = pairs[i] >> 4;
  }
}

inline uint16_t two_bytes(const uint8_t* p) {
  uint16_t x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

// Each kind: its unit, how many bytes of a file's row that is, and `place`, which puts these into a column.
struct Q4_0 {
  using Panel = Unit<kLanes, Nibbles<kLanes>, Scales<kLanes, 8>>;
  static constexpr int kBytes = 18;
  static void place(const uint8_t* raw, int column, Panel& to) {
    uint8_t quants[kBlock];
    split_nibbles(raw + 2, quants);
    to.blocks[0].set(column, quants);
    to.of_blocks.scale[column] = two_bytes(raw);
  }
};

struct Q4_1 {
  using Panel = Unit<kLanes, Nibbles<kLanes>, ScalesAndMinima<kLanes>>;
  static constexpr int kBytes = 20;
  static void place(const uint8_t* raw, int column, Panel& to) {
    uint8_t quants[kBlock];
    split_nibbles(raw + 4, quants);
    to.blocks[0].set(column, quants);
    to.of_blocks.scale[column] = two_bytes(raw);
    to.of_blocks.minimum[column] = two_bytes(raw + 2);
  }
};

inline void add_fifth_bits(const uint8_t* raw, uint8_t* quants) {
  for (int i = 0; i < kBlock; ++i) quants[i] |= (raw[i / 8] >> i % 8 & 1) << 4;
}

struct Q5_0 {
  using Panel = Unit<kLanes, Fives<kLanes>, Scales<kLanes, 16>>;
  static constexpr int kBytes = 22;
  static void place(const uint8_t* raw, int column, Panel& to) {
    uint8_t quants[kBlock];
    split_nibbles(raw + 6, quants);
    add_fifth_bits(raw + 2, quants);
    to.blocks[0].set(column, quants);
    to.of_blocks.scale[column] = two_bytes(raw);
  }
};

struct Q5_1 {
  using Panel = Unit<kLanes, Fives<kLanes>, ScalesAndMinima<kLanes>>;
  static constexpr int kBytes = 24;
  static void place(const uint8_t* raw, int column, Panel& to) {
    uint8_t quants[kBlock];
    split_nibbles(raw + 8, quants);
    add_fifth_bits(raw + 4, quants);
    to.blocks[0].set(column, quants);
    to.of_blocks.scale[column] = two_bytes(raw);
    to.of_blocks.minimum[column] = two_bytes(raw + 2);
  }
};

struct Q8_0 {
  using Panel = Unit<kLanes, Bytes<kLanes>, Scales<kLanes, 0>>;
  static constexpr int kBytes = 34;
  static void place(const uint8_t* raw, int column, Panel& to) {
    to.blocks[0].set(column, raw + 2);
    to.of_blocks.scale[column] = two_bytes(raw);
  }
};

// The same numbers as a file has of FP4, with a power of two for a block: its exponent, plus 127.
struct MXFP4 {
  using Panel = Unit<kLanes, Fp4<kLanes>, OneScale<kLanes, 1>>;
  static constexpr int kBytes = 17;
  static void place(const uint8_t* raw, int column, Panel& to) {
    uint8_t quants[kBlock];
    split_nibbles(raw + 1, quants);
    to.blocks[0].set(column, quants);
    to.of_blocks.scale[column] = std::ldexp(Fp4<kLanes>::kTimes, raw[0] - 127);
  }
};

// The kinds that no GGUF file has (weights/scaled_blocks.py), of B times 32 inputs.
template <int B>
struct Int4 {
  using Panel = Unit<kLanes, Nibbles<kLanes>, ScaleAndZero<kLanes, B>>;
  static constexpr int kBytes = 5 + B * kBlock / 2;
  static void place(const uint8_t* raw, int column, Panel& to) {
    std::memcpy(&to.of_blocks.scale[column], raw, 4);
    std::memcpy(&to.of_blocks.zero[column], raw + 4, 1);
    for (int j = 0; j < B; ++j) {
      uint8_t quants[kBlock];
      split_nibbles(raw + 5 + j * kBlock / 2, quants);
      to.blocks[j].set(column, quants);
    }
  }
};

template <int B>
struct Int8 {
  using Panel = Unit<kLanes, Bytes<kLanes>, ScaleAndZero<kLanes, B>>;
  static constexpr int kBytes = 5 + B * kBlock;
  static void place(const uint8_t* raw, int column, Panel& to) {
    std::memcpy(&to.of_blocks.scale[column], raw, 4);
    std::memcpy(&to.of_blocks.zero[column], raw + 4, 1);
    for (int j = 0; j < B; ++j) to.blocks[j].set(column, raw + 5 + j * kBlock);
  }
};

template <int B>
struct Float8 {
  using Panel = Unit<kLanes, Fp8<kLanes>, OneScale<kLanes, B>>;
  static constexpr int kBytes = 4 + B * kBlock;
  static void place(const uint8_t* raw, int column, Panel& to) {
    std::memcpy(&to.of_blocks.scale[column], raw, 4);
    to.of_blocks.scale[column] *= Fp8<kLanes>::kTimes;
    for (int j = 0; j < B; ++j) to.blocks[j].set(column, raw + 4 + j * kBlock);
  }
};

using INT4_32 = Int4<1>;
using INT4_128 = Int4<4>;
using INT8_32 = Int8<1>;
using INT8_128 = Int8<4>;
using FP8_32 = Float8<1>;
using FP8_128 = Float8<4>;

// Multiples of 6 bits of scales and minima of eight blocks, in 12 bytes.
template <class S>
void place_multiples(const uint8_t* raw, int column, S& to) {
  for (int j = 0; j < 4; ++j) {
    to.multiple[j][0][column] = raw[j] & 63;
    to.minimum_multiple[j][0][column] = raw[4 + j] & 63;
    to.multiple[4 + j][0][column] = (raw[8 + j] & 15) | (raw[j] >> 6 << 4);
    to.minimum_multiple[4 + j][0][column] = (raw[8 + j] >> 4) | (raw[4 + j] >> 6 << 4);
  }
}

// Two and three bits are kept as four: a third of bf16's bytes.
struct Q2_K {
  using Panel = Unit<kLanes, Nibbles<kLanes>, MultiplesAndMinima<kLanes, 2>>;
  static constexpr int kBytes = 84;
  static void place(const uint8_t* raw, int column, Panel& to) {
    for (int j = 0; j < 8; ++j) {
      uint8_t quants[kBlock];
      for (int i = 0; i < kBlock; ++i) quants[i] = raw[16 + j / 4 * 32 + i] >> j % 4 * 2 & 3;
      to.blocks[j].set(column, quants);
      for (int g = 0; g < 2; ++g) {
        to.of_blocks.multiple[j][g][column] = raw[2 * j + g] & 15;
        to.of_blocks.minimum_multiple[j][g][column] = raw[2 * j + g] >> 4;
      }
    }
    to.of_blocks.scale[column] = two_bytes(raw + 80);
    to.of_blocks.minimum[column] = two_bytes(raw + 82);
  }
};

struct Q3_K {
  using Panel = Unit<kLanes, Nibbles<kLanes>, Multiples<kLanes, 2, 4>>;
  static constexpr int kBytes = 110;
  static void place(const uint8_t* raw, int column, Panel& to) {
    const uint8_t *pairs = raw + 32, *multiples = raw + 96;
    for (int j = 0; j < 8; ++j) {
      uint8_t quants[kBlock];
      for (int i = 0; i < kBlock; ++i) quants[i] = (pairs[j / 4 * 32 + i] >> j % 4 * 2 & 3) | (raw[i] >> j & 1) << 2;
      to.blocks[j].set(column, quants);
      for (int g = 0; g < 2; ++g) {
        const int at = 2 * j + g, low = multiples[at % 8] >> at / 8 * 4 & 15, high = multiples[8 + at % 4] >> at / 4 * 2 & 3;
        to.of_blocks.multiple[j][g][column] = static_cast<int8_t>((low | high << 4) - 32);
      }
    }
    to.of_blocks.scale[column] = two_bytes(raw + 108);
  }
};

struct Q4_K {
  using Panel = Unit<kLanes, Nibbles<kLanes>, MultiplesAndMinima<kLanes, 1>>;
  static constexpr int kBytes = 144;
  static void place(const uint8_t* raw, int column, Panel& to) {
    for (int j = 0; j < 8; ++j) {
      uint8_t quants[kBlock];
      for (int i = 0; i < kBlock; ++i) quants[i] = raw[16 + j / 2 * 32 + i] >> j % 2 * 4 & 15;
      to.blocks[j].set(column, quants);
    }
    place_multiples(raw + 4, column, to.of_blocks);
    to.of_blocks.scale[column] = two_bytes(raw);
    to.of_blocks.minimum[column] = two_bytes(raw + 2);
  }
};

struct Q5_K {
  using Panel = Unit<kLanes, Fives<kLanes>, MultiplesAndMinima<kLanes, 1>>;
  static constexpr int kBytes = 176;
  static void place(const uint8_t* raw, int column, Panel& to) {
    for (int j = 0; j < 8; ++j) {
      uint8_t quants[kBlock];
      for (int i = 0; i < kBlock; ++i)
        quants[i] = (raw[48 + j / 2 * 32 + i] >> j % 2 * 4 & 15) | (raw[16 + i] >> j & 1) << 4;
      to.blocks[j].set(column, quants);
    }
    place_multiples(raw + 4, column, to.of_blocks);
    to.of_blocks.scale[column] = two_bytes(raw);
    to.of_blocks.minimum[column] = two_bytes(raw + 2);
  }
};

struct Q6_K {
  using Panel = Unit<kLanes, Sixes<kLanes>, Multiples<kLanes, 2, 32>>;
  static constexpr int kBytes = 210;
  static void place(const uint8_t* raw, int column, Panel& to) {
    for (int j = 0; j < 8; ++j) {
      const uint8_t *low = raw + j / 4 * 64 + j % 2 * 32, *high = raw + 128 + j / 4 * 32;
      uint8_t quants[kBlock];
      for (int i = 0; i < kBlock; ++i) quants[i] = (low[i] >> j % 4 / 2 * 4 & 15) | (high[i] >> j % 4 * 2 & 3) << 4;
      to.blocks[j].set(column, quants);
      for (int g = 0; g < 2; ++g) to.of_blocks.multiple[j][g][column] = static_cast<int8_t>(raw[192 + 2 * j + g]);
    }
    to.of_blocks.scale[column] = two_bytes(raw + 208);
  }
};

}  // namespace twodeep

// Vectors of one width, from the compiler's vector extensions: one source for AVX-512, AVX2 and whatever else there is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace twodeep {

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
#else
inline constexpr int kLanes = 8;  // on narrower machines the compiler splits each vector
#endif

// Libraries of their own (build.py) keep weights, keys and values in f32, and round nothing.
#if defined(TWODEEP_FLOAT32)
inline constexpr bool kFloat32 = true;
#else
inline constexpr bool kFloat32 = false;
#endif

template <int W>
struct Vec {
  typedef float f32 __attribute__((vector_size(W * 4)));
  typedef uint32_t u32 __attribute__((vector_size(W * 4)));
  typedef int32_t i32 __attribute__((vector_size(W * 4)));
  typedef uint16_t u16 __attribute__((vector_size(W * 2)));
  typedef int8_t i8 __attribute__((vector_size(W)));
  typedef uint16_t halves __attribute__((vector_size(W * 4)));  // of words
  typedef uint32_t half_u32 __attribute__((vector_size(W * 2)));
};

template <class V>
[[gnu::always_inline]] inline V load(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class V>
[[gnu::always_inline]] inline void store(void* p, V v) {
  std::memcpy(p, &v, sizeof v);
}

template <class V, class S>
[[gnu::always_inline]] inline V splat(S x) {
  return x - V{};  // minus, so that the compiler may drop it: -0 + 0 is not -0
}

// Rounds to nearest even. NaN stays NaN.
[[gnu::always_inline]] inline uint16_t to_bf16(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40u);
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

// The number whose bf16 the lower half of `bits` is.
[[gnu::always_inline]] inline float from_bf16(uint32_t bits) {
  bits <<= 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// W numbers of f16 as f32.
template <int W>
[[gnu::always_inline]] inline typename Vec<W>::f32 from_f16(const uint16_t* p) {
  using F = typename Vec<W>::f32;
  using U = typename Vec<W>::u32;
  const auto bits = load<typename Vec<W>::u16>(p);
#if defined(__F16C__) || defined(__AVX512F__)
  if constexpr (W >= 8) {
    F x;
    asm("vcvtph2ps %1, %0" : "=v"(x) : "v"(bits));
    return x;
  }
#endif
  const U wide = __builtin_convertvector(bits, U);
  const U magnitude = (wide & 0x7fffu) << 13;
  const F normal = (F)(magnitude + (112u << 23)), special = (F)(magnitude + (224u << 23));
  // What is too small for a normal f16 is a multiple of 2^-24, and so are the last bits of numbers from 2^-14 on.
  const F tiny = (F)(magnitude + (113u << 23)) - (F)(U{} + (113u << 23));
  const U sign = (wide & 0x8000u) << 16;
  return (F)((U)(magnitude < (1u << 23) ? tiny : magnitude < (31u << 23) ? normal : special) | sign);
}

// W bytes, with signs, as f32.
template <int W>
[[gnu::always_inline]] inline typename Vec<W>::f32 widen(const int8_t* p) {
  using F = typename Vec<W>::f32;
  // GCC takes the general conversion apart into single numbers. Its intrinsics' header would double the time to compile this.
#if defined(__GNUC__) && !defined(__clang__) && defined(__AVX512F__)
  if constexpr (W == 16) {
    typedef char Bytes __attribute__((vector_size(16)));
    typedef int Words __attribute__((vector_size(64)));
    return __builtin_convertvector((typename Vec<W>::i32)__builtin_ia32_pmovsxbd512_mask(load<Bytes>(p), (Words){}, -1), F);
  }
#elif defined(__GNUC__) && !defined(__clang__) && defined(__AVX2__)
  if constexpr (W == 8) {
    typedef char Bytes __attribute__((vector_size(16)));
    typedef long long Halves __attribute__((vector_size(16)));
    long long low;  // of which the instruction widens the bytes; a copy into half of a vector would go through memory
    std::memcpy(&low, p, W);
    return __builtin_convertvector((typename Vec<W>::i32)__builtin_ia32_pmovsxbd256((Bytes)(Halves){low, 0}), F);
  }
#endif
  return __builtin_convertvector(load<typename Vec<W>::i8>(p), F);
}

// bf16 pairs: column i of 2W in the low half of word i, column W + i in its high half, so that widening is one shift or one mask.
template <int W>
[[gnu::always_inline]] inline int pair_index(int column) {
  return column < W ? 2 * column : 2 * (column - W) + 1;
}

// Two neighbouring inputs as the bf16 halves of one word, the first one low: what the dot-product instruction of AVX512-BF16 reads.
typedef uint32_t Bf16Pair;

#if defined(__AVX512BF16__)
inline constexpr bool kDotsPairs = true;
#else
inline constexpr bool kDotsPairs = false;
#endif

// Whether products with weights in blocks round inputs to such pairs.
inline constexpr bool kRoundsInputs = kDotsPairs && !kFloat32;

// acc[j] += w[j].low * x[j].low + w[j].high * x[j].high. In assembly, since the intrinsics' header would double the time to compile.
template <int W>
[[gnu::always_inline]] inline void dot_pairs(typename Vec<W>::f32& acc, typename Vec<W>::u32 w, typename Vec<W>::u32 x) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x));  // instantiated only if kDotsPairs
}

// The following are instantiated only if kDotsPairs, like dot_pairs.

// W inputs rounded to pairs, to nearest even. NaN stays NaN; what is too small for a normal number becomes zero.
template <int W>
[[gnu::always_inline]] inline typename Vec<W>::half_u32 to_pairs(typename Vec<W>::f32 x) {
  typename Vec<W>::half_u32 pairs;
  asm("vcvtneps2bf16 %1, %0" : "=v"(pairs) : "v"(x));
  return pairs;
}

// The inputs that pairs stand for.
template <int W>
[[gnu::always_inline]] inline typename Vec<W>::f32 from_pairs(typename Vec<W>::half_u32 pairs) {
  typename Vec<W>::u32 wide;
  asm("vpmovzxwd %1, %0" : "=v"(wide) : "v"(pairs));
  return (typename Vec<W>::f32)(wide << 16);
}

// 2W bytes, with signs, as W pairs.
template <int W>
[[gnu::always_inline]] inline typename Vec<W>::u32 pairs_of_bytes(const int8_t* p) {
  typename Vec<W>::u32 pairs;
  asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(pairs) : "v"(widen<W>(p)), "v"(widen<W>(p + W)));
  return pairs;
}

// Bit j says whether one of the inputs 2j and 2j + 1 is larger than the limit, whatever its sign.
template <int W>
[[gnu::always_inline]] inline uint32_t pairs_beyond(typename Vec<W>::f32 x, typename Vec<W>::f32 limit) {
  const auto magnitude = (typename Vec<W>::f32)((typename Vec<W>::u32)x & 0x7fffffffu);
  uint32_t inputs, pairs;
  asm("vcmpgtps %2, %1, %0" : "=k"(inputs) : "v"(magnitude), "v"(limit));
  asm("pext %2, %1, %0" : "=r"(pairs) : "r"(inputs | inputs >> 1), "r"(0x55555555u));
  return pairs;
}

// The lanes whose bits are set, moved to the front.
template <int W>
[[gnu::always_inline]] inline typename Vec<W>::half_u32 compress(typename Vec<W>::half_u32 x, uint32_t lanes) {
  typename Vec<W>::half_u32 front;
  asm("vpcompressd %1, %0%{%2%}%{z%}" : "=v"(front) : "v"(x), "Yk"(static_cast<uint8_t>(lanes)));
  return front;
}

// 2^x for x <= 0, by a minimax polynomial of degree 6 on [-0.5, 0.5]; relative error below 2e-7; 0 below -126, NaN for NaN.
template <int W>
[[gnu::always_inline]] inline typename Vec<W>::f32 exp2_nonpositive(typename Vec<W>::f32 x) {
  using F = typename Vec<W>::f32;
  using I = typename Vec<W>::i32;
  const F magic = splat<F>(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
  const F low = splat<F>(-126.0f);
  const F clamped = x < low ? low : x;
  const F shifted = clamped + magic;
  const F r = clamped - (shifted - magic);
  F p = splat<F>(1.5353362e-4f);
  p = p * r + 1.3398875e-3f;
  p = p * r + 9.6184374e-3f;
  p = p * r + 5.5503325e-2f;
  p = p * r + 2.4022648e-1f;
  p = p * r + 6.9314721e-1f;
  p = p * r + 1.0f;
  const I scale = ((I)shifted - (I)magic + 127) << 23;
  const F y = p * (F)scale;
  return x < low ? F{} : y;
}

// Combines W lanes of type T in a fixed order: in each step the lower half of those that are left with the upper half.
template <class T, int W, class V, class Combine>
[[gnu::always_inline]] inline T combine_lanes(V v, const Combine& combine) {
  if constexpr (W == 1) {
    return v[0];
  } else {
    typedef T Half __attribute__((vector_size(W / 2 * sizeof(T))));
    Half halves[2];
    std::memcpy(halves, &v, sizeof halves);
    return combine_lanes<T, W / 2>(combine(halves[0], halves[1]), combine);
  }
}

template <int W>
[[gnu::always_inline]] inline float sum_lanes(typename Vec<W>::f32 v) {
  return combine_lanes<float, W>(v, [](auto a, auto b) { return a + b; });
}

template <int W, class V>
[[gnu::always_inline]] inline auto max_lanes(V v) {
  return combine_lanes<std::decay_t<decltype(v[0])>, W>(v, [](auto a, auto b) { return a > b ? a : b; });
}

}  // namespace twodeep

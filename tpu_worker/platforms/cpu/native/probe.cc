// What this machine could do at best: the yardsticks of the kernel benchmark. Each call runs on the calling thread alone.
#include "vec.h"

using twodeep::kLanes;
using F = twodeep::Vec<kLanes>::f32;
using U = twodeep::Vec<kLanes>::u32;

// Reads `bytes` from `data` (a multiple of 256) and returns a value that depends on all of them.
extern "C" uint32_t twodeep_probe_read(const char* data, size_t bytes) {
  U sums[4] = {};
  for (size_t i = 0; i < bytes; i += sizeof sums)
    for (int j = 0; j < 4; ++j) sums[j] ^= twodeep::load<U>(data + i + j * sizeof(U));
  const U sum = (sums[0] ^ sums[1]) ^ (sums[2] ^ sums[3]);
  return sum[0];
}

// Twelve independent chains of fused multiply-adds; returns the number of floating-point operations.
extern "C" double twodeep_probe_fma(long rounds) {
  F a = twodeep::splat<F>(0.999f), b = twodeep::splat<F>(0.001f);
  F x0 = a, x1 = a, x2 = a, x3 = a, x4 = a, x5 = a, x6 = a, x7 = a, x8 = a, x9 = a, x10 = a, x11 = a;
  for (long i = 0; i < rounds; ++i) {
#if defined(__AVX2__)
#define STEP(x) x = x * a + b; asm volatile("" : "+x"(x));  // or the compiler would work the loop out beforehand
#else
#define STEP(x) x = x * a + b; asm volatile("" : "+m"(x));
#endif
    STEP(x0) STEP(x1) STEP(x2) STEP(x3) STEP(x4) STEP(x5) STEP(x6) STEP(x7) STEP(x8) STEP(x9) STEP(x10) STEP(x11)
#undef STEP
  }
  return 12.0 * 2.0 * kLanes * static_cast<double>(rounds);
}

// XLA custom calls for matrix products with weights of bf16, or of f32 in a library of its own, and for the largest of a row of logits,
// and the packing of such weights.
#include "experts.h"
#include "linear.h"
#include "masked.h"
#include "narrow.h"

namespace twodeep {
namespace {

// `operands`, with weights [layers, panels, depth, columns].
void linear_narrow(const Call& call) {
  const Buffer weights = call.operand(1);
  Gemm<Narrow> g = operands(call, weights.data<Narrow>());
  find_panels(call, weights, g);
  run(call.pool(), &g, 1);
}

// For `experts`: weights [layers, experts, panels, depth, columns].
void experts_narrow(const Call& call) { experts(call, call.operand(1).data<Narrow>()); }

// Index of the first of the largest of x[0 … n); -1 if that is NaN or infinite.
template <int W>
int32_t first_largest(const float* x, int n) {
  using F = typename Vec<W>::f32;
  using I = typename Vec<W>::i32;
  const F infinity = splat<F>(__builtin_inff());
  F top = -infinity;
  I below = I{} - 1;
  int i = 0;
  for (; i + W <= n; i += W) {
    const F v = load<F>(x + i);
    below &= v < infinity;  // of NaN this is false, and the maximum may lose it
    top = v > top ? v : top;
  }
  float largest = max_lanes<W>(top);
  bool finite = true;
  for (int j = 0; j < W; ++j) finite &= below[j] != 0;
  for (; i < n; ++i) {
    finite &= x[i] < __builtin_inff();
    largest = x[i] > largest ? x[i] : largest;
  }
  if (!finite || largest == -__builtin_inff()) return -1;
  int at = 0;
  while (x[at] != largest) ++at;
  return at;
}

// Operands: logits [R, V], number of rows [1]. Result: [R], zero behind the rows.
void greedy(const Call& call) {
  const Buffer logits = call.operand(0), out = call.result(0);
  const int all = static_cast<int>(logits.dim(0)), width = static_cast<int>(logits.dim(1));
  const int rows = std::clamp(call.operand(1).data<int32_t>()[0], 0, all);
  const float* x = logits.data<float>();
  int32_t* tokens = out.data<int32_t>();
  std::fill(tokens + rows, tokens + all, 0);
  const int threads = static_cast<size_t>(rows) * width < (256 << 10) ? 1 : call.pool().num_threads();
  parallel_for(call.pool(), rows, threads, [&](int r) { tokens[r] = first_largest<kLanes>(x + static_cast<size_t>(r) * width, width); });
}

inline float value(float x) { return x; }
inline float value(uint16_t x) { return from_bf16(x); }

template <class S, class B>
void pack_row(const S* row, int k, int column, B* panel) {
  for (int i = 0; i < k; ++i) narrow(value(row[i]), panel[static_cast<size_t>(i) * 2 * kLanes + column_index<kLanes, B>(column)]);
}

template <class S>
void pack_row(const S* row, int k, int column, Bf16Pair* panel) {
  for (int i = 0; i < k; ++i)
    panel[static_cast<size_t>(i / 2) * 2 * kLanes + column] |= static_cast<uint32_t>(to_bf16(value(row[i]))) << (i % 2 * 16);
}

// One of the panels of a weight with k inputs.
Narrow* panel_at(Narrow* panels, int panel, int k) {
  const size_t depth = (k + kSpan<Narrow> - 1) / kSpan<Narrow>;
  return panels + panel * depth * 2 * kLanes;
}

template <class S>
void pack(const S* weight, int n, int k, bool gated, Narrow* panels) {
  place_rows(n, gated, [&](int row, int panel, int column) {
    pack_row(weight + static_cast<size_t>(row) * k, k, column, panel_at(panels, panel, k));
  });
}

}  // namespace
}  // namespace twodeep

extern "C" XLA_FFI_Error* twodeep_linear(XLA_FFI_CallFrame* frame) { return twodeep::handle(frame, twodeep::linear_narrow); }

extern "C" XLA_FFI_Error* twodeep_experts(XLA_FFI_CallFrame* frame) { return twodeep::handle(frame, twodeep::experts_narrow); }

extern "C" XLA_FFI_Error* twodeep_scores(XLA_FFI_CallFrame* frame) { return twodeep::handle(frame, twodeep::scores); }

extern "C" XLA_FFI_Error* twodeep_greedy(XLA_FFI_CallFrame* frame) { return twodeep::handle(frame, twodeep::greedy); }

extern "C" XLA_FFI_Error* twodeep_pick(XLA_FFI_CallFrame* frame) { return twodeep::handle(frame, twodeep::pick); }

extern "C" XLA_FFI_Error* twodeep_mask(XLA_FFI_CallFrame* frame) { return twodeep::handle(frame, twodeep::mask); }

extern "C" int twodeep_panel_columns() { return 2 * twodeep::kLanes; }

// Whether this machine multiplies bf16 by bf16: panels of bf16 then hold pairs of inputs, and inputs are rounded too.
extern "C" int twodeep_dots_pairs() { return twodeep::kDotsPairs && !twodeep::kFloat32; }

// weight: [n, k] of f32, or of bf16 if `narrow`. panels, zeroed: of f32 [panels, k, columns]; of pairs of bf16 [panels, (k + 1) / 2,
// columns] where the machine multiplies them, and of bf16 [panels, k, columns] where not.
extern "C" void twodeep_pack(const void* weight, int narrow, int n, int k, int gated, void* panels) {
  auto* to = static_cast<twodeep::Narrow*>(panels);
  if (narrow) {
    twodeep::pack(static_cast<const uint16_t*>(weight), n, k, gated, to);
  } else {
    twodeep::pack(static_cast<const float*>(weight), n, k, gated, to);
  }
}

// XLA custom calls for matrix products with packed weights and for the largest of a row of logits, and the packing itself.
#include "gemm.h"
#include "parallel.h"

namespace twodeep {
namespace {

constexpr int kColumns = 2 * kLanes;

constexpr int kTasksPerThread = 12;

// Scratch memory: what all threads read of the caller's, and what a thread has for itself.
enum { kPrepared, kProducts };

// What panels of bf16 weights are made of on this machine.
using Narrow = std::conditional_t<kDotsPairs, Bf16Pair, uint16_t>;

// The inputs of all rows as they are multiplied: as they are, normed, or normed and rounded, in memory of this thread.
template <class B>
Rows<B> prepare(const Pool& pool, const Gemm<B>& g, int threads) {
  const size_t rows = g.rows;
  if constexpr (std::is_same_v<Input<B>, Bf16Pair>) {
    const DepthBlocks blocks = depth_blocks<kLanes>(g);
    const size_t stride = g.depth() + kLanes;  // more than a row: rows a power of two apart would share cache sets
    const int most = Remainders::room<kLanes>(g.k);
    auto* values = reinterpret_cast<Bf16Pair*>(scratch<kPrepared>(rows * (stride + 2 * most + blocks.count)));
    auto* remainders = values + rows * stride;
    auto* at = reinterpret_cast<int*>(remainders + rows * most);
    const Rows<B> all{values, stride, {remainders, at, at + rows * most, most, blocks.count}};
    parallel_for(pool, g.rows, threads, [&](int r) {
      const float* x = g.x + static_cast<size_t>(r) * g.k;
      if (g.norm) {
        float* normed = scratch<kProducts>(g.k);
        rms_norm<kLanes>(x, g.norm, g.eps, g.k, normed);
        x = normed;
      }
      round_row<kLanes>(x, g.k, blocks, values + r * stride, all.remainders.from(r));
    });
    return all;
  } else {
    if (!g.norm) return {g.x, static_cast<size_t>(g.k), {}};
    const size_t stride = g.k + kLanes;
    float* values = scratch<kPrepared>(rows * stride);
    parallel_for(pool, g.rows, threads, [&](int r) {
      rms_norm<kLanes>(g.x + static_cast<size_t>(r) * g.k, g.norm, g.eps, g.k, values + r * stride);
    });
    return {values, stride, {}};
  }
}

template <class B>
void run(const Pool& pool, const Gemm<B>& g) {
  if (g.rows == 0) return;
  const size_t bytes = static_cast<size_t>(g.panels) * g.depth() * kColumns * sizeof(B);
  // Waking a thread costs some tens of microseconds of its time: not for less than that much work.
  const int threads = bytes * (1 + g.rows / 4) < (128 << 10) ? 1 : pool.num_threads();
  int row_blocks = (g.rows + kRowBlock - 1) / kRowBlock;
  // As many blocks for each thread, where there are rows enough: it then finds in its caches what it wrote in the call before.
  if (g.rows >= kRowBlock / 2 * threads) row_blocks = (row_blocks + threads - 1) / threads * threads;
  const int rows_each = (g.rows + row_blocks - 1) / row_blocks;
  // Several tasks per thread even out what the machine's other work takes; a task keeps a long sequential stream of weights.
  const int groups_wanted = threads == 1 ? 1 : std::max(1, (kTasksPerThread * threads + row_blocks - 1) / row_blocks);
  int group = (g.panels + groups_wanted - 1) / groups_wanted;
  group = std::max(2, (group + 1) / 2 * 2);
  const int groups = (g.panels + group - 1) / group;

  const Rows<B> all = prepare(pool, g, static_cast<size_t>(g.rows) * g.k < (8 << 10) ? 1 : threads);
  const size_t ldc = static_cast<size_t>(group) * kColumns;
  const bool direct = !g.gated && g.scale == nullptr && g.residual == nullptr && g.n % kColumns == 0;
  parallel_for(pool, row_blocks * groups, threads, [&](int task) {
    const int first = task % groups * group, last = std::min(first + group, g.panels);
    const int row = task / groups * rows_each, count = std::min(rows_each, g.rows - row);
    if (count <= 0) return;
    if (direct) {
      float* out = g.out + static_cast<size_t>(row) * g.n + static_cast<size_t>(first) * kColumns;
      multiply<kLanes>(g, all.from(row), count, first, last, out, g.n);
      return;
    }
    float* c = scratch<kProducts>(static_cast<size_t>(rows_each) * ldc);
    multiply<kLanes>(g, all.from(row), count, first, last, c, ldc);
    for (int r = 0; r < count; ++r) finish<kLanes>(g, c + r * ldc, row + r, first, last);
  });
}

// Operands: x [T, K]; of all layers weights, scales or none, and norms or none; residual or none, number of rows [1], layer [1].
// Result: [T, N]; what lies behind the rows is left as it was allocated: pages that nothing touches are never taken from the system.
void linear(const Call& call) {
  const Buffer x = call.operand(0), w = call.operand(1), out = call.result(0);
  const int tokens = static_cast<int>(x.dim(0)), k = static_cast<int>(x.dim(1)), n = static_cast<int>(out.dim(1));
  const int span = w.holds<int8_t>() ? kSpan<int8_t> : kSpan<Narrow>;
  if (w.dim(2) != (k + span - 1) / span || w.dim(3) != kColumns)
    throw Refusal{"linear: the weight is not packed for this machine or for inputs of this width"};
  const int64_t layer = call.operand(6).data<int32_t>()[0], panels = w.dim(1);
  if (layer < 0 || layer >= w.dim(0)) throw Refusal{"linear: there is no such layer"};
  const auto of_layer = [&](const Buffer& all, int64_t size) -> const float* {
    const float* data = all.data_if_any<float>();
    if (data && all.size() != w.dim(0) * size) throw Refusal{"linear: scales or norms are not those of the weights"};
    return data ? data + layer * size : nullptr;
  };
  const float* scale = of_layer(call.operand(2), panels * kColumns);
  const float* norm = of_layer(call.operand(3), k);
  const int rows = std::clamp(call.operand(5).data<int32_t>()[0], 0, tokens);
  const float* residual = call.operand(4).data_if_any<float>();
  auto fill = [&](const auto* weight) {
    run(call.pool(), Gemm<std::remove_cv_t<std::remove_reference_t<decltype(*weight)>>>{
                         .x = x.data<float>(),
                         .w = weight + layer * panels * w.dim(2) * kColumns,
                         .scale = scale,
                         .norm = norm,
                         .residual = residual,
                         .out = out.data<float>(),
                         .rows = rows,
                         .k = k,
                         .n = n,
                         .panels = static_cast<int>(panels),
                         .eps = call.attribute<float>("eps"),
                         .gated = call.attribute<bool>("gated"),
                     });
  };
  if (w.holds<int8_t>()) {
    fill(w.data<int8_t>());
  } else {
    fill(w.data<Narrow>());
  }
}

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
inline float value(uint16_t x) {
  const uint32_t u = static_cast<uint32_t>(x) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

// One output feature (a row of the weight) into its column of a panel.
template <class S>
void pack_row(const S* row, int k, int column, uint16_t* panel, float*) {
  for (int i = 0; i < k; ++i) panel[static_cast<size_t>(i) * kColumns + pair_index<kLanes>(column)] = to_bf16(value(row[i]));
}

template <class S>
void pack_row(const S* row, int k, int column, Bf16Pair* panel, float*) {
  for (int i = 0; i < k; ++i)
    panel[static_cast<size_t>(i / 2) * kColumns + column] |= static_cast<uint32_t>(to_bf16(value(row[i]))) << (i % 2 * 16);
}

template <class S>
void pack_row(const S* row, int k, int column, int8_t* panel, float* scale) {
  float largest = 0.0f;
  for (int i = 0; i < k; ++i) largest = std::max(largest, std::fabs(value(row[i])));
  const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
  *scale = largest / 127.0f;
  for (int i = 0; i < k; ++i)
    panel[static_cast<size_t>(i) * kColumns + column] = static_cast<int8_t>(std::lrint(std::clamp(value(row[i]) * inverse, -127.0f, 127.0f)));
}

template <class S, class B>
void pack(const S* weight, int n, int k, bool gated, B* panels, float* scale) {
  const int half = gated ? n / 2 : n, depth = (k + kSpan<B> - 1) / kSpan<B>;
  for (int row = 0; row < n; ++row) {
    const int column = row < half ? row : row - half;
    const int panel = column / kColumns * (gated ? 2 : 1) + (row < half ? 0 : 1);
    const int at = column % kColumns;
    pack_row(weight + static_cast<size_t>(row) * k, k, at, panels + static_cast<size_t>(panel) * depth * kColumns,
             scale ? scale + panel * kColumns + at : nullptr);
  }
}

}  // namespace
}  // namespace twodeep

extern "C" XLA_FFI_Error* twodeep_linear(XLA_FFI_CallFrame* frame) { return twodeep::handle(frame, twodeep::linear); }

extern "C" XLA_FFI_Error* twodeep_greedy(XLA_FFI_CallFrame* frame) { return twodeep::handle(frame, twodeep::greedy); }

extern "C" int twodeep_panel_columns() { return twodeep::kColumns; }

// Whether this machine multiplies bf16 by bf16: panels of bf16 then hold pairs of inputs, and inputs are rounded too.
extern "C" int twodeep_dots_pairs() { return twodeep::kDotsPairs; }

// weight: [n, k] of f32, or of bf16 if `narrow`. panels, zeroed: of int8 [panels, k, columns] if `scale` is not null; else of pairs
// of bf16 [panels, (k + 1) / 2, columns] where the machine multiplies them, and of bf16 [panels, k, columns] where not.
extern "C" void twodeep_pack(const void* weight, int narrow, int n, int k, int gated, void* panels, float* scale) {
  using twodeep::pack;
  const auto* f = static_cast<const float*>(weight);
  const auto* h = static_cast<const uint16_t*>(weight);
  auto* wide = static_cast<twodeep::Narrow*>(panels);
  auto* bytes = static_cast<int8_t*>(panels);
  if (scale) return narrow ? pack(h, n, k, gated, bytes, scale) : pack(f, n, k, gated, bytes, scale);
  return narrow ? pack(h, n, k, gated, wide, scale) : pack(f, n, k, gated, wide, scale);
}

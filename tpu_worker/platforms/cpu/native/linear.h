// A product as a custom call of XLA: how it is cut into tasks for the threads.
#pragma once

#include "gemm.h"

namespace twodeep {

inline constexpr int kTasksPerThread = 12;

template <class B>
void run(const Pool& pool, const Gemm<B>& g) {
  if (g.rows == 0) return;
  const size_t bytes = static_cast<size_t>(g.panels) * g.depth() * kRowBytes<kLanes, B>;
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

  const auto all = prepare(pool, g, static_cast<size_t>(g.rows) * g.k < (8 << 10) ? 1 : threads);
  const size_t ldc = static_cast<size_t>(group) * 2 * kLanes;
  const bool direct = !g.gated() && g.residual == nullptr && g.n % (2 * kLanes) == 0;
  parallel_for(pool, row_blocks * groups, threads, [&](int task) {
    const int first = task % groups * group, last = std::min(first + group, g.panels);
    const int row = task / groups * rows_each, count = std::min(rows_each, g.rows - row);
    if (count <= 0) return;
    if (direct) {
      float* out = g.out + static_cast<size_t>(row) * g.n + static_cast<size_t>(first) * 2 * kLanes;
      multiply(g, all.from(row), count, first, last, out, g.n);
      return;
    }
    float* c = scratch<kProducts>(static_cast<size_t>(rows_each) * ldc);
    multiply(g, all.from(row), count, first, last, c, ldc);
    for (int r = 0; r < count; ++r) finish<kLanes>(g, c + r * ldc, row + r, first, last);
  });
}

// What a custom call multiplies, with weights of all layers at `weights`, [layers][panels][depth][elements].
//
// Operands: x [T, K]; of all layers weights, and norms or none; residual or none, number of rows [1], layer [1].
// Result: [T, N]; what lies behind the rows is left as it was allocated: pages that nothing touches are never taken from the system.
template <class B>
void linear(const Call& call, const B* weights, int64_t elements) {
  const Buffer x = call.operand(0), w = call.operand(1), out = call.result(0);
  const int tokens = static_cast<int>(x.dim(0)), k = static_cast<int>(x.dim(1)), n = static_cast<int>(out.dim(1));
  const int64_t layer = call.operand(5).data<int32_t>()[0], panels = w.dim(1);
  if (layer < 0 || layer >= w.dim(0)) throw Refusal{"linear: there is no such layer"};
  const float* norms = call.operand(2).data_if_any<float>();
  if (norms && call.operand(2).size() != w.dim(0) * k) throw Refusal{"linear: the norms are not those of the weights"};
  const float* residual = call.operand(3).data_if_any<float>();
  const int rows = std::clamp(call.operand(4).data<int32_t>()[0], 0, tokens);
  Gemm<B> g{
      .x = x.data<float>(),
      .w = weights,
      .norm = norms ? norms + layer * k : nullptr,
      .residual = residual,
      .out = out.data<float>(),
      .rows = rows,
      .k = k,
      .n = n,
      .panels = static_cast<int>(panels),
      .eps = call.attribute<float>("eps"),
      .activation = static_cast<Activation>(call.attribute<int32_t>("activation")),
  };
  if (w.dim(2) != g.depth() || elements != kRowElements<kLanes, B>)
    throw Refusal{"linear: the weight is not packed for this machine or for inputs of this width"};
  g.w += layer * panels * g.depth() * elements;
  run(call.pool(), g);
}

}  // namespace twodeep

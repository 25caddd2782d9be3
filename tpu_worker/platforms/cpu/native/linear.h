// A product as a custom call of XLA: how it is cut into tasks for the threads.
#pragma once

#include "gemm.h"

namespace twodeep {

inline constexpr int kTasksPerThread = 12;

// Some of the panels of a part of a weight.
struct PanelGroup {
  int part, first, last;
};

// The product with a weight of several parts, whose outputs are side by side, or, if gated, gates and what they multiply in two parts.
// They share everything but weights and outputs.
template <class B>
void run(const Pool& pool, const Gemm<B>* parts, int num_parts) {
  const Gemm<B>& g = parts[0];
  if (g.rows == 0) return;
  const bool pair = g.gated() && num_parts == 2;
  size_t bytes = 0;
  int panels = 0;
  for (const Gemm<B>* part = parts; part < parts + num_parts; ++part) {
    bytes += part->panels * part->panel_size() * sizeof(B);
    panels += part->panels;
  }
  // Waking a thread costs some tens of microseconds of its time: not for less than that much work.
  const int threads = bytes * (1 + g.rows / 4) < (128 << 10) ? 1 : pool.num_threads();
  int row_blocks = (g.rows + kRowBlock - 1) / kRowBlock;
  // As many blocks for each thread, where there are rows enough: it then finds in its caches what it wrote in the call before.
  if (g.rows >= kRowBlock / 2 * threads) row_blocks = (row_blocks + threads - 1) / threads * threads;
  const int rows_each = (g.rows + row_blocks - 1) / row_blocks;
  // Several tasks per thread even out what the machine's other work takes; a task keeps a long sequential stream of weights.
  const int groups_wanted = threads == 1 ? 1 : std::max(1, (kTasksPerThread * threads + row_blocks - 1) / row_blocks);
  int group = (panels + groups_wanted - 1) / groups_wanted;
  group = std::max(2, (group + 1) / 2 * 2);
  std::vector<PanelGroup> groups;
  const int step = pair ? group / 2 : group;
  for (int part = 0; part < (pair ? 1 : num_parts); ++part)
    for (int first = 0; first < parts[part].panels; first += step) groups.push_back({part, first, std::min(first + step, parts[part].panels)});
  const int num_groups = static_cast<int>(groups.size());

  const auto all = prepare(pool, g, static_cast<size_t>(g.rows) * g.k < (8 << 10) ? 1 : threads);
  const size_t ldc = static_cast<size_t>(group) * 2 * kLanes;
  parallel_for(pool, row_blocks * num_groups, threads, [&](int task) {
    const auto [part, first, last] = groups[task % num_groups];
    const Gemm<B>& mine = parts[part];
    const int row = task / num_groups * rows_each, count = std::min(rows_each, g.rows - row);
    if (count <= 0) return;
    if (!g.gated() && g.residual == nullptr && mine.n % (2 * kLanes) == 0) {
      float* out = mine.out + mine.to_row(row) + static_cast<size_t>(first) * 2 * kLanes;
      multiply(mine, all.from(row), count, first, last, out, mine.to_row(1));
      return;
    }
    float* c = scratch<kProducts>(static_cast<size_t>(rows_each) * ldc);
    if (pair) {  // as if panels alternated
      for (int p = first; p < last; ++p)
        for (int i = 0; i < 2; ++i)
          multiply(parts[i], all.from(row), count, p, p + 1, c + static_cast<size_t>(2 * (p - first) + i) * 2 * kLanes, ldc);
      for (int r = 0; r < count; ++r) finish<kLanes>(g, c + r * ldc, row + r, 2 * first, 2 * last);
      return;
    }
    multiply(mine, all.from(row), count, first, last, c, ldc);
    for (int r = 0; r < count; ++r) finish<kLanes>(mine, c + r * ldc, row + r, first, last);
  });
}

// What a custom call multiplies, with weights of all layers at `weights`, [layers][panels][depth][elements].
//
// Operands: x [T, K]; of all layers weights, and norms or none; residual or none, number of rows [1], layer [1].
// Result: [T, N]; what lies behind the rows is left as it was allocated: pages that nothing touches are never taken from the system.
template <class B>
Gemm<B> operands(const Call& call, const B* weights, const BlockKind* kind = nullptr) {
  const Buffer x = call.operand(0), w = call.operand(1), out = call.result(0);
  const int tokens = static_cast<int>(x.dim(0)), k = static_cast<int>(x.dim(1)), n = static_cast<int>(out.dim(1));
  const int64_t layer = call.operand(5).data<int32_t>()[0];
  if (layer < 0 || layer >= w.dim(0)) throw Refusal{"linear: there is no such layer"};
  const float* norms = call.operand(2).data_if_any<float>();
  if (norms && call.operand(2).size() != w.dim(0) * k) throw Refusal{"linear: the norms are not those of the weights"};
  const float* residual = call.operand(3).data_if_any<float>();
  const int rows = std::clamp(call.operand(4).data<int32_t>()[0], 0, tokens);
  return {
      .x = x.data<float>(),
      .w = weights,
      .norm = norms ? norms + layer * k : nullptr,
      .residual = residual,
      .out = out.data<float>(),
      .rows = rows,
      .k = k,
      .n = n,
      .panels = 0,
      .eps = call.attribute<float>("eps"),
      .activation = static_cast<Activation>(call.attribute<int32_t>("activation")),
      .kind = kind,
  };
}

// Sets the panels of g: those of the layer in w, [layers, panels, depth, elements].
template <class B>
void find_panels(const Call& call, const Buffer& w, Gemm<B>& g) {
  const int64_t layer = call.operand(5).data<int32_t>()[0];
  if (w.dim(2) != g.depth() || w.dim(3) != g.elements())
    throw Refusal{"linear: the weight is not packed for this machine or for inputs of this width"};
  g.panels = static_cast<int>(w.dim(1));
  const int columns = 2 * kLanes, needed = (g.n + columns - 1) / columns;
  if (g.panels < needed) throw Refusal{"linear: the weight has fewer rows than the result has columns"};
  g.w += layer * g.panels * g.panel_size();
}

}  // namespace twodeep

// Products with the weights of experts as a custom call of XLA: each row is multiplied with those of the experts that its token chose.
//
// Rows are grouped by expert, and a group is a product like any other. So a step reads the weights of the experts that some token chose,
// and of no others.
#pragma once

#include <vector>

#include "linear.h"

namespace twodeep {

// Rows [first, first + count) of those in order, which are all of one expert.
struct RowsOfExpert {
  int expert, first, count;
};

// The rows of experts, expert by expert, each in its own order; rows whose expert is not here are in no group.
struct Groups {
  std::vector<int32_t> rows;
  std::vector<RowsOfExpert> blocks;  // of not too many rows each
  int hit = 0;                       // experts

  Groups(const int32_t* chosen, int count, int num_experts) {
    std::vector<int> ends(num_experts + 1);
    const auto here = [&](int row) { return chosen[row] >= 0 && chosen[row] < num_experts; };
    for (int row = 0; row < count; ++row)
      if (here(row)) ++ends[chosen[row] + 1];
    for (int e = 0; e < num_experts; ++e) {
      const int first = ends[e], size = ends[e + 1], pieces = (size + kRowBlock - 1) / kRowBlock;
      ends[e + 1] += first;
      hit += size > 0;
      for (int i = 0; i < pieces; ++i) {
        const int from = size * i / pieces;
        blocks.push_back({e, first + from, size * (i + 1) / pieces - from});
      }
    }
    rows.resize(ends[num_experts]);
    for (int row = 0; row < count; ++row)
      if (here(row)) rows[ends[chosen[row]]++] = row;
  }
};

// For all groups: rows of g.from are in the order of the groups, and row i of the result goes to row groups.rows[i] of g.out. `size`: of
// an expert's weights, in elements; biases of N numbers lie expert by expert.
template <class B>
void multiply_groups(const Pool& pool, const Gemm<B>& g, const Groups& groups, size_t size) {
  const size_t bytes = groups.hit * size * sizeof(B);
  const int threads = bytes * (1 + g.rows / (4 * std::max(1, groups.hit))) < (128 << 10) ? 1 : pool.num_threads();
  const int blocks = static_cast<int>(groups.blocks.size());
  const int wanted = threads == 1 ? 1 : std::max(1, (kTasksPerThread * threads + blocks - 1) / blocks);
  const int group = std::max(2, ((g.panels + wanted - 1) / wanted + 1) / 2 * 2), cuts = (g.panels + group - 1) / group;
  const auto all = prepare(pool, g, static_cast<size_t>(g.rows) * g.k < (8 << 10) ? 1 : threads);
  const size_t ldc = static_cast<size_t>(group) * 2 * kLanes;
  parallel_for(pool, blocks * cuts, threads, [&](int task) {
    const RowsOfExpert& block = groups.blocks[task / cuts];
    const int first = task % cuts * group, last = std::min(first + group, g.panels);
    Gemm<B> mine = g;
    mine.w += block.expert * size;
    const size_t of_expert = static_cast<size_t>(block.expert) * g.n;
    if (g.bias) mine.bias += of_expert;
    if (g.bias_up) mine.bias_up += of_expert;
    float* c = scratch<kProducts>(block.count * ldc);
    multiply(mine, all.from(block.first), block.count, first, last, c, ldc);
    for (int r = 0; r < block.count; ++r) finish<kLanes>(mine, c + r * ldc, groups.rows[block.first + r], first, last);
  });
}

// out[0 … n) = residual (or 0) + the rows at `rows` times their shares, in order, but for those whose expert is not here.
inline void add_shares(const float* rows, const int32_t* chosen, const float* shares, int each, int num_experts, const float* residual, int n,
                       float* out) {
  using F = typename Vec<kLanes>::f32;
  if (residual) {
    std::memcpy(out, residual, n * sizeof(float));
  } else {
    std::fill_n(out, n, 0.0f);
  }
  for (int j = 0; j < each; ++j, rows += n) {
    if (chosen[j] < 0 || chosen[j] >= num_experts) continue;
    const float share = shares[j];
    int i = 0;
    for (; i + kLanes <= n; i += kLanes) store(out + i, load<F>(out + i) + load<F>(rows + i) * share);
    for (; i < n; ++i) out[i] += rows[i] * share;
  }
}

// Weights of all layers at `weights`, [layers][experts][panels][depth][elements]. Of T tokens, each chose C experts.
//
// Operands: x; of all layers weights, norms or none, and biases or none; chosen [T, C], shares [T, C] or none, residual or none, number of
// tokens [1], layer [1]. Without shares, x is [T, K] and the result [T * C, N]: what each chosen expert makes of its token. With them, x
// is [T * C, K] and the result [T, N]: the shares of what they make of their rows, added up. Biases are [experts, N], for gated weights
// first all those of gates. An expert that is not there makes nothing of its row: its result is anything, or counts nothing in a sum.
template <class B>
void experts(const Call& call, const B* weights, const BlockKind* kind = nullptr) {
  const Buffer x = call.operand(0), w = call.operand(1), biases = call.operand(3), chosen = call.operand(4), out = call.result(0);
  const float* shares = call.operand(5).data_if_any<float>();
  const float* residual = call.operand(6).data_if_any<float>();
  const int all = static_cast<int>(chosen.dim(0)), each = static_cast<int>(chosen.dim(1)), num_experts = static_cast<int>(w.dim(1));
  const int k = static_cast<int>(x.dim(1)), n = static_cast<int>(out.dim(1)), panels = static_cast<int>(w.dim(2));
  const int tokens = std::clamp(call.operand(7).data<int32_t>()[0], 0, all);
  const int64_t layer = call.operand(8).data<int32_t>()[0];
  if (layer < 0 || layer >= w.dim(0)) throw Refusal{"experts: there is no such layer"};
  if (x.dim(0) != (shares ? all * each : all) || out.dim(0) != (shares ? all : all * each)) throw Refusal{"experts: rows and tokens differ"};
  const float* norms = call.operand(2).data_if_any<float>();
  if (norms && call.operand(2).size() != w.dim(0) * k) throw Refusal{"experts: the norms are not those of the weights"};
  const auto activation = static_cast<Activation>(call.attribute<int32_t>("activation"));
  const int64_t num_biases = static_cast<int64_t>(num_experts) * n;
  const int halves = activation == Activation::kNone ? 1 : 2;
  const float* bias = biases.data_if_any<float>();
  if (bias && biases.size() != w.dim(0) * num_biases * halves) throw Refusal{"experts: the biases are not those of the weights"};
  if (bias) bias += layer * num_biases * halves;
  const int32_t* experts_of = chosen.data<int32_t>();
  const Groups groups(experts_of, tokens * each, num_experts);
  std::vector<int32_t> from = groups.rows;
  if (!shares)
    for (int32_t& row : from) row /= each;
  Gemm<B> g{
      .x = x.data<float>(),
      .w = weights,
      .norm = norms ? norms + layer * k : nullptr,
      .residual = nullptr,
      .out = shares ? scratch<kSummands>(static_cast<size_t>(tokens) * each * n) : out.data<float>(),
      .rows = static_cast<int>(from.size()),
      .k = k,
      .n = n,
      .panels = panels,
      .eps = call.attribute<float>("eps"),
      .activation = activation,
      .from = from.data(),
      .bias = bias,
      .bias_up = bias && halves == 2 ? bias + num_biases : nullptr,
      .kind = kind,
  };
  if (w.dim(3) != g.depth() || w.dim(4) != g.elements())
    throw Refusal{"experts: the weights are not packed for this machine or for inputs of this width"};
  const size_t size = panels * g.panel_size();
  g.w += layer * num_experts * size;
  if (g.rows) multiply_groups(call.pool(), g, groups, size);
  if (!shares) return;
  float* sums = out.data<float>();
  const int threads = static_cast<size_t>(tokens) * each * n < (64 << 10) ? 1 : call.pool().num_threads();
  parallel_for(call.pool(), tokens, threads, [&](int t) {
    const size_t row = static_cast<size_t>(t) * each, to = static_cast<size_t>(t) * n;
    add_shares(g.out + row * n, experts_of + row, shares + row, each, num_experts, residual ? residual + to : nullptr, n, sums + to);
  });
}

template <int W>
float dot(const float* a, const float* b, int k) {
  using F = typename Vec<W>::f32;
  F sums[4] = {};
  int i = 0;
  for (; i + 4 * W <= k; i += 4 * W)
    for (int j = 0; j < 4; ++j) sums[j] += load<F>(a + i + j * W) * load<F>(b + i + j * W);
  for (; i + W <= k; i += W) sums[0] += load<F>(a + i) * load<F>(b + i);
  float sum = sum_lanes<W>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < k; ++i) sum += a[i] * b[i];
  return sum;
}

// How well each expert suits a token, in float32 throughout: what is rounded may be another expert.
//
// Operands: x [T, K]; of all layers weights [layers, N, K], and norms or none; number of rows [1], layer [1]. Result: [T, N].
inline void scores(const Call& call) {
  const Buffer x = call.operand(0), w = call.operand(1), out = call.result(0);
  const int k = static_cast<int>(x.dim(1)), n = static_cast<int>(out.dim(1));
  const int rows = std::clamp(call.operand(3).data<int32_t>()[0], 0, static_cast<int>(x.dim(0)));
  const int64_t layer = call.operand(4).data<int32_t>()[0];
  if (layer < 0 || layer >= w.dim(0)) throw Refusal{"scores: there is no such layer"};
  if (w.dim(1) != n || w.dim(2) != k) throw Refusal{"scores: the weights are of another size"};
  const float* norms = call.operand(2).data_if_any<float>();
  if (norms && call.operand(2).size() != w.dim(0) * k) throw Refusal{"scores: the norms are not those of the weights"};
  const float* weights = w.data<float>() + layer * n * k;
  const float *inputs = x.data<float>(), *norm = norms ? norms + layer * k : nullptr;
  const float eps = call.attribute<float>("eps");
  float* result = out.data<float>();
  const int threads = static_cast<size_t>(rows) * n * k < (256 << 10) ? 1 : call.pool().num_threads();
  parallel_for(call.pool(), rows, threads, [&](int r) {
    const float* row = inputs + static_cast<size_t>(r) * k;
    if (norm) {
      float* normed = scratch<kProducts>(k);
      rms_norm<kLanes>(row, norm, eps, k, normed);
      row = normed;
    }
    for (int e = 0; e < n; ++e) result[static_cast<size_t>(r) * n + e] = dot<kLanes>(row, weights + static_cast<size_t>(e) * k, k);
  });
}

}  // namespace twodeep

// Paged attention of one key-value head over a cache of bf16, or of f32 in a library of its own; f32 arithmetic.
//
// The cache of a layer: [blocks][KV heads][keys, values][block size * D]. Keys lie in panels of 2W positions ([panel][D][2W]),
// values in panels of 2W features ([panel][positions][2W]), bf16 as pairs, so that scores and weighted sums are the same
// product of a few rows with panels as a linear layer is.
//
// Softmax runs online over tiles of kTile positions that begin at position 0 of the sequence (Milakov and Gimelshein, 2018). What a
// query computes depends on its own position only: not on the queries beside it, on the chunk it came in, or on the thread.
//
// With a window, the first tile begins with the first block of which the first query sees any. Blocks before it may belong to
// another sequence by now, and hold anything: they are never read. What a tile leaves out weighs nothing, and changes no bit.
#pragma once

#include <algorithm>

#include "micro.h"

namespace twodeep {

// Lanes of its vectors, W for short: not more where the machine has them, or short prompts would be slower, long ones hardly faster,
// and blocks less small.
inline constexpr int kWidth = 8;
// What keys and values are kept as.
using Cached = std::conditional_t<kFloat32, float, uint16_t>;
inline constexpr size_t kRow = 2 * kWidth * sizeof(Cached);  // bytes of a row of a panel
inline constexpr int kTile = 64;       // key positions between two rescalings
inline constexpr int kQueryRows = 48;  // (token, head) pairs that share a pass over the keys
inline constexpr int kRowTile = 6;     // of these, rows in registers at once
inline constexpr float kLog2e = 1.44269504f;
inline constexpr float kNothing = -1e30f;  // below any score: the maximum over no keys

struct Paged {
  const float *q, *k, *v;                 // [T][...]: token t at q + t * q_stride; heads of D, one after the other
  size_t q_stride, k_stride, v_stride;    // floats
  const float* rope;                      // [positions][rotary]: cosines, then sines, of rotary / 2 frequencies; or null
  const float* sinks;                     // [H]: scores that take part in the softmax and weigh nothing; or null
  Cached* cache;
  const int32_t *tables, *starts, *counts, *offsets;  // [R][table_width], [R], [R], [R + 1]
  float* out;                             // [T][H][D]
  int num_rows, table_width, num_blocks, block_size, heads, kv_heads, dim, rotary, window;  // window 0: none
  float scale, cap;                       // cap 0: none

  int group() const { return heads / kv_heads; }
  // The oldest position that the one at `position` attends to.
  int oldest(int position) const { return window ? std::max(0, position - window + 1) : 0; }
  size_t half() const { return static_cast<size_t>(block_size) * dim; }  // of a block of a head: its keys, or its values
  Cached* block(int row, int position, int head) const {
    const size_t id = tables[static_cast<size_t>(row) * table_width + position / block_size];
    return cache + (id * kv_heads + head) * 2 * half();
  }
};

// Rotates the first `rotary` features of a head (halves, as in Hugging Face's rotate_half) and multiplies all by `factor`.
inline void rotate(const float* __restrict x, const float* __restrict table, int rotary, int dim, float factor, float* __restrict y) {
  const int half = rotary / 2;
  for (int i = 0; i < half; ++i) {
    const float c = table[i], s = table[half + i];
    y[i] = (x[i] * c - x[half + i] * s) * factor;
    y[half + i] = (x[half + i] * c + x[i] * s) * factor;
  }
  for (int i = rotary; i < dim; ++i) y[i] = x[i] * factor;
}

// Keys and values of all tokens of a row, one head, into the cache.
inline void write_row(const Paged& p, int row, int head, float* rotated) {
  constexpr int C = 2 * kWidth;
  for (int i = 0; i < p.counts[row]; ++i) {
    const size_t token = p.offsets[row] + i;
    const int position = p.starts[row] + i, at = position % p.block_size;
    Cached* keys = p.block(row, position, head) + static_cast<size_t>(at / C) * p.dim * C + column_index<kWidth, Cached>(at % C);
    Cached* values = p.block(row, position, head) + p.half() + static_cast<size_t>(at) * C;
    const float* k = p.k + token * p.k_stride + static_cast<size_t>(head) * p.dim;
    const float* v = p.v + token * p.v_stride + static_cast<size_t>(head) * p.dim;
    if (p.rope) {
      rotate(k, p.rope + static_cast<size_t>(position) * p.rotary, p.rotary, p.dim, 1.0f, rotated);
      k = rotated;
    }
    for (int d = 0; d < p.dim; ++d) narrow(k[d], keys[static_cast<size_t>(d) * C]);
    for (int d = 0; d < p.dim; d += C)
      for (int c = 0; c < C; ++c) narrow(v[d + c], values[static_cast<size_t>(d) * p.block_size + column_index<kWidth, Cached>(c)]);
  }
}

// tanh of any x, from the exponential of -2|x|.
[[gnu::always_inline]] inline typename Vec<kWidth>::f32 tanh(typename Vec<kWidth>::f32 x) {
  const auto e = exp2_nonpositive<kWidth>((x < 0.0f ? x : -x) * (2.0f * kLog2e));
  const auto t = (1.0f - e) / (1.0f + e);
  return x < 0.0f ? -t : t;
}

// What a thread works with: queries [kQueryRows][D], sums [kQueryRows][D], scores [kRowTile][kTile], and one key.
struct Workspace {
  float *queries, *sums, *scores, *key;
  float peaks[kQueryRows], weights[kQueryRows];
  int positions[kQueryRows];
  Workspace(float* memory, int dim)
      : queries(memory), sums(queries + kQueryRows * dim), scores(sums + kQueryRows * dim), key(scores + kRowTile * kTile) {}
  static size_t size(int dim) { return static_cast<size_t>(2 * kQueryRows + 1) * dim + kRowTile * kTile; }
};

// Where the positions [begin, end) of a tile lie: the panels of their keys, and their values in runs that no block boundary cuts.
struct Tile {
  static constexpr int C = 2 * kWidth;
  int begin, end, num_panels = 0, num_runs = 0;
  const Cached* keys[kTile / C];
  struct Run {
    const Cached* values;
    int size;
  } runs[kTile / C];

  Tile(const Paged& p, int row, int head, int begin, int end) : begin(begin), end(end) {
    for (int j = begin; j < end;) {
      const int at = j % p.block_size, size = std::min(p.block_size - at, end - j);
      const Cached* block = p.block(row, j, head);
      for (int i = 0; i < size; i += C) keys[num_panels++] = block + static_cast<size_t>(at + i) * p.dim;
      runs[num_runs++] = {block + p.half() + static_cast<size_t>(at) * C, size};
      j += size;
    }
  }
};

template <int R, int P>
[[gnu::always_inline]] inline void score(const float* queries, int dim, const Cached* const* keys, const Cached* next, float* scores) {
  typename Vec<kWidth>::f32 acc[R][P][2] = {};
  advance<kWidth, R, P>(acc, queries, dim, keys[0], P == 1 ? 0 : keys[P - 1] - keys[0], dim, {next, kRow, 0});
  store_tile<kWidth, R, P>(acc, scores, kTile);
}

template <int R, int P>
[[gnu::always_inline]] inline void add_values(const float* weights, const Tile& tile, const Tile& next, size_t offset, size_t panel,
                                              float* sums, int dim) {
  typename Vec<kWidth>::f32 acc[R][P][2];
  load_tile<kWidth, R, P>(acc, sums, dim);
  for (int i = 0, j = 0; i < tile.num_runs; j += tile.runs[i++].size) {
    const Cached* soon = next.runs[std::min(i, next.num_runs - 1)].values + offset;
    advance<kWidth, R, P>(acc, weights + j, kTile, tile.runs[i].values + offset, panel, tile.runs[i].size, {soon, kRow, 0});
  }
  store_tile<kWidth, R, P>(acc, sums, dim);
}

// R query rows, from `first` on, against one tile of keys; `next` is the tile to fetch meanwhile.
template <int R>
[[gnu::noinline]] void attend_tile(const Paged& p, Workspace& s, int first, const Tile& tile, const Tile& next) {
  using F = typename Vec<kWidth>::f32;
  using I = typename Vec<kWidth>::i32;
  constexpr int C = 2 * kWidth;
  constexpr int kPair = R <= 2 ? 2 : 1;  // panels at once: enough independent chains, within the registers
  const float* queries = s.queries + first * p.dim;
  for (int i = 0; i < tile.num_panels;) {
    const Cached* soon = next.keys[std::min(i, next.num_panels - 1)];
    if (kPair == 2 && i + 2 <= tile.num_panels) {
      score<R, kPair>(queries, p.dim, tile.keys + i, soon, s.scores + i * C);
      i += 2;
    } else {
      score<R, 1>(queries, p.dim, tile.keys + i, soon, s.scores + i * C);
      i += 1;
    }
  }
  const int padded = tile.num_panels * C;
  I lanes;
  for (int i = 0; i < kWidth; ++i) lanes[i] = i;
  for (int r = 0; r < R; ++r) {
    float* scores = s.scores + r * kTile;
    const int position = s.positions[first + r], oldest = p.window ? position - p.window : -1;
    F peak = splat<F>(kNothing);
    for (int j = 0; j < padded; j += kWidth) {
      F x = load<F>(scores + j);
      if (p.cap != 0.0f) x = tanh(x) * (p.cap * kLog2e);
      const I at = lanes + (tile.begin + j);
      x = (at <= position) & (at > oldest) ? x : splat<F>(-__builtin_inff());
      store(scores + j, x);
      peak = peak < x ? x : peak;
    }
    const float before = s.peaks[first + r], now = std::max(before, max_lanes<kWidth>(peak));
    F sum{};
    for (int j = 0; j < padded; j += kWidth) {
      const F weight = exp2_nonpositive<kWidth>(load<F>(scores + j) - now);
      store(scores + j, weight);
      sum += weight;
    }
    if (before != now) {
      const float shrink = exp2_nonpositive<kWidth>(splat<F>(before - now))[0];
      float* sums = s.sums + (first + r) * p.dim;
      for (int d = 0; d < p.dim; d += kWidth) store(sums + d, load<F>(sums + d) * shrink);
      s.weights[first + r] *= shrink;
    }
    s.peaks[first + r] = now;
    s.weights[first + r] += sum_lanes<kWidth>(sum);
  }
  const size_t panel = static_cast<size_t>(p.block_size) * C;
  for (int d = 0; d < p.dim;) {
    float* sums = s.sums + first * p.dim + d;
    const size_t offset = static_cast<size_t>(d) * p.block_size;
    if (kPair == 2 && d + 2 * C <= p.dim) {
      add_values<R, kPair>(s.scores, tile, next, offset, panel, sums, p.dim);
      d += 2 * C;
    } else {
      add_values<R, 1>(s.scores, tile, next, offset, panel, sums, p.dim);
      d += C;
    }
  }
}

// Query rows [from, from + size) of one request and one key-value head: pair i is token i / group, head i % group of the group.
struct Task {
  int row, head, from, size;
};

// The positions of the first tile of keys that a task needs, in whole blocks, and how far it needs keys at all.
struct Span {
  int begin, end, last;

  Span(const Paged& p, const Task& task)
      : last(p.starts[task.row] + (task.from + task.size - 1) / p.group() + 1) {
    const int oldest = p.oldest(p.starts[task.row] + task.from / p.group());
    begin = std::max(oldest / kTile * kTile, oldest / p.block_size * p.block_size);
    end = std::min(end_of_tile(begin), last);
  }

  static int end_of_tile(int position) { return (position / kTile + 1) * kTile; }
};

// `soon`: the task that is likely to follow on this thread, whose keys and values are fetched in time.
inline void attend_rows(const Paged& p, Workspace& s, const Task& task, const Task& soon) {
  const auto [row, head, from, size] = task;
  const int group = p.group();
  const float factor = p.cap != 0.0f ? p.scale / p.cap : p.scale * kLog2e;
  for (int i = 0; i < size; ++i) {
    const int token = (from + i) / group;
    const float* q = p.q + (p.offsets[row] + token) * p.q_stride + static_cast<size_t>(head * group + (from + i) % group) * p.dim;
    s.positions[i] = p.starts[row] + token;
    rotate(q, p.rope ? p.rope + static_cast<size_t>(s.positions[i]) * p.rotary : nullptr, p.rotary, p.dim, factor, s.queries + i * p.dim);
    // A sink is a position with that score, and a value of zero, that was seen before all others.
    s.peaks[i] = p.sinks ? p.sinks[head * group + (from + i) % group] * kLog2e : kNothing;
    s.weights[i] = p.sinks ? 1.0f : 0.0f;
  }
  std::fill_n(s.sums, size * p.dim, 0.0f);
  const Span span(p, task), then(p, soon);
  Tile whole(p, row, head, span.begin, span.end);
  for (int begin = span.begin, after; begin < span.last; begin = after) {
    after = Span::end_of_tile(begin);
    const Tile next = after < span.last ? Tile(p, row, head, after, std::min(after + kTile, span.last))
                                        : Tile(p, soon.row, soon.head, then.begin, then.end);
    for (int first = 0; first < size; first += kRowTile) {
      const int rows = std::min(kRowTile, size - first), end = s.positions[first + rows - 1] + 1;
      if (end <= begin) continue;
      // Behind the last query lies nothing that may be read, not even with a weight of zero.
      const Tile tile = end >= whole.end ? whole : Tile(p, row, head, begin, end);
      switch (rows) {
        case 1: attend_tile<1>(p, s, first, tile, next); break;
        case 2: attend_tile<2>(p, s, first, tile, next); break;
        case 3: attend_tile<3>(p, s, first, tile, next); break;
        case 4: attend_tile<4>(p, s, first, tile, next); break;
        case 5: attend_tile<5>(p, s, first, tile, next); break;
        default: attend_tile<6>(p, s, first, tile, next);
      }
    }
    whole = next;
  }
  for (int i = 0; i < size; ++i) {
    const size_t token = p.offsets[row] + (from + i) / group;
    float* out = p.out + (token * p.heads + head * group + (from + i) % group) * p.dim;
    for (int d = 0; d < p.dim; ++d) out[d] = s.sums[i * p.dim + d] / s.weights[i];
  }
}

}  // namespace twodeep

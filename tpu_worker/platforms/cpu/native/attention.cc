// The XLA custom call for paged attention.
#include <sys/mman.h>

#include <vector>

#include "paged.h"
#include "parallel.h"

namespace twodeep {
namespace {

void run(const Pool& pool, const Paged& p) {
  // A row's query rows are cut into chunks; a chunk of one key-value head is a task.
  std::vector<Task> tasks, writes;
  double work = 0;
  for (int row = 0; row < p.num_rows; ++row) {
    const int size = p.counts[row] * p.group();
    work += static_cast<double>(size) * (p.starts[row] + p.counts[row]) * p.dim * p.kv_heads * 4;
    for (int head = 0; head < p.kv_heads; ++head) {
      if (size > kQueryRows) writes.push_back({row, head, 0, 0});
      for (int from = 0; from < size; from += kQueryRows) tasks.push_back({row, head, from, std::min(kQueryRows, size - from)});
    }
  }
  // Floating-point operations that take about as long as waking a thread.
  const int threads = work < 1e6 ? 1 : pool.num_threads();
  // Chunks of one row read what all of them write: a pass of its own. A row of one chunk writes for itself.
  parallel_for(pool, static_cast<int>(writes.size()), threads, [&](int i) {
    write_row(p, writes[i].row, writes[i].head, scratch(p.dim));
  });
  parallel_for(pool, static_cast<int>(tasks.size()), threads, [&](int i) {
    const Task& task = tasks[i];
    const Task& soon = tasks[i + 1 < static_cast<int>(tasks.size()) ? i + 1 : i];
    Workspace space(scratch(Workspace::size(p.dim)), p.dim);
    if (p.counts[task.row] * p.group() <= kQueryRows) write_row(p, task.row, task.head, space.key);
    attend_rows(p, space, task, soon);
  });
}

// Nothing in the metadata may lead a read or a write out of the arrays.
void check(const Paged& p, int64_t tokens, int64_t rope_positions) {
  if (p.block_size % 16 || p.dim % 16) throw Refusal{"attend: block size and head size must be multiples of 16"};
  if (p.kv_heads < 1 || p.heads % p.kv_heads) throw Refusal{"attend: the key-value heads must divide the heads"};
  if (p.rotary > p.dim || p.rotary % 2) throw Refusal{"attend: the rotary table does not fit the heads"};
  int64_t total = 0;
  for (int row = 0; row < p.num_rows; ++row) {
    const int64_t start = p.starts[row], count = p.counts[row], end = start + count;
    if (count == 0) continue;
    if (count < 0 || p.offsets[row] != total) throw Refusal{"attend: rows do not follow one another"};
    if (start < 0 || end > static_cast<int64_t>(p.table_width) * p.block_size) throw Refusal{"attend: a row does not fit its block table"};
    if (p.rope && end > rope_positions) throw Refusal{"attend: a position is past the end of the rotary table"};
    for (int64_t i = 0; i * p.block_size < end; ++i) {
      const int32_t id = p.tables[static_cast<int64_t>(row) * p.table_width + i];
      if (id < 0 || id >= p.num_blocks) throw Refusal{"attend: a block table names a block that does not exist"};
    }
    total += count;
  }
  if (total > tokens) throw Refusal{"attend: the rows have more tokens than there are"};
  if (p.offsets[p.num_rows] != total) throw Refusal{"attend: the last offset is not the number of tokens"};
}

// Operands: q, k, v, caches of all layers, rope or none, block tables, starts, counts, offsets, layer [1], sinks [H] or none. Results:
// out [T, H, D], the caches.
void attend(const Call& call) {
  const Buffer cache = call.operand(3), rope = call.operand(4), tables = call.operand(5), out = call.result(0), updated = call.result(1);
  const int64_t tokens = out.dim(0);
  if (updated.data<Cached>() != cache.data<Cached>())
    std::memcpy(updated.data<Cached>(), cache.data<Cached>(), cache.size() * sizeof(Cached));
  if (tokens == 0) return;
  const int64_t layer = call.operand(9).data<int32_t>()[0];
  if (layer < 0 || layer >= cache.dim(0)) throw Refusal{"attend: there is no such layer"};
  const float* sinks = call.operand(10).data_if_any<float>();
  if (sinks && call.operand(10).size() != out.dim(1)) throw Refusal{"attend: there is not one sink for each head"};
  const Paged p{
      .q = call.operand(0).data<float>() + call.attribute<int32_t>("q_offset"),
      .k = call.operand(1).data<float>() + call.attribute<int32_t>("k_offset"),
      .v = call.operand(2).data<float>() + call.attribute<int32_t>("v_offset"),
      .q_stride = static_cast<size_t>(call.operand(0).size() / tokens),
      .k_stride = static_cast<size_t>(call.operand(1).size() / tokens),
      .v_stride = static_cast<size_t>(call.operand(2).size() / tokens),
      .rope = rope.data_if_any<float>(),
      .sinks = sinks,
      .cache = updated.data<Cached>() + layer * (cache.size() / cache.dim(0)),
      .tables = tables.data<int32_t>(),
      .starts = call.operand(6).data<int32_t>(),
      .counts = call.operand(7).data<int32_t>(),
      .offsets = call.operand(8).data<int32_t>(),
      .out = out.data<float>(),
      .num_rows = static_cast<int>(tables.dim(0)),
      .table_width = static_cast<int>(tables.dim(1)),
      .num_blocks = static_cast<int>(cache.dim(1)),
      .block_size = static_cast<int>(cache.dim(4)),
      .heads = static_cast<int>(out.dim(1)),
      .kv_heads = static_cast<int>(cache.dim(2)),
      .dim = static_cast<int>(out.dim(2)),
      .rotary = static_cast<int>(rope.dim(1)),
      .window = call.attribute<int32_t>("window"),
      .scale = call.attribute<float>("scale"),
      .cap = call.attribute<float>("cap"),
  };
  check(p, tokens, rope.dim(0));
  run(call.pool(), p);
}

// Leaves its result as it was allocated: the pages of a large one are zeros that the system brings when they are first touched.
// Asks for huge pages, since attention jumps from block to block, and blocks are about as large as ordinary pages.
void reserve(const Call& call) {
  const Buffer cache = call.result(0);
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 4096;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(cache.data<Cached>()), end = begin + cache.size() * sizeof(Cached);
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage;
  if (first < end) madvise(reinterpret_cast<void*>(first), (end - first) / kPage * kPage, MADV_HUGEPAGE);
#endif
}

}  // namespace
}  // namespace twodeep

extern "C" XLA_FFI_Error* twodeep_reserve(XLA_FFI_CallFrame* frame) { return twodeep::handle(frame, twodeep::reserve); }

extern "C" XLA_FFI_Error* twodeep_attend(XLA_FFI_CallFrame* frame) { return twodeep::handle(frame, twodeep::attend); }

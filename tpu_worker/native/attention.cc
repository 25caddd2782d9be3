// The XLA custom call for paged attention.
#include <vector>

#include "paged.h"
#include "parallel.h"

namespace ffi = xla::ffi;

namespace twodeep {
namespace {

struct Nothing {};

// A row's query rows are cut into chunks; a chunk of one key-value head is a task.
struct Task {
  int row, head, from, size;
};

template <int W>
void run(ffi::ThreadPool& pool, const Paged& p) {
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
  const int threads = work < 1e6 ? 1 : static_cast<int>(pool.num_threads());
  // Chunks of one row read what all of them write: a pass of its own. A row of one chunk writes for itself.
  parallel_for<Nothing>(pool, static_cast<int>(writes.size()), threads, [&](int i, Nothing&) {
    write_row<W>(p, writes[i].row, writes[i].head, scratch(p.dim));
  });
  parallel_for<Nothing>(pool, static_cast<int>(tasks.size()), threads, [&](int i, Nothing&) {
    const Task& task = tasks[i];
    Workspace space(scratch(Workspace::size(p.dim)), p.dim);
    if (p.counts[task.row] * p.group() <= kQueryRows) write_row<W>(p, task.row, task.head, space.key);
    attend_rows<W>(p, space, task.row, task.head, task.from, task.size);
  });
}

const char* check(const Paged& p, int64_t tokens, int64_t rope_positions) {
  if (p.block_size % 16 || p.dim % 16) return "attend: block size and head size must be multiples of 16";
  if (p.kv_heads < 1 || p.heads % p.kv_heads) return "attend: the key-value heads must divide the heads";
  int64_t total = 0;
  for (int row = 0; row < p.num_rows; ++row) {
    const int64_t start = p.starts[row], count = p.counts[row], end = start + count;
    if (count == 0) continue;
    if (start < 0 || count < 0 || p.offsets[row] != total || end > static_cast<int64_t>(p.table_width) * p.block_size)
      return "attend: a row does not fit its block table, or rows do not follow one another";
    if (p.rope && end > rope_positions) return "attend: a position is past the end of the rotary table";
    for (int64_t i = 0; i < (end + p.block_size - 1) / p.block_size; ++i) {
      const int32_t id = p.tables[static_cast<int64_t>(row) * p.table_width + i];
      if (id < 0 || id >= p.num_blocks) return "attend: a block table names a block that does not exist";
    }
    total += count;
  }
  return total > tokens ? "attend: the rows have more tokens than there are" : nullptr;
}

ffi::Error attend(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> q, ffi::Buffer<ffi::F32> k, ffi::Buffer<ffi::F32> v, ffi::Buffer<ffi::U16> cache,
                  ffi::Buffer<ffi::F32> rope, ffi::Buffer<ffi::S32> tables, ffi::Buffer<ffi::S32> starts, ffi::Buffer<ffi::S32> counts,
                  ffi::Buffer<ffi::S32> offsets, int32_t q_offset, int32_t k_offset, int32_t v_offset, float scale, int32_t window, float cap,
                  ffi::ResultBuffer<ffi::F32> out, ffi::ResultBuffer<ffi::U16> updated) {
  const auto shape = cache.dimensions(), result = out->dimensions(), table = tables.dimensions();
  if (shape.size() != 5 || result.size() != 3 || table.size() != 2) return ffi::Error::InvalidArgument("attend: wrong ranks");
  const size_t tokens = result[0];
  if (tokens == 0) return ffi::Error::Success();
  if (updated->typed_data() != cache.typed_data()) std::memcpy(updated->typed_data(), cache.typed_data(), cache.size_bytes());
  const Paged p{
      .q = q.typed_data() + q_offset,
      .k = k.typed_data() + k_offset,
      .v = v.typed_data() + v_offset,
      .q_stride = q.element_count() / tokens,
      .k_stride = k.element_count() / tokens,
      .v_stride = v.element_count() / tokens,
      .rope = rope.element_count() ? rope.typed_data() : nullptr,
      .cache = updated->typed_data(),
      .tables = tables.typed_data(),
      .starts = starts.typed_data(),
      .counts = counts.typed_data(),
      .offsets = offsets.typed_data(),
      .out = out->typed_data(),
      .num_rows = static_cast<int>(table[0]),
      .table_width = static_cast<int>(table[1]),
      .num_blocks = static_cast<int>(shape[0]),
      .block_size = static_cast<int>(shape[3]),
      .heads = static_cast<int>(result[1]),
      .kv_heads = static_cast<int>(shape[1]),
      .dim = static_cast<int>(result[2]),
      .rotary = rope.element_count() ? static_cast<int>(rope.dimensions()[1]) : 0,
      .window = window,
      .scale = scale,
      .cap = cap,
  };
  if (const char* problem = check(p, static_cast<int64_t>(tokens), rope.element_count() ? rope.dimensions()[0] : 0))
    return ffi::Error::InvalidArgument(problem);
  const size_t used = std::min<size_t>(tokens, p.offsets[p.num_rows]), width = static_cast<size_t>(p.heads) * p.dim;
  std::memset(p.out + used * width, 0, (tokens - used) * width * sizeof(float));
  if constexpr (kLanes > 8) {
    // Wide vectors where blocks and heads are cut into whole ones; the shapes of a cache decide, so its layout is always the same.
    if (p.block_size % (2 * kLanes) == 0 && p.dim % (2 * kLanes) == 0) {
      run<kLanes>(pool, p);
      return ffi::Error::Success();
    }
  }
  run<8>(pool, p);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace twodeep

XLA_FFI_DEFINE_HANDLER_SYMBOL(twodeep_attend, twodeep::attend,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()  // q
                                  .Arg<ffi::Buffer<ffi::F32>>()  // k
                                  .Arg<ffi::Buffer<ffi::F32>>()  // v
                                  .Arg<ffi::Buffer<ffi::U16>>()  // cache
                                  .Arg<ffi::Buffer<ffi::F32>>()  // rope
                                  .Arg<ffi::Buffer<ffi::S32>>()  // tables
                                  .Arg<ffi::Buffer<ffi::S32>>()  // starts
                                  .Arg<ffi::Buffer<ffi::S32>>()  // counts
                                  .Arg<ffi::Buffer<ffi::S32>>()  // offsets
                                  .Attr<int32_t>("q_offset")
                                  .Attr<int32_t>("k_offset")
                                  .Attr<int32_t>("v_offset")
                                  .Attr<float>("scale")
                                  .Attr<int32_t>("window")
                                  .Attr<float>("cap")
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::U16>>());

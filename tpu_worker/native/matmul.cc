// XLA custom calls for matrix products with packed weights, and the packing itself.
#include "gemm.h"
#include "parallel.h"

namespace ffi = xla::ffi;

namespace twodeep {
namespace {

constexpr int kColumns = 2 * kLanes;

template <class B>
void run(ffi::ThreadPool& pool, const Gemm<B>& g) {
  const size_t bytes = static_cast<size_t>(g.panels) * g.k * kColumns * sizeof(B);
  const int row_blocks = (g.rows + kRowBlock - 1) / kRowBlock;
  if (row_blocks == 0) return;
  const int rows_each = (((g.rows + row_blocks - 1) / row_blocks) + kTileRows - 1) / kTileRows * kTileRows;
  // Waking a thread costs some tens of microseconds of its time: not for less than that much work.
  const int threads = bytes * (1 + g.rows / 4) < (128 << 10) ? 1 : static_cast<int>(pool.num_threads());
  // Several tasks per thread even out what the machine's other work takes; a task keeps a long sequential stream of weights.
  const int groups_wanted = threads == 1 ? 1 : std::max(1, (8 * threads + row_blocks - 1) / row_blocks);
  int group = (g.panels + groups_wanted - 1) / groups_wanted;
  group = std::max(2, (group + 1) / 2 * 2);
  const int groups = (g.panels + group - 1) / group;

  const size_t lda = g.norm ? g.k + 16 : g.k;
  const size_t ldc = static_cast<size_t>(group) * kColumns;
  const bool direct = !g.gated && g.scale == nullptr && g.residual == nullptr && g.n % kColumns == 0;
  struct Local {
    int block = -1;
  };
  parallel_for<Local>(pool, row_blocks * groups, threads, [&](int task, Local& local) {
    const int block = task / groups;
    const int first = task % groups * group, last = std::min(first + group, g.panels);
    const int row = block * rows_each, rows = std::min(rows_each, g.rows - row);
    if (rows <= 0) return;
    float* prepared = scratch(static_cast<size_t>(rows_each) * (lda + ldc));
    const float* a = g.x + static_cast<size_t>(row) * g.k;
    if (g.norm) {
      if (local.block != block)
        for (int r = 0; r < rows; ++r) rms_norm<kLanes>(a + static_cast<size_t>(r) * g.k, g.norm, g.eps, g.k, prepared + r * lda);
      local.block = block;
      a = prepared;
    }
    if (direct) {
      multiply<kLanes>(g, a, lda, rows, first, last, g.out + static_cast<size_t>(row) * g.n + static_cast<size_t>(first) * kColumns, g.n);
    } else {
      float* c = prepared + rows_each * lda;
      multiply<kLanes>(g, a, lda, rows, first, last, c, ldc);
      for (int r = 0; r < rows; ++r) finish<kLanes>(g, c + r * ldc, row + r, first, last);
    }
  });
}

ffi::Error linear(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::AnyBuffer w, ffi::Buffer<ffi::F32> scale, ffi::Buffer<ffi::F32> norm,
                  ffi::Buffer<ffi::F32> residual, ffi::Buffer<ffi::S32> num_rows, float eps, bool gated, ffi::ResultBuffer<ffi::F32> out) {
  const auto shape = w.dimensions();
  if (shape.size() != 3 || shape[2] != kColumns || x.dimensions().size() != 2 || x.dimensions()[1] != shape[1])
    return ffi::Error::InvalidArgument("linear: the weight is not packed for this machine, or not for inputs of this width");
  const int tokens = static_cast<int>(x.dimensions()[0]), n = static_cast<int>(out->dimensions()[1]);
  const int rows = std::clamp(num_rows.typed_data()[0], 0, tokens);
  std::memset(out->typed_data() + static_cast<size_t>(rows) * n, 0, static_cast<size_t>(tokens - rows) * n * sizeof(float));
  auto fill = [&](auto* weight) {
    using B = std::remove_pointer_t<decltype(weight)>;
    run(pool, Gemm<const B>{x.typed_data(), weight, scale.element_count() ? scale.typed_data() : nullptr,
                            norm.element_count() ? norm.typed_data() : nullptr, residual.element_count() ? residual.typed_data() : nullptr,
                            out->typed_data(), rows, static_cast<int>(shape[1]), n, static_cast<int>(shape[0]), eps, gated});
  };
  if (w.element_type() == ffi::U16) {
    fill(static_cast<const uint16_t*>(w.untyped_data()));
  } else if (w.element_type() == ffi::S8) {
    fill(static_cast<const int8_t*>(w.untyped_data()));
  } else {
    return ffi::Error::InvalidArgument("linear: weights are packed as uint16 (bf16) or int8");
  }
  return ffi::Error::Success();
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
  const int half = gated ? n / 2 : n;
  for (int row = 0; row < n; ++row) {
    const int column = row < half ? row : row - half;
    const int panel = column / kColumns * (gated ? 2 : 1) + (row < half ? 0 : 1);
    const int at = column % kColumns;
    pack_row(weight + static_cast<size_t>(row) * k, k, at, panels + static_cast<size_t>(panel) * k * kColumns,
             scale ? scale + panel * kColumns + at : nullptr);
  }
}

}  // namespace
}  // namespace twodeep

XLA_FFI_DEFINE_HANDLER_SYMBOL(twodeep_linear, twodeep::linear,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()   // x
                                  .Arg<ffi::AnyBuffer>()          // w
                                  .Arg<ffi::Buffer<ffi::F32>>()   // scale
                                  .Arg<ffi::Buffer<ffi::F32>>()   // norm
                                  .Arg<ffi::Buffer<ffi::F32>>()   // residual
                                  .Arg<ffi::Buffer<ffi::S32>>()   // num_rows
                                  .Attr<float>("eps")
                                  .Attr<bool>("gated")
                                  .Ret<ffi::Buffer<ffi::F32>>());

extern "C" int twodeep_panel_columns() { return twodeep::kColumns; }

// weight: [n, k] of f32, or of bf16 if `narrow`. panels: [panels, k, columns], zeroed, of bf16, or of int8 if `scale` is not null.
extern "C" void twodeep_pack(const void* weight, int narrow, int n, int k, int gated, void* panels, float* scale) {
  using twodeep::pack;
  const auto* f = static_cast<const float*>(weight);
  const auto* h = static_cast<const uint16_t*>(weight);
  auto* wide = static_cast<uint16_t*>(panels);
  auto* bytes = static_cast<int8_t*>(panels);
  if (scale) return narrow ? pack(h, n, k, gated, bytes, scale) : pack(f, n, k, gated, bytes, scale);
  return narrow ? pack(h, n, k, gated, wide, scale) : pack(f, n, k, gated, wide, scale);
}

// An XLA custom call for matrix products with weights in blocks of few bits, of one kind or of several.
#include "blocks.h"

#include "experts.h"
#include "linear.h"

namespace twodeep {

// The inputs of all rows as they are multiplied, in memory of this thread.
BlockRows prepare(const Pool& pool, const Gemm<uint8_t>& g, int threads) {
  const int blocks = (g.k + kBlock - 1) / kBlock;
  const BlockRows all{scratch<kPrepared>(g.rows * BlockRows::stride(blocks)), blocks};
  parallel_for(pool, g.rows, threads, [&](int r) { prepare_row<kLanes>(input_row<kLanes>(g, r), g.k, all.from(r)); });
  return all;
}

void multiply(const Gemm<uint8_t>& g, const BlockRows& rows, int count, int first, int last, float* c, size_t ldc) {
  g.kind->multiply(g.w, g.depth(), g.panels, rows, count, first, last, c, ldc);
}

namespace {

constexpr int kMostKinds = 64, kMostParts = 4;
const BlockKind* kinds[kMostKinds] = {};  // those whose libraries were loaded; set before anything is multiplied

const BlockKind* find_kind(int number) {
  if (number < 0 || number >= kMostKinds || !kinds[number]) throw Refusal{"linear: blocks of a kind that was not loaded"};
  return kinds[number];
}

// `operands`, with weights [layers, panels, units, bytes of a unit] in up to four parts: one is an operand where others have it, the
// others follow behind all. Attributes say of each its kind, -1 behind the last one, and how many outputs it has.
void linear_blocks(const Call& call) {
  static constexpr const char* kKinds[kMostParts] = {"kind0", "kind1", "kind2", "kind3"};
  static constexpr const char* kOutputs[kMostParts] = {"outputs0", "outputs1", "outputs2", "outputs3"};
  Gemm<uint8_t> parts[kMostParts];
  int count = 0, outputs = 0;
  for (; count < kMostParts && call.attribute<int32_t>(kKinds[count]) >= 0; ++count) {
    const Buffer weights = call.operand(count ? 5 + count : 1);
    if (weights.dim(0) != call.operand(1).dim(0)) throw Refusal{"linear: there is no such layer"};
    Gemm<uint8_t>& part = parts[count];
    part = operands(call, weights.data<uint8_t>(), find_kind(call.attribute<int32_t>(kKinds[count])));
    const int width = part.n;
    part.n = call.attribute<int32_t>(kOutputs[count]);
    part.stride = width;
    if (!part.gated() && outputs + part.n > width) throw Refusal{"linear: the parts have more rows than the result has columns"};
    if (!part.gated()) {
      part.out += outputs;
      if (part.residual) part.residual += outputs;
    }
    outputs += part.n;
    find_panels(call, weights, part);
  }
  if (count == 0 || (parts[0].gated() && (count > 2 || parts[count - 1].n != parts[0].n || parts[count - 1].panels != parts[0].panels)))
    throw Refusal{"linear: the parts do not make a weight"};
  run(call.pool(), parts, count);
}

// For `experts`: weights [layers, experts, panels, units, bytes of a unit], of the kind that an attribute says.
void experts_blocks(const Call& call) {
  experts(call, call.operand(1).data<uint8_t>(), find_kind(call.attribute<int32_t>("kind")));
}

}  // namespace
}  // namespace twodeep

extern "C" XLA_FFI_Error* twodeep_linear_blocks(XLA_FFI_CallFrame* frame) { return twodeep::handle(frame, twodeep::linear_blocks); }

extern "C" XLA_FFI_Error* twodeep_experts_blocks(XLA_FFI_CallFrame* frame) { return twodeep::handle(frame, twodeep::experts_blocks); }

// Makes a kind known under a number of the caller's. Returns whether there is room.
extern "C" int twodeep_add_kind(int number, const void* kind) {
  if (number < 0 || number >= twodeep::kMostKinds) return 0;
  twodeep::kinds[number] = static_cast<const twodeep::BlockKind*>(kind);
  return 1;
}

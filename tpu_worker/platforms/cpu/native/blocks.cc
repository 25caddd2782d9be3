// An XLA custom call for matrix products with weights in blocks of few bits, and the packing of such weights.
#include "blocks.h"

#include "experts.h"
#include "linear.h"

namespace twodeep {
namespace {

using Bits4 = Block4<kLanes>;
using Bits8 = Block8<kLanes>;

// Calls body(blocks, elements) with weights [..., bytes of a block of all columns] as the blocks that have this size.
template <class Body>
void as_blocks(const Buffer& weights, const Body& body) {
  const auto* data = weights.data<uint8_t>();
  const auto bytes = static_cast<size_t>(weights.dim(weights.rank() - 1));
  if (bytes == sizeof(Bits4)) {
    body(reinterpret_cast<const Bits4*>(data), 1);
  } else {
    body(reinterpret_cast<const Bits8*>(data), bytes == sizeof(Bits8));
  }
}

// For `linear`: weights [layers, panels, blocks, bytes of a block of all columns].
void linear_blocks(const Call& call) {
  as_blocks(call.operand(1), [&](const auto* blocks, int64_t elements) { linear(call, blocks, elements); });
}

// For `experts`: weights [layers, experts, panels, blocks, bytes of a block of all columns].
void experts_blocks(const Call& call) {
  as_blocks(call.operand(1), [&](const auto* blocks, int64_t elements) { experts(call, blocks, elements); });
}

void pack_block(const uint8_t* quants, uint16_t scale, uint16_t minimum, int column, Bits4& block) {
  const int half = column / kLanes, lane = column % kLanes;
  for (int q = 0; q < 4; ++q) {
    uint32_t word = 0;
    for (int j = 0; j < 8; ++j) word |= (quants[8 * q + j] & 0xfu) << (j / 2 * 4 + j % 2 * 16);
    block.words[q][half][lane] = word;
  }
  block.scale[column] = scale;
  block.minimum[column] = minimum;
}

void pack_block(const uint8_t* quants, uint16_t scale, int column, Bits8& block) {
  constexpr int kEach = kBlock / kFactors;
  for (int i = 0; i < kFactors; ++i) std::memcpy(block.bytes[i][column / kLanes][column % kLanes], quants + i * kEach, kEach);
  block.scale[column] = scale;
}

}  // namespace
}  // namespace twodeep

extern "C" XLA_FFI_Error* twodeep_linear_blocks(XLA_FFI_CallFrame* frame) { return twodeep::handle(frame, twodeep::linear_blocks); }

extern "C" XLA_FFI_Error* twodeep_experts_blocks(XLA_FFI_CallFrame* frame) { return twodeep::handle(frame, twodeep::experts_blocks); }

// Bytes of a block of all columns of a panel.
extern "C" int twodeep_block_bytes(int bits) { return bits == 4 ? sizeof(twodeep::Bits4) : sizeof(twodeep::Bits8); }

// quants: [n, k] of a byte each; scales and, for 4 bits, minima: [n, k / 32] f16. panels: [panels, k / 32, block_bytes].
extern "C" void twodeep_pack_blocks(const uint8_t* quants, const uint16_t* scales, const uint16_t* minima, int n, int k, int gated,
                                    void* panels) {
  const size_t blocks = k / twodeep::kBlock;
  twodeep::place_rows(n, gated, [&](int row, int panel, int column) {
    for (size_t b = 0; b < blocks; ++b) {
      const size_t from = row * blocks + b, to = panel * blocks + b;
      const uint8_t* of_block = quants + from * twodeep::kBlock;
      if (minima) {
        twodeep::pack_block(of_block, scales[from], minima[from], column, static_cast<twodeep::Bits4*>(panels)[to]);
      } else {
        twodeep::pack_block(of_block, scales[from], column, static_cast<twodeep::Bits8*>(panels)[to]);
      }
    }
  });
}

// Products with weights in blocks of one kind, which -DTWODEEP_KIND names: see block_kinds.h.
#include "block_kinds.h"

namespace twodeep {
namespace {

using Kind = TWODEEP_KIND;
using Panel = Kind::Panel;

constexpr int kInputs = Panel::kBlocks * kBlock;

void multiply_units(const uint8_t* panels, int depth, int all, const BlockRows& rows, int count, int first, int last, float* c, size_t ldc) {
  multiply(Panels<Panel>{reinterpret_cast<const Panel*>(panels), depth, all}, rows, count, first, last, c, ldc);
}

void pack_rows(const uint8_t* rows, int n, int k, bool gated, uint8_t* panels) {
  const size_t units = k / kInputs;
  place_rows(n, gated, [&](int row, int panel, int column) {
    for (size_t u = 0; u < units; ++u)
      Kind::place(rows + (row * units + u) * Kind::kBytes, column, reinterpret_cast<Panel*>(panels)[panel * units + u]);
  });
}

constexpr BlockKind kKind{kInputs, sizeof(Panel), multiply_units, pack_rows};

}  // namespace
}  // namespace twodeep

// For `twodeep_add_kind`.
extern "C" const void* twodeep_kind() { return &twodeep::kKind; }

// Inputs of a unit.
extern "C" int twodeep_unit_inputs() { return twodeep::kKind.span; }

// Bytes of a unit of all columns of a panel.
extern "C" int twodeep_unit_bytes() { return twodeep::kKind.bytes; }

// rows: [n, k] as a file has them. panels: [panels, k / inputs of a unit, bytes of a unit].
extern "C" void twodeep_pack_blocks(const uint8_t* rows, int n, int k, int gated, uint8_t* panels) {
  twodeep::pack_rows(rows, n, k, gated, panels);
}

"""What is read out of a compiled program's text."""

import jax
import jax.numpy as jnp
import pytest

from tpu_worker.aot.program_text import costs, count_collectives, count_kernels, count_readers, find_copies

# As libtpu 0.0.42 writes them, shortened: a scan over four layers, whose length its condition alone tells.
_TEXT = """\
HloModule jit_step, is_scheduled=true

%fused (p: f32[8,128]) -> f32[8,128] {
  %p = f32[8,128]{1,0} parameter(0)
  ROOT %inner.1 = f32[8,128]{1,0} negate(%p), backend_config={"estimated_cycles":"7000"}
}

%region_0.body (arg: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %dot.1 = f32[8,128]{1,0:T(8,128)S(1)} fusion(%a, %b), kind=kOutput, calls=%fused, metadata={op_name="jit(step)/while/body/jit(_mix)/dot_general"}, backend_config={"estimated_cycles":"100"}
  ROOT %tuple.1 = (s32[], f32[8,128]) tuple(%i, %dot.1)
}

%region_1.cond (arg: (s32[], f32[8,128])) -> pred[] {
  %constant.4 = s32[]{:T(128)} constant(4)
  ROOT %lt.1 = pred[]{:T(512)} compare(%i, %constant.4), direction=LT, metadata={op_name="jit(step)/while/cond/lt"}
}

ENTRY %main.1 (p0: f32[8,128]) -> (f32[8,128], f32[4,512]) {
  %p0 = bf16[64,8,16,128]{3,2,1,0} parameter(0)
  %logits.1 = f32[4,512]{1,0} fusion(%x), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"1152921504606846976"}
  %top.1 = (f32[4]{0}, s32[4]{0}) fusion(%logits.1), kind=kInput, calls=%fused, metadata={op_name="jit(step)/reduce"}, backend_config={"estimated_cycles":"50"}
  %attend_singles.1 = (bf16[4,8,8,128]{3,2,1,0}, bf16[64,8,16,128]{3,2,1,0}) custom-call(%q, %p0), custom_call_target="tpu_custom_call"
  %w.1 = (bf16[256,128]{1,0:T(8,128)(2,1)S(1)}, bf16[256,128]{1,0}, u32[]{:S(2)}) copy-start(%weight)
  %sum.1 = f32[4,128]{1,0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%fused
  ROOT %while.1 = (s32[], f32[8,128]) while(%t), condition=%region_1.cond, body=%region_0.body, backend_config={"scoped":[]}
}
"""  # noqa: E501 lines are as they are


def test_loops_count_as_often_as_they_run() -> None:
    found = {(cost.name, cost.cycles, cost.source) for cost in costs(_TEXT)}
    assert found == {("dot.1", 400, "jit(step)/while/body/jit(_mix)/dot_general"), ("top.1", 50, "jit(step)/reduce")}
    said = _TEXT.replace('{"scoped":[]}', '{"known_trip_count":{"n":"3"}}')
    assert {cost.cycles for cost in costs(said)} == {300, 50}
    unknown = _TEXT.replace("direction=LT", "direction=NE")
    assert {cost.cycles for cost in costs(unknown)} == {100, 50}


def test_kernels_collectives_and_readers_are_counted() -> None:
    assert count_kernels(_TEXT, ("attend_singles", "write_pages")) == {"attend_singles": 1, "write_pages": 0}
    assert count_collectives(_TEXT) == {"all-reduce": 1}
    assert count_readers(_TEXT, (4, 512)) == 1


@pytest.mark.parametrize(
    "line",
    [
        "  %copy.1 = bf16[64,8,16,128]{3,1,2,0} copy(%p0)",
        "  %fusion.9 = bf16[64,8,16,128]{3,2,1,0} fusion(%p0), kind=kLoop, calls=%fused",
        "  %c.1 = (bf16[64,8,16,128]{3,1,2,0}, bf16[64,8,16,128]{3,2,1,0}, u32[]{:S(2)}) copy-start(%p0)",
    ],
)
def test_a_copy_of_the_cache_is_found(line: str) -> None:
    large = {(64, 8, 16, 128), (256, 128)}
    assert find_copies(_TEXT, large) == []  # a kernel changes it in place, and a weight goes into vector memory
    copied = _TEXT.replace("  ROOT %while.1", f"{line}\n  ROOT %while.1")
    assert find_copies(copied, large) == [line.strip()]
    assert find_copies(copied, {(256, 128)}) == find_copies(copied, ()) == []


_WITH_PRODUCTS = """\
HloModule jit_step

%scaled (p: f32[512,128], q: f32[512,128]) -> f32[512,128] {
  %p = f32[512,128]{1,0} parameter(0)
  %q = f32[512,128]{1,0} parameter(1)
  ROOT %x = f32[512,128]{1,0} multiply(%p, %q)
}

%product (p: f32[512,512], q: f32[512,128]) -> f32[512,128] {
  %p.1 = f32[512,512]{1,0} parameter(0)
  %q.1 = f32[512,128]{1,0} parameter(1)
  ROOT %y = f32[512,128]{1,0} dot(%p.1, %q.1)
}

ENTRY %main (w: f32[512,128], v: f32[512,512]) -> f32[512,128] {
  %w = f32[512,128]{1,0} parameter(0)
  %v = f32[512,512]{1,0} parameter(1)
  %a = f32[512,128]{1,0} fusion(%v, %w), kind=kOutput, calls=%product
  %b = f32[512,128]{1,0} fusion(%a, %a), kind=kLoop, calls=%scaled
  %c = f32[128,512]{1,0} transpose(%b)
  ROOT %d = f32[512,128]{1,0} fusion(%OPERAND, %a), kind=kLoop, calls=%scaled
}
"""


def test_activations_that_have_the_shape_of_a_weight_are_no_copies() -> None:
    assert find_copies(_WITH_PRODUCTS.replace("%OPERAND", "%b"), {(512, 128)}) == []
    (found,) = find_copies(_WITH_PRODUCTS.replace("%OPERAND", "%w"), {(512, 128)})
    assert found.startswith("ROOT %d")
    moved = "  %e = f32[512,128]{0,1} bitcast(%w)\n  ROOT"
    (found,) = find_copies(_WITH_PRODUCTS.replace("  ROOT %d", f"{moved} %d").replace("%OPERAND", "%e"), {(512, 128)})
    assert found.startswith("ROOT %d")


def test_the_text_of_this_compiler_is_read_too() -> None:
    """Of a CPU, which estimates nothing, and whose copies are called alike."""

    def turn(x: jax.Array) -> jax.Array:
        turned: jax.Array = jax.lax.optimization_barrier(x.T.copy())
        return turned + 1

    text = jax.jit(turn).lower(jax.ShapeDtypeStruct((96, 64), jnp.float32)).compile().as_text()
    assert text is not None and costs(text) == []
    assert find_copies(text, {(64, 96)}) == find_copies(text, {(96, 64)}) != []  # a matrix turned round is one too
    assert find_copies(text, {(96, 32)}) == []

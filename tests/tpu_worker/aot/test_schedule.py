"""Reading libtpu's schedules, in tpu_worker/aot/schedule.py."""

from pathlib import Path

import pytest

from tpu_worker.aot.schedule import Loop, find_schedules, read_schedule

# A loop with two within it; the empty bundles behind a branch have no depth of their own.
_TEXT = """\
= control target key start
LB: loop body
= control target key end

     0   :  { %s1_s0 = inlined_call_operand.<no memory space> }
   0x1   :  { %s2 = smov 0 } /* Start region 1 */
   0x2 LB: > { %s3 = sadd.s32 1, %s2  ;;  %4 = dma.hbm_to_vmem [thread:$0] }
   0x3   : > { %5 = sbr.rel (%p1) target = $region2 }
   0x4   :  {}
   0x5   :  {} /* End region 1 */
   0x6 LB: >> { %s6 = sadd.s32 1, %s3 }
   0x7 PF: > { %s7 = smov 0 }
   0x8 LB: >> { %s8 = sadd.s32 1, %s7 }
   0x9   : >> { %9 = sbr.rel (!%p2) target = $region3 }
   0xa   :  {}
   0xb   : > { %10 = sbr.rel (!%p3) target = $region1 }
   0xc   :  { %11 = vsyncpa [#allocation1], 1 }
"""


def test_each_loop_has_its_own_bundles() -> None:
    assert read_schedule(_TEXT) == Loop(3, [Loop(6, [Loop(1), Loop(3)])])


def test_a_kernel_without_loops_is_one() -> None:
    assert read_schedule("     0   :  { %s1 }\n   0x1   :  {} /* End region 0 */\n") == Loop(2)


def test_what_is_no_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="in another form"):
        read_schedule("HloModule attend")


def test_only_schedules_of_the_kernel_are_found(tmp_path: Path) -> None:
    names = (
        "1-attend.1-71-schedule-analysis_final_bundles.txt",
        "2-attend.1-72-final_bundles.txt",
        "1-write.1-72-final_bundles.txt",
    )
    for name in names:
        (tmp_path / name).write_text("")
    assert [path.name for path in find_schedules(tmp_path, "attend")] == [names[1]]

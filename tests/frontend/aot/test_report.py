"""What is said of a report: the table, the summary, the problems and the picture."""

from pathlib import Path

import msgspec
import pytest

from frontend.aot.problems import find_problems
from frontend.aot.table import LEFT_OUT, print_report, row, summary
from protocol.errors import ConfigError
from tests.frontend.aot.reports import config_of, report_of, without_times
from tests.frontend.aot.stand_in import GIB, NAMES, drawn, program

_CONFIG = config_of()


def test_a_report_has_its_programs_by_kind_and_size() -> None:
    names = [one.name for one in report_of().programs]
    assert names == ["step 4x4", "step 16x16", "step 512x4", "step 512x16", "grow", "sampler 16"]
    assert set(names) == set(NAMES)


def test_a_row_has_sizes_times_and_parts() -> None:
    found = row(program("step 16x16", copies=("a", "b")))
    assert found[:6] == ["step 16x16", "1.5", "3.00 GiB", "1.0 MiB", "1.0 MiB", "2"]
    assert found[6:9] == ["1040", "800", "77%"]
    assert found[9:] == ["40", "800", "200", "", "", ""]
    assert row(program("step 16x16", time=None, parts={}, roofline=0.0))[6:] == [""] * 9
    broken = row(program("step 16x16", error="no"))
    assert broken[2:4] == ["does not", "compile"] and len(broken) == len(found)


def test_the_summary_says_what_the_programs_come_to() -> None:
    lines = summary(report_of(), drawn(), _CONFIG)
    assert lines[0] == "memory     32.00 GiB a chip: weights 2.00 GiB, slots 1.0 MiB, KV cache 4.00 GiB"
    assert lines[1] == "KV cache   2,048 blocks of 64 tokens, 131,072 tokens: 16 sequences of 8,192 tokens at once"
    assert lines[2] == "context    131,072 tokens at most in one sequence (131,072 are what the model was made for)"
    assert "decoding   16 rows of 500 tokens: 1.04 ms a step, 15,385 tokens/s, 77% of the roofline" in lines
    assert any(line.startswith("prefill    512 tokens of one prompt: 1.26 ms") and "matrix units" in line for line in lines)
    assert any("230 tokens in, 120 out, 3 at a time: 24.80 requests/s, where the chip never waits" in line for line in lines)
    assert lines[-1] == LEFT_OUT and "estimates" in LEFT_OUT and "Left out" in LEFT_OUT


def test_the_summary_of_nothing_known() -> None:
    lines = summary(without_times(report_of()), drawn(windows=(0, 512)), _CONFIG)
    assert not any(line.startswith(("decoding", "prefill", "load")) for line in lines)
    assert lines[1] == "KV cache   2,048 blocks of 64 tokens: 16 sequences of 8,192 tokens at once"


def test_no_problems() -> None:
    assert find_problems(report_of(), drawn(), _CONFIG) == []


def test_each_problem_has_a_line() -> None:
    report = report_of(
        program("step 4x4", copies=("copy.1 = bf16[2]", "copy.2", "copy.3")),
        program("step 512x4", error="Mosaic: no"),
        program("step 16x16", temporaries=27 * GIB),
    )
    broken, copies, large = find_problems(report, drawn(), _CONFIG)
    assert broken == "step 512x4 does not compile: Mosaic: no"
    assert copies == "step 4x4 copies cache or weights, 3 times: copy.1 = bf16[2]; copy.2"
    assert large.startswith(
        "step 16x16 does not fit: it takes 27.00 GiB beside 6.00 GiB of weights, KV cache and slots, of 32.00 GiB"
    )


def test_a_model_that_does_not_fit_is_one_problem_and_ways_out() -> None:
    config = config_of(kv_cache_memory=GIB // 8)
    problem, *ways = find_problems(report_of(program("step 4x4", temporaries=40 * GIB)), drawn(num_blocks=64), config)
    assert problem.startswith("does not fit on v6e:1x1") and ways and all(way.startswith("would help: ") for way in ways)


def test_what_is_read_through_a_pipe_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    report = msgspec.structs.replace(report_of(program("step 4x4", error="[red]no[/red]")), model="[bold]m[/bold]")
    print_report(report, drawn(), _CONFIG, ["step 4x4 does not compile: [red]no[/red]"])
    said = capsys.readouterr().out
    assert said.isascii() or set(filter(lambda one: not one.isascii(), said)) <= {"µ"}
    assert "\x1b" not in said and "[bold]m[/bold] on v6e:1x1" in said and "compile: [red]no[/red]" in said
    (line,) = (line for line in said.splitlines() if line.startswith("step 16x16"))
    assert line.split()[:2] == ["step", "16x16"] and line.split()[-3:] == ["40", "800", "200"]


@pytest.mark.slow
def test_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from frontend.aot.plot import write_plot

    write_plot(report_of(), str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    write_plot(without_times(report_of()), str(tmp_path / "nothing.svg"))
    assert b"<svg" in (tmp_path / "nothing.svg").read_bytes()
    with pytest.raises(ConfigError, match="--plot .*: "):
        write_plot(report_of(), str(tmp_path / "missing" / "a.png"))

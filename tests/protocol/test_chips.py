"""Names of topologies, and what fits on them."""

import pytest

from protocol.chips import CHIPS, check_fits, parse_topology, shape_for
from protocol.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "found", "devices"),
    [
        ("v6e:1x1", "v6e:1x1", 1),
        ("V6E", "v6e:1x1", 1),
        ("v5litepod:2x4", "v5e:2x4", 8),
        ("v7x", "tpu7x:1x1x1", 2),
        ("tpu7x:2x2x1", "tpu7x:2x2x1", 8),
        ("h100", "h100:1", 1),
        ("L4:4", "l4:4", 4),
    ],
)
def test_names(name: str, found: str, devices: int) -> None:
    topology = parse_topology(name)
    assert (topology.name, topology.num_devices) == (found, devices)


@pytest.mark.parametrize("name", ["", "v6e:", "v6e:1", "h200:1x1", "h100:3", "v6e:1x1x1", "v6e:1x1:2"])
def test_what_is_no_topology(name: str) -> None:
    if name == "v6e:":
        assert parse_topology(name).name == "v6e:1x1"
        return
    with pytest.raises(ConfigError, match=f"--topology {name}: .*possible are"):
        parse_topology(name)


def test_a_worker_that_is_larger_than_its_topology() -> None:
    check_fits(parse_topology("v6e:2x2"), 4)
    with pytest.raises(ConfigError, match="has 4 devices: give 4 at most, or a larger topology: v6e:2x4"):
        check_fits(parse_topology("v6e:2x2"), 8)
    with pytest.raises(ConfigError, match="give 4 at most$"):
        check_fits(parse_topology("v6e:2x2"), 512)


def test_the_smallest_shape_for_so_many_devices() -> None:
    assert [shape_for(CHIPS["v6e"], count) for count in (1, 2, 3, 8, 257)] == ["1x1", "1x2", "2x2", "2x4", None]
    assert [shape_for(CHIPS["tpu7x"], count) for count in (1, 2, 3, 8)] == ["1x1x1", "1x1x1", "1x2x1", "2x2x1"]

"""Among how many chips a model can be cut."""

import pytest

from protocol.errors import ConfigError
from protocol.sharding import LayerSizes, check_shards

SMOLLM2, LLAMA_3_2 = LayerSizes(9, 3, 1536), LayerSizes(32, 8, 8192)


@pytest.mark.parametrize(
    ("layer", "possible"),
    [
        (SMOLLM2, [1, 3]),
        (LLAMA_3_2, [1, 2, 4, 8, 16, 32]),  # from 16 on, two or more chips hold the same head of keys and values
        (LayerSizes(8, 6, 64), [1, 2]),  # four chips would have one and a half each
        (LayerSizes(4, 1, 6), [1, 2]),
    ],
)
def test_what_divides(layer: LayerSizes, possible: list[int]) -> None:
    assert [shards for shards in range(1, 65) if layer.can_be_cut(shards)] == possible


def test_the_refusal_names_what_is_possible() -> None:
    check_shards(3, [SMOLLM2], "/m")
    with pytest.raises(ConfigError, match=r"parallel-size 2 does not divide 9 heads, 3 heads .* 1536 \(/m\): possible are 1, 3$"):
        check_shards(2, [SMOLLM2], "/m")
    with pytest.raises(ConfigError, match="possible are 1$"):
        check_shards(2, [LLAMA_3_2, SMOLLM2, LayerSizes(8, 8, 64)], "/m")

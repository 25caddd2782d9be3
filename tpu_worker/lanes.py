"""Widths of arrays that lie on the device for long."""

_LANES = 128  # of a TPU's vector


def fill_lanes(width: int) -> int:
    """As many columns, and some more, so that a row is whole vectors.

    Else a TPU keeps the columns one by one, which is less padding, and a program that takes out rows first copies the whole array.
    """
    return -(-width // _LANES) * _LANES

"""Vectors of TPUs, and how wide what lies on a device for long has to be for them."""

LANES = 128  # of a vector register: what a row in memory is made of


def fill_lanes(width: int) -> int:
    """As many columns, and some more, so that a row is whole vectors.

    Else a TPU keeps the columns one by one, which is less padding, and a program that takes out rows first copies the whole array.
    """
    return -(-width // LANES) * LANES

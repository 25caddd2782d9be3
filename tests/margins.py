"""Bounds on errors, and how near they were: a bound that holds here by a hair does not hold everywhere."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

ROUNDOFF = 2.0**-24  # of float32: half of the distance from 1 to the next number
# Rounding errors of numbers of one size are spread evenly up to half a step. The size of the step is that of a power of two, and a
# number lies anywhere between two of these: in the root mean square its error is this share of the largest.
TYPICAL = 3**-0.5 * 0.74

Reals = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Table = dict[str, dict[str, float]]  # what was measured -> on which processor -> the largest share of its bound


def rounding_of_sums(x: npt.NDArray[np.float64], weight: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The error in the root mean square that float32 makes of x @ weight.T, term after term, where terms have random signs.

    After i of n terms a sum has grown to √(i / n) of its size at the end, and each is rounded: √(n / 2) roundings of that size.
    """
    size = np.sqrt(x**2 @ (weight**2).T)
    typical: npt.NDArray[np.float64] = TYPICAL * ROUNDOFF * size * (1 + np.sqrt(x.shape[1] / 2))
    return typical


def rounding_of_logits(num_layers: int, spread: float) -> float:
    """The error of a logit in the root mean square, roughly, where numbers are rounded to bfloat16 on the way.

    Each layer adds two results to what flows on, and the head is one product more; in each, up to two factors are rounded: weights
    and inputs, or keys and values and what they meet. Each rounding is as good as independent of the others, and moves the logits
    of likely candidates by its own share of what these differ by, `spread`.
    """
    return TYPICAL * 2**-8 * float(np.sqrt(2 * (2 * num_layers + 1))) * spread


class Margins:
    """Notes how much of its bound each error takes."""

    def __init__(self, processor: str) -> None:
        self.table: Table = {}
        self._processor = processor

    def check(self, what: str, error: float, bound: float) -> None:
        """Asserts that an error keeps its bound, and notes the margin; of several with one name, the narrowest."""
        shares = self.table.setdefault(what, {})
        shares[self._processor] = max(shares.get(self._processor, 0.0), float(error) / bound)
        assert error <= bound, f"{what}: {error:.3g} is more than {bound:.3g}"

    def check_rounding(self, what: str, found: npt.ArrayLike, expected: Reals, typical: Reals | float) -> None:
        """Holds found against expected, where arithmetic leads one to expect an error of `typical` in the root mean square.

        Errors have longer tails than a normal distribution, of which the largest of 10^5 is 4.4 times as much as that.
        """
        errors = np.abs(np.asarray(found, np.float64) - expected) / typical
        self.check(f"{what}: typical error", np.sqrt(np.mean(errors**2)).item(), 3.0)
        self.check(f"{what}: largest error", errors.max().item(), 30.0)

    def check_logprobs(self, what: str, errors: Sequence[float], typical: float) -> None:
        """Holds errors of log-probabilities to a typical one in the root mean square, as far as `rounding_of_logits` can tell it.

        Some contexts magnify them more than others, so it is the mean and a quantile that are held. A wrong mask, rotation or block
        is wrong by the order of the logits.
        """
        self.check(f"{what}: mean error", np.mean(np.abs(errors)).item(), 2 * typical)
        self.check(f"{what}: 95 % of errors", np.quantile(np.abs(errors), 0.95).item(), 5 * typical)
        self.check(f"{what}: largest error", np.max(np.abs(errors)).item(), 40 * typical)

    def take_in(self, path: Path) -> None:
        """Adds what `write` wrote."""
        for what, shares in json.loads(path.read_text(encoding="utf-8")).items():
            self.table.setdefault(what, {}).update(shares)

    def write(self, path: Path) -> None:
        """Writes the table as JSON."""
        path.write_text(json.dumps(self.table), encoding="utf-8")

    def lines(self) -> Iterable[str]:
        """The table for people, the narrowest margin first."""
        others = dict.fromkeys(processor for shares in self.table.values() for processor in shares if processor != self._processor)
        processors = [self._processor, *others]
        width = max(map(len, self.table), default=0)
        yield " " * width + "".join(f"{processor:>16}" for processor in processors)
        for what, shares in sorted(self.table.items(), key=lambda entry: -max(entry[1].values())):
            cells = (f"{shares[processor]:.2f}" if processor in shares else "" for processor in processors)
            yield f"{what:{width}}" + "".join(f"{cell:>16}" for cell in cells)

"""Two ways of doing the same, measured in turns, so that whatever else the machine does meets both alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Comparison:
    """Rates of each round, in requests or events a second."""

    ours: tuple[float, ...]
    reference: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        return tuple(one / other for one, other in zip(self.ours, self.reference, strict=True))

    @property
    def our_median(self) -> float:
        return median(self.ours)

    @property
    def reference_median(self) -> float:
        return median(self.reference)

    @property
    def median_ratio(self) -> float:
        return median(self.ratios)

    @property
    def ratio(self) -> str:
        """The median of the rounds' ratios, and between which of them it lies."""
        return f"{self.median_ratio:.2f} ({min(self.ratios):.2f} to {max(self.ratios):.2f})"


def compare(rounds: int, ours: Callable[[], float], reference: Callable[[], float]) -> Comparison:
    """Measure both so many times. Who goes first changes with each round; the first round, the warm-up, is dropped."""
    measured = []
    for number in range(rounds + 1):
        if number % 2:
            other = reference()
            measured.append((ours(), other))
        else:
            measured.append((ours(), reference()))
    return Comparison(tuple(one for one, _ in measured[1:]), tuple(other for _, other in measured[1:]))


def show(title: str, comparison: Comparison, unit: str, names: tuple[str, str]) -> None:
    print(f"\n{title}")
    for name, rates in zip(names, (comparison.ours, comparison.reference), strict=True):
        low, high = min(rates), max(rates)
        print(f"  {name:<20} {median(rates):>9,.0f} {unit} ({low:,.0f} to {high:,.0f})")
    print(f"  {'ratio':<20} {comparison.ratio:>9}")

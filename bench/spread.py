"""What many samples of one thing say, and two things beside each other (library)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TypedDict


class Spread(TypedDict):
    """Percentiles of so many samples, in the samples' unit."""

    samples: int
    p5: float
    p25: float
    p50: float
    p75: float
    p95: float


class Ratio(TypedDict):
    """One thing by another: of their medians, and turn by turn."""

    medians: float
    turns: Spread


class Compared(TypedDict):
    """What was measured in turns, by title, and the ratios to the one that the rest is held to."""

    unit: str
    spread: dict[str, Spread]
    to: str
    ratio: dict[str, Ratio]


def spread(samples: Sequence[float]) -> Spread:
    """Return the percentiles of at least one sample."""
    many = samples if len(samples) > 1 else [*samples, *samples]
    cuts = statistics.quantiles(many, n=20, method="inclusive")
    p5, p25, p50, p75, p95 = (cuts[twentieth - 1] for twentieth in (1, 5, 10, 15, 19))
    return Spread(samples=len(samples), p5=p5, p25=p25, p50=p50, p75=p75, p95=p95)


def compare(samples: Mapping[str, Sequence[float]], unit: str, to: str) -> Compared:
    """Hold all to the one called `to`, if it is there; turn n of each was at about one time."""
    found = {title: spread(values) for title, values in samples.items()}
    ratio = {}
    for title, values in samples.items():
        if title != to and to in samples:
            turns = [value / other for value, other in zip(values, samples[to], strict=True)]
            ratio[title] = Ratio(
                medians=found[title]["p50"] / found[to]["p50"], turns=spread(turns)
            )
    return Compared(unit=unit, spread=found, to=to, ratio=ratio)


def show(compared: Compared) -> None:
    """Print a line for each, and one for each ratio."""
    unit = compared["unit"]
    print(f"{'':24}{'median':>10} {'':{len(unit)}}{'quartiles':>20}{'5% to 95%':>20}")
    for title, row in compared["spread"].items():
        quartiles, tails = between(row["p25"], row["p75"]), between(row["p5"], row["p95"])
        print(f"{title:24}{row['p50']:10.1f} {unit}{quartiles:>20}{tails:>20}")
    for title, ratio in compared["ratio"].items():
        turns = between(ratio["turns"]["p25"], ratio["turns"]["p75"], 2)
        print(
            f"{title} / {compared['to']}: {ratio['medians']:.2f} of the medians; "
            f"quartiles turn by turn {turns}"
        )


def between(low: float, high: float, digits: int = 1) -> str:
    """Return a range for people."""
    return f"{low:.{digits}f} to {high:.{digits}f}"


def plus_minus(row: Spread) -> str:
    """Return half of what is between the quartiles, as a share of the median, for people."""
    return f"±{(row['p75'] - row['p25']) / 2 / row['p50']:.0%}"

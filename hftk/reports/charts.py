"""Geometry of the report's charts: axes with round ticks, thinned curves, interval bars. Numbers in, numbers
out.

Every position is in thousandths of the plot's width or height, from the left and from the top. The page
stretches the plot to any width and lays the labels over it as text, so that they keep their size on a phone
and on paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SPAN = 1000.0
MOST_POINTS = 1000
LOG_RATIO = 20.0
"""A largest value this many times the smallest is drawn on a logarithmic axis: less would flatten the low end
to a line."""

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A linear or logarithmic scale over [low, high] with a few round ticks."""

    low: float
    high: float
    log: bool
    ticks: tuple[tuple[float, str], ...]
    """(position in thousandths from the low end, label)."""

    def place(self, value: float) -> float:
        """Thousandths of the way from the low to the high end."""
        return round(SPAN * _share(value, self.low, self.high, self.log), 2)


@dataclass(frozen=True, kw_only=True)
class Series:
    """One curve: its points as they are and as a path."""

    name: str
    kind: str
    """Class of the drawing: train, eval, rate or norm."""
    points: list[Point]
    """(step, value), thinned."""
    path: str
    """SVG path through the points."""
    dots: list[Point]
    """Positions of points that are marked one by one (few, far apart)."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One plot with one or more curves over the same steps."""

    key: str
    title: str
    description: str
    note: str
    x: Axis
    y: Axis
    series: list[Series]

    def data(self) -> dict[str, Any]:
        """What the page's script needs to show the value under the pointer."""
        axes = {name: [axis.low, axis.high, int(axis.log)] for name, axis in (("x", self.x), ("y", self.y))}
        series = [
            {"name": s.name, "kind": s.kind, "points": [_short(p) for p in s.points]} for s in self.series
        ]
        return {**axes, "series": series}


def curve(history: Iterable[Mapping[str, Any]], name: str) -> list[Point]:
    """(step, value) of the points of ``history`` that have a finite ``name``, in order of steps."""
    return sorted(
        (float(point["step"]), float(point[name]))
        for point in history
        if _finite(point.get("step"), point.get(name))
    )


def chart(
    key: str,
    title: str,
    curves: Mapping[str, tuple[str, list[Point]]],
    unit: str = "",
    note: str = "",
    *,
    linear: bool = False,
) -> Chart | None:
    """A chart of ``curves`` (name to (kind, points)); None where no curve has a point. ``note`` stands beside
    its title."""
    drawn = {name: (kind, thin(points)) for name, (kind, points) in curves.items() if points}
    if not drawn:
        return None
    points = [point for _, some in drawn.values() for point in some]
    steps, values = [x for x, _ in points], [y for _, y in points]
    start = [0.0] if 0 < min(steps) < 0.15 * max(steps) else []
    x, y = axis([*start, *steps], exact=True, whole=True, most=5), axis(values, linear=linear)
    series = [_series(name, kind, some, x, y) for name, (kind, some) in drawn.items()]
    span = f"step {_label(min(steps), 1)} to {_label(max(steps), 1)}"
    ends = "; ".join(f"{s.name} from {s.points[0][1]:.4g} to {s.points[-1][1]:.4g}" for s in series)
    title += (f", {unit}" if unit else "") + (", logarithmic scale" if y.log else "")
    return Chart(
        key=key, title=title, description=f"Over {span}: {ends}.", note=note, x=x, y=y, series=series
    )


def _series(name: str, kind: str, points: list[Point], x: Axis, y: Axis) -> Series:
    placed = [(x.place(a), round(SPAN - y.place(b), 2)) for a, b in points]
    path = "M" + "L".join(f"{a:g} {b:g}" for a, b in placed)
    return Series(name=name, kind=kind, points=points, path=path, dots=placed if len(placed) <= 40 else [])


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most ``most`` points, spikes kept: of each stretch of points its lowest and its highest one, and
    both ends."""
    if len(points) <= most:
        return list(points)
    inner, stretches = points[1:-1], (most - 2) // 2
    kept = [points[0]]
    for i in range(stretches):
        some = inner[len(inner) * i // stretches : len(inner) * (i + 1) // stretches]
        kept += sorted({min(some, key=lambda p: p[1]), max(some, key=lambda p: p[1])})
    return [*kept, points[-1]]


def axis(
    values: Iterable[float], *, exact: bool = False, whole: bool = False, linear: bool = False, most: int = 7
) -> Axis:
    """An axis around ``values``: logarithmic where they are positive and far apart, else or if ``linear``
    linear.

    ``exact`` ends it at the outer values instead of a little beyond them; ``whole`` allows ticks at whole
    numbers only.
    """
    found = [v for v in values if math.isfinite(v)]
    low, high = min(found), max(found)
    if low > 0 and high / low > LOG_RATIO and not (exact or linear):
        margin = (high / low) ** 0.04
        return _log_axis(low / margin, high * margin)
    if not exact:
        margin = 0.06 * (high - low)
        low, high = (0.0 if 0 <= low < margin else low - margin), high + margin
    if low == high:
        pad = 1.0 if whole else abs(low) / 2
        low, high = (low - pad, high + pad) if low else (0.0, 1.0)
    step = _round_step((high - low) / most)
    step = max(1.0, step) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = ((i * step, _label(i * step, step)) for i in range(first, last + 1))
    return _axis(low, high, False, ticks)


def _log_axis(low: float, high: float) -> Axis:
    """Ticks at the powers of ten, with 2 and 5 between them (or 3, or nothing) as long as there is room."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = [d * 10.0**p for p in powers for d in digits if low <= d * 10.0**p <= high]
        if len(ticks) <= 7:
            break
    return _axis(low, high, True, [(t, _label(t, t)) for t in ticks])


def _axis(low: float, high: float, log: bool, ticks: Iterable[tuple[float, str]]) -> Axis:
    placed = tuple((round(SPAN * _share(value, low, high, log), 2), label) for value, label in ticks)
    return Axis(low=low, high=high, log=log, ticks=placed)


def _share(value: float, low: float, high: float, log: bool) -> float:
    if log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return (value - low) / (high - low)


def _round_step(at_least: float) -> float:
    """The smallest of 1, 2, 2.5, 5 x 10^n that is not below ``at_least``."""
    power = 10.0 ** math.floor(math.log10(at_least))
    return next(d * power for d in (1, 2, 2.5, 5, 10) if d * power >= at_least * (1 - 1e-9))


def _label(value: float, step: float) -> str:
    """``value`` with as many digits as ticks ``step`` apart need; below 0.001 and from a million on as
    2e-5."""
    if not value:
        return "0"
    if step < 1e-3 or abs(value) >= 1e6:
        mantissa, _, power = f"{value:.3e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(power)}"
    digits = max(0, -math.floor(math.log10(step)))
    digits += abs(round(step, digits) - step) > 1e-9 * step  # 2.5, 0.25
    return f"{value:,.{digits}f}"


def _short(point: Point) -> list[float]:
    """Step and value with no more digits than a reader can use: the page stays small."""
    step, value = point
    return [int(step) if step.is_integer() else step, float(f"{value:.6g}")]


def _finite(*values: Any) -> bool:
    return all(isinstance(v, (int, float)) and math.isfinite(v) for v in values)

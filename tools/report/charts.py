"""Line charts as inline SVG; colours and letters come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import NamedTuple

Curve = Mapping[int, float]
WIDTH, HEIGHT = 560, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 36
COLOURS = 8  # of the style sheet: .c0 to .c7
MARKED = 40  # curves with more points than this have no marks
# Heading and what the tags in it have in common; the first that fits takes a tag.
GROUPS = (
    ("Loss", ("train_loss", "val_loss", "val_dice_loss")),
    ("Parts of the loss", ("loss/",)),
    ("Overlap", ("val_dice", "train_dice", "val_miou", "val_score")),
    ("Distance in mm", ("val_hd",)),
    ("Learning rate", ("learning_rate",)),
)


class Axis(NamedTuple):
    """Range of an axis and its ticks."""

    low: float
    high: float
    ticks: Sequence[float]

    def share(self, value: float) -> float:
        """Place of `value` from 0 to 1."""
        return (value - self.low) / (self.high - self.low)


def grouped(curves: Mapping[str, Curve]) -> dict[str, dict[str, Curve]]:
    """Heading -> the curves of one chart; those of no group go by what is before a slash in their tag."""
    found: dict[str, dict[str, Curve]] = {heading: {} for heading, _ in GROUPS}
    for tag in sorted(curves):
        longest = max(
            (start for _, starts in GROUPS for start in starts if tag.startswith(start)), key=len, default=None
        )
        heading = next((name for name, starts in GROUPS if longest in starts), tag.partition("/")[0])
        found.setdefault(heading, {})[tag] = curves[tag]
    return {heading: chosen for heading, chosen in found.items() if chosen}


def chart(heading: str, curves: Mapping[str, Curve], *, span: tuple[int, int]) -> str:
    """A figure with a heading, the curves over the epochs of `span`, and a legend with the last value of each.

    Values that are not finite leave a gap.
    """
    finite = [value for curve in curves.values() for value in curve.values() if math.isfinite(value)]
    if not finite:
        return f'<figure class="chart"><h4>{escape(heading)}</h4><p class="note">No finite value.</p></figure>'
    across, up = epochs(*span), values(min(finite), max(finite))
    lines = "".join(_line(curve, across, up, index=i, name=tag) for i, (tag, curve) in enumerate(curves.items()))
    legend = "".join(_entry(i, tag, curve) for i, (tag, curve) in enumerate(curves.items()))
    return (
        f'<figure class="chart"><h4>{escape(heading)}</h4>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(heading)} over epochs">'
        f'{"".join(_grid(across, up))}{lines}</svg><ul class="legend">{legend}</ul></figure>'
    )


def epochs(low: int, high: int) -> Axis:
    """An axis of whole numbers from `low` to `high`."""
    step = max(1, math.ceil(nice_step((high - low) / 8)))
    ticks = sorted({low, *range(-(-low // step) * step, high + 1, step)})
    if len(ticks) > 2 and ticks[1] - ticks[0] < step / 2:
        del ticks[1]
    return Axis(low - 0.5, high + 0.5, ticks) if low == high else Axis(low, high, ticks)


def values(low: float, high: float) -> Axis:
    """An axis with round ticks that holds `low` and `high`; it begins at 0 if that costs less than half of it."""
    if 0 < low < high / 2 or low == high > 0:
        low = 0.0
    if low == high:
        low, high = low - 1, high + 1
    step = nice_step((high - low) / 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [i * step for i in range(first, last + 1)]
    return Axis(ticks[0], ticks[-1], ticks)


def nice_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is no less than `least`; 1 if that is 0."""
    if least <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def number(value: float) -> str:
    """Four significant digits, without an exponent where that is readable."""
    if not math.isfinite(value):
        return str(value)
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        mantissa, _, exponent = f"{value:.3e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}".replace("-", "−")
    text = f"{value:.{max(0, 3 - math.floor(math.log10(abs(value))))}f}" if value else "0"
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", "−")


def tick_label(value: float, *, step: float) -> str:
    """A tick with the digits that tell it from its neighbours, `step` away."""
    if abs(value) < step / 2:
        return "0"
    if step < 1e-6 or abs(value) >= 1e5:
        return number(value)
    return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}".replace("-", "−")


def fixed(value: float, largest: float) -> str:
    """A value as all values of a column are written whose largest absolute value is `largest`, so that they align."""
    if not math.isfinite(value):
        return str(value)
    places = next((places for places, limit in ((3, 1), (2, 100), (1, 10_000)) if largest <= limit), 0)
    return f"{value:.{places}f}".replace("-", "−")


def _x(axis: Axis, step: float) -> float:
    return LEFT + axis.share(step) * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.share(value) * (HEIGHT - TOP - BOTTOM)


def _grid(across: Axis, up: Axis) -> Iterator[str]:
    """Lines and letters of both axes."""
    for tick in up.ticks:
        y = _y(up, tick)
        yield f'<path class="rule" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
        label = tick_label(tick, step=up.ticks[1] - up.ticks[0])
        yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
    for tick in across.ticks:
        x = _x(across, tick)
        yield f'<path class="tick" d="M{x:.1f} {HEIGHT - BOTTOM}v4"/>'
        yield f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{tick:g}</text>'
    yield f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">epoch</text>'


def _line(curve: Curve, across: Axis, up: Axis, *, index: int, name: str) -> str:
    """A curve, with marks whose tooltips tell the values."""
    path, pen = "", "M"
    marks = []
    for step, value in sorted(curve.items()):
        if not math.isfinite(value):
            pen = "M"
            continue
        x, y = _x(across, step), _y(up, value)
        path += f"{pen}{x:.1f} {y:.1f}"
        pen = "L"
        marks.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{3 if len(curve) <= MARKED else 1.5}">'
            f"<title>{escape(name)}, epoch {step}: {number(value)}</title></circle>"
        )
    return f'<g class="curve c{index % COLOURS}" data-tag="{escape(name)}"><path d="{path}"/>{"".join(marks)}</g>'


def _entry(index: int, tag: str, curve: Curve) -> str:
    last = max(curve)
    return (
        f'<li class="c{index % COLOURS}"><i></i>{escape(tag)} <b>{number(curve[last])}</b>'
        f'<span class="note"> at epoch {last}</span></li>'
    )

"""Geometry of the frontier picture: quality upwards, cost to the right on a log scale. The template only draws it.

Home-made SVG because the page must stay under 2 MB and open offline: plotly.js alone is 4.8 MB.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from sizewise.pick.frontier import Point, step_line
from sizewise.pick.report.labels import Box, Wanted, place_labels
from sizewise.pick.report.numbers import Scale, decimals, fixed, quantity_text
from sizewise.pick.report.standing import Cost, Standing, Standings

_LABEL_PX, _CHAR = 13.0, 0.6  # font size; width of a character in ems, on the wide side
_LONGEST = 30  # characters of a name


@dataclass(frozen=True, slots=True)
class Canvas:
    """Size of the picture and of the room around the plot, in px."""

    name: str
    width: float
    height: float
    left: float = 46
    right: float = 16
    top: float = 34
    bottom: float = 50


CANVASES = (Canvas("wide", 1000, 520), Canvas("narrow", 358, 420, left=38, right=8))


@dataclass(frozen=True, slots=True)
class Tick:
    """A place on an axis."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Label:
    """A name beside its point; `leader` is the far end of a thin line to it, where it had to move away."""

    x: float
    y: float
    name: str
    value: str
    leader: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Mark:
    """One candidate in the picture, in px."""

    place: int  # in Standings.all: the same on every axis
    standing: Standing
    x: float
    y: float
    y_low: float
    y_high: float
    cost: str
    label: Label | None


@dataclass(frozen=True, slots=True)
class Chart:
    """Everything that the template draws for one axis at one size."""

    canvas: Canvas
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[Mark, ...]
    frontier: str  # an SVG path
    bar: Tick | None
    bar_left: bool  # its words stand at the left end
    zero_until: float | None  # where the axis breaks after the place for costs of nothing


def draw(standing: Standings, cost: Cost, canvas: Canvas) -> Chart:
    """The picture of one cost at one size."""
    rows = [
        (place, each, value)
        for place, each in enumerate(standing.all)
        if each.quality and (value := cost.value(each.candidate)) is not None
    ]
    across = _Across([value for *_, value in rows], cost.quantity, canvas)
    along = _Along(standing, [each for _, each, _ in rows], canvas)
    spots = [_spot(place, each, value, across, along, cost) for place, each, value in rows]
    sign = 1 if standing.scale.higher_is_better else -1
    # px grow downwards, so up is better: quality -> -y keeps the stairs' meaning for falling metrics, too.
    known = [Point(value, sign * each.quality.value) for _, each, value in rows if each.quality]
    corners = [(across.at(point.cost), along.at(sign * point.quality)) for point in step_line(known)]
    if corners:
        corners.append((canvas.width - canvas.right, corners[-1][1]))
    bar = None if standing.bar is None else Tick(along.at(standing.bar), _bar_text(standing))
    bar_left = bar is not None and _crowded_right(bar, spots, canvas)
    marks = _label(spots, corners, bar, bar_left, canvas, standing.scale)
    path = "".join(f"{'L' if place else 'M'}{x:.1f} {y:.1f}" for place, (x, y) in enumerate(corners))
    return Chart(canvas, across.ticks(), along.ticks(), marks, path, bar, bar_left, across.zero_until)


class _Across:
    """The cost axis: logarithmic, with a place of its own for costs of nothing."""

    def __init__(self, values: Sequence[float], quantity: str, canvas: Canvas) -> None:
        self.quantity, self.canvas = quantity, canvas
        positive = [value for value in values if value > 0] or [1.0]
        low, high = math.log10(min(positive)), math.log10(max(positive))
        spare = max(0.12 * (high - low), (1 - (high - low)) / 2, 0.15)
        self.low, self.high = low - spare, high + spare
        self.zero_until = canvas.left + 34 if any(value == 0 for value in values) else None
        self.start = self.zero_until or canvas.left
        self.end = canvas.width - canvas.right

    def at(self, value: float) -> float:
        if value <= 0:
            return self.canvas.left + 16
        return self.start + (math.log10(value) - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> tuple[Tick, ...]:
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        steps = (1,) if self.high - self.low > 2.2 else (1, 2, 5)
        values = [step * 10.0**decade for decade in decades for step in steps]
        found = [Tick(self.at(v), quantity_text(v, self.quantity, 1)) for v in values]
        inside = [tick for tick in found if self.start + 8 <= tick.at <= self.end - 18]
        room = 52 if self.canvas.width < 500 else 70
        every = max(1, math.ceil(len(inside) * room / (self.end - self.start)))
        zero = (Tick(self.at(0), "0"),) if self.zero_until else ()
        return zero + tuple(inside[::every])


class _Along:
    """The quality axis: linear, over all intervals and the bar, better upwards."""

    def __init__(self, standing: Standings, rows: Sequence[Standing], canvas: Canvas) -> None:
        self.scale, self.canvas = standing.scale, canvas
        ends = [end for row in rows if row.quality for end in (row.quality.low, row.quality.high)]
        ends += [] if standing.bar is None else [standing.bar]
        low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
        spare = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
        self.low, self.high = low - spare, high + spare
        if self.scale.unit == "%":  # a share lies between 0 and 1
            self.low, self.high = max(self.low, -0.02), min(self.high, 1.02)

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        up = share if self.scale.higher_is_better else 1 - share
        return (
            self.canvas.height - self.canvas.bottom - up * (self.canvas.height - self.canvas.bottom - self.canvas.top)
        )

    def ticks(self) -> tuple[Tick, ...]:
        low, high = self.low * self.scale.factor, self.high * self.scale.factor
        rough = (high - low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
        digits = max(0, -math.floor(math.log10(step)))
        places = range(math.ceil(low / step), math.floor(high / step) + 1)
        return tuple(Tick(self.at(i * step / self.scale.factor), fixed(i * step, digits)) for i in places)


def _spot(place: int, each: Standing, value: float, across: _Across, along: _Along, cost: Cost) -> Mark:
    quality = each.quality
    assert quality is not None  # rows without a quality were left out
    y_low, y_high = along.at(quality.low), along.at(quality.high)
    return Mark(place, each, across.at(value), along.at(quality.value), y_low, y_high, cost.text(value), None)


def _bar_text(standing: Standings) -> str:
    bar, scale = standing.bar or 0.0, standing.scale
    margin = standing.result.bar.margin
    if margin is None:
        return f"the bar: {scale.value(bar, 1)}{scale.suffix}"
    name = clip(standing.reference.name) if standing.reference else "the best"
    return f"the bar: {name} less {fixed(margin * scale.factor, decimals(margin * scale.factor / 10))} {scale.points}"


def _crowded_right(bar: Tick, spots: Sequence[Mark], canvas: Canvas) -> bool:
    """True where the words at the right end of the bar would lie on a point, but not those at the left."""

    def hits(box: Box) -> bool:
        return any(box.overlaps(_point_box(spot)) or box.overlaps(_interval_box(spot)) for spot in spots)

    return hits(_bar_box(bar, False, canvas)) and not hits(_bar_box(bar, True, canvas))


def _bar_box(bar: Tick, left: bool, canvas: Canvas) -> Box:
    width = len(bar.text) * 12 * _CHAR
    start = canvas.left + 4 if left else canvas.width - canvas.right - width
    return Box(start, bar.at + 2, start + width, bar.at + 18)


def _point_box(spot: Mark) -> Box:
    reach = 13 if spot.standing.state == "winner" else 8
    return Box(spot.x - reach, spot.y - reach, spot.x + reach, spot.y + reach)


def _interval_box(spot: Mark) -> Box:
    return Box(spot.x - 3, min(spot.y_low, spot.y_high), spot.x + 3, max(spot.y_low, spot.y_high))


def _label(
    spots: Sequence[Mark], corners: Sequence[tuple[float, float]], bar: Tick | None, bar_left: bool, canvas: Canvas,
    scale: Scale,
) -> tuple[Mark, ...]:  # fmt: skip
    """The marks with their names placed."""
    frame = Box(canvas.left + 2, canvas.top - 16, canvas.width - 2, canvas.height - canvas.bottom - 2)
    hard = [_point_box(spot) for spot in spots] + ([_bar_box(bar, bar_left, canvas)] if bar else [])
    soft = [_interval_box(spot) for spot in spots]
    for (x1, y1), (x2, y2) in itertools.pairwise(corners):
        soft.append(Box(min(x1, x2) - 1, min(y1, y2) - 1, max(x1, x2) + 1, max(y1, y2) + 1))
    if bar:
        soft.append(Box(canvas.left, bar.at - 1, canvas.width - canvas.right, bar.at + 1))
    wanted = [_wanted(spot, scale) for spot in spots]
    boxes = place_labels(wanted, frame, hard, soft)
    return tuple(
        Mark(
            spot.place, spot.standing, spot.x, spot.y, spot.y_low, spot.y_high, spot.cost,
            _placed(spot, box, scale) if box else None,
        )
        for spot, box in zip(spots, boxes, strict=True)
    )  # fmt: skip


def _wanted(spot: Mark, scale: Scale) -> Wanted:
    name, value = _words(spot, scale)
    if spot.standing.state == "winner":  # two lines, the first one bold
        return Wanted(spot.x, spot.y, max(len(name) * 15 * 0.63, len(value) * _LABEL_PX * _CHAR), 36)
    return Wanted(spot.x, spot.y, len(f"{name} {value}".strip()) * _LABEL_PX * _CHAR, 17)


def _words(spot: Mark, scale: Scale) -> tuple[str, str]:
    quality = scale.text(spot.standing.quality) if spot.standing.quality else ""
    if spot.standing.state == "winner":
        return clip(spot.standing.name), f"{quality} at {spot.cost}"
    return clip(spot.standing.name), quality if spot.standing.state == "passing" else ""


def _placed(spot: Mark, box: Box, scale: Scale) -> Label:
    near = (min(max(spot.x, box.left), box.right), min(max(spot.y, box.top), box.bottom))
    far = math.hypot(near[0] - spot.x, near[1] - spot.y) > 20
    return Label(box.left, box.top, *_words(spot, scale), near if far else None)


def clip(name: str, longest: int = _LONGEST) -> str:
    """A long name with its middle left out: both ends tell models apart."""
    if len(name) <= longest:
        return name
    keep = longest - 1
    return f"{name[: keep // 2]}…{name[-(keep - keep // 2) :]}"

"""Geometry of the frontier picture: quality upwards, cost to the right on a log scale. The template only draws it.

Home-made SVG because the page must stay under 2 MB and open offline: plotly.js alone is 4.8 MB.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sizewise.pick.frontier import Point, step_line
from sizewise.pick.report.labels import Box, Wanted, ambiguous, place_labels
from sizewise.pick.report.numbers import Scale, fixed, quantity_text
from sizewise.pick.report.standing import Cost, Standing, Standings

_LABEL_PX, _CHAR = 13.0, 0.57  # font size; width of a character in ems, on the wide side


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
    longest: int = 32  # characters of a name


CANVASES = (Canvas("wide", 1000, 520), Canvas("narrow", 358, 420, left=38, right=8, longest=20))


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
    end: bool  # x is where it ends: it stands left of its point
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
    bar = None if standing.bar is None else Tick(along.at(standing.bar), _bar_text(standing, canvas))
    bar_left = bar is not None and _free_left(bar, spots, canvas)
    marks = _label(spots, corners, bar, bar_left, canvas, standing.scale)
    path = "".join(f"{'L' if place else 'M'}{x:.1f} {y:.1f}" for place, (x, y) in enumerate(corners))
    return Chart(canvas, across.ticks(), along.ticks(), marks, path, bar, bar_left, across.zero_until)


class _Across:
    """The cost axis: logarithmic, with a place of its own for costs of nothing."""

    def __init__(self, values: Sequence[float], quantity: str, canvas: Canvas) -> None:
        self.quantity, self.canvas = quantity, canvas
        positive = [value for value in values if value > 0] or [1.0]
        low, high = math.log10(min(positive)), math.log10(max(positive))
        spare = max(0.06 * (high - low), (1 - (high - low)) / 2, 0.12)
        self.low, self.high = low - spare, high + 2.9 * spare  # names read best to the right of their points
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


def _bar_text(standing: Standings, canvas: Canvas) -> str:
    bar, scale = standing.bar or 0.0, standing.scale
    margin = standing.result.bar.margin
    text = f"the bar, {scale.value(bar, 1)}{scale.suffix}"
    if margin is None or canvas.longest < 30:
        return text
    name = clip(standing.reference.name, canvas.longest) if standing.reference else "the best"
    return f"{text}: {name} less {margin * scale.factor * scale.best:.3g} {scale.points}"


def _free_left(bar: Tick, spots: Sequence[Mark], canvas: Canvas) -> bool:
    """True where the words at the left end of the bar lie on no point: cheap and good is where points are rarest."""
    words = _bar_box(bar, True, canvas)
    return not any(words.overlaps(_point_box(spot)) or words.overlaps(_interval_box(spot)) for spot in spots)


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
    names = [_words(spot, scale, canvas) for spot in spots]
    wanted = [_wanted(spot, *words) for spot, words in zip(spots, names, strict=True)]
    boxes = place_labels(wanted, frame, hard, soft)
    marks = []
    for place, (spot, box) in enumerate(zip(spots, boxes, strict=True)):
        others = wanted[:place] + wanted[place + 1 :]
        label = None
        if box:
            end = box.right < spot.x
            leader = _leader(box, wanted[place], others)
            label = Label(box.right if end else box.left, box.top, end, *names[place], leader)
        marks.append(replace(spot, label=label))
    return tuple(marks)


def _wanted(spot: Mark, name: str, value: str) -> Wanted:
    if spot.standing.state == "winner":  # two lines, the first one bold
        return Wanted(spot.x, spot.y, max(len(name) * 15 * 0.62, len(value) * _LABEL_PX * _CHAR), 36, 17)
    return Wanted(spot.x, spot.y, len(f"{name} {value}".strip()) * _LABEL_PX * _CHAR, 17)


def _words(spot: Mark, scale: Scale, canvas: Canvas) -> tuple[str, str]:
    quality = scale.text(spot.standing.quality) if spot.standing.quality else ""
    name = clip(spot.standing.name, canvas.longest)
    if spot.standing.state == "winner":
        return name, f"{quality} at {spot.cost}"
    return name, quality if spot.standing.state == "passing" else ""


def _leader(box: Box, label: Wanted, others: Sequence[Wanted]) -> tuple[float, float] | None:
    """Where a thin line from the point meets its label, if the label stands far off or near another point."""
    near = (min(max(label.x, box.left), box.right), min(max(label.y, box.top), box.bottom))
    far = math.hypot(near[0] - label.x, near[1] - label.y) > 20
    return near if far or ambiguous(box, label, others) else None


def clip(name: str, longest: int) -> str:
    """A long name with its middle left out: both ends tell models apart."""
    if len(name) <= longest:
        return name
    keep = longest - 1
    return f"{name[: keep // 2]}…{name[-(keep - keep // 2) :]}"

"""The picture of the table of methods: quality upwards, bytes to the right, names at the points. Plain SVG.

Drawn like the report's frontier: the best that can be had for a number of bytes is a thin line, kinds of methods differ
in shape as well as in colour, and what lies on the line has its name in bold.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from sizewise.core.units import format_bytes
from sizewise.pick.frontier import Point, frontier, step_line
from sizewise.pick.report.labels import Box, Wanted, place_labels

WIDTH, HEIGHT = 1000, 560
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 84, 56
_PX, _CHAR = 13.0, 0.57  # font size; width of a character in ems
_KINDS = ("Quantize", "Prune", "Factorize", "Convert")
_STYLE = """
svg { --ink: #1c1d1f; --soft: #595d63; --line: #dcd8ce; --page: #fcfbf8;
  --Quantize: #0072b2; --Prune: #b23c07; --Factorize: #007a5a; --Convert: #6d6c66 }
@media (prefers-color-scheme: dark) { svg { --ink: #ebe9e4; --soft: #a9acb2; --line: #363a40; --page: #15171a;
  --Quantize: #56b4e9; --Prune: #ff9b61; --Factorize: #19b78b; --Convert: #a9acb2 } }
text { font: 13px system-ui, "Segoe UI", Roboto, sans-serif; fill: var(--ink); font-variant-numeric: tabular-nums }
.title { font-size: 19px; font-weight: 600 } .soft { fill: var(--soft) } .best { font-weight: 600 }
.grid { stroke: var(--line) } .stairs { fill: none; stroke: var(--soft) } .whisker { stroke: var(--soft) }
""".strip()


@dataclass(frozen=True, slots=True)
class Spot:
    """One setting of one method."""

    name: str
    kind: str  # one of "Quantize", "Prune", "Factorize", "Convert"
    bytes: float
    share: float  # same top token as the parent, 0..1
    low: float
    high: float


def plot(spots: Sequence[Spot], title: str, text: str) -> str:
    """The picture as SVG.

    Args:
        spots: what is drawn.
        title: the answer that the picture gives.
        text: what is measured on which text, for the line below it.
    """
    scale = _Scale(spots)
    points = [Point(spot.bytes, spot.share) for spot in spots]
    best = set(frontier(points))
    corners = [(scale.x(point.cost), scale.y(point.quality)) for point in step_line(points)]
    corners.append((WIDTH - _RIGHT, corners[-1][1]))
    order = sorted(range(len(spots)), key=lambda place: (place not in best, -spots[place].share))
    boxes = _places([spots[place] for place in order], scale, corners)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="t d">',
        f'<title id="t">{escape(title)}</title><desc id="d">{escape(text)}</desc><style>{_STYLE}</style>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" style="fill: var(--page)"/>',
        f'<text class="title" x="{_LEFT}" y="30">{escape(title)}</text>',
        f'<text class="soft" x="{_LEFT}" y="52">{escape(text)}</text>',
        *_key(),
        *scale.grid(),
        '<path class="stairs" d="M' + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners) + '"/>',
    ]
    for place, box in zip(order, boxes, strict=True):
        parts += _mark(spots[place], scale, box, bold=place in best)
    return "\n".join([*parts, "</svg>", ""])


class _Scale:
    """Bytes on a log scale to the right, shares upwards."""

    def __init__(self, spots: Sequence[Spot]) -> None:
        sizes = [math.log10(spot.bytes) for spot in spots]
        spare = max(0.06 * (max(sizes) - min(sizes)), 0.03)
        self.left, self.right = min(sizes) - spare, max(sizes) + 3 * spare
        self.low = min(0.95, math.floor(10 * min(spot.low for spot in spots)) / 10)

    def x(self, size: float) -> float:
        share = (math.log10(size) - self.left) / (self.right - self.left)
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def y(self, share: float) -> float:
        return HEIGHT - _BOTTOM - (share - self.low) / (1 - self.low) * (HEIGHT - _TOP - _BOTTOM)

    def grid(self) -> list[str]:
        """Lines and numbers of both axes."""
        parts = []
        step = 0.1 if self.low < 0.7 else 0.05
        for place in range(math.ceil(round(self.low / step, 6)), round(1 / step) + 1):
            y = self.y(place * step)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(_text(_LEFT - 8, y + 4, f"{100 * place * step:.0f} %", "end"))
        for size in _sizes(10**self.left, 10**self.right):
            parts.append(_text(self.x(size), HEIGHT - _BOTTOM + 22, format_bytes(size), "middle"))
        return [*parts, _text(WIDTH - _RIGHT, HEIGHT - 10, "bytes on disk", "end")]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="soft" text-anchor="{anchor}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _sizes(low: float, high: float) -> list[float]:
    steps = (1, 1.5, 2, 3, 5, 7) if high / low < 30 else (1, 3)
    found = [step * 10.0**power for power in range(3, 13) for step in steps]
    return [size for size in found if low * 1.02 < size < high / 1.02]


def _places(spots: Sequence[Spot], scale: _Scale, corners: Sequence[tuple[float, float]]) -> list[Box | None]:
    wanted = [Wanted(scale.x(s.bytes), scale.y(s.share), len(s.name) * _PX * _CHAR, 16) for s in spots]
    hard = [Box(label.x - 7, label.y - 7, label.x + 7, label.y + 7) for label in wanted]
    soft = [
        Box(x - 1, min(y, below) - 1, right + 1, max(y, below) + 1)
        for (x, y), (right, below) in itertools.pairwise(corners)
    ]
    return place_labels(wanted, Box(_LEFT + 2, _TOP - 14, WIDTH - 2, HEIGHT - _BOTTOM - 2), hard, soft)


def _mark(spot: Spot, scale: _Scale, box: Box | None, *, bold: bool) -> list[str]:
    x, y = scale.x(spot.bytes), scale.y(spot.share)
    interval = f"{100 * spot.low:.1f} to {100 * spot.high:.1f} %"
    tip = f"{spot.name}: {format_bytes(spot.bytes)}, same top token at {100 * spot.share:.1f} % ({interval})"
    ends = f'y1="{scale.y(spot.low):.1f}" y2="{scale.y(spot.high):.1f}"'
    parts = [f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" {ends}/>']
    parts.append(f'<g style="fill: var(--{spot.kind})"><title>{escape(tip)}</title>{_shape(spot.kind, x, y)}</g>')
    if box:
        style = ' class="best"' if bold else ' class="soft"'
        parts.append(f'<text{style} x="{box.left:.1f}" y="{box.bottom - 4:.1f}">{escape(spot.name)}</text>')
    return parts


def _shape(kind: str, x: float, y: float) -> str:
    if kind == "Prune":
        return f'<rect x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10"/>'
    if kind == "Factorize":
        return f'<path d="M{x:.1f} {y - 7:.1f}l6.5 11.5h-13z"/>'
    if kind == "Convert":
        return f'<path d="M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7 -7z"/>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5.5"/>'


def _key() -> list[str]:
    """Which shape is which kind."""
    parts, x = [], float(WIDTH - _RIGHT - 360)
    for kind in _KINDS:
        parts.append(f'<g style="fill: var(--{kind})">{_shape(kind, x, 68)}</g>')
        parts.append(f'<text class="soft" x="{x + 12:.0f}" y="72">{kind.lower()}</text>')
        x += 92
    return parts

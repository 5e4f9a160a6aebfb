"""Draw a run as one picture: a field for each workload, a dot for each system."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple
from xml.sax.saxutils import escape

#: Pixels: a field, its margins, and a system's line in it.
WIDTH, NAMES, VALUES, HEAD, LINE = 440, 150, 74, 48, 19
ABREAST = 3
EDGE = 16

BLUE, GREY, PALE, INK, SOFT = "#0b62c4", "#6b7683", "#e4e8ec", "#1c2430", "#5b6673"


class Span(NamedTuple):
    """What the rounds measured."""

    least: float
    median: float
    most: float


class Field(NamedTuple):
    """One workload."""

    title: str
    pattern: str
    #: Whether more is better.
    floor: bool
    spans: dict[str, Span]


class Scale:
    """Where a value is drawn: on a logarithmic axis, as systems differ by powers of ten."""

    def __init__(self, values: Iterable[float]) -> None:
        logs = [math.log10(value) for value in values if value > 0] or [0.0]
        self.low, self.high = math.floor(min(logs)), math.ceil(max(logs))
        self.high = max(self.high, self.low + 1)

    def __call__(self, value: float) -> float:
        part = (math.log10(value) - self.low) / (self.high - self.low) if value > 0 else 0.0
        room = WIDTH - NAMES - VALUES
        return NAMES + room * min(max(part, 0.0), 1.0)

    def decades(self) -> list[float]:
        return [10.0**power for power in range(self.low, self.high + 1)]


def draw(fields: list[Field], ours: str) -> str:
    """Return the SVG; the best system of each field is on top."""
    tall = HEAD + LINE * max((len(field.spans) for field in fields), default=0) + 22
    width = 2 * EDGE + ABREAST * WIDTH
    height = 54 + tall * math.ceil(len(fields) / ABREAST)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="system-ui,DejaVu Sans,sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{EDGE}" y="26" font-size="16" font-weight="600" fill="{INK}">nbtasks beside its '
        f"peers</text>",
        f'<text x="{EDGE}" y="44" fill="{SOFT}">Dots: median of the rounds; lines: least to most. '
        f"Logarithmic scales. The best is on top.</text>",
    ]
    for place, field in enumerate(fields):
        x, y = EDGE + WIDTH * (place % ABREAST), 54 + tall * (place // ABREAST)
        parts.append(f'<g transform="translate({x},{y})">{draw_field(field, ours)}</g>')
    return "\n".join([*parts, "</svg>", ""])


def draw_field(field: Field, ours: str) -> str:
    ordered = sorted(field.spans.items(), key=lambda each: each[1].median, reverse=field.floor)
    scale = Scale(value for span in field.spans.values() for value in span)
    bottom = HEAD + LINE * len(ordered) - 6
    hint = "more is better" if field.floor else "less is better"
    parts = [
        f'<text x="0" y="26" font-weight="600" fill="{INK}">{escape(field.title)}'
        f'<tspan font-weight="400" fill="{SOFT}" dx="8">{hint}</tspan></text>'
    ]
    for value in scale.decades():
        x = scale(value)
        parts.append(
            f'<line x1="{x:.0f}" x2="{x:.0f}" y1="{HEAD - 12}" y2="{bottom}" stroke="{PALE}"/>'
            f'<text x="{x:.0f}" y="{bottom + 12}" font-size="10" text-anchor="middle" '
            f'fill="{SOFT}">{label(value)}</text>'
        )
    for place, (name, span) in enumerate(ordered):
        parts.append(draw_span(name, span, scale, HEAD + LINE * place, field.pattern, name == ours))
    return "".join(parts)


def draw_span(name: str, span: Span, scale: Scale, y: int, pattern: str, ours: bool) -> str:
    colour, weight = (BLUE, "600") if ours else (GREY, "400")
    least, middle, most = (round(scale(value), 1) for value in span)
    return (
        f'<text x="{NAMES - 12}" y="{y + 4}" text-anchor="end" fill="{colour if ours else INK}" '
        f'font-weight="{weight}">{escape(name)}</text>'
        f'<line x1="{least}" x2="{most}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2"/>'
        f'<circle cx="{middle}" cy="{y}" r="{5 if ours else 4}" fill="{colour}"/>'
        f'<text x="{WIDTH - VALUES + 12}" y="{y + 4}" fill="{colour if ours else INK}" '
        f'font-weight="{weight}">{pattern.format(span.median)}</text>'
    )


def label(value: float) -> str:
    if value >= 1_000_000:
        return f"{value / 1_000_000:g} M"
    return f"{value / 1_000:g} k" if value >= 1_000 else f"{value:g}"

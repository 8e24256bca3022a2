"""Gains with their intervals, as SVG."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from benchmarks.paper.statistics import Interval

LEFT, RIGHT, ROW, SPACE = 400, 800, 18, 26


@dataclass(frozen=True)
class Bar:
    """A row: `mark` is the gain of the task's form stated; `changed`, whether any instruction was;
    `sure`, whether the gain holds among all comparisons."""

    task: str
    method: str
    gain: Interval
    mark: float | None
    changed: bool
    sure: bool


def chart(rows: list[Bar]) -> str:
    """A line for each: a dot at the mean, hollow where nothing was changed; a line over the
    interval, blue where it holds; and a dashed line at the gain of the form stated."""
    bounds = [abs(b) for r in rows for b in (r.gain.low, r.gain.high, r.mark or 0)]
    most = max([0.1, *bounds])
    middle, scale = (LEFT + RIGHT) / 2, (RIGHT - LEFT) / 2 / most
    parts, y, last = [], 16, ""
    for row in rows:
        if row.task != last:
            last = row.task
            y += SPACE
            parts.append(f'<text x="4" y="{y - 8}" font-weight="bold">{escape(last)}</text>')
        low, high, mean = (middle + scale * v for v in (row.gain.low, row.gain.high, row.gain.mean))
        colour = "#2a6f97" if row.sure else "#777777"
        fill = colour if row.changed else "white"
        if row.mark is not None:
            at = middle + scale * row.mark
            parts.append(
                f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{y - 4}" y2="{y + 14}" '
                'stroke="#c1121f" stroke-dasharray="3 3"/>'
            )
        parts += [
            f'<text x="{LEFT - 8}" y="{y + 9}" text-anchor="end">{escape(row.method)}</text>',
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y + 5}" y2="{y + 5}" '
            f'stroke="{colour}" stroke-width="3"/>',
            f'<circle cx="{mean:.1f}" cy="{y + 5}" r="4" fill="{fill}" stroke="{colour}"/>',
        ]
        y += ROW
    parts.append(f'<line x1="{middle}" x2="{middle}" y1="20" y2="{y}" stroke="black"/>')
    for value in (-most, 0, most):
        at = middle + scale * value
        parts.append(f'<text x="{at:.1f}" y="14" text-anchor="middle">{100 * value:+.0f}</text>')
    y += SPACE
    parts.append(
        f'<text x="4" y="{y - 8}">points gained; dashed: the answer\'s form stated, without '
        "training; hollow: nothing was changed; blue: holds among all comparisons</text>"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {RIGHT + 20} {y + 10}"'
    head += ' font-family="sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>\n"])

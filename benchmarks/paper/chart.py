"""Differences with their intervals, as SVG."""

from __future__ import annotations

from html import escape

from benchmarks.paper.statistics import Interval

LEFT, RIGHT, ROW, SPACE = 300, 700, 18, 26


def chart(rows: list[tuple[str, str, Interval]]) -> str:
    """A line for each (task, method, gain): a dot at the mean, a bar over the interval."""
    most = max([0.1, *(abs(bound) for _, _, i in rows for bound in (i.low, i.high))])
    middle, scale = (LEFT + RIGHT) / 2, (RIGHT - LEFT) / 2 / most
    parts, y, last = [], 16, ""
    for task, method, found in rows:
        if task != last:
            last = task
            y += SPACE
            parts.append(f'<text x="4" y="{y - 8}" font-weight="bold">{escape(task)}</text>')
        low, high, mean = (middle + scale * v for v in (found.low, found.high, found.mean))
        colour = "#2a6f97" if found.excludes_zero() else "#999999"
        parts += [
            f'<text x="{LEFT - 8}" y="{y + 9}" text-anchor="end">{escape(method)}</text>',
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y + 5}" y2="{y + 5}" '
            f'stroke="{colour}" stroke-width="3"/>',
            f'<circle cx="{mean:.1f}" cy="{y + 5}" r="4" fill="{colour}"/>',
        ]
        y += ROW
    parts.append(f'<line x1="{middle}" x2="{middle}" y1="20" y2="{y}" stroke="black"/>')
    for value in (-most, 0, most):
        at = middle + scale * value
        parts.append(f'<text x="{at:.1f}" y="14" text-anchor="middle">{100 * value:+.0f}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {RIGHT + 20} {y + 10}"'
    head += ' font-family="sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>\n"])

"""A bar chart as SVG."""

from __future__ import annotations

from typing import Any

COLOURS = {"ours": "#2a6f97", "litellm": "#89c2d9", "textgrad": "#e07a5f", "dspy": "#f2cc8f"}
NAMES = {"ours": "textautograd", "litellm": "… via litellm", "textgrad": "TextGrad", "dspy": "DSPy"}
WIDTH, BAR, LEFT = 720, 18, 210


def chart(lines: list[dict[str, Any]]) -> str:
    """Seconds as bars, one for each case and system; the critical path as a dark part."""
    shown = [line for line in lines if "ideal" in line and line["system"] in COLOURS]
    longest = max((line["seconds"][0] for line in shown), default=1.0)
    scale = (WIDTH - LEFT - 130) / longest
    parts, y, case = [], 10, ""
    for line in shown:
        if line["case"] != case:
            case = line["case"]
            y += 10
            parts.append(f'<text x="4" y="{y + 13}" font-weight="bold">{case}</text>')
        seconds, system = line["seconds"][0], line["system"]
        label = f"{seconds:.2f} s, {line['x_ideal'][0]:.2f} x path"
        width, path = seconds * scale, min(seconds, line["ideal"]) * scale
        parts += [
            f'<text x="{LEFT - 6}" y="{y + 13}" text-anchor="end">{NAMES[system]}</text>',
            _bar(y, width, COLOURS[system]),
            f'<rect x="{LEFT}" y="{y}" width="{path:.1f}" height="{BAR - 3}" fill-opacity=".35"/>',
            f'<text x="{LEFT + width + 6:.1f}" y="{y + 13}">{label}</text>',
        ]
        y += BAR
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 10}"'
    head += ' font-family="sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>\n"])


def _bar(y: int, width: float, colour: str) -> str:
    return f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR - 3}" fill="{colour}"/>'

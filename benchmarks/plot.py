"""The picture of a run: requests a second of each server, median and spread, as an SVG that needs no library.

It is read in a page that is light or dark, so its colours follow the reader's scheme.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.report import TITLES, Figures
from benchmarks.servers import PRESAGE
from benchmarks.session import CONNECTIONS

_WIDTH, _LEFT, _RIGHT, _TOP, _ROW, _BAR = 820, 190, 210, 62, 34, 20
_STYLE = """
  text { font: 14px system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; fill: #1f2328; }
  .title { font-size: 16px; font-weight: 600; }
  .quiet { fill: #59636e; font-size: 12.5px; }
  .number { font-variant-numeric: tabular-nums; }
  .ours { fill: #0969da; } .peer { fill: #8c959f; } .bound { fill: #d1d9e0; }
  .spread { stroke: #1f2328; stroke-width: 1.5; } .axis { stroke: #d1d9e0; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; } .quiet { fill: #9198a1; }
    .ours { fill: #4493f8; } .peer { fill: #656c76; } .bound { fill: #3d444d; }
    .spread { stroke: #f0f6fc; } .axis { stroke: #3d444d; }
  }"""


def plot(records: Sequence[Mapping[str, Any]]) -> str:
    """The SVG; servers from the fastest to the slowest, and the echo, which predicts nothing, at the end."""
    figures = Figures(records)
    rates = {name: figures.of("single", name, "rate") for name in figures.servers("single")}
    order = sorted(rates, key=lambda name: (name == "echo", -statistics.median(rates[name])))
    # An echo predicts nothing: where it would make the others unreadably short, its bar is cut, and says so.
    longest = max((max(rates[name]) for name in order if name != "echo"), default=1.0)
    scale = (_WIDTH - _LEFT - _RIGHT) / (longest * 1.05)
    height = _TOP + _ROW * len(order) + 34
    rows = [_row(name, rates[name], _TOP + _ROW * i, scale, longest * 1.05) for i, name in enumerate(order)]
    run = records[0]
    foot = f"Median over the rounds ({run['rounds']}), with the least and the most. {run['cpu']}, {run['date']}."
    return "\n".join(
        [
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" '
                f'height="{height}" role="img" aria-labelledby="title">'
            ),
            f'<title id="title">{escape(_summary(order, rates))}</title>',
            f"<style>{_STYLE}\n</style>",
            f'<text class="title" x="16" y="26">Predictions a second, one core, {CONNECTIONS} connections</text>',
            (
                '<text class="quiet" x="16" y="46">One text a request, the same scikit-learn pipeline; Presage with '
                "authentication, limits, log and metrics on</text>"
            ),
            *rows,
            f'<line class="axis" x1="{_LEFT}" x2="{_LEFT}" y1="{_TOP - 2}" y2="{height - 32}"/>',
            f'<text class="quiet" x="16" y="{height - 12}">{escape(foot)}</text>',
            "</svg>\n",
        ]
    )


def _row(name: str, values: Sequence[float], top: float, scale: float, most: float) -> str:
    median = statistics.median(values)
    length = min(median, most) * scale
    kind = "ours" if name == PRESAGE else "bound" if name == "echo" else "peer"
    middle = top + _ROW / 2
    weight = ' font-weight="600"' if name == PRESAGE else ""
    parts = [
        f'<text x="{_LEFT - 10}" y="{middle + 5}" text-anchor="end"{weight}>{escape(TITLES[name])}</text>',
        f'<rect class="{kind}" x="{_LEFT}" y="{middle - _BAR / 2}" width="{length:.1f}" height="{_BAR}" rx="2"/>',
    ]
    end = length
    if median <= most:
        least, highest = (_LEFT + min(value, most) * scale for value in (min(values), max(values)))
        parts.append(f'<line class="spread" x1="{least:.1f}" x2="{highest:.1f}" y1="{middle}" y2="{middle}"/>')
        parts += [
            f'<line class="spread" x1="{x:.1f}" x2="{x:.1f}" y1="{middle - 4}" y2="{middle + 4}"/>'
            for x in (least, highest)
        ]
        end = max(length, highest - _LEFT)
    cut = "… " if median > most else ""
    label = f"{cut}{median:,.0f}{'  (predicts nothing)' if name == 'echo' else ''}"
    parts.append(f'<text class="number" x="{_LEFT + end + 8:.1f}" y="{middle + 5}">{label}</text>')
    return "\n".join(parts)


def _summary(order: Sequence[str], rates: Mapping[str, Sequence[float]]) -> str:
    return "Predictions a second: " + ", ".join(
        f"{TITLES[name]} {statistics.median(rates[name]):,.0f}" for name in order
    )

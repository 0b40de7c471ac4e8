"""Figures for the book's pages: `from figures import figure, show, publish, say`.

A page's kernel runs in the folder of the page, so a plain import finds this file. In a cell:

    fig, ax = figure()                        # a small canvas in the book's style
    ax.plot(lags, gradient, label="RNN")
    ax.set(xlabel="lag (characters)", ylabel="gradient norm", yscale="log")
    label_lines(ax)                           # names at the ends of the lines, no legend
    show(
        fig,
        title="The RNN forgets after about 20 characters",     # the finding, not the topic
        alt="The gradient norm falls by half every three characters of lag.",
        table={"lag": lags, "gradient norm": gradient},         # columns (or a data frame)
    )

`show` writes one SVG into the page. It is transparent and its text and axes take the page's text
color. The six colors of the style (`BLUE`, `VERMILLION`, `GREEN`, `PURPLE`, `ORANGE`, `SKY`, after
Okabe and Ito) become CSS variables, so the same figure reads in light mode, in dark mode and in
print. Keep the default size: 4.2 inches is what stays readable on a phone 360 pixels wide. The
table is folded beneath the figure; numbers in it are shown with four significant digits.

`publish` hands numbers from the page to an explorer's script, and `say` hands one to the prose,
where `` {glue:text}`name` `` shows it, so that text and output cannot disagree.
"""

from __future__ import annotations

import hashlib
import html
import io
import json
import numbers
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from IPython.display import HTML, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from myst_nb import glue

BLUE, VERMILLION, GREEN = "#0072b2", "#d55e00", "#009e73"
PURPLE, ORANGE, SKY = "#cc79a7", "#e69f00", "#56b4e9"
INK, GRID = "#101010", "#c8c8c8"  # the style file's text and grid, replaced in the SVG
CSS_COLORS = {
    BLUE: "var(--figure-blue, #0072b2)",
    VERMILLION: "var(--figure-vermillion, #d55e00)",
    GREEN: "var(--figure-green, #009e73)",
    PURPLE: "var(--figure-purple, #cc79a7)",
    ORANGE: "var(--figure-orange, #e69f00)",
    SKY: "var(--figure-sky, #56b4e9)",
    GRID: "var(--figure-grid, #c8c8c8)",
    INK: "currentColor",
}

plt.style.use(str(Path(__file__).parent / "_static" / "course.mplstyle"))


def figure(height: float = 2.7, **options: Any) -> tuple[Figure, Any]:
    """`plt.subplots` at the book's width (4.2 inches); `height` in inches, options passed on."""
    return plt.subplots(figsize=(4.2, height), layout="constrained", **options)


def label_lines(ax: Axes, pad: float = 4.0) -> None:
    """Write each labeled line's name beside its last point, `pad` points to the right.

    Names that would overlap are pushed apart, and the layout makes room for them. Call it last,
    when data, limits and scales are set.
    """
    ax.autoscale_view()  # places are read off the axes, which are otherwise scaled when drawn
    lines = [line for line in ax.get_lines() if not str(line.get_label()).startswith("_")]
    height = ax.get_window_extent().height
    spacing = 13.0 * ax.figure.dpi / 72 / max(height, 1.0)  # a text line, in axes units
    ends = []
    for line in lines:
        x, y = float(line.get_xdata()[-1]), float(line.get_ydata()[-1])  # type: ignore[index]
        ends.append((ax.transAxes.inverted().transform(ax.transData.transform((x, y))), line))
    floor = -1e9
    for (x, y), line in sorted(ends, key=lambda end: end[0][1]):
        y = max(y, floor + spacing)
        floor = y
        ax.annotate(
            str(line.get_label()),
            (x, y),
            xycoords="axes fraction",
            xytext=(pad, 0),
            textcoords="offset points",
            va="center",
            color=line.get_color(),
            annotation_clip=False,
        )


def show(
    fig: Figure,
    *,
    title: str,
    alt: str,
    table: Mapping[str, Iterable[Any]] | None = None,
    caption: str = "",
) -> None:
    """Display `fig` as inline SVG with its title, alt text, caption and folded data table.

    Raises ValueError when the title or the alt text is empty: a figure without them is unfinished.
    """
    if not title.strip() or not alt.strip():
        raise ValueError("a figure needs a title (its finding) and an alt text")
    parts = [
        f'<div class="figure-title">{html.escape(title)}</div>',
        svg(fig, alt),
        f"<figcaption>{html.escape(caption)}</figcaption>" if caption else "",
        _details(table) if table is not None else "",
    ]
    plt.close(fig)
    display(HTML('<figure class="course-figure">' + "".join(parts) + "</figure>"))


def svg(fig: Figure, alt: str) -> str:
    """`fig` as an SVG element that follows the page's colors, with ids of its own."""
    buffer = io.StringIO()
    # Text stays text: it is small, searchable, and takes the page's font.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "rnn2gpt"}):
        fig.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    code = buffer.getvalue()
    code = code[code.index("<svg") :]
    code = re.sub(r"<metadata>.*?</metadata>", "", code, flags=re.S)
    code = re.sub(r"<!--.*?-->", "", code, flags=re.S)
    for color, css in CSS_COLORS.items():
        code = code.replace(color, css)
    prefix = "f" + hashlib.sha256((alt + code).encode()).hexdigest()[:8]
    code = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', code)
    code = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', code)
    code = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", code)
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', code).groups()  # type: ignore[union-attr]
    code = re.sub(
        r"<svg[^>]*>",
        f'<svg class="course-svg" xmlns="http://www.w3.org/2000/svg" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{html.escape(alt, quote=True)}">',
        code,
        count=1,
    )
    return re.sub(r"\n\s*", "\n", code)


def _details(table: Mapping[str, Iterable[Any]]) -> str:
    columns = {name: list(values) for name, values in dict(table).items()}
    head = "".join(f'<th scope="col">{html.escape(str(name))}</th>' for name in columns)
    rows = zip(*columns.values(), strict=True)
    body = "".join("<tr>" + "".join(f"<td>{_cell(v)}</td>" for v in row) + "</tr>" for row in rows)
    return (
        '<details class="figure-data"><summary>Data</summary><div><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></details>"
    )


def _cell(value: Any) -> str:
    number = isinstance(value, numbers.Real) or (getattr(value, "ndim", None) == 0)
    if number and not isinstance(value, bool | numbers.Integral):
        value = float(value)
        return "–" if value != value else f"{value:.4g}"
    return html.escape(str(value))


def publish(name: str, data: Any) -> None:
    """Write `data` (anything JSON can hold) into the page for the explorer called `name`."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    display(HTML(f'<script type="application/json" id="data-{name}">{text}</script>'))


def say(name: str, value: object) -> None:
    """Give the prose the text `value` under `name`: `` {glue:text}`name` `` shows it.

    Format numbers here, as they should read: `say("loss", f"{loss:.2f}")`.
    """
    glue(name, str(value), display=False)

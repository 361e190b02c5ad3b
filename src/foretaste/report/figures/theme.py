"""Light and dark themes of the charts, and charts as files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import vl_convert

from foretaste.record import write_atomic

VEGA_LITE = "6.4"  # the version that altair writes
FORMATS = ("svg", "png", "pdf")
FONT = "Inter, 'Segoe UI', system-ui, -apple-system, 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif"

# Okabe and Ito's palette (jfly.uni-koeln.de/color, 2008) without black and yellow, which vanish on one of the
# two grounds; blue is lightened on the dark one. Then two of Paul Tol's. Shapes tell arms apart as well.
LIGHT_ARMS = ("#0072B2", "#D55E00", "#009E73", "#B5569B", "#3D9BD6", "#B98300", "#5B5EA6", "#7A7F87")
DARK_ARMS = ("#4DA3E0", "#F0803C", "#2FBF94", "#DA8BC3", "#8CCBF2", "#E6B23C", "#9A9CE0", "#A9AFB8")


def theme(*, dark: bool = False, ground: str | None = None) -> dict[str, Any]:
    """The Vega-Lite `config` of all charts.

    Args:
        dark: For a dark page.
        ground: Background colour; transparent by default.
    """
    ink, soft, line = ("#E8EAED", "#A4ABB6", "#2F353E") if dark else ("#1B1F24", "#5F6772", "#E4E7EB")
    axis = {
        "labelColor": soft,
        "titleColor": soft,
        "gridColor": line,
        "domainColor": line,
        "tickColor": line,
        "labelFontSize": 11,
        "titleFontSize": 11.5,
        "titleFontWeight": 500,
        "titlePadding": 10,
        "labelPadding": 5,
    }
    return {
        "font": FONT,
        "background": ground or "transparent",
        "view": {"stroke": None},
        "axis": axis,
        "axisX": {"grid": False},
        "axisY": {"domain": False, "ticks": False},
        "header": {
            "labelColor": ink,
            "labelFontSize": 13,
            "labelFontWeight": 600,
            "labelAnchor": "start",
            "labelPadding": 10,
        },
        "legend": {
            "labelColor": ink,
            "labelFontSize": 12,
            "labelLimit": 180,
            "symbolSize": 80,
            "columnPadding": 16,
            "offset": 14,
            "layout": {"top": {"anchor": "start", "direction": "vertical", "margin": 6}},
        },
        "facet": {"spacing": {"row": 36, "column": 56}},
        "range": {"category": list(DARK_ARMS if dark else LIGHT_ARMS)},
        "style": {
            "reference": {"color": soft, "stroke": soft, "strokeDash": [4, 3], "strokeWidth": 1.1},
            "collapsed": {"stroke": "#1A1E24" if dark else "#FFFFFF", "strokeWidth": 1.2},
            "heading": {"color": ink, "fill": ink, "fontSize": 13, "fontWeight": 600},
            "remark": {"color": soft, "fill": soft, "fontSize": 11},
            "placeholder": {"color": soft, "fill": soft, "fontSize": 13, "lineHeight": 20},
        },
    }


def save(spec: dict[str, Any], stem: Path) -> list[Path]:
    """Write a chart as SVG, PNG and PDF, on white.

    Args:
        spec: Vega-Lite specification without theme.
        stem: Path without ending.
    """
    themed = {**spec, "config": theme(ground="white")}
    svg = _numbered(vl_convert.vegalite_to_svg(themed, vl_version=VEGA_LITE))
    # PNG and PDF are made from the SVG, so that a large figure is laid out once.
    contents: dict[str, str | bytes] = {
        "svg": svg,
        "png": vl_convert.svg_to_png(svg, scale=2),
        "pdf": vl_convert.svg_to_pdf(svg),
    }
    paths = []
    for ending in FORMATS:
        path = stem.with_suffix(f".{ending}")
        write_atomic(path, contents[ending])
        paths.append(path)
    return paths


def _numbered(svg: str) -> str:
    """The drawing with its clips and gradients numbered from 0: vega goes on counting from chart to chart."""
    found: dict[str, str] = {}

    def number(match: re.Match[str]) -> str:
        kind, old = match[2], match[3]
        return match[1] + kind + found.setdefault(kind + old, str(len(found)))

    return re.sub(r'(\bid="|url\(#)(clip|gradient_)(\d+)', number, svg)

"""`scripts/bench charts`: pictures of what was measured, for documents.

What is drawn comes from files that `--json` has made, and from nowhere else. The same results make
the same bytes. A page shows an SVG as an image: without scripts, and light or dark as the reader's
browser is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

import pygal
from pygal.style import Style

from bench.compute import NATIVE_C, own
from bench.lab import WASM
from bench.spread import Compared, Spread

_OURS: Final = "#2f74d0"
_OTHERS: Final = "#8d8d8d"
_ENGINES: Final = {  # in colors that can be told apart on light and dark
    NATIVE_C: _OTHERS,
    "wasmer": _OURS,
    "wasmtime": "#c2762b",
    own("wasmer"): "#6d8fc0",
    own("wasmtime"): "#b58a5f",
}
_WIDTH: Final = 760
_BAR: Final = 26  # pixels, with what is between two
_AROUND: Final = 120  # pixels: title, axis, what is below
_LEGEND: Final = 30

_CSS: Final = """inline:
{id} .plot_title {{ font-size: 16px; font-weight: bold }}
@media (prefers-color-scheme: dark) {{
  {id} .title, {id} .axis text, {id} .axis text.major {{ fill: #e6e6e6 }}
  {id} .legends .legend text {{ fill: #e6e6e6 }}
  {id} .axis .line, {id} .axis .guide.line, {id} .axis .major.line, {id} .ci {{ stroke: #b0b0b0 }}
}}
"""

_LOOK: Final[dict[str, Any]] = {
    "background": "transparent",
    "plot_background": "transparent",
    "foreground": "#333333",
    "foreground_strong": "#111111",
    "foreground_subtle": "#777777",
    "guide_stroke_color": "#999999",
    "major_guide_stroke_color": "#999999",
    "font_family": "sans-serif",
    "title_font_size": 13,
    "label_font_size": 13,
    "major_label_font_size": 13,
    "legend_font_size": 13,
    "value_font_size": 12,
    "opacity": "1",
    "transition": "none",
}


def draw_all(results: Sequence[Path], directory: Path) -> None:
    """Draw what is in these files; of two that have measured the same the last one counts.

    Raises:
        SystemExit: there is nothing in them that there is a chart of.

    """
    documents: dict[str, Mapping[str, Any]] = {}
    for path in results:
        document = json.loads(path.read_text())
        documents |= dict.fromkeys(document, document)
    drawn = [(name, draw) for name, draw in _CHARTS.items() if name in documents]
    if not drawn:
        sys.exit(
            f"bench: there are charts of {', '.join(_CHARTS)}, and nothing of these was measured"
        )
    directory.mkdir(parents=True, exist_ok=True)
    for name, draw in drawn:
        path = directory / f"{name}.svg"
        path.write_bytes(draw(documents[name][name], _machine(documents[name])))
        print(path)


def _starts(starts: Mapping[str, Any], machine: str) -> bytes:
    title = "ctr run --rm of a hello, from start to end: ms, less is better"
    return _simple(title, starts["seconds"], machine)


def _throughput(throughput: Mapping[str, Any], machine: str) -> bytes:
    title = (
        f"ctr run --rm of a hello, {throughput['at_once']} at a time: per second, more is better"
    )
    return _simple(title, throughput["rate"], machine)


def _lives(lives: Mapping[str, Any], machine: str) -> bytes:
    title = (
        f"Lives by the shim's protocol, {lives['at_once']} at a time: per second, more is better"
    )
    return _simple(title, lives["rate"], machine)


def _memory(memory: Mapping[str, Any], machine: str) -> bytes:
    rows = [
        (title, name, measure)
        for measure, name in (("pss", "PSS"), ("private", "private dirty"))
        for title in memory[measure]["pod"]["spread"]
    ]
    rows.reverse()  # the last one is drawn on top
    chart = _chart(
        pygal.HorizontalStackedBar,
        "An idle pod: MiB, less is better",
        f"medians of {memory['pods']}; {machine}",
        bars=len(rows),
        colors=[_OTHERS, _OURS],
    )
    chart.x_labels = [f"{title}, {name}" for title, name, _ in rows]
    for part in ("shim", "container"):
        medians = (memory[measure][part]["spread"][title]["p50"] for title, _, measure in rows)
        chart.add(part, [kib / 1024 for kib in medians], formatter=_mib)
    return _render(chart)


def _mib(value: float) -> str:
    return f"{value:.1f}" if value >= 0.1 else ""  # a bar that is too short to write on


def _compute(compute: Mapping[str, Any], machine: str) -> bytes:
    kernels: dict[str, Compared] = compute["kernels"]
    names = list(reversed(kernels))
    titles = list(kernels[names[0]]["spread"])
    versions = ", ".join(f"{name} {version}" for name, version in compute["versions"].items())
    speeds: dict[str, list[dict[str, Any]]] = {title: [] for title in titles}
    for name in names:
        spreads = kernels[name]["spread"]
        native = spreads[NATIVE_C]["p50"]
        for title in titles:
            row = spreads[title]
            quartiles = {"low": native / row["p75"], "high": native / row["p25"]}
            speeds[title].append({"value": native / row["p50"], "ci": quartiles})
    chart = _chart(
        pygal.HorizontalBar,
        "Speed of computing, relative to native C: more is better",
        f"medians and quartiles of {compute['rounds']} ({versions}); {machine}",
        bars=len(names) * len(titles) * 0.7,
        colors=[_ENGINES[title] for title in titles],
        largest=max(bar["ci"]["high"] for bars in speeds.values() for bar in bars),
    )
    chart.x_labels = names
    for title, bars in speeds.items():
        chart.add(title, bars, formatter=lambda speed: f"{speed:.2f}")
    return _render(chart)


def _simple(title: str, compared: Compared, machine: str) -> bytes:
    """Draw a bar for each, ours in a color of its own."""
    spreads: dict[str, Spread] = compared["spread"]
    names = list(reversed(spreads))
    chart = _chart(
        pygal.HorizontalBar,
        title,
        f"medians and quartiles of {spreads[names[0]]['samples']}; {machine}",
        bars=len(names),
        colors=[_OTHERS],
        largest=max(row["p75"] for row in spreads.values()),
        legend=False,
    )
    chart.x_labels = names
    bars = [
        {
            "value": spreads[name]["p50"],
            "ci": {"low": spreads[name]["p25"], "high": spreads[name]["p75"]},
            "color": _OURS if name == WASM.title else _OTHERS,
        }
        for name in names
    ]
    chart.add(compared["unit"], bars, formatter=lambda value: f"{value:.1f}")
    return _render(chart)


_CHARTS: Final[Mapping[str, Callable[[Mapping[str, Any], str], bytes]]] = {
    "starts": _starts,
    "throughput": _throughput,
    "lives": _lives,
    "memory": _memory,
    "compute": _compute,
}


def _machine(document: Mapping[str, Any]) -> str:
    machine, load = document["machine"], document["load"]
    return (
        f"{machine['cpus']} CPUs ({machine['architecture']}), Linux {machine['kernel']}, "
        f"CPython {machine['python']}, {load['others']:.0%} used by others"
    )


def _chart(
    kind: type[Any],
    title: str,
    below: str,
    *,
    bars: float,
    colors: Sequence[str],
    largest: float | None = None,
    legend: bool = True,
) -> Any:
    """Return an empty chart for series in these colors, with room for `largest` on its axis."""
    chart = kind(
        title=title,
        x_title=below,
        width=_WIDTH,
        height=int(_AROUND + _BAR * bars + (_LEGEND if legend else 0)),
        style=Style(**_LOOK, colors=colors, value_colors=["white"] * len(colors)),
        css=["file://style.css", "file://graph.css", _CSS.format(id="#chart-bench")],
        js=[],
        print_values=True,
        range=largest and (0, largest),
        show_legend=legend,
        legend_at_bottom=True,
        legend_box_size=10,
        margin=10,
        zero=0,
        include_x_axis=True,
        truncate_label=-1,
        truncate_legend=-1,
    )
    chart.uuid = "bench"  # a random one else
    return chart


def _render(chart: Any) -> bytes:
    chart.add_xml_filter(_only_the_picture)
    return bytes(chart.render())


def _only_the_picture(root: ElementTree.Element) -> ElementTree.Element:
    """Drop what is of today (a comment), or for a script: it, and the texts of tooltips."""
    for parent in list(root.iter()):
        for child in list(parent):
            tag = child.tag if isinstance(child.tag, str) else "comment"
            if tag.rpartition("}")[2] in ("comment", "script", "desc"):
                parent.remove(child)
    return root

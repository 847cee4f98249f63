"""The rows of results.json as SVG.

Run by itself: python3 -m ilet_bench.plots RESULTS.json DIRECTORY. What to draw is found without matplotlib;
only drawing needs it.
"""

import json
import sys
from pathlib import Path

from .figures import FIGURES
from .scenarios import SCENARIOS


def series(rows, scenario, metric, along, **fixed):
    """{peer: [(parameter, median, min, max), ...]} of a figure, along one parameter, with the others fixed."""
    found = {}
    for row in rows:
        if row["scenario"] == scenario and row["metric"] == metric and row["median"] is not None:
            if all(row["parameters"].get(name) == value for name, value in fixed.items()):
                point = (row["parameters"][along], row["median"], row["min"], row["max"])
                found.setdefault(row["peer"], []).append(point)
    return {peer: sorted(points) for peer, points in found.items()}


def throughput_panels(rows):
    """[(title, figure, series)] by connections: each combination of a scenario's other parameters is a panel."""
    panels = []
    for scenario, metric in (
        ("udp-echo", "requests_per_second"), ("tcp-echo", "requests_per_second"),
        ("http-keepalive", "requests_per_second"), ("download", "bytes_per_second"),
    ):
        others = [axis for axis in SCENARIOS[scenario].axes if axis != "connections"]
        combinations = dict.fromkeys(
            tuple(row["parameters"][axis] for axis in others) for row in rows if row["scenario"] == scenario
        )
        for combination in combinations:
            fixed = dict(zip(others, combination))
            lines = series(rows, scenario, metric, "connections", **fixed)
            if any(len(points) > 1 for points in lines.values()):
                panels.append((title(scenario, fixed), FIGURES[metric], lines))
    return panels


def title(scenario, parameters):
    """A panel's title."""
    words = {
        "size": "{:,} B", "client": "{}", "mtu": "MTU {}", "offloads": "offloads {}", "connections": "{:,} connections",
    }
    return ", ".join([scenario, *(words[name].format(value) for name, value in parameters.items() if name in words)])


def latency_panels(cdfs):
    """[(title, {peer: points})]: the cells worth a look, those of which there is a distribution."""
    wanted = (
        ("tcp-echo", {"connections": 1}), ("tcp-echo", {"connections": 64}), ("tcp-echo", {"connections": 1_000}),
        ("http-keepalive", {"client": "ilet-load", "size": 128, "connections": 64}),
    )
    panels = []
    for scenario, parameters in wanted:
        lines = {
            cdf["peer"]: cdf["points"] for cdf in cdfs
            if cdf["scenario"] == scenario and parameters.items() <= cdf["parameters"].items()
        }
        if lines:
            panels.append((title(scenario, parameters), lines))
    return panels


def idle_panels(rows):
    """[(figure, series)] by idle connections."""
    panels = [
        (FIGURES[metric], series(rows, "idle-scale", metric, "idle"))
        for metric in ("server_cpu_us_per_request", "memory_bytes_per_connection")
    ]
    return [(figure, lines) for figure, lines in panels if any(len(points) > 1 for points in lines.values())]


def draw(document, directory):
    """Draws what there are rows for. Returns the files' names."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "interruptlet"
    rows = document["rows"]
    names = dict.fromkeys(peer for scenario in SCENARIOS.values() for peer in scenario.peers)
    colours = {name: f"C{i % 10}" for i, name in enumerate(names)}
    drawn = []

    panels = throughput_panels(rows)
    if panels:
        figure, axes = _grid(len(panels))
        for axis, (heading, kind, lines) in zip(axes, panels):
            _curves(axis, lines, kind, colours, "connections or datagrams in flight")
            axis.set_title(heading, fontsize=9)
        drawn.append(_save(figure, directory / "throughput.svg"))

    panels = latency_panels(document["latency_cdf"])
    if panels:
        figure, axes = _grid(len(panels))
        for axis, (heading, lines) in zip(axes, panels):
            for peer, points in lines.items():
                axis.step(*zip(*points), where="post", label=peer, color=colours.get(peer))
            axis.set_xscale("log")
            axis.set_ylim(0, 1.01)
            axis.set_xlabel("latency, µs")
            axis.set_ylabel("part of the requests")
            axis.set_title(heading, fontsize=9)
            axis.grid(alpha=0.3)
            axis.legend(fontsize=7)
        drawn.append(_save(figure, directory / "latency.svg"))

    panels = idle_panels(rows)
    if panels:
        figure, axes = _grid(len(panels))
        for axis, (kind, lines) in zip(axes, panels):
            _curves(axis, lines, kind, colours, "idle connections")
            axis.set_xscale("symlog", linthresh=1_000)
        drawn.append(_save(figure, directory / "idle.svg"))
    return drawn


def _grid(count):
    from matplotlib.figure import Figure

    columns = min(count, 3)
    lines = -(-count // columns)
    figure = Figure(figsize=(5 * columns, 3.6 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for axis in axes[count:]:
        axis.remove()
    return figure, axes


def _curves(axis, lines, kind, colours, along):
    for peer, points in lines.items():
        places = [point[0] for point in points]
        medians = [point[1] / kind.scale for point in points]
        spread = [
            [median - point[2] / kind.scale for median, point in zip(medians, points)],
            [point[3] / kind.scale - median for median, point in zip(medians, points)],
        ]
        axis.errorbar(places, medians, yerr=spread, label=peer, color=colours.get(peer), marker="o", markersize=3, capsize=2)
    axis.set_xscale("log")
    axis.set_ylim(bottom=0)
    axis.set_xlabel(along)
    axis.set_ylabel(kind.title)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)


def _save(figure, path):
    figure.savefig(path, metadata={"Date": None})
    return path.name


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as results:
        print(*draw(json.load(results), Path(sys.argv[2])), sep="\n")

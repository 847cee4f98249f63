"""The rows as text: per scenario a table of cells and peers, best placements, notes and offloads."""

from . import figures, peers
from .figures import FIGURES
from .scenarios import SCENARIOS

AXIS_TITLES = {
    "size": "bytes", "connections": "conns", "slow": "B/s each", "protocol": "protocol", "client": "client",
    "idle": "idle", "mtu": "MTU", "offloads": "offloads", "loss": "loss", "reorder": "reorder",
    "flood": "SYNs", "rtt_ms": "RTT ms", "rate_mbit": "Mbit/s",
}


def _axis_title(scenario, axis):
    return "in flight" if axis == "connections" and scenario.name in ("udp-echo", "generator") else AXIS_TITLES[axis]


def scenario_table(name, rows):
    """One scenario's table, from its rows."""
    scenario = SCENARIOS[name]
    by_cell = {}
    for row in rows:
        if row["scenario"] == name:
            key = tuple(row["parameters"].values())
            by_cell.setdefault(key, {}).setdefault(row["peer"], {})[row["metric"]] = row
    if not by_cell:
        return ""
    shown = [
        metric for metric in scenario.columns
        if any(metric in of_peer for cell in by_cell.values() for of_peer in cell.values())
    ]
    ratios = [metric for metric in scenario.ratios if metric in shown]
    head = [_axis_title(scenario, axis) for axis in scenario.axes] + ["server"]
    for position, metric in enumerate(shown):
        head.append(FIGURES[metric].title)
        if position == 0:
            head.append("(min–max)")
    head += [f"× {_short(metric)}" for metric in ratios]
    lines, notes = [head], []
    for cell in by_cell.values():
        subject = cell.get(scenario.peers[0], {})
        for peer, of_peer in cell.items():
            any_row = next(iter(of_peer.values()))
            lines.append(_line(scenario, peer, of_peer, subject, any_row, shown, ratios))
            if any_row["note"]:
                values = " ".join(_axis(axis, any_row["parameters"][axis]) for axis in scenario.axes)
                notes.append(f"{peer} at {values}: {any_row['note']}")
        lines.append(None)
    text = [f"{name}: {scenario.title}", *_aligned(lines, len(scenario.axes) + 1)]
    text += [f"  ! {note}" for note in notes]
    if ratios:
        text.append(f"  × is {scenario.peers[0]}'s figure by the peer's, median of the rounds' ratios; * the better placement")
    return "\n".join(text)


def _line(scenario, peer, of_peer, subject, any_row, shown, ratios):
    cells = [_axis(axis, any_row["parameters"][axis]) for axis in scenario.axes] + [peer]
    for position, metric in enumerate(shown):
        row, figure = of_peer.get(metric), FIGURES[metric]
        if position == 0 and any_row["note"]:
            cells += ["FAILED" if "failed:" in any_row["note"] else "not held", ""]
            continue
        cells.append(figures.show(figure, row and row["median"]))
        if position == 0:
            least, most = (figures.show(figure, row and row[end]) for end in ("min", "max"))
            cells.append(f"({least}–{most})")
    for metric in ratios:
        row = subject.get(metric, {})
        ratio = row.get("ratio_to", {}).get(peer)
        star = "*" if row.get("best_placement", {}).get(peers.program(peer)) == peer else ""
        cells.append("" if ratio is None else f"{ratio:.2f}{star or ' '}")
    return cells


def _axis(axis, value):
    if axis in ("loss", "reorder"):
        return f"{value:.1%}" if value else "–"
    if axis in ("rtt_ms", "rate_mbit"):
        return f"{value:g}" if value else "–"
    return f"{value:,}" if isinstance(value, int) and axis != "mtu" else str(value)


def _short(metric):
    return FIGURES[metric].title.removesuffix(" µs")


def _aligned(lines, left):
    """Pads columns: the first `left` of them to the left but numbers, the rest to the right. None is a gap."""
    widths = [max(len(line[i]) for line in lines if line is not None) for i in range(len(lines[0]))]
    text = []
    for line in lines:
        if line is None:
            text.append("")
            continue
        padded = [
            cell.ljust(width) if i == left - 1 else cell.rjust(width) for i, (cell, width) in enumerate(zip(line, widths))
        ]
        text.append("  " + "  ".join(padded).rstrip())
    while text and text[-1] == "":
        text.pop()
    return text


def offloads_text(name, conditions):
    """The offloads of the pairs for the runs of a scenario, each combination once."""
    seen = {}
    for condition in conditions:
        if condition["scenario"] != name or not condition["offloads"]:
            continue
        ends = "; ".join(
            f"{end} " + " ".join(f"{feature} {value}" for feature, value in features.items())
            for end, features in condition["offloads"].items()
        )
        mtu = condition["parameters"].get("mtu")
        seen.setdefault(ends + (f"; MTU {mtu}" if mtu else ""), []).append(condition["peer"])
    return "\n".join(f"  offloads of {', '.join(dict.fromkeys(who))}: {ends}" for ends, who in seen.items())


def environment(machine, settings):
    """Machine and settings as lines."""
    facts = {**machine, **settings}
    width = max(map(len, facts))
    lines = ["environment"]
    for name, value in facts.items():
        text = ", ".join(f"{key} {one}" for key, one in value.items()) if isinstance(value, dict) else str(value)
        lines.append(f"  {name.replace('_', ' ').ljust(width)}  {text}")
    return "\n".join(lines)

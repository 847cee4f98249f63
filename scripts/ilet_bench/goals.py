"""The speeds that the project promises, checked against the rows of the same run."""

from dataclasses import dataclass, field

from . import figures
from .figures import FIGURES
from .scenarios import SCENARIOS


@dataclass(frozen=True)
class Goal:
    """A figure of a scenario's subject in a cell, at least (or at most) `bound`.

    With a `peer` it is the subject's figure by the peer's (a name as in `ratio_to`), or with `is_difference` less
    the peer's, the median of the rounds. With a `base` it is the figure by that in another cell, of medians.
    """

    text: str
    scenario: str
    parameters: dict
    metric: str
    bound: float
    at_least: bool = True
    peer: str | None = None
    is_difference: bool = False
    # What differs in the other cell.
    base: dict = field(default_factory=dict)

    def value(self, rows):
        """The value, or None if it was not measured."""
        row = self._row(rows, self.parameters)
        if row is None:
            return None
        if self.is_difference:
            other = self._row(rows, self.parameters, self.peer)
            return None if other is None else figures.median(figures.differences(row["rounds"], other["rounds"]))
        if self.peer:
            return row["ratio_to"].get(self.peer)
        if self.base:
            other = self._row(rows, self.parameters | self.base)
            return None if other is None else figures.median(figures.ratios([row["median"]], [other["median"]]))
        return row["median"]

    def holds(self, value):
        return value >= self.bound if self.at_least else value <= self.bound

    def show(self, value):
        """A value as it stands in the list: figures themselves with their unit's scale, ratios as they are."""
        figure = FIGURES[self.metric]
        if self.peer or self.base:
            return f"{value:.2f}"
        return figures.show(figure, value)

    def _row(self, rows, parameters, peer=None):
        peer = peer or SCENARIOS[self.scenario].peers[0]
        for row in rows:
            if (
                row["scenario"] == self.scenario and row["metric"] == self.metric and row["peer"] == peer
                and parameters.items() <= row["parameters"].items()
            ):
                return row
        return None


def _echo(connections):
    return {"connections": connections}


_KEEPALIVE = {"client": "ilet-load", "size": 128, "connections": 64}

GOALS = (
    Goal("generator at 256 in flight, times the minimal sender", "generator", _echo(256), "requests_per_second", 0.9,
         peer="ilet-send"),
    Goal("generator's processor time per TCP request, times the server's", "generator-cost", {},
         "generator_to_server_cpu", 1.0, False),
    *(
        Goal(f"tcp-echo at {connections} connections, times {title}", "tcp-echo", _echo(connections),
             "requests_per_second", bound, peer=peer)
        for peer, title, bound in (
            ("ilet-reflect", "the reflector with as many in flight", 0.85),
            ("kernel-echo/best", "kernel-echo's best placement", 1.8),
        )
        for connections in (64, 256)
    ),
    Goal("tcp-echo median latency of one connection, less the reflector's, in µs", "tcp-echo", _echo(1),
         "latency_p50_us", 1.0, False, peer="ilet-reflect", is_difference=True),
    Goal("tcp-echo median latency of one connection, by the kernel's best", "tcp-echo", _echo(1), "latency_p50_us",
         1 / 3, False, peer="kernel-echo/best"),
    Goal("http-keepalive 128 B at 64 connections, times the reflector with as many in flight", "http-keepalive",
         _KEEPALIVE, "requests_per_second", 0.8, peer="ilet-reflect"),
    Goal("http-keepalive 128 B at 64 connections, times nginx's best placement", "http-keepalive", _KEEPALIVE,
         "requests_per_second", 3.0, peer="nginx/best"),
    Goal("http-connection, times nginx's best placement", "http-connection", {}, "requests_per_second", 3.0,
         peer="nginx/best"),
    *(
        goal for connections in (64, 1_000) for goal in (
            Goal(f"in-memory tcp-echo with {connections:,} connections, ns per request", "in-memory",
                 {"client": "ilet-memory", "connections": connections}, "ns_per_request", 90, False),
            Goal(f"in-memory tcp-echo with {connections:,} connections, instructions by those of engines", "in-memory",
                 {"client": "callgrind", "connections": connections}, "instructions_per_request", 1 / 3, False,
                 peer="ilet-engine"),
        )
    ),
    Goal("memory of 500,000 idle connections, bytes each", "idle-scale", {"idle": 500_000},
         "memory_bytes_per_connection", 300, False),
    Goal("processor time per request with 500,000 idle connections, times that with none", "idle-scale",
         {"idle": 500_000}, "server_cpu_us_per_request", 1.25, False, base={"idle": 0}),
    Goal("flood of 1,000,000 SYNs: throughput of 64 connections, times that before", "flood", {"flood": 1_000_000},
         "flooded_to_quiet", 0.5),
    Goal("flood of 1,000,000 SYNs: growth of the server's memory, KiB", "flood", {"flood": 1_000_000},
         "resident_growth_bytes", 1 << 20, False),
    Goal("flood of 1,000,000 SYNs: part of the new connections that got in", "flood", {"flood": 1_000_000},
         "opened_share", 0.95),
    Goal("tcp-echo with 1 % loss, times engines", "lossy", {"protocol": "tcp-echo", "loss": 0.01},
         "requests_per_second", 1.0, peer="ilet-engine"),
    Goal("downloads with 1 % loss, times engines", "lossy", {"protocol": "http-download", "loss": 0.01},
         "bytes_per_second", 1.0, peer="ilet-engine"),
    Goal("tcp-echo with 1 % loss, times kernel-echo's best placement", "lossy", {"protocol": "tcp-echo", "loss": 0.01},
         "requests_per_second", 1.5, peer="kernel-echo/best"),
    *(
        goal for loss, bound in ((0.01, 0.9), (0.05, 0.7)) for goal in (
            Goal(f"downloads of 1 MB with {loss:.0%} loss, times nginx's best placement", "lossy",
                 {"protocol": "http-download", "loss": loss}, "bytes_per_second", bound, peer="nginx/best"),
            Goal(f"downloads of 1 MB with {loss:.0%} loss to kernel clients, times nginx", "impaired",
                 {"size": 1_000_000, "loss": loss}, "bytes_per_second", bound, peer="nginx"),
        )
    ),
    *(
        Goal(f"downloads of 10 MB over {title} to kernel clients, times nginx", "impaired", path, "bytes_per_second", 0.95,
             peer="nginx")
        for path, title in (
            ({"rtt_ms": 20, "loss": 0.01}, "20 ms with 1 % loss"),
            ({"rtt_ms": 20, "rate_mbit": 200}, "200 Mbit/s and 20 ms"),
        )
    ),
    Goal("one upload of 100 MB, times kernel-sink's best placement", "upload",
         {"client": "kernel-upload", "offloads": "off"}, "bytes_per_second", 0.9, peer="kernel-sink/best"),
    *(
        Goal(f"1,000 connections asking {client} for {size:,} B at once: requests that failed", "burst",
             {"client": client, "size": size}, "failed_requests", 0, False)
        for client in ("wrk", "ilet-load") for size in (10_240, 102_400)
    ),
)


def verdicts(rows):
    """(goal, value or None if it was not measured, whether it holds) of each goal."""
    found = []
    for goal in GOALS:
        value = goal.value(rows)
        found.append((goal, value, None if value is None else goal.holds(value)))
    return found


def text(rows):
    """The goals that were measured, as lines; empty if there is none."""
    lines = []
    for goal, value, holds in verdicts(rows):
        if value is not None:
            bound = f"{'at least' if goal.at_least else 'at most'} {goal.show(goal.bound)}"
            lines.append(f"  {'✓' if holds else '✗'} {goal.show(value):>6}  {bound:<14}  {goal.text}")
    return "\n".join(["goals", *lines]) if lines else ""

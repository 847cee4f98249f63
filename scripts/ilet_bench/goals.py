"""The speeds that the project promises, checked against the rows of the same run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """`ratio_to` a peer of a figure in a cell, at least (or at most) `bound`."""

    text: str
    scenario: str
    parameters: dict
    metric: str
    # Which of the subject's ratios; None for the figure itself.
    peer: str | None
    bound: float
    at_least: bool = True


GOALS = (
    Goal("generator at 256 in flight, times the minimal sender", "generator", {"connections": 256},
         "requests_per_second", "ilet-send", 0.9),
    Goal("generator's processor time per TCP request, times the server's", "generator-cost", {},
         "generator_to_server_cpu", None, 1.0, False),
    Goal("tcp-echo at 64 connections, times kernel-echo's best placement", "tcp-echo", {"connections": 64},
         "requests_per_second", "kernel-echo/best", 1.5),
    Goal("http-keepalive 128 B at 64 connections, times nginx's best placement", "http-keepalive",
         {"client": "ilet-load", "size": 128, "connections": 64}, "requests_per_second", "nginx/best", 2.5),
    Goal("tcp-echo median latency of one connection, by the kernel's best", "tcp-echo", {"connections": 1},
         "latency_p50_us", "kernel-echo/best", 1 / 3, False),
)


def verdicts(rows):
    """(goal, value or None if it was not measured, whether it holds) of each goal."""
    found = []
    for goal in GOALS:
        value = _value(goal, rows)
        holds = None if value is None else (value >= goal.bound if goal.at_least else value <= goal.bound)
        found.append((goal, value, holds))
    return found


def _value(goal, rows):
    for row in rows:
        if (
            row["scenario"] == goal.scenario and row["metric"] == goal.metric
            and goal.parameters.items() <= row["parameters"].items()
        ):
            if goal.peer is None:
                return row["median"]
            if goal.peer in row["ratio_to"]:
                return row["ratio_to"][goal.peer]
    return None


def text(rows):
    """The goals that were measured, as lines; empty if there is none."""
    lines = []
    for goal, value, holds in verdicts(rows):
        if value is not None:
            bound = f"{'at least' if goal.at_least else 'at most'} {goal.bound:.2f}"
            lines.append(f"  {'✓' if holds else '✗'} {value:6.2f}  {bound:<13}  {goal.text}")
    return "\n".join(["goals", *lines]) if lines else ""

"""Names, units and formats of the figures; medians, and ratios round by round.

A figure that could not be had is None, and None goes through: a median or a ratio of rounds of which one
has no figure is None too, so that nothing is dropped silently.
"""

import statistics
from dataclasses import dataclass

HIGHER = "higher"
LOWER = "lower"


@dataclass(frozen=True)
class Figure:
    """One kind of figure. `scale` divides values for the table only, whose heading is `title`."""

    key: str
    unit: str
    better: str
    title: str
    form: str = "{:,.0f}"
    scale: float = 1


FIGURES = {
    figure.key: figure
    for figure in (
        Figure("requests_per_second", "1/s", HIGHER, "requests/s"),
        Figure("bytes_per_second", "B/s", HIGHER, "MB/s", "{:,.1f}", 1e6),
        Figure("latency_p50_us", "us", LOWER, "p50 µs", "{:,.1f}"),
        Figure("latency_p90_us", "us", LOWER, "p90 µs", "{:,.1f}"),
        Figure("latency_p99_us", "us", LOWER, "p99 µs", "{:,.1f}"),
        Figure("latency_p99_9_us", "us", LOWER, "p99.9 µs", "{:,.1f}"),
        Figure("latency_p99_99_us", "us", LOWER, "p99.99 µs", "{:,.1f}"),
        Figure("latency_max_us", "us", LOWER, "max µs"),
        Figure("server_cpu_us_per_request", "us", LOWER, "CPU µs/req", "{:,.2f}"),
        Figure("server_cpu_percent", "%", LOWER, "CPU %", "{:,.1f}"),
        Figure("switches_per_request", "1", LOWER, "switches/req", "{:,.4f}"),
        Figure("switches_per_second", "1/s", LOWER, "switches/s"),
        Figure("generator_cpu_us_per_request", "us", LOWER, "generator µs/req", "{:,.2f}"),
        Figure("generator_to_server_cpu", "1", LOWER, "generator/server CPU", "{:,.2f}"),
        Figure("memory_bytes_per_connection", "B", LOWER, "memory B/conn"),
        Figure("flooded_to_quiet", "1", HIGHER, "flooded/quiet", "{:,.2f}"),
        Figure("quiet_requests_per_second", "1/s", HIGHER, "quiet req/s"),
        Figure("flooded_requests_per_second", "1/s", HIGHER, "flooded req/s"),
        Figure("syns_per_second", "1/s", HIGHER, "SYN/s"),
        Figure("resident_growth_bytes", "B", LOWER, "growth KiB", "{:,.0f}", 1 << 10),
        Figure("opened_connections", "1", HIGHER, "opened"),
        Figure("opened_share", "1", HIGHER, "of those tried", "{:.1%}"),
        Figure("failed_requests", "1", LOWER, "failed"),
        Figure("upload_s", "s", LOWER, "seconds", "{:,.3f}"),
        Figure("download_s", "s", LOWER, "seconds", "{:,.3f}"),
        Figure("segments_sent", "1", LOWER, "segments"),
        Figure("segments_again", "1", LOWER, "sent again"),
        Figure("again_share", "1", LOWER, "of all", "{:.2%}"),
        Figure("pauses", "1", LOWER, "pauses > 150 ms"),
        Figure("longest_pause_ms", "ms", LOWER, "longest pause ms", "{:,.1f}"),
        Figure("relay_missed", "1", LOWER, "missed by relay"),
        Figure("ns_per_request", "ns", LOWER, "ns/req"),
        Figure("instructions_per_request", "1", LOWER, "instructions/req"),
    )
}


def median(values):
    """The median, or None if there is no value or one of them is None."""
    if not values or any(value is None for value in values):
        return None
    return statistics.median(values)


def ratios(ours, theirs):
    """Round by round ours / theirs; None where a round lacks one of them or the divisor is zero."""
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} rounds against {len(theirs)}")
    return [None if a is None or not b else a / b for a, b in zip(ours, theirs)]


def differences(ours, theirs):
    """Round by round ours - theirs; None where a round lacks one of them."""
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} rounds against {len(theirs)}")
    return [None if a is None or b is None else a - b for a, b in zip(ours, theirs)]


def best(medians, better):
    """The name with the best median; None if no name has one. `medians`: {name: median or None}."""
    known = {name: value for name, value in medians.items() if value is not None}
    if not known:
        return None
    return (max if better == HIGHER else min)(known, key=known.get)


def show(figure, value):
    """The value as it stands in a table; a dash if there is none."""
    return "–" if value is None else figure.form.format(value / figure.scale)

"""Rows and results.json.

A row is one figure of one peer in one cell, with the value of each round. A round that failed is null there, and
then so is the median: the row's `note` says what happened.
"""

import json
import os
import statistics

from . import figures, peers
from .figures import FIGURES


def rows(measurements):
    """The rows of some measurements, which are whole cells: every peer, every round."""
    found = []
    for cell_measurements in _by_cell(measurements).values():
        found += _rows_of_cell(cell_measurements)
    return found


def _by_cell(measurements):
    grouped = {}
    for measurement in measurements:
        grouped.setdefault((measurement.step.scenario.name, measurement.step.cell), []).append(measurement)
    return grouped


def _rows_of_cell(measurements):
    scenario, cell = measurements[0].step.scenario, measurements[0].step.cell
    parameters = scenario.parameters(cell)
    by_peer = {}
    for measurement in sorted(measurements, key=lambda one: one.step.round):
        by_peer.setdefault(measurement.step.peer, []).append(measurement)
    # In the scenario's order, the subject first, whichever was measured first.
    order = [peer for peer in scenario.peers if peer in by_peer]
    order += sorted(peer for peer in by_peer if peer not in order)
    columns = [metric for metric in _metrics(scenario, measurements)]
    found = []
    for metric in columns:
        of_metric = {peer: _row(scenario, parameters, peer, metric, by_peer[peer]) for peer in order}
        if all(row["median"] is None and row["note"] is None for row in of_metric.values()):
            continue
        subject = scenario.peers[0]
        if subject in of_metric:
            _compare(of_metric[subject], of_metric)
        found += of_metric.values()
    return found


def _metrics(scenario, measurements):
    """The scenario's own figures first, then whatever else was measured."""
    known = {name for measurement in measurements for name in measurement.values}
    return [*scenario.columns, *(name for name in FIGURES if name in known and name not in scenario.columns)]


def _row(scenario, parameters, peer, metric, measurements):
    values = [measurement.values.get(metric) for measurement in measurements]
    notes = [
        f"round {measurement.step.round} failed: {measurement.failure}" for measurement in measurements if measurement.failure
    ] + [measurement.note for measurement in measurements if measurement.note]
    present = [value for value in values if value is not None]
    return {
        "scenario": scenario.name,
        "parameters": parameters,
        "peer": peer,
        "metric": metric,
        "unit": FIGURES[metric].unit,
        "better": FIGURES[metric].better,
        "rounds": values,
        "median": figures.median(values),
        "min": min(present, default=None),
        "max": max(present, default=None),
        "ratio_to": {},
        "note": "; ".join(dict.fromkeys(notes)) or None,
    }


def _compare(subject, of_metric):
    """Adds the subject's ratios to each other peer, and to the better placement of those that have several."""
    others = {peer: row for peer, row in of_metric.items() if row is not subject}
    placements = {}
    for peer, row in others.items():
        if peers.placement(peer):
            placements.setdefault(peers.program(peer), {})[peer] = row["median"]
    compared = dict(others)
    for name, medians in placements.items():
        best = figures.best(medians, subject["better"])
        if len(medians) > 1 and best is not None:
            compared[f"{name}/best"] = others[best]
            subject.setdefault("best_placement", {})[name] = best
    subject["ratio_rounds_to"] = {}
    for peer, row in compared.items():
        if len(row["rounds"]) != len(subject["rounds"]):
            continue
        ratios = figures.ratios(subject["rounds"], row["rounds"])
        median = figures.median(ratios)
        if median is not None:
            subject["ratio_to"][peer] = median
            subject["ratio_rounds_to"][peer] = ratios


def latency_cdfs(measurements):
    """The latency distributions that the generator printed: of each cell and peer, the round whose rate is the
    median one."""
    chosen = []
    for group in _by_cell(measurements).values():
        by_peer = {}
        for measurement in group:
            points = (measurement.details.get("latency_us") or {}).get("cdf")
            if points and measurement.failure is None:
                by_peer.setdefault(measurement.step.peer, []).append((measurement.values["requests_per_second"], points))
        for peer, found in by_peer.items():
            middle = statistics.median_low(rate for rate, _ in found)
            points = next(points for rate, points in found if rate == middle)
            step = group[0].step
            chosen.append({
                "scenario": step.scenario.name, "parameters": step.scenario.parameters(step.cell), "peer": peer,
                "points": points,
            })
    return chosen


def conditions(measurements):
    """What the first round of each cell and peer found: server, offloads, mode."""
    return [
        {
            "scenario": measurement.step.scenario.name,
            "parameters": measurement.step.scenario.parameters(measurement.step.cell),
            "peer": measurement.step.peer,
            **{name: measurement.conditions.get(name) for name in ("server", "mode", "offloads", "command")},
        }
        for measurement in measurements if measurement.step.round == 1 and measurement.conditions
    ]


def failures(measurements):
    """The measurements that failed."""
    return [
        {
            "scenario": measurement.step.scenario.name,
            "parameters": measurement.step.scenario.parameters(measurement.step.cell),
            "peer": measurement.step.peer,
            "round": measurement.step.round,
            "failure": measurement.failure,
        }
        for measurement in measurements if measurement.failure
    ]


def record(measurement):
    """One measurement with all that is known of it, for runs.jsonl."""
    step = measurement.step
    return {
        "scenario": step.scenario.name, "parameters": step.scenario.parameters(step.cell), "peer": step.peer,
        "round": step.round, "seconds": round(measurement.seconds, 3), "failure": measurement.failure,
        "note": measurement.note, "values": measurement.values, "conditions": measurement.conditions,
        "details": measurement.details,
    }


def document(machine, settings, measurements):
    """results.json as an object."""
    return {
        "machine": machine,
        "settings": settings,
        "rows": rows(measurements),
        "failures": failures(measurements),
        "conditions": conditions(measurements),
        "latency_cdf": latency_cdfs(measurements),
    }


def write(path, value):
    """Writes JSON so that a reader never sees half of it."""
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", "utf-8")
    os.replace(beside, path)

"""The command line, and the run from beginning to end.

    plan ARGS    checks the arguments and prints the plan; needs nothing but the repository
    run ARGS     measures, in the lab that scripts/bench made (see lab.Lab.from_environment)
"""

import argparse
import dataclasses
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from . import clients, figures, goals, machine, measure, peers, plan, plots, results, tables
from .figures import FIGURES
from .lab import CLIENT_CORE, SERVER_CORE, Lab
from .scenarios import SCENARIOS

MISUSE = 2


class _Parser(argparse.ArgumentParser):
    """Misuse is one line."""

    def error(self, message):
        print(f"error: {message} (see scripts/bench --help)", file=sys.stderr)
        raise SystemExit(MISUSE)


def parse(argv):
    """The options of scripts/bench. Exits with 2 on misuse."""
    parser = _Parser(prog="scripts/bench", add_help=False, allow_abbrev=False)
    parser.add_argument("--only", type=_names, default=())
    parser.add_argument("--peers", type=_names, default=())
    parser.add_argument("--rounds", type=_whole)
    parser.add_argument("--seconds", type=_positive)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--list", action="store_true")
    found = parser.parse_args(argv)
    options = plan.Options(found.only, found.peers, found.rounds, found.seconds, found.quick)
    try:
        plan.check(options)
    except plan.PlanError as error:
        parser.error(str(error))
    return options


def _names(text):
    names = tuple(name for name in text.split(",") if name)
    if not names:
        raise argparse.ArgumentTypeError("a list of names is wanted, as a,b")
    return names


def _whole(text):
    if not text.isdigit() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"a number from 1 to 100 is wanted, not {text!r}")
    return int(text)


def _positive(text):
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0.1 <= number <= 600:
        raise argparse.ArgumentTypeError(f"a number from 0.1 to 600 is wanted, not {text!r}")
    return number


def main(argv):
    """Returns the exit status."""
    verb, *rest = argv
    options = parse(rest)
    if verb == "plan":
        return show_plan(options)
    return run(options, Lab.from_environment(), Path(os.environ["OUT_DIR"]))


def show_plan(options):
    """Prints the plan, and says so if it is longer than promised."""
    limit = peers.open_files()
    print(plan.describe(options, limit))
    allowed = plan.QUICK_LIMIT_S if options.quick else plan.FULL_LIMIT_S
    if plan.total_s(options, limit) > allowed:
        print(f"(longer than the {plan.minutes(allowed)} of the default settings)")
    return 0


def run(options, lab, directory):
    """Measures everything, prints tables, writes results. Returns 1 if a measurement failed."""
    # In order, so that servers are stopped on the way out.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    directory.mkdir(parents=True, exist_ok=True)
    make_files(lab.run_dir / "www")
    open_files = peers.open_files()
    facts = machine.facts(lab.root)
    settings = settings_of(options, open_files)
    bench = measure.Bench(lab, options, open_files)
    steps = plan.steps(options)
    planned_s = plan.total_s(options, open_files)
    measurements = []
    began = time.monotonic()
    try:
        with open(directory / "runs.jsonl", "w", encoding="utf-8") as log:
            for place, step in enumerate(steps, 1):
                for measurement in measure_step(bench, step):
                    measurements.append(measurement)
                    log.write(json.dumps(results.record(measurement)) + "\n")
                    log.flush()
                    print(progress(measurement, place, len(steps)), flush=True)
                last = place == len(steps) or steps[place].scenario is not step.scenario
                if last:
                    document = results.document(facts, settings, measurements)
                    results.write(directory / "results.json", document)
                    report(step.scenario.name, document)
    finally:
        lab.stop_all()
    took = time.monotonic() - began
    print(tables.environment(facts, settings))
    print(f"\ntook {plan.minutes(took)}, planned {plan.minutes(planned_s)}")
    promised = goals.text(document["rows"])
    if promised:
        print(f"\n{promised}")
    drawn = plots.draw(document, directory)
    print(f"\nwritten to {directory}: {', '.join(['results.json', 'runs.jsonl', *drawn])}")
    failed = document["failures"]
    if failed:
        print(f"\n✗ {len(failed)} of {len(measurements)} measurements failed:", file=sys.stderr)
        for one in failed:
            where = " ".join(f"{name}={value}" for name, value in one["parameters"].items())
            print(f"  {one['scenario']} {where} {one['peer']} round {one['round']}: {one['failure']}", file=sys.stderr)
        return 1
    return 0


def measure_step(bench, step):
    """Measures a step; if so many idle connections do not fit, also as many as do."""
    measurement = bench.measure(step)
    yield measurement
    if measurement.note and step.cell.idle and not peers.is_kernel(step.peer):
        most = bench.largest_that_fits(step.peer) - measure.ROUND_DOWN
        smaller = [cell.idle for cell in step.scenario.cells if cell.idle < step.cell.idle]
        if most > max(smaller):
            yield bench.measure(dataclasses.replace(step, cell=dataclasses.replace(step.cell, idle=most)))


def report(name, document):
    """Prints a scenario's table."""
    print()
    print(tables.scenario_table(name, document["rows"]))
    offloads = tables.offloads_text(name, document["conditions"])
    if offloads:
        print(offloads)
    print(flush=True)


def progress(measurement, place, count):
    """One line about a measurement."""
    step = measurement.step
    where = " ".join(f"{name}={value}" for name, value in step.scenario.parameters(step.cell).items())
    if measurement.failure:
        said = f"FAILED: {measurement.failure}"
    elif measurement.note:
        said = measurement.note
    else:
        shown = [FIGURES[name] for name in step.scenario.columns[:3] if measurement.values.get(name) is not None]
        said = "  ".join(f"{figures.show(figure, measurement.values[figure.key])} {figure.title}" for figure in shown)
    return f"[{place:>3}/{count}] {step.scenario.name} {where} round {step.round} {step.peer}: {said}"


def settings_of(options, open_files):
    """The settings of a run, as they stand in results.json."""
    return {
        "server_core": SERVER_CORE,
        "client_core": CLIENT_CORE,
        "quick": options.quick,
        "only": list(options.only) or "all",
        "peers": list(options.peers) or "all",
        "rounds": options.rounds or "default",
        "seconds": options.measured_s,
        "warmup_s": options.warmup_s,
        "open_rate": clients.OPEN_RATE,
        "open_files": None if open_files == float("inf") else open_files,
        "order": "peers in turn within each cell and round, in reverse in even rounds; a fresh server each time",
        "placements": "default: kernel receive work on the generator's core; rps: steered to the server's core",
        "command": "scripts/bench " + os.environ.get("BENCH_ARGUMENTS", ""),
    }


def make_files(directory):
    """The files that are served, with bytes that do not repeat."""
    directory.mkdir(exist_ok=True)
    sizes = {cell.size for scenario in SCENARIOS.values() for cell in scenario.cells if cell.protocol.startswith("http")}
    for size in sizes:
        (directory / f"{size}.bin").write_bytes(random.Random(size).randbytes(size))

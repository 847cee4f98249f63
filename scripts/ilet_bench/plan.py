"""Which measurements make up a run, in which order, and how long that takes.

Scenario by scenario, round by round, cell by cell, all peers right after another: what is compared is measured
within seconds. Even rounds take the peers in reverse.
"""

from collections import defaultdict
from dataclasses import dataclass

from . import clients, peers
from .scenarios import OPTIONAL_PEERS, SCENARIOS, Cell, Scenario

FULL_LIMIT_S = 25 * 60
QUICK_LIMIT_S = 3 * 60

# Seconds around each measurement: starting and stopping a server, starting a client, settings of the pair.
AROUND_S = 0.3
# What holding many connections takes beside opening them, as a factor of that.
CLOSING = 0.5
# Seconds of a run over memory, which measures a number of requests and not a time; and for each connection
# under callgrind, where plain smoltcp looks through all of them for each.
IN_MEMORY_S = 0.6
CALLGRIND_S = {"ilet": 0.0015, "ilet-engine": 0.0015, "plain-smoltcp": 0.006}
# Seconds that the relay takes to start and to end.
RELAY_S = 0.1
# Seconds of load before a flood, with its warm-up, and after it; and how much longer than planned it may take.
FLOOD_LEAD_S = 1.5
FLOOD_TAIL_S = 1
FLOOD_SLACK = 1.2


class PlanError(Exception):
    """The command line asks for what is not there."""


@dataclass(frozen=True)
class Options:
    """What the command line says. `only` and `peers` are empty for all; `rounds`, `seconds` None for the default."""

    only: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    rounds: int | None = None
    seconds: float | None = None
    quick: bool = False

    @property
    def measured_s(self):
        """Seconds of a measurement of length 1."""
        return self.seconds or (0.5 if self.quick else 0.6)

    @property
    def warmup_s(self):
        return 0.2

    def rounds_of(self, scenario, cell):
        if self.rounds is not None:
            return self.rounds
        if self.quick:
            return scenario.quick_rounds
        return min(3, cell.rounds or 3)


@dataclass(frozen=True)
class Step:
    """One measurement."""

    scenario: Scenario
    cell: Cell
    peer: str
    round: int


def known_peers():
    """Every name that --peers takes: programs, and programs with a placement."""
    names = set()
    for scenario in SCENARIOS.values():
        names.update(scenario.peers)
    for peer in OPTIONAL_PEERS:
        names.update(with_placements(peer))
    return names | {peers.program(name) for name in names}


def with_placements(peer):
    return (f"{peer}/default", f"{peer}/rps")


def check(options):
    """Raises PlanError for names that do not exist."""
    for what, asked, known in (("scenario", options.only, SCENARIOS), ("peer", options.peers, known_peers())):
        for name in asked:
            if name not in known:
                raise PlanError(f"no {what} is called {name!r}: there are {', '.join(sorted(known))}")
    if not steps(options):
        raise PlanError("nothing to measure: none of the peers is in the scenarios asked for")


def scenarios(options):
    """The scenarios asked for, in their order."""
    if options.only:
        return [scenario for scenario in SCENARIOS.values() if scenario.name in options.only]
    return [scenario for scenario in SCENARIOS.values() if cells(scenario, options)]


def peers_of(scenario, cell, options):
    """The peers of a cell, the subject first."""
    names = list(scenario.peers)
    for peer, where in OPTIONAL_PEERS.items():
        if scenario.name in where:
            names += [name for name in with_placements(peer) if _asked(name, options)]
    return [
        name for name in names
        if name not in cell.without
        and (not options.peers or _asked(name, options))
        and not (options.quick and not options.peers and name in scenario.quick_without)
    ]


def _asked(name, options):
    return name in options.peers or peers.program(name) in options.peers


def cells(scenario, options):
    """The cells of a scenario in this run: all of one without quick ones, if it is named."""
    quick = [cell for cell in scenario.cells if cell.quick]
    if options.quick and (quick or scenario.name not in options.only):
        return quick
    return list(scenario.cells)


def steps(options):
    """All measurements of the run, in order."""
    found = []
    for scenario in scenarios(options):
        chosen = cells(scenario, options)
        rounds = max(options.rounds_of(scenario, cell) for cell in chosen)
        for number in range(1, rounds + 1):
            for cell in chosen:
                if number > options.rounds_of(scenario, cell):
                    continue
                names = peers_of(scenario, cell, options)
                if number % 2 == 0:
                    names.reverse()
                found += [Step(scenario, cell, name, number) for name in names]
    return found


def measured_s(cell, options):
    """Seconds that a client measures in a cell."""
    if cell.flood:
        return FLOOD_LEAD_S + clients.flood_s(cell) * FLOOD_SLACK + FLOOD_TAIL_S
    seconds = options.measured_s * cell.length
    return clients.wrk_seconds(seconds) if cell.client == "wrk" else seconds


def opening_s(cell):
    """Seconds until all connections are open."""
    return (cell.connections + cell.idle) / clients.open_rate(cell)


def expected_s(step, options, limit):
    """Seconds that a measurement takes, all around it included. `limit`: open files per process."""
    cell = step.cell
    if peers.cannot_hold(step.peer, cell.connections + cell.idle, limit):
        return 0
    if cell.client == "ilet-memory":
        return IN_MEMORY_S
    if cell.client == "callgrind":
        return IN_MEMORY_S + CALLGRIND_S[step.peer] * cell.connections
    warmup = options.warmup_s if cell.client == "ilet-load" else 0
    around = AROUND_S + (RELAY_S if cell.relayed else 0)
    return around + opening_s(cell) * (1 + CLOSING) + warmup + measured_s(cell, options)


def total_s(options, limit):
    """Seconds that the run takes."""
    return sum(expected_s(step, options, limit) for step in steps(options))


def describe(options, limit):
    """The plan as text."""
    by_scenario = defaultdict(list)
    for step in steps(options):
        by_scenario[step.scenario.name].append(step)
    lines = [f"{'scenario':<16} {'cells':>5} {'peers':>5} {'rounds':>6} {'measurements':>12} {'time':>8}"]
    for name, found in by_scenario.items():
        seconds = sum(expected_s(step, options, limit) for step in found)
        rounds = sorted({options.rounds_of(step.scenario, step.cell) for step in found})
        span = str(rounds[0]) if len(rounds) == 1 else f"{rounds[0]}-{rounds[-1]}"
        lines.append(
            f"{name:<16} {len({step.cell for step in found}):>5} {len({step.peer for step in found}):>5} "
            f"{span:>6} {len(found):>12} {minutes(seconds):>8}"
        )
    total = total_s(options, limit)
    lines.append(f"{'total':<16} {'':>5} {'':>5} {'':>6} {len(steps(options)):>12} {minutes(total):>8}")
    lines.append(
        f"each measurement {options.measured_s:g} s (some longer) after {options.warmup_s:g} s of warm-up; "
        "peers in turn, in reverse in even rounds"
    )
    return "\n".join(lines)


def minutes(seconds):
    """Seconds as M:SS."""
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02}"

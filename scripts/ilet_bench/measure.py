"""One measurement: a fresh server, one client, the figures or what went wrong."""

import contextlib
import math
import threading
import time
from dataclasses import dataclass, field

from . import clients, peers, plan, procfs, relay
from .clients import ClientError
from .lab import LabError

# From here on memory per connection counts, and memory may run out.
MANY = 1_000
# Part of the free memory that connections may take.
USABLE = 0.8
# Counts of connections that do not fit are rounded down to a multiple of this.
ROUND_DOWN = 10_000


@dataclass
class Measurement:
    """One step and its figures, or the `failure`, or the `note` that says why there are none.

    `details` is what the client printed; `conditions` the state of things: server, offloads, mode.
    """

    step: plan.Step
    values: dict = field(default_factory=dict)
    failure: str | None = None
    note: str | None = None
    seconds: float = 0
    conditions: dict = field(default_factory=dict)
    details: dict = field(default_factory=dict)


class Bench:
    """Measures step after step. Remembers what a connection takes, to know how many fit."""

    def __init__(self, lab, options, open_files, available=lambda: procfs.meminfo()["MemAvailable"]):
        self._lab = lab
        self._options = options
        self._open_files = open_files
        self._available = available
        # By peer: bytes of server, kernel and generator together.
        self._per_connection = {}

    def measure(self, step):
        """Measures; what goes wrong is in the result."""
        began = time.monotonic()
        measurement = Measurement(step)
        connections = step.cell.connections + step.cell.idle
        measurement.note = (
            peers.cannot_hold(step.peer, connections, self._open_files) or self._does_not_fit(step.peer, connections)
        )
        if measurement.note is None:
            steal, total = procfs.steal_and_total()
            try:
                if step.cell.client in ("ilet-memory", "callgrind"):
                    self._in_memory(measurement)
                else:
                    with relay.running(self._lab, step.cell, step.round, measurement):
                        server = self._over_the_link(measurement)
                    if step.cell.traced:
                        measurement.values |= relay.traced(self._lab, server)
            except (LabError, ClientError, OSError) as error:
                measurement.failure = str(error)
                measurement.values = {}
            steal_now, total_now = procfs.steal_and_total()
            measurement.conditions["steal_percent"] = round(100 * (steal_now - steal) / max(1, total_now - total), 2)
        measurement.seconds = time.monotonic() - began
        return measurement

    def largest_that_fits(self, peer):
        """How many connections fit by what was measured, or None if nothing was."""
        per_connection = self._per_connection.get(peer)
        if not per_connection:
            return None
        return fitting(self._available(), per_connection)

    def _does_not_fit(self, peer, connections):
        most = self.largest_that_fits(peer)
        if most is None or connections <= most + ROUND_DOWN:
            return None
        return (
            f"cannot be held: {connections:,} connections at {self._per_connection[peer]:,.0f} bytes each (server, "
            f"kernel and generator) are more than {USABLE:.0%} of the free memory, {self._available() / 1e9:.1f} GB"
        )

    def _over_the_link(self, measurement):
        step, lab = measurement.step, self._lab
        peers.arrange(lab, step.peer, step.cell)
        server = peers.start(lab, step.peer, step.cell, step.scenario.poll)
        try:
            self._against(measurement, server)
        except BaseException:
            # Even what stands in the way of measuring leaves no server behind, and is not hidden by how that ends.
            with contextlib.suppress(LabError):
                lab.stop(server.process)
            raise
        lab.stop(server.process)
        said = server.process.output.read_text("utf-8", "replace")
        measurement.conditions["counters"] = counters(said)
        if "conserved no" in said:
            raise LabError(f"{server.process.name} lost frames")
        return server

    def _against(self, measurement, server):
        step = measurement.step
        try:
            measurement.conditions["server"] = server.ready
            # The first round looks at the offloads while all XDP programs are attached.
            watch = self._offloads_soon(server.pair, measurement) if step.round == 1 else contextlib.nullcontext()
            with watch:
                if step.cell.flood:
                    self._flood(measurement, server)
                else:
                    self._client(measurement, server)
            died = server.process.popen.poll()
            if died is not None:
                raise LabError(f"{server.process.name} ended with {died}: {server.process.last_line()}")
        except ClientError as error:
            if server.process.popen.poll() is not None:
                raise ClientError(f"{error}; the server ended: {server.process.last_line()}") from error
            raise

    def _client(self, measurement, server):
        step, cell, options = measurement.step, measurement.step.cell, self._options
        seconds = plan.measured_s(cell, options)
        name, argv = self._client_command(step, server, seconds)
        measurement.conditions["command"] = " ".join(argv)
        limit_s = 30 + 3 * (seconds + options.warmup_s) + 6 * plan.opening_s(cell) + min(60, clients.timeout_s(cell))
        if name == "curl":
            limit_s = clients.CURL_LIMIT_S + 10
        many = cell.connections + cell.idle >= MANY
        growth = procfs.MemoryGrowth(server.pids) if many else None
        with growth or contextlib.nullcontext():
            usage = self._usage(server.pids)
            began = time.monotonic()
            finished = self._lab.run(argv, limit_s)
            elapsed = time.monotonic() - began
        # A result with errors in it says more than the last line.
        if finished.timed_out or (finished.status != 0 and not finished.output.strip()):
            raise ClientError(clients.complaint(name, finished, limit_s))
        parse = {
            "ilet-load": lambda text: clients.parse_ilet_load(text, cell.counts_failures),
            "wrk": lambda text: clients.parse_wrk(text, cell.counts_failures),
            "kernel-upload": clients.parse_kernel_upload,
            "curl": lambda text: clients.parse_curl(text, cell.size),
            "ilet-send": clients.parse_ilet_send,
        }
        try:
            measurement.values, measurement.details = parse[name](finished.output)
        except ClientError:
            if finished.status != 0 and finished.errors.strip():
                raise ClientError(clients.complaint(name, finished, limit_s)) from None
            raise
        # What a cell counts is no failure of the client's.
        if finished.status != 0 and not measurement.values.get("failed_requests"):
            raise ClientError(clients.complaint(name, finished, limit_s))
        measurement.conditions["mode"] = measurement.details.get("mode")
        if name in ("wrk", "kernel-upload", "curl"):
            # They do not look after the server.
            requests = measurement.details.get("requests")
            cpu_us, switches = (now - then for now, then in zip(self._usage(server.pids), usage))
            measurement.values["server_cpu_percent"] = cpu_us / elapsed / 1e4
            measurement.values["switches_per_second"] = switches / elapsed
            if requests:
                measurement.values["server_cpu_us_per_request"] = cpu_us / requests
                measurement.values["switches_per_request"] = switches / requests
        if growth:
            connections = cell.connections + cell.idle
            measurement.values["memory_bytes_per_connection"] = growth.most / connections
            per_connection = (growth.most + finished.resident_bytes) / connections
            self._per_connection[step.peer] = per_connection

    def _flood(self, measurement, server):
        """Connections that are busy all the time; in the middle the flood, and new connections by the kernel."""
        lab, cell, options = self._lab, measurement.step.cell, self._options
        limit_s = clients.flood_s(cell) * plan.FLOOD_SLACK
        _, load = self._client_command(measurement.step, server, plan.measured_s(cell, options))
        load.append("--series")
        flood = clients.ilet_flood(lab, server, cell, limit_s)
        probe = clients.probe(server, clients.flood_s(cell))
        measurement.conditions["command"] = "; ".join(map(" ".join, (load, flood, probe)))
        started = []

        def start(name, argv):
            started.append(lab.launch(name, argv))
            return started[-1]

        def finish(process, timeout_s):
            finished = lab.wait(process, timeout_s)
            started.remove(process)
            if finished.timed_out or finished.status != 0:
                raise ClientError(clients.complaint(process.name, finished, timeout_s))
            return finished.output

        try:
            loading = start("ilet-load", load)
            time.sleep(plan.FLOOD_LEAD_S)
            with procfs.MemoryGrowth(server.pids, with_kernel=False) as growth:
                flooding, probing = start("ilet-flood", flood), start("probe", probe)
                flooded = finish(flooding, limit_s + 10)
            probed = finish(probing, limit_s + 10)
            loaded = finish(loading, plan.measured_s(cell, options) + 30)
        finally:
            for process in started:
                with contextlib.suppress(LabError):
                    lab.stop(process)
        measurement.values, measurement.details = clients.parse_flood(loaded, flooded, probed, cell.flood)
        measurement.values["resident_growth_bytes"] = growth.most
        measurement.conditions["mode"] = measurement.details["flood"]["mode"]

    def _client_command(self, step, server, seconds):
        cell, lab = step.cell, self._lab
        if step.peer == "ilet-send":
            return "ilet-send", clients.ilet_send(lab, server, cell, seconds)
        if cell.client == "wrk":
            return "wrk", clients.wrk(server, cell, seconds)
        if cell.client == "kernel-upload":
            return "kernel-upload", clients.kernel_upload(lab, server, cell)
        if cell.client == "curl":
            return "curl", clients.curl(server, cell)
        poll = "sleep" if step.scenario.name == "generator-cost" else "busy"
        return "ilet-load", clients.ilet_load(
            lab, server, cell, step.round, seconds, self._options.warmup_s, poll
        )

    def _usage(self, pids):
        return sum(map(procfs.cpu_ns, pids)) / 1e3, sum(map(procfs.switches, pids))

    @contextlib.contextmanager
    def _offloads_soon(self, pair, measurement):
        """Looks at the offloads once, when the client is likely to be in its warm-up."""

        def look():
            with contextlib.suppress(LabError):
                measurement.conditions["offloads"] = self._lab.offloads(pair)

        timer = threading.Timer(0.25, look)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()

    def _in_memory(self, measurement):
        step, lab, cell = measurement.step, self._lab, measurement.step.cell
        argv = clients.ilet_memory(lab, step.peer, cell)
        measurement.conditions["command"] = " ".join(argv)
        limit_s = 60 + 5 * plan.expected_s(step, self._options, self._open_files)
        finished = lab.run(argv, limit_s)
        if finished.timed_out or finished.status != 0:
            raise ClientError(clients.complaint("ilet-memory", finished, limit_s))
        measurement.values, measurement.details = clients.parse_ilet_memory(finished.output)
        if cell.client == "callgrind":
            requests = clients.memory_requests(step.peer, cell)
            # The time under callgrind says nothing.
            measurement.values = {"instructions_per_request": clients.parse_callgrind(finished.errors) / requests}


def fitting(available, per_connection):
    """How many connections fit into the usable part of the available memory, rounded down."""
    return math.floor(available * USABLE / per_connection / ROUND_DOWN) * ROUND_DOWN


def counters(text):
    """The counters that a server of ours prints at its end, by name."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[0] in ("counter", "xdp") and words[2].isdigit():
            found[words[1]] = int(words[2])
    return found

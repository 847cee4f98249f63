"""The relay that makes a link a bad one: its command line, and what it says at the end."""

import contextlib
import json
import re

from . import trace
from .lab import LabError

# The relay's pairs, one to each side (see lab_relayed_pair in scripts/lib.sh).
PAIR = 2

# Bytes of a queue that the bandwidth-delay product does not decide.
QUEUE_MIN = 100_000


def queue_bytes(cell):
    """The relay's queue: one bandwidth-delay product."""
    return max(QUEUE_MIN, round(cell.rate_mbit * 1e6 / 8 * cell.rtt_ms / 1e3))


def trace_file(lab):
    """Where the relay writes what it sees."""
    return lab.run_dir / "relay.pcap"


def command(lab, cell, round_number):
    """The command line: the same for every peer of a round."""
    argv = [
        str(lab.bin_dir / "ilet-relay"), "--server", f"relay-srv{PAIR}", "--client", f"relay-cli{PAIR}",
        "--delay", f"{cell.rtt_ms / 2:g}", "--loss", f"{cell.loss:g}", "--seed", str(round_number),
    ]
    if cell.rate_mbit:
        argv += ["--rate", f"{cell.rate_mbit:g}", "--queue", str(queue_bytes(cell))]
    if cell.traced:
        argv += ["--trace", str(trace_file(lab))]
    return argv


@contextlib.contextmanager
def running(lab, cell, round_number, measurement):
    """Relays while in the `with` block, if the cell wants that; then its counts are in the measurement."""
    if not cell.relayed:
        yield
        return
    process = lab.start_relay(command(lab, cell, round_number), _is_ready)
    try:
        yield
    except BaseException:
        # What stands in the way of measuring is not hidden by how the relay ends.
        with contextlib.suppress(LabError):
            lab.stop(process)
        raise
    lab.stop(process)
    counts = parse(process.output.read_text("utf-8", "replace"))
    measurement.conditions["relay"] = counts
    measurement.values["relay_missed"] = sum(way["missed"] + way["line_full"] for way in counts.values())


def traced(lab, server):
    """The figures of the server's packets, when the relay has ended."""
    try:
        found = trace.segments(trace_file(lab).read_bytes())
    except trace.TraceError as error:
        raise LabError(f"{trace_file(lab)}: {error}") from error
    return trace.figures(found, (server.address, server.port))


def _is_ready(process):
    return re.search(r"^ready: ", process.output.read_text("utf-8", "replace"), re.MULTILINE)


def parse(text):
    """What became of frames, by the way they went, from what the relay says at the end."""
    try:
        return json.loads(text.splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise LabError("the relay did not say what became of the frames") from error

"""The servers: how each is started, and where its receive work is done.

A peer's name is PROGRAM or PROGRAM/PLACEMENT. The kernel's receive work for a veth pair runs where the sender
does, on the generator's core (`default`); receive packet steering moves it to the server's core (`rps`), as a
real card's queue would.
"""

import re
import resource
from dataclasses import dataclass

from . import procfs, relay
from .lab import SERVER_CORE

# The stack's own programs, and the other one that has its address to itself; `ilet-engine` is `ilet` without
# direct flows.
OWN = ("ilet", "ilet-engine", "plain-smoltcp")
OWN_PAIR = 0
KERNEL_PAIR = 1

ECHO_PORT = 7
SINK_PORT = 9
HTTP_PORT = 80

# The stack's programs by what they serve.
OURS = {ECHO_PORT: "ilet-echo", SINK_PORT: "ilet-sink", HTTP_PORT: "ilet-httpd"}

# What a server needs beside its connections: listening sockets, files, epoll.
SPARE_DESCRIPTORS = 100


def program(peer):
    """The name without the placement."""
    return peer.partition("/")[0]


def placement(peer):
    """`default` or `rps`; empty for servers that do not receive through the kernel's sockets."""
    return peer.partition("/")[2]


def is_kernel(peer):
    """Whether it serves through the kernel's sockets, each connection an open file."""
    return program(peer).startswith(("kernel-", "nginx"))


def place(lab, which, cell):
    """The pair that a program serves a cell on, and its address there."""
    is_own = which in OWN
    if cell.relayed:
        return relay.PAIR, lab.server4[relay.PAIR] if is_own else lab.relayed_kernel4
    pair = OWN_PAIR if is_own else KERNEL_PAIR
    return pair, lab.server4[pair]


def port_of(protocol):
    """The port that a protocol is served on."""
    if protocol.endswith("-echo"):
        return ECHO_PORT
    return SINK_PORT if protocol == "tcp-upload" else HTTP_PORT


def open_files():
    """How many files a process may open."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return float("inf") if hard == resource.RLIM_INFINITY else hard


def cannot_hold(peer, connections, limit):
    """Why a peer cannot hold so many connections, or None. `limit`: open files per process."""
    if is_kernel(peer) and connections + SPARE_DESCRIPTORS > limit:
        return f"cannot be held: {connections:,} connections are more open files than the limit of {limit:,}"
    return None


@dataclass
class Server:
    """A server that is ready. `pids` are all its processes, `ready` what it said, `sources` the addresses that
    the generator is to use."""

    process: object
    pids: list[int]
    pair: int
    address: str
    port: int
    ready: str
    # Where the generator's connections come from; None behind the relay, where it is not used.
    sources: str | None
    # What it is asked: the cell's protocol, or datagrams if it only reflects.
    protocol: str


def start(lab, peer, cell, poll):
    """Starts the server of a peer for a cell, and waits until it serves.

    A generator's peers (ilet-load, ilet-send) have ilet-reflect for a server. Where ilet-reflect is a peer of TCP
    servers, it gets as many datagrams as they have connections. Raises LabError.
    """
    which = program(peer)
    if which in ("ilet-load", "ilet-send"):
        which = "ilet-reflect"
    pair, address = place(lab, which, cell)
    sources = None if cell.relayed else lab.sources[pair]
    port = port_of(cell.protocol)
    if which == "nginx":
        return _start_nginx(lab, pair, address, port, sources, cell.protocol)
    wanted = cell.connections + cell.idle
    if which in ("ilet", "ilet-engine"):
        engine_only = which == "ilet-engine"
        which = OURS[port]
        argv = ["--interface", f"srv{pair}", "--address", f"{address}/24", "--port", str(port), "--poll", poll,
                "--cores", str(SERVER_CORE)]
        # Only beyond its default, of which TIME-WAIT takes a part.
        argv += ["--flows", str(wanted + 10_000)] if wanted > 50_000 else []
        # A closed loop has as many packets under way as connections; many idle ones are opened in bursts.
        burst = max(cell.connections, cell.idle // 25)
        # A flood fills the default of 1,024 frames in the time that a core is away once.
        burst = max(burst, 2_048 if cell.flood else 0)
        argv += ["--burst", str(min(16_384, 2 * burst))] if burst > 1_000 else []
        argv += ["--engine-only"] if engine_only else []
    elif which == "plain-smoltcp":
        argv = ["--interface", "srv0", "--address", f"{address}/24", "--port", str(port),
                "--sockets", str(wanted), "--core", str(SERVER_CORE), "--poll", poll]
    elif which == "ilet-reflect":
        argv = ["--interface", "srv1", "--address", address, "--port", str(port), "--poll", poll,
                "--core", str(SERVER_CORE)]
    else:
        which, argv = _kernel_server(which)
        argv += ["--address", address, "--port", str(port)]
    if which.endswith("-httpd"):
        argv += ["--root", str(lab.run_dir / "www")]
    if which == "ilet-httpd":
        # Room for the large file, which the others have in memory too (nginx in the page cache).
        argv += ["--cache-bytes", "256M"]
    process = lab.start(which, [str(lab.bin_dir / which), *argv], _ready_line)
    if which == "plain-smoltcp":
        # smoltcp's table of neighbours has room for eight, and it asks only for those of its own network, one a
        # second: two.
        sources = address.rpartition(".")[0] + ".8/30"
    protocol = "udp-echo" if which == "ilet-reflect" else cell.protocol
    return Server(process, [process.pid], pair, address, port, _ready_line(process), sources, protocol)


def _kernel_server(which):
    """The program of kernel-echo and kernel-httpd, and what selects the variant that polls."""
    if which.endswith("-busy-poll"):
        return which.removesuffix("-busy-poll"), ["--busy-poll", "50"]
    return which, []


def _ready_line(process):
    found = re.search(r"^ready: (.*)\n", process.output.read_text("utf-8", "replace"), re.MULTILINE)
    return found.group(1) if found else ""


def _start_nginx(lab, pair, address, port, sources, protocol):
    config = lab.run_dir / "nginx.conf"
    text = (lab.root / "scripts" / "nginx.conf.in").read_text("utf-8")
    for name, value in (("ADDRESS", address), ("PORT", port), ("RUN_DIR", lab.run_dir),
                        ("CORE_MASK", f"{1 << SERVER_CORE:b}")):
        text = text.replace(f"@{name}@", str(value))
    config.write_text(text, "utf-8")
    process = lab.start(
        "nginx", ["nginx", "-p", str(lab.run_dir), "-c", str(config), "-e", "stderr"],
        # The socket listens before the worker is there: the worker's pid is wanted too.
        lambda process: _listens(process.pid, port) and procfs.children(process.pid),
    )
    return Server(process, [process.pid, *procfs.children(process.pid)], pair, address, port,
                  f"nginx, one worker, port {port} of {address}", sources, protocol)


def _listens(pid, port):
    """Whether somebody in the process's namespace listens on the TCP port."""
    try:
        with open(f"/proc/{pid}/net/tcp", encoding="ascii") as file:
            rows = [line.split() for line in file.readlines()[1:]]
    except OSError:
        return False
    return any(row[3] == "0A" and row[1].endswith(f":{port:04X}") for row in rows)


def arrange(lab, peer, cell):
    """Sets the pair that the peer serves on as the cell wants it: MTU, offloads, receive work."""
    if cell.relayed:
        # It is as it was made: the same for every peer.
        return
    which = program(peer)
    pair = OWN_PAIR if which in OWN else KERNEL_PAIR
    lab.set_mtu(pair, cell.mtu)
    on = cell.offloads == "on"
    if pair == OWN_PAIR:
        # The kernel's clients would send partial checksums over veth, and the stack verifies them. GRO gives
        # their end the NAPI context that frames sent by XDP need. Without a card's checksums segments can still be
        # cut late, by the kernel's software.
        lab.set_offloads("cli0", tx=False, gso=on, gro=True)
        return
    for end in ("srv1", "cli1"):
        # Segments are left to a card only together with their checksums.
        lab.set_offloads(end, tx=on, tso=on, gso=on, gro=False)
    lab.set_receive_core("srv1", SERVER_CORE if placement(peer) == "rps" else None)

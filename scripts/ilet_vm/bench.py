"""Tools for checks: servers in the guest, clients on the host, and tests of their results."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

from .errors import CheckFailed, LabError
from .network import IGB, LINKS
from .server import PORTS, SITE, Server

# Files of the site that is served: name, and length in bytes.
FILES = {"page": 128, "file100k": 100_000, "file1m": 1_000_000, "file10m": 10_000_000}
# Counters of losses between the kernel and the stack, which must all be zero.
LOSSES = ("xsk_rx_ring_full", "xsk_fill_ring_empty", "xsk_rx_dropped", "xsk_rx_invalid", "xsk_tx_invalid")
# Counters of defects. `tx_stalls` is not one of them: a guest that the host does not run for a while stalls. `tx_stuck` is
# one: sending did not go on after a stall.
DEFECTS = ("ring_errors", "tx_stuck", "tx_unsent")
MTU = 1500


def expect(condition, text):
    """Raises CheckFailed with `text` unless `condition`."""
    if not condition:
        raise CheckFailed(text)


class Bench:
    """The guest and its clients for one check."""

    def __init__(self, lab):
        self.lab = lab
        self.guest = lab.guest
        self.namespace = lab.namespace
        # Text that a check adds to its result line.
        self.notes = []
        self._clients = []

    def reset(self):
        """Puts the guest into the state after its boot: no servers, all cards up, at MTU, with two queue pairs."""
        self.guest.run("killall -q -KILL ilet-echo ilet-httpd httpd nc; rm -f /tmp/*.pid; sleep 0.1")
        self.guest.run("for n in $(ip netns list | cut -d' ' -f1); do ip netns del $n; done")
        for link in LINKS:
            # A card of a namespace that is gone comes back after a moment.
            self.guest.must(
                f"for i in $(seq 100); do [ -e /sys/class/net/{link.card} ] && break; usleep 100000; done; "
                f"ip link set {link.card} xdp off; ip address flush dev {link.card}; "
                f"ip link set {link.card} mtu {MTU}; ip link set {link.card} up"
            )
            self.channels(link, 2)
            self.namespace.set_mtu(link, MTU)
            self.forget_neighbours(link)
        self.guest.run(f"ethtool -X {IGB.card} default")

    def channels(self, link, count):
        """Sets the number of queue pairs."""
        now = self.guest.must(f"ethtool -l {link.card} | grep Combined | tail -1").split()[-1]
        if now != str(count):
            self.guest.must(f"ethtool -L {link.card} combined {count}")
        self.wait_for_link(link)

    def wait_for_link(self, link):
        """Waits until the card has its link: drivers take it down for a moment when they change something."""
        done = self.guest.run(
            f"for i in $(seq 300); do [ \"$(cat /sys/class/net/{link.card}/carrier)\" = 1 ] && exit; usleep 100000; done; false"
        )
        if done.code != 0:
            raise LabError(f"{link.card} has no link")

    def driver_drops(self, link):
        """Packets that the driver says it dropped on reception."""
        text = self.guest.must(f"ethtool -S {link.card}")
        return sum(int(n) for n in re.findall(r"^\s*rx_(?:drops|dropped|errors|length_errors|over_errors): (\d+)$", text, re.M))

    def server(self, program, link, *args, queues=(0, 1), own=True):
        """Returns a server on `link`, to be used in a `with` statement. It has addresses of its own there if `own`."""
        addresses = ["--address", f"{link.server4}/24", "--address", f"{link.server6}/64"] if own else []
        cores = ",".join(str(n % 2) for n, _ in enumerate(queues))
        site = ["--root", SITE] if program == "ilet-httpd" else []
        if site:
            self.make_site()
        return Server(
            self.guest, program, "--interface", link.card, *addresses, "--queues", ",".join(map(str, queues)),
            "--cores", cores, *site, *args, on_ready=lambda: self.forget_neighbours(link),
        )

    def forget_neighbours(self, link):
        """Has the host's kernel ask for link addresses anew.

        A connection of an earlier server may have asked while there was none: the question, and all that waits for its
        answer, would fail within a moment of the next server's start.
        """
        self.namespace.run("ip", "neigh", "flush", "dev", link.tap)

    def make_site(self):
        """Puts FILES into the shared folder and into the guest, unless they are there."""
        source = self.lab.share / "site"
        if not source.exists():
            source.mkdir()
            for name, size in FILES.items():
                # The same content in each run, in which no two blocks are alike.
                blocks = (hashlib.sha256(f"{name} {n}".encode()).digest() for n in range(size // 32 + 1))
                (source / name).write_bytes(b"".join(blocks)[:size])
        self.guest.must(f"[ -d {SITE} ] || cp -r /share/site {SITE}")

    def hash_of(self, name):
        return hashlib.sha256((self.lab.share / "site" / name).read_bytes()).hexdigest()

    # --- clients on the host ---

    def client(self, *args):
        """Runs a client (see clients) to its end; returns the JSON that it prints."""
        done = self.namespace.run(*_client_argv(args), check=False, timeout=240)
        if done.returncode != 0:
            raise CheckFailed(f"{' '.join(map(str, args))}: {done.stderr.strip().splitlines()[-1:]}")
        return json.loads(done.stdout)

    def start_client(self, *args):
        """Starts a client; the result is a Popen with pipes."""
        client = subprocess.Popen(
            self.namespace.argv(*_client_argv(args)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )
        self._clients.append(client)
        return client

    def close(self):
        """Ends the clients that a check left."""
        for client in self._clients:
            client.kill()
            client.communicate()

    def ping(self, address, size=56, seconds=20):
        """Sends three pings, which must each be answered within `seconds`."""
        done = self.namespace.run("ping", "-c", "3", "-i", "0.2", "-W", str(seconds), "-s", str(size), address, check=False, timeout=90)
        expect(" 3 received" in done.stdout, f"ping {address} -s {size}: {done.stdout.strip().splitlines()[-1:]}")

    def echo(self, protocol, address, connections, requests, size, port=PORTS["ilet-echo"]):
        """Runs closed loops of echoes, none of which may be wrong or lost."""
        result = self.client("echo", protocol, address, port, connections, requests, size)
        wanted = max(requests // connections, 1) * connections
        expect(
            result["error"] is None and result["right"] == wanted and result["wrong"] == 0 and result["again"] == 0,
            f"{protocol} echo to {address}, {connections} at a time, {size} bytes: {result}",
        )

    def download(self, address, name, connections=1, requests=1):
        """Downloads a file of the site; the hashes must be right."""
        host = f"[{address}]" if ":" in address else address
        result = self.client("fetch", f"http://{host}/{name}", connections, requests)
        self.check_download(result, name, connections * requests)

    def check_download(self, result, name, count):
        expect(
            not result["errors"] and result["bodies"] == {self.hash_of(name): count}, f"{count} downloads of {name}: {result}"
        )

    # --- reports of a server ---

    def end(self, server, allow=()):
        """Ends a server in order; returns its report.

        The exit code must be 0, all frames conserved, and all LOSSES and DEFECTS zero, except those that `allow` names.
        """
        report = server.stop()
        self.check_report(server, report, allow)
        return report

    def check_report(self, server, report, allow=()):
        said = server.errors().strip()
        expect(report.conserved, f"frames not conserved: {report.frames}, {said}")
        expect(report.code == 0, f"exit code {report.code}: {said}")
        seen = {**report.counters, **report.xdp}
        bad = {name: seen[name] for name in (*LOSSES, *DEFECTS) if seen.get(name) and name not in allow}
        expect(not bad, f"counted: {bad}; {said}")


def last_line(done):
    """The last line of the output of a command in the guest; "done" if it succeeded."""
    if done.code == 0:
        return "done"
    return (done.output.strip().splitlines() or [f"exit code {done.code}"])[-1]


def _client_argv(args):
    folder = Path(__file__).resolve().parent.parent
    env = ["env", f"PYTHONPATH={folder}", "PYTHONDONTWRITEBYTECODE=1"]
    return [*env, sys.executable or "/usr/bin/python3", "-m", "ilet_vm.clients", *map(str, args)]

"""Addresses shared with the kernel, links that go down, drivers that are reset, packets of other sizes."""

import json
import time

from ..bench import expect, last_line
from ..errors import CheckFailed, LabError, NotHere
from ..network import IGB, VIRTIO
from .check import check

CHECKS = []

# The largest MTU that was seen to work in native XDP, in bytes: docs/drivers.md has them, too.
LARGEST_MTU = {
    ("virtio_net", "zero-copy"): 3498,
    ("virtio_net", "copy"): 3400,
    ("igb", "zero-copy"): 3028,
    ("igb", "copy"): 3028,
}
BOTH = (VIRTIO, IGB)


def for_both(name, summary, checks=CHECKS):
    """Decorates a function of (bench, link, mode) as a check for each driver and mode, appended to `checks`."""

    def add(function):
        for link in BOTH:
            for mode in ("zero-copy", "copy"):
                check(checks, f"{name} {link.driver} {mode}", summary, link=link, mode=mode)(function)
        return function

    return add


@for_both("shared address", "the kernel has the address too: our ports are ours, ping and other ports are the kernel's")
def _(bench, link, mode):
    bench.guest.must(
        f"ip address add {link.guest4}/24 dev {link.card}; ip address add {link.guest6}/64 dev {link.card} nodad; "
        f"httpd -p 8080 -h /tmp"
    )
    addresses = ["--address", f"{link.guest4}/24", "--address", f"{link.guest6}/64", "--shared-address"]
    bench.make_site()
    with bench.server("ilet-echo", link, *addresses, "--mode", mode, own=False) as server:
        expect(f"queue 0 {mode}" in server.ready, server.ready)
        for address in (link.guest4, link.guest6):
            bench.ping(address)
            bench.echo("tcp", address, 16, 256, 64)
            bench.echo("udp", address, 16, 256, 64)
        result = bench.client("fetch", f"http://{link.guest4}:8080/site/page", 1, 5)
        bench.check_download(result, "page", 5)
        report = bench.end(server)
        expect(report.counters.get("icmp_echo_replies", 0) == 0, "the stack answered pings that are the kernel's")


@for_both("link down and up", "the interface goes down and up during downloads, which go on")
def _(bench, link, mode):
    def disturb():
        bench.guest.must(f"ip link set {link.card} down; sleep 0.5; ip link set {link.card} up")

    _disturb_downloads(bench, link, mode, disturb)


@for_both("driver reset", "ethtool -r and another number of queues during downloads, which go on")
def _(bench, link, mode):
    done = {}

    def disturb():
        done["-r"] = bench.guest.run(f"ethtool -r {link.card}")
        done["-L"] = bench.guest.run(f"ethtool -L {link.card} combined 1")
        bench.guest.run(f"ethtool -L {link.card} combined 2")

    _disturb_downloads(bench, link, mode, disturb)
    words = "; ".join(f"{flag}: {last_line(result)}" for flag, result in done.items())
    if all(result.code != 0 for result in done.values()):
        raise NotHere(f"the driver was not reset ({words}); the downloads went on")
    bench.notes.append(words)


def _disturb_downloads(bench, link, mode, disturb):
    """Calls `disturb` in the middle of downloads; all must arrive, and so must later ones."""
    with bench.server("ilet-httpd", link, "--mode", mode) as server:
        bench.download(link.server4, "page")
        client = bench.start_client("fetch", f"http://{link.server4}/file10m", 2, 0)
        time.sleep(1)
        disturb()
        bench.wait_for_link(link)
        # The end of standard input: each connection finishes the download that it is in.
        said, errors = client.communicate(timeout=200)
        expect(client.returncode == 0, errors)
        result = json.loads(said)
        bench.check_download(result, "file10m", max(2, sum(result["bodies"].values())))
        bench.download(link.server6, "page")
        # A reset of the ring takes what was on it: the frames are back all the same.
        bench.end(server, allow=("tx_stuck", "tx_unsent", "xsk_rx_dropped", "xsk_fill_ring_empty"))


@for_both("mtu", "from 1,280 bytes to the driver's limit for XDP: whole packets both ways, or a refusal that says so")
def _(bench, link, mode):
    worked = []
    limit = None
    for mtu in (1280, 1400, 1500, 1771, 2000, 2300, 2700, 3028, 3050, 3400, 3498, 3750):
        limit = _try_mtu(bench, link, mode, mtu)
        if limit:
            break
        worked.append(mtu)
    wanted = LARGEST_MTU[link.driver, mode]
    expect(worked and worked[-1] >= wanted, f"works: {worked}, and {wanted} is to; {limit}")
    bench.notes.append(f"works: {worked[0]} to {worked[-1]}; {limit or 'no larger one was tried'}")


def _try_mtu(bench, link, mode, mtu):
    """Serves with an MTU. Returns None if whole packets go both ways, else the driver's objection."""
    done = bench.guest.run(f"ip link set {link.card} mtu {mtu}")
    if done.code != 0:
        return f"{mtu}: the driver refuses it: {done.output.strip()}"
    bench.namespace.set_mtu(link, mtu)
    bench.wait_for_link(link)
    server = bench.server("ilet-echo", link, "--mode", mode)
    try:
        server.start()
    except LabError as error:
        said = str(error).split("error: ")[-1]
        expect("MTU" in said, f"MTU {mtu} is refused in other words: {error}")
        return f"{mtu}: {said}"
    before = bench.driver_drops(link)
    with server:
        try:
            bench.ping(link.server4)
            # Notices a packet that does not fit sooner than the echoes would.
            bench.ping(link.server4, mtu - 28, seconds=5)
            bench.echo("udp", link.server4, 1, 10, mtu - 28)
            bench.echo("udp", link.server6, 1, 10, mtu - 48)
            bench.echo("tcp", link.server4, 1, 10, mtu)
        except CheckFailed as failure:
            drops = bench.driver_drops(link) - before
            warned = "may not receive packets" in server.errors()
            expect(drops or warned, f"MTU {mtu} does not work, and nothing says so: {failure}")
            bench.end(server, allow=("xsk_rx_dropped",))
            return f"{mtu}: the driver dropped {drops} packets itself{', and the stack had warned' if warned else ''}"
        bench.end(server)
    return None

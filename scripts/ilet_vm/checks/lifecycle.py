"""Servers that end, in order and not, that start again, and that share a machine."""

import json
import time

from ..bench import expect
from ..network import IGB, VIRTIO
from ..server import Server
from .check import check
from .links import for_both

CHECKS = []


@for_both("sigterm under load", "SIGTERM while 64 connections ask in closed loops: an orderly end, every frame accounted for", CHECKS)
def _(bench, link, mode):
    with bench.server("ilet-echo", link, "--mode", mode) as server:
        bench.ping(link.server4)
        client = bench.start_client("echo", "tcp", link.server4, 7, 64, 10_000_000, 64)
        time.sleep(1.5)
        expect(client.poll() is None, "the echoes were over before the signal")
        server.signal("TERM")
        report = server.ended()
        said, errors = client.communicate(timeout=200)
        expect(client.returncode == 0, errors)
        result = json.loads(said)
        expect(result["right"] > 64 and result["wrong"] == 0, f"echoes until the end: {result}")
        bench.check_report(server, report, allow=("tx_unsent",))


@for_both("stop with open connections", "eight idle connections at the stop: they are ended, every frame is accounted for", CHECKS)
def _(bench, link, mode):
    for poll in ("busy", "sleep"):
        with bench.server("ilet-echo", link, "--mode", mode, "--poll", poll) as server:
            client = bench.start_client("hold", link.server4, 7, 8)
            held = client.stdout.readline()
            expect('"held": 8' in held, f"no eight connections: {held or client.stderr.read().strip().splitlines()[-1:]}")
            report = server.stop()
            said, _ = client.communicate(timeout=60)
            expect('"ended": 8' in said, f"the server did not end its eight connections: {said}")
            bench.check_report(server, report, allow=("tx_unsent",))


@for_both("kill -9", "the kernel has its traffic back at once, and a restart serves at once", CHECKS)
def _(bench, link, mode):
    bench.guest.must(f"ip address add {link.guest4}/24 dev {link.card}")
    with bench.server("ilet-echo", link, "--mode", mode) as server:
        bench.echo("tcp", link.server4, 4, 40, 64)
        client = bench.start_client("echo", "udp", link.server4, 7, 16, 10_000_000, 64)
        time.sleep(0.5)
        server.signal("KILL")
        server.ended()
        client.kill()
        client.communicate()
    expect("xdp" not in bench.guest.must(f"ip link show {link.card}"), "the XDP program is still attached")
    bench.wait_for_link(link)
    bench.ping(link.guest4)
    with bench.server("ilet-echo", link, "--mode", mode) as server:
        bench.echo("tcp", link.server4, 4, 40, 64)
        bench.ping(link.guest4)
        bench.end(server)


@check(CHECKS, "two servers, two cards", "each has a queue of its own; a second one on the same card is refused with a line")
def _(bench):
    with (
        bench.server("ilet-echo", VIRTIO) as echo,
        bench.server("ilet-httpd", IGB) as httpd,
    ):
        code, said = bench.server("ilet-httpd", VIRTIO, queues=(1,)).refused()
        expect(code == 1 and "already has an XDP program" in said, f"exit code {code}: {said}")
        client = bench.start_client("fetch", f"http://{IGB.server4}/file1m", 4, 4)
        bench.echo("tcp", VIRTIO.server4, 32, 640, 64)
        bench.echo("udp", VIRTIO.server6, 32, 640, 64)
        said, errors = client.communicate(timeout=200)
        expect(client.returncode == 0, errors)
        bench.check_download(json.loads(said), "file1m", 16)
        bench.end(echo)
        bench.end(httpd)


@check(CHECKS, "start line veth", "a driver without zero-copy: the start line says so, and --mode zero-copy fails with the same")
def _(bench):
    bench.guest.must(
        "ip netns add other; ip link add v0 type veth peer name v1 netns other; ip link set v0 up; ip -n other link set v1 up"
    )
    args = ("--interface", "v0", "--address", "10.78.0.2/24", "--queues", "0", "--cores", "0")
    with Server(bench.guest, "ilet-echo", *args) as server:
        expect("queue 0 copy (" in server.ready and "veth" in server.ready, server.ready)
        why = server.ready.split("queue 0 copy (")[1].rstrip(")").split(";")[0]
        bench.notes.append(why)
        bench.end(server)
    code, said = Server(bench.guest, "ilet-echo", *args, "--mode", "zero-copy").refused()
    expect(code == 1 and why.split(",")[0] in said, f"exit code {code}, and not {why!r}: {said}")

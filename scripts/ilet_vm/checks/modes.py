"""Every driver, mode, number of queues and --poll: the start line is right, and small and large packets go both ways."""

from ..bench import expect
from ..network import IGB, VIRTIO
from .check import Check

CHECKS = []

# Closed loops: number in flight, number of requests, and bytes of each.
LOOPS = ((1, 100, 64), (16, 400, 600), (128, 1024, 64))
# Bytes of UDP data that fill a packet at MTU 1,500, by IP version.
WHOLE = {4: 1472, 6: 1452}


def _everything(bench, link, mode, queues, poll):
    bench.channels(link, queues)
    served = tuple(range(queues))
    args = ("--mode", mode, "--poll", poll)
    with bench.server("ilet-echo", link, *args, queues=served) as server:
        for queue in served:
            expect(f"queue {queue} {mode}" in server.ready, f"the start line says: {server.ready}")
        for version, address in ((4, link.server4), (6, link.server6)):
            bench.ping(address)
            bench.ping(address, 1400)
            for connections, requests, size in LOOPS:
                bench.echo("udp", address, connections, requests, size)
                bench.echo("tcp", address, connections, requests, size)
            bench.echo("udp", address, 1, 20, WHOLE[version])
            bench.echo("tcp", address, 1, 20, 1400)
        report = bench.end(server)
        lost = report.xdp.get("pass_no_socket", 0)
        expect(lost == 0, f"{lost} packets arrived at queues without a worker")
    with bench.server("ilet-httpd", link, *args, queues=served) as server:
        for address in (link.server4, link.server6):
            bench.download(address, "page", 4, 10)
            bench.download(address, "file100k", 16, 2)
            bench.download(address, "file10m")
        bench.end(server)


for _link in (VIRTIO, IGB):
    for _mode in ("zero-copy", "copy"):
        for _queues in (1, 2):
            for _poll in ("busy", "adaptive", "sleep"):
                CHECKS.append(
                    Check(
                        f"modes {_link.driver} {_mode} {_queues}q {_poll}",
                        "start line, ping, echo in closed loops of 1 to 128, pages and 10 MB by hash, IPv4 and IPv6",
                        lambda bench, arguments=(_link, _mode, _queues, _poll): _everything(bench, *arguments),
                    )
                )

"""Queues: RSS, steering rules, queues that a driver adds, queues without a worker."""

from ..bench import expect, last_line
from ..errors import NotHere
from ..network import IGB, VIRTIO, VIRTIO_SPARE
from .check import check

CHECKS = []


@check(CHECKS, "queues added", "a driver that adds queues on attach: refused with a line, nothing left, and the way out works")
def _(bench):
    card = VIRTIO_SPARE.card
    code, said = bench.server("ilet-echo", VIRTIO_SPARE, queues=(0, 1)).refused()
    expect(code == 1 and "queue 2, 3" in said, f"exit code {code}: {said}")
    way_out = f"ethtool -L {card} combined {VIRTIO_SPARE.queues}"
    expect(way_out in said and "--queues 0,1,2,3" in said, f"no {way_out!r}: {said}")
    bench.notes.append(said.strip().removeprefix("error: "))
    # The queues that the driver adds have no transmit queue.
    code, said = bench.server("ilet-echo", VIRTIO_SPARE, queues=(0, 1, 2, 3)).refused()
    expect(code == 1 and "queue 2" in said and "not send" in said, f"exit code {code}: {said}")
    expect("xdp" not in bench.guest.must(f"ip link show {card}"), "the XDP program is still attached")
    bench.guest.must(way_out)
    with bench.server("ilet-echo", VIRTIO_SPARE, "--poll", "sleep", queues=(0, 1, 2, 3)) as server:
        for address in (VIRTIO_SPARE.server4, VIRTIO_SPARE.server6):
            bench.ping(address)
            bench.echo("udp", address, 64, 512, 64)
            bench.echo("tcp", address, 64, 512, 64)
        report = bench.end(server)
        expect(report.xdp.get("pass_no_socket", 0) == 0, f"packets without a worker: {report.xdp}")


@check(CHECKS, "queues rss igb", "RSS weights (ethtool -X) move all connections to queue 1, and it is the only one served")
def _(bench):
    bench.guest.must(f"ethtool -X {IGB.card} weight 0 1")
    with bench.server("ilet-echo", IGB, queues=(1,)) as server:
        # ARP is not hashed: it comes to queue 0, which has no worker.
        for address in (IGB.server4, IGB.server6):
            bench.echo("udp", address, 16, 256, 64)
            bench.echo("tcp", address, 16, 256, 64)
            bench.ping(address)
        report = bench.end(server)
        expect(report.xdp.get("redirect_own", 0) >= 1024, f"the stack saw {report.xdp}")
        expect(report.xdp.get("redirect_arp", 0) == 0, f"ARP came to the queue with a worker: {report.xdp}")


@check(CHECKS, "queues steering igb", "a rule (ethtool -N) sends our port to our queue, all else to the kernel's", link=IGB)
@check(CHECKS, "queues steering virtio_net", "the same", link=VIRTIO)
def _(bench, link):
    rule = f"ethtool -N {link.card} flow-type tcp4 dst-ip {link.server4} dst-port 7 action 1"
    done = bench.guest.run(f"ethtool -K {link.card} ntuple on; {rule}")
    if done.code != 0:
        raise NotHere(f"{link.driver} as emulated has no steering rules: {last_line(done)}")
    bench.guest.must(f"ip address add {link.guest4}/24 dev {link.card}")
    with bench.server("ilet-echo", link, queues=(1,)) as server:
        bench.echo("tcp", link.server4, 16, 256, 64)
        bench.ping(link.guest4)
        bench.end(server)

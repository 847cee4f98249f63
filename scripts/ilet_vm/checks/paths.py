"""Paths that lose, delay and reorder packets, by netem in a namespace of the guest. The client is the guest's kernel."""

import re

from ..bench import expect
from ..network import IGB, VIRTIO
from .check import check

CHECKS = []

# netem in both directions. The path: client namespace, router namespace with a card, the host, the server's card.
PATHS = {
    "loss": "loss 1%",
    "delay": "delay 20ms 5ms",
    "reordering": "delay 5ms reorder 25% 50%",
}
CLIENT_NET, CLIENT4, ROUTER4 = "10.79.0.0/24", "10.79.0.1", "10.79.0.254"


def _path(bench, server_link, client_link, netem):
    """Makes the path; the client's kernel reaches the server's address through the host."""
    router4 = client_link.guest4
    bench.guest.must(
        f"""set -e
ip netns add client; ip netns add router
ip link add c0 netns client type veth peer name r0 netns router
ip link set {client_link.card} netns router
ip -n client address add {CLIENT4}/24 dev c0; ip -n client link set c0 up; ip -n client link set lo up
ip -n router address add {ROUTER4}/24 dev r0; ip -n router link set r0 up
ip -n router address add {router4}/24 dev {client_link.card}; ip -n router link set {client_link.card} up
ip -n client route add default via {ROUTER4}
ip -n router route add {server_link.server4}/32 via {client_link.host4}
ip netns exec router sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
# One packet each: netem would drop few of the large ones that the card's driver makes of many.
ip netns exec router ethtool -K {client_link.card} gro off
tc -n router qdisc add dev r0 root netem limit 10000 {netem}
tc -n router qdisc add dev {client_link.card} root netem limit 10000 {netem}
for ns in client router; do for dev in c0 r0; do ip netns exec $ns ethtool -K $dev tx off gro off 2>/dev/null || true; done; done
"""
    )
    bench.namespace.run("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
    bench.namespace.run("ip", "route", "replace", CLIENT_NET, "via", router4)


def _fetch(bench, address, name, seconds):
    """A download by the guest's own kernel, with busybox."""
    text = f"ip netns exec client wget -q -T 60 -O /tmp/got http://{address}/{name} && sha256sum </tmp/got"
    done = bench.guest.run(text, seconds)
    expect(done.code == 0, f"{name}: exit code {done.code}: {done.output.strip()}")
    expect(done.output.split()[0] == bench.hash_of(name), f"{name} arrives changed")


def _netem_counts(bench):
    """Packets that netem passed and dropped, in both directions."""
    said = bench.guest.must("tc -n router -s qdisc show | grep -A1 netem")
    counts = re.findall(r"Sent \d+ bytes (\d+) pkt \(dropped (\d+),", said)
    return sum(int(passed) for passed, _ in counts), sum(int(dropped) for _, dropped in counts)


def _over(bench, server_link, client_link, netem):
    try:
        _path(bench, server_link, client_link, netem)
        # The stack sends answers back to the host, which sent it the request; the host forwards them.
        with bench.server("ilet-httpd", server_link, "--mode", "zero-copy") as server:
            for name in ("page", "page", "file100k", "file100k", "file1m"):
                _fetch(bench, server_link.server4, name, 240)
            bench.end(server)
        passed, dropped = _netem_counts(bench)
        bench.notes.append(f"netem passed {passed} packets and dropped {dropped}")
        # Some 900 segments and their acknowledgments: what is not seen here did not go this way.
        expect(passed > 900, f"netem saw {passed} packets only")
        expect("loss" not in netem or dropped > 0, "netem dropped nothing")
    finally:
        bench.guest.clean(f"ip netns exec router ethtool -K {client_link.card} gro on; ip -n router link set {client_link.card} netns 1")
        bench.namespace.run("ip", "route", "del", CLIENT_NET, check=False)


for _server, _client in ((VIRTIO, IGB), (IGB, VIRTIO)):
    for _name, _netem in PATHS.items():
        check(
            CHECKS, f"path {_name} {_server.driver}", f"netem {_netem}, both ways: pages, 100 KB and 1 MB by hash",
            server_link=_server, client_link=_client, netem=_netem,
        )(_over)

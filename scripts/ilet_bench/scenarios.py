"""What is measured: cells, peers and figures of each scenario, as data.

A cell is one combination of parameters. Each cell is measured against each peer of its scenario in each
round. The first peer of a scenario is its subject: ratios are the subject's to each other peer.
"""

from dataclasses import dataclass, field

ECHO_KERNEL = ("kernel-echo/default", "kernel-echo/rps")
HTTPD_KERNEL = ("kernel-httpd/default", "kernel-httpd/rps")
NGINX = ("nginx/default", "nginx/rps")
# The limit of the path, for as many datagrams as there are connections.
LIMIT = ("ilet-reflect",)

RATE = (
    "requests_per_second", "latency_p50_us", "latency_p90_us", "latency_p99_us", "latency_p99_9_us", "latency_max_us",
    "server_cpu_us_per_request", "switches_per_request",
)
DOWNLOAD = (
    "bytes_per_second", "latency_p50_us", "latency_p90_us", "latency_p99_us", "latency_max_us",
    "server_cpu_us_per_request", "switches_per_request",
)

LARGE = 10_000_000
UPLOAD = 100_000_000
TRACED = 5_000_000

# What an upload and a traced download are likely to take, in units of --seconds.
UPLOAD_LENGTH = 1
TRACED_LENGTH = 6


@dataclass(frozen=True)
class Cell:
    """One combination of parameters. Sizes in bytes, probabilities as fractions."""

    protocol: str
    connections: int
    size: int
    client: str = "ilet-load"
    idle: int = 0
    # Bytes per second that each connection reads at most.
    slow: int | None = None
    mtu: int = 1500
    # Offloads of the kernel servers' pair: `on` is possible with a kernel client only.
    offloads: str = "off"
    loss: float = 0.0
    reorder: float = 0.0
    # Whether the link has the relay in it, which then makes the loss; a kernel client's.
    relayed: bool = False
    # A round trip that the relay adds, and its rate: 0 for none.
    rtt_ms: float = 0
    rate_mbit: float = 0
    # Whether the relay's trace of the server's packets is looked at.
    traced: bool = False
    # Whether requests that fail are a figure, and no failure of the measurement.
    counts_failures: bool = False
    # SYNs from addresses that nobody has, while the connections are busy.
    flood: int = 0
    # Measured time, in units of --seconds.
    length: float = 1
    # At most so many rounds.
    rounds: int | None = None
    # Whether --quick measures it.
    quick: bool = False
    # Peers that are not measured in this cell.
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scenario:
    """`axes` are the parameters (fields of Cell) that tell its cells apart. `columns` are the table's figures,
    the first of them the one that the plan's progress shows. `ratios` are those shown as ratios."""

    name: str
    title: str
    axes: tuple[str, ...]
    peers: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[Cell, ...] = field(repr=False)
    ratios: tuple[str, ...] = ("requests_per_second", "latency_p50_us")
    # What an idle core of an AF_XDP server does. `sleep` where processor time has to be work, not waiting.
    poll: str = "adaptive"
    # Rounds in --quick; a scenario without a quick cell is in it only if it is named, and then all of it.
    quick_rounds: int = 2
    # Peers that --quick leaves out.
    quick_without: tuple[str, ...] = ()

    def parameters(self, cell):
        """The cell's parameters as they stand in results.json."""
        return {axis: getattr(cell, axis) for axis in self.axes}


def _udp_echo():
    return tuple(
        Cell("udp-echo", in_flight, size, quick=size == 64 and in_flight in (1, 64))
        for size in (64, 1024) for in_flight in (1, 16, 64, 256)
    )


def _tcp_echo():
    # Plain smoltcp scans all its sockets for every packet: with 10,000 it does not get through the handshakes.
    without = {
        16: ("plain-smoltcp",), 256: ("plain-smoltcp",), 1_000: LIMIT, 10_000: ("plain-smoltcp", *LIMIT),
    }
    return tuple(
        Cell("tcp-echo", connections, 64, quick=connections in (1, 64, 256), without=without.get(connections, ()))
        for connections in (1, 16, 64, 256, 1_000, 10_000)
    )


def _http_keepalive():
    own = tuple(
        Cell("http", connections, size, rounds=3 if size == 128 else 2, quick=size == 128 and connections in (1, 64),
             without=() if size == 128 and connections < 1_000 else LIMIT)
        for size in (128, 1_024, 10_240, 102_400) for connections in (1, 64, 1_000)
    )
    wrk = tuple(
        Cell("http", connections, 128, client="wrk", offloads="on", quick=connections == 64, without=LIMIT)
        for connections in (1, 64, 1_000)
    )
    return own + wrk


def _idle_scale():
    # Opening half a million connections takes longer than the measurement: fewer rounds of those.
    rounds = {100_000: 2, 500_000: 1}
    return tuple(
        Cell("tcp-echo", 64, 64, idle=idle, rounds=rounds.get(idle), quick=idle in (0, 10_000))
        for idle in (0, 1_000, 10_000, 100_000, 500_000)
    )


def _slow_clients():
    # 28,800 bits per second.
    return tuple(
        Cell("http-download", clients, LARGE, slow=3_600, length=3, rounds=2, quick=clients == 1_000)
        for clients in (1_000, 10_000)
    )


def _download():
    variants = (
        {"client": "ilet-load", "offloads": "off", "mtu": 1500},
        {"client": "wrk", "offloads": "on", "mtu": 1500},
        {"client": "ilet-load", "offloads": "off", "mtu": 3498},
    )
    # Long enough that every connection gets its file: so many share the link.
    lengths = {10: 2, 30: 3, 60: 4, 120: 8}
    return tuple(
        Cell("http-download", connections, LARGE, **variant, length=length, rounds=2,
             quick=connections == 10 and variant is variants[0])
        for variant in variants for connections, length in lengths.items()
        if connections in (10, 120) or variant is variants[0]
    )


def _in_memory():
    # A turn takes up to 64 requests; with one connection it is all one request's.
    time = tuple(
        Cell("tcp-echo", connections, 64, client="ilet-memory", quick=connections < 10_000)
        for connections in (1, 64, 1_000, 10_000)
    )
    # Instructions are the same every time. Plain smoltcp's go up with the connections: two counts show that.
    count = tuple(
        Cell("tcp-echo", connections, 64, client="callgrind", rounds=1, quick=connections == 64,
             without=("plain-smoltcp",) if connections == 10_000 else ())
        for connections in (1, 64, 1_000, 10_000)
    )
    return time + count


def _lossy():
    faults = ({"loss": 0.001}, {"loss": 0.01}, {"loss": 0.05}, {"reorder": 0.05})
    promised = ({"loss": 0.01},)
    # Those that goals are about are longer: timeouts take a second, and in two there are few.
    echo = tuple(
        Cell("tcp-echo", 64, 64, **fault, length=4 if fault in promised else 2, rounds=2, quick=fault in promised,
             without=NGINX) for fault in faults
    )
    # Not the large file: at the end the generator waits for what it has asked for.
    download = tuple(
        Cell("http-download", 10, 1_000_000, **fault, length=6 if fault in promised else 3, rounds=2,
             quick=fault in promised, without=ECHO_KERNEL) for fault in faults
    )
    return echo + download


def _upload():
    return (
        *(
            Cell("tcp-upload", 1, UPLOAD, client="kernel-upload", offloads=offloads, length=UPLOAD_LENGTH)
            for offloads in ("off", "on")
        ),
        # From one of ours: half of what it sends takes the time of the measurement.
        *(Cell("tcp-upload", 1, UPLOAD // 10, loss=loss, length=3, rounds=2) for loss in (0.0, 0.01)),
    )


def _burst():
    return tuple(
        Cell("http", 1_000, size, client=client, offloads=offloads, counts_failures=True, length=2, rounds=2)
        for client, offloads in (("wrk", "on"), ("ilet-load", "off")) for size in (10_240, 102_400)
    )


def _impaired():
    # One of 1 MB takes little time; a large one is a long-lived connection's.
    small = tuple(
        Cell("http-download", 10, 1_000_000, client="wrk", relayed=True, loss=loss, length=5, rounds=2)
        for loss in (0.01, 0.05)
    )
    paths = (
        {"rtt_ms": 10, "loss": 0.01}, {"rtt_ms": 20, "loss": 0.01}, {"rtt_ms": 50, "loss": 0.01},
        {"rtt_ms": 20, "rate_mbit": 200}, {"rtt_ms": 20, "rate_mbit": 1_000},
    )
    large = tuple(
        Cell("http-download", 10, LARGE, client="wrk", relayed=True, **path, length=8, rounds=2) for path in paths
    )
    return small + large


def _trace():
    paths = ({"rtt_ms": 20, "loss": 0.01}, {"rtt_ms": 20, "rate_mbit": 200})
    return tuple(
        Cell("http-download", 1, TRACED, client="curl", relayed=True, traced=True, **path, length=TRACED_LENGTH, rounds=2)
        for path in paths
    )


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "generator", "the generator against a minimal sender, both at ilet-reflect",
            ("size", "connections"), ("ilet-load", "ilet-send"),
            ("requests_per_second", "latency_p50_us", "latency_p99_us", "generator_cpu_us_per_request"),
            (Cell("udp-echo", 64, 64, quick=True), Cell("udp-echo", 256, 64)),
            ratios=("requests_per_second",),
        ),
        Scenario(
            "generator-cost", "the generator's own cost of a TCP request, both ends sleep when they can",
            ("size", "connections"), ("ilet",),
            ("generator_to_server_cpu", "generator_cpu_us_per_request", "server_cpu_us_per_request", "requests_per_second"),
            (Cell("tcp-echo", 64, 64, quick=True),),
            ratios=(), poll="sleep",
        ),
        Scenario(
            "udp-echo", "UDP echo, datagrams in flight", ("size", "connections"),
            ("ilet", "ilet-reflect", *ECHO_KERNEL), RATE, _udp_echo(),
        ),
        Scenario(
            "tcp-echo", "TCP echo", ("size", "connections"), ("ilet", *LIMIT, *ECHO_KERNEL, "plain-smoltcp"), RATE,
            _tcp_echo(),
            quick_without=("plain-smoltcp",),
        ),
        Scenario(
            "http-keepalive", "HTTP, static file, connections kept open", ("client", "size", "connections"),
            ("ilet", *LIMIT, *NGINX, *HTTPD_KERNEL), RATE, _http_keepalive(), quick_without=HTTPD_KERNEL,
        ),
        Scenario(
            "http-connection", "HTTP, one connection per request", ("size", "connections"),
            ("ilet", *NGINX, *HTTPD_KERNEL), RATE,
            (Cell("http-connection", 64, 512, quick=True),), quick_without=HTTPD_KERNEL,
        ),
        Scenario(
            "idle-scale", "TCP echo, 64 busy connections among idle ones", ("size", "connections", "idle"),
            ("ilet", *ECHO_KERNEL),
            ("server_cpu_us_per_request", "requests_per_second", "latency_p50_us", "latency_p99_us", "memory_bytes_per_connection", "switches_per_request"),
            _idle_scale(), ratios=("server_cpu_us_per_request", "memory_bytes_per_connection"), poll="sleep",
            quick_rounds=1,
        ),
        Scenario(
            "slow-clients", "HTTP, a large file to slow readers", ("size", "connections", "slow"),
            ("ilet", *NGINX, *HTTPD_KERNEL),
            ("bytes_per_second", "memory_bytes_per_connection", "server_cpu_percent", "switches_per_second"),
            _slow_clients(), ratios=("bytes_per_second", "memory_bytes_per_connection"), poll="sleep",
            quick_rounds=1, quick_without=("nginx/rps", *HTTPD_KERNEL),
        ),
        Scenario(
            "download", "HTTP, a large file; the latency is the response time",
            ("client", "mtu", "offloads", "size", "connections"), ("ilet", *NGINX), DOWNLOAD, _download(),
            ratios=("bytes_per_second", "latency_p50_us"), quick_rounds=1,
        ),
        Scenario(
            "in-memory", "TCP echo over memory, user space only", ("client", "size", "connections"),
            ("ilet", "ilet-engine", "plain-smoltcp"), ("ns_per_request", "instructions_per_request"), _in_memory(),
            ratios=("ns_per_request", "instructions_per_request"), quick_rounds=1,
        ),
        Scenario(
            "lossy", "seeded loss and reordering, in both directions", ("protocol", "size", "connections", "loss", "reorder"),
            ("ilet", "ilet-engine", *ECHO_KERNEL, *NGINX),
            ("requests_per_second", "bytes_per_second", "latency_p50_us", "latency_p99_us", "latency_max_us", "server_cpu_us_per_request"),
            _lossy(), ratios=("requests_per_second", "bytes_per_second", "latency_p99_us"), quick_rounds=1,
        ),
        Scenario(
            "flood", "TCP echo while SYNs from random addresses pour in", ("size", "connections", "flood"), ("ilet",),
            ("flooded_to_quiet", "quiet_requests_per_second", "flooded_requests_per_second", "syns_per_second",
             "resident_growth_bytes", "opened_connections", "opened_share"),
            # As long as the flood takes.
            (Cell("tcp-echo", 64, 64, flood=1_000_000, rounds=2, quick=True),), ratios=(), quick_rounds=1,
        ),
        Scenario(
            "upload", "one TCP upload to a sink", ("client", "offloads", "size", "connections", "loss"),
            ("ilet", "kernel-sink/default", "kernel-sink/rps"),
            ("bytes_per_second", "upload_s", "server_cpu_percent", "switches_per_second"), _upload(),
            ratios=("bytes_per_second",),
        ),
        Scenario(
            "burst", "HTTP, 1,000 connections that ask at once", ("client", "offloads", "size", "connections"),
            ("ilet", *NGINX), ("failed_requests", "requests_per_second", "latency_p50_us", "latency_p99_us", "latency_max_us"),
            _burst(), ratios=("requests_per_second",),
        ),
        Scenario(
            "impaired", "HTTP over a relay with loss, delay and a rate, kernel clients",
            ("size", "connections", "loss", "rtt_ms", "rate_mbit"), ("ilet", "nginx"),
            ("bytes_per_second", "latency_p50_us", "latency_max_us", "server_cpu_percent", "relay_missed"), _impaired(),
            ratios=("bytes_per_second",),
        ),
        Scenario(
            "trace", "what a sender does on an impaired path: one download, from the relay's trace",
            ("size", "loss", "rtt_ms", "rate_mbit"), ("ilet", "nginx"),
            ("download_s", "segments_sent", "segments_again", "again_share", "pauses", "longest_pause_ms", "relay_missed"),
            _trace(), ratios=("download_s",),
        ),
    )
}

# Peers that are measured only when --peers names them, and where.
OPTIONAL_PEERS = {
    "kernel-echo-busy-poll": ("udp-echo", "tcp-echo"),
    "kernel-httpd-busy-poll": ("http-keepalive", "http-connection"),
}

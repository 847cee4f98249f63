"""Output of the clients, and measurements made of it, for the tests."""

import json

from .. import clients, plan
from ..measure import Measurement
from ..scenarios import SCENARIOS, Cell


def ilet_load_result(rate=100_000.0, **changes):
    """A result of ilet-load as an object."""
    result = {
        "target": "tcp-echo://10.0.0.2:7", "mode": "copy", "xdp": "native",
        "parameters": {"connections": 64, "idle": 0, "depth": 1, "rate": None, "size": 64},
        "seconds": 2.0,
        "connections": {"opened": 64, "established": 64, "open_at_end": 64},
        "requests": int(rate * 2), "requests_per_second": rate, "bytes_received": 1, "bytes_per_second": rate * 64,
        "bytes_sent": 0, "bytes_sent_per_second": 0.0,
        "offered_per_second": None,
        "latency_us": {
            "mean": 10.0, "p50": 9.0, "p90": 12.0, "p99": 20.0, "p99_9": 30.0, "p99_99": 40.0, "max": 55.0,
            "cdf": [[8.0, 0.1], [9.0, 0.5], [55.0, 1.0]],
        },
        "errors": {"refused": 0, "reset": 0, "corrupt": 0}, "errors_total": 0,
        "server": {
            "pids": [1], "cpu_s": 1.0, "cpu_us_per_request": 5.0, "voluntary_switches": 4, "involuntary_switches": 2,
            "switches_per_request": 0.00003, "resident_bytes_begin": 1, "resident_bytes_end": 1, "resident_bytes_max": 1,
        },
        "generator": {"cpu_s": 2.0, "cpu_us_per_request": 10.0}, "series": None,
    }
    return result | changes


# 1,000 requests per second, and 600 while the flood runs, from the second on, for ten.
FLOOD_SERIES = {"began_at": 5_000.0, "points": [[0.0, 0], [2.0, 2_000], [12.0, 8_000], [13.0, 9_000]]}
FLOOD = {
    "sent": 1_000_000, "began_at": 5_002.0, "seconds": 10.0, "sent_per_second": 100_000.0, "syn_acks": 0, "resets": 0,
    "mode": "copy",
}
ATTEMPTS = [
    {"began_at": began_at, "seconds": 0.001, "failure": failure}
    for began_at, failure in ((5_001.9, "timeout"), (5_002.1, None), (5_003.0, "timeout"), (5_011.9, None), (5_012.1, None))
]

WRK = """\
Running 2s test @ http://10.5.4.2/128.bin
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   351.27us  226.01us   8.40ms   94.21%
    Req/Sec   178.90k    11.02k  187.41k    85.00%
  Latency Distribution
     50%  325.00us
     75%  390.00us
     90%    1.20ms
     99%    2.50ms
  357800 requests in 2.01s, 110.90MB read
Requests/sec: 178009.95
Transfer/sec:     55.17MB
"""

ETHTOOL = """\
Features for srv1:
rx-checksumming: on
tx-checksumming: off
\ttx-checksum-ipv4: off [fixed]
scatter-gather: off
tcp-segmentation-offload: off
\ttx-tcp-segmentation: off [requested on]
generic-segmentation-offload: off [requested on]
generic-receive-offload: on
large-receive-offload: off [fixed]
"""

CELL = Cell("tcp-echo", 64, 64)


def measurement(peer, round_number, rate=None, failure=None, note=None, scenario="tcp-echo", cell=CELL, **changes):
    """What measuring a step gave: a result of ilet-load at this rate, or a failure, or a note."""
    step = plan.Step(SCENARIOS[scenario], cell, peer, round_number)
    made = Measurement(step, failure=failure, note=note)
    if rate is not None:
        made.values, made.details = clients.parse_ilet_load(json.dumps(ilet_load_result(rate, **changes)))
    return made

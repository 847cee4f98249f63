"""The command lines of ilet-load, wrk, curl, kernel-upload, ilet-send, ilet-flood, the probe and ilet-memory, and what
they print.

The parsers return figures by name (see `figures`), and raise ClientError with one line if the output is not
what it should be. Requests that failed make it so, except where a cell counts them.
"""

import json
import math
import re
import sys

from .lab import CLIENT_CORE, FLOOD_END, ROUTER_END

# New connections per second; and from so many on, where each takes memory that a virtual machine may have to
# fetch from its host first.
OPEN_RATE = 20_000
MANY_CONNECTIONS = 200_000
MANY_OPEN_RATE = 9_000
# SYNs per second of the flood: what the generator's core can do beside the load.
FLOOD_RATE = 100_000


class ClientError(Exception):
    """What a client complained about, in one line."""


# --- ilet-load ---

SCHEMES = {
    "udp-echo": "udp-echo://{0}:{1}",
    "tcp-echo": "tcp-echo://{0}:{1}",
    "tcp-upload": "tcp-upload://{0}:{1}",
    "http": "http://{0}:{1}/{2}.bin",
    "http-connection": "http-connection://{0}:{1}/{2}.bin",
    "http-download": "http-download://{0}:{1}/{2}.bin",
}


def timeout_s(cell):
    """How long a request may take, or with downloads how long nothing may come, before it counts as an error."""
    return 30 if cell.protocol in ("http-download", "tcp-upload") or cell.loss or cell.reorder or cell.rtt_ms else 5


def open_rate(cell):
    """New connections per second."""
    return OPEN_RATE if cell.connections + cell.idle < MANY_CONNECTIONS else MANY_OPEN_RATE


def fault_arguments(cell, round_number):
    """Loss and reordering, in both directions, by the generator's port: the same for every peer of a round."""
    if not cell.loss and not cell.reorder:
        return []
    return ["--loss", f"{cell.loss:g}", "--reorder", f"{cell.reorder:g}", "--fault-seed", str(round_number)]


def ilet_load(lab, server, cell, round_number, seconds, warmup, poll):
    """The command line of ilet-load."""
    target = SCHEMES[server.protocol].format(server.address, server.port, cell.size)
    argv = [
        str(lab.bin_dir / "ilet-load"), "--interface", f"cli{server.pair}", "--sources", server.sources,
        "--target", target, "--connections", str(cell.connections), "--duration", f"{seconds:g}",
        "--warmup", f"{warmup:g}", "--timeout", str(timeout_s(cell)), "--core", str(CLIENT_CORE),
        "--poll", poll, "--json",
    ]
    if not server.protocol.startswith("http"):
        argv += ["--size", str(cell.size)]
    else:
        argv += ["--body-file", str(lab.run_dir / "www" / f"{cell.size}.bin")]
    if cell.idle:
        argv += ["--idle", str(cell.idle)]
    if cell.connections + cell.idle >= OPEN_RATE / 100:
        argv += ["--open-rate", str(open_rate(cell))]
    if cell.slow:
        argv += ["--slow", str(cell.slow)]
    argv += fault_arguments(cell, round_number)
    for pid in server.pids:
        argv += ["--server-pid", str(pid)]
    return argv


def parse_ilet_load(text, counts_failures=False):
    """The figures, and the whole result. Bytes are those received, or sent by uploads."""
    try:
        result = json.loads(text)
        latency = result["latency_us"] or {}
        values = {
            "requests_per_second": result["requests_per_second"],
            "bytes_per_second": result["bytes_sent_per_second"] if result["bytes_sent"] else result["bytes_per_second"],
            "generator_cpu_us_per_request": result["generator"]["cpu_us_per_request"],
        }
        for name in ("p50", "p90", "p99", "p99_9", "p99_99", "max"):
            values[f"latency_{name}_us"] = latency.get(name)
        server = result["server"]
        if server is not None:
            values["server_cpu_us_per_request"] = server["cpu_us_per_request"]
            values["switches_per_request"] = server["switches_per_request"]
            values["server_cpu_percent"] = server["cpu_s"] / result["seconds"] * 100
            values["switches_per_second"] = (
                server["voluntary_switches"] + server["involuntary_switches"]
            ) / result["seconds"]
            generator = values["generator_cpu_us_per_request"]
            if server["cpu_us_per_request"] and generator is not None:
                values["generator_to_server_cpu"] = generator / server["cpu_us_per_request"]
        if counts_failures:
            values["failed_requests"] = result["errors_total"]
        elif result["errors_total"]:
            kinds = ", ".join(f"{count} {kind}" for kind, count in result["errors"].items() if count)
            raise ClientError(f"{result['errors_total']} errors: {kinds}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ClientError(f"ilet-load printed no result that can be read ({type(error).__name__}: {error})") from error
    return values, result


# --- wrk ---


def wrk_seconds(seconds):
    """wrk takes whole seconds."""
    return max(1, math.ceil(seconds))


def wrk(server, cell, seconds):
    """The command line of wrk."""
    return [
        "wrk", "-t1", f"-c{cell.connections}", f"-d{wrk_seconds(seconds)}s", "--timeout", f"{timeout_s(cell)}s",
        "--latency", f"http://{server.address}:{server.port}/{cell.size}.bin",
    ]


_TIME_UNITS = {"us": 1, "ms": 1e3, "s": 1e6, "m": 60e6, "h": 3600e6}
_SIZE_UNITS = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}


def parse_wrk(text, counts_failures=False):
    """The figures, and {"requests", "seconds"}. wrk's percentiles end at 99."""
    complaints = re.findall(r"^ *(Socket errors:.*|Non-2xx.*)$", text, re.MULTILINE)
    if complaints and not counts_failures:
        raise ClientError(f"wrk: {complaints[0]}")
    try:
        total = re.search(r"(\d+) requests in ([\d.]+)(us|ms|s|m|h)", text)
        requests, seconds = int(total[1]), float(total[2]) * _TIME_UNITS[total[3]] / 1e6
        rate = float(re.search(r"Requests/sec: +([\d.]+)", text)[1])
        transfer = re.search(r"Transfer/sec: +([\d.]+)([KMGT]?B)", text)
        values = {
            "requests_per_second": rate,
            "bytes_per_second": float(transfer[1]) * _SIZE_UNITS[transfer[2]],
        }
        if counts_failures:
            # As in "Socket errors: connect 0, read 3, write 0, timeout 5" and "Non-2xx or 3xx responses: 2".
            counts = re.findall(r"[a-z:] (\d+)(?:,|$)", "\n".join(complaints), re.MULTILINE)
            values["failed_requests"] = sum(map(int, counts))
        if requests == 0:
            # None was complete: the latencies that it prints are no figures.
            return values, {"requests": requests, "seconds": seconds}
        for name in ("50", "90", "99"):
            # Seconds have a space behind them.
            found = re.search(rf"^ *{name}% +([\d.]+)(us|ms|s|m|h) *$", text, re.MULTILINE)
            values[f"latency_p{name}_us"] = float(found[1]) * _TIME_UNITS[found[2]]
        most = re.search(r"^ *Latency +\S+ +\S+ +([\d.]+)(us|ms|s|m|h)", text, re.MULTILINE)
        values["latency_max_us"] = float(most[1]) * _TIME_UNITS[most[2]]
    except (TypeError, KeyError, ValueError) as error:
        raise ClientError("wrk printed no result that can be read") from error
    return values, {"requests": requests, "seconds": seconds}


# --- kernel-upload ---


def kernel_upload(lab, server, cell):
    """The command line of one upload by the kernel."""
    return [
        str(lab.bin_dir / "kernel-upload"), "--target", f"{server.address}:{server.port}", "--bytes", str(cell.size),
        "--timeout", str(timeout_s(cell)),
    ]


def parse_kernel_upload(text):
    """The figures, and the whole result."""
    try:
        result = json.loads(text)
        return {"bytes_per_second": result["bytes_per_second"], "upload_s": result["seconds"]}, result
    except (ValueError, KeyError, TypeError) as error:
        raise ClientError(f"kernel-upload printed no result that can be read ({error})") from error


# --- curl ---

# A download that takes longer has failed.
CURL_LIMIT_S = 120


def curl(server, cell):
    """The command line of one download by the kernel."""
    return [
        "curl", "--silent", "--show-error", "--output", "/dev/null", "--max-time", str(CURL_LIMIT_S),
        "--write-out", '{"status": %{http_code}, "bytes": %{size_download}, "seconds": %{time_total}}',
        f"http://{server.address}:{server.port}/{cell.size}.bin",
    ]


def parse_curl(text, size):
    """The figures of a download of so many bytes, and the whole result."""
    try:
        result = json.loads(text)
        if (result["status"], result["bytes"]) != (200, size):
            raise ClientError(f"curl: status {result['status']}, {result['bytes']:,} of {size:,} bytes")
        return {"bytes_per_second": size / result["seconds"], "download_s": result["seconds"]}, result
    except (ValueError, KeyError, TypeError) as error:
        raise ClientError(f"curl printed no result that can be read ({error})") from error


# --- ilet-send ---


def ilet_send(lab, server, cell, seconds):
    """The command line of the minimal sender."""
    source = server.sources.replace(".0/24", ".1")
    return [
        str(lab.bin_dir / "ilet-send"), "--interface", f"cli{server.pair}", "--source", source,
        "--target", f"{server.address}:{server.port}", "--peer-link", lab.link_address(f"srv{server.pair}"),
        "--in-flight", str(cell.connections), "--size", str(cell.size), "--duration", f"{seconds:g}",
        "--core", str(CLIENT_CORE), "--json",
    ]


def parse_ilet_send(text):
    """The figures, and the whole result."""
    try:
        result = json.loads(text)
        return {"requests_per_second": result["requests_per_second"]}, result
    except (ValueError, KeyError, TypeError) as error:
        raise ClientError(f"ilet-send printed no result that can be read ({error})") from error


# --- ilet-flood, and who opens connections meanwhile ---


def flood_s(cell):
    """Seconds that a flood takes."""
    return cell.flood / FLOOD_RATE


def ilet_flood(lab, server, cell, limit_s):
    """The command line of the flood, which ends after limit_s even if not all SYNs are sent."""
    return [
        str(lab.bin_dir / "ilet-flood"), "--interface", FLOOD_END, "--sources", lab.flood,
        "--target", f"{server.address}:{server.port}", "--peer-link", lab.link_address(ROUTER_END),
        "--count", str(cell.flood), "--rate", str(FLOOD_RATE), "--duration", f"{limit_s:g}",
        # It shares the core with the load.
        "--core", str(CLIENT_CORE), "--poll", "sleep", "--json",
    ]


def probe(server, seconds):
    """The command line of the probe."""
    return [sys.executable, "-m", "ilet_bench.probe", server.address, str(server.port), f"{seconds:g}"]


def parse_flood(load_text, flood_text, probe_text, wanted):
    """The figures of a flood of `wanted` SYNs from what the three clients printed, and the whole results."""
    _, load = parse_ilet_load(load_text)
    try:
        flood, attempts = json.loads(flood_text), json.loads(probe_text)["attempts"]
        begin, end = flood["began_at"], flood["began_at"] + flood["seconds"]
        if flood["sent"] < wanted:
            raise ClientError(f"the flood got only {flood['sent']:,} of {wanted:,} SYNs out in {flood['seconds']:.1f} s")
        series = [(load["series"]["began_at"] + seconds, count) for seconds, count in load["series"]["points"]]
        # The warm-up is over by then.
        quiet = _answered_per_second(series, begin - QUIET_S, begin)
        flooded = _answered_per_second(series, begin, end)
        among = [attempt for attempt in attempts if begin <= attempt["began_at"] <= end]
        opened = sum(attempt["failure"] is None for attempt in among)
        values = {
            "quiet_requests_per_second": quiet,
            "flooded_requests_per_second": flooded,
            "flooded_to_quiet": flooded / quiet if quiet else None,
            "syns_per_second": flood["sent_per_second"],
            "opened_connections": opened,
            "opened_share": opened / len(among) if among else None,
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ClientError(f"the flood printed no result that can be read ({type(error).__name__}: {error})") from error
    return values, {"load": load, "flood": flood, "probe": {"attempts": attempts}}


# How long before the flood counts as quiet.
QUIET_S = 0.8


def _answered_per_second(series, begin, end):
    """Requests per second between two times, from [(time, answered so far), ...]; between two points evenly."""
    if not series or not series[0][0] <= begin < end <= series[-1][0]:
        raise ValueError("the load did not run before, during and after the flood")

    def answered(at):
        for (time, count), (later, count_later) in zip(series, series[1:]):
            if at <= later:
                return count + (count_later - count) * (at - time) / (later - time)
        raise ValueError("no point that late")

    return (answered(end) - answered(begin)) / (end - begin)


# --- ilet-memory ---


def ilet_memory(lab, peer, cell):
    """The command line of the program that serves over memory. `peer`: ilet, ilet-engine or plain-smoltcp."""
    which = "smoltcp" if peer == "plain-smoltcp" else "stack"
    argv = [
        str(lab.bin_dir / "ilet-memory"), "--server", which, "--connections", str(cell.connections),
        "--requests", str(memory_requests(peer, cell)), "--size", str(cell.size), "--json",
    ]
    if peer == "ilet-engine":
        argv.append("--engine-only")
    if cell.client == "callgrind":
        # Only the server's turns count.
        argv[:0] = [
            "valgrind", "--tool=callgrind", f"--callgrind-out-file={lab.run_dir}/callgrind.out",
            "--collect-atstart=no", "--toggle-collect=*counted_turn*",
        ]
    return argv


def memory_requests(peer, cell):
    """How many requests over memory; a multiple of the connections, which are used in turn."""
    if cell.client == "callgrind":
        wanted = 1_000
    elif peer == "plain-smoltcp" and cell.connections > 1:
        # It looks through all its sockets for each.
        wanted = 10_000
    else:
        wanted = 200_000
    return max(1, wanted // cell.connections) * cell.connections


def parse_ilet_memory(text):
    """The figures, and the whole result."""
    try:
        result = json.loads(text)
        return {"ns_per_request": result["ns_per_request"]}, result
    except (ValueError, KeyError, TypeError) as error:
        raise ClientError(f"ilet-memory printed no result that can be read ({error})") from error


def parse_callgrind(errors):
    """Instructions that callgrind counted in all, from what it says at the end."""
    found = re.search(r"Collected : (\d+)", errors)
    if not found:
        raise ClientError("callgrind counted nothing")
    return int(found[1])


def complaint(name, finished, limit_s):
    """One line about a client that did not end well."""
    if finished.timed_out:
        return f"{name} did not end within {limit_s:.0f} s and was killed"
    lines = (finished.errors.strip() or finished.output.strip()).splitlines()
    said = lines[-1].strip() if lines else "it said nothing"
    return f"{name} ended with {finished.status}: {said}"

#!/usr/bin/env python3
"""What scripts/bench leaves to Python: holding idle connections, and medians in a table.

hold HOST PATH COUNT FIFO   opens COUNT connections, serves one request on each to know that it is
                            established, prints "established COUNT", waits until something is
                            written to FIFO, prints "open N": how many are still open.
table FILE IDLE             prints medians and ratios of FILE's lines: measure, who, round, figure.
"""

import resource
import socket
import statistics
import struct
import sys
from collections import defaultdict


def hold(host, path, count, fifo):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count + 50:
        sys.exit(f"error: {count} connections need more open files than the limit of {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (count + 50, hard))
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    connections = []
    for number in range(count):
        try:
            connection = socket.create_connection((host, 80), timeout=10)
            connection.sendall(request)
            read_response(connection)
        except (OSError, ValueError) as error:
            sys.exit(f"error: connection {number + 1}: {error}")
        connection.setblocking(False)
        # Closed with a reset: TIME-WAIT on this side would use up the ports of later rounds.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connections.append(connection)
    print("established", len(connections), flush=True)
    with open(fifo, encoding="ascii") as told:
        told.readline()
    print("open", sum(map(is_open, connections)), flush=True)


def read_response(connection):
    """Reads a response whole, so that nothing is under way when the connection is left idle."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += some(connection)
    head, body = received.split(b"\r\n\r\n", 1)
    lines = head.lower().split(b"\r\n")
    if b" 200 " not in lines[0]:
        raise ValueError(f"unexpected response: {lines[0]}")
    lengths = [int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:")]
    while len(body) < lengths[0]:
        body += some(connection)


def some(connection):
    received = connection.recv(65536)
    if not received:
        raise ValueError("closed by the server")
    return received


def is_open(connection):
    """Nothing to read, not even the end."""
    try:
        connection.recv(1)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def table(file, idle):
    figures = defaultdict(lambda: defaultdict(list))
    with open(file, encoding="ascii") as lines:
        for line in lines:
            measure, who, _round, figure = line.split("\t")
            figures[measure][who].append(float(figure))

    compare(figures["throughput"], "requests/s, 64 connections", max, "{:,.0f}", "times nginx's best")
    compare(figures["latency"], "median latency, 1 connection, µs", min, "{:.1f}", "of nginx's best")

    print("ilet-httpd with 64 connections at work beside idle ones")
    rates, costs = figures["idle"], figures["cost"]
    for label, who in (("0 idle", "none"), (f"{idle} idle", "many")):
        print(row(label, rates[who], "{:,.0f}"), "requests/s")
        print(row("", costs[who], "{:.2f}"), "µs of processor time per request")
    ratio = statistics.median(b / a for a, b in zip(costs["none"], costs["many"]))
    still_open = min(figures["idle_open"]["ilet-httpd"], default=0)
    print(f"  ratio {ratio:.2f} of the processor time (median of the rounds'); at least {still_open:.0f} of {idle} open at the end")


def compare(by_server, title, better, form, words):
    print(title)
    for who, values in by_server.items():
        print(row(who, values, form))
    ilet = by_server["ilet-httpd"]
    nginx = {who: values for who, values in by_server.items() if who != "ilet-httpd"}
    best = better(nginx, key=lambda who: statistics.median(nginx[who]))
    ratio = statistics.median(a / b for a, b in zip(ilet, nginx[best]))
    print(f"  ratio {ratio:.2f} {words} ({best}; median of the rounds')\n")


def row(label, values, form):
    cells = [statistics.median(values), min(values), max(values)]
    median, least, most = (form.format(cell) for cell in cells)
    return f"  {label:<16} median {median:>10}   (from {least} to {most})"


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["hold", host, path, count, fifo]:
            hold(host, path, int(count), fifo)
        case ["table", file, idle]:
            table(file, int(idle))
        case _:
            sys.exit(__doc__)

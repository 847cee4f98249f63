"""The kernel's clients, on the host's side of the lab. Run as a program in the lab's namespace; prints JSON.

    echo PROTOCOL ADDRESS PORT CONNECTIONS REQUESTS BYTES
        closed loops of echoes, each connection waiting for its answer before it asks again; every byte is compared
    fetch URL CONNECTIONS REQUESTS
        HTTP downloads on keep-alive connections; prints the SHA-256 of each different body. 0 requests are as many as
        can be until the end of standard input.
    hold ADDRESS PORT CONNECTIONS
        connections that have had one echo, held until the end of standard input; prints how many the server has ended

`echo` and `fetch` end after about SECONDS at the latest, and then say what is missing.
"""

import hashlib
import http.client
import json
import selectors
import socket
import sys
import threading
import time
from urllib.parse import urlsplit

SECONDS = 90
# Time after which an unanswered datagram is sent again. The guest may be silent for seconds.
UDP_AGAIN_SECONDS = 20


def echo(protocol, address, port, connections, requests, size):
    """Returns how many echoes came back right and wrong, how many datagrams were sent again, and the error, if any."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    until = time.monotonic() + SECONDS
    result = {"right": 0, "wrong": 0, "again": 0, "seconds": 0.0, "error": None}
    began = time.monotonic()
    loops = []
    with selectors.DefaultSelector() as selector:
        try:
            for number in range(connections):
                sock = socket.socket(family, kind)
                sock.settimeout(30)
                sock.connect((address, port))
                sock.setblocking(False)
                loops.append(_Loop(sock, number, requests // connections or 1, size))
            for loop in loops:
                selector.register(loop.socket, selectors.EVENT_READ, loop)
                loop.ask()
            open_loops = len(loops)
            while open_loops and time.monotonic() < until:
                for key, _ in selector.select(1):
                    loop = key.data
                    if not loop.take(protocol, result):
                        selector.unregister(loop.socket)
                        open_loops -= 1
                if protocol == "udp":
                    for loop in loops:
                        if loop.left and time.monotonic() - loop.asked > UDP_AGAIN_SECONDS:
                            result["again"] += 1
                            loop.ask()
            if open_loops:
                result["error"] = f"{open_loops} of {connections} loops did not end in {SECONDS} s"
        except OSError as error:
            result["error"] = f"{type(error).__name__}: {error}"
        finally:
            for loop in loops:
                loop.socket.close()
    result["seconds"] = round(time.monotonic() - began, 3)
    return result


class _Loop:
    """One connection, or one datagram in flight."""

    def __init__(self, sock, number, requests, size):
        self.socket = sock
        self.left = requests
        # Part of each message, so that an echo of another loop's message is noticed.
        self.number = number
        self.size = size
        self.asked = 0.0
        self.received = b""

    def message(self):
        head = b"%d/%d " % (self.number, self.left)
        return (head * (self.size // len(head) + 1))[: self.size]

    def ask(self):
        self.received = b""
        self.asked = time.monotonic()
        self.socket.send(self.message())

    def take(self, protocol, result):
        """Reads, and asks again when the echo is whole. Returns whether the loop goes on."""
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("closed by the server")
        self.received = data if protocol == "udp" else self.received + data
        if protocol == "tcp" and len(self.received) < self.size:
            return True
        if self.received == self.message():
            result["right"] += 1
        elif protocol == "udp" and result["again"]:
            # The late first answer to a datagram that was sent twice.
            return True
        else:
            result["wrong"] += 1
        self.left -= 1
        if self.left:
            self.ask()
        return self.left > 0


def fetch(url, connections, requests):
    """Returns the bodies by hash with their counts and sizes, and the errors by text."""
    parts = urlsplit(url)
    result = {"bodies": {}, "bytes": 0, "errors": {}, "seconds": 0.0}
    lock = threading.Lock()
    stop = threading.Event()
    began = time.monotonic()

    def run():
        try:
            connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=60)
            for _ in range(requests) if requests else iter(stop.is_set, True):
                connection.request("GET", parts.path or "/")
                response = connection.getresponse()
                body = hashlib.sha256()
                size = 0
                while chunk := response.read(65536):
                    body.update(chunk)
                    size += len(chunk)
                with lock:
                    name = body.hexdigest() if response.status == 200 else f"status {response.status}"
                    result["bodies"][name] = result["bodies"].get(name, 0) + 1
                    result["bytes"] += size
            connection.close()
        except (OSError, http.client.HTTPException) as error:
            with lock:
                text = f"{type(error).__name__}: {error}"
                result["errors"][text] = result["errors"].get(text, 0) + 1

    threads = [threading.Thread(target=run, daemon=True) for _ in range(connections)]
    for thread in threads:
        thread.start()
    if not requests:
        sys.stdin.read()
        stop.set()
    until = time.monotonic() + SECONDS
    for thread in threads:
        thread.join(max(0, until - time.monotonic()))
    unfinished = sum(thread.is_alive() for thread in threads)
    if unfinished:
        result["errors"][f"not finished in {SECONDS} s"] = unfinished
    result["seconds"] = round(time.monotonic() - began, 3)
    return result


def hold(address, port, connections):
    """Opens connections, has one echo on each, says so, and waits for the end of standard input."""
    sockets = []
    for _ in range(connections):
        sock = socket.create_connection((address, port), 60)
        sock.sendall(b"hello")
        if sock.recv(16) != b"hello":
            raise ConnectionError("no echo")
        sockets.append(sock)
    print(json.dumps({"held": len(sockets)}), flush=True)
    sys.stdin.read()
    ended = 0
    for sock in sockets:
        sock.settimeout(20)
        try:
            ended += sock.recv(16) == b""
        except ConnectionError:
            ended += 1
        sock.close()
    print(json.dumps({"ended": ended}))


def main(argv):
    name, *args = argv
    if name == "echo":
        protocol, address, port, connections, requests, size = args
        print(json.dumps(echo(protocol, address, int(port), int(connections), int(requests), int(size))))
    elif name == "fetch":
        url, connections, requests = args
        print(json.dumps(fetch(url, int(connections), int(requests))))
    elif name == "hold":
        address, port, connections = args
        hold(address, int(port), int(connections))
    else:
        raise SystemExit(f"unknown client {name}")


if __name__ == "__main__":
    main(sys.argv[1:])

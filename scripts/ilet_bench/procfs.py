"""Processor time, context switches and memory, read from /proc."""

import os
import threading

PAGE = os.sysconf("SC_PAGE_SIZE")


def children(pid):
    """The pids of a process's children; none if it is gone."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


def cpu_ns(pid):
    """Processor time of all threads so far, in nanoseconds."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/schedstat", encoding="ascii") as file:
            total += int(file.read().split()[0])
    return total


def switches(pid):
    """Context switches of all threads so far, voluntary and not."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/status", encoding="utf-8") as file:
            total += sum(int(line.split()[1]) for line in file if "ctxt_switches" in line)
    return total


def resident_bytes(pid):
    """Resident memory of a process."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * PAGE


def meminfo():
    """/proc/meminfo in bytes."""
    with open("/proc/meminfo", encoding="ascii") as file:
        return {name: int(rest.split()[0]) * 1024 for name, rest in (line.split(":") for line in file)}


def kernel_bytes():
    """Memory of the kernel's that grows with connections: sockets and what belongs to each, and what TCP holds in
    buffers.

    Not the free memory's change: other objects come and go all the time, and what the last server and generator
    left behind comes back a little later.
    """
    with open("/proc/slabinfo", encoding="ascii") as slabs, open("/proc/net/sockstat", encoding="ascii") as sockets:
        return slab_objects_bytes(slabs.read()) + tcp_pages(sockets.read()) * PAGE


def tcp_pages(text):
    """Pages that TCP holds in buffers, in all namespaces, from /proc/net/sockstat."""
    words = next(line.split() for line in text.splitlines() if line.startswith("TCP:"))
    return int(words[words.index("mem") + 1])


# Slab caches of what a TCP connection of a process takes. Its name in the file system (dentry) is left out: there
# are too many others.
SOCKET_CACHES = {
    "TCP", "TCPv6", "sock_inode_cache", "filp", "eventpoll_epi", "tcp_bind_bucket", "tcp_bind2_bucket",
    "request_sock_TCP", "request_sock_TCPv6", "tw_sock_TCP", "tw_sock_TCPv6",
}


def slab_objects_bytes(text):
    """Bytes of the objects in use in the caches of sockets, from /proc/slabinfo (version 2.1)."""
    rows = (line.split() for line in text.splitlines()[2:])
    return sum(int(row[1]) * int(row[3]) for row in rows if row[0] in SOCKET_CACHES)


def steal_and_total():
    """Ticks that the hypervisor gave to others, and all ticks, of all cores so far."""
    with open("/proc/stat", encoding="ascii") as file:
        ticks = [int(word) for word in file.readline().split()[1:9]]
    return ticks[7], sum(ticks)


class MemoryGrowth:
    """The most that processes grew by while in the `with` block, in bytes, looked at 20 times a second;
    `with_kernel` adds what the kernel holds for sockets."""

    def __init__(self, pids, with_kernel=True):
        self._pids = pids
        self._with_kernel = with_kernel
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._begin = self._now()
        self.most = 0

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()

    def _now(self):
        return sum(map(resident_bytes, self._pids)) + (kernel_bytes() if self._with_kernel else 0)

    def _watch(self):
        while not self._end.wait(0.05):
            try:
                self.most = max(self.most, self._now() - self._begin)
            except OSError:
                # A process is gone: who started it will say so.
                return

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
    """Memory that is neither free nor page cache nor of a process: the kernel's own, sockets' buffers included.

    Of the slab caches only the objects in use: what sockets of earlier servers left in them is not free, but no
    socket of a later one takes memory for using it again.
    """
    info = meminfo()
    pages = info["MemTotal"] - info["MemFree"] - info["Buffers"] - info["Cached"] - info["AnonPages"] - info["Slab"]
    with open("/proc/slabinfo", encoding="ascii") as file:
        return pages + slab_objects_bytes(file.read())


def slab_objects_bytes(text):
    """Bytes of the objects in use, from /proc/slabinfo (version 2.1)."""
    rows = (line.split() for line in text.splitlines()[2:])
    return sum(int(row[1]) * int(row[3]) for row in rows)


def steal_and_total():
    """Ticks that the hypervisor gave to others, and all ticks, of all cores so far."""
    with open("/proc/stat", encoding="ascii") as file:
        ticks = [int(word) for word in file.readline().split()[1:9]]
    return ticks[7], sum(ticks)


class MemoryGrowth:
    """The most that processes and the kernel together grew by while in the `with` block, in bytes, looked at
    20 times a second from the start of a server with nothing to do."""

    def __init__(self, pids):
        self._pids = pids
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
        return sum(map(resident_bytes, self._pids)) + kernel_bytes()

    def _watch(self):
        while not self._end.wait(0.05):
            try:
                self.most = max(self.most, self._now() - self._begin)
            except OSError:
                # A process is gone: who started it will say so.
                return

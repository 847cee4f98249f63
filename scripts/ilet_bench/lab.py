"""The run's namespaces: processes in them, and the settings of the veth pairs.

scripts/bench makes the namespaces and the pairs and removes them, whatever happens here; it passes what it
made in the environment.
"""

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

SERVER_CORE = 0
CLIENT_CORE = 1

# The pair that the flood comes from, both ends in the clients' namespace: what goes into the one comes out of the
# other, from where the kernel forwards it to the servers' first pair.
FLOOD_END = "flood"
ROUTER_END = "router"

OFFLOADS = {
    "tx": "tx-checksumming",
    "tso": "tcp-segmentation-offload",
    "gso": "generic-segmentation-offload",
    "gro": "generic-receive-offload",
}


class LabError(Exception):
    """What went wrong, in one line."""


@dataclass
class Process:
    """A process of this run. Its output is in files."""

    name: str
    popen: subprocess.Popen
    output: Path
    errors: Path

    @property
    def pid(self):
        return self.popen.pid

    def last_line(self):
        """What it said last, for an error of ours."""
        for file in (self.errors, self.output):
            lines = file.read_text("utf-8", "replace").strip().splitlines()
            if lines:
                return lines[-1].strip()
        return "it said nothing"


@dataclass
class Finished:
    """A program that ran to its end. `status` is negative for a signal; `resident_bytes` the most it had."""

    status: int
    output: str
    errors: str
    resident_bytes: int
    timed_out: bool


@dataclass
class Lab:
    """The namespaces, the servers' address on each pair, and where programs and files are."""

    server_ns: str
    client_ns: str
    run_dir: Path
    bin_dir: Path
    server4: list[str]
    # The address of the kernel's servers behind the relay; those that have theirs to themselves have server4's last.
    relayed_kernel4: str
    # The prefix of the generator's addresses on each pair. The kernel has none of them.
    sources: list[str]
    # The prefix of the flood's addresses, which nobody has.
    flood: str
    root: Path
    _running: list[Process] = field(default_factory=list)
    _set: dict = field(default_factory=dict)

    @classmethod
    def from_environment(cls, env=os.environ):
        return cls(
            server_ns=env["SERVER_NS"], client_ns=env["CLIENT_NS"], run_dir=Path(env["RUN_DIR"]),
            bin_dir=Path(env["BIN_DIR"]), server4=env["BENCH_ADDRESSES"].split(),
            relayed_kernel4=env["BENCH_RELAYED_KERNEL"],
            sources=env["BENCH_SOURCES"].split(), flood=env["BENCH_FLOOD"], root=Path(env["ROOT"]),
        )

    # --- processes ---

    def start(self, name, argv, ready):
        """Starts a server, pinned, in the servers' namespace, and waits until ready(process) is true.

        Raises LabError if that does not come; the server is ended then.
        """
        return self._when_ready(self._spawn(name, argv, self.server_ns, SERVER_CORE), ready)

    def start_relay(self, argv, ready):
        """Starts the relay, pinned, in the clients' namespace, and waits until ready(process) is true.

        Raises LabError if that does not come; the relay is ended then.
        """
        return self._when_ready(self._spawn("ilet-relay", argv, self.client_ns, CLIENT_CORE), ready)

    def _spawn(self, name, argv, namespace, core):
        output, errors = self.run_dir / f"{name}.out", self.run_dir / f"{name}.err"
        with open(output, "wb") as out, open(errors, "wb") as err:
            popen = subprocess.Popen(
                # `ip` and `taskset` exec, so the pid is the program's.
                ["ip", "netns", "exec", namespace, "taskset", "-c", str(core), *argv],
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True,
            )
        process = Process(name, popen, output, errors)
        self._running.append(process)
        return process

    def _when_ready(self, process, ready):
        try:
            _wait_for(process, ready)
        except LabError:
            with contextlib.suppress(LabError):
                self.stop(process)
            raise
        return process

    def stop(self, process):
        """SIGTERM; after a second once more, which has a server of ours end at once; at last SIGKILL.

        Raises LabError if it did not end in order.
        """
        for wait_s in (1, 12):
            if process.popen.poll() is None:
                process.popen.terminate()
                try:
                    process.popen.wait(wait_s)
                except subprocess.TimeoutExpired:
                    continue
            break
        # What a server of ours ends with when it is told twice.
        hurried = wait_s > 1 and process.popen.poll() == 1
        killed = process.popen.poll() is None
        if killed:
            process.popen.kill()
            process.popen.wait()
        self._running.remove(process)
        if killed:
            raise LabError(f"{process.name} did not end and was killed")
        if process.popen.returncode != 0 and not hurried:
            raise LabError(f"{process.name} ended with {process.popen.returncode}: {process.last_line()}")

    def stop_all(self):
        """Ends whatever runs; for the way out."""
        for process in list(self._running):
            with contextlib.suppress(LabError):
                self.stop(process)

    def run(self, argv, timeout_s):
        """Runs a program in the clients' namespace, pinned, to its end or for timeout_s."""
        return self.wait(self.launch("client", argv), timeout_s)

    def launch(self, name, argv):
        """Starts a program in the clients' namespace, pinned; `wait` is for its end."""
        return self._spawn(name, argv, self.client_ns, CLIENT_CORE)

    def wait(self, process, timeout_s):
        """Waits for a program's end, or kills it after timeout_s."""
        popen, late = process.popen, threading.Event()

        def too_late():
            late.set()
            popen.send_signal(signal.SIGKILL)

        timer = threading.Timer(timeout_s, too_late)
        timer.start()
        try:
            # Not popen.wait(): the peak of its memory comes with this call alone.
            _, status, usage = os.wait4(popen.pid, 0)
            popen.returncode = os.waitstatus_to_exitcode(status)
        finally:
            timer.cancel()
        self._running.remove(process)
        return Finished(
            popen.returncode, process.output.read_text("utf-8", "replace"),
            process.errors.read_text("utf-8", "replace"), usage.ru_maxrss * 1024, late.is_set(),
        )

    # --- settings of the pairs ---

    def set_mtu(self, pair, mtu):
        if self._changed(("mtu", pair), mtu):
            for end in (f"srv{pair}", f"cli{pair}"):
                self._command(self._namespace(end), "ip", "link", "set", end, "mtu", str(mtu))

    def set_offloads(self, end, **features):
        """`end`: srvI or cliI; features by their names in OFFLOADS, True or False."""
        if self._changed(("offloads", end), features):
            words = [word for name, on in features.items() for word in (name, "on" if on else "off")]
            # ethtool fails if a feature follows another that is off: what counts is read back and shown.
            self._command(self._namespace(end), "ethtool", "-K", end, *words, check=False)

    def set_receive_core(self, end, core):
        """Steers the kernel's receive work for an end to a core (RPS); None leaves it where the sender runs."""
        if self._changed(("rps", end), core):
            mask = 0 if core is None else 1 << core
            self._command(
                self._namespace(end), "sh", "-c", f"echo {mask:x} >/sys/class/net/{end}/queues/rx-0/rps_cpus"
            )

    def offloads(self, pair):
        """The offloads of both ends as they are now: {end: {feature: "on" or "off"}}."""
        found = {}
        for end in (f"srv{pair}", f"cli{pair}"):
            text = self._command(self._namespace(end), "nice", "-n", "19", "ethtool", "-k", end)
            found[end] = parse_offloads(text)
        return found

    def link_address(self, end):
        text = self._command(self._namespace(end), "cat", f"/sys/class/net/{end}/address")
        return text.strip()

    def _namespace(self, end):
        return self.server_ns if end.startswith("srv") else self.client_ns

    def _changed(self, key, value):
        if self._set.get(key, self) == value:
            return False
        self._set[key] = value
        return True

    def _command(self, namespace, *argv, check=True):
        done = subprocess.run(
            ["ip", "netns", "exec", namespace, *argv], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=False,
        )
        if check and done.returncode != 0:
            raise LabError(f"{' '.join(argv)}: {done.stderr.strip() or done.returncode}")
        return done.stdout


def _wait_for(process, ready, timeout_s=15):
    end = time.monotonic() + timeout_s
    while not ready(process):
        if process.popen.poll() is not None:
            raise LabError(f"{process.name} did not start: {process.last_line()}")
        if time.monotonic() > end:
            raise LabError(f"{process.name} did not get ready in {timeout_s} s: {process.last_line()}")
        time.sleep(0.01)


def parse_offloads(text):
    """The features in OFFLOADS from the output of `ethtool -k`."""
    values = dict(re.findall(r"^([a-z-]+): (on|off)", text, re.MULTILINE))
    return {name: values.get(feature, "?") for name, feature in OFFLOADS.items()}

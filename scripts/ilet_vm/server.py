"""The servers under test, as they run in the guest."""

import shlex
import time
from dataclasses import dataclass, field

from .errors import CheckFailed, LabError

# Generous, because the guest is slow and others use its cores. A wait ends as soon as its condition is met.
READY_SECONDS = 60
STOP_SECONDS = 60
PORTS = {"ilet-echo": 7, "ilet-httpd": 80}
SITE = "/tmp/site"


@dataclass
class Report:
    """The report that a server prints when it ends, and its exit code."""

    code: int
    counters: dict[str, int] = field(default_factory=dict)
    xdp: dict[str, int] = field(default_factory=dict)
    # By queue, and by owner.
    frames: dict[int, dict[str, int]] = field(default_factory=dict)
    conserved: bool = False


def parse_report(code, text):
    """Returns the last report in a server's output."""
    report = Report(code)
    for line in text.splitlines():
        words = line.split()
        if line.startswith("ready:"):
            report = Report(code)
        elif len(words) == 3 and words[0] in ("counter", "xdp") and words[2].isdigit():
            (report.counters if words[0] == "counter" else report.xdp)[words[1]] = int(words[2])
        elif words[:1] == ["frames"]:
            pairs = dict(word.split("=") for word in words[1:])
            queue = int(pairs.pop("queue"))
            report.frames[queue] = {name: int(value) for name, value in pairs.items()}
        elif words[:1] == ["conserved"]:
            report.conserved = words[1] == "yes"
    return report


class Server:
    """One server process in a guest. A context manager, which kills the process at the end if it still runs."""

    _count = 0

    def __init__(self, guest, program, *args, on_ready=lambda: None):
        """Prepares `program` with `args`; `on_ready` is called when it has said that it is ready."""
        Server._count += 1
        self.guest = guest
        self.name = f"{program}-{Server._count}"
        self.command = f"/share/bin/{program} {' '.join(shlex.quote(arg) for arg in args)}"
        self._on_ready = on_ready
        self.pid = None
        self.ready = ""

    def __enter__(self):
        if self.pid is None:
            self.start()
        return self

    def __exit__(self, *_):
        if self.pid is not None:
            self.guest.clean(f"kill -KILL {self.pid} 2>/dev/null; rm -f {self._file('*')}")

    def _file(self, ending):
        return f"/tmp/{self.name}.{ending}"

    def launch(self):
        """Starts the process."""
        # The exit code goes to a file: the shell that waits is the server's parent.
        text = (
            f"setsid sh -c 'sh -c \"echo \\$\\$ >{self._file('pid')}; exec {self.command}\" "
            f">{self._file('out')} 2>{self._file('err')}; echo $? >{self._file('code')}' &"
            f" while ! [ -s {self._file('pid')} ]; do usleep 20000; done; cat {self._file('pid')}"
        )
        self.pid = int(self.guest.must(text))

    def start(self):
        """Starts the server and waits for its `ready:` line. Raises LabError if that does not come."""
        self.launch()
        text = self._wait(f"grep -m1 ^ready: {self._file('out')}", READY_SECONDS)
        if not text.startswith("ready:"):
            raise LabError(f"{self.command} did not get ready: {self.errors().strip() or 'it said nothing'}")
        self.ready = text.strip()
        self._on_ready()

    def refused(self):
        """Starts a server that is to refuse to start; returns its exit code and its error output."""
        self.launch()
        self._wait("false", READY_SECONDS)
        done = self.guest.run(f"cat {self._file('code')}")
        if done.code != 0:
            raise CheckFailed(f"{self.command} was to refuse and runs: {self.output().strip()}")
        self.pid = None
        return int(done.output), self.errors()

    def output(self):
        return self.guest.run(f"cat {self._file('out')}").output

    def errors(self):
        return self.guest.run(f"cat {self._file('err')}").output

    def signal(self, name):
        self.guest.must(f"kill -{name} {self.pid}")

    def ended(self):
        """Waits until the process has ended; returns its report. Raises CheckFailed if it does not end."""
        self._wait("false", STOP_SECONDS)
        done = self.guest.run(f"cat {self._file('code')}")
        if done.code != 0:
            raise CheckFailed(f"{self.name} does not end")
        self.pid = None
        return parse_report(int(done.output), self.output())

    def stop(self):
        """Ends the server in order; returns its report."""
        self.signal("TERM")
        return self.ended()

    def _wait(self, until, seconds):
        """Polls in the guest until `until` succeeds or the process has ended; returns the output of `until`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            done = self.guest.run(f"for i in 1 2 3 4 5; do {until} && exit; [ -s {self._file('code')} ] && exit; usleep 200000; done")
            if done.output.strip() or self.guest.run(f"[ -s {self._file('code')} ]").code == 0:
                return done.output
        return ""

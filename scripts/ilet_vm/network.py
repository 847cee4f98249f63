"""The host's side of the lab: a network namespace with the taps that are the other ends of the guest's cards."""

import os
import random
import subprocess
from dataclasses import dataclass

from .errors import LabError


@dataclass(frozen=True)
class Link:
    """A tap on the host and the guest's card behind it. Addresses without their prefix lengths, /24 and /64."""

    tap: str
    card: str
    mac: str
    # The driver's name in the guest.
    driver: str
    # Queue pairs of the card, and queues of the tap.
    queues: int
    tap_queues: int
    # The addresses of the kernel's clients, on the tap.
    host4: str
    host6: str
    # The stack's addresses; the guest's kernel has none of them.
    server4: str
    server6: str
    # The addresses of the guest's kernel.
    guest4: str
    guest6: str


def _link(number, card, driver, queues, tap_queues):
    net4, net6 = f"10.77.{number}", f"fd77:{number}:"
    return Link(
        f"tap{number}", card, f"52:54:00:77:00:{number:02x}", driver, queues, tap_queues,
        f"{net4}.1", f"{net6}:1", f"{net4}.2", f"{net6}:2", f"{net4}.9", f"{net6}:9",
    )


# virtio_net uses two queue pairs for two processors, and adds two queues for XDP if the card has them: the card of VIRTIO
# does not, the card of VIRTIO_SPARE does.
VIRTIO = _link(0, "vnet0", "virtio_net", queues=2, tap_queues=2)
IGB = _link(1, "igb0", "igb", queues=2, tap_queues=1)
VIRTIO_SPARE = _link(2, "vnet1", "virtio_net", queues=4, tap_queues=4)
LINKS = (VIRTIO, IGB, VIRTIO_SPARE)


def free_name():
    """Returns a name that no other lab has."""
    while True:
        name = f"ilet-vm-{os.getpid()}-{random.randrange(1 << 16):04x}"
        if not os.path.exists(f"/run/netns/{name}"):
            return name


class Namespace:
    """A network namespace of a lab: made by make, gone with everything in it after remove."""

    def __init__(self, name):
        self.name = name

    def make(self):
        """Makes the namespace, the taps and their addresses."""
        _run("ip", "netns", "add", self.name)
        self.run("sh", "-c", "echo 0 | tee /proc/sys/net/ipv6/conf/all/accept_dad /proc/sys/net/ipv6/conf/default/accept_dad")
        _run("ip", "-n", self.name, "link", "set", "lo", "up")
        for link in LINKS:
            mode = ["multi_queue"] if link.tap_queues > 1 else []
            _run("ip", "-n", self.name, "tuntap", "add", link.tap, "mode", "tap", *mode)
            # A tap leaves checksums to the guest, and the stack verifies them.
            self.run("ethtool", "-K", link.tap, "tx", "off")
            _run("ip", "-n", self.name, "address", "add", f"{link.host4}/24", "dev", link.tap)
            _run("ip", "-n", self.name, "address", "add", f"{link.host6}/64", "dev", link.tap, "nodad")
            _run("ip", "-n", self.name, "link", "set", link.tap, "up")

    def argv(self, *command):
        """Returns the command line that runs `command` in the namespace."""
        return ["ip", "netns", "exec", self.name, *command]

    def run(self, *command, check=True, timeout=None):
        """Runs a program in the namespace to its end."""
        return _run(*self.argv(*command), check=check, timeout=timeout)

    def set_mtu(self, link, mtu):
        """Sets the MTU of the host's side of `link`, in bytes."""
        _run("ip", "-n", self.name, "link", "set", link.tap, "mtu", str(mtu))

    def remove(self):
        """Ends all processes in the namespace, and removes it. Does nothing if there is none."""
        if not os.path.exists(f"/run/netns/{self.name}"):
            return
        pids = _run("ip", "netns", "pids", self.name, check=False).stdout.split()
        for pid in pids:
            if int(pid) != os.getpid():
                _run("kill", "-KILL", pid, check=False)
        _run("ip", "netns", "del", self.name, check=False)


def _run(*argv, check=True, timeout=None):
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL)
    if check and done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise LabError(f"{' '.join(argv)}: {last}")
    return done

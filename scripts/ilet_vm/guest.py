"""One virtual machine: QEMU, and commands in the guest through a serial port."""

import base64
import json
import os
import random
import selectors
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from . import image
from .errors import LabError
from .network import IGB, LINKS

# A guest is emulated, on cores that others use too: gaps of seconds are normal.
BOOT_SECONDS = 400
COMMAND_SECONDS = 60
# Under a KVM that works, the guest's kernel prints its first line well before this.
KVM_SECONDS = 20
# busybox's shell prefers its own applets, which do less, to these programs.
_PRELUDE = 'ip() { /usr/bin/ip "$@"; }; tc() { /usr/sbin/tc "$@"; }\n'
# QEMU crashed in one of seven starts.
STARTS = 3

_CMDLINE = (
    "console=ttyS0 loglevel=5 panic=-1 mitigations=off nokaslr tsc=reliable net.ifnames=0 "
    "random.trust_cpu=on oops=panic init_on_alloc=0"
)


@dataclass(frozen=True)
class Machine:
    """Where a guest's files are: `folder` is its own, everything else is shared between guests."""

    tools: Path
    kernel: Path
    folder: Path
    # The folder that the guest mounts as /share, read-only.
    share: Path

    @property
    def serial(self):
        return self.folder / "serial.log"

    @property
    def agent(self):
        return self.folder / "agent.sock"

    @property
    def shell(self):
        return self.folder / "shell.sock"


@dataclass(frozen=True)
class Done:
    """A command that ended in the guest."""

    code: int
    output: str


class Guest:
    """A guest that runs. Made by `start` or, in another process, by `attach`."""

    def __init__(self, machine, process=None):
        self.machine = machine
        # QEMU, if this process started it.
        self._process = process
        self._socket = None
        # Not that of another process's command, whose late answer may still come.
        self._number = random.randrange(1 << 30)

    @classmethod
    def start(cls, machine, namespace, say, detached=False):
        """Boots a guest whose cards are `namespace`'s taps, and waits until it takes commands.

        It ends with this process, unless `detached`. Raises LabError when it does not boot.
        """
        machine.folder.mkdir(parents=True, exist_ok=True)
        initrd = machine.folder / "initrd"
        initrd.write_bytes(image.build(machine.tools, machine.kernel))
        accelerators = ["kvm"] if _kvm_may_work(machine) else []
        for accelerator in [*accelerators, *["tcg"] * STARTS]:
            say(f"booting {machine.kernel.name} ({accelerator})")
            guest = cls._boot(machine, namespace, accelerator, detached)
            if guest is not None:
                _remember_kvm(machine, accelerator)
                return guest
        raise LabError(f"the guest does not boot: {_tail(machine.serial)}")

    @classmethod
    def _boot(cls, machine, namespace, accelerator, detached):
        for path in (machine.agent, machine.shell, machine.serial):
            path.unlink(missing_ok=True)
        argv = namespace.argv(*_qemu_argv(machine, accelerator))
        if not detached:
            argv = ["setpriv", "--pdeathsig", "KILL", *argv]
        with open(machine.folder / "qemu.log", "wb") as log:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        guest = cls(machine, process)
        began = time.monotonic()
        try:
            while time.monotonic() - began < BOOT_SECONDS:
                said = machine.serial.read_bytes() if machine.serial.exists() else b""
                if image.READY.encode() in said:
                    guest._connect()
                    guest.name_cards()
                    return guest
                if process.poll() is not None:
                    return None
                if accelerator == "kvm" and b"Linux version" not in said and time.monotonic() - began > KVM_SECONDS:
                    break
                time.sleep(0.2)
            process.kill()
            process.wait()
            return None
        except BaseException:
            process.kill()
            process.wait()
            raise

    @classmethod
    def attach(cls, machine):
        """Connects to a guest that another process started. Raises LabError if it is gone."""
        guest = cls(machine)
        try:
            guest._connect()
        except OSError as error:
            raise LabError(f"the guest is gone ({error.strerror}): `./scripts/vm-lab down` removes the rest") from error
        return guest

    def run(self, command, timeout=COMMAND_SECONDS):
        """Runs a shell command in the guest. Processes that it starts in the background with setsid go on after it.

        Raises LabError when no answer comes.
        """
        self._number += 1
        text = base64.b64encode((_PRELUDE + command).encode()).decode()
        try:
            self._socket.sendall(f"{self._number} {timeout} {text}\n".encode())
        except OSError as error:
            raise LabError(f"the guest ended: {error.strerror}") from error
        # The guest ends a command that takes too long; an answer takes a while.
        until = time.monotonic() + timeout + 60
        while True:
            number, code, size = (int(word) for word in self._line(until).split())
            output = self._bytes(size, until)
            # A smaller number is a late answer to an earlier command, whose wait was given up.
            if number == self._number:
                return Done(code, output.decode("utf-8", "replace"))

    def must(self, command, timeout=COMMAND_SECONDS):
        """Runs a command that is to succeed; returns its output."""
        done = self.run(command, timeout)
        if done.code != 0:
            raise LabError(f"in the guest, {command!r} ended with {done.code}: {done.output.strip()[-300:]}")
        return done.output

    def name_cards(self):
        """Gives the cards their names (see network.Link): drivers number them in the order in which they load."""
        for link in LINKS:
            self.must(
                f"for card in /sys/class/net/*; do [ $(cat $card/address) = {link.mac} ] && "
                f"ip link set ${{card##*/}} name {link.card}; done; ip link set {link.card} up"
            )

    def clean(self, command):
        """Runs a command that puts something back. A guest that is gone needs no cleaning."""
        try:
            self.run(command)
        except LabError:
            pass

    def runs(self):
        """Returns whether QEMU, started by this process, still runs."""
        return self._process is not None and self._process.poll() is None

    def stop(self):
        """Ends QEMU, if this process started it."""
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def kernel_log(self):
        """Returns all that the guest printed on its serial console."""
        return self.machine.serial.read_text("utf-8", "replace")

    def _connect(self):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(self.machine.agent))
        self._socket.setblocking(False)
        self._received = b""

    def _receive(self, until):
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            if not selector.select(max(0, until - time.monotonic())):
                raise LabError(f"the guest does not answer; it said last: {_tail(self.machine.serial)}")
        try:
            data = self._socket.recv(1 << 16)
        except ConnectionError:
            data = b""
        if not data:
            raise LabError(f"the guest ended; it said last: {_tail(self.machine.serial)}")
        self._received += data

    def _line(self, until):
        while b"\n" not in self._received:
            self._receive(until)
        line, self._received = self._received.split(b"\n", 1)
        return line.decode()

    def _bytes(self, size, until):
        while len(self._received) < size:
            self._receive(until)
        data, self._received = self._received[:size], self._received[size:]
        return data


def _qemu_argv(machine, accelerator):
    tools = machine.tools
    accel = ["-accel", "kvm", "-cpu", "host"] if accelerator == "kvm" else ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max"]
    vmlinuz = next(path for path in machine.kernel.rglob("vmlinuz*") if path.is_file())
    return [
        *image.loader_argv(tools), str(tools / "usr/bin/qemu-system-x86_64"),
        "-L", str(tools / "usr/share/qemu"), "-L", str(tools / "usr/share/seabios"),
        *accel, "-M", "q35", "-smp", "2", "-m", "1536", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-serial", f"file:{machine.serial}", "-kernel", str(vmlinuz), "-initrd", str(machine.folder / "initrd"),
        "-append", _CMDLINE,
        "-device", "virtio-serial-pci",
        "-chardev", f"socket,id=agent,path={machine.agent},server=on,wait=off",
        "-device", f"virtserialport,chardev=agent,name={image.AGENT_PORT}",
        "-chardev", f"socket,id=shell,path={machine.shell},server=on,wait=off",
        "-device", "virtconsole,chardev=shell",
        "-fsdev", f"local,id=share,path={machine.share},security_model=none,readonly=on",
        "-device", "virtio-9p-pci,fsdev=share,mount_tag=share",
        *(word for number, link in enumerate(LINKS) for word in _card_argv(number, link)),
    ]


def _card_argv(number, link):
    many = f",queues={link.tap_queues}" if link.tap_queues > 1 else ""
    if link is IGB:
        card = "igb"
    else:
        # Zero-copy wants DMA addresses of the driver's own, hence iommu_platform.
        card = f"virtio-net-pci,mq=on,vectors={2 * link.queues + 2},iommu_platform=on,disable-legacy=on"
    return [
        "-netdev", f"tap,id=n{number},ifname={link.tap}{many},script=no,downscript=no,vhost=off",
        "-device", f"{card},netdev=n{number},mac={link.mac},romfile=",
    ]


def _kvm_file(machine):
    return machine.tools.parent / "kvm.json"


def _kvm_may_work(machine):
    """Whether KVM is there and was not seen to fail on this machine."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    try:
        seen = json.loads(_kvm_file(machine).read_text())
    except (OSError, ValueError):
        return True
    return seen.get("host") != os.uname().release or seen.get("works", True)


def _remember_kvm(machine, accelerator):
    """Records whether KVM ran the guest, so that the next start does not try one that fails."""
    if os.path.exists("/dev/kvm"):
        _kvm_file(machine).write_text(json.dumps({"host": os.uname().release, "works": accelerator == "kvm"}))


def _tail(path):
    lines = path.read_text("utf-8", "replace").strip().splitlines() if path.exists() else []
    return lines[-1] if lines else "nothing"

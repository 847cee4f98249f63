"""The guest's initramfs: busybox, some tools with their libraries, kernel modules, and an init that serves commands.

Everything comes from the cache's folders (see packages). The programs under test are not in it: the guest reads
them from the folder that it shares with the host, so that a new build needs no new guest.
"""

import lzma
import re
import stat
import subprocess

from .errors import LabError

# Programs in the guest besides busybox, for the checks.
PROGRAMS = ("usr/bin/ip", "usr/sbin/tc", "usr/sbin/ethtool", "usr/sbin/bpftool")
# Libraries of the programs under test, besides those of PROGRAMS.
LIBRARIES = ("libelf.so.1", "libz.so.1", "libgcc_s.so.1", "libm.so.6")
MODULES = (
    "virtio_pci", "virtio_console", "virtio_net", "igb", "veth", "bridge", "tun", "af_packet", "sch_netem",
    "9p", "9pnet_virtio", "ipv6",
)
# Names that the guest and QEMU's command line (see guest) have in common, and the word that says that commands are taken.
SHELL_CONSOLE = "hvc0"
AGENT_PORT = "ilet.agent"
READY = "ilet-guest-ready"

INIT = f"""\
#!/bin/busybox sh
/bin/busybox --install -s /usr/local/bin
export PATH=/usr/bin:/usr/sbin:/usr/local/bin HOME=/root
mkdir -p /proc /sys /dev /tmp /run /root /share
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts && mount -t devpts devpts /dev/pts
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs -o size=400m tmpfs /tmp
mount -t tmpfs tmpfs /run
mkdir -p /run/netns
ulimit -l unlimited
ulimit -n 65536
ulimit -c 0
while read -r module; do insmod "/modules/$module" || echo "no module $module"; done </modules/order
mount -t 9p -o trans=virtio,version=9p2000.L,ro share /share || echo 'no shared folder'
ip link set lo up
# Kernel threads may wait long for a page or a lock here, because the machine is slow: no warnings of that.
echo 0 >/proc/sys/kernel/hung_task_timeout_secs 2>/dev/null
(while :; do setsid -c sh -l </dev/{SHELL_CONSOLE} >/dev/{SHELL_CONSOLE} 2>&1; sleep 1; done) &
for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name" 2>/dev/null)" = {AGENT_PORT} ] && agent=/dev/${{port##*/}}
done
exec 3<>"$agent"
echo {READY} >/dev/console
# A command a line: a number, the seconds it may take, and the command in base64. Answered by the number, the exit
# code and the length of the output in a line, and the output.
while :; do
    read -r number seconds text <&3 || {{ sleep 0.2; continue; }}
    echo "$text" | base64 -d >/run/command
    timeout -k 2 "$seconds" sh /run/command </dev/null >/run/output 2>&1 3>&-
    code=$?
    # Answers from a copy: processes that the command left in the background may still write to the file.
    cp /run/output /run/answer
    {{ echo "$number $code $(wc -c </run/answer)"; cat /run/answer; }} >&3
done
"""


def build(tools, kernel):
    """The initramfs for the kernel in the folder `kernel`, as bytes (cpio, not compressed)."""
    archive = Cpio()
    for folder in ("proc", "sys", "dev", "tmp", "run", "root", "share", "etc", "usr", "usr/local", "usr/local/bin", "modules"):
        archive.folder(folder)
    for name in ("bin", "sbin", "lib", "lib64"):
        archive.folder(f"usr/{name}")
        archive.link(name, f"usr/{name}")
    archive.file("init", INIT.encode(), 0o755)
    archive.file("usr/bin/busybox", (tools / "usr/bin/busybox").read_bytes(), 0o755)
    for path in PROGRAMS:
        archive.file(path, (tools / path).read_bytes(), 0o755)
    loader = "usr/lib64/ld-linux-x86-64.so.2"
    archive.file(loader, (tools / loader).read_bytes(), 0o755)
    for name, path in _libraries(tools).items():
        archive.file(f"usr/lib/{name}", path.read_bytes(), 0o755)
    order = []
    for name, content in _modules(kernel):
        archive.file(f"modules/{name}.ko", content)
        order.append(f"{name}.ko\n")
    archive.file("modules/order", "".join(order).encode())
    return archive.finish()


def loader_argv(tools):
    """Begins the command line of a program of `tools`, which runs on the tools' own C library."""
    libraries = tools / "usr/lib/x86_64-linux-gnu"
    return [str(tools / "usr/lib64/ld-linux-x86-64.so.2"), "--library-path", str(libraries)]


def _libraries(tools):
    """Returns the libraries that PROGRAMS and LIBRARIES need, by file name."""
    folder = tools / "usr/lib/x86_64-linux-gnu"
    found = {}
    starts = [tools / path for path in PROGRAMS] + [folder / name for name in LIBRARIES]
    for start in starts:
        listed = subprocess.run([*loader_argv(tools), "--list", start], capture_output=True, text=True, check=False)
        if listed.returncode != 0:
            raise LabError(f"{start.name} of the cache lacks a library: {listed.stderr.strip()}")
        for name, path in re.findall(r"(\S+) => (\S+) \(", listed.stdout):
            found[name] = folder / path.rsplit("/", 1)[-1]
    found.update({name: folder / name for name in LIBRARIES})
    found.pop("ld-linux-x86-64.so.2", None)
    return found


def _modules(kernel):
    """Returns MODULES and all that they depend on, as (name, content), in an order in which they can be loaded.

    Modules that are built into the kernel are left out.
    """
    files = {}
    for path in kernel.glob("usr/lib/modules/*/kernel/**/*.ko*"):
        files[path.name.split(".ko")[0].replace("-", "_")] = path
    done = {}

    def add(name):
        if name in done or name not in files:
            return
        path = files[name]
        content = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        for other in dependencies(content):
            add(other)
        done[name] = content

    for name in MODULES:
        add(name)
    return done.items()


def dependencies(module):
    """Returns the names in the `depends` field of a module."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    return [name.replace("-", "_") for name in found[1].decode().split(",") if name] if found else []


class Cpio:
    """An archive in the "newc" format (Documentation/driver-api/early-userspace/buffer-format.rst of the kernel)."""

    def __init__(self):
        self._parts = []
        self._count = 0

    def folder(self, name):
        self._add(name, stat.S_IFDIR | 0o755, b"")

    def link(self, name, target):
        self._add(name, stat.S_IFLNK | 0o777, target.encode())

    def file(self, name, content, mode=0o644):
        self._add(name, stat.S_IFREG | mode, content)

    def finish(self):
        self._add("TRAILER!!!", 0, b"")
        return b"".join(self._parts)

    def _add(self, name, mode, content):
        self._count += 1
        encoded = name.encode() + b"\0"
        links = 1
        fields = (self._count, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        self._parts += [head, bytes(-len(head) % 4), content, bytes(-len(content) % 4)]

"""Other kernels: they load the XDP program, compiled by two compilers, and the servers serve."""

import subprocess
from pathlib import Path

from .. import image, packages
from ..bench import expect
from ..errors import LabError
from ..network import VIRTIO
from .check import check

CHECKS = []

SOURCE = "xdp-prog/src/bpf/ilet.bpf.c"


def _compilers(tools):
    """Returns compilers' command lines by name: the machine's clang, and the newest clang of the lab's packages."""
    newest = max(tools.glob("usr/lib/llvm-*/bin/clang"), key=lambda path: int(path.parts[-3].removeprefix("llvm-")))
    version = newest.parts[-3].removeprefix("llvm-")
    resources = newest.parent.parent / "lib/clang" / version
    return {
        "machine": ["clang"],
        f"clang-{version}": [*image.loader_argv(tools), str(newest), "-resource-dir", str(resources)],
    }


def _objects(bench):
    """Compiles the program with each compiler into the shared folder; returns the names of the objects."""
    root = Path(__file__).resolve().parents[3]
    headers = bench.lab.cache / "tools/usr/include"
    names = []
    for name, compiler in _compilers(bench.lab.cache / "tools").items():
        target = bench.lab.share / f"{name}.bpf.o"
        argv = [
            *compiler, "-g", "-O2", "-Wall", "-Wextra", "-target", "bpf",
            f"-I{headers}", f"-I{headers}/x86_64-linux-gnu", "-c", str(root / SOURCE), "-o", str(target),
        ]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise LabError(f"{name} does not compile {SOURCE}: {done.stderr.strip().splitlines()[:1]}")
        names.append(name)
    return names


def _loads(bench):
    versions = []
    for name in _objects(bench):
        done = bench.guest.run(f"bpftool prog load /share/{name}.bpf.o /sys/fs/bpf/{name} && rm /sys/fs/bpf/{name}", 120)
        expect(done.code == 0, f"the object of {name} does not load: {done.output.strip()[-400:]}")
        versions.append(name)
    with bench.server("ilet-echo", VIRTIO) as server:
        for address in (VIRTIO.server4, VIRTIO.server6):
            bench.ping(address)
            bench.echo("udp", address, 16, 256, 1400)
            bench.echo("tcp", address, 16, 256, 1400)
        bench.notes.append(server.ready.split("XDP ", 1)[1])
        bench.end(server)
    with bench.server("ilet-httpd", VIRTIO) as server:
        bench.download(VIRTIO.server4, "file10m", 2, 1)
        bench.end(server)
    release = bench.guest.must("uname -r").strip()
    bench.notes.insert(0, f"{release}: objects of {' and '.join(versions)} load")


for _kernel in reversed(packages.KERNEL_SUITES):
    check(CHECKS, f"kernel {_kernel}", "the XDP program loads as two compilers make it; echo and 10 MB", kernel=_kernel)(_loads)

"""A lab: the namespace, the guest, the folder they share; made here or found again by another process."""

import json
import os
import shutil
import signal
from pathlib import Path

from . import packages
from .errors import LabError
from .guest import Guest, Machine
from .network import Namespace, free_name

PROGRAMS = ("ilet-echo", "ilet-httpd", "ilet-load")
_RUN = Path("/run")


def cache_folder():
    """Where packages are kept: the same for every lab of a user."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.environ.get("HOME", "/root"), ".cache")
    return Path(home) / "interruptlet" / "vm-lab"


class Lab:
    """One lab. Remove it in the end, whatever happens."""

    def __init__(self, name, cache):
        self.name = name
        self.cache = cache
        self.folder = _RUN / name
        self.namespace = Namespace(name)
        self.guest = None

    @classmethod
    def new(cls, cache):
        return cls(free_name(), cache)

    def up(self, kernel, bin_dir, say, detached=False):
        """Makes everything and boots the kernel of that name (see packages.KERNEL_SUITES)."""
        self.folder.mkdir(mode=0o700)
        if detached:
            # `find` looks for this file, also after a start that was killed.
            state = {"kernel": kernel, "cache": str(self.cache)}
            (self.folder / "state.json").write_text(json.dumps(state))
        self.namespace.make()
        self.share_programs(bin_dir)
        self.boot(kernel, say, detached)

    def boot(self, kernel, say, detached=False):
        """Boots a kernel. Ends the guest that runs, if there is one."""
        if self.guest is not None:
            self.guest.stop()
        self.guest = None
        self.guest = Guest.start(self._machine(kernel), self.namespace, say, detached)

    def is_made(self):
        """Whether `up` made this lab."""
        return self.folder.exists()

    def guest_runs(self):
        """Whether the guest still is there."""
        return self.guest is not None and self.guest.runs()

    def share_programs(self, bin_dir):
        """Gives the guest the programs in `bin_dir`, as they are now."""
        folder = self.share / "bin"
        folder.mkdir(parents=True, exist_ok=True)
        for name in PROGRAMS:
            source = bin_dir / name
            if not source.exists():
                raise LabError(f"no {name} in {bin_dir}: build it with `cargo build --release -p interruptlet-apps`")
            part = folder / f".{name}"
            shutil.copy2(source, part)
            part.replace(folder / name)

    @property
    def share(self):
        return self.folder / "share"

    def remove(self):
        """Ends and removes all parts of the lab that exist. Signals are ignored from here on."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        if self.guest is not None:
            self.guest.stop()
        # A guest that another process started is in the namespace, too.
        self.namespace.remove()
        shutil.rmtree(self.folder, ignore_errors=True)

    @classmethod
    def find(cls, name=None):
        """The lab that `up` left running. Raises LabError if there is not exactly one, and none was named."""
        names = sorted(path.parent.name for path in _RUN.glob("ilet-vm-*/state.json"))
        if name is None:
            if not names:
                raise LabError("no lab is up: `./scripts/vm-lab up` makes one")
            if len(names) > 1:
                raise LabError(f"{len(names)} labs are up, choose one with --lab: {', '.join(names)}")
            name = names[0]
        elif name not in names:
            raise LabError(f"no lab is called {name}: {', '.join(names) or 'none is up'}")
        state = json.loads((_RUN / name / "state.json").read_text())
        lab = cls(name, Path(state["cache"]))
        lab._found = state
        return lab

    def attach(self):
        """Connects to the guest of a lab that was found."""
        self.guest = Guest.attach(self._machine(self._found["kernel"]))
        return self

    def _machine(self, kernel):
        folder = self.cache / f"kernel-{kernel}"
        if kernel not in packages.KERNEL_SUITES:
            raise LabError(f"no kernel is called {kernel}: there are {', '.join(packages.KERNEL_SUITES)}")
        return Machine(self.cache / "tools", folder, self.folder, self.share)

"""Runs the checks, one after the other, each on a guest in the state after its boot."""

import re
import time
import traceback

from . import packages
from .bench import Bench
from .checks import ALL
from .errors import CheckFailed, LabError, NotHere
from .lab import Lab

# Messages of a kernel of which something, or a driver's transmit path, is broken.
_KERNEL_TROUBLE = re.compile(r"NETDEV WATCHDOG.*|BUG: .*|Oops: .*|Kernel panic.*|general protection.*|WARNING: .*")


def main(options, bin_dir, say):
    """Runs the checks that `options` choose; returns the exit code."""
    chosen = [c for c in ALL if not options.names or any(name in c.name for name in options.names)]
    if not chosen:
        raise LabError(f"no test's name contains {' or '.join(options.names)}: see --list")
    if options.list:
        for check in chosen:
            say(f"{check.name:44} {check.summary}")
        return 0
    packages.fill(options.cache, say)
    began = time.monotonic()
    lab = Lab.new(options.cache)
    suite = _Suite(lab, bin_dir(), say)
    try:
        for check in chosen:
            suite.run(check)
            if suite.failed and not options.keep_going:
                break
    finally:
        lab.remove()
    say(f"{suite.passed} passed, {suite.failed} failed, {suite.skipped} skipped, {time.monotonic() - began:.0f} s")
    return 1 if suite.failed else 0


class _Suite:
    def __init__(self, lab, bin_dir, say):
        self.lab = lab
        self.bin_dir = bin_dir
        self.say = say
        self.kernel = None
        self.passed = self.failed = self.skipped = 0

    def run(self, check):
        """Runs one check, a second time if the guest itself ended meanwhile (QEMU does crash)."""
        began = time.monotonic()
        for attempt in (1, 2):
            # A guest that does not boot ends the whole run.
            self._boot(check.kernel)
            bench = Bench(self.lab)
            read = len(self.lab.guest.kernel_log())
            try:
                try:
                    bench.reset()
                    check.run(bench)
                finally:
                    bench.close()
                self._look_at_kernel(read)
                mark, text = "✓", "; ".join(bench.notes)
                self.passed += 1
            except NotHere as reason:
                mark, text = "-", f"not here: {reason}"
                self.skipped += 1
            except (CheckFailed, LabError) as error:
                # A guest whose kernel had crashed would end as well.
                if attempt == 1 and not self.lab.guest_runs() and not self._kernel_trouble(read):
                    self.say(f"  the guest ended ({error}): once more")
                    self.kernel = None
                    continue
                trouble = self._kernel_trouble(read)
                mark, text = "✗", f"{error}; the guest's kernel says: {trouble}" if trouble else str(error)
                self.failed += 1
                if not self.lab.guest_runs():
                    self.kernel = None
            except Exception:
                mark, text = "✗", traceback.format_exc()
                self.failed += 1
            break
        self.say(f"{mark} {check.name:44} {time.monotonic() - began:5.1f} s  {text}")

    def _boot(self, kernel):
        if self.kernel == kernel:
            return
        if not self.lab.is_made():
            self.lab.up(kernel, self.bin_dir, self.say)
        else:
            self.lab.boot(kernel, self.say)
        self.kernel = kernel

    def _look_at_kernel(self, read):
        trouble = self._kernel_trouble(read)
        if trouble:
            raise CheckFailed(f"the guest's kernel says: {trouble}")

    def _kernel_trouble(self, read):
        """The first line of trouble in the kernel's log behind `read` characters; None if there is none."""
        found = _KERNEL_TROUBLE.search(self.lab.guest.kernel_log()[read:])
        return found and found[0]

"""The command line of scripts/vm-lab."""

import argparse
import os
import select
import signal
import socket
import sys
import termios
import tty
from pathlib import Path

from . import packages
from .errors import LabError
from .lab import Lab, cache_folder

MISUSE = 2


def main(argv):
    """Runs one command; returns the exit code."""
    options = _parser().parse_args(argv)
    # Whatever ends this process runs what removes the lab, also where a shell had it ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        return options.run(options)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


class _Parser(argparse.ArgumentParser):
    """Misuse is one line."""

    def error(self, message):
        print(f"error: {message} (see scripts/vm-lab --help)", file=sys.stderr)
        raise SystemExit(MISUSE)


def _parser():
    parser = _Parser(prog="scripts/vm-lab", add_help=False, allow_abbrev=False)
    parser.add_argument("--cache", type=lambda text: Path(text).resolve(), default=cache_folder())
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)

    def add(name, run, kernel=False, lab=False):
        command = commands.add_parser(name, add_help=False, allow_abbrev=False)
        command.set_defaults(run=run)
        if kernel:
            command.add_argument("--kernel", choices=list(packages.KERNEL_SUITES), default=packages.MAIN_KERNEL)
        if lab:
            command.add_argument("--lab")
        return command

    add("fetch", _fetch).add_argument("--refresh", action="store_true")
    add("up", _up, kernel=True)
    add("run", _run, lab=True).add_argument("words", nargs=argparse.REMAINDER)
    add("shell", _shell, lab=True)
    add("down", _down, lab=True)
    test = add("test", _test)
    test.add_argument("--list", action="store_true")
    test.add_argument("--keep-going", action="store_true")
    test.add_argument("names", nargs="*")
    return parser


def say(text):
    print(text, flush=True)


def _bin_dir():
    return Path(os.environ["BIN_DIR"])


def _fetch(options):
    packages.fill(options.cache, say, options.refresh)
    say(f"complete: {options.cache}")
    return 0


def _up(options):
    packages.fill(options.cache, say)
    lab = Lab.new(options.cache)
    try:
        lab.up(options.kernel, _bin_dir(), say, detached=True)
    except BaseException:
        lab.remove()
        raise
    say(f"up: {lab.name}; `./scripts/vm-lab shell` opens a shell in the guest, `ip netns exec {lab.name} ...` is a client,")
    say("`./scripts/vm-lab down` removes it. In the guest, /share/bin has the programs.")
    return 0


def _run(options):
    lab = Lab.find(options.lab)
    if "BIN_DIR" in os.environ:
        lab.share_programs(_bin_dir())
    done = lab.attach().guest.run(" ".join(options.words), timeout=3600)
    sys.stdout.write(done.output)
    return done.code


def _shell(options):
    lab = Lab.find(options.lab)
    console = socket.socket(socket.AF_UNIX)
    try:
        console.connect(str(lab.folder / "shell.sock"))
    except OSError as error:
        raise LabError(f"the guest is gone ({error.strerror}): `./scripts/vm-lab down` removes the rest") from error
    say("Ctrl-] leaves the shell.")
    console.sendall(b"\n")
    before = termios.tcgetattr(0) if os.isatty(0) else None
    try:
        if before:
            tty.setraw(0)
        sources = [0, console]
        while True:
            # After the end of the input, goes on until the guest is silent.
            ready, _, _ = select.select(sources, [], [], None if 0 in sources else 3)
            if not ready:
                return 0
            if console in ready:
                data = console.recv(4096)
                if not data:
                    return 0
                os.write(1, data)
            if 0 in ready:
                data = os.read(0, 4096)
                if b"\x1d" in data:
                    return 0
                if not data:
                    sources.remove(0)
                console.sendall(data)
    finally:
        if before:
            termios.tcsetattr(0, termios.TCSADRAIN, before)


def _down(options):
    lab = Lab.find(options.lab)
    lab.remove()
    say(f"down: {lab.name}")
    return 0


def _test(options):
    from . import suite

    return suite.main(options, _bin_dir, say)

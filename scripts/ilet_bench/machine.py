"""What the run ran on."""

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path

from . import procfs


def facts(root):
    """The machine, the kernel, the versions of what was compared, the state of the source."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        model = re.search(r"^model name\s*: (.*)$", file.read(), re.MULTILINE)
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "processor": model.group(1).strip() if model else platform.machine(),
        "virtual": _text("/sys/hypervisor/type") or ("yes" if _flag("hypervisor") else "no"),
        "memory_gb": round(procfs.meminfo()["MemTotal"] / 1e9, 1),
        "clock": _text("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "governor": _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "none",
        "nginx": _first_line("nginx", "-v").removeprefix("nginx version: "),
        "wrk": _first_line("wrk", "-v").split(" [")[0],
        "commit": _commit(root),
    }


def _flag(name):
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return re.search(rf"^flags\s*:.*\b{name}\b", file.read(), re.MULTILINE) is not None


def _text(path):
    try:
        return Path(path).read_text("ascii").strip()
    except OSError:
        return ""


def _first_line(*argv):
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except OSError:
        return "not there"
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0].strip() if lines else "unknown"


def _commit(root):
    found = _first_line("git", "-c", f"safe.directory={root}", "-C", str(root), "describe", "--always", "--dirty")
    return "unknown" if found.startswith(("fatal", "not there")) else found

"""Debian packages for the lab: found through an apt root of our own, kept and unpacked in a cache folder.

The machine's packages and apt lists are not touched. A cache that is complete is used without a network.

    CACHE/apt/        the apt root: its lists, and what it downloaded (archives/)
    CACHE/wanted.json the packages that belong into the cache: see Manifest
    CACHE/tools/      QEMU, busybox, iproute2, ethtool, clang and their libraries
    CACHE/kernel-X/   vmlinuz and modules of one Debian kernel
"""

import fcntl
import json
import os
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass
from urllib.parse import unquote

from .errors import LabError

# The kernels that the lab boots: a name of ours, and the Debian suite whose newest kernel it is.
KERNEL_SUITES = {"6.1": "bookworm", "6.12": "trixie", "7.3": "trixie-backports"}
# The one with zero-copy in both drivers.
MAIN_KERNEL = "7.3"
TOOLS_SUITE = "trixie"
# Looked up in the cache's lists: the newest clang of the suite is added.
TOOLS = ("qemu-system-x86", "busybox-static", "iproute2", "ethtool", "bpftool", "libbpf-dev")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

_APT_CONF = """\
Dir "{root}";
Dir::State "{root}/state";
Dir::State::status "{root}/status";
Dir::Cache "{root}";
Dir::Cache::archives "{root}/archives";
Dir::Etc "{root}/etc";
Dir::Etc::sourcelist "{root}/etc/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
APT::Architecture "amd64";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
"""


@dataclass(frozen=True)
class Package:
    """One file of the archive: `spec` is its argument for apt-get download, `file` the name of the file that this writes."""

    spec: str
    file: str
    bytes: int


@dataclass
class Manifest:
    """The packages of each folder of the cache, by the folder's name, and the question that they answer."""

    folders: dict[str, list[Package]]
    question: list[str]

    def to_json(self):
        folders = {name: [asdict(p) for p in packages] for name, packages in self.folders.items()}
        return json.dumps({"question": self.question, "folders": folders}, indent=1)

    @classmethod
    def from_json(cls, text):
        found = json.loads(text)
        folders = {name: [Package(**p) for p in packages] for name, packages in found["folders"].items()}
        return cls(folders, found["question"])


def _question():
    """Describes the wanted packages; a manifest with another question is out of date."""
    return [TOOLS_SUITE, *TOOLS, *(f"{name} {suite}" for name, suite in KERNEL_SUITES.items())]


def fill(cache, say, refresh=False):
    """Fetches and unpacks the packages that `cache` lacks, and says how many these are. Returns the Manifest.

    Raises LabError if something cannot be had.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w") as lock:
        # One at a time fills a cache.
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _fill(cache, say, refresh)


def _fill(cache, say, refresh):
    wanted = cache / "wanted.json"
    apt = _Apt(cache / "apt")
    manifest = _read(wanted)
    if refresh or manifest is None or manifest.question != _question():
        say("looking up packages")
        apt.update()
        manifest = _resolve(apt)
    everything = {p.file: p for packages in manifest.folders.values() for p in packages}
    missing = [p for p in everything.values() if not _is_complete(apt.archives / p.file, p)]
    if missing:
        total = sum(p.bytes for p in missing)
        say(f"fetching {len(missing)} of {len(everything)} packages, {total / 1e6:.0f} MB, into {cache}")
        apt.download(missing)
    # After the download: until then an older cache stays complete.
    if manifest != _read(wanted):
        _write(wanted, manifest.to_json())
    for name, packages in manifest.folders.items():
        _unpack(cache / name, [apt.archives / p.file for p in packages], say)
    return manifest


def parse_uris(text):
    """The packages in the output of apt-get --print-uris, in its order."""
    packages = []
    for line in text.splitlines():
        found = re.match(r"'[^']+' (\S+)_(\S+)_(\S+)\.deb (\d+)", line)
        if found:
            name, version, architecture, size = found.groups()
            spec = f"{name}:{architecture}={unquote(version)}" if architecture != "all" else f"{name}={unquote(version)}"
            packages.append(Package(spec, f"{name}_{version}_{architecture}.deb", int(size)))
    return packages


def newest_kernel(names):
    """The newest ordinary kernel among package names; None if there is none.

    Debian's kernels are one package (linux-image-V-amd64) or, since 7.3, several (linux-binary-V-amd64 beside it).
    """
    versions = {}
    for name in names:
        found = re.fullmatch(r"linux-(?:image|binary)-((\d+(?:\.\d+)*)\S*?)-amd64", name)
        if found and not re.search(r"cloud|-rt|unsigned|dbg", name):
            # 6.1.0-50 before 6.1.0-51, 7.3.2+deb13 before 7.3.4+deb13.
            key = tuple(int(n) for n in re.findall(r"\d+", found[1]))
            versions[key] = found[1]
    return versions[max(versions)] if versions else None


class _Apt:
    """An apt root: lists and downloaded packages. Nothing is ever installed in it."""

    def __init__(self, root):
        self.root = root
        self.archives = root / "archives"

    def update(self):
        for folder in ("state/lists/partial", "archives/partial", "etc"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        (self.root / "status").touch()
        (self.root / "apt.conf").write_text(_APT_CONF.format(root=self.root))
        mirror = self._mirror()
        suites = {TOOLS_SUITE, f"{TOOLS_SUITE}-updates", *KERNEL_SUITES.values()}
        self._write_sources(mirror, sorted(suites))
        self.run("apt-get", "-q", "update")

    def _mirror(self):
        """The archive that the machine itself uses."""
        machine = subprocess.run(
            ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Identifier: Packages"],
            capture_output=True, text=True, check=False,
        )
        for line in machine.stdout.splitlines():
            uri, _, release = line.partition(" ")
            if release and not release.endswith("-security") and re.search(r"/debian/?$", uri):
                return uri
        raise LabError("no Debian archive is among this machine's apt sources: the lab's packages come from there")

    def _write_sources(self, mirror, suites):
        lines = [f"deb [signed-by={KEYRING}] {mirror} {suite} main\n" for suite in suites]
        (self.root / "etc/sources.list").write_text("".join(lines))

    def run(self, *argv, cwd=None):
        env = dict(os.environ, APT_CONFIG=str(self.root / "apt.conf"), LC_ALL="C")
        done = subprocess.run(argv, capture_output=True, text=True, env=env, cwd=cwd, check=False)
        if done.returncode != 0:
            last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
            raise LabError(f"{' '.join(argv[:3])} ...: {last}")
        return done.stdout

    def closure(self, suite, names):
        """Returns the packages `names` of `suite`, and all that they depend on."""
        # With an empty archive folder: apt prints only the packages that it would have to fetch.
        none = self.root / "no-archives"
        (none / "partial").mkdir(parents=True, exist_ok=True)
        argv = ["apt-get", "-o", f"Dir::Cache::archives={none}", "install", "-y", "--print-uris", "-t", suite, *names]
        return parse_uris(self.run(*argv))

    def files(self, suite, names):
        """Returns the packages `names` of `suite`, without those that they depend on."""
        specs = [f"{name}/{suite}" for name in names]
        return parse_uris(self.run("apt-get", "download", "--print-uris", *specs))

    def names(self, suite, prefix):
        """The packages of `suite` whose names begin with `prefix`."""
        names = self.run("apt-cache", "pkgnames", prefix).split()
        if not names:
            return []
        table = self.run("apt-cache", "madison", *names)
        rows = (line.split("|") for line in table.splitlines())
        return [row[0].strip() for row in rows if len(row) == 3 and f" {suite}/main " in row[2]]

    def download(self, packages):
        """Fetches `packages` into the archives, in place of files of these names. apt itself checks the hashes."""
        for package in packages:
            (self.archives / package.file).unlink(missing_ok=True)
        self.run("apt-get", "-q", "download", *(p.spec for p in packages), cwd=self.archives)
        lacking = [p.file for p in packages if not _is_complete(self.archives / p.file, p)]
        if lacking:
            raise LabError(f"apt did not fetch {lacking[0]} and {len(lacking) - 1} others")


def _resolve(apt):
    clangs = [name for name in apt.names(TOOLS_SUITE, "clang-") if re.fullmatch(r"clang-\d+", name)]
    newest_clang = max(clangs, key=lambda name: int(name.removeprefix("clang-")))
    folders = {"tools": apt.closure(TOOLS_SUITE, [*TOOLS, newest_clang])}
    for name, suite in KERNEL_SUITES.items():
        there = set(apt.names(suite, "linux-image-")) | set(apt.names(suite, "linux-binary-"))
        version = newest_kernel(there)
        if version is None:
            raise LabError(f"{suite} has no ordinary amd64 kernel")
        parts = [f"linux-binary-{version}-amd64", f"linux-modules-{version}-amd64"]
        if parts[0] not in there:
            parts = [f"linux-image-{version}-amd64"]
        folders[f"kernel-{name}"] = apt.files(suite, parts)
    return Manifest(folders, _question())


def _read(wanted):
    """The manifest in a file; None if there is none, or one of an older lab."""
    try:
        return Manifest.from_json(wanted.read_text())
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_complete(path, package):
    return path.exists() and path.stat().st_size == package.bytes


def _unpack(folder, archives, say):
    """Unpacks `archives` into `folder`, unless that was done."""
    stamp = folder / "unpacked"
    text = "".join(f"{path.name}\n" for path in archives)
    if stamp.exists() and stamp.read_text() == text:
        return
    say(f"unpacking {folder.name} ({len(archives)} packages)")
    shutil.rmtree(folder, ignore_errors=True)
    # The links of the merged root of Debian 13.
    for name in ("bin", "sbin", "lib", "lib64"):
        (folder / "usr" / name).mkdir(parents=True)
        (folder / name).symlink_to(f"usr/{name}")
    for path in archives:
        # dpkg -x would replace the links by folders.
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", path], stdout=subprocess.PIPE) as tar:
            done = subprocess.run(
                ["tar", "-x", "--keep-directory-symlink", "--no-same-owner", "-C", folder], stdin=tar.stdout, check=False
            )
        if done.returncode != 0 or tar.returncode != 0:
            raise LabError(f"{path} cannot be unpacked: remove it and try again")
    _write(stamp, text)


def _write(path, text):
    """Writes a file in one step, so that an interruption leaves the old file or none."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)

"""Tests of the parts of the lab that need no guest: package lists, archives, modules, reports, clients."""

import socket
import threading
import unittest

from ilet_vm import clients, image, packages, server
from ilet_vm.checks import ALL


class Packages(unittest.TestCase):
    def test_uris_are_packages_with_their_sizes(self):
        text = (
            "Reading package lists...\n"
            "'http://a/pool/q/qemu_10.0%2bds_amd64.deb' qemu-system-x86_1%3a10.0.13+ds-0+deb13u1_amd64.deb 10300 SHA256:00\n"
            "'http://a/pool/s/seabios_1.16.3-2_all.deb' seabios_1.16.3-2_all.deb 163 SHA256:00\n"
        )
        self.assertEqual(
            packages.parse_uris(text),
            [
                packages.Package(
                    "qemu-system-x86:amd64=1:10.0.13+ds-0+deb13u1", "qemu-system-x86_1%3a10.0.13+ds-0+deb13u1_amd64.deb", 10300
                ),
                packages.Package("seabios=1.16.3-2", "seabios_1.16.3-2_all.deb", 163),
            ],
        )

    def test_the_newest_ordinary_kernel(self):
        self.assertEqual(
            packages.newest_kernel(
                [
                    "linux-image-6.1.0-9-amd64", "linux-image-6.1.0-50-amd64", "linux-image-6.1.0-51-cloud-amd64",
                    "linux-image-6.1.0-51-amd64-unsigned", "linux-image-amd64", "linux-image-6.1.0-52-rt-amd64",
                ]
            ),
            "6.1.0-50",
        )
        self.assertEqual(
            packages.newest_kernel(["linux-binary-7.3.4+deb13-amd64", "linux-image-7.2.12+deb13-amd64"]), "7.3.4+deb13"
        )
        self.assertIsNone(packages.newest_kernel(["linux-image-amd64"]))

    def test_a_manifest_survives_being_written(self):
        manifest = packages.Manifest({"tools": [packages.Package("a=1", "a_1_all.deb", 3)]}, ["question"])
        self.assertEqual(packages.Manifest.from_json(manifest.to_json()), manifest)


class Image(unittest.TestCase):
    def test_dependencies_of_a_module(self):
        self.assertEqual(
            image.dependencies(b"...\0license=GPL\0depends=failover,i2c-algo-bit\0name=x\0"), ["failover", "i2c_algo_bit"]
        )
        self.assertEqual(image.dependencies(b"\0depends=\0"), [])
        self.assertEqual(image.dependencies(b"nothing"), [])

    def test_an_archive_can_be_walked(self):
        archive = image.Cpio()
        archive.folder("usr")
        archive.link("bin", "usr/bin")
        archive.file("init", b"#!/bin/sh\n", 0o755)
        self.assertEqual(
            _walk(archive.finish()),
            [
                ("usr", 0o40755, b""), ("bin", 0o120777, b"usr/bin"), ("init", 0o100755, b"#!/bin/sh\n"),
                ("TRAILER!!!", 0, b""),
            ],
        )


def _walk(data):
    entries = []
    at = 0
    while at < len(data):
        assert data[at : at + 6] == b"070701"
        field = lambda n: int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16)
        mode, size, name_size = field(1), field(6), field(11)
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        start = at + 110 + name_size
        start += -start % 4
        entries.append((name, mode, data[start : start + size]))
        at = start + size
        at += -at % 4
    return entries


class Reports(unittest.TestCase):
    def test_the_last_report_counts(self):
        text = (
            "ready: TCP port 7\ncounter rx_frames 1\nframes queue=0 total=8 free=8\nconserved yes\n"
            "counter rx_frames 7\nxdp redirect_own 7\nframes queue=0 total=8 free=5 fill=3\n"
            "frames queue=1 total=8 free=8 fill=0\nconserved no\n"
        )
        report = server.parse_report(1, text)
        self.assertEqual((report.code, report.counters, report.xdp), (1, {"rx_frames": 7}, {"redirect_own": 7}))
        self.assertEqual(report.frames[0], {"total": 8, "free": 5, "fill": 3})
        self.assertEqual(sorted(report.frames), [0, 1])
        self.assertFalse(report.conserved)


class Checks(unittest.TestCase):
    def test_each_has_a_name_of_its_own(self):
        names = [check.name for check in ALL]
        self.assertEqual(len(names), len(set(names)))


class Clients(unittest.TestCase):
    def test_echoes_that_come_back_are_right(self):
        with _tcp(lambda data: data) as port:
            result = clients.echo("tcp", "127.0.0.1", port, 3, 9, 100)
        self.assertEqual((result["right"], result["wrong"], result["error"]), (9, 0, None))

    def test_echoes_that_are_changed_are_wrong(self):
        with _tcp(lambda data: b"x" * len(data)) as port:
            result = clients.echo("tcp", "127.0.0.1", port, 1, 2, 100)
        self.assertEqual((result["right"], result["wrong"]), (0, 2))

    def test_a_connection_that_is_closed_is_an_error(self):
        with _tcp(lambda data: b"") as port:
            result = clients.echo("tcp", "127.0.0.1", port, 1, 2, 100)
        self.assertIn("closed by the server", result["error"])


class _tcp:
    """A server on loopback. It sends `answer(data)` for data that it reads, and closes the connection if that is empty."""

    def __init__(self, answer):
        self.answer = answer
        self.listener = socket.create_server(("127.0.0.1", 0))

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self.listener.getsockname()[1]

    def __exit__(self, *_):
        self.listener.close()

    def _accept(self):
        try:
            while True:
                sock, _ = self.listener.accept()
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()
        except OSError:
            pass

    def _serve(self, sock):
        with sock:
            while data := sock.recv(65536):
                answer = self.answer(data)
                if not answer:
                    return
                sock.sendall(answer)


if __name__ == "__main__":
    unittest.main()

import contextlib
import io
import types
import unittest
from unittest import mock

from .. import command, measure, plan, procfs
from ..lab import LabError
from ..scenarios import SCENARIOS


def step(idle, peer="ilet"):
    cell = next(cell for cell in SCENARIOS["idle-scale"].cells if cell.idle == idle)
    return plan.Step(SCENARIOS["idle-scale"], cell, peer, 1)


def bench(available=10e9, per_connection=None):
    """A bench whose lab has nothing in it, on a machine with this much memory."""
    broken = types.SimpleNamespace(set_mtu=raise_lab_error)
    made = measure.Bench(broken, plan.Options(), 20_000, available=lambda: available)
    if per_connection:
        made._per_connection["ilet"] = per_connection
    return made


def raise_lab_error(*_):
    raise LabError("no such device")


class Fitting(unittest.TestCase):
    def test_it_is_computed_from_what_a_connection_took(self):
        self.assertEqual(measure.fitting(10e9, 20_000), 400_000)
        self.assertEqual(measure.fitting(10e9, 19_900), 400_000)
        self.assertEqual(measure.fitting(1e6, 20_000), 0)

    def test_what_does_not_fit_is_said_and_not_tried(self):
        found = bench(per_connection=30_000).measure(step(500_000))
        self.assertIsNone(found.failure)
        self.assertIn("cannot be held: 500,064 connections at 30,000 bytes each", found.note)

    def test_as_many_as_fit_are_measured_beside(self):
        found = list(command.measure_step(bench(per_connection=30_000), step(500_000)))
        self.assertEqual([one.step.cell.idle for one in found], [500_000, 250_000])

    def test_not_if_a_smaller_cell_is_as_good(self):
        found = list(command.measure_step(bench(per_connection=100_000), step(500_000)))
        self.assertEqual(len(found), 1)

    def test_a_kernel_server_is_bound_by_its_files(self):
        found = list(command.measure_step(bench(), step(500_000, "kernel-echo/rps")))
        self.assertEqual(len(found), 1)
        self.assertIn("open files", found[0].note)


class KernelMemory(unittest.TestCase):
    def test_only_objects_of_sockets_in_use_count(self):
        text = (
            "slabinfo - version: 2.1\n"
            "# name <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables ...\n"
            "TCP 52 104 2368 13 8 : tunables 0 0 0 : slabdata 8 8 0\n"
            "kmalloc-1k 735 800 1024 16 4 : tunables 0 0 0 : slabdata 50 50 0\n"
            "filp 595 672 192 21 1 : tunables 0 0 0 : slabdata 32 32 0\n"
        )
        self.assertEqual(procfs.slab_objects_bytes(text), 52 * 2368 + 595 * 192)

    def test_and_buffers(self):
        text = "sockets: used 91\nTCP: inuse 5 orphan 0 tw 2 alloc 6 mem 37\nUDP: inuse 1 mem 3\n"
        self.assertEqual(procfs.tcp_pages(text), 37)


class Failures(unittest.TestCase):
    def test_what_goes_wrong_is_in_the_measurement(self):
        found = bench().measure(step(0))
        self.assertEqual((found.failure, found.values), ("no such device", {}))

    def test_a_signal_is_not_hidden_by_a_server_that_ends_badly(self):
        lab = types.SimpleNamespace(stop=raise_lab_error)
        made = measure.Bench(lab, plan.Options(), 20_000, available=lambda: 10e9)
        server = types.SimpleNamespace(process=None, ready="", pair=0)
        with (
            mock.patch.object(measure.peers, "arrange"),
            mock.patch.object(measure.peers, "start", return_value=server),
            mock.patch.object(made, "_against", side_effect=SystemExit(143)),
            self.assertRaises(SystemExit),
        ):
            made.measure(step(0))

    def test_and_on_its_line(self):
        line = command.progress(bench().measure(step(0)), 1, 9)
        self.assertIn("[  1/9] idle-scale size=64 connections=64 idle=0 round 1 ilet: FAILED: no such device", line)


class Counters(unittest.TestCase):
    def test_they_are_read(self):
        text = "ready: x\ncounter rx_frames 12\nxdp redirect_own 3\nframes queue=0 total=1\nconserved yes\n"
        self.assertEqual(measure.counters(text), {"rx_frames": 12, "redirect_own": 3})


class CommandLine(unittest.TestCase):
    def test_good_ones(self):
        options = command.parse(["--only", "tcp-echo,udp-echo", "--rounds", "2", "--seconds", "0.5", "--quick"])
        self.assertEqual(options, plan.Options(("tcp-echo", "udp-echo"), (), 2, 0.5, True))

    def test_bad_ones_are_one_line_and_2(self):
        for argv in (["--only"], ["--only", ","], ["--only", "x"], ["--rounds", "0"], ["--seconds", "nan"], ["--qui"], ["y"]):
            said = io.StringIO()
            with self.subTest(argv), contextlib.redirect_stderr(said), self.assertRaises(SystemExit) as end:
                command.parse(argv)
            self.assertEqual(end.exception.code, 2)
            self.assertEqual(said.getvalue().count("\n"), 1)


if __name__ == "__main__":
    unittest.main()

import struct
import tempfile
import types
import unittest
from pathlib import Path
from unittest import mock

from .. import measure, plan, relay, trace
from ..lab import LabError
from ..scenarios import SCENARIOS, Cell

SERVER, CLIENT = ("10.0.0.2", 80), ("10.0.0.1", 40_000)


def packet(time, source, target, sequence, length, kept=134):
    """A record of a trace: a segment with 12 bytes of options."""
    addresses = b"".join(bytes(map(int, end[0].split("."))) for end in (source, target))
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + 32 + length, 0, 0, 64, 6, 0) + addresses
    tcp = struct.pack("!HHIIBBHHH", source[1], target[1], sequence, 0, 8 << 4, 16, 100, 0, 0) + bytes(12)
    frame = bytes(12) + b"\x08\x00" + ip + tcp + bytes(length)
    head = struct.pack("=IIII", int(time), round(time % 1 * 1e9), min(kept, len(frame)), len(frame))
    return head + frame[:kept]


def content(*records):
    return struct.pack("=IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 134, 1) + b"".join(records)


class Trace(unittest.TestCase):
    def figures(self, *sent, sender=SERVER):
        """The figures of segments of 1,000 bytes, given as (time, sequence)."""
        found = trace.segments(content(*(packet(time, SERVER, CLIENT, sequence, 1_000) for time, sequence in sent)))
        return trace.figures(found, sender)

    def test_segments_are_read(self):
        arp = struct.pack("=IIII", 5, 0, 42, 42) + bytes(12) + b"\x08\x06" + bytes(28)
        (found,) = trace.segments(content(arp, packet(7.25, SERVER, CLIENT, 9, 1_448)))
        self.assertEqual(found, trace.Segment(7.25, SERVER, CLIENT, 9, 1_448))

    def test_only_the_senders_data_counts(self):
        found = trace.segments(content(
            packet(1, CLIENT, SERVER, 1, 0), packet(1, CLIENT, SERVER, 1, 90), packet(1, SERVER, CLIENT, 1, 0),
            packet(1, SERVER, CLIENT, 1, 10), packet(9, SERVER, CLIENT, 11, 0),
        ))
        values = trace.figures(found, SERVER)
        self.assertEqual((values["segments_sent"], values["segments_again"], values["pauses"]), (1, 0, 0))

    def test_what_was_sent_before_is_sent_again(self):
        values = self.figures((1, 0), (1, 1_000), (1, 2_000), (1.02, 0), (1.03, 3_000), (1.04, 2_500))
        self.assertEqual((values["segments_sent"], values["segments_again"]), (6, 2))
        self.assertAlmostEqual(values["again_share"], 1 / 3)

    def test_numbers_wrap(self):
        near = (1 << 32) - 500
        values = self.figures((1, near), (1, 500), (1.01, near), (1.02, 1_500))
        self.assertEqual(values["segments_again"], 1)

    def test_pauses(self):
        values = self.figures((1, 0), (1.1, 1_000), (1.3, 2_000), (2.5, 2_000))
        self.assertEqual(values["pauses"], 2)
        self.assertAlmostEqual(values["longest_pause_ms"], 1_200, places=3)

    def test_nothing_was_sent(self):
        self.assertEqual(self.figures((1, 0), sender=CLIENT)["again_share"], None)

    def test_what_is_no_trace(self):
        whole = content(packet(1, SERVER, CLIENT, 0, 10))
        for text in (b"", b"x" * 40, whole[:-1], whole[:30]):
            with self.subTest(text), self.assertRaises(trace.TraceError):
                trace.segments(text)


class Relay(unittest.TestCase):
    LAB = types.SimpleNamespace(bin_dir=Path("/b"), run_dir=Path("/r"))

    def command(self, **changes):
        return " ".join(relay.command(self.LAB, Cell("http-download", 1, 1, relayed=True, **changes), 3))

    def test_the_command_line(self):
        line = self.command(rtt_ms=20, loss=0.01)
        self.assertEqual(line, "/b/ilet-relay --server relay-srv2 --client relay-cli2 --delay 10 --loss 0.01 --seed 3")
        line = self.command(rtt_ms=20, rate_mbit=200, traced=True)
        # 200 Mbit/s for 20 ms.
        self.assertIn("--rate 200 --queue 500000 --trace /r/relay.pcap", line)
        self.assertIn("--queue 100000", self.command(rtt_ms=1, rate_mbit=10))

    def test_what_it_says_at_the_end(self):
        self.assertEqual(relay.parse('ready: x\n{"from_server": {"missed": 1}}\n'), {"from_server": {"missed": 1}})
        for text in ("", "ready: x\n"):
            with self.assertRaises(LabError):
                relay.parse(text)

    def test_a_measurement_without_it_has_none(self):
        with relay.running(None, Cell("http", 1, 1), 1, None):
            pass

    def test_it_runs_around_the_measurement_and_its_counts_are_kept(self):
        with tempfile.TemporaryDirectory() as directory:
            output = Path(directory) / "out"
            output.write_text('ready: x\n{"from_server": {"missed": 1, "line_full": 2}, "from_client": {"missed": 4, "line_full": 0}}\n')
            events = []
            process = types.SimpleNamespace(output=output)
            lab = types.SimpleNamespace(
                bin_dir=Path("/b"), run_dir=Path(directory), start_relay=lambda argv, ready: events.append("start") or process,
                stop=lambda stopped: events.append("stop"),
            )
            cell = SCENARIOS["impaired"].cells[0]
            step = plan.Step(SCENARIOS["impaired"], cell, "ilet", 1)
            bench = measure.Bench(lab, plan.Options(), 20_000)
            with mock.patch.object(bench, "_over_the_link", side_effect=lambda one: events.append("measure")):
                found = bench.measure(step)
            self.assertEqual((events, found.failure), (["start", "measure", "stop"], None))
            self.assertEqual(found.values["relay_missed"], 7)
            with mock.patch.object(bench, "_over_the_link", side_effect=LabError("no server")):
                found = bench.measure(step)
            self.assertEqual((events[3:], found.failure, found.values), (["start", "stop"], "no server", {}))


if __name__ == "__main__":
    unittest.main()

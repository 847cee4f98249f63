import types
import unittest

from .. import peers, plan
from ..scenarios import SCENARIOS, Cell

OPEN_FILES = 20_000


class Time(unittest.TestCase):
    def test_a_full_run_and_a_quick_one_keep_their_promise(self):
        # A tenth to spare, for what takes longer than planned.
        self.assertLess(plan.total_s(plan.Options(), OPEN_FILES), plan.FULL_LIMIT_S * 0.9)
        self.assertLess(plan.total_s(plan.Options(quick=True), OPEN_FILES), plan.QUICK_LIMIT_S * 0.9)

    def test_options_are_in_it(self):
        base = plan.Options(only=("tcp-echo",))
        longer = plan.Options(only=("tcp-echo",), seconds=5)
        more = plan.Options(only=("tcp-echo",), rounds=9)
        self.assertGreater(plan.total_s(longer, OPEN_FILES), plan.total_s(base, OPEN_FILES))
        self.assertEqual(len(plan.steps(more)), 3 * len(plan.steps(base)))

    def test_what_is_not_measured_takes_no_time(self):
        steps = [step for step in plan.steps(plan.Options(only=("idle-scale",))) if step.cell.idle == 500_000]
        times = {step.peer: plan.expected_s(step, plan.Options(), OPEN_FILES) for step in steps}
        self.assertEqual(times["kernel-echo/rps"], 0)
        self.assertGreater(times["ilet"], 500_000 / 20_000)

    def test_minutes(self):
        self.assertEqual(plan.minutes(185.4), "3:05")


class Order(unittest.TestCase):
    def test_peers_alternate_within_a_cell(self):
        steps = plan.steps(plan.Options(only=("http-connection",), rounds=2))
        names = list(SCENARIOS["http-connection"].peers)
        self.assertEqual([step.peer for step in steps], names + names[::-1])
        self.assertEqual([step.round for step in steps], [1] * 5 + [2] * 5)

    def test_all_peers_of_a_cell_have_as_many_rounds(self):
        rounds = {}
        for step in plan.steps(plan.Options()):
            rounds.setdefault((step.scenario.name, step.cell), {}).setdefault(step.peer, []).append(step.round)
        for of_peers in rounds.values():
            self.assertEqual(len({tuple(of_peer) for of_peer in of_peers.values()}), 1)


class Choice(unittest.TestCase):
    def test_peers_by_program_or_placement(self):
        steps = plan.steps(plan.Options(only=("tcp-echo",), peers=("ilet", "kernel-echo/rps")))
        self.assertEqual({step.peer for step in steps}, {"ilet", "kernel-echo/rps"})

    def test_optional_peers_only_if_named(self):
        self.assertNotIn("kernel-echo-busy-poll/rps", {step.peer for step in plan.steps(plan.Options())})
        steps = plan.steps(plan.Options(only=("tcp-echo",), peers=("kernel-echo-busy-poll",)))
        self.assertEqual({step.peer for step in steps}, {"kernel-echo-busy-poll/default", "kernel-echo-busy-poll/rps"})

    def test_names_that_do_not_exist(self):
        for options in (
            plan.Options(only=("tcp",)), plan.Options(peers=("apache",)), plan.Options(only=("udp-echo",), peers=("nginx",)),
        ):
            with self.subTest(options), self.assertRaises(plan.PlanError):
                plan.check(options)

    def test_quick_has_a_part_of_every_scenario_but_those_of_the_full_run(self):
        full = {"upload", "burst", "impaired", "trace"}
        self.assertEqual({step.scenario.name for step in plan.steps(plan.Options(quick=True))}, set(SCENARIOS) - full)
        self.assertEqual({step.scenario.name for step in plan.steps(plan.Options())}, set(SCENARIOS))

    def test_a_scenario_without_quick_cells_is_in_quick_if_it_is_named(self):
        named = plan.steps(plan.Options(only=("trace", "tcp-echo"), quick=True))
        found = {name: {step.cell for step in named if step.scenario.name == name} for name in ("trace", "tcp-echo")}
        self.assertEqual(found["trace"], set(SCENARIOS["trace"].cells))
        self.assertTrue(all(cell.quick for cell in found["tcp-echo"]))


class Places(unittest.TestCase):
    LAB = types.SimpleNamespace(server4=["own", "kernel", "own behind the relay"], relayed_kernel4="kernel behind the relay")

    def test_servers_have_the_pair_that_is_made_for_them(self):
        direct, relayed = Cell("http", 1, 1), Cell("http", 1, 1, relayed=True)
        for which, cell, expected in (
            ("ilet", direct, (0, "own")), ("plain-smoltcp", direct, (0, "own")), ("nginx", direct, (1, "kernel")),
            ("ilet-reflect", direct, (1, "kernel")), ("ilet", relayed, (2, "own behind the relay")),
            ("nginx", relayed, (2, "kernel behind the relay")),
        ):
            with self.subTest(which):
                self.assertEqual(peers.place(self.LAB, which, cell), expected)

    def test_a_relay_is_for_clients_of_the_kernel(self):
        for scenario in SCENARIOS.values():
            for cell in scenario.cells:
                self.assertTrue(cell.client in ("wrk", "curl") or not cell.relayed)
                self.assertTrue(cell.relayed or not (cell.rtt_ms or cell.rate_mbit or cell.traced))

    def test_ports(self):
        ports = {protocol: peers.port_of(protocol) for protocol in ("tcp-echo", "udp-echo", "tcp-upload", "http-download")}
        self.assertEqual(ports, {"tcp-echo": 7, "udp-echo": 7, "tcp-upload": 9, "http-download": 80})


class Holding(unittest.TestCase):
    def test_the_kernel_is_bound_by_open_files(self):
        self.assertIsNone(peers.cannot_hold("kernel-echo/rps", 10_064, OPEN_FILES))
        self.assertIn("20,000", peers.cannot_hold("nginx/default", 100_064, OPEN_FILES))
        self.assertIsNone(peers.cannot_hold("ilet", 500_064, OPEN_FILES))


if __name__ == "__main__":
    unittest.main()

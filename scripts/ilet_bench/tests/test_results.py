import dataclasses
import json
import tempfile
import unittest
from pathlib import Path

from .. import goals, peers, plots, results, tables
from ..scenarios import SCENARIOS
from .samples import CELL, measurement

KERNEL = ("kernel-echo/default", "kernel-echo/rps")


def measured():
    """Two rounds of a cell, in which the first placement is the better one by its median."""
    rates = {"ilet": (400.0, 600.0), KERNEL[0]: (200.0, 200.0), KERNEL[1]: (250.0, 100.0)}
    return [measurement(peer, number + 1, rate) for number in (0, 1) for peer, of_peer in rates.items()
            for rate in of_peer[number:number + 1]]


def row_of(rows, peer, metric="requests_per_second"):
    return next(row for row in rows if row["peer"] == peer and row["metric"] == metric)


class Rows(unittest.TestCase):
    def test_what_a_row_has(self):
        row = row_of(results.rows(measured()), "ilet")
        self.assertEqual(row["scenario"], "tcp-echo")
        self.assertEqual(row["parameters"], {"size": 64, "connections": 64})
        self.assertEqual(row["unit"], "1/s")
        self.assertEqual(row["rounds"], [400, 600])
        self.assertEqual((row["median"], row["min"], row["max"]), (500, 400, 600))
        self.assertIsNone(row["note"])

    def test_ratios_are_the_medians_of_the_rounds(self):
        row = row_of(results.rows(measured()), "ilet")
        self.assertEqual(row["ratio_to"][KERNEL[0]], 2.5)
        self.assertEqual(row["ratio_to"][KERNEL[1]], (1.6 + 6) / 2)
        self.assertEqual(row["ratio_rounds_to"][KERNEL[1]], [1.6, 6])

    def test_the_best_placement_is_one_for_all_rounds(self):
        row = row_of(results.rows(measured()), "ilet")
        self.assertEqual(row["best_placement"], {"kernel-echo": KERNEL[0]})
        self.assertEqual(row["ratio_to"]["kernel-echo/best"], 2.5)

    def test_only_the_subject_has_ratios(self):
        self.assertEqual(row_of(results.rows(measured()), KERNEL[0])["ratio_to"], {})

    def test_the_order_of_measuring_does_not_matter(self):
        self.assertEqual(results.rows(measured()), results.rows(measured()[::-1]))

    def test_a_failed_round_is_not_dropped(self):
        found = measured()
        found[3] = measurement("ilet", 2, failure="ilet-load ended with 1: error: 3 corrupt")
        row = row_of(results.rows(found), "ilet")
        self.assertEqual(row["rounds"], [400, None])
        self.assertIsNone(row["median"])
        self.assertEqual(row["ratio_to"], {})
        self.assertIn("round 2 failed: ilet-load ended with 1", row["note"])
        self.assertEqual(results.failures(found)[0]["round"], 2)

    def test_what_cannot_be_held_has_a_row(self):
        found = measured() + [measurement("plain-smoltcp", number, note="cannot be held: no") for number in (1, 2)]
        row = row_of(results.rows(found), "plain-smoltcp")
        self.assertEqual((row["median"], row["note"]), (None, "cannot be held: no"))
        self.assertEqual(results.failures(found), [])

    def test_cells_are_kept_apart(self):
        other = dataclasses.replace(CELL, connections=1)
        rows = results.rows(measured() + [measurement("ilet", 1, 10.0, cell=other)])
        self.assertEqual(
            [row["median"] for row in rows if row["peer"] == "ilet" and row["metric"] == "requests_per_second"], [500, 10]
        )


class Document(unittest.TestCase):
    KEYS = {"scenario", "parameters", "peer", "metric", "unit", "rounds", "median", "ratio_to"}

    def test_it_is_json_with_the_promised_keys(self):
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "results.json"
            results.write(path, results.document({"kernel": "6"}, {"quick": True}, measured()))
            self.assertEqual([file.name for file in Path(directory).iterdir()], ["results.json"])
            document = json.loads(path.read_text("utf-8"))
        self.assertEqual(document["machine"], {"kernel": "6"})
        self.assertEqual(document["settings"], {"quick": True})
        self.assertTrue(document["rows"])
        for row in document["rows"]:
            self.assertLessEqual(self.KEYS, row.keys())
            self.assertIsInstance(row["rounds"], list)
            self.assertIsInstance(row["ratio_to"], dict)

    def test_distributions_are_of_the_middle_round(self):
        found = [measurement("ilet", number, rate) for number, rate in ((1, 1.0), (2, 3.0), (3, 2.0))]
        found[2].details["latency_us"]["cdf"] = [[7.0, 1.0]]
        (cdf,) = results.latency_cdfs(found)
        self.assertEqual((cdf["peer"], cdf["points"]), ("ilet", [[7.0, 1.0]]))

    def test_offloads_are_stated(self):
        found = measured()
        found[0].conditions = {"server": "s", "offloads": {"srv0": {"tx": "off", "gro": "on"}}}
        conditions = results.conditions(found)
        self.assertEqual(conditions[0]["offloads"]["srv0"]["tx"], "off")
        self.assertIn("offloads of ilet: srv0 tx off gro on", tables.offloads_text("tcp-echo", conditions))


class Table(unittest.TestCase):
    def test_figures_and_ratios(self):
        text = tables.scenario_table("tcp-echo", results.rows(measured()))
        head = text.splitlines()[1].split()
        self.assertEqual(head[:4], ["bytes", "conns", "server", "requests/s"])
        (ilet,) = [line for line in text.splitlines() if " ilet " in line]
        self.assertEqual(ilet.split()[:5], ["64", "64", "ilet", "500", "(400–600)"])
        (better,) = [line for line in text.splitlines() if KERNEL[0] in line]
        self.assertIn("2.50*", better)
        (worse,) = [line for line in text.splitlines() if KERNEL[1] in line]
        self.assertIn("3.80", worse)
        self.assertNotIn("3.80*", worse)

    def test_columns_are_aligned(self):
        lines = [line for line in tables.scenario_table("tcp-echo", results.rows(measured())).splitlines() if "–" in line]
        self.assertEqual(len({line.index(")") for line in lines}), 1)

    def test_failures_and_what_is_not_held_are_shown(self):
        found = measured() + [
            measurement("plain-smoltcp", 1, failure="it ended"), measurement("plain-smoltcp", 2, 5.0),
        ]
        text = tables.scenario_table("tcp-echo", results.rows(found))
        (line,) = [line for line in text.splitlines() if line.split()[2:3] == ["plain-smoltcp"]]
        self.assertIn("FAILED", line)
        self.assertIn("! plain-smoltcp at 64 64: round 1 failed: it ended", text)

    def test_nothing_measured_is_no_table(self):
        self.assertEqual(tables.scenario_table("lossy", []), "")


class Goals(unittest.TestCase):
    def test_held_and_missed(self):
        found = {goal.text: holds for goal, _, holds in goals.verdicts(results.rows(measured()))}
        self.assertIs(found["tcp-echo at 64 connections, times kernel-echo's best placement"], True)
        self.assertIsNone(found["tcp-echo at 64 connections, times the reflector with as many in flight"])
        self.assertIsNone(found["http-keepalive 128 B at 64 connections, times nginx's best placement"])
        slower = [measurement(peer, 1, rate) for peer, rate in (("ilet", 100.0), (KERNEL[0], 90.0))]
        text = goals.text(results.rows(slower))
        self.assertEqual(text, "")
        slower.append(measurement(KERNEL[1], 1, 80.0))
        self.assertIn("✗   1.11  at least 1.80", goals.text(results.rows(slower)))

    def verdict(self, words, found):
        """The value and verdict of the only goal with these words."""
        (one,) = [(value, holds) for goal, value, holds in goals.verdicts(results.rows(found)) if words in goal.text]
        return one

    def test_differences_are_the_medians_of_the_rounds(self):
        one = dataclasses.replace(CELL, connections=1)
        found = []
        for number, (ours, limit) in enumerate(((5.0, 4.5), (9.0, 8.2), (5.0, 3.0)), 1):
            for peer, p50 in (("ilet", ours), ("ilet-reflect", limit)):
                found.append(measurement(peer, number, 1.0, cell=one))
                found[-1].values["latency_p50_us"] = p50
        value, holds = self.verdict("less the reflector's", found)
        self.assertAlmostEqual(value, 0.8)
        self.assertIs(holds, True)
        self.assertEqual(self.verdict("less the reflector's", found[::2]), (None, None))

    def figures(self, scenario, cell, **values):
        made = measurement("ilet", 1, scenario=scenario, cell=cell)
        made.values = values
        return made

    def test_a_cell_against_another(self):
        none = self.figures("idle-scale", dataclasses.replace(CELL, idle=0), server_cpu_us_per_request=2.0)
        many = self.figures("idle-scale", dataclasses.replace(CELL, idle=500_000), server_cpu_us_per_request=3.0)
        self.assertEqual(self.verdict("that with none", [none, many]), (1.5, False))
        self.assertEqual(self.verdict("that with none", [many]), (None, None))

    def test_figures_themselves(self):
        flood = self.figures("flood", dataclasses.replace(CELL, flood=1_000_000), flooded_to_quiet=0.5,
                             resident_growth_bytes=3 << 20, opened_share=1.0)
        text = goals.text(results.rows([flood]))
        for line in (
            "✓   0.50  at least 0.50   flood of", "✗  3,072  at most 1,024   flood of", "✓ 100.0%  at least 95.0%  flood of",
        ):
            self.assertIn(line, text)

    def test_each_is_about_a_cell_that_a_full_run_measures(self):
        for goal in goals.GOALS:
            scenario = SCENARIOS[goal.scenario]
            for wanted in (goal.parameters, goal.parameters | goal.base):
                cells = [
                    cell for cell in scenario.cells if wanted.items() <= scenario.parameters(cell).items()
                ]
                with self.subTest(goal.text):
                    self.assertEqual(len(cells), 1)
                    peer = goal.peer and goal.peer.removesuffix("/best")
                    measured_peers = [peers.program(name) for name in scenario.peers if name not in cells[0].without]
                    self.assertTrue(peer is None or peer in measured_peers)


class Plots(unittest.TestCase):
    def test_series_are_sorted_and_without_gaps(self):
        one = dataclasses.replace(CELL, connections=1)
        many = dataclasses.replace(CELL, connections=256)
        rows = results.rows(measured() + [
            measurement("ilet", 1, 10.0, cell=many), measurement("ilet", 1, 5.0, cell=one),
            measurement(KERNEL[0], 1, failure="no", cell=one),
        ])
        found = plots.series(rows, "tcp-echo", "requests_per_second", "connections", size=64)
        self.assertEqual([point[:2] for point in found["ilet"]], [(1, 5), (64, 500), (256, 10)])
        self.assertEqual([point[0] for point in found[KERNEL[0]]], [64])
        (panel,) = plots.throughput_panels(rows)
        self.assertEqual(panel[0], "tcp-echo, 64 B")

    def test_latency_panels_need_distributions(self):
        self.assertEqual(plots.latency_panels([]), [])
        (panel,) = plots.latency_panels(results.latency_cdfs(measured()))
        self.assertEqual(set(panel[1]), {"ilet", *KERNEL})


if __name__ == "__main__":
    unittest.main()

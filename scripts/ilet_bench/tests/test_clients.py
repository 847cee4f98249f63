import asyncio
import json
import types
import unittest
from pathlib import Path

from .. import clients, lab, probe
from ..clients import ClientError
from ..scenarios import Cell
from . import samples


class IletLoad(unittest.TestCase):
    def test_the_figures(self):
        values, result = clients.parse_ilet_load(json.dumps(samples.ilet_load_result(100_000.0)))
        self.assertEqual(values["requests_per_second"], 100_000)
        self.assertEqual(values["latency_p50_us"], 9)
        self.assertEqual(values["latency_p99_99_us"], 40)
        self.assertEqual(values["server_cpu_us_per_request"], 5)
        self.assertEqual(values["server_cpu_percent"], 50)
        self.assertEqual(values["switches_per_second"], 3)
        self.assertEqual(values["generator_to_server_cpu"], 2)
        self.assertEqual(result["mode"], "copy")

    def test_no_server_was_sampled(self):
        values, _ = clients.parse_ilet_load(json.dumps(samples.ilet_load_result(server=None)))
        self.assertNotIn("server_cpu_us_per_request", values)

    def test_no_request_ended(self):
        server = samples.ilet_load_result()["server"] | {"cpu_us_per_request": None, "switches_per_request": None}
        nothing = samples.ilet_load_result(
            0.0, latency_us=None, server=server, generator={"cpu_s": 2.0, "cpu_us_per_request": None}
        )
        values, _ = clients.parse_ilet_load(json.dumps(nothing))
        self.assertIsNone(values["latency_p50_us"])
        self.assertNotIn("generator_to_server_cpu", values)

    def test_seconds_and_nothing_complete(self):
        slow = samples.WRK.replace("99%    2.50ms", "99%    2.50s ")
        self.assertAlmostEqual(clients.parse_wrk(slow)[0]["latency_p99_us"], 2_500_000)
        values, _ = clients.parse_wrk(samples.WRK.replace("357800 requests", "0 requests"))
        self.assertEqual(set(values), {"requests_per_second", "bytes_per_second"})

    def test_errors_are_no_result(self):
        text = json.dumps(samples.ilet_load_result(errors={"corrupt": 3, "reset": 0}, errors_total=3))
        with self.assertRaisesRegex(ClientError, "3 errors: 3 corrupt"):
            clients.parse_ilet_load(text)

    def test_what_is_no_result(self):
        for text in ("", "{", "[]", "{}", json.dumps(samples.ilet_load_result(server={}))):
            with self.subTest(text), self.assertRaisesRegex(ClientError, "no result"):
                clients.parse_ilet_load(text)

    def command(self, cell, round_number=1, protocol=None):
        where = types.SimpleNamespace(bin_dir=Path("/b"), run_dir=Path("/r"))
        server = types.SimpleNamespace(pair=1, address="10.20.0.2", port=80, pids=[5, 6], sources="10.9.2.0/24",
                                       protocol=protocol or cell.protocol)
        return " ".join(clients.ilet_load(where, server, cell, round_number, 2, 0.2, "busy"))

    def test_the_command_line(self):
        line = self.command(Cell("http", 64, 128, idle=1_000))
        for words in (
            "--interface cli1 --sources 10.9.2.0/24 --target http://10.20.0.2:80/128.bin --connections 64",
            "--duration 2 --warmup 0.2", "--body-file /r/www/128.bin", "--idle 1000", "--server-pid 5 --server-pid 6",
        ):
            self.assertIn(words, line)
        self.assertNotIn("--size", line)
        self.assertNotIn("--loss", line)

    def test_a_reflector_gets_as_many_datagrams(self):
        line = self.command(Cell("http", 64, 128), protocol="udp-echo")
        self.assertIn("--target udp-echo://10.20.0.2:80 --connections 64", line)
        self.assertIn("--size 128", line)
        self.assertNotIn("--body-file", line)

    def test_every_peer_of_a_round_meets_the_same_faults(self):
        lossy = Cell("tcp-echo", 64, 64, loss=0.001)
        self.assertIn("--loss 0.001 --reorder 0 --fault-seed 3", self.command(lossy, 3))
        self.assertEqual(self.command(lossy, 3), self.command(lossy, 3))

    def test_uploads(self):
        line = self.command(Cell("tcp-upload", 1, 1_000, loss=0.01))
        self.assertIn("--target tcp-upload://10.20.0.2:80 --connections 1", line)
        self.assertIn("--size 1000", line)
        self.assertNotIn("--body-file", line)
        result = samples.ilet_load_result(bytes_sent=40, bytes_sent_per_second=20.0)
        self.assertEqual(clients.parse_ilet_load(json.dumps(result))[0]["bytes_per_second"], 20)

    def test_failures_may_be_a_figure(self):
        result = samples.ilet_load_result(errors={"timeout": 3, "reset": 2}, errors_total=5)
        self.assertEqual(clients.parse_ilet_load(json.dumps(result), True)[0]["failed_requests"], 5)
        self.assertEqual(clients.parse_ilet_load(json.dumps(samples.ilet_load_result()), True)[0]["failed_requests"], 0)

    def test_slow_readers(self):
        line = self.command(Cell("http-download", 1_000, 10_000_000, slow=3_600))
        self.assertIn("--slow 3600", line)
        self.assertIn("--timeout 30", line)


class Wrk(unittest.TestCase):
    def test_the_figures(self):
        values, total = clients.parse_wrk(samples.WRK)
        self.assertEqual(values["requests_per_second"], 178009.95)
        self.assertEqual(values["bytes_per_second"], 55.17 * (1 << 20))
        self.assertEqual(values["latency_p50_us"], 325)
        self.assertAlmostEqual(values["latency_p90_us"], 1_200)
        self.assertAlmostEqual(values["latency_p99_us"], 2_500)
        self.assertAlmostEqual(values["latency_max_us"], 8_400)
        self.assertEqual(total["requests"], 357_800)
        self.assertAlmostEqual(total["seconds"], 2.01)

    def test_errors_are_no_result(self):
        for line in ("  Socket errors: connect 0, read 3, write 0, timeout 0", "  Non-2xx or 3xx responses: 7"):
            with self.subTest(line), self.assertRaisesRegex(ClientError, line.strip()[:10]):
                clients.parse_wrk(samples.WRK + line + "\n")

    def test_what_is_no_result(self):
        for text in ("", "unable to connect to 10.5.4.2:80 Connection refused\n", samples.WRK[:300]):
            with self.subTest(text), self.assertRaisesRegex(ClientError, "no result"):
                clients.parse_wrk(text)

    def test_failures_may_be_a_figure(self):
        text = samples.WRK + (
            "  Socket errors: connect 1, read 20, write 0, timeout 300\n  Non-2xx or 3xx responses: 4000\n"
        )
        self.assertEqual(clients.parse_wrk(text, True)[0]["failed_requests"], 4_321)
        self.assertEqual(clients.parse_wrk(samples.WRK, True)[0]["failed_requests"], 0)
        self.assertNotIn("failed_requests", clients.parse_wrk(samples.WRK)[0])

    def test_it_takes_whole_seconds(self):
        self.assertEqual([clients.wrk_seconds(seconds) for seconds in (0.3, 1, 1.5)], [1, 1, 2])


class KernelUpload(unittest.TestCase):
    def test_the_figures(self):
        values, result = clients.parse_kernel_upload('{"bytes": 100, "seconds": 0.5, "bytes_per_second": 200.0}')
        self.assertEqual(values, {"bytes_per_second": 200, "upload_s": 0.5})
        self.assertEqual(result["bytes"], 100)

    def test_what_is_no_result(self):
        for text in ("", "{}", "[1]"):
            with self.subTest(text), self.assertRaisesRegex(ClientError, "no result"):
                clients.parse_kernel_upload(text)


class Curl(unittest.TestCase):
    def test_the_figures(self):
        values, _ = clients.parse_curl('{"status": 200, "bytes": 5000, "seconds": 2.5}', 5_000)
        self.assertEqual(values, {"bytes_per_second": 2_000, "download_s": 2.5})

    def test_a_part_is_no_result(self):
        for text in ('{"status": 200, "bytes": 4999, "seconds": 2.5}', '{"status": 404, "bytes": 5000, "seconds": 2.5}'):
            with self.subTest(text), self.assertRaisesRegex(ClientError, "of 5,000 bytes"):
                clients.parse_curl(text, 5_000)
        with self.assertRaisesRegex(ClientError, "no result"):
            clients.parse_curl("", 5_000)


class Flood(unittest.TestCase):
    def figures(self, wanted=1_000_000, **changes):
        load = samples.ilet_load_result(series=samples.FLOOD_SERIES | changes.pop("series", {}))
        flood = samples.FLOOD | changes.pop("flood", {})
        probe = {"attempts": changes.pop("attempts", samples.ATTEMPTS)}
        return clients.parse_flood(*map(json.dumps, (load, flood, probe)), wanted)

    def test_the_figures(self):
        values, details = self.figures()
        self.assertAlmostEqual(values["quiet_requests_per_second"], 1_000)
        self.assertAlmostEqual(values["flooded_requests_per_second"], 600)
        self.assertAlmostEqual(values["flooded_to_quiet"], 0.6)
        self.assertEqual(values["syns_per_second"], 100_000)
        self.assertEqual(details["flood"]["sent"], 1_000_000)

    def test_new_connections_count_if_they_began_in_the_flood(self):
        values, _ = self.figures()
        self.assertEqual((values["opened_connections"], values["opened_share"]), (2, 2 / 3))
        values, _ = self.figures(attempts=[])
        self.assertEqual((values["opened_connections"], values["opened_share"]), (0, None))

    def test_a_flood_that_did_not_get_through_is_no_result(self):
        with self.assertRaisesRegex(ClientError, "900,000 of 1,000,000 SYNs"):
            self.figures(flood={"sent": 900_000})

    def test_the_load_runs_before_and_after_it(self):
        for points in ([[0, 0], [4, 5_000]], [[5, 0], [20, 9_000]], []):
            with self.subTest(points), self.assertRaisesRegex(ClientError, "no result"):
                self.figures(series={"points": points})

    def test_errors_of_the_load_are_no_result(self):
        load = samples.ilet_load_result(errors={"reset": 1}, errors_total=1)
        with self.assertRaisesRegex(ClientError, "1 reset"):
            clients.parse_flood(json.dumps(load), json.dumps(samples.FLOOD), "{}", 1)

    def test_what_is_no_result(self):
        load = json.dumps(samples.ilet_load_result(series=samples.FLOOD_SERIES))
        for flood, probe in (("", "{}"), ("{}", "{}"), (json.dumps(samples.FLOOD), "[]"), ("[]", "")):
            with self.subTest(flood), self.assertRaisesRegex(ClientError, "no result"):
                clients.parse_flood(load, flood, probe, 1)

    def test_the_command_lines(self):
        where = types.SimpleNamespace(bin_dir=Path("/b"), flood="198.18.0.0/15", link_address=lambda end: f"mac-of-{end}")
        server = types.SimpleNamespace(address="10.20.0.2", port=7)
        line = " ".join(clients.ilet_flood(where, server, Cell("tcp-echo", 64, 64, flood=200_000), 2.5))
        for words in (
            "/b/ilet-flood --interface flood --sources 198.18.0.0/15 --target 10.20.0.2:7 --peer-link mac-of-router",
            "--count 200000 --rate 100000 --duration 2.5",
        ):
            self.assertIn(words, line)
        self.assertEqual(clients.probe(server, 2.0)[1:], ["-m", "ilet_bench.probe", "10.20.0.2", "7", "2"])


class Probe(unittest.TestCase):
    def attempts(self, serve, seconds=0.05):
        async def run():
            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            async with server:
                return await probe.probe(*server.sockets[0].getsockname()[:2], seconds)

        return asyncio.run(run())

    def test_echoes_are_checked(self):
        async def echo(reader, writer):
            writer.write(await reader.readexactly(probe.MESSAGE_BYTES))
            writer.close()

        async def damage(reader, writer):
            writer.write(bytes(await reader.readexactly(probe.MESSAGE_BYTES))[::-1])
            writer.close()

        async def silence(reader, writer):
            await reader.readexactly(1)
            writer.close()

        self.assertEqual({one["failure"] for one in self.attempts(echo)}, {None})
        self.assertIn("ValueError", self.attempts(damage)[0]["failure"])
        self.assertIn("IncompleteReadError", self.attempts(silence)[0]["failure"])

    def test_it_goes_on_whatever_becomes_of_them(self):
        async def reset(_reader, writer):
            writer.transport.abort()

        found = self.attempts(reset)
        self.assertGreater(len(found), 1)
        self.assertTrue(all(one["failure"] for one in found))


class Others(unittest.TestCase):
    def test_callgrind(self):
        self.assertEqual(clients.parse_callgrind("==7== Events    : Ir\n==7== Collected : 23456\n"), 23_456)
        with self.assertRaises(ClientError):
            clients.parse_callgrind("valgrind: no such program")

    def test_requests_over_memory_are_a_multiple_of_the_connections(self):
        where = types.SimpleNamespace(bin_dir=Path("/b"), run_dir=Path("/r"))
        for client in ("ilet-memory", "callgrind"):
            for peer in ("ilet", "ilet-engine", "plain-smoltcp"):
                for connections in (1, 1_000, 10_000):
                    cell = Cell("tcp-echo", connections, 64, client=client)
                    requests = clients.memory_requests(peer, cell)
                    self.assertEqual((requests % connections, requests > 0), (0, True))
                    line = " ".join(clients.ilet_memory(where, peer, cell))
                    self.assertIn(f"--requests {requests} ", line)
                    self.assertEqual(line.startswith("valgrind --tool=callgrind"), client == "callgrind")
                    self.assertEqual("--server stack" in line, peer != "plain-smoltcp")
                    self.assertEqual("--engine-only" in line, peer == "ilet-engine")

    def test_the_last_line_is_the_complaint(self):
        finished = lab.Finished(2, "", "warning: x\nerror: no route to 10.0.0.2\n", 0, False)
        self.assertEqual(clients.complaint("ilet-load", finished, 5), "ilet-load ended with 2: error: no route to 10.0.0.2")
        self.assertIn("killed", clients.complaint("wrk", lab.Finished(-9, "", "", 0, True), 5))

    def test_offloads(self):
        self.assertEqual(lab.parse_offloads(samples.ETHTOOL), {"tx": "off", "tso": "off", "gso": "off", "gro": "on"})


if __name__ == "__main__":
    unittest.main()

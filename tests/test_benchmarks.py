"""Benchmarks run, print a table and write rows; bars are judged by what was measured; clients ask as they are told."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Barrier, Thread

import pytest
import torch
from rich.console import Console

from benchmarks.bars import BARS, BY_NAME, bars_table
from benchmarks.many_tasks import derive_low_rank
from benchmarks.peers.load import Load, Replies, Reply, Request, post, seconds_at_once, send
from benchmarks.report import Row
from ken_core import deltafile, open_base, open_tuned
from ken_core.entries import expanded

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "name",
    [
        "selection",
        "accuracy",
        "decoders",
        "small_deltas",
        "merging",
        "serving",
        "swap",
        "cold",
        "simulate",
        "placement",
        "replicas",
        "dtypes",
    ],
)
def test_a_quick_run_writes_rows_that_say_what_ratios_are_against(name: str, tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--json", out]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    content = json.loads(out.read_text())
    assert {"date", "cores", "processor", "versions"} <= set(content["machine"])
    assert len(content["rows"]) > 10
    assert all(row["against"] for row in content["rows"] if row["unit"] == "ratio")
    assert "│" in ended.stdout


# bars


def shown(rows: list[Row]) -> dict[str, str]:
    """The line of each bar in the printed table."""
    console = Console(file=io.StringIO(), width=200)
    console.print(bars_table(rows))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return {bar.name: next(line for line in lines if line.startswith(f"│ {bar.name} ")) for bar in BARS}


@pytest.mark.parametrize("bar", BARS, ids=lambda bar: bar.name)
def test_a_bar_is_met_at_its_limit_and_missed_beyond_it(bar):
    worse = -1e-6 if bar.sign == ">=" else 1e-6
    assert "met" in shown([bar.row(bar.limit, "another")])[bar.name].split()
    assert "missed" in shown([bar.row(bar.limit + worse, "another")])[bar.name].split()


def test_a_bar_that_was_not_measured_is_not_called_met():
    lines = shown([BY_NAME["p99"].row(1.0, "one task")])
    assert "met" in lines.pop("p99").split()
    assert all("not measured" in line for line in lines.values())


def test_a_bars_row_says_what_was_wanted():
    row = BY_NAME["64-tasks"].row(0.41, "one task")
    assert (row.name, row.value, row.bar) == ("bar/64-tasks", 0.41, ">= 0.7, goal 0.8")


# tasks with factors


def test_low_rank_tasks_shift_every_linear_as_much_as_the_fine_tune_and_each_otherwise(tiny_base, tiny_tuned, tmp_path):
    base, tuned = open_base(str(tiny_base)), open_tuned(str(next(iter(tiny_tuned.values()))))
    one, other = derive_low_rank(base, tuned, 2, rank=4)
    linears = {f"{n}.weight" for n, m in base.backbone.named_modules() if isinstance(m, torch.nn.Linear)}
    assert one.lowrank.keys() == linears & tuned.backbone_tensors.keys()
    assert not one.sparse
    for name, entry in one.lowrank.items():
        ours = base.backbone_tensors[name]
        whole = tuned.backbone_tensors[name] - ours
        shift = expanded(ours, entry) - ours
        strongest = torch.linalg.svdvals(whole)[:4]
        assert torch.allclose(torch.linalg.svdvals(shift)[:4], strongest, rtol=1e-3, atol=1e-4 * float(strongest[0]))
    digests = {
        deltafile.write(delta, base, tmp_path / f"{i}.ken", "raw").digest for i, delta in enumerate((one, other))
    }
    assert len(digests) == 2


# clients


@contextmanager
def server_that_answers_in_pairs() -> Iterator[int]:
    """The port of a server that answers a request only when another one is waiting as well."""
    both = Barrier(2)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            both.wait(30)
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def test_a_client_sends_requests_at_once_and_waits_for_all_their_answers():
    with server_that_answers_in_pairs() as port:
        requests = [Request((i,), 0, port, post(port, "/", b"{}")) for i in range(6)]
        answered = send(Load(requests, list(range(6)), 1, 0.0, None, at_once=2))
    assert [reply.status for reply in answered.replies] == [200] * 6
    assert [reply.request for reply in answered.replies] == list(range(6))


def test_requests_at_once_take_from_the_first_sending_to_the_last_answer():
    times = [(-0.5, 0.2), (-0.4, 0.2), (1.0, 0.25), (1.5, 0.5), (3.0, 1.0), (3.0, 0.5)]
    replies = [Reply(i, 200, sent, seconds, b"") for i, (sent, seconds) in enumerate(times)]
    assert seconds_at_once(Replies(replies, 0.0, 1.0), 2) == [1.0, 1.0]
    assert seconds_at_once(Replies(replies, 0.0, 1.0), 1) == [0.25, 0.5, 1.0, 0.5]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_its_benchmark_says_so() -> None:
    ended = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "CUDA" in ended.stderr
    assert "Traceback" not in ended.stderr

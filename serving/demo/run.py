"""``ken demo``: fine-tunes, extracts, publishes, serves, swaps versions while requests arrive, and verifies."""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from ken_core import Budget, ResidentModel, Selection, deltafile, extract, graft, open_base
from ken_core.evaluate import accuracy
from ken_core.examples import Example
from serving.client import Client
from serving.demo.checks import WAIT_SECONDS, check_seen, heading, quantile, verify
from serving.demo.prepare import DemoError, PreparedTask, demo_base, extract_to, prepare
from serving.demo.stage import Stage, Step, show_next
from serving.demo.texts import write_examples
from serving.demo.traffic import Reply, connect, send_all, send_until
from serving.terminal import out, progress, say, size, table

_IN_A_BLOCK = 100
_MOST_LOST = 0.01
"""Of accuracy, on 300 examples: three of them."""
_PAPER_FRACTIONS = (0.25, 0.50, 0.75)


class Demo:
    """One run of the demonstration, with MiniLM-L6 unless the stage names another base."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._base_name = stage.base or demo_base()
        self._folder = stage.folder
        self._clients = stage.clients

    def run(self) -> int:
        """Run the demonstration and return the exit code 0.

        Raises:
            DemoError: a check failed.
        """
        started = time.monotonic()
        torch.set_num_threads(os.cpu_count() or 1)
        self._base = open_base(self._base_name)
        self._resident = ResidentModel(open_base(self._base_name))
        heading(1, f"the base: {self._base.name} ({size(self._checkpoint_bytes)} checkpoint)")
        heading(2, "fine-tune each task on real text, and keep a 45th of it")
        prepared = prepare(self._base, self._folder)
        self._show_deltas(prepared)
        self._show_paper(prepared[0])
        with self._stage.serving(self._base_name, 4) as server, Client(server.url) as client:
            self._url, self._client = server.url, client
            for p in prepared:
                check_seen(client.publish(p.task.name, p.file.path, wait=WAIT_SECONDS))
            self._serve(prepared)
            if self._stage.keep_serving:
                self._stage.wait_for_interrupt(server, self._questions(prepared[0]))
        say(f"all checks passed, and all processes have ended ({time.monotonic() - started:.0f} s)")
        first = prepared[0]
        held_out = write_examples(first.held_out, self._folder / f"{first.task.name}-held-out.jsonl")
        files = [str(p.file.path) for p in prepared]
        show_next(next_steps(self._stage, self._base_name, files, str(held_out)))
        return 0

    # Before serving

    @property
    def _checkpoint_bytes(self) -> int:
        return sum(f.stat().st_size for f in self._base.folder.glob("*.safetensors"))

    def _show_deltas(self, prepared: list[PreparedTask]) -> None:
        rows = []
        for p in prepared:
            manifest = p.file.manifest
            ranks = sorted(entry.rank for entry in manifest.lowrank.values())
            rows.append([
                p.task.name, str(len(ranks)), f"{ranks[0]} to {ranks[-1]}", size(p.file.size),
                f"1/{self._checkpoint_bytes / p.file.size:.1f}",
            ])  # fmt: skip
            if p.file.size * 40 > self._checkpoint_bytes:
                raise DemoError(
                    f"the delta of {p.task.name} has {p.file.size} bytes; expected at most 1/40 of the checkpoint's"
                )
        columns = ["task", "matrices", "ranks", "bytes", "of checkpoint"]
        out.print(table("deltas, method svd, factors of 4 bits", columns, rows))

    def _show_paper(self, p: PreparedTask) -> None:
        """Compare the paper's method with the best for single parameters, and with the default, on one task."""
        heading(3, f"the paper's method on {p.task.name}: KEN per row, compared with the default")
        rows = [["full fine-tune", "100 %", size(self._checkpoint_bytes), f"{p.tuned_accuracy:.3f}"]]
        path = self._folder / "compared.ken"
        for name, selection in (
            *((f"ken, {f:.0%} of each row", Selection("ken", Budget("row", fraction=f))) for f in _PAPER_FRACTIONS),
            ("magnitude, 10 % of all", Selection()),
        ):
            delta = extract(self._base, p.tuned, selection)
            file = deltafile.write(delta, self._base, path)
            share = f"{delta.stored / delta.candidates:.0%}"
            rows.append([name, share, size(file.size), f"{self._accuracy(path, p):.3f}"])
            path.unlink()
        rows.append(["svd, the default", "", size(p.file.size), f"{self._accuracy(p.file.path, p):.3f}"])
        out.print(table("", ["method", "kept", "bytes", "held-out accuracy"], rows))

    def _accuracy(self, file: Path, p: PreparedTask) -> float:
        """Of the resident base with the delta of a file in it, on the task's held-out text."""
        delta = deltafile.load(file, self._base)
        attached = self._resident.attach(delta)
        self._resident.activate(attached)
        try:
            model = graft(self._resident.backbone, delta.architecture, delta.config, attached.head)
            return accuracy(model, self._base, p.held_out)
        finally:
            self._resident.revert()

    # Serving

    def _serve(self, prepared: list[PreparedTask]) -> None:
        heading(5, f"interleaved requests from {self._clients} clients to all tasks")
        requests = [(p.task.name, example) for p in prepared for example in p.held_out]
        random.Random(0).shuffle(requests)  # noqa: S311 - not for secrets
        asyncio.run(send_all(self._url, requests[: 4 * self._clients], self._clients))
        began = time.perf_counter()
        with progress("requests") as update:
            replies = asyncio.run(send_all(self._url, requests, self._clients, lambda n: update(n, len(requests), "")))
        elapsed = time.perf_counter() - began
        self._check_replies(prepared, replies)
        self._show_serving(prepared, replies, elapsed)
        self._swap_versions(prepared[0], requests)
        self._in_blocks(prepared)
        heading(7, "verify the base")
        verify(self._client)

    def _check_replies(self, prepared: list[PreparedTask], replies: list[Reply]) -> None:
        digests = {p.task.name: p.file.digest for p in prepared}
        failed = [r for r in replies if r.status != 200]
        if failed:
            raise DemoError(
                f"{len(failed)} of {len(replies)} requests failed, the first with status {failed[0].status}"
            )
        foreign = [r for r in replies if r.digest != digests[r.task]]
        if foreign:
            raise DemoError(
                f"task {foreign[0].task} was answered by {foreign[0].digest}, which is not the task's delta"
            )

    def _show_serving(self, prepared: list[PreparedTask], replies: list[Reply], elapsed: float) -> None:
        rows = []
        for p in prepared:
            own = [r for r in replies if r.task == p.task.name]
            served = sum(r.right for r in own) / len(own)
            times = sorted(r.seconds for r in own)
            rows.append([
                p.task.name, f"{p.tuned_accuracy:.3f}", f"{served:.3f}",
                size(p.file.size), size(self._checkpoint_bytes), _share_mixed(own),
                f"{quantile(times, 0.5) * 1000:.0f} ms", f"{quantile(times, 0.99) * 1000:.0f} ms",
                f"{len(own) / elapsed:.0f}",
            ])  # fmt: skip
            if p.tuned_accuracy - served > _MOST_LOST + 1e-9:
                raise DemoError(
                    f"{p.task.name} has accuracy {served:.3f} as served and {p.tuned_accuracy:.3f} as a full "
                    f"fine-tune; expected a difference of at most {_MOST_LOST}"
                )
        columns = ["task", "tuned acc.", "served acc.", "delta", "checkpoint", "mixed", "p50", "p99", "req/s"]
        out.print(table(f"{len(replies)} requests, {len(replies) / elapsed:.0f} a second in all", columns, rows))
        say("  every answer came from its task's delta")

    def _swap_versions(self, p: PreparedTask, requests: list[tuple[str, Example]]) -> None:
        """Publish and promote a new version while requests arrive, and check which version answered each of them."""
        path = self._folder / f"{p.task.name}-25.ken"
        newer = extract_to(path, self._base, p.tuned, Selection(budget=Budget(fraction=0.25)))
        own = [r for r in requests if r[0] == p.task.name]

        async def change() -> float:
            await asyncio.sleep(0.5)
            async with connect(self._url) as client:
                await client.publish(p.task.name, newer.path, "canary")
                check_seen(await client.promote(p.task.name, newer.digest, wait=WAIT_SECONDS))
            seen = time.perf_counter()
            await asyncio.sleep(0.5)
            return seen

        async def both() -> tuple[list[Reply], float]:
            task = asyncio.ensure_future(change())
            return await send_until(self._url, own, self._clients, task), await task

        replies, seen = asyncio.run(both())
        count = {d: sum(r.digest == d for r in replies) for d in (p.file.digest, newer.digest)}
        if sum(count.values()) != len(replies):
            raise DemoError(
                f"{len(replies) - sum(count.values())} requests were answered neither by the old nor by the new version"
            )
        late = [r for r in replies if r.sent > seen and r.digest != newer.digest]
        if late or not all(count.values()):
            raise DemoError(
                "the new version did not take over: expected answers by both, and none by the old one after the change"
            )
        say(
            f"  {p.task.name}: a new version was promoted while {len(replies)} requests arrived. All were answered: "
            f"{count[p.file.digest]} by the old version, then {count[newer.digest]} by the new one"
        )

    def _in_blocks(self, prepared: list[PreparedTask]) -> None:
        """Ask one task after another: what a task alone asks, runs with its delta in the weights."""
        heading(6, f"requests from {self._clients} clients to one task after another")
        rows = []
        for p in prepared:
            asked = [(p.task.name, example) for example in p.held_out[:_IN_A_BLOCK]]
            replies = asyncio.run(send_all(self._url, asked, self._clients))
            digest = self._client.task(p.task.name).aliases["live"]
            if any(r.status != 200 or r.digest != digest for r in replies):
                raise DemoError(f"expected {len(replies)} answers by the delta {digest} of {p.task.name}")
            swaps = {r.swap for r in replies if r.swap}
            times = sorted(r.seconds for r in replies)
            rows.append([
                p.task.name, _share_mixed(replies),
                f"{statistics.median(swaps) * 1000:.1f} ms" if swaps else "none",
                f"{quantile(times, 0.5) * 1000:.0f} ms",
            ])  # fmt: skip
        out.print(table("", ["task", "mixed", "swap", "p50"], rows))

    def _questions(self, p: PreparedTask) -> list[str]:
        body = json.dumps({"inputs": p.held_out[0].text[:60]}).replace("'", "")
        asked = f"curl {self._url}/v1/tasks/{p.task.name}/predict -d '{body}'"
        return [asked, f"curl {self._url}/v1/tasks", f"curl {self._url}/metrics", f"open {self._url}/docs"]


def next_steps(stage: Stage, base: str, files: Sequence[str], held_out: str) -> list[Step]:
    """What to try with the deltas of the demonstration.

    Args:
        base: folder or hub name.
        files: the tasks' delta files.
        held_out: file of labelled text for the first of them.
    """
    of_base = ["--base", base]
    return [
        stage.serve_again(base),
        Step("measure a delta on text that was held out", ["eval", files[0], *of_base, "--data", held_out]),
        Step("draw what the deltas keep and share", ["viz", *files, *of_base, "--out", "pictures"]),
        Step(
            "make a task of a fine-tune of your own",
            ["add", "TASK", "FOLDER", "--base", "BASE", "--text", "TEXTS.jsonl"],
        ),
    ]


def _share_mixed(replies: list[Reply]) -> str:
    """The share of requests that ran beside requests to other tasks."""
    return f"{sum(r.mixed for r in replies) / len(replies):.0%}"

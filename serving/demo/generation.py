"""``ken demo --generate``: fine-tunes a language model for three tasks, serves them, and streams their answers."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from ken_core import DeltaFile, open_base
from serving.client import Client
from serving.demo.checks import WAIT_SECONDS, check_seen, heading, quantile, verify
from serving.demo.language_tasks import PreparedLanguageTask, base_as_a_task, prepare_language_tasks
from serving.demo.prepare import DemoError
from serving.demo.smollm2 import smollm2
from serving.demo.streaming import Question, Streamed, ask_all
from serving.launch.server_process import ServerProcess
from serving.store.embedded import embedded_store
from serving.store.urls import printable
from serving.terminal import counted, out, progress, say, size, table

_NAMESPACE = "demo-generate"
_BASE = "base"
"""The task that changes nothing."""
_SHOWN = 2
"""Questions of each task whose answers are printed."""
_FORMED = 0.75
"""Of a task's answers, the share that must have its form."""
_LONGEST_SHOWN = 110


class GenerationDemo:
    """One run of the demonstration.

    Args:
        base: folder or hub name of a language model with a chat template; None for SmolLM2-135M-Instruct.
        redis_url: the store; None for the embedded one.
        data_dir: folder for the model, deltas and the embedded store.
        port: of the server; None for a free one.
        clients: number of clients that read streams at the same time.
        keep_serving: keep the server running afterwards, until it is interrupted.
    """

    def __init__(
        self,
        base: str | None,
        redis_url: str | None,
        data_dir: Path,
        port: int | None,
        clients: int,
        keep_serving: bool,
    ) -> None:
        self._base_name = base
        self._redis_url = redis_url
        self._folder = data_dir / "demo"
        self._data_dir = data_dir
        self._port = port
        self._clients = clients
        self._keep_serving = keep_serving

    def run(self) -> int:
        """Run the demonstration and return the exit code 0.

        Raises:
            DemoError: a check failed.
        """
        started = time.monotonic()
        torch.set_num_threads(os.cpu_count() or 1)
        self._folder.mkdir(parents=True, exist_ok=True)
        base = open_base(self._base_name or str(smollm2(self._folder)))
        whole = sum(f.stat().st_size for f in base.folder.glob("*.safetensors"))
        heading(1, f"the base: {base.folder.name} ({size(whole)} checkpoint)")
        heading(2, "fine-tune each task on a few real chats, and keep a tenth of it")
        prepared = prepare_language_tasks(base, self._folder)
        unchanged = base_as_a_task(base, self._folder)
        self._show_deltas(prepared, whole)
        with ExitStack() as stack:
            url = self._redis_url or stack.enter_context(embedded_store(self._data_dir))
            where = "the embedded Valkey" if self._redis_url is None else printable(url)
            heading(3, f"publish to {where}, and serve")
            settings = {"base": str(base.folder), "redis_url": url, "namespace": _NAMESPACE}
            server = ServerProcess({**settings, "data_dir": str(self._data_dir)}, self._server_log(), self._port)
            with server, Client(server.url, timeout=600.0) as client:
                for name, file in _files(prepared, unchanged).items():
                    check_seen(client.publish(name, file.path, wait=WAIT_SECONDS))
                self._stream(server.url, prepared, unchanged)
                heading(6, "verify the base")
                verify(client)
                if self._keep_serving:
                    _wait_for_interrupt(prepared[0], server)
            if server.process.returncode != 0:
                raise DemoError(f"the server ended with exit code {server.process.returncode}")
        say(f"all checks passed, and all processes have ended ({time.monotonic() - started:.0f} s)")
        return 0

    def _server_log(self) -> Path | None:
        """The file for the server's log, since log lines would disturb the tables. None to log to the terminal."""
        if self._keep_serving:
            return None
        log = self._folder / "server.log"
        log.unlink(missing_ok=True)
        say(f"  the server's log: {log}")
        return log

    def _show_deltas(self, prepared: Sequence[PreparedLanguageTask], whole: int) -> None:
        rows = [[p.task.name, p.task.source, size(p.file.size), f"1/{whole / p.file.size:.1f}"] for p in prepared]
        out.print(table("deltas, a tenth of the changed parameters", ["task", "text", "bytes", "of checkpoint"], rows))

    def _stream(self, url: str, prepared: Sequence[PreparedLanguageTask], unchanged: DeltaFile) -> None:
        heading(4, f"{counted(self._clients, 'client')} stream answers of all tasks, in turn")
        questions = [Question(p.task.name, e.question) for p in prepared for e in p.held_out]
        random.Random(0).shuffle(questions)  # noqa: S311 - not for secrets
        asyncio.run(ask_all(url, questions[: self._clients], self._clients))  # loads every task
        began = time.perf_counter()
        with progress("answers") as update:
            answers = asyncio.run(ask_all(url, questions, self._clients, lambda n: update(n, len(questions), "")))
        elapsed = time.perf_counter() - began
        _check_digests(answers, _files(prepared, unchanged))
        _show_speed(prepared, answers, elapsed)
        heading(5, "what each task changed in its answers")
        asked = [Question(_BASE, e.question) for p in prepared for e in p.held_out[:_SHOWN]]
        of_base = {s.question.text: s for s in asyncio.run(ask_all(url, asked, self._clients))}
        _check_digests(list(of_base.values()), _files(prepared, unchanged))
        for p in prepared:
            _show_answers(p, [a for a in answers if a.question.task == p.task.name], of_base)


def _files(prepared: Sequence[PreparedLanguageTask], unchanged: DeltaFile) -> dict[str, DeltaFile]:
    return {_BASE: unchanged, **{p.task.name: p.file for p in prepared}}


def _check_digests(answers: Sequence[Streamed], files: dict[str, DeltaFile]) -> None:
    foreign = [a for a in answers if a.digest != files[a.question.task].digest]
    if foreign:
        raise DemoError(
            f"task {foreign[0].question.task} was answered by {foreign[0].digest}, which is not the task's delta"
        )


def _show_speed(prepared: Sequence[PreparedLanguageTask], answers: Sequence[Streamed], elapsed: float) -> None:
    rows = []
    for name in [*(p.task.name for p in prepared), "all"]:
        own = [a for a in answers if name in (a.question.task, "all")]
        first, gaps = sorted(a.first for a in own), sorted(gap for a in own for gap in a.gaps)
        tokens = sum(a.tokens for a in own)
        rows.append([
            name, str(len(own)), str(tokens), f"{tokens / elapsed:.1f}",
            _milliseconds(first, 0.5), _milliseconds(first, 0.99), _milliseconds(gaps, 0.5), _milliseconds(gaps, 0.99),
        ])  # fmt: skip
    columns = ["task", "answers", "tokens", "tokens/s", "first p50", "first p99", "gap p50", "gap p99"]
    out.print(table(f"{counted(len(answers), 'answer')} in {elapsed:.0f} s", columns, rows))


def _milliseconds(ordered: Sequence[float], share: float) -> str:
    return f"{quantile(ordered, share) * 1000:,.0f} ms" if ordered else "none"


def _show_answers(p: PreparedLanguageTask, answers: Sequence[Streamed], of_base: dict[str, Streamed]) -> None:
    """Print answers beside those of the base, and check that the task's have the form that it learned."""
    given = {a.question.text: a.answer for a in answers}
    for exchange in p.held_out[:_SHOWN]:
        asked = exchange.question
        lines = {"asked": asked, "base": of_base[asked].answer, p.task.name: given[asked], "people": exchange.answer}
        for who, text in lines.items():
            out.print(f"{who:>12}  {_short(text)}", highlight=False, markup=False)
        out.print()
    formed = sum(bool(p.task.form.fullmatch(given[e.question].strip())) for e in p.held_out)
    right = sum(given[e.question].strip() == e.answer for e in p.held_out)
    say(f"  {p.task.name}: {formed} of {len(p.held_out)} answers have its form, {right} are word for word people's")
    if formed < _FORMED * len(p.held_out):
        raise DemoError(
            f"{formed} of {len(p.held_out)} answers of {p.task.name} have the form that it learned; expected "
            f"{_FORMED:.0%} at least"
        )


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_SHOWN else f"{line[:_LONGEST_SHOWN]}…"


def _wait_for_interrupt(p: PreparedLanguageTask, server: ServerProcess) -> None:
    messages = [{"role": "user", "content": p.held_out[0].question}]
    body = json.dumps({"model": p.task.name, "messages": messages, "stream": True}).replace("'", "")
    say("\nthe server keeps running until Ctrl-C; try:")
    say(f"  curl -N {server.url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'")
    say(f"  curl {server.url}/v1/tasks")
    say(f"  open {server.url}/docs")
    try:
        server.process.wait()
    except KeyboardInterrupt:
        return

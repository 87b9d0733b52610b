"""``ken demo --generate``: fine-tunes a language model for three tasks, serves them, and streams their answers."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Sequence

import torch

from ken_core import DeltaFile, open_base
from serving.client import Client
from serving.demo.checks import WAIT_SECONDS, check_seen, heading, quantile, verify
from serving.demo.language_tasks import PreparedLanguageTask, base_as_a_task, prepare_language_tasks
from serving.demo.prepare import DemoError
from serving.demo.smollm2 import smollm2
from serving.demo.stage import Stage, Step, show_next
from serving.demo.streaming import Question, Streamed, ask_all
from serving.terminal import counted, out, progress, say, size, table

_BASE = "base"
"""The task that changes nothing."""
_SHOWN = 2
"""Questions of each task whose answers are printed."""
_FORMED = 0.75
"""Of a task's answers, the share that must have its form."""
_LONGEST_SHOWN = 110


class GenerationDemo:
    """One run of the demonstration, with SmolLM2-135M-Instruct unless the stage names another base.

    The base must be a language model with a chat template.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._folder = stage.folder
        self._clients = stage.clients

    def run(self) -> int:
        """Run the demonstration and return the exit code 0.

        Raises:
            DemoError: a check failed.
        """
        started = time.monotonic()
        torch.set_num_threads(os.cpu_count() or 1)
        self._folder.mkdir(parents=True, exist_ok=True)
        base = open_base(self._stage.base or str(smollm2(self._folder)))
        whole = sum(f.stat().st_size for f in base.folder.glob("*.safetensors"))
        heading(1, f"the base: {base.folder.name} ({size(whole)} checkpoint)")
        heading(2, "fine-tune each task on a few real chats, and keep a tenth of it")
        prepared = prepare_language_tasks(base, self._folder)
        unchanged = base_as_a_task(base, self._folder)
        self._show_deltas(prepared, whole)
        with self._stage.serving(str(base.folder), 3) as server, Client(server.url, timeout=600.0) as client:
            for name, file in _files(prepared, unchanged).items():
                check_seen(client.publish(name, file.path, wait=WAIT_SECONDS))
            self._stream(server.url, prepared, unchanged)
            heading(6, "verify the base")
            verify(client)
            if self._stage.keep_serving:
                self._stage.wait_for_interrupt(server, _questions(prepared[0], server.url))
        say(f"all checks passed, and all processes have ended ({time.monotonic() - started:.0f} s)")
        show_next(next_steps(self._stage, str(base.folder), prepared[0].task.name, prepared[0].held_out[0].question))
        return 0

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


def next_steps(stage: Stage, base: str, task: str, question: str) -> list[Step]:
    """What to try with the tasks of the demonstration.

    Args:
        base: folder or hub name.
        question: one that the task was not trained on.
    """
    return [
        stage.serve_again(base),
        Step("ask that server, from another terminal", ["generate", task, question, "--chat"]),
        Step(
            "fine-tune the model on chats of your own",
            ["finetune", "--base", base, "--data", "CHATS.jsonl", "--out", "FOLDER"],
        ),
        Step(
            "make a task of what was fine-tuned",
            ["add", "TASK", "FOLDER", "--base", base, "--keep", "0.1", "--text", "TEXTS.jsonl"],
        ),
    ]


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


def _questions(p: PreparedLanguageTask, url: str) -> list[str]:
    messages = [{"role": "user", "content": p.held_out[0].question}]
    body = json.dumps({"model": p.task.name, "messages": messages, "stream": True}).replace("'", "")
    asked = f"curl -N {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'"
    return [asked, f"curl {url}/v1/tasks", f"open {url}/docs"]

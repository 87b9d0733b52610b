"""Trials: clients ask a running system about many tasks, and its answers are checked and timed."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.in_process import InProcess
from benchmarks.many_tasks import Kind
from benchmarks.peers.load import Draw, Figures, Load, Replies, Request, draw, figures, seconds_at_once, send
from benchmarks.peers.systems import Batches, System

_DRAWN = 5000
_CHECKED = 150
"""How many answers of a run are compared with those in process."""
_FANNED_OUT = 50
"""How many texts are put to many tasks."""


class WrongAnswerError(Exception):
    """An answer of a system is missing or wrong."""

    def __init__(self, system: System, reason: str) -> None:
        super().__init__(f"{system.name}: {reason}")
        self.system = system


@dataclass(frozen=True)
class Cell:
    """One setting of a measurement: how many tasks are asked for, how they are drawn, by how many clients at once.

    Attributes:
        first: the index of the first task.
        state: the tasks' state, "warm" if every task was asked for before.
        kind: what the tasks' deltas hold, as `benchmarks.many_tasks` derives them.
        long: whether long texts are asked about.
    """

    tasks: int
    draw: Draw
    clients: int
    first: int = 0
    state: str = "warm"
    kind: Kind = "kept"
    long: bool = False

    def __str__(self) -> str:
        tasks = "tasks" if self.kind == "kept" else f"{self.kind} tasks"
        parts = ["1 task" if self.tasks == 1 else f"{self.tasks} {tasks}, {self.draw}"]
        parts.append("1 client" if self.clients == 1 else f"{self.clients} clients")
        parts += ["long texts"] * self.long + [self.state] * (self.state != "warm")
        return ", ".join(parts)


@dataclass(frozen=True)
class Measured:
    """A system's figures in one cell; for this project's server also its batches, those of the lead included."""

    system: str
    cell: Cell
    figures: Figures
    batches: Batches | None = None

    @property
    def name(self) -> str:
        return f"{self.system}: {self.cell}"


class Trial:
    """Sends the same texts for the same tasks to any system.

    Args:
        names: the names of all tasks.
        questions, long: short and long texts.
        truth: gives the right answers; it knows the questions, and then the long texts.
        lead: seconds at the start of a run that do not count.
        seconds: how long a run counts.
    """

    def __init__(
        self,
        names: Sequence[str],
        questions: Sequence[str],
        long: Sequence[str],
        truth: InProcess,
        lead: float,
        seconds: float,
    ) -> None:
        self._names = names
        self._texts = [*questions, *long]
        self._questions = range(len(questions))
        self._long = range(len(questions), len(self._texts))
        self._truth = truth
        self._lead = lead
        self._seconds = seconds

    def measure(self, system: System, cell: Cell, *, checked: bool = True) -> Measured:
        """Measure closed-loop clients for the trial's seconds; a cold cell has no lead."""
        tasks = range(cell.first, cell.first + cell.tasks)
        pairs = draw(tasks, self._long if cell.long else self._questions, cell.draw, _DRAWN, seed=0)
        lead = self._lead if cell.state == "warm" else 0.0
        before = system.batches()
        replies = self._ask(system, pairs, cell.clients, lead, self._seconds, checked)
        ran = None if before is None else system.batches().since(before)  # type: ignore[union-attr]
        return Measured(system.name, cell, figures(replies, self._seconds), ran)

    def once_each(
        self, system: System, first: int, count: int, clients: int, state: str, *, checked: bool = True
    ) -> Measured:
        """Measure one question for every task; afterwards the tasks are warm."""
        pairs = [(task, task % len(self._questions)) for task in range(first, first + count)]
        replies = self._ask(system, pairs, clients, 0.0, None, checked)
        return Measured(system.name, Cell(count, "uniform", clients, first, state), figures(replies, None))

    def fan_out(self, system: System, tasks: Sequence[int], *, in_one_request: bool) -> float:
        """Median seconds until many warm tasks have answered a question, which one client puts to all of them at once.

        Args:
            in_one_request: or else in a request for each task.
        """
        texts, names = self._questions[:_FANNED_OUT], [self._names[task] for task in tasks]
        if in_one_request:
            requests = [system.request_to_many(tasks, names, text, self._texts[text]) for text in texts]
        else:
            requests = [
                system.request(task, name, text, self._texts[text])
                for text in texts
                for task, name in zip(tasks, names, strict=True)
            ]
        at_once = len(requests) // len(texts)
        replies = send(Load(requests, list(range(len(requests))), 1, self._lead, self._seconds, at_once))
        self._check(system, requests, replies, True)
        return statistics.median(seconds_at_once(replies, at_once))

    def _ask(
        self,
        system: System,
        pairs: Sequence[tuple[int, int]],
        clients: int,
        lead: float,
        seconds: float | None,
        checked: bool,
    ) -> Replies:
        places = {pair: i for i, pair in enumerate(dict.fromkeys(pairs))}
        requests = [system.request(task, self._names[task], text, self._texts[text]) for task, text in places]
        replies = send(Load(requests, [places[pair] for pair in pairs], clients, lead, seconds))
        self._check(system, requests, replies, checked)
        return replies

    def _check(self, system: System, requests: Sequence[Request], answered: Replies, compared: bool) -> None:
        """Raise `WrongAnswerError` if a request was not answered, or was answered otherwise than in process."""
        bad = [r for r in answered.replies if r.status != 200]
        if bad:
            what = bad[0].body[:300].decode(errors="replace")
            raise WrongAnswerError(
                system,
                f"{len(bad)} of {len(answered.replies)} requests failed, the first with status {bad[0].status}: {what}",
            )
        if not compared:
            return
        some = random.Random(0).sample(answered.replies, min(_CHECKED, len(answered.replies)))
        asked = [requests[reply.request] for reply in some]
        self._truth.look_up((task, request.text) for request in asked for task in request.tasks)
        for request, reply in zip(asked, some, strict=True):
            try:
                answers = system.answers(reply.body)
            except ValueError as error:
                raise WrongAnswerError(system, str(error)) from None
            for task, answer in zip(request.tasks, answers, strict=True):
                if reason := self._truth.disagrees(task, request.text, answer):
                    raise WrongAnswerError(system, reason)

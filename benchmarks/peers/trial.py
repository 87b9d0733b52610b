"""Trials: clients ask a running system about many tasks, and its answers are checked and timed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.in_process import InProcess
from benchmarks.peers.load import Draw, Figures, Load, Replies, Request, draw, figures, send
from benchmarks.peers.systems import Batches, System

_DRAWN = 5000
_CHECKED = 150
"""How many answers of a run are compared with those in process."""


class WrongAnswerError(Exception):
    """An answer is missing or wrong."""


@dataclass(frozen=True)
class Cell:
    """One setting of a measurement: how many tasks are asked for, how they are drawn, by how many clients at once.

    Attributes:
        first: the index of the first task.
        state: the tasks' state, "warm" if every task was asked for before.
    """

    tasks: int
    draw: Draw
    clients: int
    first: int = 0
    state: str = "warm"

    def __str__(self) -> str:
        tasks = "1 task" if self.tasks == 1 else f"{self.tasks} tasks, {self.draw}"
        clients = "1 client" if self.clients == 1 else f"{self.clients} clients"
        return f"{tasks}, {clients}" + ("" if self.state == "warm" else f", {self.state}")


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
        texts: all texts.
        truth: gives the right answers.
        lead: seconds at the start of a run that do not count.
        seconds: how long a run counts.
    """

    def __init__(
        self, names: Sequence[str], texts: Sequence[str], truth: InProcess, lead: float, seconds: float
    ) -> None:
        self._names = names
        self._texts = texts
        self._truth = truth
        self._lead = lead
        self._seconds = seconds

    def measure(self, system: System, cell: Cell, *, checked: bool = True) -> Measured:
        """Measure closed-loop clients for the trial's seconds; a cold cell has no lead."""
        tasks = range(cell.first, cell.first + cell.tasks)
        pairs = draw(tasks, len(self._texts), cell.draw, _DRAWN, seed=0)
        lead = self._lead if cell.state == "warm" else 0.0
        before = system.batches()
        replies = self._ask(system, pairs, cell.clients, lead, self._seconds, checked)
        ran = None if before is None else system.batches().since(before)  # type: ignore[union-attr]
        return Measured(system.name, cell, figures(replies, self._seconds), ran)

    def once_each(
        self, system: System, first: int, count: int, clients: int, state: str, *, checked: bool = True
    ) -> Measured:
        """Measure one question for every task; afterwards the tasks are warm."""
        pairs = [(task, task % len(self._texts)) for task in range(first, first + count)]
        replies = self._ask(system, pairs, clients, 0.0, None, checked)
        return Measured(system.name, Cell(count, "uniform", clients, first, state), figures(replies, None))

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
                f"{system.name}: {len(bad)} of {len(answered.replies)} requests failed, "
                f"the first with status {bad[0].status}: {what}"
            )
        if not compared:
            return
        some = random.Random(0).sample(answered.replies, min(_CHECKED, len(answered.replies)))
        self._truth.look_up((requests[r.request].task, requests[r.request].text) for r in some)
        for reply in some:
            request = requests[reply.request]
            if reason := self._truth.disagrees(request.task, request.text, system.answer(reply.body)):
                raise WrongAnswerError(f"{system.name}: {reason}")

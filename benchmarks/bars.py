"""The bars of `benchmarks.serving`: what the server is asked to reach, all as figures of one run.

A figure is judged when it is printed, by the value that was measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from rich.table import Table

from benchmarks.report import Row

PREFIX = "bar/"
"""Of the names of the bars' rows in the JSON."""


@dataclass(frozen=True)
class Bar:
    """What is asked of a figure.

    Attributes:
        name: of its row, behind `PREFIX`.
        what: the figure in words; numbers of tasks are those of a full run.
        limit: the least or the most that it may be.
        goal: what would be better still.
    """

    name: str
    what: str
    sign: Literal[">=", "<="]
    limit: float
    unit: str = "ratio"
    goal: float | None = None

    @property
    def wanted(self) -> str:
        wanted = f"{self.sign} {self.limit:.3g}" + ("" if self.unit == "ratio" else f" {self.unit}")
        return wanted if self.goal is None else f"{wanted}, goal {self.goal:.3g}"

    def is_met(self, value: float) -> bool:
        return value >= self.limit if self.sign == ">=" else value <= self.limit

    def row(self, value: float, against: str | None = None) -> Row:
        """The figure as a row of the report."""
        return Row(PREFIX + self.name, value, self.unit, against, self.wanted)


BARS = (
    Bar("64-tasks", "64 tasks, 64 clients: rate over one task's", ">=", 0.7, goal=0.8),
    Bar("64-low-rank", "64 low-rank tasks (rank 16), 64 clients: rate over one task's", ">=", 0.8, goal=0.9),
    Bar("64-svd", "64 tasks stored by svd, 64 clients: rate over one task's", ">=", 0.75),
    Bar("8-clients", "64 tasks, 8 clients: rate over one task's at 8 clients", ">=", 0.55),
    Bar("litserve-rate", "64 tasks, 64 clients: rate over LitServe's with 64 whole models", ">=", 1.2),
    Bar("litserve-memory", "64 tasks: memory over LitServe's", "<=", 0.8),
    Bar("process-a-task", "8 tasks, 64 clients: rate over a process a task's", ">=", 0.95),
    Bar("process-a-task-memory", "8 tasks: memory over a process a task's", "<=", 1 / 3),
    Bar("512-tasks", "512 tasks attached, 64 clients: rate over one task's", ">=", 0.6),
    Bar("p99", "64 tasks, 64 clients: p99 over one task's", "<=", 1.6),
    Bar("http", "HTTP on top of the engine, one client: median", "<=", 2.0, unit="ms"),
    Bar("one-task", "one task, 64 clients: rate over the server's that only exchanges", ">=", 0.98),
    Bar("fan-out", "a text to 16 tasks in one request: median over that of 16 requests at once", "<=", 0.5),
    Bar("long-texts", "64 tasks, texts of 64 tokens and more: rate over the server's that only exchanges", ">=", 0.97),
)
BY_NAME: Mapping[str, Bar] = {bar.name: bar for bar in BARS}


def bars_table(rows: Iterable[Row], note: str = "") -> Table:
    """Every bar with the figure that these rows have for it, and whether it was met.

    Args:
        note: behind the title: where this run differs from what the bars say.
    """
    values = {row.name: row.value for row in rows}
    table = Table(title=f"bars{note}", title_justify="left")
    for column, justify in (("bar", "left"), ("what", "left"), ("value", "right"), ("wanted", "left"), ("", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for bar in BARS:
        value = values.get(PREFIX + bar.name)
        shown = "" if value is None else f"{value:.3f}" + ("" if bar.unit == "ratio" else f" {bar.unit}")
        verdict = "not measured" if value is None else "met" if bar.is_met(value) else "missed"
        table.add_row(bar.name, bar.what, shown, bar.wanted, verdict)
    return table

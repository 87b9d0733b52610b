"""The findings of `benchmarks.serving` while it runs: what was measured, rows of single figures, and their tables."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from rich.table import Table

from benchmarks.bars import BY_NAME, PREFIX
from benchmarks.peers.trial import Cell, Measured
from benchmarks.report import Row

_MIB = 1 << 20


@dataclass
class Findings:
    """The findings of a run so far."""

    measured: list[Measured] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Versions of the packages in the peers' own environments, and the peers that are missing."""

    def rate(self, system: str, cell: Cell) -> float:
        return next(m.figures.rate for m in self.measured if (m.system, m.cell) == (system, cell))

    def add(self, name: str, value: float, unit: str, against: str | None = None) -> None:
        self.rows.append(Row(name, value, unit, against))

    def bar(self, name: str, value: float, against: str | None = None) -> None:
        """Add the figure that a bar is set for."""
        self.rows.append(BY_NAME[name].row(value, against))

    def all_rows(self) -> list[Row]:
        found = []
        for m in self.measured:
            found.append(Row(f"{m.name}: requests/s", m.figures.rate, "1/s"))
            found.append(Row(f"{m.name}: p50", m.figures.p50 * 1000, "ms"))
            found.append(Row(f"{m.name}: p99", m.figures.p99 * 1000, "ms"))
            found.append(Row(f"{m.name}: clients' share of a core", m.figures.clients_share, "ratio", "one core"))
            if ran := m.batches:
                found.append(Row(f"{m.name}: inputs a forward pass", ran.rows / ran.count, "1"))
                found.append(Row(f"{m.name}: switches a forward pass", ran.switches / ran.count, "1"))
                found.append(Row(f"{m.name}: mixed passes", ran.mixed / ran.count, "ratio", "all forward passes"))
                if ran.mixed:
                    found.append(Row(f"{m.name}: tasks a mixed pass", ran.groups / ran.mixed, "1"))
        return [*found, *self.rows]


def measured_table(title: str, found: Findings) -> Table:
    """Every measured cell, with the systems that were measured in it."""
    table = Table(title=title, title_justify="left")
    table.add_column("asked")
    table.add_column("system")
    for column in ("requests/s", "p50 ms", "p99 ms", "inputs", "tasks", "mixed", "switches", "clients' core"):
        table.add_column(column, justify="right")
    by_cell = sorted(found.measured, key=lambda m: _order(m.cell))
    for cell, group in itertools.groupby(by_cell, key=lambda m: m.cell):
        for i, m in enumerate(group):
            f = m.figures
            numbers = (f"{f.rate:,.0f}", f"{f.p50 * 1000:,.1f}", f"{f.p99 * 1000:,.0f}", *_inside(m))
            table.add_row("" if i else str(cell), m.system, *numbers, f"{f.clients_share:.0%}")
        table.add_section()
    return table


def _order(cell: Cell) -> tuple[object, ...]:
    return cell.state, cell.long, cell.kind, cell.tasks, cell.draw, cell.clients


def _inside(measured: Measured) -> tuple[str, ...]:
    """Inputs a pass, tasks a mixed pass, the share of mixed passes, switches a pass."""
    if (ran := measured.batches) is None:
        return ("",) * 4
    tasks = f"{ran.groups / ran.mixed:.1f}" if ran.mixed else ""
    return f"{ran.rows / ran.count:.1f}", tasks, f"{ran.mixed / ran.count:.0%}", f"{ran.switches / ran.count:.2f}"


def rows_table(found: Findings) -> Table:
    """The rows of single figures, those for the bars aside."""
    table = Table(title="compared", title_justify="left")
    for column, justify in (("what", "left"), ("value", "right"), ("against", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for row in found.rows:
        if not row.name.startswith(PREFIX):
            table.add_row(row.name, _shown(row), row.against or "")
    return table


def _shown(row: Row) -> str:
    if row.unit == "B":
        return f"{row.value / _MIB:,.0f} MiB"
    unit = {"ratio": "", "1": ""}.get(row.unit, f" {row.unit}")
    return f"{row.value:,.2f}{unit}" if row.unit != "1" else f"{row.value:,.0f}"

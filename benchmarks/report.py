"""The report of a benchmark: a printed table, and JSON rows of name, value, unit and the row a ratio divides by."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One figure. `against` names the row a ratio divides by; `bar` is what is asked of the figure, if anything is."""

    name: str
    value: float
    unit: str
    against: str | None = None
    bar: str | None = None


def arguments(description: str | None) -> argparse.Namespace:
    """Parse the options that all benchmarks share."""
    return with_shared_options(argparse.ArgumentParser(description=description)).parse_args()


def with_shared_options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The parser with the options that all benchmarks share."""
    parser.add_argument(
        "--quick", action="store_true", help="smaller sizes, the same comparisons, under a minute of measuring"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows of name, value, unit, against")
    return parser


def report(title: str, rows: list[Row], file: Path | None, tables: Sequence[Table] = ()) -> None:
    """Print the rows, or the tables that sum them up, and write the JSON if `file` is given."""
    for table in tables or [_plain(title, rows)]:
        Console(width=140).print(table)
    if file:
        content = {"title": title, "machine": _machine(), "rows": [_content(row) for row in rows]}
        file.write_text(json.dumps(content, indent=1) + "\n")


def _content(row: Row) -> dict[str, object]:
    content = asdict(row)
    if row.bar is None:
        del content["bar"]
    return content


def _plain(title: str, rows: list[Row]) -> Table:
    table = Table(title=title, title_justify="left")
    for column, justify in (("what", "left"), ("value", "right"), ("unit", "left"), ("against", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(
            row.name, f"{row.value:,.3g}" if row.value < 100 else f"{row.value:,.0f}", row.unit, row.against or ""
        )
    return table


def _machine() -> dict[str, object]:
    packages = ("torch", "transformers", "ray", "numba", "redis", "httpx")
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def plain_table(title: str, columns: list[str]) -> Table:
    """An empty table for figures; the column `policy` takes names."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == "policy" else "right")
    return table

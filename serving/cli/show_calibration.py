"""Prints the deltas that a calibration tried, what it promises, and what it would take to promise a smaller one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from serving.cli.delta_facts import facts
from serving.cli.promise_line import points
from serving.cli.show_delta import show
from serving.terminal import counted, out, print_json, say, size, table

if TYPE_CHECKING:
    from ken_core.calibration import Calibrated
    from ken_core.manifest import Calibration, Trial

_COLUMNS = ["method", "codec", "kept", "bytes", "distance"]


def show_calibration(found: Calibrated, as_json: bool) -> None:
    """Print what a `ken_core.calibration` tried and chose, as a table and lines or as JSON."""
    record = found.record
    if as_json:
        tried = [t.model_dump() for t in record.tried]
        print_json({**facts(found.file), "tried": tried, "warnings": list(found.warnings)})
    else:
        title = (
            f"{counted(len(record.tried), 'delta')} tried: {counted(record.choosing, 'example')} chose by distance, "
            f"{record.examples:,} judged; the fine-tune's {record.metric} is {record.tuned_score:.4f}"
        )
        columns = [*_COLUMNS, record.metric, "lost", "won", "at most lost"]
        out.print(table(title, columns, [_row(t) for t in record.tried]))
        show(facts(found.file), as_json=False)
    if found.failed is not None:
        say(_next(found.failed, record))


def _row(trial: Trial) -> list[str]:
    kept = "" if trial.fraction is None else f"{trial.fraction:.2%}"
    method = f"{trial.method}, fitted" if trial.fitted else trial.method
    distance = "" if trial.distance is None else f"{trial.distance:.2g}"
    row = [method, trial.codec, kept, f"{trial.bytes:,}", distance]
    if trial.score is None or trial.bound is None:
        return [*row, "", "", "", ""]
    return [*row, f"{trial.score:.4f}", str(trial.lost), str(trial.won), points(trial.bound)]


def _next(failed: Trial, record: Calibration) -> str:
    """Why nothing smaller was written, and how much text it would take."""
    from ken_core.judges import lines_for

    told = f"the next smaller delta, of {size(failed.bytes)}, lost {failed.lost} answers and won {failed.won}"
    if record.needed is None:
        return f"{told}: more than the tolerance, so more text would hardly help"
    return (
        f"{told}. If it always loses this share, about {lines_for(record.needed):,} lines of text would be likely "
        "(80 %) to show that it is within the tolerance"
    )

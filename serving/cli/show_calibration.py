"""Prints the deltas that a calibration tried, what it promises, and what it would take to promise a smaller one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from serving.cli.delta_facts import facts
from serving.cli.promise_line import loss_of
from serving.cli.show_delta import show
from serving.terminal import counted, out, print_json, say, size, table

if TYPE_CHECKING:
    from ken_core.calibration import Calibrated
    from ken_core.manifest import Calibration, Trial

_COLUMNS = ["method", "codec", "kept", "bytes", "distance"]


def show_calibration(found: Calibrated, as_json: bool) -> None:
    """Print what a `ken_core.calibration` tried and chose, as a table and lines or as JSON."""
    record = found.record
    beside = "" if record.base_score is None else f", the base's {record.base_score:.4f}"
    if as_json:
        tried = [t.model_dump() for t in record.tried]
        print_json({**facts(found.file), "tried": tried, "warnings": list(found.warnings)})
    else:
        title = (
            f"{counted(len(record.tried), 'delta')} tried: {counted(record.choosing, 'example')} chose by distance, "
            f"{record.examples:,} judged{_tokens(record)}; the fine-tune's {record.metric} is {record.tuned_score:.4f}"
            f"{beside}"
        )
        counted_ones = ["lost", "won"] if record.tokens is None else []
        columns = [*_COLUMNS, record.metric, *counted_ones, "at most lost"]
        out.print(table(title, columns, [_row(t, record) for t in record.tried]))
        show(facts(found.file), as_json=False)
    if found.failed is not None:
        say(_next(found.failed, record))


def _tokens(record: Calibration) -> str:
    return "" if record.tokens is None else f" by {record.tokens:,} tokens"


def _row(trial: Trial, record: Calibration) -> list[str]:
    kept = "" if trial.fraction is None else f"{trial.fraction:.2%}"
    method = f"{trial.method}, fitted" if trial.fitted else trial.method
    distance = "" if trial.distance is None else f"{trial.distance:.2g}"
    row = [method, trial.codec, kept, f"{trial.bytes:,}", distance]
    lost_and_won = [] if record.tokens is not None else [_number(trial.lost), _number(trial.won)]
    if trial.score is None or trial.bound is None:
        return [*row, "", *lost_and_won, ""]
    return [*row, f"{trial.score:.4f}", *lost_and_won, loss_of(record.metric, trial.bound)]


def _number(count: int | None) -> str:
    return "" if count is None else str(count)


def _lost(failed: Trial, record: Calibration) -> str:
    if record.tokens is None:
        return f"lost {failed.lost} answers and won {failed.won}"
    return f"has {record.metric} {failed.score:.4f}, the fine-tune {record.tuned_score:.4f}"


def _next(failed: Trial, record: Calibration) -> str:
    """Why nothing smaller was written, and how much text it would take."""
    from ken_core.judges import lines_for

    told = f"the next smaller delta, of {size(failed.bytes)}, {_lost(failed, record)}"
    if record.needed is None:
        loss, tolerance = record.loss_at(failed.score or 0.0), record.tolerance or 0.0
        much = "more than" if loss > tolerance else "hardly less than"
        return f"{told}: {much} the tolerance, so more text would hardly help"
    return (
        f"{told}. If it always loses this share, about {lines_for(record.needed):,} lines of text would be likely "
        "(80 %) to show that it is within the tolerance"
    )

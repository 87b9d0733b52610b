"""The tables of ``ken top``."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from serving.monitoring.activity import Activity, Answers, ReplicaActivity, TaskActivity
from serving.terminal import counted, printable, size, table

_NOTHING = "-"


def tables(found: Activity, url: str, most_tasks: int) -> RenderableType:
    """What a server did: a line for all of it, tasks, replicas, and what is wrong."""
    shown, left = found.tasks[:most_tasks], len(found.tasks) - most_tasks
    parts: list[RenderableType] = [
        Text(f"{url}: {_in_all(found)}", style="bold"),
        table("tasks", ["task", *_ANSWERS, "tokens/s", "delta in"], [_task(one) for one in shown]),
    ]
    if left > 0:
        parts.append(Text(f"and {counted(left, 'task')} more (--tasks)"))
    columns = ["replica", "state", "up", "requests/s", "in flight", "waiting", "mixed", "swaps/s", "tasks held"]
    parts.append(_known("replicas", columns, [_replica(one) for one in found.replicas], {"up"}))
    parts.append(
        table("memory", ["replica", *_TIERS, "keys and values", "texts"], [_memory(r) for r in found.replicas])
    )
    troubles = (f"{one.replica}: {trouble}" for one in found.replicas for trouble in one.trouble)
    parts += [Text(printable(line), style="yellow") for line in troubles]
    if not found.replicas:
        parts.append(Text("no replica has reported", style="yellow"))
    return Group(*parts)


def waiting(url: str) -> RenderableType:
    """What is shown before the first interval is over."""
    return Text(f"{url}: the first interval is not over yet; Ctrl-C ends")


def with_error(shown: RenderableType, reason: str) -> RenderableType:
    """What was shown last, with the reason why there is nothing newer."""
    return Group(Text(printable(f"{reason}; trying again"), style="bold red"), shown)


_ANSWERS = ("requests/s", "p50", "p95", "failed/s", "refused/s")
_TIERS = ("base", "materialised", "packed", "host", "disk")


def _known(title: str, columns: list[str], rows: list[list[str]], optional: set[str]) -> RenderableType:
    """A table without those optional columns of which no row has a value."""
    empty = {c for i, c in enumerate(columns) if c in optional and all(row[i] == _NOTHING for row in rows)}
    kept = [i for i, column in enumerate(columns) if column not in empty]
    return table(title, [columns[i] for i in kept], [[row[i] for i in kept] for row in rows])


def _in_all(found: Activity) -> str:
    if found.answers is None:
        return "nothing is known of its requests"
    told = [
        f"{found.answers.requests_per_second:.1f} requests/s",
        f"p50 {_time(found.answers.p50_seconds)}",
        f"p95 {_time(found.answers.p95_seconds)}",
        f"{found.answers.failed_per_second:.1f} failed/s",
        *([] if found.in_flight is None else [f"{found.in_flight} in flight"]),
    ]
    return f"{', '.join(told)} (in {found.seconds:.1f} s)"


def _task(one: TaskActivity) -> list[str]:
    tokens = one.answers.tokens_per_second if one.answers else None
    return [one.task, *_answers(one.answers), _rate(tokens), one.held or _NOTHING]


def _answers(found: Answers | None) -> list[str]:
    if found is None:
        return [_NOTHING] * len(_ANSWERS)
    return [
        _rate(found.requests_per_second),
        _time(found.p50_seconds),
        _time(found.p95_seconds),
        _rate(found.failed_per_second),
        _rate(found.refused_per_second),
    ]


def _replica(one: ReplicaActivity) -> list[str]:
    states = {True: "ready", False: "not ready", None: _NOTHING}
    return [
        one.replica,
        states[one.ready],
        _duration(one.up_seconds),
        _rate(one.answers.requests_per_second if one.answers else None),
        _whole(one.in_flight),
        _whole(one.waiting_inputs),
        _NOTHING if one.mixed_share is None else f"{one.mixed_share:.0%}",
        _rate(one.swaps_per_second),
        _whole(one.held_tasks),
    ]


def _memory(one: ReplicaActivity) -> list[str]:
    tiers = [size(one.bytes_by_tier[tier]) if tier in one.bytes_by_tier else _NOTHING for tier in _TIERS]
    room = _NOTHING
    if one.kv_bytes is not None and one.kv_budget_bytes is not None:
        room = f"{size(one.kv_bytes)} of {size(one.kv_budget_bytes)}"
    texts = _NOTHING if one.running_texts is None else f"{one.running_texts} + {one.waiting_texts or 0} waiting"
    return [one.replica, *tiers, room, texts]


def _rate(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.1f}"


def _whole(value: int | None) -> str:
    return _NOTHING if value is None else str(value)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return _NOTHING
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return _NOTHING
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"

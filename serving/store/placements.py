"""The placement of tasks, who computes it, and what replicas and proxies say of themselves for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson
import redis
import zstandard

from serving.errors import ForeignPlacementError
from serving.placement.plan import Placement
from serving.store.connection import Connection
from serving.store.replicas import IN_TOUCH_SECONDS

MOST_HELD = 1000
"""A replica names at most this many of the tasks that it has on the device."""
_MOST_BYTES = 64 << 20
"""A placement's JSON is at most this long: a hundred bytes for each of half a million tasks."""
_MOST_TROUBLE = 500
_LEVEL = 3

T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    """What a replica knows of a task that it was asked for.

    Attributes:
        rate: load a second, as `serving.placement.demand` measures it.
        nbytes: bytes that the task takes on the device; 0: unknown.
    """

    rate: float
    nbytes: int = 0


@dataclass(frozen=True)
class Load:
    """What a replica says of itself, every two seconds.

    Attributes:
        serve: the replica's id in Ray Serve; empty without Serve.
        ready: whether it takes requests.
        seen: the epoch of the placement up to which everything placed on the replica is loaded; 0: of none.
        in_flight: requests accepted and not answered.
        room: bytes for tasks on the device.
        tasks: what it was asked for lately, by the task's name.
        held: tasks whose live version is on the device, most used first, at most `MOST_HELD`.
    """

    serve: str = ""
    ready: bool = False
    seen: int = 0
    in_flight: int = 0
    room: int = 0
    tasks: Mapping[str, Asked] = field(default_factory=dict)
    held: tuple[str, ...] = ()


@dataclass(frozen=True)
class Presence:
    """The part of a `Load` that is read every second by every proxy and by who computes placements: see there."""

    serve: str
    ready: bool
    seen: int
    room: int


@dataclass(frozen=True)
class Proxy:
    """What the process says of itself that has a proxy route by the placement.

    Attributes:
        epoch: of the placement by which the proxy routes; 0: of none.
        trouble: why the proxy does not route by it; empty where it does.
        age: seconds since it reported, by the clock of the store.
    """

    epoch: int
    trouble: str
    age: float


class Placements:
    """The placement, and who computes it. All times are the store's.

    Whoever computes holds a lease, and only with it writes. A placement is followed by everybody who reads it, so what
    replaces it has a higher epoch.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._key = connection.control_key("placement")
        self._lease = connection.control_key("placement-leader")
        self._loads = connection.control_key("loads")
        self._present = connection.control_key("present")
        self._proxies = connection.control_key("proxies")

    # Who computes

    def lead(self, replica: str, seconds: float) -> bool:
        """Take the lease, or renew it, for some seconds from now. False while another replica has it."""
        return bool(self._connection.run("lead", [self._lease], "take", replica, math.ceil(seconds * 1000)))

    def retire(self, replica: str) -> None:
        """Give up the lease, if the replica has it, and take back what the replica said of its load."""
        with self._connection.store_errors:
            self._connection.client.hdel(self._loads, replica)
            self._connection.client.hdel(self._present, replica)
        self._connection.run("lead", [self._lease], "drop", replica, 0)

    # The placement

    def write(self, placement: Placement, leader: str) -> bool:
        """Replace the placement. False where `leader` has no lease any more, or where the epoch is not a higher one."""
        body = zstandard.ZstdCompressor(level=_LEVEL).compress(placement.dumps())
        return bool(self._connection.run("place", [self._lease, self._key], leader, placement.epoch, body))

    def read(self, after: int = -1) -> Placement | None:
        """The placement; None if there is none, or if its epoch is `after`.

        One of a lower epoch is returned: the store was emptied or restored, and everybody follows what it holds.

        Raises:
            ForeignPlacementError: what the store holds is no placement.
        """
        if self.epoch() in (None, after):
            return None
        epoch, body = self._fields("epoch", "body")  # together, since a placement may be written in between
        return None if body is None or epoch is None else self._placement(body, self._number(epoch))

    def epoch(self) -> int | None:
        """The epoch of the placement; None if there is none. Raises as `read`."""
        (found,) = self._fields("epoch")
        return None if found is None else self._number(found)

    def _number(self, epoch: bytes) -> int:
        try:
            return int(epoch)
        except ValueError:
            raise self._foreign(f"its epoch is {epoch[:40]!r}") from None

    def clear(self, leader: str) -> None:
        """Have nobody follow a placement any more: an empty one, with a higher epoch, takes its place."""
        epoch = self.epoch()
        if epoch is not None and (self.read() or Placement()).replicas:
            self.write(Placement(epoch + 1), leader)

    def remove(self, leader: str) -> None:
        """Remove what is there, if `leader` has the lease. For what is no placement."""
        self._connection.run("place", [self._lease, self._key], leader, "", "")

    def _fields(self, *names: str) -> list[bytes | None]:
        with self._connection.store_errors:
            try:
                found: list[bytes | None] = self._connection.client.hmget(self._key, *names)
                return found
            except redis.ResponseError as error:
                if not str(error).startswith("WRONGTYPE"):
                    raise
        raise self._foreign("its key is no hash")

    def _placement(self, body: bytes, epoch: int) -> Placement:
        try:
            claimed = zstandard.frame_content_size(body)
            if not 0 <= claimed <= _MOST_BYTES:
                raise ValueError(f"its size is {claimed} bytes, expected at most {_MOST_BYTES}")
            found = Placement.loads(zstandard.ZstdDecompressor().decompress(body, max_output_size=_MOST_BYTES))
            if found.epoch != epoch:
                raise ValueError(f"its epoch is {found.epoch} in one place, {epoch} in another")
            return found
        except (ValueError, AttributeError, OverflowError, zstandard.ZstdError) as error:
            raise self._foreign(str(error)) from error

    def _foreign(self, found: str) -> ForeignPlacementError:
        return ForeignPlacementError(
            f"the store at {self._connection.where} holds no usable placement under {self._key}: {found}; the replica "
            "that computes placements replaces it"
        )

    # Who takes part

    def report(self, replica: str, load: Load) -> None:
        """Record a replica's load. It counts for `IN_TOUCH_SECONDS`."""
        present = {"serve": load.serve, "ready": load.ready, "seen": load.seen, "room": load.room}
        told = {
            **present,
            "in_flight": load.in_flight,
            "tasks": {task: [float(f"{asked.rate:.4g}"), asked.nbytes] for task, asked in load.tasks.items()},
            "held": load.held[:MOST_HELD],
        }
        self._connection.run("report", [self._loads], replica, orjson.dumps(told))
        self._connection.run("report", [self._present], replica, orjson.dumps(present))

    def loads(self) -> dict[str, Load]:
        """The load of each replica in touch, by the replica's name. Reports that cannot be read are left out."""
        return dict(self._reports(self._loads, lambda plain, age: _load(plain)))

    def present(self) -> dict[str, Presence]:
        """What is needed every second of each replica in touch, by name. Reports that cannot be read are left out."""
        return dict(self._reports(self._present, lambda plain, age: _presence(plain)))

    def report_proxy(self, proxy: str, epoch: int, trouble: str = "") -> None:
        """Record by which placement a proxy routes, or why it routes by none. It counts for `IN_TOUCH_SECONDS`."""
        told = {"epoch": epoch, "trouble": trouble[:_MOST_TROUBLE]}
        self._connection.run("report", [self._proxies], proxy, orjson.dumps(told))

    def proxies(self) -> dict[str, Proxy]:
        """What each proxy in touch reported, by the proxy's name. Reports that cannot be read are left out."""
        return dict(self._reports(self._proxies, lambda p, age: Proxy(int(p["epoch"]), str(p["trouble"]), age)))

    def _reports(self, key: str, read: Callable[[Any, float], T]) -> Iterator[tuple[str, T]]:
        now, *rows = self._connection.run("reports", [key], IN_TOUCH_SECONDS)
        for name, row in sorted(zip(rows[::2], rows[1::2], strict=True)):
            when, _, text = row.partition(b" ")
            try:
                yield name.decode(), read(orjson.loads(text), max(0.0, float(now) - float(when)))
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
                continue  # another version of this server, or another program


def _presence(plain: dict[str, Any]) -> Presence:
    return Presence(str(plain["serve"]), bool(plain["ready"]), int(plain["seen"]), int(_positive(plain["room"])))


def _load(plain: dict[str, Any]) -> Load:
    tasks = {
        str(task): Asked(_positive(rate), int(_positive(nbytes))) for task, (rate, nbytes) in plain["tasks"].items()
    }
    return Load(
        serve=str(plain["serve"]),
        ready=bool(plain["ready"]),
        seen=int(plain["seen"]),
        in_flight=int(plain["in_flight"]),
        room=int(_positive(plain["room"])),
        tasks=tasks,
        held=tuple(map(str, plain["held"]))[:MOST_HELD],
    )


def _positive(number: Any) -> float:
    found = float(number)
    if not (math.isfinite(found) and found >= 0):
        raise ValueError(f"found {found}, expected a number of at least 0")
    return found

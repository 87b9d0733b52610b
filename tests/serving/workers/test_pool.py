"""Clients have turns: no client waits for all work of another, and work that was given up is not continued."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator

import pytest

from serving.errors import UnavailableError
from serving.workers.pool import WorkerPool
from serving.workers.steps import Steps

SHORT, LONG = 10, 1 << 20


@pytest.fixture
def workers() -> Iterator[WorkerPool]:
    workers = WorkerPool(2)
    workers.start()
    yield workers
    workers.stop()


class Gate:
    """Steps that go on one at a time, when the test lets them."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self._may = threading.Semaphore(0)

    def steps(self, name: str, count: int, size: int = LONG) -> Steps[str]:
        for _ in range(count):
            yield size
            assert self._may.acquire(timeout=20)
            self.passed.append(name)
        return name

    def let(self, count: int = 1) -> None:
        for _ in range(count):
            self._may.release()


def at_once(value: str, size: int = SHORT) -> Steps[str]:
    yield size
    return value


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not happened():
            await asyncio.sleep(0.001)


def test_work_gives_its_result_or_what_it_raised(workers: WorkerPool) -> None:
    def failing() -> Steps[None]:
        yield SHORT
        raise ValueError("no")

    def without_steps() -> Steps[str]:
        return "nothing to do"
        yield 1

    async def ask() -> None:
        assert await workers.run("a", at_once("done")) == "done"
        assert await workers.run("a", without_steps()) == "nothing to do"
        with pytest.raises(ValueError, match="no"):
            await workers.run("a", failing())

    asyncio.run(ask())


def test_a_short_step_does_not_wait_for_a_long_one_to_end(workers: WorkerPool) -> None:
    gate = Gate()

    async def ask() -> None:
        held = [asyncio.create_task(workers.run(i, gate.steps("long", 1))) for i in range(6)]
        await until(lambda: len(workers) == 5)
        for client in ("another", 0):
            assert await workers.run(client, at_once("short")) == "short"
        assert gate.passed == []
        gate.let(6)
        await asyncio.gather(*held)

    asyncio.run(ask())


def test_a_long_request_of_another_client_is_done_within_as_many_steps_as_there_are_clients(
    workers: WorkerPool,
) -> None:
    gate = Gate()

    async def ask() -> None:
        others = [asyncio.create_task(workers.run(f"client {i}", gate.steps("theirs", 50))) for i in range(6)]
        await until(lambda: len(workers) == 5)
        more = [asyncio.create_task(workers.run("client 0", gate.steps("theirs", 50))) for _ in range(20)]
        await until(lambda: len(workers) == 25)
        ours = asyncio.create_task(workers.run("us", gate.steps("ours", 1)))
        await until(lambda: len(workers) == 26)
        gate.let(8)
        assert await ours == "ours"
        assert gate.passed.count("theirs") <= 7
        for one in (*others, *more):
            one.cancel()
        await asyncio.wait([*others, *more])
        gate.let(1)

    asyncio.run(ask())


@pytest.mark.parametrize("where", ["in line", "running"])
def test_what_was_given_up_is_not_gone_on_with(workers: WorkerPool, where: str) -> None:
    gate, ended = Gate(), threading.Event()

    def steps() -> Steps[str]:
        try:
            return (yield from gate.steps("given up", 50))
        finally:
            ended.set()

    async def ask() -> None:
        before = asyncio.create_task(workers.run("a", gate.steps("before", 1)))
        await until(lambda: len(workers) == 0 or before.done())
        given_up = asyncio.create_task(workers.run("b", steps()))
        await until(lambda: len(workers) == 1)
        if where == "running":
            gate.let()
            assert await before == "before"
            await until(lambda: len(workers) == 0)
        given_up.cancel()
        await asyncio.wait([given_up])
        gate.let()
        await until(ended.is_set)
        if where == "in line":
            assert await before == "before"
        assert await workers.run("c", at_once("free again", LONG)) == "free again"

    asyncio.run(ask())
    assert gate.passed.count("given up") == (1 if where == "running" else 0)
    assert len(workers) == 0


def test_a_deadline_ends_work(workers: WorkerPool) -> None:
    gate = Gate()

    async def ask() -> None:
        loop, limit = asyncio.get_running_loop(), asyncio.timeout(None)

        def late() -> Steps[str]:
            yield LONG  # what follows runs on a worker
            loop.call_soon_threadsafe(limit.reschedule, loop.time())
            steps = gate.steps("late", 50)
            next(steps)  # its first size, so that the worker stands at the gate in this very step
            return (yield from steps)

        with pytest.raises(TimeoutError):
            async with limit:
                await workers.run("a", late())
        gate.let(2)
        await workers.run("a", at_once("next", LONG))

    asyncio.run(ask())
    assert gate.passed == ["late"]


def test_what_waits_when_the_workers_stop_is_told_so() -> None:
    workers, gate = WorkerPool(2), Gate()
    workers.start()

    async def ask() -> None:
        asked: list[Awaitable[str]] = [asyncio.create_task(workers.run(i, gate.steps("long", 2))) for i in range(3)]
        await until(lambda: len(workers) == 2)
        stopping = asyncio.create_task(asyncio.to_thread(workers.stop))
        await until(lambda: workers._stopping)
        gate.let()
        await stopping
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(one) for one in found] == [UnavailableError] * 3
        with pytest.raises(UnavailableError):
            await workers.run("late", at_once("never"))

    asyncio.run(ask())

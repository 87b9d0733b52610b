"""Memory is given back some seconds after loads, once for all of them."""

from __future__ import annotations

import asyncio
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ken_core import Checkpoint, open_base
from serving.engine.integrity import IntegrityCheck
from serving.service import Service
from serving.tiers import giving_back
from serving.tiers.giving_back import GivingBack
from tests.resident_pages import bytes_in_memory
from tests.tiny_checkpoints import Deltas, Tiny


class Counted(GivingBack):
    def __init__(self, base: Checkpoint) -> None:
        super().__init__(base)
        self.times = 0
        self.ran, self.may = threading.Event(), threading.Event()
        self.may.set()

    def _run(self) -> None:
        assert self.may.wait(20)
        super()._run()

    def now(self) -> None:
        super().now()
        self.times += 1
        self.ran.set()


@pytest.fixture
def counted(tiny: Tiny) -> Iterator[Counted]:
    found = Counted(open_base(str(tiny.base_folder)))
    yield found
    found.close()


def test_many_loads_give_back_once(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    started, start = list[threading.Timer](), threading.Timer.start

    def timers() -> list[threading.Timer]:
        return [timer for timer in started if timer.function == counted._run]

    monkeypatch.setattr(threading.Timer, "start", lambda timer: (started.append(timer), start(timer)))
    monkeypatch.setattr(giving_back, "_REST_SECONDS", 0.3)
    counted.may.clear()
    for _ in range(50):
        counted.soon()
    assert counted.times == 0
    counted.may.set()
    for timer in timers():
        timer.join(20)
    assert [timer.interval for timer in timers()] == [0.3]
    assert counted.times == 1


def test_a_later_load_gives_back_again(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(giving_back, "_REST_SECONDS", 0.01)
    for _ in range(3):
        counted.ran.clear()
        counted.soon()
        assert counted.ran.wait(20)
    assert counted.times == 3


def test_nothing_is_given_back_after_the_end(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(giving_back, "_REST_SECONDS", 60.0)
    counted.soon()
    counted.close()  # or it would wait for the minute's end, and then something was given back
    monkeypatch.setattr(giving_back, "_REST_SECONDS", 0.0)
    counted.soon()
    assert not counted.ran.wait(0.4)


def test_the_end_waits_for_what_is_under_way(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(giving_back, "_REST_SECONDS", 0.0)
    began, ended, go_on = threading.Event(), threading.Event(), threading.Event()

    class Slow(GivingBack):
        def now(self) -> None:
            began.set()
            assert go_on.wait(20)
            ended.set()

    slow = Slow(open_base(str(tiny.base_folder)))
    slow.soon()
    assert began.wait(20)
    closing = threading.Thread(target=slow.close)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive()
    go_on.set()
    closing.join(20)
    assert ended.is_set()


def test_a_read_does_not_fail_where_no_thread_is_to_be_had(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(timer: threading.Timer) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(giving_back, "_REST_SECONDS", 0.01)
    with monkeypatch.context() as without:
        without.setattr(threading.Timer, "start", refused)
        counted.soon()
    counted.soon()
    assert counted.ran.wait(20)


def test_every_read_of_the_base_gives_back_what_failed_too(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(giving_back, "_REST_SECONDS", 0.01)
    with pytest.raises(ValueError, match="unfit"), counted._base.unchanged():
        raise ValueError("unfit")
    assert counted.ran.wait(20)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The idle base is not checked, so that the test alone reads its file."""
    monkeypatch.setattr(IntegrityCheck, "seconds_until_due", lambda check, now: 300.0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
@pytest.mark.usefixtures("unchecked")
def test_a_server_holds_its_base_once_after_the_start_and_after_loads(
    make_service: Callable[..., Service],
    publish: Callable[..., None],
    deltas: Deltas,
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(giving_back, "_REST_SECONDS", 0.2)
    base = Path(shutil.copytree(tiny.base_folder, tmp_path / "own"))
    publish("spam", deltas.spam)
    service = make_service(base=str(base))
    checkpoint = service.resident.checkpoint
    assert bytes_in_memory(base / "model.safetensors") == 0
    if timer := service.engine.tiers.giving_back._timer:  # of the start
        timer.join(20)
    assert checkpoint.differing() == []  # as any reader does
    assert bytes_in_memory(base / "model.safetensors") > 0
    tiers = service.engine.tiers
    tiers.release(asyncio.run(tiers.acquire(service.table.resolve("spam"))))
    until = time.monotonic() + 20
    while bytes_in_memory(base / "model.safetensors") and time.monotonic() < until:
        time.sleep(0.05)
    assert bytes_in_memory(base / "model.safetensors") == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
@pytest.mark.usefixtures("unchecked")
def test_a_check_of_the_file_leaves_nothing_of_it_in_memory(
    make_service: Callable[..., Service], tiny: Tiny, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny.base_folder, tmp_path / "own"))
    service = make_service(base=str(base))
    assert service.engine.verify_file() == []
    assert bytes_in_memory(base / "model.safetensors") == 0

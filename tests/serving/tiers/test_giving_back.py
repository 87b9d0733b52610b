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

from ken_core.mapped import MappedFiles
from serving.service import Service
from serving.tiers import giving_back
from serving.tiers.giving_back import GivingBack
from tests.resident_pages import bytes_in_memory
from tests.tiny_checkpoints import Deltas, Tiny


class Counted(GivingBack):
    def __init__(self) -> None:
        super().__init__(MappedFiles())
        self.times = 0
        self.ran = threading.Event()

    def now(self) -> None:
        super().now()
        self.times += 1
        self.ran.set()


@pytest.fixture
def counted() -> Iterator[Counted]:
    found = Counted()
    yield found
    found.close()


def test_many_loads_give_back_once(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(giving_back, "_REST_SECONDS", 0.3)
    for _ in range(50):
        counted.soon()
    assert counted.times == 0
    assert counted.ran.wait(20)
    counted.ran.clear()
    assert not counted.ran.wait(0.6)
    assert counted.times == 1


def test_a_later_load_gives_back_again(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(giving_back, "_REST_SECONDS", 0.01)
    for _ in range(3):
        counted.ran.clear()
        counted.soon()
        assert counted.ran.wait(20)
    assert counted.times == 3


def test_nothing_is_given_back_after_the_end(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(giving_back, "_REST_SECONDS", 0.1)
    counted.soon()
    counted.close()
    counted.soon()
    assert not counted.ran.wait(0.4)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
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
    assert checkpoint.differing() == []  # as any reader does
    assert bytes_in_memory(base / "model.safetensors") > 0
    tiers = service.engine.tiers
    tiers.release(asyncio.run(tiers.acquire(service.table.resolve("spam"))))
    until = time.monotonic() + 20
    while bytes_in_memory(base / "model.safetensors") and time.monotonic() < until:
        time.sleep(0.05)
    assert bytes_in_memory(base / "model.safetensors") == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_a_check_of_the_file_leaves_nothing_of_it_in_memory(
    make_service: Callable[..., Service], tiny: Tiny, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny.base_folder, tmp_path / "own"))
    service = make_service(base=str(base))
    assert service.engine.verify_file() == []
    assert bytes_in_memory(base / "model.safetensors") == 0

"""The numbers of replicas on one node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from serving.replica.slot import Slot

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="numbers are held by sockets that Linux alone has")

NODE = os.uname().nodename
STORE = "redis://store:6379"
HOLD = (
    "import sys; from serving.replica.slot import Slot; slot = Slot(*sys.argv[1:]);"
    "print(slot.name, flush=True); sys.stdin.read()"
)


def holding(namespace: str) -> tuple[subprocess.Popen[str], str]:
    """A process that holds a slot, and the slot's name."""
    command = [sys.executable, "-c", HOLD, STORE, namespace]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_each_replica_of_a_node_has_the_lowest_free_number(namespace: str) -> None:
    first, second, third = (Slot(STORE, namespace) for _ in range(3))
    assert [slot.name for slot in (first, second, third)] == [f"{NODE}-{number}" for number in range(3)]
    second.release()
    again = Slot(STORE, namespace)
    assert again.name == second.name
    for slot in (first, again, third):
        slot.release()


def test_namespaces_do_not_see_each_others_replicas(namespace: str) -> None:
    slots = Slot(STORE, namespace), Slot(STORE, f"{namespace}-other")
    assert slots[0].name == slots[1].name
    for slot in slots:
        slot.release()


def test_servers_of_other_stores_take_no_number_away(namespace: str) -> None:
    """A machine may run several servers, and a replica keeps its number when others start meanwhile."""
    slots = [Slot(store, namespace) for store in (STORE, "redis://store:6380", "unix:///a.sock", "unix:///b.sock")]
    assert {slot.name for slot in slots} == {f"{NODE}-0"}
    for slot in slots:
        slot.release()


def test_a_long_namespace_leaves_room_for_the_number(namespace: str) -> None:
    slot = Slot(STORE, namespace * 10)
    assert slot.name == f"{NODE}-0"
    slot.release()


def test_processes_have_numbers_of_their_own_and_a_killed_one_leaves_its_number(
    namespace: str, eventually: Callable[..., None]
) -> None:
    one, its_name = holding(namespace)
    two, other_name = holding(namespace)
    try:
        assert {its_name, other_name} == {f"{NODE}-0", f"{NODE}-1"}
        one.send_signal(signal.SIGKILL)
        one.wait()
        slot = Slot(STORE, namespace)
        assert slot.name == its_name
        slot.release()
    finally:
        for process in (one, two):
            process.kill()
            process.wait()


def test_without_such_sockets_each_start_has_a_name_of_its_own(
    namespace: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    names = {Slot(STORE, namespace).name for _ in range(2)}
    assert len(names) == 2
    assert all(name.startswith(f"{NODE}-") for name in names)
    assert "new name" in caplog.text

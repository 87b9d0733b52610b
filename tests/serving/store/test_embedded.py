"""The embedded Valkey: shared by processes, ended by the last, found again after a kill."""

from __future__ import annotations

import multiprocessing
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from serving.errors import StartError
from serving.store import Store
from serving.store.embedded import embedded_store
from serving.store.urls import connect
from tests.tiny_checkpoints import Deltas

FORK = multiprocessing.get_context("fork")


def server(url: str) -> int:
    """The process id of the server behind a URL."""
    return int(connect(url).info("server")["process_id"])


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def ends(pid: int) -> bool:
    """Whether a process ends: the kernel closes its sockets a moment before."""
    deadline = time.monotonic() + 20
    while not is_gone(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return is_gone(pid)


class Neighbour:
    """Another process that uses the same data directory until it is told to leave, or killed."""

    def __init__(self, data_dir: Path) -> None:
        self._said: Any = FORK.SimpleQueue()
        self._may_leave = FORK.Event()
        self._process = FORK.Process(target=self._live, args=(data_dir,))
        self._process.start()

    @property
    def server(self) -> int:
        if not hasattr(self, "_server"):
            self._server = self._said.get()
        return self._server

    def leave(self) -> None:
        self._may_leave.set()
        self._process.join(30)
        assert self._process.exitcode == 0

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def _live(self, data_dir: Path) -> None:
        with embedded_store(data_dir) as url:
            self._said.put(server(url))
            self._may_leave.wait(60)


def test_the_server_ends_with_the_block(tmp_path: Path) -> None:
    with embedded_store(tmp_path) as url:
        pid = server(url)
        assert not is_gone(pid)
    assert ends(pid)


def test_data_survives_a_restart(tmp_path: Path, deltas: Deltas) -> None:
    with embedded_store(tmp_path) as url:
        Store(url).tasks.publish("spam", deltas.spam)
    with embedded_store(tmp_path) as url:
        store = Store(url)
        assert store.tasks.table().tasks["spam"].aliases == {"live": deltas.spam.digest}
        store.deltas.fetch(deltas.spam.digest, tmp_path / "fetched")


def test_nobody_else_can_reach_the_socket(tmp_path: Path) -> None:
    with embedded_store(tmp_path) as url:
        socket = Path(url.removeprefix("unix://"))
        assert stat.S_IMODE(socket.stat().st_mode) == 0o700
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        assert connect(url).config_get("port") == {"port": "0"}


def test_nobody_else_can_read_the_data(tmp_path: Path) -> None:
    with embedded_store(tmp_path):
        assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700


def test_a_socket_folder_that_others_may_enter_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with embedded_store(tmp_path / "data") as url:
        folder = Path(url.removeprefix("unix://")).parent
    folder.chmod(0o755)
    with pytest.raises(StartError, match="not private to this user"), embedded_store(tmp_path / "data"):
        pass


def test_a_long_temporary_directory_does_not_make_the_socket_path_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 80)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with embedded_store(tmp_path / "data") as url:
        assert connect(url).ping()
        assert not Path(url.removeprefix("unix://")).is_relative_to(long)


def test_processes_with_other_temporary_directories_share_one_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two servers would write into the same file."""
    other = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        with embedded_store(tmp_path) as first:
            monkeypatch.setattr(tempfile, "tempdir", str(other))
            with embedded_store(tmp_path) as second:
                assert second == first
    finally:
        shutil.rmtree(other)


def test_a_copy_of_a_directory_in_use_has_a_server_of_its_own(tmp_path: Path, deltas: Deltas) -> None:
    original, copy = tmp_path / "original", tmp_path / "copy"
    with embedded_store(original) as url:
        Store(url).tasks.publish("spam", deltas.spam)
        shutil.copytree(original, copy)
        with embedded_store(copy) as other:
            assert other != url
            Store(other).tasks.delete("spam", force=True)
        assert list(Store(url).tasks.table().tasks) == ["spam"]


def test_a_directory_that_was_moved_keeps_its_server_and_leaves_its_place_to_another(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    with ExitStack() as block:
        url = block.enter_context(embedded_store(here))
        pid = server(url)
        here.rename(there)
        with embedded_store(there) as moved, embedded_store(here) as new:
            assert server(moved) == pid
            assert server(new) != pid
        assert server(url) == pid
        with embedded_store(here) as new:
            successor = server(new)
            block.close()
            assert ends(pid)
            assert not is_gone(successor)
            with embedded_store(here) as again:
                assert server(again) == successor
    assert ends(successor)


def test_the_server_of_a_deleted_directory_ends_with_its_last_user(tmp_path: Path) -> None:
    with embedded_store(tmp_path / "data") as url:
        pid = server(url)
        shutil.rmtree(tmp_path / "data")
    assert ends(pid)


def test_a_server_of_an_earlier_version_is_shared(tmp_path: Path) -> None:
    """It left no record of its socket."""
    with embedded_store(tmp_path) as url:
        pid = server(url)
        (tmp_path / "store/socket").unlink()
        with embedded_store(tmp_path) as found:
            assert server(found) == pid
            assert (tmp_path / "store/socket").read_text() == url.removeprefix("unix://")


def test_nothing_tells_of_a_server_that_has_ended(tmp_path: Path) -> None:
    with embedded_store(tmp_path):
        pass
    assert not (tmp_path / "store/socket").exists()


def test_there_is_no_second_server_beside_one_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with embedded_store(tmp_path) as url:
        process = psutil.Process(server(url))
        process.suspend()
        try:
            with monkeypatch.context() as hasty:
                hasty.setattr("serving.store.embedded._ANSWER_SECONDS", 0.2)
                with pytest.raises(StartError, match="does not answer"), embedded_store(tmp_path):
                    pass
        finally:
            process.resume()
        assert server(url) == process.pid


def test_a_long_data_path_does_not_make_the_socket_path_too_long(tmp_path: Path) -> None:
    with embedded_store(tmp_path / ("long-" * 30) / "data") as url:
        assert connect(url).ping()


def test_two_data_directories_have_servers_of_their_own(tmp_path: Path) -> None:
    with embedded_store(tmp_path / "a") as a, embedded_store(tmp_path / "b") as b:
        assert server(a) != server(b)


def test_two_blocks_of_one_process_share_a_server_until_the_last_ends(tmp_path: Path) -> None:
    with ExitStack() as first:
        pid = server(first.enter_context(embedded_store(tmp_path)))
        with embedded_store(tmp_path) as url:
            assert server(url) == pid
            first.close()
            assert server(url) == pid
    assert ends(pid)


def test_two_processes_share_a_server_and_the_last_to_leave_stops_it(tmp_path: Path) -> None:
    with embedded_store(tmp_path) as url:
        pid = server(url)
        neighbour = Neighbour(tmp_path)
        assert neighbour.server == pid
    assert not is_gone(pid)
    neighbour.leave()
    assert ends(pid)


def test_who_leaves_first_does_not_stop_it(tmp_path: Path) -> None:
    with embedded_store(tmp_path) as url:
        pid = server(url)
        neighbour = Neighbour(tmp_path)
        assert neighbour.server == pid
        neighbour.leave()
        assert server(url) == pid


def test_processes_that_start_together_start_one_server(tmp_path: Path) -> None:
    neighbours = [Neighbour(tmp_path) for _ in range(4)]
    pids = {n.server for n in neighbours}
    for neighbour in neighbours:
        neighbour.leave()
    assert len(pids) == 1
    assert ends(pids.pop())


def test_the_server_of_a_killed_process_is_found_again_and_ended_by_its_finder(tmp_path: Path) -> None:
    neighbour = Neighbour(tmp_path)
    pid = neighbour.server
    neighbour.kill()
    assert not is_gone(pid)
    with embedded_store(tmp_path) as url:
        assert server(url) == pid
    assert ends(pid)


def test_a_killed_server_is_replaced_by_one_with_its_data(
    tmp_path: Path, deltas: Deltas, eventually: Callable[..., None]
) -> None:
    with embedded_store(tmp_path) as url:
        pid = server(url)
        Store(url).tasks.publish("spam", deltas.spam)
        psutil.Process(pid).kill()
        eventually(lambda: is_gone(pid))
        with embedded_store(tmp_path) as again:
            assert server(again) != pid
            assert list(Store(again).tasks.table().tasks) == ["spam"]


def test_a_server_that_cannot_start_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None]
) -> None:
    monkeypatch.setattr("serving.store.embedded._START_SECONDS", 0.3)
    (tmp_path / "store/appendonlydir").mkdir(parents=True)
    (tmp_path / "store/appendonlydir/appendonly.aof.manifest").write_text("this is no manifest\n")
    with pytest.raises(StartError, match=r"did not start; see .*valkey\.log"), embedded_store(tmp_path):
        pass
    log = tmp_path / "store/valkey.log"
    eventually(lambda: log.exists() and log.read_text())

"""The process that keeps a HAProxy's map of homes, with a real store and a real HAProxy."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from serving.launch.haproxy_file import Frontend
from serving.launch.haproxy_start import ENTRY, variables
from serving.launch.homes_file import KnownHomes
from serving.launch.homes_keeper import HomesKeeper
from serving.launch.homes_keeping import TROUBLE, store_url
from serving.placement.plan import Homes, Placement
from serving.store import Store
from serving.store.placements import Load
from tests.serving.launch.haproxying import environment, started
from tests.serving.launch.proxied import IDS, NAMES, Proxied, proxied_by


@pytest.fixture
def proxied(file: Path, binary: str) -> Iterator[Proxied]:
    with proxied_by(file, binary, {}) as found:
        yield found


@pytest.fixture
def keeper(proxied: Proxied, store: Store) -> HomesKeeper:
    return HomesKeeper(proxied.file, store, "proxy")


def tell(store: Store, seen: dict[str, int], ready: bool = True) -> None:
    for name in NAMES:
        if name in seen:
            store.placements.report(name, Load(serve=IDS[name], ready=ready, seen=seen[name]))
        else:
            store.placements.retire(name)


def place(store: Store, epoch: int, **homes: Homes) -> None:
    assert store.placements.lead("leader", 60)
    assert store.placements.write(Placement(epoch, tuple(sorted(NAMES)), homes), "leader")


def asked(proxied: Proxied, task: str = "news") -> set[str]:
    return {proxied.asked(f"/v1/tasks/{task}/predict") for _ in range(9)}


def test_haproxy_follows_the_placement_without_a_reload(proxied: Proxied, keeper: HomesKeeper, store: Store) -> None:
    tell(store, {"one": 1, "two": 1, "three": 1})
    assert asked(proxied) == set(NAMES), "without a placement, requests are spread"
    place(store, 1, news=Homes(("two",), "one", 1))
    keeper.turn()
    assert asked(proxied) == {"two"}
    place(store, 2, news=Homes(("three",), "two", 2))
    tell(store, {"one": 2, "two": 2, "three": 2})
    keeper.turn()
    assert asked(proxied) == {"three"}
    assert {name: proxy.epoch for name, proxy in store.placements.proxies().items()} == {"proxy": 2}


def test_a_home_is_asked_only_once_it_has_loaded_the_task(proxied: Proxied, keeper: HomesKeeper, store: Store) -> None:
    place(store, 5, news=Homes(("three",), "two", 5), spam=Homes(("three",), "two", 4))
    tell(store, {"one": 5, "two": 5, "three": 4})
    keeper.turn()
    assert (asked(proxied), asked(proxied, "spam")) == ({"two"}, {"three"})
    tell(store, {"one": 5, "two": 5, "three": 5})
    keeper.turn()
    assert asked(proxied) == {"three"}


def test_a_replica_that_is_not_ready_or_silent_is_passed_over(
    proxied: Proxied, keeper: HomesKeeper, store: Store
) -> None:
    place(store, 1, news=Homes(("one",), "two", 1))
    tell(store, {"two": 1, "three": 1})
    keeper.turn()
    assert asked(proxied) == {"two"}
    store.placements.report("one", Load(serve=IDS["one"], ready=False, seen=1))
    keeper.turn()
    assert asked(proxied) == {"two"}
    store.placements.report("one", Load(serve=IDS["one"], ready=True, seen=1))
    keeper.turn()
    assert asked(proxied) == {"one"}


def test_a_placement_that_is_switched_off_spreads_requests_again(
    proxied: Proxied, keeper: HomesKeeper, store: Store
) -> None:
    place(store, 1, news=Homes(("one",), "two", 1))
    tell(store, {"one": 1, "two": 1, "three": 1})
    keeper.turn()
    store.placements.clear("leader")
    keeper.turn()
    assert asked(proxied) == set(NAMES)


def test_the_next_process_of_haproxy_knows_the_homes_from_its_start(
    file: Path, proxied: Proxied, keeper: HomesKeeper, store: Store, binary: str
) -> None:
    """Serve gives the servers of a reload other names: those of the replicas that run now."""
    place(store, 1, news=Homes(("two",), "three", 1))
    tell(store, {"one": 1, "two": 1, "three": 1})
    keeper.turn()
    known = KnownHomes.read(file.parent)
    assert (
        known.map_for([f"x-{IDS['two']}", f"x-{IDS['three']}"]).splitlines()[-1]
        == f"news x-{IDS['two']}|x-{IDS['three']}"
    )
    assert known.map_for([f"x-{IDS['three']}"]).splitlines()[-1] == f"news x-{IDS['three']}"


def test_a_haproxy_that_was_started_anew_gets_the_map_again(
    file: Path, proxied: Proxied, keeper: HomesKeeper, store: Store, binary: str
) -> None:
    place(store, 1, news=Homes(("two",), "three", 1))
    tell(store, {"one": 1, "two": 1, "three": 1})
    keeper.turn()
    (file.parent / "homes.json").unlink()  # as if the next process had known nothing
    with reloaded(proxied, binary, {}):
        keeper.turn()
        assert asked(proxied) == {"two"}


def test_trouble_is_reported(proxied: Proxied, keeper: HomesKeeper, store: Store) -> None:
    (proxied.file.parent / TROUBLE).write_text("HAProxy is too old")
    keeper.turn()
    assert store.placements.proxies()["proxy"].trouble == "HAProxy is too old"
    (proxied.file.parent / TROUBLE).write_text("")
    keeper.turn()
    assert store.placements.proxies()["proxy"].trouble == ""
    haproxy_of(proxied.file).kill()
    await_(lambda: not haproxies(proxied.file))
    keeper.turn()
    assert "map of homes cannot be replaced" in store.placements.proxies()["proxy"].trouble


def test_while_the_store_is_down_the_homes_stay(file: Path, binary: str, private_url: str) -> None:
    from serving.store.urls import connect

    store = Store(private_url)
    with proxied_by(file, binary, {}) as proxied:
        place(store, 1, news=Homes(("two",), "three", 1))
        tell(store, {"one": 1, "two": 1, "three": 1})
        keeper = HomesKeeper(file, store, "proxy")
        keeper.turn()
        with suppress(Exception):
            connect(private_url).shutdown(nosave=True)
        keeper.turn()
        assert asked(proxied) == {"two"}


# The process


def haproxies(file: Path) -> list[psutil.Process]:
    return [p for p in running() if p.name() == "haproxy" and str(file) in cmdline(p)]


def haproxy_of(file: Path) -> psutil.Process:
    (found,) = haproxies(file)
    return found


def keepers(file: Path) -> list[psutil.Process]:
    return [p for p in running() if "serving.launch.homes_keeper" in cmdline(p) and str(file) in cmdline(p)]


def running() -> Iterator[psutil.Process]:
    return (p for p in psutil.process_iter(["status"]) if p.info["status"] != psutil.STATUS_ZOMBIE)


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def await_(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def reloaded(proxied: Proxied, binary: str, more: dict[str, str]) -> Iterator[None]:
    """Another process takes over from HAProxy, with Ray's file written anew."""
    file = proxied.file
    file.write_text(proxied.rays)
    command = [ENTRY, "-db", "-f", file, "-sf", str(haproxy_of(file).pid)]
    values = variables(binary, Frontend((f"127.0.0.1:{proxied.port}",))) | more
    with subprocess.Popen(command, env=environment(values)) as process:
        try:
            await_(lambda: [p.pid for p in haproxies(file)] == [process.pid])
            yield
        finally:
            process.kill()


@contextmanager
def no_keeper_left(file: Path) -> Iterator[None]:
    try:
        yield
    finally:
        for keeper in keepers(file):
            keeper.kill()


def test_one_keeper_runs_for_a_haproxy_however_often_it_is_started(
    file: Path, binary: str, store: Store, store_url: str, namespace: str
) -> None:
    values = {"KEN_REDIS_URL": store_url, "KEN_NAMESPACE": namespace}
    place(store, 1, news=Homes(("two",), "three", 1))
    tell(store, {"one": 1, "two": 1, "three": 1})
    with no_keeper_left(file), proxied_by(file, binary, values) as proxied:

        def routed() -> bool:
            tell(store, {"one": 1, "two": 1, "three": 1})  # as replicas do all the while
            return asked(proxied) == {"two"}

        await_(routed)
        (first,) = keepers(file)
        await_(lambda: [(p.epoch, p.trouble) for p in store.placements.proxies().values()] == [(1, "")])
        with reloaded(proxied, binary, values):
            assert asked(proxied) == {"two"}
            assert [keeper.pid for keeper in keepers(file)] == [first.pid]


def test_the_keeper_ends_with_the_process_that_started_haproxy(file: Path, binary: str, store_url: str) -> None:
    values = environment(variables(binary, Frontend()) | {"KEN_REDIS_URL": store_url})
    parent = f"import subprocess; subprocess.run({[str(ENTRY), '-db', '-f', str(file), '-dR']})"
    with no_keeper_left(file), subprocess.Popen([sys.executable, "-c", parent], env=values) as manager:
        await_(lambda: bool(keepers(file)))
        manager.kill()
        await_(lambda: not keepers(file) and not haproxies(file))


def test_without_a_store_there_is_no_keeper(file: Path, binary: str) -> None:
    with started(file, variables(binary, Frontend())):
        assert keepers(file) == []


def test_the_stores_url_may_be_in_a_secret_file(tmp_path: Path) -> None:
    (tmp_path / "ken_redis_url").write_text("redis://secret\n")
    assert store_url({"KEN_SECRETS_DIR": str(tmp_path)}) == "redis://secret"
    assert store_url({"KEN_REDIS_URL": "redis://plain", "KEN_SECRETS_DIR": str(tmp_path)}) == "redis://plain"
    assert store_url({}) is None
    assert store_url({"KEN_SECRETS_DIR": os.devnull}) is None


def test_replicas_have_time_to_report_again_after_the_store_did_not_answer(
    file: Path, binary: str, private_url: str, tmp_path: Path
) -> None:
    """Their reports are too old then, or were lost with the store."""
    store = Store(private_url)
    with proxied_by(file, binary, {}) as proxied:
        place(store, 1, news=Homes(("two",), "three", 1))
        tell(store, {"one": 1, "two": 1, "three": 1})
        keeper = HomesKeeper(file, store, "proxy")
        keeper.turn()
        tell(store, {})
        keeper.turn()
        assert asked(proxied) == {"two"}, "nobody reports: HAProxy itself sees who answers"
        tell(store, {"one": 1})
        keeper.turn()
        assert asked(proxied) == {"one"}


def test_a_url_that_cannot_be_read_keeps_no_haproxy_from_starting(file: Path, binary: str, tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "KEN_REDIS_URL").write_bytes(b"\xff\xfe")
    with started(file, variables(binary, Frontend()) | {"KEN_SECRETS_DIR": str(tmp_path / "secrets")}):
        assert keepers(file) == []

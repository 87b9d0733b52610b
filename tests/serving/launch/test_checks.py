"""What is checked before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.config import load_settings
from serving.errors import StartError
from serving.launch.checks import check_keys, check_tls, choose_proxy
from serving.security.keys import new_key
from serving.store import Store
from serving.store.embedded import embedded_store
from serving.tasks import TaskTable
from tests.certificates import self_signed

# On an address that other machines reach


def test_beyond_loopback_a_key_in_the_store_lets_it_start(store_url: str, namespace: str, store: Store) -> None:
    settings = load_settings(base="b", host="0.0.0.0", namespace=namespace)
    with pytest.raises(StartError, match="ken keys create"):
        check_keys(store_url, settings)
    key, _ = new_key("ci", ["predict"])
    store.keys.put(key.id, key.record())
    check_keys(store_url, settings)


def test_with_the_store_down_the_keys_kept_on_disk_count(tmp_path: Path) -> None:
    settings = load_settings(base="b", host="0.0.0.0", data_dir=tmp_path)
    with embedded_store(tmp_path / "store") as url:
        store = Store(url)
        key, _ = new_key("ci", ["predict"])
        store.keys.put(key.id, key.record())
        TaskTable(tmp_path / "tasks-default.json").replace(store.tasks.table())
    check_keys(url, settings)
    (tmp_path / "tasks-default.json").unlink()
    with pytest.raises(StartError, match="ken keys create"):
        check_keys(url, settings)


def test_a_bad_keys_file_is_found_before_anything_starts(store_url: str, tmp_path: Path) -> None:
    with pytest.raises(StartError, match="cannot be read"):
        check_keys(store_url, load_settings(base="b", keys_file=tmp_path / "keys.json"))


# TLS


def test_a_certificate_with_its_key_is_taken(tmp_path: Path) -> None:
    cert, key = self_signed(tmp_path, "one")
    check_tls(load_settings(base="b", tls_cert=cert, tls_key=key))


def test_a_pair_that_is_none_is_refused_without_asking_for_a_password(tmp_path: Path) -> None:
    (cert, key), (other, _) = self_signed(tmp_path, "one"), self_signed(tmp_path, "other")
    _, locked = self_signed(tmp_path, "locked", "hunter2")
    (tmp_path / "empty").write_text("")
    for c, k in ((other, key), (key, cert), (cert, tmp_path / "empty"), (tmp_path / "empty", key), (cert, locked)):
        with pytest.raises(StartError, match=rf"(?s){c.name}.*{k.name}.*PEM files"):
            check_tls(load_settings(base="b", tls_cert=c, tls_key=k))


def test_a_file_of_tls_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    cert, key = self_signed(tmp_path, "one")
    for settings in ({"tls_cert": cert, "tls_key": tmp_path / "gone"}, {"tls_cert": tmp_path, "tls_key": key}):
        with pytest.raises(StartError, match=r"tls_\w+ \S+ cannot be read: (No such file|Is a dir)"):
            check_tls(load_settings(base="b", **settings))


# The proxy


def test_without_haproxy_it_says_what_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.launch.checks.find_haproxy", lambda: None)
    said: list[str] = []
    assert choose_proxy(load_settings(base="b"), said.append) is None
    assert "without limits on connections" in said[0]


def test_more_connections_than_this_machine_lets_a_process_have_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.launch.checks.find_haproxy", lambda: "/usr/sbin/haproxy")
    monkeypatch.setattr("resource.getrlimit", lambda which: (256, 256))
    assert choose_proxy(load_settings(base="b", max_connections=64), print) == "/usr/sbin/haproxy"
    with pytest.raises(StartError, match="KEN_MAX_CONNECTIONS"):
        choose_proxy(load_settings(base="b", max_connections=200), print)

"""A real browser without a screen, and replicas for it to look at."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from browsing import Console
from over_http import Served, served

from ken_core import DeltaFile
from serving.config import load_settings
from serving.service import Service
from serving.store import Store
from tests.tiny_checkpoints import Deltas, Tiny

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_MILLISECONDS = 20_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium. It is closed after each module: while its event loop runs, `asyncio.run` of other tests would fail."""
    path = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser is installed: looked for {', '.join(_BROWSERS)}")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=path)
        yield found
        found.close()


@pytest.fixture
def console_of(browser: Any) -> Iterator[Callable[..., Console]]:
    """``console_of(url, **options)``: the console of a server; at the end its scripts must have met no error."""
    contexts, errors = [], []

    def make(url: str, **options: Any) -> Console:
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(_MILLISECONDS)
        page = context.new_page()
        page.add_init_script("delete Map.groupBy; delete Object.groupBy")  # as in Firefox 115 and Safari 17.3
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda told: errors.append(told.text) if "Content Security Policy" in told.text else None)
        return Console(page, url)

    yield make
    for context in contexts:
        context.close()
    assert errors == []


Serve = Callable[..., Served]


@pytest.fixture(scope="module")
def serve(tiny: Tiny, embedded_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """``serve(tasks, **settings)``: a replica that answers for the tasks over HTTP until the module ends.

    A task is its name and its versions by alias.
    """
    running: list[tuple[Any, Service]] = []

    def start(tasks: dict[str, dict[str, DeltaFile]], **settings: Any) -> Served:
        namespace = f"console-{uuid.uuid4().hex[:12]}"
        store = Store(embedded_url, namespace)
        for task, versions in tasks.items():
            for alias, file in versions.items():
                store.tasks.publish(task, file, alias)
        chosen = {"base": str(tiny.base_folder), "data_dir": tmp_path_factory.mktemp("console"), "threads": 1}
        service = Service(load_settings(**chosen | {"namespace": namespace} | settings), embedded_url)
        service.start()
        answering = served(service)
        running.append((answering, service))
        found: Served = answering.__enter__()
        return found

    yield start
    for answering, service in reversed(running):
        answering.__exit__(None, None, None)
        service.stop()


@pytest.fixture(scope="module")
def small(serve: Serve, deltas: Deltas) -> Served:
    """A replica without keys: the task `spam` in three versions, and `emotion`."""
    spam = {"live": deltas.spam, "canary": deltas.spam_2, "next": deltas.spam_3}
    return serve({"spam": spam, "emotion": {"live": deltas.emotion}})

"""Real parts in small: a Valkey, a tiny BERT with fine-tunes of it, and services on both."""

from __future__ import annotations

import asyncio
import os
import socketserver
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest
import transformers
from language_models_served import answering
from over_http import Served, served
from prometheus_client.parser import text_string_to_metric_families
from small_disk import mounted
from transformers import BertForQuestionAnswering, BertForTokenClassification

from ken_core import DeltaFile
from serving.api import create_app
from serving.config import load_settings
from serving.security.keys import new_key
from serving.service import Service
from serving.store import Store
from serving.store.embedded import embedded_store
from serving.store.urls import connect
from tests.tiny_checkpoints import Deltas, Tiny, scores, write_tuned
from tests.tiny_language_tasks import LanguageTasks

hypothesis.settings.register_profile("serving", deadline=None, database=None, print_blob=True)
hypothesis.settings.load_profile("serving")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

_OWN_URL = os.environ.get("KEN_TEST_REDIS_URL")


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever KEN_* the developer's shell has must not change what is tested."""
    for name in [n for n in os.environ if n.startswith("KEN_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session", autouse=True)
def _servers_that_stop_at_once() -> Iterator[None]:
    """`socketserver` looks every half second whether it should stop, and hundreds of tests stop a service."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socketserver.BaseServer.serve_forever, "__defaults__", (0.02,))
        yield


@pytest.fixture(scope="session")
def deltas(tiny: Tiny) -> Deltas:
    return Deltas(
        emotion=tiny.delta(tiny.tuned("emotion", ["anger", "joy", "fear"], seed=1)),
        topic=tiny.delta(tiny.tuned("topic", ["sport", "art", "law", "food"], seed=2)),
        spam=tiny.delta(tiny.tuned("spam", ["ham", "spam"], seed=3)),
        spam_2=tiny.delta(tiny.tuned("spam-2", ["ham", "spam"], seed=4)),
        spam_3=tiny.delta(tiny.tuned("spam-3", ["ham", "spam"], seed=5)),
    )


@pytest.fixture(scope="session")
def embedded_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with embedded_store(tmp_path_factory.mktemp("data")) as url:
        yield url


@pytest.fixture
def private_url(tmp_path: Path) -> Iterator[str]:
    """A server of this test's own, to stop, fill up or reconfigure."""
    with embedded_store(tmp_path / "private") as url:
        yield url


@pytest.fixture
def namespace() -> str:
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture(params=["embedded", *(["KEN_TEST_REDIS_URL"] if _OWN_URL else [])])
def store_url(request: pytest.FixtureRequest) -> str:
    return _OWN_URL or "" if request.param == "KEN_TEST_REDIS_URL" else request.getfixturevalue("embedded_url")


@pytest.fixture
def store(store_url: str, namespace: str) -> Iterator[Store]:
    yield Store(store_url, namespace)
    client = connect(store_url)
    for pattern in (f"ken:{namespace}:*", f"ken:{{{namespace}}}:*"):
        for key in list(client.scan_iter(pattern, count=1000)):
            client.delete(key)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a real disk of half a megabyte."""
    with mounted(tmp_path / "small") as folder:
        yield folder


@pytest.fixture
def make_service(tiny: Tiny, embedded_url: str, namespace: str, tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Start services on one namespace of the session's store; all are stopped at the end."""
    made = []

    def make(url: str = embedded_url, **settings: Any) -> Service:
        chosen = {"base": str(tiny.base_folder), "data_dir": tmp_path / "service", "namespace": namespace, "threads": 1}
        service = Service(load_settings(**chosen | settings), url)
        made.append(service)
        service.start()
        return service

    yield make
    for service in made:
        service.stop()


@pytest.fixture
def publish(embedded_url: str, namespace: str) -> Callable[..., None]:
    """Publish a delta, and return when every running service has seen it."""
    store = Store(embedded_url, namespace)

    def run(task: str, file: DeltaFile, alias: str = "live", allow_other_labels: bool = False) -> None:
        assert not store.replicas.wait(
            store.tasks.publish(task, file, alias, allow_other_labels=allow_other_labels), 10
        ).pending

    return run


@pytest.fixture
def service(make_service: Callable[..., Service], publish: Callable[..., None], deltas: Deltas) -> Service:
    """A service with the tasks emotion, topic and spam."""
    for task in ("emotion", "topic", "spam"):
        publish(task, getattr(deltas, task))
    return make_service()


@pytest.fixture
def exchanging(make_service: Callable[..., Service], publish: Callable[..., None], deltas: Deltas) -> Service:
    """The same, and its batches never mix tasks."""
    for task in ("emotion", "topic", "spam"):
        publish(task, getattr(deltas, task))
    return make_service(mixed="off")


@pytest.fixture(scope="session")
def of_every_kind(tiny: Tiny, deltas: Deltas) -> dict[str, DeltaFile]:
    """A task a kind, by name."""
    tags = ["O", "B-PER", "I-PER", "B-LOC"]
    answering, tagging = tiny.folder / "every-answers", tiny.folder / "every-tags"
    tuned = {
        "answers": write_tuned(
            tiny.base_folder, answering, ["start", "end"], 71, architecture=BertForQuestionAnswering
        ),
        "entailment": tiny.tuned("every-entailment", ["contradiction", "neutral", "entailment"], 72),
        "ranks": tiny.tuned("every-ranks", ["relevance"], 73),
        "search": tiny.embedding("every-search", 74, "mean_tokens", {"query": "where is the "}),
        "tags": write_tuned(tiny.base_folder, tagging, tags, 75, architecture=BertForTokenClassification),
        "vectors": tiny.embedding("every-vectors", 76),
    }
    made = {task: tiny.delta(folder) for task, folder in tuned.items()}
    return {**made, "emotion": deltas.emotion, "spam": deltas.spam}


@pytest.fixture(scope="module")
def peers(
    tiny: Tiny,
    of_every_kind: dict[str, DeltaFile],
    deltas: Deltas,
    embedded_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    """A replica of small limits and a task a kind, for the clients of peers' protocols."""
    namespace = f"peers-{uuid.uuid4().hex[:12]}"
    store = Store(embedded_url, namespace)
    for task, file in of_every_kind.items():
        store.tasks.publish(task, file)
    store.tasks.publish("spam", deltas.spam_2, "canary")
    settings = load_settings(
        base=str(tiny.base_folder),
        data_dir=tmp_path_factory.mktemp("peers"),
        namespace=namespace,
        threads=1,
        max_body_bytes=16_384,
        max_inputs=32,
        max_tokens=512,
        queue_rows=8,
    )
    service = Service(settings, embedded_url)
    service.start()
    with served(service) as answering:
        yield answering
    service.stop()


@pytest.fixture(scope="session")
def pair(
    tiny: Tiny, deltas: Deltas, embedded_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Served, Served]]:
    """Two replicas of one server with the tasks spam and mood, which needs a key: the admin's is `of-the-admin`."""
    namespace = f"pair-{uuid.uuid4().hex[:12]}"
    store = Store(embedded_url, namespace)
    for task, file in (("spam", deltas.spam), ("mood", deltas.emotion)):
        store.tasks.publish(task, file)
    folder = tmp_path_factory.mktemp("pair")
    chosen = {"base": str(tiny.base_folder), "namespace": namespace, "threads": 1, "admin_token": "of-the-admin"}
    services = [Service(load_settings(**chosen, data_dir=folder / name), embedded_url) for name in "ab"]
    for service in services:
        service.start()
    with served(services[0]) as first, served(services[1]) as second:
        yield first, second
    for service in services:
        service.stop()


@pytest.fixture
def key_of(pair: tuple[Served, Served]) -> Callable[..., tuple[str, str]]:
    """Make a key of `pair`; its id and its token."""

    def make(*scopes: Any, tasks: Sequence[str] = ("*",), expires: int | None = None) -> tuple[str, str]:
        key, token = new_key("team", scopes, tasks)
        key = key.model_copy(update={"expires": expires})
        store = pair[0].service.store
        assert not store.replicas.wait(store.keys.put(key.id, key.record()), 10).pending
        return key.id, token

    return make


@pytest.fixture(scope="session")
def dedicated(tiny: Tiny) -> Callable[[DeltaFile, str], dict[str, float]]:
    """What a server of one model of its own would answer: Transformers' pipeline on the applied folder."""

    @cache
    def pipeline_of(folder: Path) -> Any:
        return transformers.pipeline("text-classification", model=str(folder), top_k=None)

    @cache
    def answer(folder: Path, text: str) -> dict[str, float]:
        return scores(pipeline_of(folder)(text)[0])

    return lambda file, text: answer(tiny.applied(file), text)


@pytest.fixture
def metric() -> Callable[..., float]:
    """The sum of a metric's samples with the given labels, as Prometheus would scrape them."""

    def read(service: Service, name: str, **labels: str) -> float:
        families = text_string_to_metric_families(service.metrics.exposition().decode())
        samples = [s for family in families for s in family.samples if s.name == name]
        return sum(s.value for s in samples if labels.items() <= s.labels.items())

    return read


Talk = Callable[[httpx.AsyncClient], Awaitable[Any]]


@pytest.fixture
def talk() -> Callable[[Service, Talk], Any]:
    """Hold a conversation with a service's HTTP application."""

    def run(service: Service, conversation: Talk) -> Any:
        async def connected() -> Any:
            transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://ken") as client:
                return await conversation(client)

        return asyncio.run(connected())

    return run


@pytest.fixture
def post(service: Service, talk: Callable[..., Any]) -> Callable[..., httpx.Response]:
    """One POST to the service; `json` or raw `content`."""

    def run(path: str, **request: Any) -> httpx.Response:
        async def conversation(client: httpx.AsyncClient) -> httpx.Response:
            return await client.post(path, **request)

        return talk(service, conversation)

    return run


@pytest.fixture
def get(service: Service, talk: Callable[..., Any]) -> Callable[..., httpx.Response]:
    def run(path: str, **request: Any) -> httpx.Response:
        async def conversation(client: httpx.AsyncClient) -> httpx.Response:
            return await client.get(path, **request)

        return talk(service, conversation)

    return run


@pytest.fixture
def eventually() -> Callable[[Callable[[], Any]], None]:
    """Wait for a condition that another thread or process brings about."""

    def wait(condition: Callable[[], Any], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not come about in time"
            time.sleep(0.005)

    return wait


# Language models

RAISING = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('no system message is taken') }}{% endif %}{{ message['content'] }} {% endfor %}"
)


@pytest.fixture(scope="session")
def language_tasks(tmp_path_factory: pytest.TempPathFactory) -> LanguageTasks:
    return LanguageTasks(tmp_path_factory.mktemp("language-tasks"), positions=256)


@pytest.fixture(scope="session")
def language_deltas(language_tasks: LanguageTasks) -> dict[str, DeltaFile]:
    """Two language models, one whose chat template takes no system message, and a classifier."""
    return {
        "poems": language_tasks.language_model("poems"),
        "news": language_tasks.language_model("news"),
        "strict": language_tasks.language_model("strict", template=RAISING),
        "spam": language_tasks.classifier("spam"),
    }


@pytest.fixture(scope="module")
def writers(
    language_tasks: LanguageTasks,
    language_deltas: dict[str, DeltaFile],
    embedded_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    """A replica that all tests of a module ask."""
    with answering(language_tasks, language_deltas, embedded_url, tmp_path_factory.mktemp("writers")) as found:
        yield found


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes each step of a service's texts take longer, so that they are under way while something is done."""

    def slow(service: Service, seconds: float = 0.05) -> None:
        assert service.generator is not None
        decoder = service.generator._decoder
        step = decoder.step
        monkeypatch.setattr(decoder, "step", lambda chunks: (time.sleep(seconds), step(chunks))[1])

    return slow


@pytest.fixture
def lone_writer(
    language_tasks: LanguageTasks, language_deltas: dict[str, DeltaFile], embedded_url: str, tmp_path: Path
) -> Iterator[Served]:
    """A replica of this test's own, to stop or hold up."""
    with answering(language_tasks, language_deltas, embedded_url, tmp_path / "lone") as found:
        yield found

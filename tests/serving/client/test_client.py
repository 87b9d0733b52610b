"""Both clients against a real server: predictions, look-ups, changes, uploads and refusals."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from asking import BOTH, Ask
from listening import listening

from ken_core import DeltaFile
from serving.api import create_app
from serving.client import ApiError, AsyncClient, Client, Merge, RouteInfo, TaskAnswer
from serving.service import Service
from tests.tiny_checkpoints import TEXTS, Deltas, scores

MakeService = Callable[..., Service]
both = pytest.mark.parametrize("ask", BOTH)


@pytest.fixture
def url(service: Service) -> Iterator[str]:
    """A server with the tasks emotion, topic and spam."""
    with listening(create_app(service)) as found:
        yield found


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as made:
        yield made


# Predictions


@both
def test_a_text_is_answered_as_by_a_server_of_its_own(
    ask: Ask, url: str, deltas: Deltas, dedicated: Callable[[DeltaFile, str], dict[str, float]]
) -> None:
    found = ask(url, "predict", "spam", TEXTS[0])
    assert (found.task, found.digest, found.kind) == ("spam", deltas.spam.digest, "text-classification")
    assert scores(found.outputs[0]) == pytest.approx(dedicated(deltas.spam, TEXTS[0]), abs=1e-5)
    assert found.truncated == ()
    assert set(found.timing) == {"load", "tokenize", "queue", "swap", "model"}
    assert 0 < found.timing["model"] < 60
    assert found.request_id


@both
def test_a_merge_is_made_for_a_prediction_and_can_be_asked_for_again(ask: Ask, url: str, deltas: Deltas) -> None:
    found = ask(url, "predict", Merge({"spam": 0.7, "topic": -0.2}, head="spam"), TEXTS)
    live, topic = f"spam@{deltas.spam.digest}", f"topic@{deltas.topic.digest}"
    assert found.merge == Merge({live: 0.7, topic: -0.2}, live, "linear", density=1.0, normalize=False)
    assert found.task == "spam"
    again = ask(url, "predict", found.merge, TEXTS)
    assert (again.digest, again.merge) == (found.digest, found.merge)
    assert ask(url, "predict", "spam", TEXTS).merge is None
    with pytest.raises(ApiError, match="there is no task 'nothing'"):
        ask(url, "predict", Merge({"spam": 1, "nothing": 1}, head="spam"), TEXTS)


@both
def test_many_tasks_answer_or_fail_each_for_itself(ask: Ask, url: str, deltas: Deltas) -> None:
    found = ask(url, "predict_many", ["spam@live", "topik", "e*"], TEXTS[:2], parameters={"top_k": 1})
    assert [result.task for result in found.results] == ["spam@live", "topik", "emotion"]
    assert list(found.answers) == ["spam@live", "emotion"]
    for task, answer in found.answers.items():
        assert isinstance(answer, TaskAnswer)
        alone = ask(url, "predict", task, TEXTS[:2], parameters={"top_k": 1})
        assert (answer.digest, answer.kind, answer.truncated) == (alone.digest, alone.kind, alone.truncated)
        assert [scores(rows) for rows in answer.outputs] == [
            pytest.approx(scores(rows), abs=1e-5) for rows in alone.outputs
        ]
    assert found.answers["spam@live"].digest == deltas.spam.digest
    failed = found.failures["topik"]
    assert (failed.status, failed.title, failed.retry_after) == (404, "Unknown task", None)
    assert "did you mean 'topic'" in failed.detail
    assert set(found.timing) == {"load", "tokenize", "queue", "swap", "model"}
    assert found.request_id


@both
def test_a_question_to_too_many_tasks_is_refused_as_a_whole(ask: Ask, url: str) -> None:
    with pytest.raises(ApiError, match="KEN_MAX_TASKS_PER_REQUEST") as refused:
        ask(url, "predict_many", [f"task-{i}" for i in range(65)], "rain")
    assert refused.value.status == 422


def test_many_inputs_parameters_and_a_kind_are_passed_on(client: Client) -> None:
    inputs = ["rain", "rain " * 100, {"text": "rain", "text_pair": "sun"}]
    found = client.predict("topic", inputs, parameters={"top_k": 2}, kind="text-classification")
    assert [len(rows) for rows in found.outputs] == [2, 2, 2]
    assert found.truncated == (1,)


def test_a_version_is_pinned_by_its_digest(client: Client, publish: Callable[..., None], deltas: Deltas) -> None:
    publish("spam", deltas.spam_2)
    assert client.predict("spam", "rain").digest == deltas.spam_2.digest
    assert client.predict("spam", "rain", digest=deltas.spam.digest).digest == deltas.spam.digest


@both
def test_a_refusal_names_what_was_wrong_and_the_request(ask: Ask, url: str) -> None:
    with pytest.raises(ApiError, match="did you mean 'spam'") as refused:
        ask(url, "predict", "spa", "rain")
    assert refused.value.status == 404
    assert refused.value.request_id
    assert refused.value.request_id in str(refused.value)
    with pytest.raises(ApiError, match="top_k") as refused:
        ask(url, "predict", "spam", "rain", parameters={"top_k": "many"})
    assert refused.value.status == 422


def test_one_client_is_shared_by_many_threads(url: str, deltas: Deltas) -> None:
    with Client(url) as client, concurrent.futures.ThreadPoolExecutor(8) as pool:
        tasks = ["emotion", "topic", "spam"] * 8
        found = list(pool.map(lambda task: client.predict(task, "rain").digest, tasks))
    assert found == [getattr(deltas, task).digest for task in tasks]


def test_one_client_asks_many_things_at_once(service: Service, deltas: Deltas) -> None:
    async def ask_all() -> list[str]:
        transport = httpx.ASGITransport(create_app(service))
        async with AsyncClient("http://ken", transport=transport) as client:
            answers = await asyncio.gather(*(client.predict(task, "rain") for task in tasks))
            return [answer.digest for answer in answers]

    tasks = ["emotion", "topic", "spam"] * 50
    assert asyncio.run(ask_all()) == [getattr(deltas, task).digest for task in tasks]


# Look-ups


def test_tasks_are_listed_and_shown(client: Client, deltas: Deltas) -> None:
    listed = client.tasks()
    assert [task.name for task in listed] == ["emotion", "spam", "topic"]
    shown = client.task("spam")
    assert shown.aliases == {"live": deltas.spam.digest}
    assert shown.versions == (deltas.spam.digest,)
    assert deltas.spam.digest in shown.tiers


def test_the_history_is_newest_first(client: Client, publish: Callable[..., None], deltas: Deltas) -> None:
    publish("spam", deltas.spam_2)
    newest, first = client.history("spam")
    assert (newest.digest, newest.previous) == (deltas.spam_2.digest, deltas.spam.digest)
    assert first.revision < newest.revision


def test_the_base_is_shown_and_verified(client: Client, service: Service) -> None:
    assert client.base().fingerprint == service.resident.fingerprint.digest
    found = client.verify()
    assert (found.tensors, found.differing) == (len(service.resident.fingerprint.tensors), ())


def test_replicas_are_listed_with_what_they_have_seen(client: Client, service: Service) -> None:
    (found,) = client.replicas()
    assert found.name == service.replica
    assert found.revision >= max(task.revision for task in client.tasks())


# Changes


@both
def test_a_published_delta_answers(ask: Ask, url: str, deltas: Deltas) -> None:
    change = ask(url, "publish", "spam", deltas.spam_2.path, wait=20)
    assert (change.task, change.pending) == ("spam", ())
    assert ask(url, "predict", "spam", "rain").digest == deltas.spam_2.digest
    ask(url, "publish", "mail", deltas.spam.path.read_bytes(), "canary", wait=20)
    assert ask(url, "predict", "mail@canary", "rain").digest == deltas.spam.digest


def test_what_the_server_has_is_not_sent_again(service: Service, deltas: Deltas) -> None:
    app, sent = create_app(service), []

    async def noting(scope: dict[str, object], receive: object, send: object) -> None:
        sent.append(scope["method"])
        await app(scope, receive, send)  # type: ignore[arg-type]

    with listening(noting) as url, Client(url) as client:
        client.publish("mail", deltas.spam_2.path)
        assert sent == ["GET", "PUT", "POST"]
        client.publish("post", deltas.spam_2.path)
    assert sent[3:] == ["GET", "POST"]


def test_a_file_that_is_no_delta_is_refused_and_leaves_no_task(client: Client) -> None:
    with pytest.raises(ApiError) as refused:
        client.publish("mail", b"no delta")
    assert refused.value.status == 422
    assert "mail" not in [task.name for task in client.tasks()]


def test_an_alias_is_promoted_and_rolled_back(client: Client, deltas: Deltas) -> None:
    client.publish("spam", deltas.spam_2.path, "canary")
    client.promote("spam", "canary", wait=20)
    assert client.task("spam").aliases["live"] == deltas.spam_2.digest
    client.rollback("spam", wait=20)
    assert client.task("spam").aliases["live"] == deltas.spam.digest


def test_a_version_in_use_is_deleted_only_by_force(client: Client, deltas: Deltas) -> None:
    client.publish("spam", deltas.spam_2.path, wait=20)
    with pytest.raises(ApiError, match="in use") as refused:
        client.delete_version("spam", deltas.spam_2.digest)
    assert refused.value.status == 409
    client.delete_version("spam", deltas.spam_2.digest, force=True, wait=20)
    assert client.task("spam").versions == (deltas.spam.digest,)
    client.delete_task("spam", force=True, wait=20)
    assert [task.name for task in client.tasks()] == ["emotion", "topic"]


def test_a_route_is_set_rolled_back_and_cleared(client: Client, deltas: Deltas) -> None:
    assert client.route("spam") is None
    client.publish("spam", deltas.spam_2.path, "canary")
    client.set_route("spam", {"live": 1, "canary": 1}, wait=20)
    assert client.route("spam") == RouteInfo(weights={"live": 1, "canary": 1})
    by_key = {key: {client.predict("spam", "rain", key=key).digest for _ in range(3)} for key in map(str, range(9))}
    assert all(len(digests) == 1 for digests in by_key.values())
    assert len(set.union(*by_key.values())) == 2
    client.set_route("spam", {"canary": 1}, wait=20)
    client.rollback_route("spam", wait=20)
    assert client.route("spam") == RouteInfo(weights={"live": 1, "canary": 1})
    client.set_route("spam", shadow="canary", wait=20)
    assert client.route("spam") == RouteInfo(weights={"live": 1}, shadow="canary")
    assert client.task("spam").shadow == client.history("spam")[0].shadow == "canary"
    client.clear_route("spam", wait=20)
    assert client.route("spam") is None


@both
def test_other_labels_are_taken_where_that_is_allowed(ask: Ask, url: str, deltas: Deltas) -> None:
    changes: list[tuple[Any, ...]] = [
        ("publish", "spam", deltas.topic.path, "canary"),
        ("set_route", "spam", {"live": 1, "canary": 1}),
        ("promote", "spam", "canary"),
    ]
    for call, *arguments in changes:
        with pytest.raises(ApiError, match="only in the live version: 'ham', 'spam'") as refused:
            ask(url, call, *arguments)
        assert refused.value.status == 409
        ask(url, call, *arguments, allow_other_labels=True, wait=20)
        assert "'art', 'food', 'law', 'sport'" in ask(url, "history", "spam")[0].other_labels
    assert ask(url, "predict", "spam@live", "rain").digest == deltas.topic.digest


@both
def test_a_key_opens_what_it_is_for_until_it_is_revoked(ask: Ask, make_service: MakeService, deltas: Deltas) -> None:
    service = make_service(auth="on", admin_token="the-admins")
    admin = {"api_key": "the-admins"}
    with listening(create_app(service)) as url:
        made = ask(url, "create_key", "readers", ["predict"], ["sp*"], expires_in=3600, wait=20, client=admin)
        reader = {"api_key": made.token}
        assert (made.name, made.scopes, made.tasks) == ("readers", ("predict",), ("sp*",))
        assert made.expires == pytest.approx(made.created + 3600, abs=60)
        assert [key.id for key in ask(url, "keys", client=admin)] == [made.id]
        ask(url, "publish", "spam", deltas.spam.path, wait=20, client=admin)
        assert ask(url, "predict", "spam", "rain", client=reader).digest == deltas.spam.digest
        for method, arguments, status in (("promote", ("spam", "live"), 403), ("tasks", (), 401)):
            with pytest.raises(ApiError) as refused:
                ask(url, method, *arguments, client=reader if status == 403 else {})
            assert refused.value.status == status
        ask(url, "revoke_key", made.id, wait=20, client=admin)
        with pytest.raises(ApiError, match="not valid"):
            ask(url, "predict", "spam", "rain", client=reader)

"""What a server that is ready says of its tasks."""

from __future__ import annotations

import json
import shlex

import pytest
from over_http import Served

from serving.config import load_settings
from serving.launch.ports import free_port
from serving.launch.question import question_for
from serving.launch.served import line_to_try, names_of, what_is_served
from serving.store import Store
from tests.tiny_checkpoints import Deltas


def test_the_tasks_of_the_store_are_named_with_a_line_to_try(embedded_url: str, namespace: str, deltas: Deltas) -> None:
    settings = load_settings(base="b", port=8123, namespace=namespace)
    assert what_is_served(settings, embedded_url) == ["there is no task yet; publish one: ken publish TASK FILE"]
    store = Store(embedded_url, namespace)
    for name, file in (("topic", deltas.topic), ("spam", deltas.spam)):
        store.tasks.publish(name, file)
    served, line = what_is_served(settings, embedded_url)
    assert served == "it serves 2 tasks: spam, topic"
    curl = shlex.split(line.removeprefix("try: "))
    assert curl[:2] == ["curl", "http://127.0.0.1:8123/v1/tasks/spam/predict"]
    assert json.loads(curl[-1]) == {"inputs": "How far is it to Denver?"}


def test_the_task_to_try_is_one_with_a_live_version(embedded_url: str, namespace: str, deltas: Deltas) -> None:
    settings = load_settings(base="b", namespace=namespace)
    store = Store(embedded_url, namespace)
    store.tasks.publish("early", deltas.spam, "canary")
    assert what_is_served(settings, embedded_url) == ["it serves 1 task: early"]
    store.tasks.publish("later", deltas.spam)
    assert "/v1/tasks/later/predict" in what_is_served(settings, embedded_url)[1]


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("emotion", "text-classification"),
        ("answers", "question-answering"),
        ("entailment", "zero-shot-classification"),
        ("ranks", "rerank"),
        ("tags", "token-classification"),
        ("search", "sentence-embeddings"),
        ("vectors", "feature-extraction"),
    ],
)
def test_the_question_to_try_is_one_that_the_task_answers(task: str, kind: str, peers: Served) -> None:
    store = peers.service.store
    question = question_for(store.deltas.manifest(store.tasks.known(task).aliases["live"]) or {})
    answer = peers.post(f"/v1/tasks/{task}/predict", json=question)
    assert (answer.status_code, answer.json().get("kind")) == (200, kind), answer.text


def test_a_delta_of_which_nothing_is_known_is_asked_with_a_text() -> None:
    assert question_for({}) == {"inputs": "How far is it to Denver?"}


def test_of_many_tasks_the_first_are_named() -> None:
    served = names_of([f"t{number:02d}" for number in range(12)])
    assert served.startswith("it serves 12 tasks: t00, ")
    assert served.endswith("t09 and 2 more")


def test_where_requests_need_a_key_the_line_has_one() -> None:
    line = line_to_try("spam", {"inputs": "it's"}, "http://localhost", key=True)
    curl = shlex.split(line)
    assert curl[-4:-2] == ["-H", "Authorization: Bearer $KEN_API_KEY"]
    assert json.loads(curl[-1]) == {"inputs": "it's"}


def test_nothing_is_said_while_the_store_is_away() -> None:
    assert what_is_served(load_settings(base="b"), f"redis://127.0.0.1:{free_port()}") == []

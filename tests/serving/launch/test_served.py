"""What a server that is ready says of its tasks."""

from __future__ import annotations

import shlex
import socket

from serving.config import load_settings
from serving.launch.served import lines_of, what_is_served
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
    assert curl[-1] == '{"inputs":"a text"}'


def test_of_many_tasks_the_first_are_named() -> None:
    served, _ = lines_of([f"t{number:02d}" for number in range(12)], "http://localhost")
    assert served.startswith("it serves 12 tasks: t00, ")
    assert served.endswith("t09 and 2 more")


def test_where_requests_need_a_key_the_line_has_one() -> None:
    _, line = lines_of(["spam"], "http://localhost", keys=True)
    assert shlex.split(line)[-4:-2] == ["-H", "Authorization: Bearer $KEN_API_KEY"]


def test_nothing_is_said_while_the_store_is_away() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    assert what_is_served(load_settings(base="b"), f"redis://127.0.0.1:{port}") == []

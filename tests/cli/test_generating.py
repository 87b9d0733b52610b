"""The command that has a task write, against a server."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cli.running import ADMIN, Ken, run
from tests.serving.listening import listening
from tests.tiny_language_tasks import LanguageTasks


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with the task poems; it needs a key."""
    from serving.api import create_app
    from serving.config import load_settings
    from serving.service import Service
    from serving.store import Store
    from serving.store.embedded import embedded_store

    tasks = LanguageTasks(tmp_path_factory.mktemp("language-tasks"), positions=256)
    folder = tmp_path_factory.mktemp("server")
    settings = load_settings(base=str(tasks.path), data_dir=folder, threads=1, auth="on", admin_token=ADMIN)
    with embedded_store(folder) as store_url:
        Store(store_url).tasks.publish("poems", tasks.language_model("poems"))
        service = Service(settings, store_url)
        service.start()
        with listening(create_app(service)) as found:
            yield found
        service.stop()


@pytest.fixture
def ken(url: str, monkeypatch: pytest.MonkeyPatch) -> Ken:
    monkeypatch.setenv("KEN_API_KEY", ADMIN)
    return lambda *arguments: run("generate", *arguments, "--url", url)


def written(url: str, prompt: object, **parameters: object) -> str:
    """What the server itself answers."""
    asked = {"prompt": prompt, "parameters": {"temperature": 0, **parameters}}
    keys = {"Authorization": f"Bearer {ADMIN}"}
    answer = httpx.post(f"{url}/v1/tasks/poems/generate", json=asked, headers=keys, timeout=30)
    text: str = answer.json()["choices"][0]["text"]
    return text


PLAIN = ("--temperature", "0", "--max-tokens", "9")


def test_a_text_goes_to_stdout_and_how_it_ended_to_stderr(ken: Ken, url: str) -> None:
    ended = ken("poems", "the rain", *PLAIN)
    assert (ended.returncode, ended.stdout) == (0, written(url, "the rain", max_tokens=9) + "\n")
    assert re.fullmatch(r"9 tokens after \d+ tokens; as many as were asked for\n", ended.stderr)


def test_a_message_is_answered_by_the_tasks_template(ken: Ken, url: str) -> None:
    for options, before in (
        (("--chat",), []),
        (("--system", "be brief"), [{"role": "system", "content": "be brief"}]),
    ):
        messages = [*before, {"role": "user", "content": "how far"}]
        said = written(url, {"messages": messages}, max_tokens=9)
        assert ken("poems", "how far", *options, *PLAIN).stdout == f"{said}\n"


def test_a_stop_ends_it(ken: Ken, url: str) -> None:
    whole = written(url, "the rain", max_tokens=9)
    stop = whole[3:6]
    ended = ken("poems", "the rain", *PLAIN, "--stop", stop, "--stop", "never said")
    assert ended.stdout == whole[: whole.index(stop)] + "\n"
    assert f"{stop!r} ended the text" in ended.stderr


def test_a_prompt_may_come_from_stdin(ken: Ken, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("the rain"))
    assert ken("poems", "-", *PLAIN).stdout == written(url, "the rain", max_tokens=9) + "\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nobody", "the rain"), "no task 'nobody'"),
        (("poems", "the rain", "--max-tokens", "900"), "max_tokens: found 900"),
        (("poems", "the rain", "--temperature", "-1"), "temperature"),
    ],
)
def test_what_cannot_be_done_is_told_and_nothing_is_printed(
    arguments: tuple[str, ...], words: str, ken: Ken, tmp_path: Path
) -> None:
    ended = ken(*arguments)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert words in ended.stderr

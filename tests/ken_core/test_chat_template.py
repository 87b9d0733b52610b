"""Prompts of chats: the same as Transformers renders, and within bounds whatever the template does."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from ken_core.chat_template import ChatTemplate
from ken_core.errors import TemplateError
from ken_core.rendering.renderers import SECONDS, Renderers
from tests.chat_templates import CHATML, HEADERS, INSTRUCTIONS, TEMPLATES, THINKING
from tests.tiny_language_models import write_chat_tokenizer

Chat = Sequence[Mapping[str, Any]]
CALL = {"id": "a", "type": "function", "function": {"name": "look", "arguments": {"where": "<b> & 'sky'", "é": 1}}}
TOOLS = [{"type": "function", "function": {"name": "look", "description": "Look <there>", "parameters": {}}}]
CHATS: dict[str, Chat] = {
    "question": [{"role": "user", "content": "How far is the moon? "}],
    "system": [{"role": "system", "content": " Be brief."}, {"role": "user", "content": "Hi\n\nthere"}],
    "turns": [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\ntwo ", "tool_calls": None},
        {"role": "user", "content": "three <|im_end|> {{ 7 * 7 }}"},
    ],
    "answered": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "It is "}],
    "thought": [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two", "reasoning": "since one"},
    ],
    "parts": [{"role": "user", "content": [{"type": "text", "text": " one"}, {"type": "text", "text": "two "}]}],
    "call": [
        {"role": "user", "content": "look"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "blue"},
    ],
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return write_chat_tokenizer(tmp_path_factory.mktemp("chat"))


def both(tokenizer: Any, template: Any, messages: Chat, **options: Any) -> tuple[str, str]:
    """What we render, and what Transformers does; each with the name of the error where there is one."""
    tokenizer.chat_template = template
    made = ChatTemplate.of(tokenizer)
    assert made is not None
    opens, continues = options.get("opens_answer", True), options.get("continues_last", False)
    arguments, tools = options.get("arguments", {}), options.get("tools")
    try:
        ours = made.render(messages, tools, opens_answer=opens, continues_last=continues, arguments=arguments)
    except TemplateError:
        ours = "refused"
    try:
        theirs = tokenizer.apply_chat_template(
            messages,
            tools=tools,
            tokenize=False,
            add_generation_prompt=opens,
            continue_final_message=continues,
            **arguments,
        )
    except Exception:
        theirs = "refused"
    return ours, theirs


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("chat", CHATS)
def test_prompts_are_those_of_transformers(tokenizer: Any, template: str, chat: str) -> None:
    for options in (
        {},
        {"opens_answer": False},
        {"opens_answer": False, "continues_last": True},
        {"tools": TOOLS},
        {"arguments": {"enable_thinking": False, "date_string": "1 May 2030"}},
    ):
        ours, theirs = both(tokenizer, TEMPLATES[template], CHATS[chat], **options)
        assert ours == theirs, options


def test_templates_answer_at_all(tokenizer: Any) -> None:
    """Without this, templates that always fail would be equal in the test above."""
    for template in TEMPLATES.values():
        ours, _ = both(tokenizer, template, CHATS["question"])
        assert "How far is the moon?" in ours


@pytest.mark.parametrize(
    "template",
    [
        "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token }}{{ image_token }}",
        "{{ messages | tojson(indent=2, sort_keys=true) }}{{ {'a': '<é>'} | tojson(ensure_ascii=true) }}",
        "{% for x in range(9) %}{% if x == 2 %}{% continue %}{% elif x > 5 %}{% break %}{% endif %}{{ x }}{% endfor %}",
        "{{ dict(a=1, b=2).items() | list }}{{ dict.fromkeys(['a']) }}",
        "{% set n = namespace(self=3, x=1) %}{% set n.x = n.x + n.self %}{{ n.x }}",
        "{% set n = namespace(_x=1) %}{{ n }}",
        "{% set n = namespace() %}{% set n._x = 1 %}{{ n }}",
        "{{ messages.append(1) }}",
        "{{ messages.__class__ }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ strftime_now.__globals__ }}",
        "{{ raise_exception('no') }}",
        "{{ strftime_now('%Y') }}",
        "{{ messages[7].content }}",
        "{{ nothing.at.all }}",
        "{{ documents }}{{ tools }}",
        "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
        "   {% if true %}   \n  a\n  {% endif %}\n{# note #}\nb\n",
        "{% if %}",
        "{% include 'other' %}",
        "{{ messages[0].content | safe | e | upper | title }}{{ 'a,b'.split(',') }}",
        "{{ self }}{{ cycler(1, 2).next() }}{{ lipsum is defined }}{{ joiner() }}",
    ],
)
def test_the_environment_is_that_of_transformers(tokenizer: Any, template: str) -> None:
    ours, theirs = both(tokenizer, template, CHATS["turns"])
    if " object at 0x" in theirs or " of None>" in theirs:
        assert ours.split(" ")[0].rpartition(".")[2][:6] == theirs.split(" ")[0].rpartition(".")[2][:6]
    else:
        assert ours == theirs


def test_a_template_of_several_is_chosen_as_transformers_does(tokenizer: Any) -> None:
    several = {"default": CHATML, "tool_use": HEADERS, "rag": "{{ messages[0].content }}"}
    for tools in (None, TOOLS, []):
        ours, theirs = both(tokenizer, several, CHATS["question"], tools=tools)
        assert ours == theirs
    del several["default"]
    tokenizer.chat_template = several
    found = ChatTemplate.of(tokenizer)
    assert found is not None
    assert "<|start_header_id|>" in found.render(CHATS["question"], TOOLS)
    with pytest.raises(TemplateError, match="named rag, tool_use, and none is the default"):
        found.render(CHATS["question"])


def test_no_template_is_none(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    assert ChatTemplate.of(tokenizer) is None


def test_the_templates_own_words_are_told() -> None:
    chat = ChatTemplate({"default": INSTRUCTIONS}, {"bos_token": "<s>", "eos_token": "</s>"})
    with pytest.raises(TemplateError, match="refuses the messages: Conversation roles must alternate"):
        chat.render([{"role": "assistant", "content": "a"}])


@pytest.mark.parametrize(
    ("template", "match"),
    [
        ("{% if %}", r"fails on these messages: TemplateSyntaxError in line 1"),
        ("{{ messages[0].nothing.more }}", r"UndefinedError"),
        ("{{ ''.__class__.__mro__ }}", r"SecurityError"),
        ("{{ 1 / 0 }}", r"ZeroDivisionError"),
    ],
)
def test_what_failed_in_a_template_is_told(template: str, match: str) -> None:
    with pytest.raises(TemplateError, match=match):
        ChatTemplate({"default": template}).render(CHATS["question"])


def test_contradictions_are_refused() -> None:
    chat = ChatTemplate({"default": CHATML})
    with pytest.raises(TemplateError, match=r"opens an answer .* or continues the last message"):
        chat.render(CHATS["answered"], continues_last=True)
    with pytest.raises(TemplateError, match="found no message"):
        chat.render([])
    with pytest.raises(TemplateError, match="'messages' among the template's arguments"):
        chat.render(CHATS["question"], arguments={"messages": []})
    with pytest.raises(TemplateError, match="no plain JSON"):
        chat.render([{"role": "user", "content": "\ud800"}])
    with pytest.raises(TemplateError, match="does not show the last message as it is"):
        ChatTemplate({"default": "{{ messages[0].content[:3] }}"}).render(
            CHATS["answered"], opens_answer=False, continues_last=True
        )


HOSTILE = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "recursive macros": "{% macro m(n) %}{{ m(n - 1) if n }}{{ m(n - 1) if n }}{% endmacro %}{{ m(60) }}",
    "a repeated string": "{{ ('a' * 10000000000)[0] }}",
    "a doubled string": "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(40) %}{% set n.s = n.s ~ n.s %}"
    "{% endfor %}",
    "a wide format": "{{ '%9999999999d' | format(1) }}",
    "a padded string": "{{ 'a'.ljust(9999999999) }}",
    "a power": "{{ 10 ** (10 ** 10) }}",
    "endless output": "{% for a in range(99999) %}{% for b in range(99999) %}{{ messages }}{% endfor %}{% endfor %}",
    "deep nesting": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "a long chain": "{{ 1" + " + 1" * 60_000 + " }}",
}


QUICK = ("nested loops", "a doubled string", "a repeated string", "deep nesting")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in QUICK else pytest.mark.slow) for kind in HOSTILE]
)
def test_a_hostile_template_fails_alone(kind: str) -> None:
    renderers = Renderers(1)
    started = os.times()
    with pytest.raises(TemplateError, match=r"too much memory|takes over|RecursionError|OverflowError|ended with code"):
        renderers.render(HOSTILE[kind], {"messages": CHATS["turns"]})
    assert renderers.render(CHATML, {"messages": CHATS["question"]}).startswith("<|im_start|>system")
    renderers.end()
    used = os.times()
    spent = used.children_user + used.children_system - started.children_user - started.children_system
    assert spent < 3 * SECONDS, "processor time, by which renderers are bounded"


def test_a_renderer_sees_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEN_SECRET_OF_THE_TEST", "1")
    renderers = Renderers(1)
    renderers.render("x", {})
    process = renderers._idle[0]._process
    assert b"KEN_SECRET" not in Path(f"/proc/{process.pid}/environ").read_bytes()
    renderers.end()


@pytest.mark.parametrize("half", ["\\ud800", "\\udfff", "a\\ud83d b"])
def test_half_a_surrogate_pair_is_no_text_and_costs_no_process(half: str) -> None:
    renderers = Renderers(1)
    renderers.render("x", {})
    process = renderers._idle[0]._process
    with pytest.raises(TemplateError, match="fails on these messages: UnicodeEncodeError"):
        renderers.render(f"{{{{ '{half}' }}}}", {})
    with pytest.raises(TemplateError, match="refuses the messages"):
        renderers.render(f"{{{{ raise_exception('{half}') }}}}", {})
    assert renderers.render("{{ 1 }}", {}) == "1"
    assert renderers._idle[0]._process is process
    renderers.end()


def test_many_threads_share_a_few_renderers() -> None:
    renderers = Renderers(2)

    def ask(number: int) -> str:
        return renderers.render("{{ number }}", {"number": number})

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, range(200))) == [str(number) for number in range(200)]
    assert len(renderers._idle) <= 2
    renderers.end()


def test_a_renderer_that_was_killed_is_replaced() -> None:
    renderers = Renderers(1)
    renderers.render("x", {})
    process = renderers._idle[0]._process
    process.kill()
    while process.poll() is None:
        time.sleep(0.01)
    assert renderers.render("{{ 1 }}", {}) == "1"
    renderers.end()


def test_large_chats_pass() -> None:
    chat = [{"role": "user", "content": "word " * 200}] * 2000
    tags = ChatTemplate({"default": THINKING}).render(chat)
    assert len(tags) > 2_000_000

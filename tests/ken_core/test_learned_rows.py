"""What a language model learns of each example: what it is to say, with a prompt as it will be asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from ken_core.checkpoint import open_base
from ken_core.errors import DataError
from ken_core.language_examples import Completion, Conversation, LanguageExample, Text, read_language_examples
from ken_core.learned_rows import LearnedRow, RowMaker
from ken_core.tokenization import Encoder
from serving.api.chat_messages import Message
from tests.chat_templates import CHATML, HEADERS, INSTRUCTIONS, TEMPLATES, THINKING, TOOLS, TURNS
from tests.tiny_language_models import write_chat_tokenizer, write_language_model

END = 2
TURNED = [
    {"role": "user", "content": "how far is the city?"},
    {"role": "assistant", "content": "very far"},
    {"role": "user", "content": "and the river?"},
    {"role": "assistant", "content": "near - on 1 street"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language_model(tmp_path_factory.mktemp("language") / "base")


def encoder(folder: Path, template: Any = CHATML) -> Encoder:
    write_chat_tokenizer(folder, template)
    (folder / "chat_template.jinja").unlink(missing_ok=template is None)
    if template is not None:
        write_chat_tokenizer(folder, template)
    base = open_base(str(folder))
    return Encoder(base, base.config, {})


def rows(
    made_by: Encoder, examples: Sequence[LanguageExample], longest: int = 500, end_ids: Sequence[int] = (END,)
) -> Sequence[LearnedRow]:
    return RowMaker(made_by, end_ids, longest)(examples).rows


def parts(made_by: Encoder, row: LearnedRow) -> tuple[str, list[str]]:
    """All of a row as text, and its learned runs."""
    runs: list[list[int]] = []
    for place, (token, learned) in enumerate(zip(row.ids, row.learned, strict=True)):
        if learned and not (place and row.learned[place - 1]):
            runs.append([])
        if learned:
            runs[-1].append(token)
    return made_by.text_of(row.ids), [made_by.text_of(run) for run in runs]


def test_a_whole_text_is_learned_with_its_end(folder: Path) -> None:
    made_by = encoder(folder)
    (row,) = rows(made_by, [Text("the quick red dog")])
    assert parts(made_by, row) == ("the quick red dog<|im_end|>", ["the quick red dog<|im_end|>"])
    assert row.targets == len(row) - 1


def test_a_long_text_becomes_rows_in_which_nothing_is_lost(folder: Path) -> None:
    made_by = encoder(folder)
    text = " ".join(["the quick red dog jumped over the slow man"] * 30)
    found = rows(made_by, [Text(text)], longest=40)
    assert len(found) > 3
    assert max(map(len, found)) == 40
    assert "".join(made_by.text_of(row.ids) for row in found) == text + "<|im_end|>"


def test_a_prompt_is_not_learned_and_its_completion_is(folder: Path) -> None:
    made_by = encoder(folder)
    (row,) = rows(made_by, [Completion("Q: how far? A:", " very far")])
    assert parts(made_by, row) == ("Q: how far? A: very far<|im_end|>", [" very far<|im_end|>"])


@pytest.mark.parametrize("prompt", ["the moun", "Answer: ", "a ", "", "1"])
def test_a_prompt_has_the_tokens_that_it_has_when_it_is_asked(folder: Path, prompt: str) -> None:
    """A token may stand across the border, such as a space with the word behind it."""
    made_by = encoder(folder)
    asked = made_by.prompt(prompt, special=True)
    (row,) = rows(made_by, [Completion(prompt, "tain is very far")])
    assert row.ids[: len(asked)] == asked
    assert row.learned == [False] * len(asked) + [True] * (len(row) - len(asked))
    assert made_by.text_of(row.ids) == f"{prompt}tain is very far<|im_end|>"


def test_the_end_is_learned_after_a_prompt_that_ends_so_too(folder: Path) -> None:
    made_by = encoder(folder)
    (row,) = rows(made_by, [Completion("how far?<|im_end|>", "a")])
    assert parts(made_by, row) == ("how far?<|im_end|>a<|im_end|>", ["a<|im_end|>"])


ANSWERS = {
    "ChatML, as SmolLM2": ["very far<|im_end|>\n", "near - on 1 street<|im_end|>\n"],
    "headers, as Llama 3": ["very far<|eot_id|>", "near - on 1 street<|eot_id|><|im_end|>"],
    "thinking, as Qwen 3": ["very far<|im_end|>\n", "near - on 1 street<|im_end|>\n"],
    "instructions, as Mistral": [" very far<|im_end|>", " near - on 1 street<|im_end|>"],
    "turns, as Gemma": ["very far<end_of_turn>\n", "near - on 1 street<end_of_turn>\n<|im_end|>"],
}


@pytest.mark.parametrize("name", ANSWERS)
def test_of_a_chat_the_assistants_part_is_learned(folder: Path, name: str) -> None:
    """The tokenizer ends texts with <|im_end|>, which is added where a template ends answers otherwise."""
    made_by = encoder(folder, TEMPLATES[name])
    (row,) = rows(made_by, [Conversation(TURNED)])
    whole, learned = parts(made_by, row)
    assert learned == ANSWERS[name]
    assert made_by.chat is not None
    rendered = made_by.chat.render(TURNED, opens_answer=False)
    assert whole in (rendered, rendered + "<|im_end|>")


@pytest.mark.parametrize("template", [CHATML, HEADERS, INSTRUCTIONS, TURNS])
def test_a_chat_is_learned_as_it_will_be_asked(folder: Path, template: str) -> None:
    made_by = encoder(folder, template)
    assert made_by.chat is not None
    (row,) = rows(made_by, [Conversation(TURNED[:2])])
    asked = made_by.prompt(made_by.chat.render(TURNED[:1]), special=False)
    assert row.ids[: len(asked)] == asked
    assert row.learned.index(True) == len(asked)


def test_what_comes_after_the_last_answer_is_left_out(folder: Path) -> None:
    made_by = encoder(folder)
    (row,) = rows(made_by, [Conversation(TURNED[:3])])
    assert parts(made_by, row)[1] == ["very far<|im_end|>\n"]
    assert "river" not in made_by.text_of(row.ids)


def test_tools_are_shown_to_the_template(folder: Path) -> None:
    made_by = encoder(folder, THINKING)
    (row,) = rows(made_by, [Conversation(TURNED[:2], [{"type": "function", "function": {"name": "look"}}])])
    whole, learned = parts(made_by, row)
    assert '"look"' in whole
    assert learned == ["very far<|im_end|>\n"]


def test_a_template_whose_prefixes_are_none_is_refused_by_name(folder: Path) -> None:
    made_by = encoder(folder, THINKING)
    thoughtful = [
        TURNED[0],
        {"role": "assistant", "content": "far", "reasoning_content": "long way"},
        *TURNED[2:],
    ]
    with pytest.raises(DataError, match=r"data, line 7: the base's chat template writes .* otherwise once the answer"):
        rows(made_by, [Conversation(thoughtful, where="data, line 7")])
    counting = encoder(folder, "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(DataError, match="otherwise once the answer"):
        rows(counting, [Conversation(TURNED)])


def test_a_chat_that_the_template_refuses_is_named(folder: Path) -> None:
    made_by = encoder(folder, INSTRUCTIONS)
    strange = [{"role": "system", "content": "a"}, *TURNED]
    with pytest.raises(DataError, match=r"data, line 7: .*refuses the messages: Conversation roles must alternate"):
        rows(made_by, [Conversation(strange, where="data, line 7")])


def test_a_base_without_a_template_learns_no_chats(folder: Path) -> None:
    made_by = encoder(folder, None)
    with pytest.raises(DataError, match="has no chat template; write the examples with prompt and completion"):
        rows(made_by, [Conversation(TURNED)])


def test_long_completions_are_cut_and_counted(folder: Path) -> None:
    made_by = encoder(folder)
    examples = [Completion("how far?", " very far" * 50), Completion("how far?", " far")]
    made = RowMaker(made_by, (END,), 30)(examples)
    assert (made.cut, made.divided) == (1, 0)
    assert [len(row) for row in made.rows] == [30, len(made_by.prompt("how far? far", True)) + 1]


def test_a_prompt_that_leaves_no_room_is_refused_by_name(folder: Path) -> None:
    made_by = encoder(folder)
    with pytest.raises(DataError, match=r"data, line 3: a row of 30 tokens has no room .* \(--max-length\)"):
        rows(made_by, [Completion("how far? " * 20, "far", where="data, line 3")], longest=30)
    with pytest.raises(DataError, match=r"data, line 4: found .* characters"):
        rows(made_by, [Text("x" * 5_000_000, where="data, line 4")])


def test_a_row_is_never_longer_than_the_model_takes(folder: Path) -> None:
    made_by = encoder(folder)
    assert max(map(len, rows(made_by, [Text("far " * 2000)], longest=100_000))) == made_by.max_length
    maker = RowMaker(made_by, (END,), 100_000)
    assert (maker.longest, maker.at_limit) == (made_by.max_length, True)
    assert maker([Text("far " * 2000), Text("far")]).divided == 1
    with pytest.raises(DataError, match="the model takes no longer ones, so leave this example out"):
        maker([Completion("how far? " * 2000, "far")])
    assert not RowMaker(made_by, (END,), 30).at_limit


CALL = {"id": "c1", "type": "function", "function": {"name": "track", "arguments": '{"parcel": 7}'}}
DESCRIBED = [{"type": "function", "function": {"name": "track", "parameters": {"type": "object"}}}]
CALLED: list[dict[str, Any]] = [
    {"role": "user", "content": "where is it?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "in the city"},
    {"role": "assistant", "content": "in the city"},
]


def read(tmp_path: Path, **line: Any) -> LanguageExample:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(line) + "\n")
    (example,) = read_language_examples(path)
    return example


def test_calls_of_tools_are_learned_as_the_server_shows_them(folder: Path, tmp_path: Path) -> None:
    """OpenAI's files have arguments as the JSON of an object, and no content beside calls."""
    made_by = encoder(folder, TOOLS)
    (row,) = rows(made_by, [read(tmp_path, messages=CALLED, tools=DESCRIBED)])
    assert made_by.chat is not None
    served = [message.plain() for message in TypeAdapter(list[Message]).validate_python(CALLED)]
    text = made_by.chat.render(served, DESCRIBED, opens_answer=False)
    assert '"arguments": {"parcel": 7}' in text
    learned = made_by.prompt(text, special=False)
    assert list(row.ids)[: len(learned)] == learned


def test_a_message_without_content_has_none_for_templates_that_need_one(folder: Path, tmp_path: Path) -> None:
    made_by = encoder(folder, CHATML)
    (row,) = rows(
        made_by, [read(tmp_path, messages=[*TURNED[:1], {"role": "assistant", "content": None}, *TURNED[2:]])]
    )
    assert "very far" not in parts(made_by, row)[0]


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ({"messages": TURNED, "tools": DESCRIBED}, r"line 1, tools: the base's chat template shows no tools"),
        (
            {"messages": CALLED[:2]},
            r"line 1, messages\.1\.tool_calls: the base's chat template shows no calls of tools",
        ),
        ({"messages": [TURNED[0], CALLED[2], TURNED[1]]}, r"line 1, messages\.1\.role: .* leaves out results of tools"),
    ],
)
def test_what_the_template_would_leave_out_is_refused(
    line: dict[str, Any], match: str, folder: Path, tmp_path: Path
) -> None:
    silent = "{% for m in messages if m.role != 'to' ~ 'ol' %}{{ m.role ~ ': ' ~ m.content ~ '\\n' }}{% endfor %}"
    with pytest.raises(DataError, match=match):
        rows(encoder(folder, silent), [read(tmp_path, **line)])

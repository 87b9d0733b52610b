"""What a language model learns of each example: what it is to say, with a prompt as it will be asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ken_core.checkpoint import open_base
from ken_core.errors import DataError
from ken_core.language_examples import Completion, Conversation, LanguageExample, Text
from ken_core.learned_rows import LearnedRow, RowMaker
from ken_core.tokenization import Encoder
from tests.chat_templates import CHATML, HEADERS, INSTRUCTIONS, TEMPLATES, THINKING, TURNS
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

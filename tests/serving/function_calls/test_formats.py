"""Families are known by what their chat templates say."""

from __future__ import annotations

import pytest

from serving.function_calls.formats import HERMES, LLAMA, PLAIN, Format, format_of
from tests.chat_templates import TEMPLATES, TOOLS


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("For each call return {'arguments': ..., 'name': ...} within <tool_call></tool_call> tags", HERMES),
        (TOOLS, HERMES),
        ('Respond in the format {"name": function name, "parameters": dictionary of argument name and value}.', LLAMA),
        ("<tool_call>\n<function=example>\n<parameter=a>", PLAIN),
        ("<tool_call>{name}\n<arg_key>", PLAIN),
        ("[AVAILABLE_TOOLS] ... [TOOL_CALLS]", PLAIN),
        *((template, PLAIN) for template in TEMPLATES.values()),
    ],
)
def test_a_family_is_known_by_its_template(template: str, expected: Format) -> None:
    assert format_of(template) is expected

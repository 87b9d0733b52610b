"""What a request may say that ends a text, with the bounds that every protocol has."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from serving.replica.continuing import LONGEST_STOP, MOST_STOPS


def _listed(plain: Any) -> Any:
    return [plain] if isinstance(plain, str) else plain


Stops = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]],
    BeforeValidator(_listed, json_schema_input_type=str | list[str]),
    Field(max_length=MOST_STOPS),
]
"""One text or a list of texts. A list after validation."""

StopIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=MOST_STOPS)]
"""Token ids of the task's own tokenizer."""

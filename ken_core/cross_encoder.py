"""The note of sentence-transformers beside a cross-encoder: which function makes scores of its logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def noted(folder: Path) -> dict[str, Any]:
    """The function noted in the file of version 6, under the config key where versions 4 and 5 kept it.

    Empty where there is no such file or it names no function; then config.json itself decides.
    """
    try:
        settings = json.loads((folder / "config_sentence_transformers.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    function = settings.get("activation_fn") if isinstance(settings, dict) else None
    return {"sentence_transformers": {"activation_fn": function}} if isinstance(function, str) else {}

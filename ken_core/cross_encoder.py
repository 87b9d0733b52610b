"""What sentence-transformers notes beside a cross-encoder: the function that makes scores of its logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def noted(folder: Path) -> dict[str, Any]:
    """The config key under which versions 4 and 5 kept the function, from the file in which version 6 keeps it.

    Empty where there is no such file or no function in it; then what config.json itself says holds.
    """
    try:
        settings = json.loads((folder / "config_sentence_transformers.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    function = settings.get("activation_fn") if isinstance(settings, dict) else None
    return {"sentence_transformers": {"activation_fn": function}} if isinstance(function, str) else {}

"""What is said of examples that were too long for a language model to read whole."""

from __future__ import annotations

from serving.terminal import counted


def lost_ends(cut: int, longest: int, at_limit: bool) -> str:
    """The warning about `cut` examples of more than `longest` tokens; `at_limit`: a model takes no more."""
    if at_limit:
        return (
            f"{counted(cut, 'example')} had more than {longest} tokens, which the model takes at most, and lost the end"
        )
    return f"{counted(cut, 'example')} had more than {longest} tokens and lost the end (--max-length)"

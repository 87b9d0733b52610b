"""The one guard around whatever other people's files make a library do.

Parsers, config classes, model classes and Rust tokenizers raise what they like when a file is odd. Inside `reading` all
of that becomes one of this package's own errors, which names the file and the reason.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from ken_core.errors import DeltaFormatError, KenError

_OF_THE_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EIO}
"""A full disk says nothing about a file."""
_LONGEST_REASON = 300


@contextmanager
def reading(what: str, error: type[KenError] = DeltaFormatError) -> Iterator[None]:
    """Turn every failure into an error of this package; those that are one already pass.

    Running out of memory or of stack counts as the file's fault, and so does a panic in Rust, which is no `Exception`.

    Args:
        what: is being read, for the message: "the delta's config".
        error: the type that is raised.
    """
    try:
        yield
    except KenError:
        raise
    except BaseException as found:
        if not (isinstance(found, Exception) or is_panic(found)) or _is_of_the_machine(found):
            raise
        raise error(f"{what} cannot be used: {reason(found)}") from found


def reason(error: BaseException) -> str:
    """The first line of what an exception says, else its type."""
    lines = str(error).strip().splitlines()
    if isinstance(error, MemoryError | RecursionError) or not lines:
        return type(error).__name__
    return lines[0][:_LONGEST_REASON]


def is_panic(error: BaseException) -> bool:
    """Whether Rust code gave up. Each extension has a class of its own for that, which none of them exports."""
    return type(error).__name__ == "PanicException" and not isinstance(error, Exception)


def is_from_rust(error: BaseException) -> bool:
    """Whether a tokenizer failed: it panicked, or raised what `tokenizers` raises, a bare `Exception`."""
    return is_panic(error) or type(error) is Exception


def _is_of_the_machine(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in _OF_THE_MACHINE

"""The guard around reading other people's files: whatever a library raises becomes an error of this package.

Parsers, config classes, model classes and Rust tokenizers raise exceptions of any type when a file is odd. Inside
`reading` each of them becomes an error that names the file and the reason.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from ken_core.errors import DeltaFormatError, KenError

_OF_THE_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EIO}
"""Error numbers that say something about the machine, such as a full disk, and nothing about the file."""
_LONGEST_REASON = 300


@contextmanager
def reading(what: str, error: type[KenError] = DeltaFormatError) -> Iterator[None]:
    """Turn every exception into an error of this package; exceptions that are one already pass unchanged.

    Running out of memory or of stack counts as the file's fault, and so does a panic in Rust, which is no `Exception`.

    Args:
        what: the thing that is read, for the message; for example "the delta's config".
        error: the type of error to raise.
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
    """The first line of an exception's message, or the name of its type where it has no message."""
    lines = str(error).strip().splitlines()
    if isinstance(error, MemoryError | RecursionError) or not lines:
        return type(error).__name__
    return lines[0][:_LONGEST_REASON]


def is_panic(error: BaseException) -> bool:
    """Whether Rust code panicked. Every extension module has an exception class of its own for panics, not exported."""
    return type(error).__name__ == "PanicException" and not isinstance(error, Exception)


def is_from_rust(error: BaseException) -> bool:
    """Whether a Rust tokenizer failed: it panicked, or raised a bare `Exception`, as `tokenizers` does."""
    return is_panic(error) or type(error) is Exception


def _is_of_the_machine(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in _OF_THE_MACHINE

"""The file of signatures that lies beside a delta: its name and ``.sig``, in it a JSON list of `Signature` records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import orjson
from pydantic import TypeAdapter, ValidationError

from ken_core.writing import new_file
from serving.errors import InvalidInputError
from serving.security.signatures import Signature

_SIGNATURES = TypeAdapter(tuple[Signature, ...])


def signature_file(delta: Path) -> Path:
    """Where a delta file's signatures lie."""
    return delta.with_name(f"{delta.name}.sig")


def read_signatures(delta: Path) -> tuple[Signature, ...]:
    """The signatures beside a delta file, unchecked; none where there is no such file.

    Raises:
        InvalidInputError: it cannot be read, or is no list of signatures.
    """
    path = signature_file(delta)
    try:
        return _SIGNATURES.validate_json(path.read_bytes())
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InvalidInputError(
            f"{path}: {where}: {first['msg']}; expected the JSON list that `ken sign` writes"
        ) from None


def write_signatures(delta: Path, signatures: Sequence[Signature]) -> None:
    """Put signatures beside a delta file, in place of those there; a reader sees the old ones or the new.

    Raises:
        OutputError: they cannot be written.
    """
    with new_file(signature_file(delta)) as partial:
        partial.write_bytes(orjson.dumps([s.record() for s in signatures], option=orjson.OPT_INDENT_2) + b"\n")

"""Commands on signatures of deltas: signing-key create, sign, verify."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
import typer

from serving.cli.output import say

if TYPE_CHECKING:
    from serving.security.signatures import TrustedKeys

TrustedOption = Annotated[
    list[str] | None,
    typer.Option(
        "--trusted-keys",
        help="public key, as name=base64 or base64, one of which must have signed the file; repeatable; "
        "default: the JSON list in KEN_TRUSTED_KEYS",
    ),
]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (sign, verify):
        app.command()(command)
    group = typer.Typer(help="Make keys that deltas are signed with.", no_args_is_help=True)
    group.command("create")(create)
    app.add_typer(group, name="signing-key")


def create(file: Annotated[Path, typer.Argument(help="new PEM file for the private key")]) -> None:
    """Make a key to sign deltas with, and print its public half.

    Example: ken signing-key create signing.pem
    """
    from serving.security.signatures import public_key_of
    from serving.security.signing_key import create_signing_key

    public = public_key_of(create_signing_key(file))
    typer.echo(public)
    say(f"wrote {file}: who has it can sign, so keep it from the servers; they are told the public key above:")
    say(f"KEN_TRUSTED_KEYS='[\"{file.stem}={public}\"]'")


def sign(
    file: Annotated[Path, typer.Argument(help="delta file")],
    key: Annotated[Path, typer.Option(help="PEM file of `ken signing-key create`")],
) -> None:
    """Vouch for a delta: write a signature to the file beside it, FILE.sig.

    Another key's signatures that lie there stay.

    Example: ken sign trec.ken --key signing.pem
    """
    from ken_core import deltafile
    from serving.security.signature_file import read_signatures, signature_file, write_signatures
    from serving.security.signatures import sign as signed
    from serving.security.signing_key import read_signing_key

    holder = read_signing_key(key)
    digest = deltafile.open_file(file).digest
    made = signed(holder, digest)
    others = [s for s in read_signatures(file) if s.key != made.key and s.is_of(digest)]
    write_signatures(file, [*others, made])
    say(f"wrote {signature_file(file)}: delta {digest}, signed by {made.key}")


def verify(
    file: Annotated[Path, typer.Argument(help="delta file")],
    trusted_keys: TrustedOption = None,
) -> None:
    """Tell who signed a delta; fails unless a trusted key did. Nothing of the file is decoded.

    Example: ken verify trec.ken --trusted-keys ops=kn4HZ9lAzYbiQyTd8Xkjea8B9XkWPgLnQ0jOoUuf+tI=
    """
    trusted = trusted_of(trusted_keys)
    if trusted is None:
        raise typer.BadParameter("found none, nor KEN_TRUSTED_KEYS", param_hint="--trusted-keys")
    typer.echo(check_file(file, trusted))


def trusted_of(given: list[str] | None) -> TrustedKeys | None:
    """The keys of the option, else of the environment as servers read it; None where neither is set."""
    from serving.security.signatures import TrustedKeys

    where, texts = "--trusted-keys", given
    if not texts:
        where, text = "KEN_TRUSTED_KEYS", os.environ.get("KEN_TRUSTED_KEYS")
        if text is None:
            return None
        try:
            texts = orjson.loads(text)
        except orjson.JSONDecodeError:
            texts = None
        if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
            raise typer.BadParameter(f"found {text[:80]!r}; expected a JSON list of public keys", param_hint=where)
    try:
        return TrustedKeys.read(texts)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=where) from None


def check_file(file: Path, trusted: TrustedKeys) -> str:
    """Which delta a file is, and which trusted key signed it, by what lies beside it.

    Raises:
        InvalidInputError: it cannot be read.
        UntrustedDeltaError: no trusted key signed it.
    """
    from serving.errors import InvalidInputError
    from serving.security.signature_file import read_signatures

    try:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InvalidInputError(f"{file} cannot be read: {error.strerror}") from None
    return f"delta {digest}, signed by {trusted.check(digest, read_signatures(file))}"

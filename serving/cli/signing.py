"""Commands on signatures of deltas: signing-key create, sign, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serving.cli.options import TrustedKeysOption
from serving.cli.trusted_keys import check_signed, trusted_keys_of
from serving.terminal import say


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
    trusted_keys: TrustedKeysOption = None,
) -> None:
    """Tell who signed a delta; fails unless a trusted key did. Nothing of the file is decoded.

    Example: ken verify trec.ken --trusted-keys ops=kn4HZ9lAzYbiQyTd8Xkjea8B9XkWPgLnQ0jOoUuf+tI=
    """
    trusted = trusted_keys_of(trusted_keys)
    if trusted is None:
        raise typer.BadParameter("found none, nor KEN_TRUSTED_KEYS", param_hint="--trusted-keys")
    typer.echo(check_signed(file, trusted))

"""Commands that sign deltas and check signatures: signing-key create, sign, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serving.cli.options import TrustedKeysOption
from serving.cli.panels import FILES
from serving.cli.trusted_keys import check_signed, trusted_keys_of
from serving.terminal import say


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (sign, verify):
        app.command(rich_help_panel=FILES)(command)
    group = typer.Typer(help="Make keys for signing deltas.", no_args_is_help=True)
    group.command("create")(create)
    app.add_typer(group, name="signing-key", rich_help_panel=FILES)


def create(file: Annotated[Path, typer.Argument(help="PEM file to write the private key to")]) -> None:
    """Make a key for signing deltas. Writes the private key to a file and prints the public key.

    Example: ken signing-key create signing.pem
    """
    from serving.security.signatures import public_key_of
    from serving.security.signing_key import create_signing_key

    if file.exists():
        raise typer.BadParameter(f"{file} exists already, and an overwritten key is lost; choose another name")
    public = public_key_of(create_signing_key(file))
    typer.echo(public)
    say(
        f"wrote {file}. Whoever has this file can sign deltas: keep it away from the servers, "
        "which need the public key:"
    )
    say(f"KEN_TRUSTED_KEYS='[\"{file.stem}={public}\"]'")


def sign(
    file: Annotated[Path, typer.Argument(help="delta file")],
    key: Annotated[Path, typer.Option(help="PEM file of the private key, made by `ken signing-key create`")],
) -> None:
    """Sign a delta: write a signature to FILE.sig, beside the delta file.

    Signatures of this delta by other keys in FILE.sig are kept.

    Example: ken sign trec.ken --key signing.pem
    """
    from ken_core import open_file
    from serving.security.signature_file import read_signatures, signature_file, write_signatures
    from serving.security.signatures import sign as signed
    from serving.security.signing_key import read_signing_key

    holder = read_signing_key(key)
    digest = open_file(file).digest
    made = signed(holder, digest)
    others = [s for s in read_signatures(file) if s.key != made.key and s.is_of(digest)]
    write_signatures(file, [*others, made])
    say(f"wrote {signature_file(file)}: delta {digest}, signed by {made.key}")


def verify(
    file: Annotated[Path, typer.Argument(help="delta file")],
    trusted_keys: TrustedKeysOption = None,
) -> None:
    """Print the trusted key that signed a delta, or fail if none did. Hashes the file and decodes none of it.

    Example: ken verify trec.ken --trusted-keys ops=kn4HZ9lAzYbiQyTd8Xkjea8B9XkWPgLnQ0jOoUuf+tI=
    """
    trusted = trusted_keys_of(trusted_keys)
    if trusted is None:
        raise typer.BadParameter(
            "found no trusted key, neither here nor in KEN_TRUSTED_KEYS; give at least one", param_hint="--trusted-keys"
        )
    typer.echo(check_signed(file, trusted))

"""Commands on the Hugging Face Hub: push and pull."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serving.cli.delta_facts import facts
from serving.cli.opening import open_store
from serving.cli.options import DataDir, JsonFlag, Namespace, Overwrite, RedisUrl, TrustedKeysOption
from serving.cli.outputs import check_output_file
from serving.cli.panels import FILES
from serving.cli.show_delta import lines_of, show
from serving.cli.trusted_keys import check_signed, trusted_keys_of
from serving.data_dir import default_data_dir
from serving.terminal import err, print_json, say, warn

if TYPE_CHECKING:
    from ken_core import DeltaFile

RepositoryName = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="model repository of the Hugging Face Hub")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (push, pull):
        app.command(rich_help_panel=FILES)(command)


def push(
    delta: Annotated[str, typer.Argument(help="delta file (.ken), or the name of a task in the store")],
    repository: RepositoryName,
    name: Annotated[
        str | None, typer.Option(help="file name in the repository; default the file's own, or the task's with .ken")
    ] = None,
    alias: Annotated[str, typer.Option(help="the task's version to push: an alias or a digest")] = "live",
    private: Annotated[
        bool, typer.Option("--private", help="make a new repository private, and refuse one that is public")
    ] = False,
    base_model: Annotated[
        str | None, typer.Option(help="the base's name on the Hub; default the name in the delta, if it is one")
    ] = None,
    license: Annotated[str | None, typer.Option(help="the model's license by the Hub's names, e.g. apache-2.0")] = None,
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    namespace: Namespace = "default",
    as_json: JsonFlag = False,
) -> None:
    """Put a delta into a repository of the Hugging Face Hub, with its signatures and a model card.

    The repository is made if there is none. The card tells the base, the method and the measured loss; of a card that
    is there already, only the delta's own section is replaced. The token is HF_TOKEN, or that of `hf auth login`.

    Example: ken push trec.ken me/minilm-deltas
    """
    from serving.hub import card
    from serving.hub.deltas import push as push_to
    from serving.hub.names import check_delta_file, hub_name
    from serving.hub.repository import Repository

    if base_model is not None and hub_name(base_model) is None:
        raise typer.BadParameter(f"found {base_model!r}, expected owner/name", param_hint="--base-model")
    with _opened(delta, alias, redis_url, data_dir, namespace) as file:
        file_name = check_delta_file(name or (file.path.name if _is_file(delta) else f"{delta}.ken"))
        found = facts(file)
        base = base_model or hub_name(file.manifest.base.name)
        if base is None:
            warn(
                f"the delta's base is {file.manifest.base.name!r}, which is no name on the Hub, so the card links to "
                "no base; give --base-model owner/name"
            )
        hub = Repository(repository, progress=err.is_terminal)
        hub.create(private=private)
        about = card.About(base, _relation(found), _kind(found), found["method"], license)
        section = card.section(file_name, repository, _told(found), base)
        commit = push_to(hub, file, file_name, section, about)
        if as_json:
            print_json({"repository": repository, "url": hub.url, "file": file_name, "commit": commit, **_named(found)})
            return
        say(f"pushed {file_name} ({file.size:,} bytes, digest {file.digest}) to {hub.url}, commit {commit}")


def pull(
    repository: RepositoryName,
    file: Annotated[
        str | None, typer.Argument(help="the delta's file name; may be left out where there is one delta")
    ] = None,
    out_file: Annotated[
        Path | None, typer.Option("--out", help="file to write; default the name that it has in the repository")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="branch, tag or commit to take it from; default the newest commit")
    ] = None,
    trusted_keys: TrustedKeysOption = None,
    overwrite: Overwrite = False,
    as_json: JsonFlag = False,
) -> None:
    """Get a delta from a repository of the Hugging Face Hub, with its signatures.

    What arrives is checked as a delta file before it is put in its place; with trusted keys, one of them must have
    signed it. The commit that it came from is told, to be given as --revision the next time.

    Example: ken pull me/minilm-deltas trec.ken
    """
    from serving.hub.deltas import pulled
    from serving.hub.repository import Repository
    from serving.security.signature_file import signature_file

    if wanted := out_file or (file and Path(file)):
        _check_outputs(wanted, overwrite)
    trusted = trusted_keys_of(trusted_keys)
    beside = Path.cwd() if out_file is None else out_file.resolve().parent
    hub = Repository(repository, progress=err.is_terminal)
    with pulled(hub, file, revision, beside) as got:
        signed = check_signed(got.delta.path, trusted) if trusted else None
        target = out_file or Path(got.delta.path.name)
        _check_outputs(target, overwrite)
        signatures, beside_target = signature_file(got.delta.path), signature_file(target)
        found = facts(got.delta) | {"file": str(target)}
        # the signatures first: a delta never lies beside those of another one
        beside_target.unlink(missing_ok=True)
        got.delta.path.replace(target)
        if signatures.is_file():
            signatures.replace(beside_target)
    if as_json:
        print_json({"repository": repository, "commit": got.commit, **found})
        return
    show(found, as_json=False)
    say(f"pulled {target} from {hub.url}, commit {got.commit}" + (f"; {signed}" if signed else ""))


def _check_outputs(delta: Path, overwrite: bool) -> None:
    """Refuse to replace a delta file, or the signatures that lie where its own would, unless that was asked for."""
    from serving.security.signature_file import signature_file

    for path in (delta, signature_file(delta)):
        check_output_file(path, "--out", overwrite)


def _is_file(delta: str) -> bool:
    return delta.endswith(".ken") or Path(delta).is_file()


@contextmanager
def _opened(
    delta: str, alias: str, redis_url: str | None, data_dir: Path | None, namespace: str
) -> Iterator[DeltaFile]:
    """The delta file, or a task's version from the store with its signatures beside it."""
    from ken_core import open_file

    if _is_file(delta):
        yield open_file(Path(delta))
        return
    from serving.errors import StoreError
    from serving.routing.versions import version_of
    from serving.security.signature_file import write_signatures
    from serving.store.embedded import store_folder

    if not (redis_url or store_folder(data_dir or default_data_dir()).is_dir()):
        raise StoreError(
            f"{delta} is no delta file (.ken), and there is no store to take a task {delta!r} from; name one with "
            "--redis-url (KEN_REDIS_URL) or --data-dir (KEN_DATA_DIR)"
        )
    with open_store(redis_url, data_dir, namespace) as store, TemporaryDirectory(prefix="ken-push-") as folder:
        task = store.tasks.known(delta)
        digest = version_of(task, alias)
        path = Path(folder) / f"{delta}.ken"
        store.deltas.fetch(digest, path)
        if signatures := store.signatures.of(digest):
            write_signatures(path, signatures)
        yield open_file(path)


def _told(found: dict[str, Any]) -> dict[str, str]:
    """The rows of the card's table."""
    lines = lines_of(found)
    parts, loss = lines.pop("", ""), [lines.pop(key) for key in ("calibrated", "distilled") if key in lines]
    not_measured = "not measured: ken calibrate measures it, and promises it for other text"
    return {
        **lines,
        "base": f"{found['base']}, fingerprint {found['fingerprint']}",
        "parts": parts,
        "kind": _kind(found),
        "measured loss": "; ".join(loss) or not_measured,
    }


def _kind(found: dict[str, Any]) -> str:
    from serving.routing.kinds import own_kind

    return own_kind(found["kind"], found["embedding"] is not None)


def _relation(found: dict[str, Any]) -> str:
    """How the model comes from its base, by the names that the Hub knows."""
    if found["merged"]:
        return "merge"
    return "adapter" if found["adapter"] else "finetune"


def _named(found: dict[str, Any]) -> dict[str, Any]:
    return {key: found[key] for key in ("digest", "bytes")}

"""The command line ``ken``. Each command is a few lines around the part of the library that it shows."""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated

import typer

from serving.cli import (
    adding,
    adopt_store,
    calibrating,
    differing,
    evaluating,
    generating,
    hub,
    keys,
    merging,
    predicting,
    routes,
    server,
    signing,
    tasks,
    top,
    viz,
    weights,
)
from serving.cli.distribution import contradiction, installed, missing_module, version_line
from serving.data_dir import default_data_dir
from serving.terminal import error_line

app = typer.Typer(
    name="ken",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
weights.add_to(app)
adding.add_to(app)
merging.add_to(app)
calibrating.add_to(app)
viz.add_to(app)
tasks.add_to(app)
routes.add_to(app)
keys.add_to(app)
signing.add_to(app)
hub.add_to(app)
adopt_store.add_to(app)
generating.add_to(app)
evaluating.add_to(app)
differing.add_to(app)
predicting.add_to(app)
top.add_to(app)
server.add_to(app)

_INTERRUPTED = 130
_OWN_PACKAGES = ("ken_core", "serving")


def _print_version(asked: bool) -> None:
    if not asked:
        return
    found = installed()
    typer.echo(version_line(found))
    if trouble := contradiction(found):
        error_line(trouble)
        raise typer.Exit(1)
    raise typer.Exit


@app.callback()
def ken(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="print what is installed, and exit"),
    ] = False,
) -> None:
    """Serve hundreds of full fine-tunes of one transformer from one copy of its weights."""


def main(arguments: list[str] | None = None) -> None:
    """Run one command. Returns, or raises `SystemExit`.

    Exit codes: 0 the command did its work; 1 it failed, with the reason on stderr; 2 its arguments are wrong;
    130 it was interrupted by Ctrl-C; 143 it was ended by SIGTERM.
    """
    if arguments is None:
        # SIGTERM raises SystemExit, so that everything a command started is stopped
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # numba reads NUMBA_CACHE_DIR at import; without it, compiled kernels would be written beside the sources
    data_dir = os.environ.get("KEN_DATA_DIR") or str(default_data_dir())
    os.environ.setdefault("NUMBA_CACHE_DIR", os.path.join(os.path.expanduser(data_dir), "numba"))
    try:
        app(arguments)
    except KeyboardInterrupt:
        error_line("interrupted")
        sys.exit(_INTERRUPTED)
    except SystemExit as ended:
        if ended.code == _INTERRUPTED:  # typer turns Ctrl-C into this exit code and prints nothing
            error_line("interrupted")
        raise
    except OSError as error:  # a file in the way, no permission, no space
        error_line(str(error))
        sys.exit(1)
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module in ("", *_OWN_PACKAGES):
            raise
        error_line(missing_module(_named(sys.argv[1:] if arguments is None else arguments), module, installed()))
        sys.exit(1)
    except Exception as error:
        if not any(base.__name__ == "KenError" for base in type(error).__mro__):
            raise
        error_line(str(error))
        sys.exit(1)


def _named(arguments: list[str]) -> str:
    """The command that arguments name, as a person types it."""
    return " ".join(["ken", *(argument for argument in arguments[:1] if not argument.startswith("-"))])


if __name__ == "__main__":
    main()

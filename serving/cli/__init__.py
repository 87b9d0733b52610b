"""The command line ``ken``. Each command is a few lines around the part of the library that it shows."""

from __future__ import annotations

import os
import signal
import sys

import typer

from serving.cli import (
    adding,
    adopt_store,
    calibrating,
    differing,
    evaluating,
    generating,
    keys,
    merging,
    predicting,
    routes,
    server,
    signing,
    tasks,
    viz,
    weights,
)
from serving.config import default_data_dir
from serving.terminal import error_line

app = typer.Typer(
    name="ken",
    help="Serve hundreds of full fine-tunes of one transformer from one copy of its weights.",
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
adopt_store.add_to(app)
generating.add_to(app)
evaluating.add_to(app)
differing.add_to(app)
predicting.add_to(app)
server.add_to(app)


_INTERRUPTED = 130


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
    except Exception as error:
        if not any(base.__name__ == "KenError" for base in type(error).__mro__):
            raise
        error_line(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()

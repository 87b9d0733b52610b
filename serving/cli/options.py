"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

BaseOption = Annotated[str, typer.Option("--base", help="folder or hub name of the pretrained checkpoint")]

# Which server or store a command works on

Url = Annotated[
    str | None,
    typer.Option(
        envvar="KEN_URL",
        help="work through the server at this URL, with the key in KEN_API_KEY, and not on the store itself",
    ),
]
RedisUrl = Annotated[
    str | None, typer.Option(envvar="KEN_REDIS_URL", help="URL of the store; without one, the embedded store is used")
]
DataDir = Annotated[
    Path | None, typer.Option(envvar="KEN_DATA_DIR", help="folder of the embedded store and of the caches")
]
Namespace = Annotated[str, typer.Option(envvar="KEN_NAMESPACE", help="prefix of all keys in the store")]

# What a command works on, and how it reports

TaskName = Annotated[str, typer.Argument(help="name of the task")]
Alias = Annotated[str, typer.Option(help="alias of the task to change")]
AllowOtherLabels = Annotated[
    bool,
    typer.Option("--allow-other-labels", help="accept a version whose labels or kind differ from the live version's"),
]
Wait = Annotated[float | None, typer.Option(help="seconds to wait until every replica has seen the change")]
TrustedKeysOption = Annotated[
    list[str] | None,
    typer.Option(
        "--trusted-keys",
        help="trusted public key, as base64 or as name=base64; repeatable. One of them must have signed the file. "
        "Default: the JSON list in KEN_TRUSTED_KEYS",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace files that exist already")]
JsonFlag = Annotated[bool, typer.Option("--json", help="print the result as JSON")]

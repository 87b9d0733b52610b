"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

BaseOption = Annotated[str, typer.Option("--base", help="folder or hub name of the pretrained checkpoint")]

# Which server or store a command works on

Url = Annotated[
    str | None,
    typer.Option(envvar="KEN_URL", help="a server to ask, with KEN_API_KEY, in place of the store"),
]
RedisUrl = Annotated[str | None, typer.Option(envvar="KEN_REDIS_URL", help="the store; none: the embedded one")]
DataDir = Annotated[Path | None, typer.Option(envvar="KEN_DATA_DIR", help="folder of the embedded store and caches")]
Namespace = Annotated[str, typer.Option(envvar="KEN_NAMESPACE", help="prefix of all keys in the store")]

# What a command does, and how it tells

TaskName = Annotated[str, typer.Argument(help="the task's name")]
Alias = Annotated[str, typer.Option(help="which alias of the task")]
AllowOtherLabels = Annotated[
    bool,
    typer.Option("--allow-other-labels", help="also where answers would have other labels, or be of another kind"),
]
Wait = Annotated[float | None, typer.Option(help="seconds to wait until every replica has seen the change")]
TrustedKeysOption = Annotated[
    list[str] | None,
    typer.Option(
        "--trusted-keys",
        help="public key, as name=base64 or base64, one of which must have signed the file; repeatable; "
        "default: the JSON list in KEN_TRUSTED_KEYS",
    ),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="print facts as JSON")]

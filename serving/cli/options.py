"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

BaseOption = Annotated[str, typer.Option("--base", help="folder or hub name of the pretrained checkpoint")]

# What a delta is made of

OnlyOption = Annotated[
    str | None, typer.Option(help="preset of the tensors to select from: all, attention or no-embeddings")
]
IncludeOption = Annotated[list[str] | None, typer.Option(help="glob of tensor names to select from; repeatable")]
ExcludeOption = Annotated[list[str] | None, typer.Option(help="glob of tensor names to leave out; repeatable")]
CastOption = Annotated[bool, typer.Option("--cast", help="allow rounding the fine-tune to the base's dtype")]
IgnoreConfigOption = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore-config", help="config key to take from the base, where the fine-tune's value differs; repeatable"
    ),
]
OutsideOption = Annotated[
    str, typer.Option(help="tensors not selected from: reset (to the base's values) or keep (in full)")
]

# Which server or store a command works on

Url = Annotated[
    str | None,
    typer.Option(
        envvar="KEN_URL",
        help="work through the server at this URL, with the key in KEN_API_KEY, and not on the store itself",
    ),
]
ServerUrl = Annotated[
    str, typer.Option("--url", envvar="KEN_URL", help="URL of the server; the key is read from KEN_API_KEY")
]
LOCAL_SERVER = "http://127.0.0.1:8000"
"""Where `ken serve` listens if it is not told otherwise."""
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

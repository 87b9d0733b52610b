"""Loading tokenizers, comparing a fine-tune's with its base's, and the tokenizer files that a delta carries.

Comparing files would say little: a vocabulary may lie in ``tokenizer.json``, ``vocab.txt`` or a sentencepiece model,
and two files that differ may give the same tokens. So the tokenizers that AutoTokenizer loads from the two folders are
compared.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from ken_core.checkpoint import TOKENIZER_FILES, Checkpoint
from ken_core.errors import CheckpointError
from ken_core.foreign import reading

_PATTERNS = (
    "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model",
    "*.tiktoken", "tekken.json", "bpe.codes", "chat_template*", "additional_chat_templates/*.jinja",
)  # fmt: skip
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_UNREAD = "only the package sentencepiece reads its model; install that (and protobuf), or save a tokenizer.json"
LONGEST_WORD = 256
"""The most characters of a word that WordPiece may look up. Its cost grows with the cube of that number; tokenizers in
use have 100."""
_UNLIMITED = 1 << 40
"""Transformers writes 1e30 where a tokenizer names no length."""


@dataclass(frozen=True)
class TokenizerFacts:
    """Everything in a loaded tokenizer that answers depend on.

    Attributes:
        backend: the JSON of `tokenizers` (vocabulary, added tokens, normalisation, template), except truncation and
            padding, which `Encoder` sets itself.
        settings: what transformers keeps beside the JSON, under the keys of ``tokenizer_config.json``.
    """

    backend: Mapping[str, Any]
    settings: Mapping[str, Any]

    @property
    def files(self) -> dict[str, bytes]:
        """The tokenizer as files; AutoTokenizer needs no others to load it."""
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **self.settings}
        return {"tokenizer.json": _json(self.backend), "tokenizer_config.json": _json(config)}


def carried(base: Checkpoint, tuned: Checkpoint) -> dict[str, bytes]:
    """The files that turn the base's tokenizer into the fine-tune's; none where the two are the same.

    A fine-tune's folder without any tokenizer file uses the base's tokenizer.

    Raises:
        CheckpointError: the fine-tune's tokenizer cannot be loaded, or a delta cannot carry it unchanged.
    """
    if not any(_files_in(tuned.folder)):
        return {}
    try:
        theirs = facts(load(tuned.folder, tuned.config))
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; save it there with save_pretrained, or remove its files to use the base's tokenizer"
        ) from error
    ours = facts(load(base.folder, base.config)) if any(_files_in(base.folder)) else None
    if theirs == ours:
        return {}
    whole = theirs.files
    settings = {name: data for name, data in whole.items() if name != "tokenizer.json"}
    smallest_first = [settings, whole] if ours is not None and theirs.backend == ours.backend else [whole]
    for files in smallest_first:
        if facts(load_carried(base, files)) == theirs:
            return files
    raise CheckpointError(
        f"the tokenizer of {tuned.folder} is another one after it was written to tokenizer.json and read again, so a "
        "delta cannot carry it; save it there as a plain fast tokenizer (PreTrainedTokenizerFast), or use the base's"
    )


def facts(tokenizer: PreTrainedTokenizerBase) -> TokenizerFacts:
    """Everything in a loaded fast tokenizer that answers depend on."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # null where there is none, so that the class does not put in its own
    special = {**dict.fromkeys(_SPECIAL), **_named(tokenizer)}
    others = sorted(set(tokenizer.all_special_tokens) - set(special.values()))
    settings = {
        **special,
        **({"extra_special_tokens": others} if others else {}),
        **({"model_max_length": limit} if (limit := tokenizer.model_max_length) < _UNLIMITED else {}),
        **({"split_special_tokens": True} if tokenizer.split_special_tokens else {}),
        **({"clean_up_tokenization_spaces": True} if tokenizer.clean_up_tokenization_spaces else {}),
        **({} if tokenizer.chat_template is None else {"chat_template": _written(tokenizer.chat_template)}),
        "model_input_names": list(tokenizer.model_input_names),
        "padding_side": tokenizer.padding_side,
        "truncation_side": tokenizer.truncation_side,
    }
    return TokenizerFacts({**backend, "truncation": None, "padding": None}, settings)


def _named(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Special tokens by the names that chat templates know them under; a model's own, such as `image_token`, too."""
    return {name: token for name, token in tokenizer.special_tokens_map.items() if name.endswith("_token")}


def _written(templates: str | Mapping[str, str]) -> str | list[dict[str, str]]:
    """Chat templates as tokenizer_config.json has them: one, or a list of them with their names."""
    if isinstance(templates, str):
        return templates
    return [{"name": name, "template": text} for name, text in sorted(templates.items())]


def load(folder: Path, config: PretrainedConfig) -> PreTrainedTokenizerBase:
    """A folder's tokenizer, as AutoTokenizer loads it.

    Args:
        config: the model's config, used where the folder (for example an adapter's) has none of its own.

    Raises:
        CheckpointError: there is no tokenizer, or it has no fast form.
    """
    return _load(folder, config, str(folder))


def load_carried(base: Checkpoint, files: Mapping[str, bytes]) -> PreTrainedTokenizerBase:
    """The tokenizer that a delta carries; files that the delta does not bring are the base's.

    Raises:
        CheckpointError: as for `load`.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps({"model_type": base.config.model_type}))
        for file, data in completed(base, files).items():
            (folder / file).write_bytes(data)
        return _load(folder, base.config, f"the delta for {base.folder.name}")


def _load(folder: Path, config: PretrainedConfig, whose: str) -> PreTrainedTokenizerBase:
    told = {} if (folder / "config.json").is_file() else {"config": config}
    with reading(f"the tokenizer of {whose} (tokenizer.json, vocab.txt or the like)", CheckpointError):
        _refuse_own_code(folder, whose)
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **told)
        except Exception as error:
            if any(folder.glob("*.model")) and find_spec("sentencepiece") is None:
                raise CheckpointError(f"the tokenizer of {whose} cannot be used: {_UNREAD}") from error
            raise
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"{whose} has a {type(tokenizer).__name__}, a tokenizer without a fast form (tokenizer.json), which is not "
            "served"
        )
    letters = getattr(tokenizer.backend_tokenizer.model, "max_input_chars_per_word", 0)
    if letters > LONGEST_WORD:
        raise CheckpointError(
            f"the tokenizer of {whose} looks up words of {letters} characters, which takes too long; expected at most "
            f"{LONGEST_WORD} (max_input_chars_per_word in tokenizer.json, by default 100)"
        )
    if tokenizer.backend_tokenizer.get_vocab_size() <= len(tokenizer.all_special_tokens):
        raise CheckpointError(f"{whose} has no tokenizer, or files of one without its vocabulary")
    return tokenizer


def _refuse_own_code(folder: Path, whose: str) -> None:
    path = folder / "tokenizer_config.json"
    told = json.loads(path.read_bytes()) if path.is_file() else {}
    if told.get("auto_map"):
        raise CheckpointError(f"the tokenizer of {whose} wants its own code run (auto_map); that is never done")


def completed(base: Checkpoint, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The tokenizer files of a delta that brings some; the others are taken from the base."""
    if "tokenizer.json" not in files:
        return {**facts(load(base.folder, base.config)).files, **files}
    known = {name: files.get(name) or base.tokenizer_file(name) for name in TOKENIZER_FILES}
    return {name: data for name, data in known.items() if data is not None}


def copy_files(folder: Path, to: Path) -> None:
    """Copy all files of a folder's tokenizer as they are."""
    for path in _files_in(folder):
        copy = to / path.relative_to(folder)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)


def _files_in(folder: Path) -> list[Path]:
    return sorted({path for pattern in _PATTERNS for path in folder.glob(pattern) if path.is_file()})


def _json(plain: Mapping[str, Any]) -> bytes:
    return json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode()

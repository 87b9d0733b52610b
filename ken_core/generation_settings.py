"""How a task generates where a request says nothing: what its generation_config.json says, checked.

Transformers has settings that change texts in ways that are not served (beams, suppressed tokens, ...). A task that has
one of them would answer otherwise here than its folder does, so it is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from transformers import GenerationConfig

from ken_core import foreign_json
from ken_core.checkpoint import Checkpoint
from ken_core.errors import CheckpointError, DeltaFormatError
from ken_core.foreign import reading

FILE = "generation_config.json"
_HARMLESS = frozenset(
    {
        # limits, which are the request's
        "max_length", "max_new_tokens", "max_time", "num_return_sequences",
        # tokens around a text, which the tokenizer and the chat template put there
        "bos_token_id", "pad_token_id", "decoder_start_token_id",
        # how Transformers computes the same tokens
        "use_cache", "cache_implementation", "cache_config", "max_cache_len", "low_memory", "compile_config",
        "disable_compile", "prefill_chunk_size", "continuous_batching_config", "is_assistant",
        "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
        "assistant_early_exit", "assistant_lookbehind", "target_lookbehind", "prompt_lookup_num_tokens",
        "max_matching_ngram_size", "speculation_type", "use_mtp", "remove_invalid_values", "renormalize_logits",
        # what Transformers returns beside the tokens
        "output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
        # for beams alone
        "early_stopping", "length_penalty",
        # bookkeeping
        "transformers_version", "_from_model_config", "_commit_hash",
    }
)  # fmt: skip
_NEUTRAL: Mapping[str, Any] = {
    "num_beams": 1, "num_beam_groups": 1, "diversity_penalty": 0, "min_length": 0, "min_new_tokens": 0,
    "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1, "typical_p": 1,
    "epsilon_cutoff": 0, "eta_cutoff": 0, "guidance_scale": 1, "penalty_alpha": 0,
}  # fmt: skip
"""Values with which a setting changes nothing, beside null, false and nothing in a list."""
_LONGEST_SHOWN = 100


class _Honoured(BaseModel):
    """The settings that are served, under Transformers' names."""

    model_config = ConfigDict(strict=True, extra="ignore")

    eos_token_id: Annotated[int, Field(ge=0)] | Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=64)] = []
    do_sample: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=1 << 31)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = None


@dataclass(frozen=True)
class GenerationSettings:
    """How a task generates where a request says nothing.

    Attributes:
        end_ids: tokens that end a text.
        samples: whether texts are sampled; else the likeliest token is always taken.
        temperature, top_k, top_p, min_p, repetition_penalty: None: not set.
    """

    end_ids: tuple[int, ...] = ()
    samples: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    @classmethod
    def of(cls, plain: Mapping[str, Any], tokens: int) -> GenerationSettings:
        """The settings in a generation_config.json of unknown origin.

        Args:
            tokens: of the model's vocabulary.

        Raises:
            DeltaFormatError: a setting has an impossible value, or changes texts in a way that is not served.
        """
        present = {key: value for key, value in plain.items() if value is not None}
        for key in sorted(present.keys() - _Honoured.model_fields.keys() - _HARMLESS):
            _refuse_unless_neutral(key, present[key])
        try:
            found = _Honoured.model_validate(present)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = str(first["loc"][0])
            raise DeltaFormatError(
                f"the task's {FILE} has {key} {_shown(present[key])}: {first['msg'].lower()}; correct it, and extract "
                "the task again"
            ) from None
        ends = (found.eos_token_id,) if isinstance(found.eos_token_id, int) else tuple(found.eos_token_id)
        if strange := [end for end in ends if end >= tokens]:
            raise DeltaFormatError(
                f"the task's {FILE} ends texts at token {strange[0]} (eos_token_id), but its model has {tokens} tokens"
            )
        others = found.model_dump(exclude={"eos_token_id", "do_sample"})
        return cls(end_ids=tuple(dict.fromkeys(ends)), samples=bool(found.do_sample), **others)


def settings_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The settings with which Transformers generates with a checkpoint, as plain JSON without what is not set.

    Where the folder has no generation_config.json, Transformers takes them from config.json. Settings that this
    Transformers does not know are left out: it ignores them too.

    Raises:
        CheckpointError: the file cannot be read.
    """
    own = getattr(checkpoint.model, "generation_config", None)
    if own is not None and not own._from_model_config:
        return _plain(own, checkpoint.folder)
    in_folder = settings_in(checkpoint.folder)
    return _plain(_of_config(checkpoint), checkpoint.folder) if in_folder is None else in_folder


def settings_in(folder: Path) -> dict[str, Any] | None:
    """The settings in a folder's own generation_config.json, as `settings_of`; None where it has none."""
    if not (folder / FILE).is_file():
        return None
    with reading(f"{FILE} of {folder}", CheckpointError):
        return _plain(GenerationConfig.from_pretrained(folder), folder)


def _of_config(checkpoint: Checkpoint) -> GenerationConfig:
    """The settings that Transformers makes of a config."""
    folder = checkpoint.folder
    with reading(f"config.json of {folder}", CheckpointError):
        if (folder / "config.json").is_file():
            return GenerationConfig.from_pretrained(folder, config_file_name="config.json", _from_model_config=True)
        return GenerationConfig.from_model_config(checkpoint.config)


def _plain(found: GenerationConfig, folder: Path) -> dict[str, Any]:
    known = vars(GenerationConfig()).keys() - {"transformers_version", "_from_model_config", "_commit_hash"}
    with reading(f"{FILE} of {folder}", CheckpointError):
        plain = foreign_json.parse(found.to_json_string(use_diff=True))
    return {key: plain[key] for key in sorted(plain.keys() & known) if not _is_unset(key, plain[key])}


def _is_unset(key: str, value: Any) -> bool:
    return value is None or (key.startswith("output_") and value is False)


def _refuse_unless_neutral(key: str, value: Any) -> None:
    nothing = value is False or value in ([], {}, "")
    if not nothing and not (key in _NEUTRAL and not isinstance(value, bool) and value == _NEUTRAL[key]):
        raise DeltaFormatError(
            f"the task's {FILE} has {key} {_shown(value)}, which changes its texts and is not served; remove it there "
            "if the task does without, and extract it again"
        )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."

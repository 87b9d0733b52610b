"""A fine-tune's config: which keys may differ from the base's, and how a delta carries the config.

BERT weights trained with 4 heads and gelu load silently into a backbone of 8 heads and relu and give other
answers. So every key must equal the base's, except keys that no backbone reads when it answers: the keys listed here,
and those that neither the config's class nor the code of the backbone knows (`ken_core.config_readers`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from ken_core.config_readers import is_read
from ken_core.errors import ConfigMismatchError, DeltaFormatError
from ken_core.foreign import reading
from ken_core.foreign_json import is_deeper

_BOOKKEEPING = {"architectures", "_name_or_path", "transformers_version", "dtype", "torch_dtype", "auto_map"}
_HEAD = {
    "num_labels", "id2label", "label2id", "problem_type", "finetuning_task", "task_specific_params",
    "classifier_dropout", "classifier_activation", "summary_type", "summary_use_proj", "summary_activation",
    "summary_proj_to_labels", "summary_first_dropout", "seq_classif_dropout", "qa_dropout", "pooler_dropout",
}  # fmt: skip
_TRAINING = {
    "attention_probs_dropout_prob", "hidden_dropout_prob", "attention_dropout", "hidden_dropout", "dropout",
    "attn_pdrop", "embd_pdrop", "resid_pdrop", "initializer_range", "gradient_checkpointing",
    "embedding_dropout", "mlp_dropout", "sinusoidal_pos_embds",
}  # fmt: skip
_GENERATION = {"bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "use_cache"}
_OUTPUT = {"output_hidden_states", "output_attentions", "return_dict", "chunk_size_feed_forward"}

_FORMERLY: dict[str, Any] = {"position_embedding_type": "absolute", "pruned_heads": {}}
"""Keys with which earlier versions of transformers computed, and the value that an absent key stands for today."""

_FOREIGN = {
    "auto_map", "trust_remote_code", "_name_or_path", "name_or_path", "transformers_version",
    "_attn_implementation", "attn_implementation", "_experts_implementation", "experts_implementation",
    "quantization_config", "num_labels",
}  # fmt: skip
"""Keys that name code, kernels or places, or that make a config allocate memory (labels come as `id2label`)."""

_DEEPEST = 16
_LONGEST_SHOWN = 200
_LARGEST = 1 << 20
"""The largest number a config may hold that its base does not hold too. No config in use has a larger count, and some
config classes build a list as long as a count."""
MOST_LABELS = 1 << 17
_ANSWERING = {
    "return_dict": True, "output_hidden_states": False, "output_attentions": False, "output_router_logits": False,
    "torchscript": False, "problem_type": None,
}  # fmt: skip
"""Keys that change what a forward pass returns but not what it computes, with the values that pipelines need."""

_ANYWHERE = _BOOKKEEPING | _HEAD | _TRAINING | _GENERATION | _OUTPUT
_OF_ARCHITECTURE: dict[str, set[str]] = {
    # Decoders read the padding token only to find the last token a classification head looks at.
    model: {"pad_token_id"}
    for model in ("bloom", "gpt2", "llama", "qwen2", "gemma", "mistral", "gpt_neox")
}


def differences(base: PretrainedConfig, tuned: PretrainedConfig, resized: bool) -> dict[str, tuple[Any, Any]]:
    """Keys that a backbone reads and whose values differ, as (base's value, fine-tune's value); None means absent.

    Args:
        resized: whether the fine-tune brings an embedding of its own size, so that `vocab_size` may differ.
    """
    allowed = _ANYWHERE | _OF_ARCHITECTURE.get(base.model_type, set()) | ({"vocab_size"} if resized else set())
    ours, theirs = base.to_dict(), tuned.to_dict()
    found = {}
    for key in sorted((ours.keys() | theirs.keys()) - allowed):
        absent = _FORMERLY.get(key)
        if _plain(ours.get(key, absent)) != _plain(theirs.get(key, absent)) and (
            key in _FORMERLY or is_read(key, type(base))
        ):
            found[key] = (ours.get(key), theirs.get(key))
    return found


def check_config(base: PretrainedConfig, tuned: PretrainedConfig, *, resized: bool = False) -> None:
    """Refuse a fine-tune whose backbone would compute something else than the base's.

    Raises:
        ConfigMismatchError: keys that the backbone reads differ; the message names each with both values.
    """
    _check_model_type(base, tuned.model_type)
    if found := differences(base, tuned, resized):
        listed = "; ".join(
            f"{k} is {_short(b)} in the base and {_short(t)} in the fine-tune" for k, (b, t) in found.items()
        )
        raise ConfigMismatchError(
            f"the fine-tune's config changes what the backbone computes: {listed}. Use the base it was trained from, "
            f"or extract it with --ignore-config {next(iter(found))} if the base's value is right for it"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _check_model_type(base: PretrainedConfig, found: str) -> None:
    if base.model_type != found:
        raise ConfigMismatchError(
            f"the base is of architecture {base.model_type!r}, the fine-tune {found!r}; "
            "a delta needs two checkpoints of one architecture"
        )


def with_the_bases(
    base: PretrainedConfig, tuned: PretrainedConfig, keys: Collection[str], *, resized: bool = False
) -> PretrainedConfig:
    """The fine-tune's config with the base's values of some keys, where both are of one architecture.

    Args:
        keys: keys that take the base's value if `check_config` would refuse them; all other keys stay as they are.

    Raises:
        ConfigMismatchError: the config's class does not accept the base's value together with the fine-tune's values.
    """
    differing = differences(base, tuned, resized) if keys and base.model_type == tuned.model_type else {}
    ours, changed = base.to_dict(), copy.deepcopy(tuned)
    for key in differing.keys() & set(keys):
        try:
            if key in ours:
                setattr(changed, key, copy.deepcopy(getattr(base, key)))
            else:
                delattr(changed, key)
        except (AttributeError, TypeError, ValueError, StrictDataclassError) as error:
            raise ConfigMismatchError(f"the base's {key} does not go with the fine-tune's config: {error}") from error
    return changed


def portable(config: PretrainedConfig) -> dict[str, Any]:
    """The config as a delta carries it: plain JSON, no path and no code.

    Keys that the config's class does not name are kept: some backbones read such keys (DeBERTa's position buckets).
    """
    plain = {k: _plain(v) for k, v in config.to_diff_dict().items() if k not in _FOREIGN}
    plain["model_type"] = config.model_type
    return plain


def restore(plain: dict[str, Any], base: PretrainedConfig | None = None) -> PretrainedConfig:
    """The inverse of `portable`, for untrusted input.

    Args:
        base: the base's config, where it is at hand. Numbers that it holds are accepted however large they are.

    Raises:
        DeltaFormatError: the architecture is unknown, a key asks for code, or the config's class refuses a value.
        ConfigMismatchError: the architecture is not the base's.
    """
    model_type = plain.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise DeltaFormatError(f"the delta's config is of architecture {model_type!r}, unknown to this transformers")
    if base is not None:
        _check_model_type(base, model_type)
    config_class = CONFIG_MAPPING[model_type]
    if refused := sorted(k for k in plain if k in _FOREIGN or callable(getattr(config_class, k, None))):
        raise DeltaFormatError(f"the delta's config has the key {refused[0]!r}, which no delta may bring")
    if is_deeper(plain, _DEEPEST):
        raise DeltaFormatError(f"the delta's config is nested deeper than {_DEEPEST} levels")
    _check_numbers(plain, base)
    _check_labels(plain)
    if plain.get("dtype") not in (None, "float64", "float32", "float16", "bfloat16"):
        raise DeltaFormatError(f"the delta's config has dtype {plain['dtype']!r}; expected a floating-point one")
    with reading("the delta's config"):
        return AutoConfig.for_model(**plain)


def answering(config: PretrainedConfig) -> PretrainedConfig:
    """The config, changed so that a model's forward pass returns what pipelines read and nothing else."""
    for key, value in _ANSWERING.items():
        if hasattr(config, key):
            setattr(config, key, value)
    return config


def of_no_dtype(config: PretrainedConfig) -> PretrainedConfig:
    """The config, changed so that making a model of it leaves torch's default dtype alone.

    Some classes make a model of their config inside, in the config's dtype, and change the default of the whole process
    while they do: on other threads, tensors would come out in that dtype.
    """
    config.dtype = None
    for key in config.sub_configs:
        if getattr(config, key, None) is not None:
            of_no_dtype(getattr(config, key))
    return config


def _check_numbers(plain: Mapping[str, Any], base: PretrainedConfig | None) -> None:
    known = set() if base is None else {n for _, n in _numbers(base.to_dict())}
    for key, number in _numbers(plain):
        if number in known:
            continue
        if not math.isfinite(number):
            raise DeltaFormatError(f"the delta's config has {key} {number}; expected a finite number")
        if isinstance(number, int) and abs(number) > _LARGEST:
            raise DeltaFormatError(f"the delta's config has {key} {number}; expected at most {_LARGEST}")


def _check_labels(plain: Mapping[str, Any]) -> None:
    for key in ("id2label", "label2id"):
        found = plain.get(key)
        if isinstance(found, dict) and len(found) > MOST_LABELS:
            raise DeltaFormatError(f"the delta's config has {len(found)} labels; at most {MOST_LABELS} are accepted")


def _numbers(plain: Mapping[str, Any]) -> Iterator[tuple[str, int | float]]:
    """All numbers of a config, each with the top-level key it is under."""
    left: list[tuple[str, Any]] = list(plain.items())
    while left:
        key, value = left.pop()
        if isinstance(value, dict | list | tuple):
            left += [(key, v) for v in (value.values() if isinstance(value, dict) else value)]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield key, value


def _plain(value: Any) -> Any:
    """A value as JSON has it, which knows neither tuples nor integer keys."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value

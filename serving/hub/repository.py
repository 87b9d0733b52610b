"""One model repository of the Hub, as far as deltas need it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from ken_core.version import __version__
from serving.hub.errors import HubError
from serving.hub.failures import asking
from serving.hub.names import check_repository, check_token, without_user


@dataclass(frozen=True)
class Contents:
    """What a repository holds at one commit.

    Attributes:
        commit: its hash.
        files: paths of all files.
    """

    commit: str
    files: frozenset[str]


class Repository:
    """A model repository.

    The endpoint is HF_ENDPOINT, by default huggingface.co; the token is HF_TOKEN, or that of `hf auth login`.
    Every method raises `HubError` where the Hub refuses, or does not answer.

    Args:
        name: ``owner/name``.
        progress: whether to show how far a file has been sent or received.

    Raises:
        HubError: the name has another form, or no header can carry the token.
    """

    def __init__(self, name: str, *, progress: bool = True) -> None:
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.utils.logging import set_verbosity_error
        from huggingface_hub.utils.tqdm import disable_progress_bars

        if not progress:
            disable_progress_bars()
        # the library's warnings show URLs with the passwords in them
        set_verbosity_error()  # type: ignore[no-untyped-call]
        check_token(get_token())
        self.name = check_repository(name)
        self._api = HfApi(library_name="ken-serve", library_version=__version__)
        self._endpoint = without_user(self._api.endpoint)

    @property
    def url(self) -> str:
        """The repository's page, as it may be shown."""
        return f"{self._endpoint}/{self.name}"

    def create(self, *, private: bool) -> None:
        """Make the repository, if there is none.

        Args:
            private: a new repository is private; one that exists must be.

        Raises:
            HubError: the repository exists and is public, and was to be private.
        """
        with self._asking():
            self._api.create_repo(self.name, private=private or None, exist_ok=True)
            if private and not self._api.model_info(self.name).private:
                raise HubError(f"{self.url} is public: make it private on the Hub first, or leave --private out")

    def contents(self, revision: str | None = None) -> Contents:
        """What the repository holds.

        Args:
            revision: a branch, a tag or a commit; None: the newest commit of the main branch.
        """
        with self._asking():
            found = self._api.model_info(self.name, revision=revision)
        if not found.sha:
            raise HubError(f"{self.url} names no commit, so what is in it cannot be pinned")
        return Contents(found.sha, frozenset(file.rfilename for file in found.siblings or ()))

    def download(self, file: str, commit: str, folder: Path, most: int) -> tuple[Path, str | None]:
        """Receive a file into a folder, whole or not at all. Returns its path, and its sha256 where the Hub names that.

        Args:
            most: bytes that the file may have.

        Raises:
            HubError: the file is larger, or is not there.
        """
        from huggingface_hub.hf_api import RepoFile

        with self._asking():
            found = [one for one in self._api.get_paths_info(self.name, [file], revision=commit) if one.path == file]
            if not found or not isinstance(found[0], RepoFile):
                raise HubError(f"{self.url} holds no file {file} at commit {commit}")
            if found[0].size > most:
                raise HubError(f"{file} of {self.url} has {found[0].size:,} bytes, and at most {most:,} are taken")
            path = self._api.hf_hub_download(self.name, file, revision=commit, local_dir=folder)
            return Path(path), found[0].lfs.sha256 if found[0].lfs else None

    def commit(self, add: Mapping[str, Path | bytes], delete: Collection[str], message: str, parent: str) -> str:
        """Change files in one commit, and return its hash.

        Args:
            add: files to write, by their paths in the repository.
            parent: the commit that is changed; if it is not the newest any more, nothing is changed.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        added = [CommitOperationAdd(path, str(new) if isinstance(new, Path) else new) for path, new in add.items()]
        deleted = [CommitOperationDelete(path) for path in delete]
        with self._asking():
            made = self._api.create_commit(self.name, [*added, *deleted], commit_message=message, parent_commit=parent)
        return made.oid

    def _asking(self) -> AbstractContextManager[None]:
        return asking(self.name, self._endpoint)

"""A server with the routes of the Hugging Face Hub by which huggingface_hub makes, writes and reads a model repository.

Repositories have commits, files of LFS and of Git, and owners whose tokens are their names with ``-token`` appended.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


@dataclass
class Repo:
    """A repository: its commits in order, each with all of its files."""

    private: bool
    commits: list[tuple[str, Mapping[str, bytes]]] = field(default_factory=list)

    def commit(self, files: Mapping[str, bytes]) -> str:
        text = json.dumps([len(self.commits), *((path, len(data)) for path, data in sorted(files.items()))])
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits.append((sha, dict(files)))
        return sha

    def at(self, revision: str) -> tuple[str, Mapping[str, bytes]] | None:
        if revision == "main":
            return self.commits[-1]
        return next((found for found in self.commits if found[0] == revision), None)


def is_lfs(path: str) -> bool:
    return path.endswith(".ken")


class HubStandIn:
    """Attributes:
    repos: by ``owner/name``.
    lies: sizes that are told in place of the real ones, by path.
    before_commit: is called before a commit is made.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.lies: dict[str, int] = {}
        self.before_commit: Callable[[Repo], object] = lambda repo: None
        repo = "/api/models/{owner}/{name}"
        self.app = Starlette(
            routes=[
                Route("/api/repos/create", self.create, methods=["POST"]),
                Route("/api/validate-yaml", lambda _: JSONResponse({}), methods=["POST"]),
                Route(repo, self.info),
                Route(f"{repo}/revision/{{revision}}", self.info),
                Route(f"{repo}/preupload/{{revision}}", self.preupload, methods=["POST"]),
                Route(f"{repo}/paths-info/{{revision}}", self.paths_info, methods=["POST"]),
                Route(f"{repo}/commit/{{revision}}", self.commit, methods=["POST"]),
                Route("/{owner}/{name}.git/info/lfs/objects/batch", self.lfs_batch, methods=["POST"]),
                Route("/lfs/{oid}", self.lfs_put, methods=["PUT"]),
                Route("/{owner}/{name}/resolve/{revision}/{path:path}", self.resolve, methods=["GET", "HEAD"]),
            ]
        )

    async def create(self, request: Request) -> Response:
        asked = await request.json()
        user = user_of(request)
        if user is None:
            return refused(401, "Invalid username or password.")
        if asked["organization"] != user:
            return refused(403, f"You don't have the rights to create a model under {asked['organization']}")
        name = f"{user}/{asked['name']}"
        about = {"url": f"{request.base_url}{name}", "error": "You already created this model repo"}
        if name in self.repos:
            return JSONResponse(about, 409)
        self.repos[name] = Repo(private=asked.get("visibility") == "private")
        self.repos[name].commit({".gitattributes": b"*.ken filter=lfs diff=lfs merge=lfs -text\n"})
        return JSONResponse(about)

    def seen(self, request: Request) -> Repo | Response:
        """The repository that a request is about, or the refusal that the Hub gives who may not see it."""
        name, user = "{owner}/{name}".format(**request.path_params), user_of(request)
        repo = self.repos.get(name)
        if repo is None or (repo.private and user != name.partition("/")[0]):
            return refused(401 if user is None else 404, "Repository not found", "RepoNotFound")
        return repo

    async def info(self, request: Request) -> Response:
        repo = self.seen(request)
        if isinstance(repo, Response):
            return repo
        found = repo.at(request.path_params.get("revision", "main"))
        if found is None:
            return refused(404, "Invalid rev id", "RevisionNotFound")
        siblings = [{"rfilename": path} for path in found[1]]
        return JSONResponse({"id": "x/y", "sha": found[0], "private": repo.private, "siblings": siblings})

    async def preupload(self, request: Request) -> Response:
        repo = self.writable(request)
        if isinstance(repo, Response):
            return repo
        files = (await request.json())["files"]
        modes = [
            {"path": f["path"], "uploadMode": "lfs" if is_lfs(f["path"]) else "regular", "shouldIgnore": False}
            for f in files
        ]
        return JSONResponse({"files": modes})

    def writable(self, request: Request) -> Repo | Response:
        repo = self.seen(request)
        if isinstance(repo, Repo) and user_of(request) != request.path_params["owner"]:
            return refused(403, "Authorization error.")
        return repo

    async def lfs_batch(self, request: Request) -> Response:
        repo = self.writable(request)
        if isinstance(repo, Response):
            return repo
        objects = (await request.json())["objects"]
        for one in objects:
            if one["oid"] not in self.objects:
                one["actions"] = {"upload": {"href": f"{request.base_url}lfs/{one['oid']}"}}
        return JSONResponse({"objects": objects, "transfer": "basic"})

    async def lfs_put(self, request: Request) -> Response:
        body = await request.body()
        oid = request.path_params["oid"]
        if hashlib.sha256(body).hexdigest() != oid:
            return refused(400, "another object than announced")
        self.objects[oid] = body
        return Response()

    async def commit(self, request: Request) -> Response:
        repo = self.writable(request)
        if isinstance(repo, Response):
            return repo
        self.before_commit(repo)
        head, old = repo.commits[-1]
        files = dict(old)
        for line in (await request.body()).splitlines():
            step: dict[str, Any] = json.loads(line)
            value = step["value"]
            if step["key"] == "header" and value.get("parentCommit", head) != head:
                return refused(412, "A commit has happened since. Please refresh and try again.")
            if step["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if step["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            if step["key"] == "deletedFile":
                del files[value["path"]]
        made = repo.commit(files)
        url = "{owner}/{name}/commit".format(**request.path_params)
        return JSONResponse({"commitUrl": f"{request.base_url}{url}/{made}", "commitOid": made})

    async def paths_info(self, request: Request) -> Response:
        repo = self.seen(request)
        if isinstance(repo, Response):
            return repo
        found = repo.at(request.path_params["revision"])
        assert found is not None
        asked = parse_qs((await request.body()).decode())["paths"]
        return JSONResponse([self.told(path, found[1][path]) for path in asked if path in found[1]])

    def told(self, path: str, data: bytes) -> dict[str, Any]:
        size = self.lies.get(path, len(data))
        told = {"type": "file", "path": path, "oid": hashlib.sha1(data).hexdigest(), "size": size}
        if is_lfs(path):
            told["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": size, "pointerSize": 130}
        return told

    async def resolve(self, request: Request) -> Response:
        repo = self.seen(request)
        if isinstance(repo, Response):
            return repo
        found = repo.at(request.path_params["revision"])
        if found is None or request.path_params["path"] not in found[1]:
            return refused(404, "Entry not found", "EntryNotFound")
        data = found[1][request.path_params["path"]]
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        return Response(data, headers={"X-Repo-Commit": found[0], "ETag": etag})


def user_of(request: Request) -> str | None:
    token = request.headers.get("authorization", "").removeprefix("Bearer ")
    return token.removesuffix("-token") if token.endswith("-token") else None


def refused(status: int, message: str, code: str | None = None) -> Response:
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return JSONResponse({"error": message}, status, headers)

"""The console: a page that shows what the server does, and the files that the page loads."""

from __future__ import annotations

from fastapi import FastAPI, Request
from starlette.responses import RedirectResponse, Response
from starlette.staticfiles import StaticFiles

PATH = "/"
FILES = "/console/"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
CACHING = "no-cache"
"""Browsers keep a file, and ask before each use whether it is still the same: its ETag says so."""
_PAGE = "index.html"


def install(app: FastAPI) -> None:
    """Add the page and its files, which are in `serving/console`."""
    files = StaticFiles(packages=[("serving", "console")])

    @app.get(PATH, include_in_schema=False)
    async def page(request: Request) -> Response:
        return await files.get_response(_PAGE, request.scope)

    @app.get(FILES.rstrip("/"), include_in_schema=False)
    async def page_by_name() -> Response:
        return RedirectResponse("./")

    @app.get(FILES, include_in_schema=False)
    async def page_by_folder() -> Response:
        return RedirectResponse("../")

    @app.get(f"{FILES}{{name:path}}", include_in_schema=False)
    async def file(name: str, request: Request) -> Response:
        # mounted, they would have their own 405, which cannot name the methods that the path has
        return await files.get_response(name, request.scope)


def owns(path: str) -> bool:
    """Whether a path is the page's, or a file's."""
    return path in (PATH, FILES.rstrip("/")) or path.startswith(FILES)

"""The page that shows the OpenAPI document, with all that it loads: it works where there is no internet."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles

PATH = "/docs"
_ASSETS = f"{PATH}/assets"


def install(app: FastAPI) -> None:
    """Add the page and the files of Swagger UI."""

    @app.get(PATH, include_in_schema=False)
    async def page() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=app.title,
            swagger_js_url=f"{_ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{_ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{_ASSETS}/favicon-32x32.png",
        )

    files = StaticFiles(packages=[("fastapi_swagger", "resources")])

    @app.get(f"{_ASSETS}/{{name:path}}", include_in_schema=False)
    async def asset(name: str, request: Request) -> Response:
        # mounted, they would have their own 405, which cannot name the methods that the path has
        return await files.get_response(name, request.scope)

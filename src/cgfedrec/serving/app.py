"""The HTTP interface: histories in, recommendations out. Nothing of a request is kept or logged."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from cgfedrec import __version__
from cgfedrec.serving.bodies import Answer, Asked, Health, Problems, Timed, asked
from cgfedrec.serving.limits import Guard, Limits
from cgfedrec.serving.refusals import problems_of
from cgfedrec.serving.watch import Watched

ABOUT = """Recommendations for a history of items, by what a federation has found.

Nothing of a request is kept or logged: not the history, nor who sent it. For as long as an address may have sent too
many requests it is counted how many it sent; `429` says in how many seconds it may come again."""
PAGE = Path(__file__).with_name("page.html")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
"""The page may fetch nothing from elsewhere."""
REFUSED: dict[int | str, dict[str, Any]] = {
    400: {"model": Problems, "description": "The body is no JSON"},
    413: {"model": Problems, "description": "The body is too long"},
    422: {"model": Problems, "description": "The body is not what is described here, or is not said to be JSON"},
    429: {
        "model": Problems,
        "description": "Too many requests from this address",
        "headers": {"Retry-After": {"description": "In how many seconds", "schema": {"type": "integer"}}},
    },
}


class Json(JSONResponse):
    """An answer in JSON, of ASCII alone: an id may be text that UTF-8 cannot hold."""

    def render(self, content: Any) -> bytes:
        """The bytes of an answer."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def app_of(watched: Watched, limits: Limits, clock: Callable[[], float] = time.monotonic) -> FastAPI:
    """The application.

    Args:
        watched: What answers.
        limits: What is refused.
        clock: By which requests are counted.
    """
    app = FastAPI(title="cgfedrec", version=__version__, description=ABOUT, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, limits=limits, clock=clock)

    async def recommend(body: Asked) -> Json:
        """Recommend items for a history, without those that it has."""
        recommender = watched.now
        history, timestamps = body.history, None
        if history and isinstance(history[0], Timed):
            timestamps = [one.timestamp for one in history]
            history = [one.item for one in history]
        found = recommender.recommend(history, body.top_k, body.exclude, timestamps)  # type: ignore[arg-type]
        items = [
            {"item": item, "score": score, "title": title}
            for item, score, title in zip(found.items, found.scores, found.titles, strict=True)
        ]
        answer = {"items": items, "source": found.source, "unknown": found.unknown, "version": recommender.version}
        return Json(answer)

    recommend.__annotations__["body"] = asked(limits)
    app.post("/recommend", responses={200: {"model": Answer}, **REFUSED})(recommend)

    @app.get("/health", response_model=Health)
    async def health() -> Json:
        """Say which export answers."""
        recommender = watched.now
        about = recommender.about
        return Json(
            {
                "status": "ok",
                "version": recommender.version,
                "method": about.get("method", ""),
                "reading": recommender.reader.reading,
                "round": about.get("round", 0),
                "items": recommender.num_items,
                "problem": watched.problem,
            }
        )

    @app.get("/docs", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(), headers={"content-security-policy": POLICY})

    @app.exception_handler(RequestValidationError)
    async def refused(request: Request, error: RequestValidationError) -> Json:
        wrong = error.errors()
        if any(one["type"] == "json_invalid" for one in wrong):
            return _problems(400, ["body: is no JSON"])
        return _problems(422, problems_of(wrong, error.body))

    @app.exception_handler(HTTPException)
    async def failed(request: Request, error: HTTPException) -> Json:
        # By 400 FastAPI refuses what its reader of JSON fails at otherwise: bytes that are no text, deep nesting.
        problem = "body: is no JSON" if error.status_code == 400 else str(error.detail)
        return _problems(error.status_code, [problem], error.headers)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Json:
        return _problems(500, ["the request could not be answered"])

    return app


def _problems(status: int, problems: list[str], headers: Mapping[str, str] | None = None) -> Json:
    return Json({"problems": problems}, status, headers)

"""Every error as `application/problem+json` (RFC 9457), with a stable `code`.

`detail` is a fixed sentence; a few codes have two. A problem never contains text of a caller, a
model, a tool or an exception, except in steps that the caller asked for.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match

from app.api.schemas import RunBody, StepView, TimingsView, steps_with_content
from app.runs.errors import (
    Draining,
    InFlight,
    InvalidRequest,
    Overloaded,
    StoreUnavailable,
    WatchkeeperError,
)
from app.runs.live import Ended, Run
from app.runs.model import Outcome

_JSON = re.compile(r"application/(json|[\w.-]+\+json)")

MEDIA_TYPE = "application/problem+json"

# Only this table maps errors of the core to status codes.
STATUSES = {
    "invalid_request": 422,
    "not_found": 404,
    "in_flight": 409,
    "key_reused": 422,
    "store_unavailable": 503,
    "overloaded": 503,
    "draining": 503,
    "timeout": 504,
    "cancelled": 503,
    "disconnected": 499,
    "model_failed": 500,
    "agent_failed": 500,
    "interrupted": 500,
    "worker_lost": 500,
    "internal_error": 500,
}

# Errors of HTTP itself, before any run: status, code and sentence.
HTTP_ERRORS = {
    400: ("invalid_json", "The body is not JSON."),
    404: ("not_found", "There is nothing at this address."),
    405: ("method_not_allowed", "This address does not take that method."),
    413: ("too_large", "The body is too large."),
    415: ("unsupported_media_type", "Send the body as application/json, not encoded."),
    422: ("invalid_request", "The request cannot be served as it was written."),
    500: ("internal_error", "Something went wrong."),
}

# The methods of a folder of files, whose route does not list them.
_FILE_METHODS = ("GET", "HEAD")

_DETAILS = {"invalid_http": "What was sent is not HTTP."}

_TITLES = {
    400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 409: "Conflict",
    413: "Content Too Large",
    415: "Unsupported Media Type", 422: "Unprocessable Content", 499: "Client Closed Request",
    500: "Internal Server Error", 503: "Service Unavailable", 504: "Gateway Timeout",
}  # fmt: skip


class FieldError(BaseModel):
    """One fault of a request; `field` is a name of the contract, never input of the caller."""

    field: str
    message: str


class Problem(BaseModel):
    """Why there is no answer."""

    type: str = Field(examples=["urn:watchkeeper:problem:timeout"])
    title: str
    status: int
    code: str = Field(description="Stable: decide by this.")
    detail: str
    retryable: bool = Field(
        False,
        description="Whether the same request may succeed later. If a tool had started before a "
        "failure, true only with an `Idempotency-Key`.",
    )
    errors: list[FieldError] | None = None
    run_id: str | None = None
    trace_id: str | None = None
    outcome: Outcome | None = None
    phase: str | None = Field(None, description="What it waited for: queue, llm, tool:NAME, other.")
    iterations: int | None = None
    tool_calls: int | None = None
    timings: TimingsView | None = None
    steps: list[StepView] | None = None


def respond(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """The problem as a response."""
    return Response(body(problem), problem.status, dict(headers or {}), MEDIA_TYPE)


def body(problem: Problem) -> bytes:
    """The problem as JSON, without its empty fields."""
    fields = problem.model_dump(mode="json")
    return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()


def of_run(run: Run, ended: Ended) -> Problem:
    """The problem of a run that ended without an answer."""
    assert ended.error is not None
    problem = of_error(ended.error)
    return problem.model_copy(
        update={
            "run_id": run.id,
            "trace_id": run.trace_id,
            "outcome": ended.outcome,
            "phase": None if ended.phase is None else str(ended.phase),
            "iterations": ended.iterations,
            "tool_calls": ended.tool_calls,
            "timings": TimingsView.of(ended.timings),
            "steps": steps_with_content(run, ended.steps),
        }
    )


def of_error(error: WatchkeeperError) -> Problem:
    """The problem of an error of the core."""
    problem = _problem(STATUSES[error.code], error.code, error.detail)
    errors = None
    if isinstance(error, InvalidRequest):
        errors = [FieldError(field=error.field, message=error.message)]
    return problem.model_copy(update={"retryable": error.retryable, "errors": errors})


def retry_headers(error: WatchkeeperError) -> dict[str, str]:
    """`Retry-After`, for errors that define it."""
    if isinstance(error, Overloaded | Draining | InFlight | StoreUnavailable):
        return {"Retry-After": str(error.retry_after_s)}
    return {}


def of_status(status: int, code: str | None = None) -> Problem:
    """The problem of an error of HTTP itself; `code` selects one if a status has several."""
    usual, detail = HTTP_ERRORS.get(status, HTTP_ERRORS[500 if status >= 500 else 400])
    return _problem(status, code or usual, _DETAILS.get(code or usual, detail))


def install(app: FastAPI, routes: Sequence[BaseRoute], on_refused: Callable[[str], None]) -> None:
    """Answer every error of this application, which has these routes, with a problem.

    `on_refused` receives the code if the service refuses a request before a run starts.
    """

    async def core_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, WatchkeeperError)
        if isinstance(error, Draining | StoreUnavailable):
            on_refused(error.code)
        return respond(of_error(error), retry_headers(error))

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code != 405:
            return await _http(request, error)
        # Several routes may share a path; the error has the methods of only one.
        matching = (route for route in routes if route.matches(request.scope)[0] is not Match.NONE)
        methods = {method for route in matching for method in getattr(route, "methods", None) or ()}
        return respond(of_status(405), {"Allow": ", ".join(sorted(methods or _FILE_METHODS))})

    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(WatchkeeperError, core_error)


async def _http(request: Request, error: HTTPException) -> Response:
    encoded = error.status_code == 400 and not sends_plain_json(request)
    return respond(of_status(415 if encoded else error.status_code), error.headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    if not sends_plain_json(request):
        return respond(of_status(415))
    faults = error.errors()
    if any(fault["type"] == "json_invalid" for fault in faults):
        return respond(of_status(400))
    errors = [_field_error(fault["loc"], fault["type"], fault["msg"]) for fault in faults]
    return respond(of_status(422).model_copy(update={"errors": errors}))


def sends_plain_json(request: Request) -> bool:
    """Whether the body is declared as JSON, and not encoded."""
    declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    encoding = request.headers.get("content-encoding", "identity").lower()
    is_json = bool(_JSON.fullmatch(declared))
    return encoding == "identity" and (is_json or not declared)


def _field_error(location: Sequence[Any], kind: str, message: str) -> FieldError:
    """Name the field only if it is ours: the name of an unknown one is input of the caller."""
    if kind == "extra_forbidden":
        known = ", ".join(RunBody.model_fields)
        return FieldError(field="body", message=f"Unknown field. Known are: {known}.")
    if location[0] in ("header", "query"):  # only declared ones are validated, so these are ours
        return FieldError(field=str(location[-1]), message=message)
    named = [str(part) for part in location if part in RunBody.model_fields]
    return FieldError(field=named[0] if named else "body", message=message)


def _problem(status: int, code: str, detail: str) -> Problem:
    return Problem(
        type=f"urn:watchkeeper:problem:{code}",
        title=_TITLES.get(status, "Error"),
        status=status,
        code=code,
        detail=detail,
    )

"""The OpenAPI document as it is true: problems by their media type, and every header."""

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI

from app.api import problems

_FOREIGN = ("HTTPValidationError", "ValidationError")
_STREAM = "text/event-stream"
_REQUEST_ID = {"X-Request-Id": "The caller's own id if it was usable, else a new one."}
_RUN = {
    "X-Run-Id": "The id of the run, for `/runs/{run_id}`.",
    "traceresponse": "Where the run was traced (W3C), if it was.",
}
_ASKED = {"Server-Timing": "The time in queue, model and tools, in milliseconds."}
_REPLAYED = {"Idempotent-Replay": "`true` where a run with the same key was answered before."}
_ACCEPTED = {
    "Location": "Where to look for it.",
    "Retry-After": "Seconds after which to look.",
    **_REPLAYED,
}
_PAGE = {"Link": "The next page, with `rel=next`, if there is one."}
_RETRY = {"Retry-After": "Seconds after which to try again."}


def install(app: FastAPI) -> None:
    """Correct the document that FastAPI makes, once, when it is first asked for."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        made = app.openapi_schema is not None
        document = make()
        if not made:
            _correct(document)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _correct(document: dict[str, Any]) -> None:
    for name in _FOREIGN:
        document["components"]["schemas"].pop(name, None)
    for path, call, responses in _calls(document):
        if "422" in responses and "description" in responses["422"]:
            _drop_foreign(responses)
        for status, response in responses.items():
            _name_problem(response)
            _name_stream(response)
            told = _headers(path, call, int(status))
            response["headers"] = {
                name: {"description": text, "schema": {"type": "string"}}
                for name, text in told.items()
            }


def _calls(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, calls in document["paths"].items():
        for method, call in calls.items():
            yield path, method, call["responses"]


def _drop_foreign(responses: dict[str, Any]) -> None:
    """FastAPI adds a 422 of its own shape wherever there is a parameter."""
    schema = responses["422"].get("content", {}).get("application/json", {}).get("schema", {})
    if schema.get("$ref", "").endswith(_FOREIGN):
        del responses["422"]


def _name_problem(response: dict[str, Any]) -> None:
    content = response.get("content", {})
    schema = content.get("application/json", {}).get("schema", {})
    if schema.get("$ref", "").endswith("/Problem"):
        response["content"] = {problems.MEDIA_TYPE: content["application/json"]}


def _name_stream(response: dict[str, Any]) -> None:
    content = response.get("content", {})
    if _STREAM in content:
        response["content"] = {_STREAM: content.get("application/json", content[_STREAM])}


def _headers(path: str, method: str, status: int) -> dict[str, str]:
    asks, answered = method == "post", status < 400 or status >= 500
    background = "/async" in path
    told = dict(_REQUEST_ID)
    if answered and (asks or "{run_id}" in path) and not background:
        told |= _RUN
    if answered and asks and not background and not path.endswith("/stream"):
        told |= _ASKED
    if background and status in (200, 202, 204) and (asks or "{task_id}" in path):
        told |= _RUN
    if background and asks and status == 202:
        told |= _ACCEPTED
    if asks and status == 200:
        told |= _REPLAYED
    if path == "/agent/async" and not asks and status == 200:
        told |= _PAGE
    may_try_again = status == 409 or (status == 503 and not path.startswith("/health"))
    pending = path.endswith("/async/{task_id}") and method == "get" and status == 200
    if may_try_again or pending:
        told |= _RETRY
    return told

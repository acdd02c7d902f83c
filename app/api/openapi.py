"""Corrects the OpenAPI document: media types of problems and streams, and all headers."""

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI

from app.api import problems

_FOREIGN = ("HTTPValidationError", "ValidationError")
_STREAM = "text/event-stream"
_REQUEST_ID = {"X-Request-Id": "The caller's own id if it was usable, else a new one."}
_RUN = {
    "X-Run-Id": "The id of the run, for `/runs/{run_id}`.",
    "traceresponse": "The W3C trace of the run, if it was traced.",
}
_ANSWERED = {"Server-Timing": "The time in queue, model and tools, in milliseconds."}
_REPLAYED = {"Idempotent-Replay": "`true` if a run with the same key has been answered before."}
_ACCEPTED = {
    "Location": "The address of the background run.",
    "Retry-After": "Seconds after which to poll.",
    **_REPLAYED,
}
_PAGE = {"Link": "The next page, with `rel=next`, if there is one."}
_RETRY = {"Retry-After": "Seconds after which to try again."}


def install(app: FastAPI) -> None:
    """Correct the document of FastAPI once, at the first request for it."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        is_corrected = app.openapi_schema is not None
        document = generate()
        if not is_corrected:
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
            headers = _headers(path, call, int(status))
            response["headers"] = {
                name: {"description": text, "schema": {"type": "string"}}
                for name, text in headers.items()
            }


def _calls(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, calls in document["paths"].items():
        for method, call in calls.items():
            yield path, method, call["responses"]


def _drop_foreign(responses: dict[str, Any]) -> None:
    """Remove the 422 of its own shape that FastAPI adds to every call with a parameter."""
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
    is_post, answered = method == "post", status < 400 or status >= 500
    background = "/async" in path
    headers = dict(_REQUEST_ID)
    if answered and (is_post or "{run_id}" in path) and not background:
        headers |= _RUN
    if answered and is_post and not background and not path.endswith("/stream"):
        headers |= _ANSWERED
    if background and status in (200, 202, 204) and (is_post or "{task_id}" in path):
        headers |= _RUN
    if background and is_post and status == 202:
        headers |= _ACCEPTED
    if is_post and status == 200:
        headers |= _REPLAYED
    if path == "/agent/async" and not is_post and status == 200:
        headers |= _PAGE
    may_try_again = status == 409 or (status == 503 and not path.startswith("/health"))
    pending = path.endswith("/async/{task_id}") and method == "get" and status == 200
    if may_try_again or pending:
        headers |= _RETRY
    return headers

"""The error responses that the routes document, and the check of a body's content type."""

from typing import Any

from fastapi import Request
from starlette.exceptions import HTTPException

from app.api import problems


def problem(description: str) -> dict[str, Any]:
    """An OpenAPI response with a problem as its body."""
    return {"model": problems.Problem, "description": description}


RUN_RESPONSES: dict[int | str, dict[str, Any]] = {
    400: problem("`invalid_json`"),
    404: problem("`not_found`: no agent of that name"),
    409: problem("`in_flight`: a run with this key, or on this thread, has not ended"),
    413: problem("`too_large`"),
    415: problem("`unsupported_media_type`"),
    422: problem("`invalid_request`: `errors` lists the faults; or `key_reused`"),
    500: problem("`model_failed`, `agent_failed` or `interrupted`"),
    503: problem(
        "`overloaded`, `draining` or `store_unavailable` (with `Retry-After`), or `cancelled`"
    ),
    504: problem("`timeout`: `phase` is what the run waited for"),
}


async def plain_json(request: Request) -> None:
    """Refuse a body that is not declared as JSON, or is encoded. Raises a 415."""
    if not problems.sends_plain_json(request):
        raise HTTPException(415)

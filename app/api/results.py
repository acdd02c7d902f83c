"""Renders the end of a run as the body that callers read and stores store."""

import json
from typing import Any

from app.api import problems
from app.api.schemas import FinishedRun
from app.runs.live import Ended, Run


def render(run: Run, ended: Ended) -> dict[str, Any]:
    """The finished run as plain JSON, or the problem if it failed."""
    if ended.error is None:
        return FinishedRun.of(run, ended).model_dump(mode="json")
    problem: dict[str, Any] = json.loads(problems.body(problems.of_run(run, ended)))
    return problem

"""The claim token of the present workflow.

The engine creates a token for each claim, and has no public way to read it. It must not be read
from the row: the row may have the token of a later claim already.
"""

from dbos import DBOS
from dbos._context import current_owner_xid


def claim_of_this_thread() -> tuple[str, str]:
    """Return the claim token and the id of the run that the engine executes on this thread."""
    task_id = DBOS.workflow_id
    assert task_id is not None
    token = current_owner_xid(task_id)
    assert token is not None
    return token, task_id

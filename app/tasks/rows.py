"""The names of what we store on the row of a run. Stored rows have them, so they never change."""

# The name of the log of a run among the engine's streams.
LOG = "log"
# Names of attributes.
STARTED, FINISHED, OUTCOME, ATTEMPTS = "started_at", "finished_at", "outcome", "attempts"
DEADLINE = "deadline_at"
# Claim token of the last attempt that started. If the row has another token, that attempt has not
# started.
STARTED_TOKEN = "begun"
CREATED, FINGERPRINT, RETRY_OF, THREAD = "created_at", "fingerprint", "retry_of", "thread_id"
REACHED, IN_VAIN = "reached", "in_vain"
# Claim token of the attempt that lost the run in the last takeover.
TAKEN_FROM = "taken_from"
TRACE = "trace"
# `stopped` is JSON in a text: the JSON type of PostgreSQL takes no NUL, which a tool may return.
STOPPED, STUCK, LOST = "stopped", "stuck", "lost"

"""The durable room: keeps background runs, conversations and idempotency keys in one store.

It is the only one that knows the task engine (DBOS) and SQL.
"""

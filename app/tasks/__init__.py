"""The durable room: stores background runs, conversations and idempotency keys in one store.

No other room knows the task engine (DBOS) and SQL.
"""

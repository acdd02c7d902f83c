"""The HTTP layer: accepts requests and sends responses."""

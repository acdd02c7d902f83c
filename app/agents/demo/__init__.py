"""The demo agent and its model, which need no API key."""

"""What the OpenAI client loads when it is first made is loaded before any loop runs."""

import importlib

import pytest


@pytest.fixture(scope="session", autouse=True)
def loaded_client() -> None:
    """Making the first client reads files, which a service does before it serves."""
    importlib.import_module("httpcore2")

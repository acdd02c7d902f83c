"""Serves LangGraph graphs."""

"""Emits facts about runs as log lines, samples and spans. Each sink has a file of its own."""

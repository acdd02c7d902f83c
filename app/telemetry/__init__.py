"""Telling what happened: facts about runs become log lines, each sink in a file of its own."""

"""The callback handler of a run: it observes, limits and guards the calls of an agent."""

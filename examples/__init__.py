"""Agents to copy, one of each kind that Watchkeeper serves; all of them work at an order desk."""

"""Inspects ready-made agents at start: their parts, and what they require."""

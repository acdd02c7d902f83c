"""Measurements, side by side in one run: the cost of the service, and where the time goes."""

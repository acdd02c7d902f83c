"""Measurements, side by side in one run: what being watched costs, and where the time goes."""

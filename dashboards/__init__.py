"""Dashboards, rules and their settings, built from the catalogue of metrics."""

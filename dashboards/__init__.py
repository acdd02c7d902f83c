"""The watch: dashboards, rules and their settings, built from the catalogue of metrics."""

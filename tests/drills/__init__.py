"""Fire drills: each alert's fault is caused for real, seen in Alertmanager, and healed."""

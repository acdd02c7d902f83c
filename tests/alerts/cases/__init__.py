"""For each alert, what makes it fire and what leaves it silent."""

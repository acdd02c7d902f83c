"""Does an accepted background run survive? Clients, a nemesis, and a checker of what was seen.

`python -m tests.chaos --store sqlite --seconds 30` prints a verdict; `--bug` plants a fault that
the verdict must find.
"""

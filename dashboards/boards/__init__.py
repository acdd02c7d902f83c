"""The dashboards, one module each, in the order in which they are numbered."""


def files() -> dict[str, str]:
    """The JSON of every dashboard, by its path below dashboards/generated."""
    return {}

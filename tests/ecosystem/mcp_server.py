"""A real MCP server, started by tests as a process of its own: `python -m … [PORT]`."""

import sys

from mcp.server.fastmcp import FastMCP
from mcp.server.fastmcp.utilities.types import Image


def weather(city: str) -> str:
    """Look up the weather of a city."""
    return f"sun in {city}"


def fails(city: str) -> str:
    """Fail."""
    raise RuntimeError(f"no station in {city}")


def report(city: str) -> dict[str, str]:
    """Report with structure."""
    return {"city": city, "weather": "sun"}


def picture(city: str) -> Image:
    """Draw."""
    return Image(data=b"\x89PNG", format="png")


def main() -> None:
    """Serve on standard input and output, or on a port of this machine."""
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    server = FastMCP("stations", port=port, log_level="ERROR")
    for tool in (weather, fails, report, picture):
        server.add_tool(tool)
    server.run(transport="streamable-http" if port else "stdio")


if __name__ == "__main__":
    main()

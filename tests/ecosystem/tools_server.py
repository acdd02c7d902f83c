"""A real MCP server of tools: `python tools_server.py KIND PORT`, ended by who started it.

KIND is one of MCP's transports; `stdio` needs no port.
"""

import sys
from typing import Any

from mcp.server.fastmcp import FastMCP, Image


async def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


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


def serve(kind: Any, port: int) -> None:
    """Serve the tools, in one of MCP's ways, until the process ends."""
    server = FastMCP("desk", host="127.0.0.1", port=port, log_level="ERROR")
    for tool in (add, weather, fails, report, picture):
        server.add_tool(tool)
    server.run(transport=kind)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))

"""A server of tools for MCP: `python tools_server.py KIND PORT`, stopped by whoever started it."""

import sys
from typing import Any

from mcp.server.fastmcp import FastMCP


def serve(kind: Any, port: int) -> None:
    """Serve two tools, in one of MCP's ways, until the process ends."""
    server = FastMCP("desk", host="127.0.0.1", port=port)

    @server.tool()
    async def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    server.run(transport=kind)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))

"""A small MCP server with state, for tests: it counts, fails, and dies when told to."""

import os
import sys
import time

from mcp.server import MCPServer

server = MCPServer("small")
count = 0


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
def increment() -> int:
    """Count one up."""
    global count
    count += 1
    return count


@server.tool()
def fail() -> str:
    """Fail."""
    raise ValueError("no such file")


@server.tool()
def die() -> str:
    """End the server."""
    os._exit(1)


@server.tool()
def sleep() -> str:
    """Answer late."""
    time.sleep(600)
    return ""


@server.resource("small://text")
def text() -> str:
    """A resource, which is no tool."""
    return "text"


if __name__ == "__main__":
    if sys.argv[1:] == ["resources"]:
        server = MCPServer("resources alone")
        server.resource("small://text")(text)
        server.run("stdio")
    elif len(sys.argv) > 1:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
    else:
        server.run("stdio")

"""Tools that hold a run for as long as a test wants, however slow the machine is."""

import asyncio
import threading

from langchain_core.tools import BaseTool, tool

from tests import fakes

# No test waits for so long: each releases what it holds, or ends the run.
LONG_S = 60.0


class Holding(fakes.ToolDesk):
    """The desk whose `nap`, `block` and `stubborn` hold their run until it ends.

    Nothing ends `block` and `stubborn`: they go on until the desk releases them.
    """

    def __init__(self) -> None:
        super().__init__(LONG_S)
        self._over = threading.Event()

    def release(self) -> None:
        """What would not end ends."""
        self._over.set()

    def tools(self) -> list[BaseTool]:
        """Those of the desk."""

        @tool
        async def stubborn() -> str:
            """Go on, and swallow every cancellation."""
            self.started.append("stubborn")
            while not self._over.is_set():
                try:
                    await asyncio.sleep(0.01)
                except asyncio.CancelledError:
                    self.cancelled.append("stubborn")
            return "would not stop"

        @tool
        def block() -> str:
            """Wait on a thread, where nothing can stop it."""
            self.started.append("block")
            self._over.wait(self.seconds)
            return "blocked"

        own = {"stubborn": stubborn, "block": block}
        return [own.get(theirs.name, theirs) for theirs in super().tools()]

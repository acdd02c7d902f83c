"""What every test stands on: blocking calls in async code are errors."""

import os
from collections.abc import Iterator

import pytest
from blockbuster import BlockBuster, blockbuster_ctx


@pytest.fixture(autouse=True, scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Services that tests start keep nothing in the working directory."""
    os.environ["WATCHKEEPER_DATA_DIR"] = str(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def blockbuster() -> Iterator[BlockBuster]:
    """Raise when a blocking call is made on the event loop, by our code or what it calls."""
    with blockbuster_ctx("app") as detector:
        for function in detector.functions.values():
            # Building happens once, before anything is served.
            function.can_block_in(
                "app/main.py", {"assemble", "application", "load_agents", "lifespan"}
            )
        yield detector

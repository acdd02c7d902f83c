"""A shell executes the README's lines that move to PostgreSQL, and they work."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psycopg

from tests.command import ROOT, environment
from tests.parts.postgres import binary, cluster
from tests.upstreams import aimock

README = (ROOT / "README.md").read_text()
SHELL = re.findall(r"^```sh\n(.*?)^```$", README, re.M | re.S)
[AGENT] = re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S)
[LINES] = [text for text in SHELL if "WATCHKEEPER_STORE_URL" in text]
UP_S, ENDED_S = 30.0, 30.0


@contextmanager
def pasted(script: str, here: Path, variables: Mapping[str, str]) -> Iterator[str]:
    """Paste lines into a shell, the last of which serves; returns the printed address."""
    log_file = here / f"stderr-{time.monotonic_ns()}.log"
    with log_file.open("wb") as stderr, open(os.devnull, "wb") as stdout:
        process = subprocess.Popen(
            ["bash", "-eu", "-c", script],
            cwd=here,
            env=environment(variables),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + UP_S
        while not (found := re.search(r"on (http://127\.0\.0\.1:\d+)", log_file.read_text())):
            assert process.poll() is None, log_file.read_text()
            assert time.monotonic() < end, log_file.read_text()
            time.sleep(0.05)
        yield found[1]
    finally:
        # The shell and what it started are a group of their own; the last line took its place.
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(ENDED_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def test_lines_that_move_to_postgresql(tmp_path: Path) -> None:
    """The lines make a database, which stores the runs; the worker of the last line helps."""
    assert len(LINES.splitlines()) == 3
    [worker] = re.findall(r"# and `(watchkeeper worker .*?)`", LINES)
    [store] = re.findall(r"^export .*$", LINES, re.M)
    (tmp_path / "shop.py").write_text(AGENT)
    here = Path(sys.executable).parent
    assert shutil.which("watchkeeper", path=here)
    with cluster() as server, aimock() as model:
        address = urlsplit(server.url)
        variables = {
            "PATH": f"{here}:{Path(binary('createdb')).parent}:{os.environ['PATH']}",
            # Host and user, which differ between the tests' own server and an installed one.
            "PGHOST": str(address.hostname),
            "PGPORT": str(address.port),
            "PGUSER": str(address.username),
            "OPENAI_API_KEY": "not-a-secret",
            "OPENAI_BASE_URL": model,
            "WATCHKEEPER_PORT": "0",
        }
        with pasted(LINES, tmp_path, variables) as url:
            payload = {"question": "Where is order 10023?"}
            task = httpx.post(f"{url}/agent/async", json=payload, timeout=10).json()
            place = f"{url}/agent/async/{task['task_id']}"
            body: dict[str, Any] = httpx.get(place, params={"wait": 30}, timeout=40).json()
            assert body["status"] == "completed", body
            assert "Order 10023 is on its way." in body["result"]["answer"]
            with pasted(f"{store}\n{worker}", tmp_path, variables) as other:
                assert httpx.get(f"{other}/health/ready").status_code == 200
        database = server.url.removesuffix("/postgres") + "/watchkeeper"
        with psycopg.connect(database) as connection:
            rows = connection.execute("select workflow_uuid, status from dbos.workflow_status")
            assert rows.fetchall() == [(task["task_id"], "SUCCESS")]
    assert not (tmp_path / ".watchkeeper").exists()

"""The real command in a process of its own, as an operator starts it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

WATCHKEEPER = Path(sys.executable).with_name("watchkeeper")
ROOT = Path(__file__).parents[1]
_UP_WITHIN_S = 60.0
_ENDED_WITHIN_S = 110.0


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The test's environment without settings of ours; the user's directory finds `tests`."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith("WATCHKEEPER")
    }
    inherited.pop("WEB_CONCURRENCY", None)
    return {**inherited, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(extra or {})}


@dataclass(frozen=True)
class Ended:
    """A command that is over."""

    code: int
    out: str
    err: str

    def sentence(self) -> str:
        """The one line on stderr of a command that refused; it printed nothing else."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("watchkeeper: "), self.err
        return lines[0].removeprefix("watchkeeper: ")


def run(*arguments: str, cwd: Path = ROOT, variables: Mapping[str, str] | None = None) -> Ended:
    """Run the command to its end."""
    return _ended([str(WATCHKEEPER), *arguments], cwd, environment(variables))


# Imports what costs time once and forks for each command, which is much quicker than starting it.
_FORKS = """
import json, os, sys, traceback
import app.__main__, app.main, tests.fakes

for number, (arguments, variables) in enumerate(json.loads(sys.argv[1])):
    child = os.fork()
    if child == 0:
        for stream, name in ((1, "out"), (2, "err")):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(f"{sys.argv[2]}/{number}.{name}", flags), stream)
        os.environ.update(variables)
        sys.argv[:] = ["watchkeeper", *arguments]
        try:
            code = app.__main__.main()
        except SystemExit as left:
            code = left.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # taking so many modules down takes a second
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def run_all(
    cases: Sequence[tuple[Sequence[str], Mapping[str, str]]], cwd: Path, output: Path
) -> list[Ended]:
    """Run many commands to their ends, one after the other."""
    command = [sys.executable, "-P", "-c", _FORKS, json.dumps(cases), str(output)]
    driver = _ended(command, cwd, environment(), _ENDED_WITHIN_S)
    codes = [int(line) for line in driver.out.splitlines()]
    assert len(codes) == len(cases), driver.err

    def output_of(number: int, name: str) -> str:
        return (output / f"{number}.{name}").read_text()

    return [Ended(code, output_of(n, "out"), output_of(n, "err")) for n, code in enumerate(codes)]


def _ended(
    command: Sequence[str],
    cwd: Path,
    variables: Mapping[str, str],
    timeout_s: float = _ENDED_WITHIN_S,
) -> Ended:
    ended = subprocess.run(
        command,
        cwd=cwd,
        env=dict(variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


@dataclass
class Serving:
    """A service that runs as a process of its own; its output goes to files."""

    process: subprocess.Popen[bytes]
    url: str
    out: Path
    err: Path

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Send the process a signal."""
        self.process.send_signal(number)

    def wait(self, seconds: float) -> int:
        """The exit code; fails when the process is not over by then."""
        return self.process.wait(seconds)


@contextmanager
def serving(
    here: Path,
    *arguments: str,
    command: tuple[str, ...] = (str(WATCHKEEPER), "serve"),
    variables: Mapping[str, str] | None = None,
    announcement: str = r"on (http://127\.0\.0\.1:\d+)",
    patient: bool = True,
) -> Iterator[Serving]:
    """Serve from a directory on a free port until the block is left.

    The block begins when the service accepts connections; unless `patient`, with its address.
    """
    out, err = here / "stdout.log", here / "stderr.log"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            [*command, "--port", "0", *arguments],
            cwd=here,
            env=environment(variables),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        )
    try:
        url = _url(process, announcement, out, err)
        if patient:
            _wait_for(url)
        yield Serving(process, url, out, err)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _url(process: subprocess.Popen[bytes], announcement: str, *files: Path) -> str:
    deadline = time.monotonic() + _UP_WITHIN_S
    while True:
        over = process.poll() is not None
        output = "".join(file.read_text() for file in files)
        if found := re.search(announcement, output):
            return found[1]
        assert not over, output
        assert time.monotonic() < deadline, output
        time.sleep(0.02)


def _wait_for(url: str) -> None:
    """Wait until a service that has printed its address accepts connections."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    deadline = time.monotonic() + _UP_WITHIN_S
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1.0).close()
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, f"{url} was never served"
            time.sleep(0.02)
        else:
            return

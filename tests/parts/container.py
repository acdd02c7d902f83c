"""Runs the files of an image under the restrictions of a cluster, without a container engine.

A container is unshare, chroot and setpriv: a read-only root, an unprivileged user, no capabilities,
no way to gain any, and no shell.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.ports import free_port

_UP_WITHIN_S = 60

# Run as root of a mount and process namespace of its own; gives way to what it starts.
_CONTAINER = """
set -e
root=$1 user=$2 data=$3 agents=$4; shift 4
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o "uid=${user%:*},gid=${user#*:},mode=700" tmpfs "$root$data"
test -z "$agents" || mount --bind -o ro "$agents" "$root/srv"
for shell in sh dash bash; do mount --bind /dev/null "$root/bin/$shell"; done
exec chroot "$root" "$@"
"""


def _restricted(user: str) -> list[str]:
    uid, _, gid = user.partition(":")
    return [
        *("setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"),
        *("--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"),
    ]


@dataclass
class Container:
    """A service that runs from an image."""

    process: subprocess.Popen[bytes]
    root: Path
    url: str
    user: str
    environment: dict[str, str] = field(repr=False)

    @property
    def pid(self) -> int:
        """The service as this machine sees it; inside, it is the first process."""
        [pid] = _children(self.process)
        return pid

    def status(self, name: str) -> str:
        """A line of the kernel's status of the service's process."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return dict(line.split(":\t", 1) for line in lines)[name]

    def execute(self, command: Sequence[str]) -> int:
        """Run a command beside the service, under the same restrictions; its exit code."""
        beside = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "chroot", str(self.root)]
        done = subprocess.run(
            [*beside, *_environment(self.environment, "/srv"), *_restricted(self.user), *command],
            capture_output=True,
            timeout=30,
        )
        return done.returncode

    def stop(self) -> int:
        """Ask it to stop as an orchestrator does; its exit code."""
        os.kill(self.pid, signal.SIGTERM)
        return self.process.wait(30)


@contextmanager
def running(
    root: Path, settings: dict[str, Any], *command: str, agents: Path | None = None
) -> Iterator[Container]:
    """Run the image's own command, or another, from its files; killed at the end at the latest."""
    port = free_port()
    environment = dict(line.split("=", 1) for line in settings["Env"])
    # What the image would listen on is for a network of its own.
    environment |= {
        "WATCHKEEPER_HOST": "127.0.0.1",
        "WATCHKEEPER_PORT": str(port),
        "WATCHKEEPER_DRAIN_NOTICE_S": "0",
    }
    user = settings["User"] or "0:0"
    process = subprocess.Popen(
        [
            *("unshare", "--mount", "--pid", "--fork", "--kill-child"),
            *("sh", "-c", _CONTAINER, "container"),
            *(str(root), user, environment["WATCHKEEPER_DATA_DIR"], str(agents or "")),
            *_environment(environment, settings["WorkingDir"]),
            *_restricted(user),
            *(command or settings["Cmd"]),
        ]
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_up(url, process)
        yield Container(process, root, url, user, environment)
    finally:
        # The first process of the namespace takes all others with it. `--kill-child` would not do:
        # the kernel forgets that order when the user changes.
        for pid in _children(process):
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait(10)


def _children(process: subprocess.Popen[bytes]) -> list[int]:
    """What `unshare` has started, while it lives."""
    if process.poll() is not None:
        return []
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in children.read_text().split()]


def _wait_until_up(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _UP_WITHIN_S
    while process.poll() is None:
        try:
            httpx.get(f"{url}/health/ready").raise_for_status()
        except (httpx.TransportError, httpx.HTTPStatusError):
            assert time.monotonic() < deadline, f"{url} was never ready"
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"the container ended with {process.returncode}")


def _environment(variables: dict[str, str], folder: str) -> list[str]:
    return ["env", "-i", "-C", folder, *(f"{name}={value}" for name, value in variables.items())]

"""Builds images without a container engine.

The base is Debian by mmdebstrap, since no registry of images is needed to see that the Dockerfile
works; buildah builds in a chroot.
"""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
_BUILD_S = 900


class Builder:
    """Its own store of images, in a folder that is deleted afterwards."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        under = _run("stat", "--file-system", "--format=%T", str(folder)).strip()
        # Overlays save copies of whole images; the kernel takes none upon another.
        driver = "vfs" if under == "overlayfs" else "overlay"
        self._store = [
            *("buildah", "--storage-driver", driver),
            *("--root", str(folder / "images"), "--runroot", str(folder / "run")),
        ]

    def bootstrap(self) -> str:
        """An image of Debian with Python and nothing to install packages of Python with."""
        context = self._folder / "base"
        context.mkdir()
        _run(
            "mmdebstrap",
            "--quiet",
            "--variant=essential",
            "--include=python3,python3-venv,libstdc++6",
            "bookworm",
            str(context / "base.tar"),
        )
        (context / "Dockerfile").write_text("FROM scratch\nADD base.tar /\n")
        return self.build("base", context)

    def build(self, name: str, context: Path, **arguments: str) -> str:
        """Build the Dockerfile of a folder, and give the name of the image."""
        self._buildah(
            *("bud", "--isolation", "chroot", "--format", "docker", "--tag", name),
            *(f"--build-arg={key}={value}" for key, value in arguments.items()),
            *(f"--volume={volume}" for volume in self._trust()),
            str(context),
        )
        return f"localhost/{name}"

    def settings(self, image: str) -> dict[str, Any]:
        """The image's settings of how it runs."""
        inspected = json.loads(self._buildah("inspect", "--type", "image", image))
        settings: dict[str, Any] = inspected["Docker"]["config"]
        return settings

    @contextmanager
    def files(self, image: str) -> Iterator[Path]:
        """The files of an image, as a container has them."""
        container = self._buildah("from", image).strip()
        try:
            yield Path(self._buildah("mount", container).strip())
        finally:
            self._buildah("rm", container)

    def _trust(self) -> Iterator[str]:
        """Let pip trust during the build whom this machine trusts; the image keeps none of it."""
        if _AUTHORITIES.is_file():
            settings = self._folder / "pip.conf"
            settings.write_text(f"[global]\ncert = {_AUTHORITIES}\n")
            yield f"{_AUTHORITIES}:{_AUTHORITIES}:ro"
            yield f"{settings}:/etc/pip.conf:ro"

    def _buildah(self, *arguments: str) -> str:
        return _run(*self._store, *arguments)


@contextmanager
def builder() -> Iterator[Builder]:
    """A builder; its images are deleted afterwards. Raises if it cannot work."""
    if os.geteuid() != 0:
        raise RuntimeError("Building and running an image in a test needs root.")
    folder = Path(tempfile.mkdtemp(prefix="watchkeeper-images-"))
    try:
        yield Builder(folder)
    finally:
        shutil.rmtree(folder)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_S)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout

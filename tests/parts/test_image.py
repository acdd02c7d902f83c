"""The image is built, and what it holds runs with as little as a cluster gives it."""

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.parts.container import Container, running
from tests.parts.image import ROOT, Builder, builder

pytestmark = pytest.mark.timeout(1200)

TOOLS = ROOT / ".tools/bin"
# Beside the base: Python packages with their compiled files, and nothing to install more with.
_MOST_BYTES = 300_000_000

# The flags of a compiled file that is taken as it is, without a look at its source.
_NEVER_CHECKED = b"\x01\x00\x00\x00"

SHOP = """
from langchain.agents import create_agent
from langchain_core.language_models.fake_chat_models import FakeListChatModel

orders = create_agent(FakeListChatModel(responses=["It is on its way."]), [])
"""


@pytest.fixture(scope="module")
def images() -> Iterator[Builder]:
    with builder() as made:
        made.build("watchkeeper", ROOT, BASE=made.bootstrap(), COMMIT="c0ffee", VERSION="9.9.9")
        yield made


@pytest.fixture(scope="module")
def settings(images: Builder) -> dict[str, Any]:
    return images.settings("watchkeeper")


@pytest.fixture(scope="module")
def files(images: Builder) -> Iterator[Path]:
    with images.files("watchkeeper") as root:
        yield root


@pytest.fixture(scope="module")
def container(files: Path, settings: dict[str, Any]) -> Iterator[Container]:
    with running(files, settings) as started:
        yield started


def test_it_says_what_it_is(settings: dict[str, Any]) -> None:
    """Its labels name it, its version and the commit it was built from."""
    prefix = "org.opencontainers.image."
    labels = {k.removeprefix(prefix): v for k, v in settings["Labels"].items() if prefix in k}
    assert (labels["title"], labels["version"], labels["revision"]) == (
        "watchkeeper",
        "9.9.9",
        "c0ffee",
    )


def test_it_is_not_root(settings: dict[str, Any]) -> None:
    """Its user is a number, which a cluster can check not to be root's."""
    assert settings["User"] == "10001:10001"


def test_its_commands_need_no_shell(settings: dict[str, Any]) -> None:
    """It is started, and its health is asked, by a program and not by a line for a shell."""
    assert settings["Cmd"] == ["watchkeeper", "serve"]
    assert settings["Healthcheck"]["Test"][0] == "CMD"


def test_it_is_small(files: Path) -> None:
    """Nothing is in it but what serving needs: no pip, no tests, no sources of the build."""
    own = files / "opt/watchkeeper"
    assert sum(f.lstat().st_size for f in own.rglob("*")) < _MOST_BYTES
    assert not list(own.rglob("pip"))
    assert not (files / "build").exists()
    assert not (files / "opt/build").exists()
    assert not list((files / "srv").iterdir())


def test_it_is_compiled(files: Path) -> None:
    """No process compiles what it imports, whatever has become of the times of its files."""
    packages = files / "opt/watchkeeper/lib"
    sources = [*packages.rglob("app/**/*.py"), *packages.rglob("fastapi/**/*.py")]
    assert len(sources) > 50
    for source in sources:
        [compiled] = (source.parent / "__pycache__").glob(f"{source.stem}.*.pyc")
        assert compiled.read_bytes()[4:8] == _NEVER_CHECKED, compiled


def test_it_runs_with_nothing(container: Container) -> None:
    """The process that serves has no capabilities and cannot gain any."""
    assert container.status("Uid").split() == ["10001"] * 4
    assert container.status("NoNewPrivs") == "1"
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(container.status(kind), 16) == 0, kind


def test_its_files_are_read_only(container: Container) -> None:
    """It can write to its data directory and nowhere else."""
    write = "import sys; open(sys.argv[1] + '/written', 'w')"
    assert container.execute(["python", "-c", write, "/var/lib/watchkeeper"]) == 0
    for folder in ("/", "/srv", "/tmp", "/opt/watchkeeper"):
        assert container.execute(["python", "-c", write, folder]) != 0, folder


def test_it_has_no_shell(container: Container) -> None:
    """What the other tests see is seen without a shell."""
    assert container.execute(["sh", "-c", "true"]) != 0


def test_it_answers(container: Container) -> None:
    """It answers a question, and the scrape that follows has counted it."""
    answer = httpx.post(f"{container.url}/agent", json={"question": "Where is order 10023?"})
    assert answer.status_code == 200, answer.text
    assert "shipped" in answer.json()["answer"]
    scrape = httpx.get(f"{container.url}/metrics").text
    assert 'agent_runs_total{agent="demo",mode="sync",outcome="completed"} 1.0' in scrape
    assert 'commit="c0ffee"' in scrape


def test_it_keeps_what_it_accepts(container: Container) -> None:
    """A background run is stored in the data directory, worked, and answered."""
    body = {"question": "Where is order 10023?"}
    accepted = httpx.post(f"{container.url}/agent/async", json=body)
    assert accepted.status_code == 202, accepted.text
    url = f"{container.url}/agent/async/{accepted.json()['task_id']}?wait=20"
    ended = httpx.get(url, timeout=30).json()
    assert ended["status"] == "completed", ended


def test_its_health_check_tells_the_truth(container: Container, settings: dict[str, Any]) -> None:
    """The image's own health check passes beside the service, and not where nothing answers."""
    check = settings["Healthcheck"]["Test"][1:]
    assert container.execute(check) == 0
    nowhere = {**container.environment, "WATCHKEEPER_PORT": "1"}
    elsewhere = replace(container, environment=nowhere)
    assert elsewhere.execute(check) != 0


def test_it_stops_when_told(files: Path, settings: dict[str, Any]) -> None:
    """As the first process of a container it hears SIGTERM, and ends well."""
    with running(files, settings) as started:
        assert started.stop() == 0


def test_an_agent_of_ones_own(images: Builder, tmp_path: Path) -> None:
    """An image from this one with one file more serves the agent in it."""
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "Dockerfile").write_text(
        'FROM localhost/watchkeeper\nCOPY shop.py .\nCMD ["watchkeeper", "serve", "shop:orders"]\n'
    )
    image = images.build("shop", tmp_path)
    with images.files(image) as root, running(root, images.settings(image)) as started:
        answer = httpx.post(f"{started.url}/agents/orders", json={"question": "Where is it?"})
        assert answer.json()["answer"] == "It is on its way."


def test_a_mounted_agent(files: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    """Or the image stays as it is, and a folder with agents is mounted read-only."""
    (tmp_path / "shop.py").write_text(SHOP)
    tmp_path.chmod(0o755)
    command = ("watchkeeper", "serve", "shop:orders")
    with running(files, settings, *command, agents=tmp_path) as started:
        answer = httpx.post(f"{started.url}/agent", json={"question": "Where is it?"})
        assert answer.json()["answer"] == "It is on its way."


def test_the_dockerfile_is_clean() -> None:
    """hadolint finds nothing."""
    found = subprocess.run(
        [str(TOOLS / "hadolint"), str(ROOT / "Dockerfile")], capture_output=True, text=True
    )
    assert (found.returncode, found.stdout) == (0, "")

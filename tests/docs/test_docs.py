"""The prose is checked: links, commands, names, and the output in the README."""

import ast
import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
import tomllib
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app import settings
from app.__main__ import _parser
from app.api.problems import STATUSES
from app.runs.model import Outcome
from app.runs.prices import Prices
from app.runs.tasks import status_of
from app.telemetry.catalogue import METRICS
from app.telemetry.lines import LINES
from docs import generate
from tests.command import ROOT, serving
from tests.otlp import Received, receiver
from tests.upstreams import aimock

README = ROOT / "README.md"
CONTRACT = ROOT / "docs" / "reference" / "http.md"
SIGNALS = ROOT / "docs" / "signals.md"
PAGES = sorted([README, ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
# Its programs need a service that runs; test_clients.py runs them.
CLIENTS = ROOT / "docs" / "clients.md"
# Their commands look at a service with a past; tests/parts/test_runbooks.py runs them.
RUNBOOKS = ROOT / "docs" / "runbooks"
DEMO = "localhost:8000"


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code in a page."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """Its shell commands, taken apart."""
        lines = self.text.replace("\\\n", "").splitlines()
        return [words for line in lines if (words := shlex.split(line, True))]


@cache
def blocks(page: Path) -> tuple[Block, ...]:
    """Every fenced block of a page."""
    text = page.read_text()
    return tuple(
        Block(page, text.count("\n", 0, found.start()) + 2, found[1], found[2])
        for found in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S)
    )


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)


def named(block: Block) -> str:
    """The position of a block, as the name of a test."""
    return f"{block.page.relative_to(ROOT)}:{block.line}"


def all_blocks(*languages: str) -> list[Block]:
    """Every block in one of these languages, on any page."""
    return [block for page in PAGES for block in blocks(page) if block.language in languages]


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings give."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


def request_of(words: list[str]) -> httpx.Request:
    """What a curl command of ours asks."""
    method, headers, body, url = "", {}, None, ""
    rest = iter(words[1:])
    for word in rest:
        match word:
            case "-s":
                pass
            case "-X":
                method = next(rest)
            case "-H":
                name, _, value = next(rest).partition(":")
                headers[name] = value.strip()
            case "-d":
                body = next(rest)
            case _:
                url = f"http://{word.removeprefix('http://')}"
    return httpx.Request(method or ("POST" if body else "GET"), url, headers=headers, content=body)


CURLS = [
    pytest.param(words, id=f"{named(block)} {number}")
    for block in all_blocks("sh")
    if block.page != CLIENTS and block.page.parent != RUNBOOKS
    for number, words in enumerate(block.commands)
    if words[0] == "curl"
]


@dataclass(frozen=True, slots=True)
class Demo:
    """The demo, asked once as the README asks it: its address, the answer, the three signals."""

    url: str
    answer: Mapping[str, Any]
    samples: Mapping[tuple[str, frozenset[tuple[str, str]]], float]
    spans: tuple[Received, ...]
    line: Mapping[str, Any]

    def ask(self, words: list[str]) -> httpx.Response:
        """What the demo answers to a curl command."""
        request = request_of(words)
        assert request.url.netloc.decode() == DEMO
        request.url = request.url.copy_with(netloc=httpx.URL(self.url).netloc)
        with httpx.Client(timeout=30) as client:
            return client.send(request)


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    """The real command, its spans sent to a real receiver."""
    first = next(param.values[0] for param in CURLS)
    assert isinstance(first, list)
    with tempfile.TemporaryDirectory() as here, receiver() as collector:
        variables = {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }
        with serving(Path(here), variables=variables) as service:
            asked = Demo(service.url, {}, {}, (), {})
            answer = asked.ask(first).json()
            spans = collector.wait(lambda spans: any(s.kind == "SERVER" for s in spans))
            samples = {
                (sample.name, frozenset(sample.labels.items())): sample.value
                for family in text_string_to_metric_families(
                    httpx.get(f"{service.url}/metrics", timeout=30).text
                )
                for sample in family.samples
            }
            line = _line_of(service.out, "run_finished")
            yield Demo(service.url, answer, samples, tuple(spans), line)


def _line_of(log: Path, event: str) -> Mapping[str, Any]:
    """The one line of an event, which a thread of the service may write a moment later."""
    deadline = time.monotonic() + 20
    while not (found := re.findall(rf'^.*"event":"{event}".*\n', log.read_text(), re.M)):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    [line] = found
    fields: Mapping[str, Any] = json.loads(line)
    return fields


def printed(page: Path, language: str, containing: str) -> str:
    """The block of a page that holds this."""
    found = [b.text for b in blocks(page) if b.language == language and containing in b.text]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    """Every relative link of a page leads to a file, and its anchor to a heading there."""
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


PYTHON = [block for block in all_blocks("python") if block.page != CLIENTS]


@pytest.mark.parametrize("block", PYTHON, ids=named)
def test_python_blocks_run(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of Python runs as it stands."""
    monkeypatch.setenv("OPENAI_API_KEY", "not-a-secret")
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    if "import watch\n" in block.text:  # it watches the process that it is in
        ended = subprocess.run([sys.executable, "-c", block.text], cwd=ROOT, check=False)
        assert ended.returncode == 0
        return
    module = types.ModuleType("shop")
    exec(compile(ast.parse(block.text), named(block), "exec"), module.__dict__)


@pytest.mark.parametrize("block", all_blocks("toml"), ids=named)
def test_toml_blocks_are_settings(block: Block, tmp_path: Path) -> None:
    """Every block of TOML is a valid settings file."""
    assert tomllib.loads(block.text)
    file = tmp_path / "watchkeeper.toml"
    file.write_text(block.text)
    settings.read(file)


@pytest.mark.parametrize("block", all_blocks("json"), ids=named)
def test_json_blocks_parse(block: Block, tmp_path: Path) -> None:
    """Every block of JSON parses, and a table of prices is valid."""
    body = json.loads(block.text)
    if "models" in body:
        file = tmp_path / "prices.json"
        file.write_text(block.text)
        assert set(body["models"]) <= set(Prices.load(file).models)


@pytest.mark.parametrize("words", CURLS)
def test_curl_commands_are_answered(words: list[str], demo: Demo) -> None:
    """The demo answers every curl command."""
    assert demo.ask(words).status_code == 200


@pytest.mark.parametrize("block", all_blocks("sh"), ids=named)
def test_watchkeeper_commands_are_valid(block: Block) -> None:
    """The command line accepts every command of ours."""
    for words in block.commands:
        while words and "=" in words[0] and not words[0].startswith("-"):
            words.pop(0)
        if words and words[0] == "watchkeeper":
            _parser().parse_args(words[1:])


def test_make_targets_exist() -> None:
    """Every `make` target that a page names exists."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        assert set(re.findall(r"\bmake ([a-z-]+)\b[`\n]", page.read_text())) <= targets, page


def test_readme_answer(demo: Demo) -> None:
    """The demo answers what the README prints, but for ids and times."""
    shown = json.loads(printed(CONTRACT, "json", '"answer"'))
    varying = {"run_id": "", "trace_id": "", "duration_s": 0, "timings": dict[str, float]()}
    assert list(shown) == list(demo.answer)
    assert shown["timings"].keys() == demo.answer["timings"].keys()
    assert {**shown, **varying} == {**demo.answer, **varying}


def test_readme_metrics(demo: Demo) -> None:
    """Every sample in the README exists after one run; counts are the same."""
    for line in printed(SIGNALS, "text", "agent_runs_total").splitlines():
        sample, _, exemplar = line.partition(" # ")
        [family] = text_string_to_metric_families(sample + "\n")
        [shown] = family.samples
        value = demo.samples[shown.name, frozenset(shown.labels.items())]
        assert value == shown.value or "seconds_sum" in shown.name, line
        assert not exemplar or demo_trace(exemplar), line


def demo_trace(exemplar: str) -> bool:
    """Whether an exemplar names the trace of the answer that the contract shows."""
    return json.loads(printed(CONTRACT, "json", '"answer"'))["trace_id"] in exemplar


def test_readme_trace(demo: Demo) -> None:
    """The tree in the README is that of the run, with its kinds and attributes."""
    shown = printed(SIGNALS, "text", "└─ invoke_agent").splitlines()
    trace = sorted(
        (s for s in demo.spans if s.trace_id == demo.answer["trace_id"]), key=lambda s: s.start_s
    )
    assert len(shown) == len(trace)
    for line, span in zip(shown, trace, strict=True):
        title, kind, pairs = re.split(r"\s{2,}(SERVER|INTERNAL|CLIENT)\s+[\d.]+ ms\s+", line)
        assert (title.lstrip(" │├└─"), kind) == (span.name, span.kind)
        attributes = dict(pair.split("=") for pair in pairs.split())
        assert attributes == {name: str(span.attributes[name]) for name in attributes}


def test_readme_log_line(demo: Demo) -> None:
    """The log line in the README has the fields of a real one, and its counts."""
    shown = json.loads(printed(SIGNALS, "json", '"run_finished"'))
    assert list(shown) == list(demo.line)
    for name, value in shown.items():
        is_own = name.endswith(("_s", "_id")) or name in ("timestamp", "instance")
        assert is_own or demo.line[name] == value, name


def test_readme_signals_are_of_one_run() -> None:
    """The output in the README names one run and one trace."""
    answer = json.loads(printed(CONTRACT, "json", '"answer"'))
    line = json.loads(printed(SIGNALS, "json", '"run_finished"'))
    assert (answer["run_id"], answer["trace_id"]) == (line["run_id"], line["trace_id"])


def test_readme_agent_is_served(tmp_path: Path) -> None:
    """The command below the README's few lines serves them."""
    [agent] = [block for block in blocks(README) if block.language == "python"]
    assert len([line for line in agent.text.splitlines() if line]) < 10
    (tmp_path / "shop.py").write_text(agent.text)
    commands = [words for b in blocks(README) if b.language == "sh" for words in b.commands]
    command = next(words for words in commands if words[:2] == ["watchkeeper", "serve"])
    with aimock() as model:
        variables = {"OPENAI_API_KEY": "not-a-secret", "OPENAI_BASE_URL": model}
        with serving(tmp_path, *command[2:], variables=variables) as service:
            question = {"question": "Where is order 10023?"}
            for path in ("/agent", "/agents/orders"):
                answer = httpx.post(service.url + path, json=question, timeout=30).json()
                assert "Order 10023 is on its way." in answer["answer"]
                assert (answer["outcome"], answer["iterations"]) == ("completed", 1)


def test_contract_has_every_call_and_code(demo: Demo) -> None:
    """Every call of the service is in the contract, and every outcome, status and code."""
    table = prose(CONTRACT).partition("\n## Calls\n")[2].partition("\n## ")[0]
    documented = httpx.get(f"{demo.url}/openapi.json").json()["paths"]
    for path in documented:
        assert f"{path}`" in table, path
    for outcome in Outcome:
        assert f"`{outcome}`" in table, outcome
    cells = [row.split("|")[3] for row in table.splitlines() if row.count("|") == 6]
    codes = {code for cell in cells for code in re.findall(r"`(\w+)`", cell)} - {"code"}
    assert codes == codes_sent() - {"internal_error", "invalid_http", "disconnected"}
    responses = documented["/agent"]["post"]["responses"]
    shown = {status for row in table.splitlines() for status in re.findall(r"\b\d{3}\b", row)}
    assert set(responses) <= shown


def test_status_of_every_outcome_is_documented() -> None:
    """The table gives the status of each outcome; an outcome that is not there has none."""
    text = (ROOT / "docs" / "behaviour.md").read_text()
    table = text.partition("| `outcome` | `status` |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines() if "`" in line]
    documented = {
        Outcome(outcome): status.strip(" `")
        for outcomes, status in rows
        for outcome in re.findall(r"`(\w+)`", outcomes)
    }
    assert documented == {outcome: status_of(outcome) for outcome in documented}
    assert set(Outcome) - set(documented) == {Outcome.DISCONNECTED, Outcome.REJECTED}


@pytest.mark.parametrize("path", ["nowhere", "runs/none", "agent/async/none"])
def test_sentence_of_a_problem_is_in_the_reference(demo: Demo, path: str) -> None:
    """The sentence of a problem is in the reference, with its code."""
    body = httpx.get(f"{demo.url}/{path}").json()
    row = f"| {body['status']} | `{body['code']}` | no | {body['detail']} |"
    assert row in (ROOT / "docs" / "reference" / "errors.md").read_text()


def codes_sent() -> set[str]:
    """Every error code, as the reference has them."""
    return set(re.findall(r"^\| \d{3} \| `(\w+)`", generate.pages()["reference/errors.md"], re.M))


def test_codes_and_settings() -> None:
    """Every variable of ours that a page names is a setting, and every code is sent."""
    fields = settings.Settings.model_fields
    variables = {settings.variable(name) for name in fields if name != "agents"}
    variables |= {settings.CONFIG_VARIABLE, settings.AGENTS_VARIABLE}
    codes = codes_sent()
    assert set(STATUSES) <= codes
    for page in PAGES:
        text = page.read_text()
        assert set(re.findall(r"WATCHKEEPER_[A-Z_]*[A-Z]", text)) <= variables, page
        assert set(re.findall(r"\b(?:code|[45]\d\d) `(\w+)`", text)) <= codes, page


def test_names_of_signals() -> None:
    """Every metric and log event that a page names is in the catalogue."""
    metrics = {metric.name for metric in METRICS}
    series = metrics | {f"{m}_{part}" for m in metrics for part in ("sum", "count", "bucket")}
    events = {line.event for line in LINES}
    for page in PAGES:
        text = page.read_text()
        assert set(re.findall(r"\bagent_[a-z_]+(?=[`{])", text)) - {"agent_executor"} <= (
            series | events | {"agent_failed"}
        ), page
        assert set(re.findall(r"(?:line|warning|log,) `([a-z_]+)`", text)) <= events, page


def test_generated_pages_are_fresh() -> None:
    """The reference matches the code."""
    command = [sys.executable, "-m", "docs.generate", "--check"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_every_page_is_linked() -> None:
    """Every page can be reached from the README or from a page that it links."""
    links = "".join(prose(page) for page in PAGES)
    for page in PAGES:
        assert page == README or page.name in links, page


def test_no_page_names_a_local_directory() -> None:
    """No page names a directory of somebody's machine."""
    for page in PAGES:
        assert not re.search(r"/(?:home|root|work|tmp)/", page.read_text()), page


def test_files_that_pages_name_exist() -> None:
    """Every file of ours that a page names exists."""
    for page in PAGES:
        for name in re.findall(
            r"`((?:app|tests|dashboards|docs|deploy)/[\w./-]+)`", page.read_text()
        ):
            assert (ROOT / name).exists(), (page, name)
        for name in re.findall(
            r"`((?:runs|agents|api|tasks|telemetry)/\w+\.py)`", page.read_text()
        ):
            assert (ROOT / "app" / name).exists(), (page, name)


def test_modules_on_the_path_of_a_request_exist() -> None:
    """Every module in the drawings of the architecture exists."""
    page = ROOT / "docs" / "architecture.md"
    drawings = "".join(block.text for block in blocks(page) if block.language == "text")
    modules = set(
        re.findall(r"\b((?:runs|api|tasks|telemetry)\.[a-z_]+|agents(?:\.[a-z_]+)+)\b", drawings)
    )
    assert len(modules) > 10
    for module in modules:
        assert (ROOT / "app" / f"{module.replace('.', '/')}.py").exists(), module

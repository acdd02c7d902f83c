"""A store that cannot be opened stops the start with one sentence, which names the setting."""

import json
import sqlite3
from itertools import product
from pathlib import Path

import pytest

from tests.command import Ended, run_all

SERVE = ("serve", "--port", "0")
# An agent's module that breaks the service itself, as only a fault of ours could.
SABOTAGE = """
from app import main

def listen(*_):
    raise KeyError("a secret")

main.listen = listen
from tests.tasks.background import quick
"""
# By a name: the URL (of the file of that name), and what the sentence says of it.
REFUSED = {
    "text.sqlite": "file is not a database",
    "folder.sqlite": "unable to open database file",
    "nowhere/deep/none.sqlite": "Not a directory",
    "other.sqlite": "table workflow_status already exists",
    "later.sqlite": "TypeError",
    "torn.sqlite": "no such table: main.application_versions",
    "steps.sqlite": "file is not a database",
    "taken.sqlite": "migration 1 of its tables failed and changed nothing: "
    "there is already an index named watchkeeper_keys",
}
# What is no URL of a store; the last one has a password.
WRONG = {
    "mysql://localhost/x": "it is neither sqlite:///PATH nor postgresql://",
    "sqlite://": "it names no file",
    "store.sqlite": "it is no URL",
    "postgresql://me:a-secret@localhost:port/x": "it is no URL",
}
# Where the password ends is anybody's guess.
UNCLEAR = [
    "postgresql://me:at@a-secret@localhost/x",
    "postgresql://me:slash/a-secret@localhost/x",
    "postgresql://localhost:1/x?user=me@here&password=a-secret",
    "postgresql://localhost/x?user=me&password=at@a-secret",
]
# Passwords in every place where a driver takes one.
CLEAR = [
    "postgresql://me:a-secret@127.0.0.1:1/x",
    "postgresql://me:a-secret?#:@127.0.0.1:1/x",
    "postgresql://127.0.0.1:1/x?user=me&password=a-secret",
    "postgresql://127.0.0.1:1/x?password=a-secret&pass%77ord=a-secret&user=me",
    "postgresql://me@127.0.0.1:1/x?sslmode=disable&sslpassword=a-secret",
    "postgresql+psycopg://127.0.0.1:1/x?user=me&password=%61-secret%40",
]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with stores that are none."""
    here = tmp_path_factory.mktemp("stores")
    for name in ("text.sqlite", "steps.steps", "nowhere"):
        (here / name).write_text("not a database, but long enough to be mistaken for one" * 20)
    (here / "folder.sqlite").mkdir()
    (here / "wk_sabotage.py").write_text(SABOTAGE)
    for name, statements in {
        "other.sqlite": ["create table workflow_status (id int)"],
        "taken.sqlite": [
            "create table other (id int)",
            "create index watchkeeper_keys on other (id)",
        ],
        "later.sqlite": [
            "create table dbos_migrations (version text)",
            "insert into dbos_migrations values ('of another world')",
        ],
        "torn.sqlite": [
            "create table dbos_migrations (version integer)",
            "insert into dbos_migrations values (9999)",
        ],
    }.items():
        with sqlite3.connect(here / name) as file:
            for statement in statements:
                file.execute(statement)
    return here


@pytest.fixture(scope="module")
def ended(here: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """What became of a service on each of them."""
    stores = {name: f"sqlite:///{here / name}" for name in REFUSED} | {url: url for url in WRONG}
    cases: list[tuple[tuple[str, ...], dict[str, str]]] = [
        (SERVE, {"WATCHKEEPER_STORE_URL": url}) for url in stores.values()
    ]
    passwords = list(product(((), ("--check",)), CLEAR + UNCLEAR))
    cases += [((*SERVE, *check), {"WATCHKEEPER_STORE_URL": url}) for check, url in passwords]
    cases += [
        (SERVE, {"WATCHKEEPER_DATA_DIR": str(here / "nowhere" / "deep")}),
        ((*SERVE, "wk_sabotage:quick"), {"WATCHKEEPER_DATA_DIR": str(here / "data")}),
    ]
    endings = run_all(cases, here, tmp_path_factory.mktemp("output"))
    names = ["".join((url, *check)) for check, url in passwords]
    return dict(zip([*stores, *names, "data directory", "fault"], endings, strict=True))


@pytest.mark.parametrize("name", REFUSED)
def test_file_that_is_no_store_is_named(ended: dict[str, Ended], here: Path, name: str) -> None:
    """The file is named, with the reason and the setting; nothing was reported as served."""
    completed = ended[name]
    assert completed.code == 1
    assert completed.sentence() == (
        f"The store {here / name} cannot be opened: {REFUSED[name]}; see that it is there and may "
        "be written, or set WATCHKEEPER_STORE_URL to another."
    )
    assert "Traceback" not in completed.out


def test_unusable_data_directory_is_named(ended: dict[str, Ended], here: Path) -> None:
    """Without a URL, the sentence names the data directory."""
    completed = ended["data directory"]
    assert completed.code == 1
    assert completed.sentence().endswith("or set WATCHKEEPER_DATA_DIR to another.")
    assert str(here / "nowhere" / "deep" / "store.sqlite") in completed.sentence()


@pytest.mark.parametrize("url", WRONG)
def test_invalid_url_is_a_wrong_setting(ended: dict[str, Ended], url: str) -> None:
    """A fault of the URL itself is a wrong setting: code 2; no password is repeated."""
    completed = ended[url]
    assert completed.code == 2
    assert completed.sentence().startswith(f"WATCHKEEPER_STORE_URL names no store: {WRONG[url]}")
    assert "secret" not in completed.err + completed.out


@pytest.mark.parametrize("url", CLEAR)
def test_password_is_not_printed(ended: dict[str, Ended], url: str) -> None:
    """Wherever it is in the URL: neither a failing start nor `--check` prints it."""
    completed, checked = ended[url], ended[f"{url}--check"]
    assert completed.code == 1
    assert completed.sentence().startswith("The store postgresql")
    assert "127.0.0.1:1/x" in completed.sentence()
    assert checked.code == 0
    assert "127.0.0.1:1/x" in json.loads(checked.out.partition("\n}")[0] + "}")["store_url"]
    for text in (completed.err + completed.out, checked.err + checked.out):
        assert "secret" not in text
        assert "***" in text


@pytest.mark.parametrize("url", UNCLEAR)
def test_ambiguous_password_is_refused(ended: dict[str, Ended], url: str) -> None:
    """It is refused, with the form to write in its place, and is not repeated."""
    for completed in (ended[url], ended[f"{url}--check"]):
        assert completed.code == 2
        assert completed.sentence().startswith("WATCHKEEPER_STORE_URL: ")
        assert "%40" in completed.sentence()
        assert "secret" not in completed.err + completed.out
        assert "me" not in completed.sentence().split()


def test_own_fault_has_type_and_place(ended: dict[str, Ended]) -> None:
    """A fault of our own is reported too, by its type and place, and without its text."""
    completed = ended["fault"]
    assert completed.code == 1
    assert completed.sentence().startswith("Ended by a fault: KeyError at ")
    assert "wk_sabotage.py:5 listen" in completed.sentence()
    assert "secret" not in completed.err + completed.out

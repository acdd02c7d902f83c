"""An unusable PostgreSQL stops the start with one sentence, which names the setting."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.command import Ended, run_all, serving
from tests.parts.postgres import Cluster, cluster

SERVE = ("serve", "--port", "0")
PASSWORD = "not-the-one"
# The right one, as it is and as a URL has it.
RIGHT, RIGHT_WRITTEN = "the-one@/?&%", "the-one%40%2F%3F%26%25"
# The message of the server or the resolver for each; the rest differs between versions.
REFUSED = {
    "password": 'FATAL:  password authentication failed for user "stranger"',
    "password in the query": 'FATAL:  password authentication failed for user "stranger"',
    "database": 'FATAL:  database "nobodys" does not exist',
    "host": "failed to resolve host 'nowhere.invalid'",
    "port": "port 1 failed: Connection refused",
    "rights": "permission denied for",
    "other": 'column "held_until" does not exist',
    "torn": 'relation "dbos.workflow_status" does not exist',
}


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    with cluster() as started:
        with psycopg.connect(started.url, autocommit=True) as connection:
            connection.execute(f"create role stranger login password '{RIGHT}'".encode())
            connection.execute("create role reader login")
        started.ask_passwords_of("stranger")
        yield started


def spoilt(server: Cluster, name: str, *statements: str) -> str:
    """A database in which something was done that the service does not expect."""
    url = server.fresh(name)
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())
    return url


@pytest.fixture(scope="module")
def ended(server: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """What became of a service on each of them."""
    here = tmp_path_factory.mktemp("here")
    address = server.url.partition("@")[2]
    torn = server.fresh("torn")
    with serving(here, variables={"WATCHKEEPER_STORE_URL": torn}):
        pass  # now it has every table
    with psycopg.connect(torn, autocommit=True) as connection:
        connection.execute("drop table dbos.workflow_status cascade")
    urls = {
        "password": f"postgresql://stranger:{PASSWORD}@{address}",
        "password in the query": f"postgresql://{address}?user=stranger&password={PASSWORD}",
        "database": server.url.removesuffix("/postgres") + "/nobodys",
        "host": "postgresql://watchkeeper@nowhere.invalid/watchkeeper",
        "port": "postgresql://watchkeeper@127.0.0.1:1/watchkeeper",
        "rights": server.url.replace("watchkeeper@", "reader@"),
        "other": spoilt(server, "other", "create table watchkeeper_keys (id int)",
                        "create schema dbos", "create table dbos.workflow_status (id int)"),
        "torn": torn,
    }  # fmt: skip
    cases = [(SERVE, {"WATCHKEEPER_STORE_URL": url}) for url in urls.values()]
    endings = run_all(cases, here, tmp_path_factory.mktemp("output"))
    return dict(zip(urls, endings, strict=True))


@pytest.mark.parametrize("name", REFUSED)
def test_unusable_database_is_named_without_its_password(
    ended: dict[str, Ended], name: str
) -> None:
    """The database is named without its password, with the reason and the setting: code 1."""
    completed = ended[name]
    assert completed.code == 1, completed
    sentence = completed.sentence()
    assert sentence.startswith("The store postgresql://")
    assert REFUSED[name] in sentence
    assert sentence.endswith("or set WATCHKEEPER_STORE_URL to another.")
    assert PASSWORD not in completed.err + completed.out
    assert "Traceback" not in completed.out
    assert "select" not in completed.out.lower()


@pytest.mark.parametrize("way", ["before the host", "in the query"])
def test_database_with_the_right_password_is_used(
    server: Cluster, tmp_path: Path, way: str
) -> None:
    """With it, and with a database of its own, the same user is served; it is not printed."""
    name = f"strangers_{way[:2]}"
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"create database {name} owner stranger".encode())
    address = server.url.partition("@")[2].removesuffix("postgres") + name
    store = {
        "before the host": f"postgresql://stranger:{RIGHT_WRITTEN}@{address}",
        "in the query": f"postgresql://{address}?user=stranger&password={RIGHT_WRITTEN}",
    }[way]
    with serving(tmp_path, variables={"WATCHKEEPER_STORE_URL": store}) as service:
        output = service.err.read_text() + service.out.read_text()
    assert "Background runs are stored in postgresql://" in output
    assert "***" in output
    assert "the-one" not in output

"""A graph server that speaks Bolt (Neo4j and what can do as it does), through the official driver.

The password comes from the environment alone (`KGRANK_NEO4J_PASSWORD`) and is held by nothing but
the driver; no message, log or `repr` has it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import unquote, urlsplit

from kgrank.errors import ConfigError, DataError, Fault, StoreError

if TYPE_CHECKING:
    import neo4j

T = TypeVar("T")

PASSWORD_VARIABLE = "KGRANK_NEO4J_PASSWORD"
SCHEMES = ("neo4j", "neo4j+s", "neo4j+ssc", "bolt", "bolt+s", "bolt+ssc")
CONNECT_SECONDS = 10.0
RETRY_SECONDS = 30.0
"""How long a transaction is tried again after what may pass: a lost connection, a deadlock."""


def is_server(text: str) -> bool:
    """Whether the text means a graph server, and not a file or folder."""
    return text.partition("://")[0] in SCHEMES and "://" in text


@dataclass(frozen=True)
class Address:
    """Where a graph lies, and as whom it is asked for.

    Attributes:
        uri: scheme, host and port.
        user: who signs in.
        database: which database; None = the user's own.
    """

    uri: str
    user: str = "neo4j"
    database: str | None = None

    @classmethod
    def parse(cls, text: str, user: str = "neo4j", database: str | None = None) -> Address:
        """`neo4j://[user@]host[:port][/database]`; what the text leaves out is as given here.

        Raises:
            ConfigError: it is not of this form, or holds a password.
        """
        allowed = f"{'|'.join(SCHEMES)}://[user@]host[:port][/database]"
        scheme, _, rest = text.partition("://")
        if ":" in rest.rpartition("@")[0]:  # whatever else is wrong: a password may hold / ? #
            raise ConfigError(
                f"{scheme}://…: found a password in the address; allowed: {allowed}. "
                f"Put the password into the environment variable {PASSWORD_VARIABLE}."
            )
        try:
            parts = urlsplit(text)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise ConfigError(
                f"found a server address of another form ({error}); allowed: {allowed}. Correct it."
            ) from None
        path = unquote(parts.path).strip("/")
        if parts.scheme not in SCHEMES or not host or "/" in path or parts.query or parts.fragment:
            raise ConfigError(f"found the server {text!r}; allowed: {allowed}. Correct it.")
        host = f"[{host}]" if ":" in host else host
        uri = f"{parts.scheme}://{host}" + ("" if port is None else f":{port}")
        return cls(uri, unquote(parts.username or "") or user, path or database)

    def __str__(self) -> str:
        return self.uri + (f"/{self.database}" if self.database else "")


def quoted(name: str) -> str:
    """A label, relationship type or property as Cypher text that can mean nothing else.

    Raises:
        DataError: it is empty or holds NUL, which no server takes; or it holds `\\u`, which
            Neo4j 5 replaces by the character meant before it looks for quotes.
    """
    if not name or "\0" in name or "\\u" in name:
        allowed = "names that are not empty, without NUL and without \\u"
        mend = "Rename it before the graph is exported."
        raise DataError([Fault("graph", None, None, f"the name {name!r}", allowed, mend)])
    return "`" + name.replace("`", "``") + "`"


class Server:
    """An open connection, or several: each call has one. Use it as a context manager.

    Args:
        address: where.
        retry_seconds: how long a transaction is tried again after what may pass.
    """

    def __init__(self, address: Address, retry_seconds: float = RETRY_SECONDS) -> None:
        import neo4j

        self.address = address
        password = os.environ.get(PASSWORD_VARIABLE)
        with self._told():
            self._driver = neo4j.GraphDatabase.driver(
                address.uri,
                auth=None if password is None else (address.user, password),
                connection_timeout=CONNECT_SECONDS,
                connection_acquisition_timeout=2 * CONNECT_SECONDS,
                max_transaction_retry_time=retry_seconds,
                notifications_min_severity="OFF",
                telemetry_disabled=True,
                user_agent="kgrank",
            )

    def __repr__(self) -> str:
        return f"Server({str(self.address)!r})"

    def __enter__(self) -> Self:
        """Raises StoreError unless the server answers and lets the user in."""
        try:
            with self._told():
                self._driver.verify_connectivity()
        except BaseException:
            self._driver.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._driver.close()

    def write(self, work: Callable[[neo4j.ManagedTransaction], T]) -> T:
        """The result of `work`, done in one transaction: all of it, or nothing.

        It is called again after what may pass. Where the connection is lost while the transaction
        is being closed, nobody knows whether it was: `work` has to look before it writes.

        Raises:
            StoreError: the server cannot be reached, or refuses.
        """
        with self._told(), self._session() as session:
            return session.execute_write(work)

    def read(self, query: str, **parameters: Any) -> list[list[Any]]:
        """The rows of a query, all at once.

        Raises:
            StoreError: the server cannot be reached, or refuses.
        """
        with self._told(), self._session() as session:
            return session.execute_read(
                lambda transaction: [
                    record.values() for record in transaction.run(query, parameters)
                ]
            )

    def columns(self, query: str, n: int, **parameters: Any) -> list[list[Any]]:
        """The n columns of a query's rows; for many rows.

        Raises:
            StoreError: the server cannot be reached, or refuses.
        """

        def work(transaction: neo4j.ManagedTransaction) -> list[list[Any]]:
            columns: list[list[Any]] = [[] for _ in range(n)]
            for record in transaction.run(query, parameters):
                for column, value in zip(columns, record, strict=True):
                    column.append(value)
            return columns

        with self._told(), self._session() as session:
            return session.execute_read(work)

    def schema(self, command: str) -> None:
        """Run a command that changes the schema, which has a transaction of its own.

        Raises:
            StoreError: the server cannot be reached, or refuses.
        """
        self.write(lambda transaction: transaction.run(command).consume())

    def _session(self) -> neo4j.Session:
        return self._driver.session(
            database=self.address.database,
            fetch_size=5000,
            # a cluster's followers answer when they have what was written before
            bookmark_manager=self._driver.execute_query_bookmark_manager,
        )

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What the driver raises, as a StoreError with a mend and without the password."""
        from neo4j import exceptions

        try:
            yield
        except exceptions.AuthError as error:
            found = f"the user {self.address.user!r} is refused ({self._plain(error)})"
            mend = f"Set {PASSWORD_VARIABLE} in the environment; name the user as neo4j://user@host"
            raise self._refusal(found, "a user and password of this server", mend) from None
        except (exceptions.ServiceUnavailable, exceptions.SessionExpired, OSError) as error:
            mend = "Start it or correct the address, and run again: what is written already stays"
            allowed = "a server that speaks Bolt"
            raise self._refusal(f"no answer ({self._plain(error)})", allowed, mend) from None
        except (exceptions.Neo4jError, exceptions.DriverError) as error:
            mend = "See what it says"
            raise self._refusal(self._plain(error), "what the server takes", mend) from None

    def _refusal(self, found: str, allowed: str, mend: str) -> StoreError:
        return StoreError(f"{self.address}: found {found}; allowed: {allowed}. {mend}.")

    def _plain(self, error: BaseException) -> str:
        """One line of what was raised."""
        text = re.sub(r"\s+", " ", getattr(error, "message", None) or str(error)).strip()
        password = os.environ.get(PASSWORD_VARIABLE)
        if password:
            text = text.replace(password, "…")
        return text if len(text) <= 400 else text[:399] + "…"

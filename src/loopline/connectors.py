"""What `data=` may be: a file, a query, a function, or the table itself.

Text stands for a file, for `sql+URL?query=SELECT …` or for `module:function`. Nothing that is
logged, told or stored names a database by more than its driver, host and name.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Engine, NullPool, create_engine, make_url
from sqlalchemy.exc import SQLAlchemyError

from loopline.codecs import read_table
from loopline.errors import InvalidInput, LooplineError, MissingExtra, Unavailable
from loopline.fields import listing, native

if TYPE_CHECKING:
    import pandas as pd

CHUNK = 10_000
"""How many rows of a query are fetched at a time."""

_FUNCTION = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)")
_QUERY = re.compile(r"sql\+(.*?)[?&]query=(.*)", re.DOTALL)
_READ_ONLY = {"sqlite": "PRAGMA query_only = ON", "postgresql": "SET TRANSACTION READ ONLY"}
_PIP = {"psycopg": "'loopline[postgres]'", "MySQLdb": "mysqlclient"}
_KEPT = (str, int, float, bool, bytes, list, dict, type(None))


class Query:
    """The rows that a SELECT gives, in chunks and in a transaction that only reads.

    NULL is a missing value. Dates and times become ISO 8601 text, decimals numbers, and the
    database's own types (UUIDs, intervals, addresses) text.

    Args:
        sql: one statement, sent as it is written.
        url: the database as SQLAlchemy names it: `sqlite:///shop.db`,
            `postgresql://reader@host/shop`.
        folder: where the path of a SQLite file starts.

    Raises:
        InvalidInput: the URL is not one.
    """

    def __init__(self, sql: str, url: str, folder: Path = Path()) -> None:
        try:
            parsed = make_url(url)
        except (SQLAlchemyError, ValueError):
            parsed = None
        # An @ in the password would make the rest of it a part of the host. Neither the text nor
        # what a parser says of it may be told, since both hold the password.
        if parsed is None or "@" in (parsed.host or ""):
            raise InvalidInput(
                "a query needs a database's URL such as sqlite:///shop.db or "
                "postgresql://reader@host/shop; write %40 for an @ in a password"
            )
        self.sql = sql
        self._file: Path | None = None
        name = parsed.database or ":memory:"
        if parsed.get_backend_name() == "sqlite" and not name.startswith((":memory:", "file:")):
            self._file = folder / Path(name).expanduser()
            parsed = parsed.set(database=str(self._file))
        self._url = parsed

    def __str__(self) -> str:
        url = self._url
        return str(URL.create(url.drivername, host=url.host, port=url.port, database=url.database))

    def __repr__(self) -> str:
        return f"Query({self.sql!r}, {str(self)!r})"

    def __call__(self) -> pd.DataFrame:
        """Run it.

        Raises:
            InvalidInput: the database refuses the query, or it gives no columns or no rows.
            Unavailable: the database cannot be reached.
            MissingExtra: its driver is not installed.
        """
        import pandas as pd

        # Without parameters a driver takes a % or a colon in the text for what it is.
        options = {"yield_per": CHUNK, "no_parameters": True}
        engine = self._engine()
        with self._translated(Unavailable, "cannot be reached"):
            connection = engine.connect()
        with connection, self._translated(InvalidInput, "refused the query"):
            if engine.name in _READ_ONLY:
                connection.exec_driver_sql(_READ_ONLY[engine.name])
            with connection.exec_driver_sql(self.sql, execution_options=options) as result:
                names = list(result.keys()) if result.returns_rows else []
                columns: list[list[Any]] = [[] for _ in names]
                for part in result.partitions() if names else ():
                    for column, values in zip(columns, zip(*part, strict=True), strict=True):
                        column.extend(map(_plain, values))
        if not names or not columns[0]:
            raise InvalidInput(f"the query gave no {'rows' if names else 'columns'}: {self.sql}")
        return pd.DataFrame(dict(enumerate(columns))).set_axis(names, axis=1)

    def _engine(self) -> Engine:
        if self._file is not None and not self._file.is_file():
            raise InvalidInput(f"there is no file {str(self._file)!r}")
        try:
            with self._translated(InvalidInput, "is of no kind that is known"):
                return create_engine(self._url, poolclass=NullPool)
        except ImportError as error:
            # psycopg without the library under it names nothing.
            name = error.name or "psycopg"
            raise MissingExtra(
                f"{self} needs {name}: pip install {_PIP.get(name, name)}"
            ) from error

    @contextmanager
    def _translated(self, kind: type[LooplineError], what: str) -> Iterator[None]:
        """Tell a driver's error without the URL; the error itself may quote that, so it stays."""
        try:
            yield
        except (SQLAlchemyError, OSError, TypeError, ValueError) as error:
            reason = str(getattr(error, "orig", None) or error).strip()
            if self._url.password:
                reason = reason.replace(str(self._url.password), "***")
            raise kind(f"{self} {what}: {reason}") from None


def _plain(value: Any) -> Any:
    value = native(value)
    return value if isinstance(value, _KEPT) else str(value)


def source(data: Any, folder: Path = Path(), functions: bool = True) -> Any:
    """Make what a text stands for: a path, a `Query` or a function; other data stay what they are.

    Args:
        data: what was given as `data=`.
        folder: where relative paths start and a function's module is sought.
        functions: whether text may name a function, which is then imported.

    Raises:
        InvalidInput: the text is none of these, or the function cannot be imported.
    """
    if isinstance(data, Path):
        return folder / data.expanduser()
    if not isinstance(data, str):
        return data
    if query := _QUERY.fullmatch(data):
        return Query(query[2], query[1], folder)
    if "://" in data:
        raise InvalidInput(
            "data from a database need a query: sql+sqlite:///shop.db?query=SELECT …"
        )
    path = folder / Path(data).expanduser()
    named = _FUNCTION.fullmatch(data)
    if named is None or path.exists():
        return path
    if not functions:
        raise InvalidInput(f"{data} would run code; name a function in loopline.toml or app.py")
    if (beside := str(folder.resolve())) not in sys.path:
        sys.path.insert(0, beside)
    try:
        found = getattr(import_module(named[1]), named[2])
    except Exception as error:  # A module may do anything while it is imported.
        reason = f"{type(error).__name__}: {error}"
        raise InvalidInput(f"the data's function {data} is not there: {reason}") from error
    if not callable(found):
        raise InvalidInput(f"{data}, which should give the data, is not a function")
    return found


def title(data: Any) -> str:
    """Where what `source` gave comes from, as a person may read it; empty for a table itself."""
    if isinstance(data, Path | Query):
        return str(data)
    name = getattr(data, "__qualname__", type(data).__name__)
    return f"{getattr(data, '__module__', '?')}:{name}" if callable(data) else ""


def read(data: Any) -> pd.DataFrame:
    """Read a data set into a data frame with text column names and a fresh index.

    Args:
        data: a data frame or what makes one (records, columns); a path; text as for `source`; or
            a `Query` or any other function that returns one of these.

    Raises:
        InvalidInput: there is no such file, a function failed, the query was refused, or there is
            no column, or one of them twice.
        Unreadable: the file is not what its name says.
        Unavailable: the database cannot be reached.
        MissingExtra: a library for it is not installed.
    """
    import pandas as pd

    data = source(data)
    while callable(data):
        try:
            data = source(data())
        except LooplineError:
            raise
        except Exception as error:  # Anything may go wrong in a function that is not ours.
            reason = f"{type(error).__name__}: {error}"
            raise InvalidInput(f"the data's function {title(data)} failed: {reason}") from error
    try:
        frame = read_table(data) if isinstance(data, Path) else pd.DataFrame(data)
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"cannot make a table of {type(data).__name__}: {error}") from error
    names = [str(name) for name in frame.columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        told = f"names {listing(twice)} twice" if twice else "has no columns"
        raise InvalidInput(f"the data set {told}; each column needs a name of its own")
    return frame.reset_index(drop=True).set_axis(names, axis=1)

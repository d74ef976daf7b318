"""Where a command finds its models: a remote server, the running one, or the directory itself."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from loopline.cli.console import Console
from loopline.client import Client
from loopline.errors import InvalidInput, Unavailable
from loopline.opening import running
from loopline.settings import Settings, data_path, read_settings

CONFIG = "loopline.toml"


class Session:
    """What one command works with.

    Args:
        config: a configuration file; `loopline.toml` of the current directory where it is None.
        url: a server to talk to, instead of the one that has the data directory.
        token: sent to a server.
        json: whether the output is for a program.
        given: settings from the command line; None means "not given".
    """

    def __init__(
        self,
        config: str | None = None,
        url: str | None = None,
        token: str | None = None,
        json: bool = False,
        **given: Any,
    ) -> None:
        self.console = Console(json)
        self.config = _find_config(config)
        self.settings = _settings(self.config, given)
        self.root = data_path(self.settings)
        self.given = given
        self.url = url
        self._token = token or os.environ.get("LOOPLINE_TOKEN")
        self._stack = ExitStack()
        self._client: Client | None = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def client(self, create: bool = False) -> Client:
        """The way to the models, whoever has them.

        Args:
            create: whether a data directory that is not there is made.
        """
        if self._client is None and self.url is None and (found := running(self.root)) is not None:
            if not found.url:
                raise Unavailable(f"{self.root} is in use by process {found.pid}")
            self.url = found.url
        if self._client is None:
            self._client = self._connect(create)
        return self._client

    def _connect(self, create: bool) -> Client:
        if self.url is not None:
            return self._stack.enter_context(Client(self.url, self._token))
        if not create:
            self._check_root()
        from loopline.app import Loopline

        options = {name: getattr(self.settings, name) for name in Settings.__struct_fields__}
        return Client(self._stack.enter_context(Loopline(**options)))

    def tokens(self, create: bool = False) -> Client:
        """The way to the tokens: those of the store itself, whoever serves it, or of --url."""
        if self.url is not None:
            return self.client()
        if not create:
            self._check_root()
        from loopline.access import Access
        from loopline.opening import open_store, urls

        self.root.mkdir(parents=True, exist_ok=True)
        store = open_store(urls(self.settings)[1])
        self._stack.callback(store.close)
        return Client(_TokensOnly(Access(store)))

    def _check_root(self) -> None:
        if not self.root.is_dir() and not self.settings.store:
            raise InvalidInput(
                f"there is no data directory {self.root}; `loopline train` makes one, and "
                "--data-dir or --url say where else to look"
            )

    @property
    def beside(self) -> bool:
        """Whether the models are on this machine, so that a path means the same to both."""
        return self.url is None or running(self.root) is not None


class _TokensOnly:
    """As much of a loop as the client needs for tokens; no model is loaded for it."""

    def __init__(self, access: Any) -> None:
        self.access = access

    def start(self) -> Any:
        return self


def _find_config(given: str | None) -> Path | None:
    path = Path(given or CONFIG)
    if given is not None and not path.is_file():
        raise InvalidInput(f"there is no configuration file {given}")
    return path.resolve() if path.is_file() else None


def _settings(config: Path | None, given: Mapping[str, Any]) -> Settings:
    """The command line first, then the environment, then the configuration file."""
    try:
        document = {} if config is None else tomllib.loads(config.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput(f"{config}: {error}") from error
    table = document.get("settings", {})
    if not isinstance(table, dict):
        raise InvalidInput(f"{config}: settings is a table")
    if config is not None and isinstance(table.get("data_dir"), str):
        table["data_dir"] = str(config.parent / Path(table["data_dir"]).expanduser())
    values = {
        name: value for name, value in table.items() if f"LOOPLINE_{name.upper()}" not in os.environ
    }
    values.update({name: value for name, value in given.items() if value is not None})
    return read_settings(os.environ, **values)

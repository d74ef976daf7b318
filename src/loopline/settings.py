"""One frozen record of settings, read from a mapping that the caller passes in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from loopline.errors import FieldError, InvalidInput


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be set, with its default.

    Sizes are bytes, times are seconds. Each field can be given as a keyword, in the `[settings]`
    table of `loopline.toml`, or as the environment variable `LOOPLINE_` + its upper-case name.
    """

    data_dir: str = "./loopline-data"
    log: str = ""  # URL of the event log; default: sqlite file in the data directory
    store: str = ""  # URL of the store; default: sqlite file in the data directory
    blobs: str = ""  # URL of the blob store; default: a folder in the data directory
    host: str = "127.0.0.1"
    port: int = 8000
    grpc: str = ""  # HOST:PORT of the gRPC services; "" for none
    zerorpc: str = ""  # endpoint of the ZeroRPC service, tcp://HOST:PORT; "" for none
    zerorpc_keys: str = ""  # folder of CURVE keys: the server's, and those of its clients
    processes: int = 1
    workers: int = 1
    lane: bool = True  # answer plain predictions in front of the ASGI application
    root_path: str = ""  # path prefix behind a reverse proxy
    token_required: bool = False
    insecure: bool = False
    trust: bool = False
    debug: bool = False
    timeout: float = 30.0  # default deadline of a prediction
    max_body: int = 16 * 2**20
    max_rows: int = 100_000  # rows in one request
    max_queue: int = 4_096  # predictions waiting per model
    max_buffer: int = 64 * 2**20  # unacknowledged log bytes per replica
    log_full: Literal["refuse", "wait", "drop"] = "refuse"  # predictions, past that bound
    outcome_wait: float = 1.0  # how long `outcome` and `learn` wait for the join
    lease: float = 60.0  # a worker's lease on an attempt
    job_timeout: float = 24 * 3600.0
    job_memory: int = 0  # address-space cap of an attempt, 0 for none
    drain: float = 10.0  # how long a stopping server finishes what it began
    retention: float = 0.0  # keep predictions and examples this long, 0 for ever
    orphan_time: float = 7 * 24 * 3600.0  # how long an outcome waits for its prediction


def read_settings(environ: Mapping[str, str], **given: Any) -> Settings:
    """Build the settings: keywords first, then the environment, then the defaults.

    Args:
        environ: usually `os.environ`; only names that begin with `LOOPLINE_` are looked at.
        given: fields of `Settings`; None means "not given".

    Raises:
        InvalidInput: a value has the wrong type, or a keyword is not a setting.
    """
    values: dict[str, Any] = {}
    for name in Settings.__struct_fields__:
        text = environ.get(f"LOOPLINE_{name.upper()}")
        if text is not None:
            values[name] = text
    values.update({name: value for name, value in given.items() if value is not None})
    try:
        return msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidInput(
            f"setting {error}", fields=[FieldError("/settings", str(error))]
        ) from error


def data_path(settings: Settings) -> Path:
    """The data directory as an absolute path."""
    return Path(settings.data_dir).expanduser().resolve()

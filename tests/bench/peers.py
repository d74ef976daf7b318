"""The peers: how each is installed, in an environment of its own, and started.

`python -m tests.bench.peers` installs those that are on by default, or those that are named.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.bench.running import Theirs, environment
from tests.bench.workloads import IRIS, WORKLOADS

SERVERS = Path(__file__).parent / "peer_servers"
HOME = Path(
    os.environ.get("LOOPLINE_BENCH_PEERS") or Path.home() / ".cache" / "loopline-bench"
).expanduser()


class Environment(NamedTuple):
    """What one virtual environment holds."""

    packages: str
    default: bool = True
    python: str = sys.executable


ENVIRONMENTS = {
    "byhand": Environment(
        "scikit-learn pandas lightgbm fastapi falcon msgspec uvicorn uvloop httptools gunicorn"
    ),
    "litserve": Environment("scikit-learn litserve uvloop httptools"),
    "bentoml": Environment("scikit-learn bentoml"),
    # With a newer uvloop its workers find no event loop and die.
    "mlserver": Environment("scikit-learn mlserver mlserver-sklearn uvloop<0.22"),
    "zerorpc": Environment("scikit-learn zerorpc==0.6.3"),
    "mlflow": Environment("scikit-learn mlflow"),
    "ray": Environment("scikit-learn ray[serve]", default=False),
    # It has had no release for the libraries of today, nor for Python after 3.9.
    "chantilly": Environment(
        "chantilly river==0.10.1 flask<2.1 werkzeug<2.1 jinja2<3.1 itsdangerous<2.1 numpy<1.24 "
        "pandas<2 gunicorn<24 dill scikit-learn",
        default=False,
        python="python3.9",
    ),
}


class Peer(NamedTuple):
    """One way to serve the same model, and what it is asked.

    `command` is run in the environment's `bin`; PORT in it stands for the port, SECOND for another.
    """

    name: str
    home: str
    command: str
    path: str = "/predict"
    workload: str = "iris"
    rows: int = 1
    request: str = ""
    expect: str = ""
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def installed(self) -> bool:
        """Whether its environment is there and its models are trained."""
        return (HOME / self.home / "bench" / "iris.joblib").exists()

    @property
    def body(self) -> bytes:
        """The request."""
        return self.request.encode() or WORKLOADS[self.workload].body(self.rows)

    @property
    def wanted(self) -> str:
        """What a right answer holds."""
        return self.expect or WORKLOADS[self.workload].expect

    def server(self) -> Theirs:
        """Its server, to be started."""
        binaries = HOME / self.home / "bin"
        command = self.command.replace("HOME", str(HOME / self.home)).split()
        command[0] = str(binaries / command[0])
        environ = {
            "BENCH_WORKLOAD": self.workload,
            "PYTHONPATH": f"{SERVERS}{os.pathsep}{SERVERS.parent}",
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
            **dict(self.settings),
        }
        return Theirs(command, self.path, environ)


UVICORN = "uvicorn --loop uvloop --http httptools --no-access-log --log-level warning --port PORT "
GUNICORN = "gunicorn -w 1 -k sync --log-level warning -b 127.0.0.1:PORT "
TENSOR = {"name": "x", "shape": [1, 4], "datatype": "FP64", "data": [list(IRIS.values())]}
MLSERVER_SETTINGS = {
    "HOST": "127.0.0.1",
    "HTTP_PORT": "PORT",
    "GRPC_PORT": "SECOND",
    "METRICS_PORT": "0",
    "PARALLEL_WORKERS": "0",
    "DEBUG": "false",
}
BY_HAND = "fastapi async"

MLSERVER = Peer(
    *("mlserver, batches", "mlserver", "mlserver start HOME/bench/mlserver"),
    "/v2/models/iris/infer",
    request=json.dumps({"inputs": [TENSOR]}),
    expect='"outputs"',
    settings=tuple((f"MLSERVER_{name}", value) for name, value in MLSERVER_SETTINGS.items()),
)
RPC = (
    MLSERVER._replace(name="mlserver, grpc"),
    Peer("zerorpc-python", "zerorpc", f"python {SERVERS}/zerorpc_app.py PORT SECOND"),
)
"""Those that only speak another protocol, or are asked by it."""

PEERS = (
    Peer(BY_HAND, "byhand", UVICORN + "by_hand:app", "/async"),
    Peer("fastapi def", "byhand", UVICORN + "by_hand:app", "/def"),
    Peer("fastapi async, 10 rows", "byhand", UVICORN + "by_hand:app", "/many", rows=10),
    Peer("fastapi async, 100 rows", "byhand", UVICORN + "by_hand:app", "/many", rows=100),
    Peer("fastapi async, trees", "byhand", UVICORN + "by_hand:app", "/async", "trees"),
    Peer("fastapi async, frame", "byhand", UVICORN + "by_hand:app", "/async", "frame"),
    Peer("fastapi async, note", "byhand", UVICORN + "by_hand:app", "/async", "note"),
    Peer("falcon + gunicorn", "byhand", GUNICORN + "falcon_app:app"),
    Peer("litserve, batches", "litserve", f"python {SERVERS}/lit.py PORT"),
    Peer(
        *("bentoml, batches", "bentoml"),
        f"bentoml serve bento:Predict --working-dir {SERVERS} --port PORT",
        request=json.dumps({"rows": [IRIS]}),
    ),
    MLSERVER,
    Peer(
        *("mlflow", "mlflow"),
        "mlflow models serve -m HOME/bench/mlflow --env-manager local -h 127.0.0.1 -p PORT -w 1",
        "/invocations",
        request=json.dumps({"dataframe_records": [IRIS]}),
    ),
    Peer("ray serve, batches", "ray", f"python {SERVERS}/ray_app.py PORT"),
    Peer(
        *("chantilly", "chantilly", f"python {SERVERS}/chantilly_app.py PORT", "/api/predict"),
        request=json.dumps({"model": "iris", "id": "a", "features": IRIS}),
    ),
    Peer("fastapi, empty route", "byhand", UVICORN + "by_hand:app", "/empty"),
    Peer("raw asgi, empty", "byhand", UVICORN + "bare:app"),
)


def install(names: list[str]) -> None:
    """Make the environments one after the other, and train each one's models."""
    HOME.mkdir(parents=True, exist_ok=True)
    for name in names or [name for name, each in ENVIRONMENTS.items() if each.default]:
        wanted, folder = ENVIRONMENTS[name], HOME / name
        print(f"{name}: {wanted.packages}", flush=True)
        python = str(folder / "bin" / "python")
        if not Path(python).exists():
            subprocess.run([wanted.python, "-m", "venv", str(folder)], check=True)
        pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
        subprocess.run([*pip, *wanted.packages.split()], check=True)
        with environment(PYTHONPATH=str(SERVERS.parent)):
            subprocess.run([python, str(SERVERS / "prepare.py")], check=True)


if __name__ == "__main__":
    install(sys.argv[1:])

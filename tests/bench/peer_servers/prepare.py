"""Run by each peer's interpreter: train the models with its own libraries, and find them again."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import joblib
import workloads

FOLDER = Path(sys.prefix, "bench")


def load(name: str) -> Any:
    """A model that `main` trained in this environment."""
    return joblib.load(FOLDER / f"{name}.joblib")


def main() -> None:
    """Train and store whatever this environment has the libraries for."""
    FOLDER.mkdir(exist_ok=True)
    data, species = workloads.iris_arrays()
    iris = workloads.logistic().fit(data, species)
    joblib.dump(iris, FOLDER / "iris.joblib")
    with contextlib.suppress(ImportError):
        joblib.dump(workloads.trees().fit(data, species), FOLDER / "trees.joblib")
    with contextlib.suppress(ImportError):
        _frames()
    with contextlib.suppress(ImportError):
        _mlserver(data, species)
    with contextlib.suppress(ImportError):
        _mlflow(iris)


def _frames() -> None:
    for name in ("frame", "note"):
        model, table, target = workloads.WORKLOADS[name].make()
        rows = table()
        joblib.dump(model.fit(rows.drop(columns=target), rows[target]), FOLDER / f"{name}.joblib")


def _mlserver(data: Any, species: Any) -> None:
    """MLServer's folder; its tensors hold numbers only, so the classes are numbers too."""
    import mlserver  # noqa: F401

    folder = FOLDER / "mlserver"
    folder.mkdir(exist_ok=True)
    numbers = [sorted(set(species)).index(each) for each in species]
    joblib.dump(workloads.logistic().fit(data, numbers), folder / "model.joblib")
    settings = {
        "name": "iris",
        "implementation": "mlserver_sklearn.SKLearnModel",
        "max_batch_size": 64,
        "max_batch_time": 0.001,
        "parameters": {"uri": str(folder / "model.joblib"), "version": "1"},
    }
    (folder / "model-settings.json").write_text(json.dumps(settings))


def _mlflow(model: Any) -> None:
    import mlflow.sklearn

    folder = FOLDER / "mlflow"
    shutil.rmtree(folder, ignore_errors=True)
    mlflow.sklearn.save_model(model, folder, serialization_format="cloudpickle")


if __name__ == "__main__":
    main()

"""chantilly with a River model of its own, taught by its own API, under gunicorn's sync worker."""

import os
import random
import sys
from pathlib import Path

import chantilly
import dill
from prepare import FOLDER
from river import compose, linear_model, multiclass, preprocessing
from workloads import IRIS, iris_arrays

PASSES = 2


def ask(client, path, **body):
    """POST to the application itself, which has to take it."""
    answer = client.post(path, **body)
    assert answer.status_code in (200, 201), answer.data


def teach(client):
    """Add the model and let it see the irises, shuffled, a few times."""
    ask(client, "/api/init", json={"flavor": "multiclass"})
    model = compose.Pipeline(
        preprocessing.StandardScaler(),
        multiclass.OneVsRestClassifier(linear_model.LogisticRegression()),
    )
    ask(client, "/api/model/iris", data=dill.dumps(model))
    data, species = iris_arrays()
    order = list(range(len(data))) * PASSES
    random.Random(1).shuffle(order)
    for number in order:
        row = {name: float(data[number][column]) for column, name in enumerate(IRIS)}
        example = {"features": row, "ground_truth": str(species[number])}
        ask(client, "/api/learn", json=example)


if __name__ == "__main__":
    for old in FOLDER.glob("shelf*"):
        old.unlink()
    os.environ["SHELVE_PATH"] = str(FOLDER / "shelf")
    teach(chantilly.create_app().test_client())
    gunicorn = str(Path(sys.prefix, "bin", "gunicorn"))
    where = f"127.0.0.1:{sys.argv[1]}"
    os.execv(gunicorn, [gunicorn, "-w", "1", "-k", "sync", "-b", where, "chantilly:create_app()"])

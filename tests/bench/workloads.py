"""What is served: models with their data, and a request for each whose answer is known.

Also imported by the peers, each in an environment of its own: nothing of Loopline comes in here.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any, NamedTuple

IRIS = {"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}
MIXED = {
    "age": 61,
    "hours": 60,
    "schooling": 16,
    "gains": 900.0,
    "work": "own",
    "job": "doctor",
    "region": "north",
    "married": "yes",
}
CHOICES = {
    "work": ("own", "private", "public", "none"),
    "job": ("doctor", "teacher", "cook", "clerk", "driver", "farmer", "nurse", "guard"),
    "region": ("north", "east", "south", "west", "coast", "islands"),
    "married": ("yes", "no"),
}
NOTE = "The petals are short and the sepals wide; found beside the path after the rain. "
ROWS = 5000


class Workload(NamedTuple):
    """One model, the row that is sent, and a text that its answer has to hold."""

    row: dict[str, Any]
    expect: str
    make: Callable[[], tuple[Any, Callable[[], Any], str]]

    def body(self, rows: int = 1) -> bytes:
        """The request: one row as an object, or several in a list."""
        return json.dumps(self.row if rows == 1 else [self.row] * rows).encode()


def logistic() -> Any:
    """A pipeline of scaling and logistic regression."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))


def trees() -> Any:
    """LightGBM's classifier as it comes: a hundred trees per class."""
    from lightgbm import LGBMClassifier

    return LGBMClassifier(verbose=-1)


def frame_pipeline() -> Any:
    """A pipeline that wants a data frame: scaled numbers and one-hot categories."""
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numbers = [name for name in MIXED if name not in CHOICES]
    encoded = make_column_transformer(
        (StandardScaler(), numbers), (OneHotEncoder(handle_unknown="ignore"), list(CHOICES))
    )
    return make_pipeline(encoded, LogisticRegression(max_iter=500))


def noted_pipeline() -> Any:
    """The same regression on an iris, beside a text that it does not look at."""
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scaled = make_column_transformer((StandardScaler(), list(IRIS)))
    return make_pipeline(scaled, LogisticRegression(max_iter=500))


def iris_arrays() -> tuple[Any, Any]:
    """The irises and the names of their species."""
    from sklearn.datasets import load_iris

    iris = load_iris()
    return iris.data, iris.target_names[iris.target]


def iris_table() -> Any:
    """The same as a data frame."""
    import pandas as pd

    data, species = iris_arrays()
    return pd.DataFrame(data, columns=list(IRIS)).assign(species=species)


def noted_table() -> Any:
    """Irises with about a kilobyte of text each, all different."""
    table = iris_table()
    return table.assign(note=[f"{number} {note()}" for number in range(len(table))])


def note() -> str:
    """About a kilobyte of text."""
    return (NOTE * 13)[:990]


def mixed_table() -> Any:
    """People with numbers and categories, made up; the target follows from both, with noise."""
    import pandas as pd

    chance = random.Random(1)
    rows = [_person(chance) for _ in range(ROWS)]
    return pd.DataFrame(rows)


def _person(chance: random.Random) -> dict[str, Any]:
    person: dict[str, Any] = {name: chance.choice(words) for name, words in CHOICES.items()}
    person |= {"age": chance.randint(18, 80), "hours": chance.randint(5, 70)}
    person |= {"schooling": chance.randint(4, 18), "gains": chance.expovariate(0.01)}
    points = person["hours"] / 10 + person["schooling"] / 3 + 2 * (person["job"] == "doctor")
    income = "high" if points + chance.gauss(0, 1) > 8 else "low"
    return {**{name: person[name] for name in MIXED}, "income": income}


def busy_table() -> Any:
    """Enough rows to keep a training busy for some seconds."""
    import pandas as pd
    from sklearn.datasets import make_classification

    data, labels = make_classification(20_000, 20, n_informative=10, random_state=1)
    table = pd.DataFrame(data, columns=[f"x{number}" for number in range(20)])
    return table.assign(label=[("no", "yes")[label] for label in labels])


def boosting() -> Any:
    """An estimator whose training takes some seconds."""
    from sklearn.ensemble import GradientBoostingClassifier

    return GradientBoostingClassifier(n_estimators=50, subsample=0.5)


WORKLOADS = {
    "iris": Workload(IRIS, "setosa", lambda: (logistic(), iris_table, "species")),
    "trees": Workload(IRIS, "setosa", lambda: (trees(), iris_table, "species")),
    "frame": Workload(MIXED, "high", lambda: (frame_pipeline(), mixed_table, "income")),
    "note": Workload(
        {**IRIS, "note": note()}, "setosa", lambda: (noted_pipeline(), noted_table, "species")
    ),
}

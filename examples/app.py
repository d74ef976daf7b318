"""Two models for every example here: `loopline serve app.py`."""

import numpy as np
import pandas as pd
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from loopline import Loopline
from loopline.builtin import Formula


def advertising():
    """200 made-up markets: what was spent on advertising, and what was sold."""
    random = np.random.default_rng(7)
    spent = random.uniform(0, [300, 50, 100], size=(200, 3)).round(1)
    table = pd.DataFrame(spent, columns=["TV", "Radio", "Newspaper"])
    sold = 7 + 0.05 * table["TV"] + random.normal(0, 2, size=200)
    return table.assign(Sales=sold.round(1))


def flowers():
    """150 irises with their species by name."""
    iris = load_iris(as_frame=True)
    table = iris.data.rename(columns=lambda name: name.removesuffix(" (cm)").replace(" ", "_"))
    return table.assign(species=iris.target_names[iris.target])


app = Loopline()
app.add(
    "sales",
    Formula("Sales ~ TV"),
    data=advertising,
    target="Sales",
    description="Sales by television budget.",
)
app.add(
    "iris",
    LogisticRegression(max_iter=500),
    data=flowers,
    target="species",
    description="The species of an iris, from the measures of its flower.",
)

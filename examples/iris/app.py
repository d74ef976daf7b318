"""A classifier behind HTTP that retrains itself: `loopline serve app.py`."""

from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from loopline import Every, Loopline


def flowers():
    """150 irises with their species by name."""
    iris = load_iris(as_frame=True)
    table = iris.data.rename(columns=lambda name: name.removesuffix(" (cm)").replace(" ", "_"))
    return table.assign(species=iris.target_names[iris.target])


app = Loopline()
app.add(
    "iris",
    make_pipeline(StandardScaler(), LogisticRegression()),
    data=flowers,
    target="species",
    retrain=Every(outcomes=50, mode="auto"),
    description="The species of an iris, from the measures of its flower.",
)

"""The features that an estimator gets when it brings none of its own: scikit-learn's transformers.

They are fitted with the estimator and are a part of its version, so what a served model sees is
what the trained one saw.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from loopline.errors import InvalidInput
from loopline.fields import Field
from loopline.natives import grows_trees, is_a, parts, takes_missing
from loopline.records import Row
from loopline.schema import Schema

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

FEW_TEXTS = 50
MOST_COLUMNS_PER_FIELD = 50
UNSEEN = -1


def pipeline(schema: Schema, estimator: Any, frame: pd.DataFrame | None = None) -> Any:
    """Put standard features in front of an estimator that reads numbers only.

    Trees get one code per category, with a code of its own for an unseen one; a missing one is a
    category like any other.
    Other estimators get indicators, the rarest categories sharing one with the unseen, and scaled
    numbers. Missing numbers become the median where the estimator cannot take them.

    Args:
        schema: the fields; those that are not used are left out.
        estimator: an unfitted scikit-learn compatible estimator, which becomes the step `model`.
        frame: the training rows; without them every text field is left out.

    Returns:
        An unfitted `sklearn.pipeline.Pipeline` that takes frames.

    Raises:
        InvalidInput: no field is left that the estimator could use.
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline

    numbers, categories = usable(schema, frame)
    if not numbers and not categories:
        raise InvalidInput("no field is left to train on: all of them are free text")
    trees = grows_trees(estimator)
    steps = [
        (name, made, [field.name for field in fields])
        for name, fields, made in (
            ("numbers", numbers, _for_numbers(numbers, estimator, trees)),
            ("categories", categories, _for_categories(categories, trees)),
        )
        if fields
    ]
    features = ColumnTransformer(steps, verbose_feature_names_out=False, sparse_threshold=0.0)
    return Pipeline([("features", features), ("model", estimator)])


def usable(schema: Schema, frame: pd.DataFrame | None = None) -> tuple[list[Field], list[Field]]:
    """The used fields that can become features: those that are numbers, and the categories.

    Free text is among the categories only where the rows hold few different texts.
    """
    used = [field for field in schema.fields if field.used]
    numbers = [field for field in used if field.kind in ("number", "integer", "boolean")]
    categories = [
        field
        for field in used
        if field.kind == "category" or (field.kind == "text" and _few(field, frame))
    ]
    return numbers, categories


def _few(field: Field, frame: pd.DataFrame | None) -> bool:
    return frame is not None and frame[field.name].nunique() <= FEW_TEXTS


def _for_numbers(fields: Iterable[Field], estimator: Any, trees: bool) -> Any:
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    steps: list[tuple[str, Any]] = []
    if any(field.nullable for field in fields) and not takes_missing(estimator):
        steps.append(("fill", SimpleImputer(strategy="median", keep_empty_features=True)))
    if not trees:
        steps.append(("scale", StandardScaler()))
    return Pipeline(steps) if steps else "passthrough"


def _for_categories(fields: Iterable[Field], trees: bool) -> Any:
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder

    encoder = (
        OrdinalEncoder(
            handle_unknown="use_encoded_value",
            unknown_value=UNSEEN,
        )
        if trees
        else OneHotEncoder(
            handle_unknown="infrequent_if_exist",
            max_categories=MOST_COLUMNS_PER_FIELD,
            sparse_output=False,
        )
    )
    if all(len({type(value) for value in field.categories or ()}) <= 1 for field in fields):
        return encoder
    words = FunctionTransformer(as_text, feature_names_out="one-to-one")
    return Pipeline([("text", words), ("encode", encoder)])


def quick(pipeline: Any) -> Callable[[Schema, Sequence[Row]], np.ndarray[Any, Any]]:
    """The fitted features of such a pipeline as a function of rows, without a frame in between.

    A frame and scikit-learn's checks of it cost more than everything else in an answer.

    Returns:
        A function of a schema and n rows that gives float64 of shape (n, features).
    """
    import numpy as np

    pieces = [
        (columns, np.float64 if name == "numbers" else object, _piece(copy.deepcopy(made)))
        for name, made, columns in pipeline.steps[0][1].transformers_
        if name != "remainder"
    ]

    def transform(schema: Schema, rows: Sequence[Row]) -> np.ndarray[Any, Any]:
        at = {field.name: i for i, field in enumerate(schema.fields)}
        made = []
        for columns, kind, piece in pieces:
            picked = [at[name] for name in columns]
            values = np.empty((len(rows), len(picked)), dtype=kind)
            values[:] = [[row[i] for i in picked] for row in rows]
            made.append(piece(values))
        return np.hstack(made)

    return transform


def _piece(made: Any) -> Callable[[Any], Any]:
    """One fitted transformer as a function of an array."""
    if is_a(made, "OrdinalEncoder"):
        return _codes(made)
    for part in parts(made):
        vars(part).pop("feature_names_in_", None)
    transform: Callable[[Any], Any] = made.transform
    return transform


def _codes(encoder: Any) -> Callable[[Any], Any]:
    import numpy as np

    codes = [
        {value: float(i) for i, value in enumerate(known.tolist())} for known in encoder.categories_
    ]

    def transform(values: Any) -> Any:
        columns = zip(codes, values.T.tolist(), strict=True)
        found = [[known.get(value, float(UNSEEN)) for value in column] for known, column in columns]
        return np.array(found).T

    return transform


def as_text(values: Any) -> np.ndarray[Any, np.dtype[Any]]:
    """Spell every value that is there, so that an encoder can sort them; missing ones are None."""
    import numpy as np

    matrix = np.asarray(values, dtype=object)
    flat = [None if v is None or v != v else str(v) for v in matrix.ravel().tolist()]
    spelled = np.empty(len(flat), dtype=object)
    spelled[:] = flat
    return spelled.reshape(matrix.shape)

"""The features that an estimator gets when it brings none of its own: scikit-learn's transformers.

They are fitted with the estimator and are a part of its version, so what a served model sees is
what the trained one saw.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from loopline import folding
from loopline.errors import InvalidInput
from loopline.fields import Field
from loopline.natives import grows_trees, is_a, parts, takes_missing
from loopline.records import Row
from loopline.schema import Schema

if TYPE_CHECKING:
    import pandas as pd

FEW_TEXTS = 50
MOST_COLUMNS_PER_FIELD = 50
UNSEEN = -1

_DTYPES = {"number": "float64", "integer": "int64", "boolean": "bool"}
_WITH_NULLS = {"int64": "float64", "bool": "object"}

Reader = Callable[[Sequence[Row]], Any]


def pipeline(schema: Schema, estimator: Any, frame: pd.DataFrame | None = None) -> Any:
    """Put standard features in front of an estimator that reads numbers only.

    Trees get one code per category, with a code of its own for an unseen one; a missing one is a
    category like any other. Other estimators get indicators, the rarest categories sharing one
    with the unseen, and scaled numbers. Missing numbers become the median where the estimator
    cannot take them. Without a frame of the training rows every text field is left out.

    Returns:
        An unfitted `sklearn.pipeline.Pipeline` that takes frames, its last step named `model`.

    Raises:
        InvalidInput: no field is left that the estimator could use.
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline

    numbers, categories = usable(schema, frame)
    if not numbers and not categories:
        raise InvalidInput("no field is left to train on: all of them are free text")
    trees = grows_trees(estimator)
    both = (
        ("numbers", _for_numbers(numbers, estimator, trees), [field.name for field in numbers]),
        ("categories", _for_categories(categories, trees), [field.name for field in categories]),
    )
    steps = [each for each in both if each[-1]]
    features = ColumnTransformer(steps, verbose_feature_names_out=False, sparse_threshold=0.0)
    return Pipeline([("features", features), ("model", estimator)])


def usable(schema: Schema, frame: pd.DataFrame | None = None) -> tuple[list[Field], list[Field]]:
    """The used fields that can become features: those that are numbers, and the categories.

    Free text is among the categories only where the rows hold few different texts.
    """
    used = [field for field in schema.fields if field.used]
    texts = [field.name for field in used if field.kind == "text"]
    few = [n for n in texts if frame is not None and frame[n].nunique() <= FEW_TEXTS]
    numbers = [field for field in used if field.kind in ("number", "integer", "boolean")]
    return numbers, [field for field in used if field.kind == "category" or field.name in few]


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

    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=UNSEEN)
    if not trees:
        encoder = OneHotEncoder(
            handle_unknown="infrequent_if_exist",
            max_categories=MOST_COLUMNS_PER_FIELD,
            sparse_output=False,
        )
    if all(len({type(value) for value in field.categories or ()}) <= 1 for field in fields):
        return encoder
    words = FunctionTransformer(as_text, feature_names_out="one-to-one")
    return Pipeline([("text", words), ("encode", encoder)])


def array(schema: Schema, names: Sequence[str]) -> Reader:
    """How rows become float64 of shape (rows, names), null as NaN, for fields of numbers."""
    at, width = _places(schema, names), len(names)
    whole = at == list(range(len(schema.fields)))

    def read(rows: Sequence[Row]) -> Any:
        every = chain.from_iterable(rows) if whole else [row[i] for row in rows for i in at]
        return np.fromiter(every, np.float64, len(rows) * width).reshape(len(rows), width)

    return read


def frame(schema: Schema, names: Sequence[str]) -> Reader:
    """How rows become a data frame of these columns.

    Numbers are float64, integers int64 (float64 with nulls), booleans bool (object with nulls),
    the rest object. pandas is handed the blocks that it would find by itself, in a tenth of the
    time.
    """
    import pandas as pd
    from pandas.api.internals import create_dataframe_from_blocks

    if schema.open:
        wanted = list(names) or slice(None)
        return lambda rows: pd.DataFrame([row[0] for row in rows]).loc[:, wanted]
    labels, at = pd.Index(list(names)), _places(schema, names)
    kinds = [_DTYPES.get(schema.fields[i].kind, "object") for i in at]

    def read(rows: Sequence[Row]) -> Any:
        columns = list(zip(*rows, strict=True)) or [()] * len(schema.fields)
        blocks: dict[str, list[int]] = {}
        for place, (i, kind) in enumerate(zip(at, kinds, strict=True)):
            if kind in _WITH_NULLS and None in columns[i]:
                kind = _WITH_NULLS[kind]
            blocks.setdefault(kind, []).append(place)
        made = []
        for kind, places in blocks.items():
            made.append((np.empty((len(places), len(rows)), kind), np.array(places)))
            for line, place in zip(made[-1][0], places, strict=True):
                line[:] = columns[at[place]]
        return create_dataframe_from_blocks(made, pd.RangeIndex(len(rows)), labels)

    return read


def _places(schema: Schema, names: Sequence[str]) -> list[int]:
    known = [field.name for field in schema.fields]
    return [known.index(name) for name in names]


def quick(pipeline: Any, schema: Schema) -> Reader:
    """The fitted features of such a pipeline, as float64, without a frame in between.

    A frame and scikit-learn's checks of it cost more than everything else in an answer.
    """
    pieces = [
        _piece(copy.deepcopy(made), schema, columns, array if name == "numbers" else frame)
        for name, made, columns in pipeline.steps[0][1].transformers_
        if name != "remainder"
    ]
    return lambda rows: np.ascontiguousarray(np.hstack([piece(rows) for piece in pieces]))


def _piece(
    made: Any, schema: Schema, names: Sequence[str], form: Callable[[Schema, Sequence[str]], Reader]
) -> Reader:
    """What one fitted transformer makes of some columns of the rows."""
    for part in parts(made):
        vars(part).pop("feature_names_in_", None)
    encode = folding.encoder(made)
    if encode is not None:
        at = _places(schema, names)
        return lambda rows: encode([[row[i] for row in rows] for i in at])
    idle = is_a(made, "FunctionTransformer") and made.func is None
    transform, read = np.asarray if idle else folding.quick(made, "transform"), form(schema, names)
    return lambda rows: transform(np.asarray(read(rows)))


def as_text(values: Any) -> np.ndarray[Any, np.dtype[Any]]:
    """Spell every value that is there, so that an encoder can sort them; missing ones are None."""
    spell = np.frompyfunc(lambda v: None if v is None or v != v else str(v), 1, 1)
    spelled: np.ndarray[Any, np.dtype[Any]] = spell(np.asarray(values, dtype=object))
    return spelled

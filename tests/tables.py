"""Rows as tables, made the plain way: what the quick ways of the package are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from loopline import features
from loopline.fields import Field
from loopline.records import Row
from loopline.schema import Schema


def plain_frame(schema: Schema, rows: Sequence[Row]) -> pd.DataFrame:
    """Rows as a data frame with one series per used field."""
    columns = list(zip(*rows, strict=True)) or [()] * len(schema.fields)
    data = {
        field.name: pd.Series(columns[i], dtype=_dtype(field, columns[i]))
        for i, field in enumerate(schema.fields)
        if field.used
    }
    return pd.DataFrame(data, index=range(len(rows)))


def plain_array(schema: Schema, rows: Sequence[Row]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Rows as float64, one column per used field."""
    picked = [[row[i] for i, field in enumerate(schema.fields) if field.used] for row in rows]
    width = sum(field.used for field in schema.fields)
    return np.array(picked, dtype=np.float64).reshape(len(rows), width)


def quick_frame(schema: Schema, rows: Sequence[Row]) -> pd.DataFrame:
    """The package's frame of the used fields."""
    made: pd.DataFrame = features.frame(schema, used(schema))(rows)
    return made


def quick_array(schema: Schema, rows: Sequence[Row]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The package's array of the used fields."""
    made: np.ndarray[Any, np.dtype[np.float64]] = features.array(schema, used(schema))(rows)
    return made


def used(schema: Schema) -> list[str]:
    """The names of the fields that a model looks at."""
    return [field.name for field in schema.fields if field.used]


def _dtype(field: Field, values: Sequence[Any]) -> str:
    if field.kind == "number":
        return "float64"
    if field.kind == "integer":
        return "float64" if None in values else "int64"
    return "bool" if field.kind == "boolean" and None not in values else "object"

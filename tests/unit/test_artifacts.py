"""Every kind of model through fit, answer, save and load; tampering; keys; files given by hand."""

from __future__ import annotations

import functools
import json
import os
import pickle
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import joblib
import lightgbm
import msgspec
import numpy as np
import pandas as pd
import pytest
import skops.io
import statsmodels.api as sm
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st
from river import compose, linear_model, preprocessing, tree
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.svm import SVC

from loopline import artifacts, builtin
from loopline.artifacts import Keys, load, load_file, save
from loopline.backends.files import FileBlobs
from loopline.errors import InvalidInput, Tampered, Unavailable
from loopline.model import Adopted, adopt
from loopline.records import Artifact
from loopline.schema import Schema

ROWS = 240


def mixed_frame() -> pd.DataFrame:
    """People with numbers, categories, gaps and a class that both decide."""
    rng = np.random.default_rng(3)
    age = rng.integers(18, 80, ROWS).astype(float)
    job = rng.choice(["clerk", "driver", "nurse"], ROWS)
    high = (age + 25 * (job == "nurse") + rng.normal(0, 8, ROWS)) > 55
    frame = pd.DataFrame({"age": age, "job": job, "hours": rng.normal(40, 9, ROWS)})
    frame["sex"] = rng.choice(["f", "m"], ROWS)
    frame.loc[::17, "age"] = np.nan
    frame["income"] = np.where(high, ">50K", "<=50K")
    return frame


def numeric_frame() -> pd.DataFrame:
    """Two numbers that make a third, and their sign as a class."""
    rng = np.random.default_rng(5)
    frame = pd.DataFrame({"a": rng.normal(size=ROWS), "b": rng.normal(size=ROWS)})
    frame["y"] = 2 * frame["a"] - frame["b"] + 1
    frame["kind"] = np.where(frame["y"] > 1, "up", "down")
    return frame


def data(target: str) -> tuple[Schema, list[Any], list[Any]]:
    """The schema, rows and labels for a target column."""
    frame = mixed_frame() if target == "income" else numeric_frame()
    frame = frame.drop(columns={"y", "kind"} - {target}, errors="ignore")
    schema = Schema.infer(frame, target)
    inputs = frame.drop(columns=target).astype(object)
    inputs = inputs.where(inputs.notna(), None)
    rows = [schema.row(record) for record in inputs.to_dict("records")]
    return schema, rows, frame[target].tolist()


class Averages:
    """A plain class that keeps what it needs under names of its own."""

    def __init__(self) -> None:
        self.weight = 1.0

    def fit(self, X: Any, y: Any) -> None:
        self.mean_ = float(np.mean(y)) * self.weight

    def predict(self, X: Any) -> list[float]:
        return [self.mean_ for _ in X]


class Explained:
    """A class around statsmodels, with its summary as the report."""

    def fit(self, X: Any, y: Any) -> Explained:
        self.result_ = sm.OLS(y, sm.add_constant(X)).fit()
        return self

    def predict(self, X: Any) -> Any:
        return self.result_.predict(sm.add_constant(X, has_constant="add"))

    def report(self) -> str:
        return str(self.result_.summary().as_html())


class IrisInput(msgspec.Struct):
    """What the model below takes."""

    a: float
    b: float


class Hosted:
    """An object with its own schemas, dict in and dict out."""

    display_name = "Sum"
    qualified_name = "sum"
    description = "Adds two numbers."
    major_version = 1
    minor_version = 0
    input_schema = IrisInput
    output_schema: ClassVar[Any] = {"type": "object", "properties": {"total": {"type": "number"}}}

    def predict(self, data: dict[str, float]) -> dict[str, float]:
        return {"total": data["a"] + data["b"]}


def adds(a: float, b: float) -> float:
    """Add two numbers."""
    return a + b


def doubled(X: Any) -> Any:
    """A step of a pipeline that only this file has."""
    return X * 2


def columns() -> ColumnTransformer:
    """A transformer with named columns."""
    return ColumnTransformer(
        [("n", StandardScaler(), ["hours"]), ("c", OneHotEncoder(handle_unknown="ignore"), ["job"])]
    )


Case = tuple[Callable[[], Any], str, str]
CASES: dict[str, Case] = {
    "regressor": (LinearRegression, "y", "skops/1"),
    "boosted": (lambda: GradientBoostingRegressor(n_estimators=5, random_state=1), "y", "skops/1"),
    "classifier": (LogisticRegression, "kind", "skops/1"),
    "forest": (lambda: RandomForestClassifier(7, random_state=1), "kind", "skops/1"),
    "neighbours": (KNeighborsClassifier, "kind", "skops/1"),
    "calibrated": (lambda: CalibratedClassifierCV(GaussianNB()), "kind", "skops/1"),
    "searched": (lambda: GridSearchCV(SVC(), {"C": [0.5, 1.0]}, cv=2), "kind", "skops/1"),
    "pipeline": (lambda: make_pipeline(columns(), LogisticRegression()), "income", "skops/1"),
    "wrapped linear": (lambda: LogisticRegression(max_iter=300), "income", "skops/1"),
    "wrapped trees": (lambda: HistGradientBoostingClassifier(max_iter=9), "income", "skops/1"),
    "wrapped lightgbm": (
        lambda: lightgbm.LGBMClassifier(n_estimators=9, verbose=-1),
        "income",
        "skops/1",
    ),
    "lightgbm": (lambda: lightgbm.LGBMClassifier(n_estimators=9, verbose=-1), "kind", "lightgbm/1"),
    "lightgbm numbers": (
        lambda: lightgbm.LGBMRegressor(n_estimators=9, verbose=-1),
        "y",
        "lightgbm/1",
    ),
    "wrapped xgboost": (
        lambda: xgboost.XGBClassifier(n_estimators=5, n_jobs=1),
        "income",
        "skops/1",
    ),
    "xgboost": (lambda: xgboost.XGBClassifier(n_estimators=5, n_jobs=1), "kind", "skops/1"),
    "xgboost numbers": (lambda: xgboost.XGBRegressor(n_estimators=5, n_jobs=1), "y", "skops/1"),
    "foreign step": (
        lambda: make_pipeline(FunctionTransformer(doubled), LinearRegression()),
        "y",
        "cloudpickle/1",
    ),
    "river": (linear_model.LogisticRegression, "kind", "cloudpickle/1"),
    "river scaled": (
        lambda: compose.Pipeline(preprocessing.StandardScaler(), linear_model.LinearRegression()),
        "y",
        "cloudpickle/1",
    ),
    "river tree": (tree.HoeffdingTreeClassifier, "income", "cloudpickle/1"),
    "statsmodels": (Explained, "y", "cloudpickle/1"),
    "class": (Averages, "y", "cloudpickle/1"),
    "hosted": (Hosted, "y", "cloudpickle/1"),
    "function": (lambda: adds, "y", "cloudpickle/1"),
    "linear": (builtin.Linear, "y", "linear/1"),
    "polynomial": (lambda: builtin.Polynomial(2), "y", "linear/1"),
    "formula": (lambda: builtin.Formula("y ~ a + np.exp(b)"), "y", "linear/1"),
}


@functools.cache
def fitted(name: str) -> Adopted:
    """The model of a case, fitted once where it can be."""
    make, target, _ = CASES[name]
    adopted = adopt(make())
    return adopted.fit(*data(target)) if "fit" in adopted.capabilities else adopted


@pytest.fixture
def blobs(tmp_path: Path) -> FileBlobs:
    """An empty blob store."""
    return FileBlobs(tmp_path / "blobs")


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """Keys that are made when they are first needed."""
    return Keys(tmp_path / "keys.json")


def plain(value: Any) -> bool:
    """Whether a value is what JSON can say, and no NumPy scalar."""
    return type(value) in (float, int, str, bool)


@pytest.mark.parametrize("name", CASES)
def test_every_kind_survives_storage(name: str, blobs: FileBlobs, keys: Keys) -> None:
    """Whatever the kind, the loaded model gives the very same plain answers."""
    schema, rows, _ = data(CASES[name][1])
    model = fitted(name)
    artifact = save(model, blobs, keys)
    assert artifact.format == CASES[name][2]
    assert artifact.size == len(blobs.get(artifact.digest))
    again = load(artifact, blobs, keys)
    before, after = model.answer(schema, rows), again.answer(schema, rows)
    assert before == after
    assert all(plain(value) for value in before.outputs)
    assert all(plain(p) for row in before.probabilities or () for p in row)
    assert (again.kind, again.task, again.classes) == (model.kind, model.task, model.classes)
    assert again.capabilities == model.capabilities
    assert again.parameters() == model.parameters()


@pytest.mark.parametrize("name", CASES)
def test_every_recipe_survives_storage(name: str, blobs: FileBlobs, keys: Keys) -> None:
    """A stored recipe trains to the model that the original trains to."""
    model = fitted(name)
    if "fit" not in model.capabilities:
        return
    schema, rows, labels = data(CASES[name][1])
    recipe = load(save(model.recipe(), blobs, keys), blobs, keys)
    assert not recipe.fitted
    expected = model.answer(schema, rows).outputs
    assert recipe.fit(schema, rows, labels).answer(schema, rows).outputs == expected


@pytest.mark.parametrize("name", ["wrapped lightgbm", "lightgbm", "linear", "pipeline", "river"])
def test_a_loaded_version_can_be_trained_again(name: str, blobs: FileBlobs, keys: Keys) -> None:
    """A version leads back to its recipe, whatever it was stored as."""
    schema, rows, labels = data(CASES[name][1])
    model = fitted(name)
    again = load(save(model, blobs, keys), blobs, keys).fit(schema, rows, labels)
    assert again.answer(schema, rows).outputs == model.answer(schema, rows).outputs


@pytest.mark.parametrize("name", CASES)
def test_the_same_model_has_the_same_bytes(name: str, blobs: FileBlobs, keys: Keys) -> None:
    """Storing a model again, or after a load, stores nothing new."""
    first = save(fitted(name), blobs, keys)
    assert save(fitted(name), blobs, keys) == first


def test_bytes_do_not_depend_on_the_process(tmp_path: Path) -> None:
    """A server that restarts with the same models does not make new versions of them."""
    code = f"""
        import sys, pathlib
        sys.path.insert(0, {str(tmp_path)!r})
        import mine
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from loopline.artifacts import Keys, save
        from loopline.backends.files import FileBlobs
        from loopline.model import adopt
        blobs, keys = FileBlobs(sys.argv[1]), Keys(pathlib.Path(sys.argv[1], "keys"))
        given = make_pipeline(StandardScaler(), LogisticRegression())
        given.fit([[0.0, 1.0], [1.0, 0.5], [2.0, 3.0]], ["a", "b", "a"])
        for model in (given, mine.Mine(3), mine.answer):
            print(save(adopt(model), blobs, keys).digest)
    """
    lines = [line[8:] for line in code.splitlines()]
    (tmp_path / "mine.py").write_text(
        "class Mine:\n"
        "    def __init__(self, k): self.k, self.names = k, {'a': 1, 'b': 2}\n"
        "    def predict(self, X): return [self.k for _ in X]\n"
        "def answer(row): return row['x']\n"
    )
    answers = []
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", "\n".join(lines), str(tmp_path / seed)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        assert run.returncode == 0, run.stderr
        answers.append(run.stdout.split())
    assert len(answers[0]) == 3
    assert answers[0] == answers[1]


def test_a_class_of_an_app_file_needs_no_file(tmp_path: Path) -> None:
    """A worker on another machine runs a class that only the app's file defines."""
    (tmp_path / "mine.py").write_text(
        "import helper\n"
        "class Mine:\n"
        "    def predict(self, X): return [helper.answer() for _ in X]\n"
    )
    (tmp_path / "helper.py").write_text("def answer(): return 42.0\n")
    common = (
        "import sys, pathlib; from loopline.artifacts import Keys, load, save;"
        "from loopline.backends.files import FileBlobs; from loopline.model import adopt;"
        "from loopline.schema import Schema; from loopline.fields import Field; import msgspec;"
        "from loopline.records import Artifact; root = pathlib.Path(sys.argv[1]);"
        "blobs, keys = FileBlobs(root / 'blobs'), Keys(root / 'keys');"
    )
    write = (
        f"sys.path.insert(0, {str(tmp_path)!r}); import mine;"
        "print(msgspec.json.encode(save(adopt(mine.Mine()), blobs, keys)).decode())"
    )
    read = (
        "model = load(msgspec.json.decode(sys.argv[2], type=Artifact), blobs, keys);"
        "print(model.answer(Schema(fields=(Field(name='x', kind='number'),)), [(1.0,)]).outputs)"
    )

    def run(code: str, *arguments: str) -> str:
        line = [sys.executable, "-c", common + code, str(tmp_path), *arguments]
        done = subprocess.run(line, capture_output=True, text=True, check=False, cwd="/")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert run(read, run(write)) == "[42.0]"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, bytes, Path]:
    """A stored model that would run code when it is parsed, its bytes, and its folder."""
    root = tmp_path_factory.mktemp("tampering")
    blobs = FileBlobs(root / "blobs")
    artifact = save(fitted("class"), blobs, Keys(root / "keys"))
    return artifact, blobs.get(artifact.digest), root


class TestTampering:
    """What is not what we stored is not loaded."""

    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def test_any_byte_of_the_blob(
        self, stored: tuple[Artifact, bytes, Path], data: st.DataObject
    ) -> None:
        """One changed byte anywhere in the blob is noticed, by the store or by the loader."""
        artifact, blob, root = stored
        at = data.draw(st.integers(0, len(blob) - 1))
        flip = data.draw(st.integers(1, 255))
        forged = blob[:at] + bytes([blob[at] ^ flip]) + blob[at + 1 :]

        class Careless(FileBlobs):
            """A blob store that checks nothing."""

            def get(self, digest: str) -> bytes:
                return forged

        with pytest.raises(Tampered):
            load(artifact, Careless(root / "blobs"), Keys(root / "keys"))

    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def test_any_character_of_the_signature(
        self, stored: tuple[Artifact, bytes, Path], data: st.DataObject
    ) -> None:
        """One changed character anywhere in the signature is noticed."""
        artifact, _, root = stored
        text = artifact.signature
        at = data.draw(st.integers(0, len(text) - 1))
        other = data.draw(st.characters().filter(lambda c: c != text[at]))
        forged = msgspec.structs.replace(artifact, signature=text[:at] + other + text[at + 1 :])
        with pytest.raises(Tampered):
            load(forged, FileBlobs(root / "blobs"), Keys(root / "keys"))

    def test_another_format(self, stored: tuple[Artifact, bytes, Path]) -> None:
        """The signature covers the format, so bytes can't be read as something else."""
        artifact, _, root = stored
        forged = msgspec.structs.replace(artifact, format="skops/1")
        with pytest.raises(Tampered):
            load(forged, FileBlobs(root / "blobs"), Keys(root / "keys"))

    def test_a_pickle_of_somebody_else_is_not_opened(self, tmp_path: Path) -> None:
        """A pickle with a signature of other keys is refused before a byte of it is parsed."""
        blobs, opened = FileBlobs(tmp_path / "blobs"), tmp_path / "opened"

        class Bomb:
            def __reduce__(self) -> Any:
                return Path.touch, (opened,)

        container = {
            "format": 1,
            "kind": "class",
            "meta": {"fitted": True},
            "payload": pickle.dumps(Bomb()),
        }
        digest = blobs.put(msgspec.msgpack.encode(container))
        theirs, ours = Keys(tmp_path / "theirs"), Keys(tmp_path / "ours")
        artifact = Artifact(
            digest=digest,
            format="cloudpickle/1",
            size=1,
            signature=theirs.sign("cloudpickle/1", digest),
        )
        with pytest.raises(Tampered):
            load(artifact, blobs, ours)
        assert not opened.exists()

    def test_a_later_format(self, blobs: FileBlobs, keys: Keys) -> None:
        """A format that only a later version knows is named."""
        digest = blobs.put(msgspec.msgpack.encode({"format": 1, "kind": "x", "meta": {}}))
        artifact = Artifact(digest=digest, format="x/2", size=1, signature=keys.sign("x/2", digest))
        with pytest.raises(InvalidInput, match="x/2"):
            load(artifact, blobs, keys)


class TestKeys:
    """The file of signing keys."""

    def test_the_file_is_private(self, keys: Keys) -> None:
        """Only the owner can read the keys."""
        keys.sign("skops/1", "0")
        assert stat.S_IMODE(keys.path.stat().st_mode) == 0o600

    def test_a_new_key_is_put_first(self, blobs: FileBlobs, keys: Keys) -> None:
        """The first key signs, all of them verify, and who read the file before sees new ones."""
        old = save(fitted("linear"), blobs, keys)
        listed = json.loads(keys.path.read_text())
        assert [each["id"] for each in listed] == [old.signature.partition(".")[0]]
        keys.path.write_text(json.dumps([{"id": "new", "hex": "ab" * 32}, *listed]))
        later = Keys(keys.path)
        new = save(fitted("linear"), blobs, later)
        assert new.signature.startswith("new.")
        assert new.signature != old.signature
        for artifact in (old, new):
            assert load(artifact, blobs, keys).fitted
            assert load(artifact, blobs, later).fitted

    def test_a_removed_key_no_longer_verifies(self, blobs: FileBlobs, keys: Keys) -> None:
        """Taking a key out of the file revokes what it signed."""
        artifact = save(fitted("linear"), blobs, keys)
        keys.path.unlink()
        with pytest.raises(Tampered):
            load(artifact, blobs, Keys(keys.path))

    def test_processes_that_start_at_once_agree(self, tmp_path: Path) -> None:
        """However many begin together, there is one key and nothing is left over."""
        code = (
            "import sys; from loopline.artifacts import Keys; print(flush=True);"
            "sys.stdin.read(); print(Keys(sys.argv[1]).sign('skops/1', '0'))"
        )
        line = [sys.executable, "-c", code, str(tmp_path / "keys.json")]
        pipe = subprocess.PIPE
        started = [subprocess.Popen(line, stdin=pipe, stdout=pipe, text=True) for _ in range(4)]
        for process in started:
            assert process.stdout and process.stdout.readline() == "\n"
        for process in started:
            assert process.stdin
            process.stdin.close()
        signed = {process.stdout.read() for process in started if process.stdout}
        for process in started:
            assert process.wait() == 0
            assert process.stdout
            process.stdout.close()
        assert len(signed) == 1 and signed != {""}
        assert [path.name for path in tmp_path.iterdir()] == ["keys.json"]

    def test_threads_that_start_at_once_agree(self, tmp_path: Path) -> None:
        """The same within one process."""
        barrier, signed = threading.Barrier(8), set()

        def start() -> None:
            barrier.wait()
            signed.add(_signed(str(tmp_path / "keys.json")))

        threads = [threading.Thread(target=start) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(signed) == 1

    @pytest.mark.parametrize("text", ["", "{}", "[]", "[1]", '[{"id": "a", "hex": "zz"}]'])
    def test_a_damaged_file(self, keys: Keys, text: str) -> None:
        """A file that holds no keys is an error that names it, never a new key."""
        keys.path.write_text(text)
        with pytest.raises(Unavailable, match=r"keys\.json"):
            keys.sign("skops/1", "0")


def _signed(path: str) -> str:
    return Keys(path).sign("skops/1", "0")


class TestFiles:
    """Models that somebody made without us."""

    @pytest.fixture
    def classifier(self) -> LogisticRegression:
        """A fitted estimator."""
        X = np.array([[0.0, 1.0], [0.0, 2.0], [5.0, 0.0], [6.0, 0.0]])
        return LogisticRegression().fit(X, ["a", "a", "b", "b"])

    def answers(self, model: Adopted) -> list[Any]:
        """What a loaded file says of one row, through the schema it implies."""
        assert model.schema is not None
        return model.answer(model.schema, [model.schema.row([0.0, 1.0])]).outputs

    def test_skops(self, tmp_path: Path, classifier: LogisticRegression) -> None:
        """A skops file is audited and loaded, with a schema read off the fit."""
        skops.io.dump(classifier, tmp_path / "m.skops")
        model = load_file(tmp_path / "m.skops")
        assert self.answers(model) == ["a"]
        assert model.classes == ("a", "b")

    def test_skops_with_foreign_types(self, tmp_path: Path) -> None:
        """Types that are not known to be harmless are named, and loaded only on trust."""
        pipeline = make_pipeline(FunctionTransformer(doubled), LinearRegression())
        skops.io.dump(pipeline.fit(np.eye(2), [1.0, 2.0]), tmp_path / "m.skops")
        with pytest.raises(InvalidInput, match=r"doubled.*--trust"):
            load_file(tmp_path / "m.skops")
        if __name__ in sys.modules:
            assert load_file(tmp_path / "m.skops", trust=True).fitted

    @pytest.mark.parametrize(
        "name",
        [
            "numpy.testing._private.utils.runstring",
            "sklearn.utils._testing.TempMemmap",
            "os.system",
            "builtins.eval",
            "sklearn.datasets._base.load_files",
            "loopline.model.estimator",
            "lightgbm.basic.Booster.save_model",
        ],
    )
    def test_no_function_is_trusted(self, name: str) -> None:
        """Only classes are: a function in a file would be called with whatever the file says."""
        assert not artifacts._TRUSTED.fullmatch(name)

    @pytest.mark.parametrize("suffix", [".pkl", ".joblib"])
    def test_pickles(self, tmp_path: Path, classifier: LogisticRegression, suffix: str) -> None:
        """A pickle asks for --trust before it is opened."""
        path = tmp_path / f"m{suffix}"
        joblib.dump(classifier, path)
        with pytest.raises(InvalidInput, match="--trust"):
            load_file(path)
        assert self.answers(load_file(path, trust=True)) == ["a"]

    def test_lightgbm_text(self, tmp_path: Path) -> None:
        """LightGBM's own text is served with its feature names; classes are numbers there."""
        X = pd.DataFrame({"a": np.arange(60.0), "b": np.arange(60.0)[::-1]})
        model = lightgbm.LGBMClassifier(n_estimators=3, verbose=-1).fit(X, X["a"] > 30)
        model.booster_.save_model(tmp_path / "m.txt")
        loaded = load_file(tmp_path / "m.txt")
        assert (loaded.kind, loaded.task, loaded.classes) == ("lightgbm", "classification", (0, 1))
        assert loaded.schema is not None
        assert [field.name for field in loaded.schema.fields] == ["a", "b"]
        assert self.answers(loaded) == [0]

    def test_linear_json(self, tmp_path: Path) -> None:
        """A built-in model as JSON can be read, and edited, by hand."""
        text = json.dumps(fitted("linear").native.state())
        (tmp_path / "m.json").write_text(text)
        assert self.answers(load_file(tmp_path / "m.json")) == pytest.approx([0.0], abs=1e-9)

    @pytest.mark.parametrize("name", ["m.skops", "m.txt", "m.json", "m.joblib", "m.exe"])
    def test_not_what_it_says(self, tmp_path: Path, name: str) -> None:
        """A damaged or unknown file is named in the error."""
        (tmp_path / name).write_bytes(b"\x00 nothing of the kind")
        with pytest.raises(InvalidInput, match=name.replace(".", r"\.")):
            load_file(tmp_path / name, trust=True)

    def test_not_there(self, tmp_path: Path) -> None:
        """A missing file is an error of the person who named it."""
        with pytest.raises(InvalidInput, match="nowhere"):
            load_file(tmp_path / "nowhere.skops")


def test_what_cannot_be_stored(blobs: FileBlobs, keys: Keys) -> None:
    """A model that holds a lock is refused with the reason, not with a traceback."""

    class Locked:
        def __init__(self) -> None:
            self.lock = threading.Lock()

        def predict(self, X: Any) -> list[int]:
            return [0 for _ in X]

    with pytest.raises(InvalidInput, match="Locked can't be stored"):
        save(adopt(Locked()), blobs, keys)


def test_a_process_of_our_own_trusts_the_same_special_functions() -> None:
    """Importing skops the quick way forgets no estimator and no function that it trusts."""
    told = subprocess.run([sys.executable, "-c", SPECIAL], capture_output=True, text=True)
    assert (told.stdout, told.stderr) == ("True True True\n", "")


SPECIAL = """
import numpy, scipy.special
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from loopline import artifacts

artifacts.own_process()
found = []
for function in (scipy.special.expit, scipy.special.gammaln, numpy.log1p):
    payload = artifacts._skops(make_pipeline(FunctionTransformer(function)))
    found.append(artifacts._from_skops(payload).steps[0][1].func is function)
print(*found)
"""

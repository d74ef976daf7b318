"""One training run as a function: real frames, real estimators, data checks, the gate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from lightgbm import LGBMClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from loopline import artifacts
from loopline.artifacts import Keys
from loopline.backends.files import FileBlobs
from loopline.builtin import Formula
from loopline.codecs import pack_table
from loopline.errors import InvalidInput, LooplineError, WrongState
from loopline.model import adopt
from loopline.policy import Every, write
from loopline.records import Cursor, Example, ModelRecord, Version
from loopline.schema import Schema
from loopline.training import Outcome, Plan, base_pairs, freeze, measure, run

AUTO = Every(mode="auto", minimum=20)


class Bench:
    """A blob store and keys of its own, and what makes plans over them."""

    def __init__(self, folder: Path) -> None:
        self.blobs = FileBlobs(folder / "blobs")
        self.keys = Keys(folder / "keys.json")
        self.said: list[tuple[int, int, str]] = []

    def model(self, recipe: Any, frame: pd.DataFrame, target: str, **fields: Any) -> ModelRecord:
        """The record of a model with a base data set, as registering makes it."""
        task = fields.pop("task", "regression")
        schema = Schema.infer(frame, target, task=task)
        columns = [frame[name].astype(object).tolist() for name in frame.columns]
        base = self.blobs.put(pack_table([str(name) for name in frame.columns], columns))
        return ModelRecord(
            name="m",
            schema=msgspec.to_builtins(schema),
            capabilities=("fit", "predict"),
            task=task,
            recipe=artifacts.save(adopt(recipe).recipe(), self.blobs, self.keys),
            dataset=base,
            target=target,
            **fields,
        )

    def plan(
        self,
        model: ModelRecord,
        examples: Sequence[Example] = (),
        champion: Version | None = None,
        policy: Every | None = None,
        **parameters: Any,
    ) -> Plan:
        """A plan as the worker makes it."""
        digest, rows = freeze(model.schema, examples, self.blobs)
        assert rows == len(examples)
        return Plan(
            model=model,
            parameters=parameters,
            base=model.dataset,
            examples=digest,
            upto=examples[-1].seq if examples else 0,
            champion=champion,
            policy=write(policy) if policy else None,
            job="job-1",
            cursor=Cursor(token="7"),
        )

    def run(self, plan: Plan) -> Outcome:
        """Run a plan that has travelled as JSON, and let its outcome travel back."""
        sent = msgspec.convert(msgspec.json.decode(msgspec.json.encode(plan)), Plan)
        outcome = run(sent, self.blobs, self.keys, lambda *told: self.said.append(told))
        back = msgspec.json.decode(msgspec.json.encode(msgspec.to_builtins(outcome)))
        return msgspec.convert(back, Outcome)

    def first(self, model: ModelRecord, examples: Sequence[Example] = ()) -> Version:
        """The model's first version, numbered as the store would."""
        return msgspec.structs.replace(self.run(self.plan(model, examples)).version, number=1)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A place to train in."""
    return Bench(tmp_path)


def line(rows: int = 200, slope: float = 2.0, seed: int = 0) -> pd.DataFrame:
    """One number that depends on another."""
    random = np.random.default_rng(seed)
    x = random.uniform(0, 10, rows)
    return pd.DataFrame({"x": x, "y": slope * x + random.normal(0, 0.5, rows)})


def sides(rows: int = 300, cut: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """Two classes, told apart by the first of two numbers, with some noise."""
    random = np.random.default_rng(seed)
    frame = pd.DataFrame(random.normal(size=(rows, 2)), columns=["a", "b"])
    high = frame["a"] + random.normal(0, 0.4, rows) > cut
    return frame.assign(side=np.where(high, "high", "low"))


def examples(frame: pd.DataFrame, target: str, first: int = 1) -> list[Example]:
    """Matured predictions with these rows and labels."""
    rows = frame.drop(columns=[target]).itertuples(index=False, name=None)
    return [
        Example(
            model="m",
            seq=first + n,
            row=tuple(row),
            label=label,
            at=float(n),
            matched=first + n,
            id=f"id-{first + n}",
        )
        for n, (row, label) in enumerate(zip(rows, frame[target].tolist(), strict=True))
    ]


def test_the_first_version_goes_live_with_its_lineage(bench: Bench) -> None:
    """It says what it was trained on, by which code, in what environment, and how good it is."""
    model = bench.model(LinearRegression(), line(), "y")
    outcome = bench.run(bench.plan(model, examples(line(40, seed=1), "y")))
    made = outcome.version
    assert (outcome.promote, outcome.decision.by, outcome.decision.verdict) == (
        True,
        "first",
        "promote",
    )
    assert (made.model, made.number, made.rows, made.upto) == ("m", 0, 240, 40)
    assert (made.data, made.job, made.cursor) == (model.dataset, "job-1", Cursor(token="7"))
    assert len(made.code) == 64 and "python" in made.environment and "numpy" in made.environment
    assert made.parameters["fit_intercept"] is True
    assert {"train_r2", "train_mae", "holdout_r2", "holdout_rmse"} <= made.metrics.keys()
    assert made.metrics == outcome.metrics and made.metrics["holdout_r2"] > 0.9
    assert outcome.seconds > 0
    fitted = artifacts.load(made.artifact, bench.blobs, bench.keys)
    schema = msgspec.convert(model.schema, Schema)
    assert fitted.answer(schema, [(3.0,)]).outputs == [pytest.approx(6.0, abs=0.5)]


def test_progress_is_told_before_each_fit(bench: Bench) -> None:
    """Steps count up and never past their number."""
    model = bench.model(LinearRegression(), line(), "y")
    champion = bench.first(model)
    bench.said.clear()
    bench.run(bench.plan(model, examples(line(120, seed=1), "y"), champion, AUTO))
    steps = [step for step, _, _ in bench.said]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) >= 6
    assert all(step <= of and message for step, of, message in bench.said)


def test_a_better_recipe_on_drifted_rows_is_promoted(bench: Bench) -> None:
    """The world moved, the champion did not: the same recipe on newer rows wins."""
    model = bench.model(LinearRegression(), line(), "y")
    champion = bench.first(model)
    drifted = line(400, slope=-2.0, seed=1)
    outcome = bench.run(bench.plan(model, examples(drifted, "y"), champion, AUTO))
    decision = outcome.decision
    assert (decision.verdict, outcome.promote, decision.by) == ("promote", True, "gate")
    assert (decision.champion, decision.candidate, decision.job) == (1, 0, "job-1")
    evidence = decision.evidence
    assert (evidence["rows"], evidence["blocks"]) == (400, 4)
    assert (evidence["from_seq"], evidence["to_seq"]) == (1, 400)
    assert "better by" in decision.reason and "400 rows" in decision.reason


def test_a_better_classifier_is_judged_by_log_loss(bench: Bench) -> None:
    """Where both answer with probabilities."""
    model = bench.model(LogisticRegression(), sides(), "side", task="classification")
    champion = bench.first(model)
    drifted = examples(sides(400, cut=1.5, seed=1), "side")
    outcome = bench.run(bench.plan(model, drifted, champion, AUTO))
    assert (outcome.decision.verdict, outcome.promote) == ("promote", True)
    assert "log-loss" in outcome.decision.reason
    assert outcome.version.classes == ("high", "low")


def test_a_recipe_that_learned_nothing_is_kept_out_with_a_reason(bench: Bench) -> None:
    """Its training labels were shuffled; the rows it is judged on are right."""
    tree = DecisionTreeClassifier(max_depth=2)
    champion = bench.first(bench.model(tree, sides(600), "side", task="classification"))
    shuffled = sides(600)
    shuffled["side"] = shuffled["side"].sample(frac=1.0, random_state=0).to_numpy()
    model = bench.model(tree, shuffled, "side", task="classification")
    outcome = bench.run(bench.plan(model, examples(sides(100, seed=1), "side"), champion, AUTO))
    assert (outcome.decision.verdict, outcome.promote) == ("keep", False)
    assert "worse by" in outcome.decision.reason


def test_the_same_recipe_without_drift_is_not_promoted(bench: Bench) -> None:
    """More rows of the same kind do not make a straight line better than it was."""
    model = bench.model(LinearRegression(), line(2000), "y")
    champion = bench.first(model)
    outcome = bench.run(bench.plan(model, examples(line(200, seed=5), "y"), champion, AUTO))
    assert not outcome.promote
    assert outcome.decision.verdict in ("not-enough-evidence", "keep")


def test_too_few_rows_are_not_enough_evidence(bench: Bench) -> None:
    """However clear the difference."""
    model = bench.model(LinearRegression(), line(), "y")
    champion = bench.first(model)
    drifted = examples(line(19, slope=-2.0, seed=1), "y")
    outcome = bench.run(bench.plan(model, drifted, champion, AUTO))
    assert (outcome.decision.verdict, outcome.promote) == ("not-enough-evidence", False)
    assert outcome.version.rows == 219


def test_only_rows_after_the_champions_training_are_judged_on(bench: Bench) -> None:
    """What the champion was fitted on would flatter it."""
    model = bench.model(LinearRegression(), line(), "y")
    known = examples(line(60, seed=1), "y")
    champion = bench.first(model, known)
    assert champion.upto == 60
    more = [*known, *examples(line(100, slope=-2.0, seed=2), "y", 61)]
    evidence = bench.run(bench.plan(model, more, champion, AUTO)).decision.evidence
    assert (evidence["rows"], evidence["from_seq"], evidence["to_seq"]) == (100, 61, 160)


@pytest.mark.parametrize(("mode", "promoted"), [("propose", False), ("auto", True)])
def test_the_policys_mode_is_followed(bench: Bench, mode: str, promoted: bool) -> None:
    """A person approves, or nobody has to."""
    model = bench.model(LinearRegression(), line(), "y")
    champion = bench.first(model)
    drifted = examples(line(100, slope=-2.0, seed=1), "y")
    outcome = bench.run(bench.plan(model, drifted, champion, Every(mode=mode)))
    assert (outcome.promote, outcome.decision.promoted) == (promoted, promoted)


def test_by_hand_it_goes_live_and_the_comparison_is_kept(bench: Bench) -> None:
    """Without a policy a person decided; what was measured is still told."""
    model = bench.model(LinearRegression(), line(), "y")
    champion = bench.first(model)
    drifted = examples(line(100, slope=-2.0, seed=1), "y")
    outcome = bench.run(bench.plan(model, drifted, champion))
    assert outcome.promote and outcome.decision.by == "person"
    assert outcome.decision.evidence["rows"] == 100


def test_the_same_plan_gives_the_same_version(bench: Bench) -> None:
    """Bit for bit, when the estimator is seeded."""
    recipe = DecisionTreeClassifier(random_state=3, max_features=1)
    model = bench.model(recipe, sides(), "side", task="classification")
    plan = bench.plan(model, examples(sides(80, seed=1), "side"))
    one, two = bench.run(plan), bench.run(plan)
    assert one.version.artifact.digest == two.version.artifact.digest
    assert one.metrics == two.metrics
    assert one.version.code == two.version.code


def test_parameters_reach_the_recipe_and_the_version(bench: Bench) -> None:
    """And what is no parameter is refused by name."""
    model = bench.model(LogisticRegression(), sides(), "side", task="classification")
    made = bench.run(bench.plan(model, C=0.25)).version
    assert made.parameters["C"] == 0.25
    with pytest.raises(InvalidInput, match="nonsense"):
        bench.run(bench.plan(model, nonsense=1))


def test_a_window_takes_the_newest_and_then_leaves_the_base_out(bench: Bench) -> None:
    """Base data stay in only while there are fewer examples than the window."""
    model = bench.model(LinearRegression(), line(50), "y")
    few, many = examples(line(30, seed=1), "y"), examples(line(100, seed=1), "y")
    rule = Every(window=60)
    assert bench.run(bench.plan(model, few, policy=rule)).version.rows == 80
    assert bench.run(bench.plan(model, many, policy=rule)).version.rows == 60
    assert bench.run(bench.plan(model, many)).version.rows == 150


def test_small_data_have_no_holdout(bench: Bench) -> None:
    """Below twenty rows a fifth says nothing."""
    small = bench.run(bench.plan(bench.model(LinearRegression(), line(19), "y"))).metrics
    assert not any(name.startswith("holdout_") for name in small) and "train_mae" in small
    enough = bench.run(bench.plan(bench.model(LinearRegression(), line(20), "y"))).metrics
    assert "holdout_mae" in enough


@pytest.mark.parametrize("where", ["base", "examples"])
def test_a_class_seen_once_breaks_nothing(bench: Bench, where: str) -> None:
    """A fit without that class gives its row the floor."""
    frame, fresh = sides(60), sides(60, seed=1)
    (frame if where == "base" else fresh).loc[59, "side"] = "rare"
    model = bench.model(LogisticRegression(), frame, "side", task="classification")
    known = bench.model(LogisticRegression(), sides(60), "side", task="classification")
    champion = bench.first(known)
    outcome = bench.run(bench.plan(model, examples(fresh, "side"), champion, AUTO))
    assert outcome.version.classes == ("high", "low", "rare")
    assert np.isfinite(list(outcome.metrics.values())).all()
    assert outcome.decision.evidence["rows"] == 60


def test_skewed_values_are_reported_and_stop_nothing(bench: Bench) -> None:
    """Unseen categories and a mean that ran away are told with the decision."""
    frame = line(100).assign(colour=["red", "blue"] * 50)[["x", "colour", "y"]]
    model = bench.model(Formula("y ~ x"), frame, "y")
    fresh = frame.assign(x=frame["x"] + 1000.0, colour="green")
    outcome = bench.run(bench.plan(model, examples(fresh, "y")))
    told = " ".join(outcome.decision.evidence["warnings"])
    assert "colour" in told and "x" in told
    calm = bench.run(bench.plan(model, examples(frame, "y")))
    assert "warnings" not in calm.decision.evidence


def test_a_missing_column_stops_the_run(bench: Bench) -> None:
    """Schema skew is an error that names the column."""
    model = bench.model(LinearRegression(), line(), "y")
    other = bench.blobs.put(pack_table(["z", "y"], [[1.0, 2.0], [1.0, 2.0]]))
    with pytest.raises(InvalidInput, match="x"):
        bench.run(bench.plan(msgspec.structs.replace(model, dataset=other)))


def test_a_label_of_the_wrong_kind_stops_the_run(bench: Bench) -> None:
    """Text where numbers are to be learned."""
    model = bench.model(LinearRegression(), line(), "y")
    other = bench.blobs.put(pack_table(["x", "y"], [[1.0, 2.0], [1.0, "two"]]))
    with pytest.raises(InvalidInput):
        bench.run(bench.plan(msgspec.structs.replace(model, dataset=other)))


def test_there_has_to_be_something_to_train(bench: Bench) -> None:
    """A recipe, and rows."""
    model = bench.model(LinearRegression(), line(), "y")
    with pytest.raises(WrongState):
        bench.run(bench.plan(msgspec.structs.replace(model, recipe=None)))
    with pytest.raises(LooplineError):
        bench.run(bench.plan(msgspec.structs.replace(model, dataset=None)))


def test_rows_without_a_base_are_enough(bench: Bench) -> None:
    """A model that was only ever told examples is trained on them."""
    model = msgspec.structs.replace(bench.model(LinearRegression(), line(), "y"), dataset=None)
    assert bench.run(bench.plan(model, examples(line(30), "y"))).version.rows == 30


def test_measure_and_base_pairs_serve_the_score_verb(bench: Bench) -> None:
    """The data set as labelled rows, and a version's scores on them."""
    frame = line(30)
    frame.loc[3, "y"] = np.nan
    model = bench.model(LinearRegression(), frame, "y")
    pairs = base_pairs(model, bench.blobs)
    assert len(pairs) == 29 and all(isinstance(row, tuple) for row, _ in pairs)
    fitted = artifacts.load(bench.first(model).artifact, bench.blobs, bench.keys)
    schema = msgspec.convert(model.schema, Schema)
    assert measure(fitted, schema, "regression", pairs)["r2"] > 0.9


def mixed(rows: int = 300) -> pd.DataFrame:
    """Numbers, text categories and holes."""
    random = np.random.default_rng(0)
    colour = random.choice(["red", "green", "blue"], rows)
    size = random.normal(size=rows)
    size[::17] = np.nan
    label = np.where((colour == "red") | (np.nan_to_num(size) > 1), "yes", "no")
    return pd.DataFrame({"colour": colour, "size": size, "label": label})


def boosted() -> Any:
    """LightGBM on mixed data."""
    return LGBMClassifier(n_estimators=20, random_state=0, n_jobs=1, verbose=-1)


def river() -> Any:
    """An online pipeline."""
    from river import linear_model, preprocessing

    return preprocessing.StandardScaler() | linear_model.LogisticRegression()


@pytest.mark.parametrize(
    ("recipe", "frame", "target", "task", "metric", "least"),
    [
        (boosted, mixed, "label", "classification", "holdout_auc", 0.9),
        (river, sides, "side", "classification", "holdout_accuracy", 0.7),
        (lambda: Formula("y ~ x"), line, "y", "regression", "holdout_r2", 0.9),
        (LogisticRegression, sides, "side", "classification", "holdout_auc", 0.8),
    ],
)
def test_every_kind_of_model_goes_the_whole_way(
    bench: Bench,
    recipe: Callable[[], Any],
    frame: Callable[[], pd.DataFrame],
    target: str,
    task: str,
    metric: str,
    least: float,
) -> None:
    """First version, then a retraining with the gate: fitted, measured, kept, answering again."""
    data = frame()
    if recipe is river:
        data[target] = data[target] == "high"
    model = bench.model(recipe(), data, target, task=task)
    champion = bench.first(model)
    assert champion.metrics[metric] > least
    rows = data.head(80).astype(object).where(data.head(80).notna(), None)
    outcome = bench.run(bench.plan(model, examples(rows, target), champion, AUTO))
    assert outcome.version.rows == len(data) + 80
    assert outcome.decision.evidence["rows"] == 80
    fitted = artifacts.load(outcome.version.artifact, bench.blobs, bench.keys)
    row = base_pairs(model, bench.blobs)[0][0]
    (answer,) = fitted.answer(msgspec.convert(model.schema, Schema), [row]).outputs
    assert type(answer) is type(data[target].iloc[0].item() if recipe is river else answer)


def test_the_report_of_a_formula_is_kept_with_its_version(bench: Bench) -> None:
    """As a blob with HTML and figures."""
    made = bench.first(bench.model(Formula("y ~ x"), line(), "y"))
    assert made.report is not None
    report = msgspec.json.decode(bench.blobs.get(made.report))
    assert report.keys() >= {"html", "json"}

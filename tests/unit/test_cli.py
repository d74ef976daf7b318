"""The command line as a program: real processes, what they print, and how they exit."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from loopline.cli.commands import cli
from loopline.cli.console import show
from loopline.cli.rows import batches, read_given, value_of
from loopline.errors import InvalidInput, Unreadable
from tests.servers import Server

Done = subprocess.CompletedProcess[str]
pytestmark = pytest.mark.usefixtures("alone", "server")

COMMANDS = sorted(cli.commands)


def loopline(
    *arguments: str | Path,
    cwd: Path,
    code: int = 0,
    stdin: str | None = None,
    **environ: str,
) -> Done:
    """Run a command to its end; it has to exit with `code`."""
    done = subprocess.run(
        [sys.executable, "-m", "loopline", *map(str, arguments)],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, **environ},
    )
    assert done.returncode == code, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done


def refusal(*arguments: str | Path, cwd: Path, code: int = 1, **environ: str) -> str:
    """Run a command that is refused: one sentence on standard error, and nothing else."""
    done = loopline(*arguments, cwd=cwd, code=code, **environ)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    if code == 1:
        *steps, told = done.stderr.splitlines()
        assert told.startswith("Error: ")
        assert all(step.startswith("training ") for step in steps), done.stderr
    return done.stderr


def write_tables(folder: Path) -> Path:
    """A regression's table, and a classification's with text in it."""
    folder.mkdir(parents=True)
    lines = "".join(f"{x},{x % 5},{3 + 2 * x}\n" for x in range(40))
    (folder / "line.csv").write_text(f"x,z,y\n{lines}")
    fruit = "".join(
        f"{x},{'red' if x % 2 else 'green'},{'a' if x < 20 else 'b'}\n" for x in range(40)
    )
    (folder / "fruit.csv").write_text(f"size,colour,sort\n{fruit}")
    return folder


@pytest.fixture(scope="module")
def alone(session_dir: Path) -> Path:
    """A folder whose data directory no server has, with one trained model."""
    folder = write_tables(session_dir / "cli-alone")
    loopline("train", "line", "line.csv", "--target", "y", "--model", "linear", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def server(session_dir: Path, free_ports: Callable[[int], list[int]]) -> Iterator[Server]:
    """A folder with a running server that has the same model."""
    folder = write_tables(session_dir / "cli-served")
    server = Server(folder, free_ports(1)[0])
    server.data = folder / "loopline-data"
    server.command[-1] = str(server.data)
    server.start()
    loopline("train", "line", "line.csv", "--target", "y", "--model", "linear", cwd=folder)
    yield server
    server.stop()


@pytest.fixture(params=["alone", "served"])
def folder(request: pytest.FixtureRequest, alone: Path, server: Server) -> Path:
    """A folder to run commands in: they open the directory themselves, or find the server."""
    return alone if request.param == "alone" else server.folder


@pytest.fixture
def served(server: Server) -> Path:
    """The folder with the server, where commands are quicker."""
    return server.folder


# What costs nothing.


def test_help_is_quick_and_complete() -> None:
    """Help loads nothing of the scientific stack, and lists every command with a sentence."""
    code = (
        "import sys\nsys.argv = ['loopline', '--help']\nfrom loopline.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(sorted({'numpy', 'pandas', 'sklearn', 'sqlalchemy', 'rich', 'litestar'}"
        " & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    *told, loaded = done.stdout.strip().splitlines()
    assert loaded == "[]", done.stderr
    listed = told[told.index("Commands:") + 1 :]
    assert [line.split()[0] for line in listed] == COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_command_explains_itself(name: str) -> None:
    """Every command has a sentence, and every option says what it is."""
    command = cli.commands[name]
    assert command.help
    assert CliRunner().invoke(cli, [name, "--help"]).exit_code == 0


def test_version_is_told(tmp_path: Path) -> None:
    """`--version` names the release."""
    assert re.fullmatch(r"loopline \d+\.\d+\.\d+\n", loopline("--version", cwd=tmp_path).stdout)


@pytest.mark.parametrize(
    "arguments",
    [
        ["dance"],
        ["train"],
        ["train", "m", "--target", "y"],
        ["train", "m", "data.csv"],
        ["train", "m", "data.csv", "--target", "y", "--model", "linear", "--formula", "y ~ x"],
        ["train", "m", "data.csv", "--target", "y", "--param", "alpha"],
        ["train", "m", "data.csv", "--target", "y", "--mode", "auto"],
        ["train", "m", "data.csv", "--target", "y", "--model", "quadratic"],
        ["predict", "m"],
        ["predict", "m", "rows.csv", "--id", "x"],
        ["promote", "m", "first"],
        ["outcome", "m", "id"],
        ["jobs", "--follow"],
        ["score", "m", "x=1", "--served"],
        ["token", "create", "ci"],
        ["token", "create", "ci", "--scope", "everything"],
        ["serve", "--port", "99999"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_two(arguments: list[str], tmp_path: Path) -> None:
    """What cannot be meant is refused before anything is opened or made."""
    assert "Error: " in refusal(*arguments, cwd=tmp_path, code=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["predict", "m", "x=1"], "there is no data directory"),
        (["models", "--config", "absent.toml"], "absent.toml"),
        (["predict", "m", "@absent.json"], "absent.json"),
        (["predict", "m", "absent.csv"], "absent.csv"),
        (["predict", "m", "{TV: 50}"], "not JSON"),
        (["serve", "absent.py"], "absent.py"),
        (["serve", "absent.skops"], "absent.skops"),
        (["serve", "one.py", "two.py"], "two applications"),
        (["serve", "--host", "0.0.0.0"], "--token-required"),
        (["models", "--url", "http://127.0.0.1:9"], "127.0.0.1:9"),
        (["models", "--url", "nowhere://"], "URL"),
        (["train", "m", "absent.csv", "--target", "y"], "absent.csv"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_are_one_sentence(arguments: list[str], said: str, tmp_path: Path) -> None:
    """What went wrong, on standard error, with exit code 1."""
    (tmp_path / "data").mkdir()
    where = [] if arguments[:3] == ["predict", "m", "x=1"] else ["--data-dir", "data"]
    assert said in refusal(*arguments, *where, cwd=tmp_path)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    """Whoever wants to know more is told more."""
    done = loopline("models", "--url", "nowhere://", "--debug", cwd=tmp_path, code=1)
    assert "Traceback" in done.stderr


def test_settings_of_the_configuration_file(tmp_path: Path) -> None:
    """`loopline.toml` of the current directory counts, an environment variable more than it."""
    (tmp_path / "loopline.toml").write_text('[settings]\ndata_dir = "there"\nport = 9\n')
    assert str(tmp_path / "there") in refusal("models", cwd=tmp_path)
    told = refusal("models", cwd=tmp_path, LOOPLINE_DATA_DIR=str(tmp_path / "elsewhere"))
    assert str(tmp_path / "elsewhere") in told
    assert str(tmp_path / "mine") in refusal("models", "--data-dir", "mine", cwd=tmp_path)
    (tmp_path / "loopline.toml").write_text("[settings]\ncolour = 3\n")
    assert "colour" in refusal("models", cwd=tmp_path)
    (tmp_path / "loopline.toml").write_text("settings: no\n")
    assert "loopline.toml" in refusal("models", cwd=tmp_path)


# Rows.


def test_rows_are_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON, pairs, a JSON file and a table are told apart by how they look."""
    monkeypatch.chdir(tmp_path)
    Path("row.json").write_text('{"TV": 50}')
    Path("rows.jsonl").write_text('{"TV": 1}\n{"TV": 2}\n')
    for inputs, value, text in (
        (('{"TV": 50}',), {"TV": 50}, False),
        (("[1, 2]",), [1, 2], False),
        (("@row.json",), {"TV": 50}, False),
        (("@rows.jsonl",), [{"TV": 1}, {"TV": 2}], False),
        (("TV=50", "Radio=a=b"), {"TV": "50", "Radio": "a=b"}, True),
    ):
        given = read_given(inputs)
        assert given is not None
        assert (given.value, given.text, given.path) == (value, text, None)
    Path("rows.csv").write_text("TV\n1\n")
    table = read_given(("rows.csv",))
    assert table is not None and table.path == Path("rows.csv")
    assert read_given(()) is None
    with pytest.raises(InvalidInput, match="too much"):
        read_given(("{}", "{}"))


def test_files_are_read_in_batches(tmp_path: Path) -> None:
    """Rows keep their order and number; an unnamed first column is dropped."""
    path = tmp_path / "rows.csv"
    path.write_text(",x,name\n" + "".join(f"{i},{i},n{i}\n" for i in range(25)))
    found = list(batches(path, 10))
    assert [(batch.first, len(batch.rows)) for batch in found] == [(1, 10), (11, 10), (21, 5)]
    assert found[0].rows[0] == {"x": "0", "name": "n0"}
    assert all(batch.text for batch in found)


def test_uneven_file_names_its_line(tmp_path: Path) -> None:
    """A line that does not fit the header is told by its number."""
    path = tmp_path / "rows.csv"
    path.write_text("x,y\n1,2\n3\n")
    with pytest.raises(Unreadable, match="line 3"):
        list(batches(path, 10))
    path = tmp_path / "rows.jsonl"
    path.write_text('{"x": 1}\n{x}\n')
    with pytest.raises(Unreadable, match="line 2"):
        list(batches(path, 10))


def test_values_are_shown_and_read() -> None:
    """Cells are short and readable; a parameter is JSON where it can be."""
    told = [show(value) for value in (None, True, 0.1234567, {"a": 1.0}, [1, "b"], "x")]
    assert told == ["-", "yes", "0.123457", "a 1", "1, b", "x"]
    assert [value_of(text) for text in ("3", "0.5", "null", "rbf", "[1]")] == [
        3,
        0.5,
        None,
        "rbf",
        [1],
    ]


# Each command, with a server and without.


def test_train_makes_and_retrains(folder: Path) -> None:
    """A new model is trained from a table with the given parameters, then again without."""
    place = ("--target", "sort", "--estimator", "sklearn.ensemble.RandomForestClassifier")
    done = loopline("train", "fruit", "fruit.csv", *place, "--param", "n_estimators=3", cwd=folder)
    assert "fruit version 1" in done.stdout
    assert "accuracy" in done.stdout
    told = json.loads(loopline("train", "fruit", "--json", cwd=folder).stdout)
    assert (told["state"], told["version"]) == ("done", 2)
    assert told["decision"]["promoted"] is True
    versions = json.loads(loopline("versions", "fruit", "--json", cwd=folder).stdout)["versions"]
    assert [each["parameters"]["n_estimators"] for each in versions] == [3, 3]
    assert [each["aliases"] for each in versions] == [["previous"], ["champion"]]


def test_train_without_an_estimator(served: Path) -> None:
    """The target says which kind of gradient boosting it is."""
    done = loopline(
        "train", "sizes", "line.csv", "--target", "y", "--no-wait", "--json", cwd=served
    )
    assert json.loads(done.stdout)["state"] in ("queued", "running", "done")


def test_failed_training_exits_with_one(served: Path) -> None:
    """The job's own error is the sentence."""
    assert "no_such" in refusal("train", "line", "--param", "no_such=1", cwd=served)
    told = refusal("train", "x", "line.csv", "--target", "nothing", cwd=served)
    assert "nothing" in told and "x, z, y" in told
    assert "no.such.Estimator" in refusal(
        "train", "x", "line.csv", "--target", "y", "--estimator", "no.such.Estimator", cwd=served
    )


@pytest.mark.parametrize(
    "rows",
    [['{"x": 10, "z": 1}'], ["x=10", "z=1"], ["@row.json"], ["-"]],
    ids=["json", "pairs", "file", "stdin"],
)
def test_predict_one_row(served: Path, rows: list[str]) -> None:
    """However the row is given, the answer is HTTP's."""
    (served / "row.json").write_text('{"x": 10, "z": 1}')
    done = loopline("predict", "line", *rows, "--json", cwd=served, stdin='{"x": 10, "z": 1}')
    told = json.loads(done.stdout)
    assert told.keys() == {"id", "model", "version", "prediction"}
    assert told["prediction"] == pytest.approx(23.0)
    plain = loopline("predict", "line", *rows, cwd=served, stdin='{"x": 10, "z": 1}').stdout
    heading, line = plain.splitlines()
    assert heading.split() == ["prediction", "version", "id"]
    assert float(line.split()[0]) == pytest.approx(23.0)


def test_predict_many_rows(folder: Path) -> None:
    """A list is answered by a list; an id can be given for one row."""
    rows = '[{"x": 1, "z": 1}, {"x": 2, "z": 1}]'
    told = json.loads(loopline("predict", "line", rows, "--json", cwd=folder).stdout)
    assert [each["prediction"] for each in told["predictions"]] == pytest.approx([5.0, 7.0])
    one = loopline("predict", "line", "x=1", "z=0", "--id", "mine", "--json", cwd=folder)
    assert json.loads(one.stdout)["id"] == "mine"


def test_predict_a_file(served: Path) -> None:
    """A table's rows are answered in order, as JSON Lines or CSV."""
    done = loopline("predict", "line", "line.csv", cwd=served)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["prediction"] for each in found] == pytest.approx([3 + 2 * x for x in range(40)])
    loopline("predict", "line", "line.csv", "--output", "answers.csv", cwd=served)
    with (served / "answers.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert len(table) == 40
    assert float(table[3]["prediction"]) == pytest.approx(9.0)


def test_bad_rows_name_the_field(served: Path) -> None:
    """Inline by the field, in a file by the row too."""
    assert "x: " in refusal("predict", "line", '{"x": "abc", "z": 1}', cwd=served)
    assert "x: " in refusal("predict", "line", "x=abc", "z=1", cwd=served)
    (served / "bad.csv").write_text("x,z\n1,1\n2,1\nabc,1\n")
    assert "row 3: x: " in refusal("predict", "line", "bad.csv", cwd=served)
    assert "nobody" in refusal("predict", "nobody", "x=1", cwd=served)


def test_outcomes_one_by_one_and_by_file(served: Path) -> None:
    """The truth about a prediction, by its id."""
    ids = [
        json.loads(line)["id"]
        for line in loopline("predict", "line", "line.csv", cwd=served).stdout.splitlines()
    ]
    told = json.loads(loopline("outcome", "line", ids[0], "3.1", "--json", cwd=served).stdout)
    assert told["results"] == [{"id": ids[0], "status": "joined"}]
    lines = "".join(f"{id},{x},\n" for x, id in enumerate(ids))
    (served / "truth.csv").write_text(f"id,outcome,at\n{lines}")
    done = loopline("outcome", "line", "truth.csv", cwd=served)
    assert re.search(r"joined +39", done.stdout) and re.search(r"corrected +1", done.stdout)
    assert "outcome: " in refusal("outcome", "line", ids[0], "much", cwd=served)
    assert "at: " in refusal("outcome", "line", ids[0], "3", "--at", "noon", cwd=served)
    (entry,) = json.loads(loopline("score", "line", "--served", "--json", cwd=served).stdout)[
        "versions"
    ]
    assert entry["outcomes"] >= 40
    assert "%" in loopline("score", "line", "--served", cwd=served).stdout


def test_learn_and_score(folder: Path) -> None:
    """Labelled rows as a list, as pairs and from a file; a wrong one changes nothing."""
    told = json.loads(loopline("learn", "line", "[50, 1, 103]", "--json", cwd=folder).stdout)
    rows = told["rows"]
    done = loopline("learn", "line", "x=51", "z=1", "y=105", cwd=folder)
    assert f"the data set has {rows + 1}" in done.stdout
    told = json.loads(loopline("learn", "line", "line.csv", "--json", cwd=folder).stdout)
    assert (told["accepted"], told["rows"]) == (40, rows + 41)
    assert "y: " in refusal("learn", "line", "x=1", "z=2", cwd=folder)
    scored = json.loads(loopline("score", "line", "line.csv", "--json", cwd=folder).stdout)
    assert (scored["rows"], scored["on"]) == (40, "given rows")
    assert "rmse" in loopline("score", "line", cwd=folder).stdout


def test_promote_and_rollback(served: Path) -> None:
    """Versions move by command, and decisions tell of it."""
    loopline("train", "moved", "line.csv", "--target", "y", "--model", "linear", cwd=served)
    loopline("train", "moved", cwd=served)
    assert "rollback" in loopline("rollback", "moved", cwd=served).stdout
    assert "promote" in loopline("promote", "moved", "2", cwd=served).stdout
    told = json.loads(loopline("decisions", "moved", "--json", cwd=served).stdout)["decisions"]
    assert [each["verdict"] for each in told][-2:] == ["rollback", "promote"]
    assert "by" in loopline("decisions", "moved", cwd=served).stdout
    assert "champion already" in refusal("promote", "moved", "2", cwd=served)
    assert "no version 9" in refusal("promote", "moved", "9", cwd=served)


def test_models_and_jobs(served: Path) -> None:
    """What is there, what it is like, and what was done."""
    assert "line" in loopline("models", cwd=served).stdout
    told = json.loads(loopline("models", "line", "--json", cwd=served).stdout)
    assert told["columns"] == ["x", "z", "y"]
    assert "champion" in loopline("models", "line", cwd=served).stdout
    jobs = json.loads(loopline("jobs", "--model", "line", "--json", cwd=served).stdout)["jobs"]
    id = jobs[-1]["job"]
    assert id in loopline("jobs", "--state", "done", cwd=served).stdout
    told = json.loads(loopline("jobs", id, "--follow", "--json", cwd=served).stdout)
    assert told["state"] == "done"
    assert "nobody" in refusal("jobs", "nobody", cwd=served)


def test_tokens(folder: Path) -> None:
    """Made, listed without their text, and revoked, beside a server or without one."""
    text = loopline("token", "create", "ci", "--scope", "predict", cwd=folder).stdout.strip()
    assert text.startswith("ll_")
    listed = loopline("token", "list", cwd=folder).stdout
    assert "ci" in listed and text not in listed
    assert "exists already" in refusal("token", "create", "ci", "--scope", "train", cwd=folder)
    loopline("token", "revoke", "ci", cwd=folder)
    assert "no token 'ci'" in refusal("token", "revoke", "ci", cwd=folder)


def test_doctor(folder: Path) -> None:
    """The machine, the installation and the directory, as a table and as JSON."""
    told = json.loads(loopline("doctor", "--json", "--port", "0", cwd=folder).stdout)
    checks = {each["check"]: each for each in told["checks"]}
    assert {"Python", "SQLite", "platform", "data directory", "store.db"} <= checks.keys()
    assert checks["store.db"]["state"] == "ok"
    assert "SQLite" in loopline("doctor", "--data-dir", "absent", "--port", "0", cwd=folder).stdout


# The server as a process.


def start(*arguments: str, cwd: Path) -> tuple[subprocess.Popen[str], str]:
    """Start `loopline serve` and read the line that says where it answers."""
    process = subprocess.Popen(
        [sys.executable, "-m", "loopline", "serve", *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline()


def end(process: subprocess.Popen[str], how: int = signal.SIGINT) -> tuple[str, str]:
    """Send a signal; the exit code has to be 0. Returns what it printed until then."""
    process.send_signal(how)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    return out, err


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_serve_says_hello_and_goodbye(tmp_path: Path, free_port: int, how: int) -> None:
    """Two quiet lines at the start, one at the end, and nothing on standard error."""
    process, first = start("--port", str(free_port), cwd=tmp_path)
    assert f"http://127.0.0.1:{free_port}" in first and "/docs" in first
    assert process.stdout is not None
    assert "no models yet" in process.stdout.readline()
    out, err = end(process, how)
    assert (out, err) == ("Goodbye.\n", "")


def test_second_server_is_told(server: Server, tmp_path: Path) -> None:
    """A port or a data directory that is taken is one sentence."""
    port = server.url.rpartition(":")[2]
    assert port in refusal("serve", "--port", port, cwd=tmp_path)
    began = time.monotonic()
    told = refusal("serve", "--port", "0", cwd=server.folder)
    assert "in use" in told and server.url in told
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import nothing_of_that_name", "nothing_of_that_name"),
        ("app = 3", "no Loopline"),
        ("def broken(:", "SyntaxError"),
    ],
)
def test_bad_application_is_one_sentence(
    tmp_path: Path, code: str, said: str, free_port: int
) -> None:
    """What is wrong with the file, and no traceback."""
    (tmp_path / "app.py").write_text(code)
    assert said in refusal("serve", "app.py", "--port", str(free_port), cwd=tmp_path)


def test_token_required(tmp_path: Path, free_port: int) -> None:
    """A token made before the start opens the server; without one there is a sentence."""
    text = loopline("token", "create", "me", "--scope", "admin", cwd=tmp_path).stdout.strip()
    process, _ = start("--token-required", "--port", str(free_port), cwd=tmp_path)
    try:
        assert "token" in refusal("models", cwd=tmp_path)
        assert "no models yet" in loopline("models", cwd=tmp_path, LOOPLINE_TOKEN=text).stdout
        url = ("--url", f"http://127.0.0.1:{free_port}", "--token", text)
        assert json.loads(loopline("token", "list", "--json", *url, cwd=tmp_path).stdout)["tokens"]
        assert "not known" in refusal("models", "--token", "ll_wrong", cwd=tmp_path)
    finally:
        end(process)


def test_models_of_the_configuration_file(tmp_path: Path, free_port: int) -> None:
    """`loopline serve` with nothing serves what `loopline.toml` names."""
    folder = write_tables(tmp_path / "configured")
    toml = '[models.line]\nmodel = "linear"\ndata = "line.csv"\ntarget = "y"\n'
    (folder / "loopline.toml").write_text(f"[settings]\nport = {free_port}\n{toml}")
    process, first = start(cwd=folder)
    try:
        assert str(free_port) in first
        told: Any = json.loads(loopline("jobs", "--json", cwd=folder).stdout)["jobs"]
        loopline("jobs", told[0]["job"], "--follow", cwd=folder)
        done = loopline("predict", "line", "x=1", "z=0", "--json", cwd=folder)
        assert json.loads(done.stdout)["prediction"] == pytest.approx(5.0)
    finally:
        end(process)


def test_training_from_a_query_and_a_function(folder: Path) -> None:
    """Both are read by the command itself, with a server and without; what fails is told."""
    with closing(sqlite3.connect(folder / "shop.db")) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS line (x REAL, y REAL)")
        connection.executemany(
            "INSERT INTO line VALUES (?, ?)", [(x, 3 + 2 * x) for x in range(40)]
        )
        connection.commit()
    code = "def rows():\n    return [{'x': x, 'y': 3.0 + 2 * x} for x in range(40)]\n"
    (folder / "line_data.py").write_text(code)
    query = "sql+sqlite:///shop.db?query=SELECT x, y FROM line WHERE x % 1 = 0"
    for name, data in {"queried": query, "called": "line_data:rows"}.items():
        loopline("train", name, data, "--target", "y", "--model", "linear", cwd=folder)
        told = json.loads(loopline("predict", name, "x=1", "--json", cwd=folder).stdout)
        assert told["prediction"] == pytest.approx(5.0)
    for data, told in {
        "sql+sqlite:///shop.db?query=SELECT nowhere FROM line": "no such column: nowhere",
        "sqlite:///shop.db": "need a query",
        "line_data:columns": "line_data:columns is not there",
    }.items():
        assert told in refusal("train", "none", data, "--target", "y", cwd=folder)


def test_remote_training_sends_the_rows(server: Server, tmp_path: Path) -> None:
    """Where the server may be elsewhere, the table itself is sent."""
    write_tables(tmp_path / "far")
    loopline(
        *("train", "far", "line.csv", "--target", "y", "--model", "linear"),
        *("--url", server.url),
        cwd=tmp_path / "far",
    )
    assert server.get("/v1/models/far")["rows"] == 40

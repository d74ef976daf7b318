"""The commands: each reads its options, calls one method of the client, and shows the answer."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loopline import __version__
from loopline.errors import LooplineError

if TYPE_CHECKING:
    from loopline.cli.connect import Session

Command = Callable[..., Any]

FORMS = ("openapi", "asyncapi", "jsonschema", "proto")
SCOPES = ("predict", "outcome", "learn", "train", "worker", "admin")
TALK = (
    click.option("--url", help="A server to talk to, such as http://127.0.0.1:8000."),
    click.option("--token", help="An access token; LOOPLINE_TOKEN otherwise."),
    click.option("--json", is_flag=True, help="Write JSON for a program."),
)
PLACE = (
    click.option("--data-dir", help="The data directory; ./loopline-data otherwise."),
    click.option("--config", help="A configuration file; ./loopline.toml if it is there."),
    click.option("--debug", is_flag=True, default=None, help="Show tracebacks."),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="loopline %(version)s")
def cli() -> None:
    """Serve a model, tell it what became true, retrain it, and swap the better one in.

    A command talks to the server that has the data directory if one is running, and opens the
    directory itself otherwise.
    """


def command(name: str, *options: Command, group: click.Group = cli) -> Callable[[Command], Command]:
    """Declare a command that gets a `Session` and its own options."""

    def declare(function: Command) -> Command:
        @functools.wraps(function)
        def run(
            data_dir: str | None,
            config: str | None,
            debug: bool | None,
            url: str | None = None,
            token: str | None = None,
            json: bool = False,
            **own: Any,
        ) -> None:
            from loopline.cli.connect import Session

            place: dict[str, Any] = {"data_dir": data_dir, "debug": debug}
            place.update({key: own.pop(key) for key in [*own] if key in _SETTINGS})
            with Session(config, url, token, json, **place) as session:
                function(session, **own)

        for option in reversed((*options, *PLACE, *(() if name in ("serve", "demo") else TALK))):
            run = option(run)
        group.command(name)(run)
        return function

    return declare


_SETTINGS = (
    *("host", "port", "grpc", "zerorpc", "zerorpc_keys"),
    *("processes", "workers", "token_required", "insecure", "trust"),
)
MODEL = click.argument("model", metavar="NAME")
ROWS = click.argument("rows", nargs=-1)
VERSION = click.option("--version", type=click.IntRange(1), help="A version; the champion's.")


def main() -> None:
    """Run the command line: errors are one sentence, usage errors exit with 2, others with 1."""
    try:
        sys.exit(cli.main(standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except LooplineError as error:
        if "--debug" in sys.argv:
            raise
        print(f"Error: {sentence(error)}", file=sys.stderr)
        sys.exit(1)


def sentence(error: LooplineError) -> str:
    """An error in one line, with the fields it is about."""
    told = [error.detail]
    if not any(field.detail in error.detail for field in error.fields):
        told += [f"{field.pointer.strip('/')}: {field.detail}" for field in error.fields[:5]]
    return " ".join("; ".join(told).split())


# The server.


@command(
    "serve",
    click.argument("targets", nargs=-1, metavar="[APP.PY[:NAME] | [NAME=]MODEL.FILE]..."),
    click.option("--host", help="Address to listen on; 127.0.0.1 otherwise."),
    click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; 8000."),
    click.option("--grpc", metavar="HOST:PORT", help="Offer the gRPC services there."),
    click.option("--zerorpc", metavar="ENDPOINT", help="Offer ZeroRPC at tcp://HOST:PORT."),
    click.option("--zerorpc-keys", metavar="FOLDER", help="Its CURVE keys; else only loopback."),
    click.option("--processes", type=click.IntRange(1), help="Replicas that share the port; 1."),
    click.option("--workers", type=click.IntRange(0), help="Worker processes; 1."),
    click.option("--token-required", is_flag=True, default=None, help="Refuse who has no token."),
    click.option("--insecure", is_flag=True, default=None, help="Need no token beyond loopback."),
    click.option("--trust", is_flag=True, default=None, help="Load the pickles that are named."),
)
def serve(session: Session, targets: tuple[str, ...]) -> None:
    """Serve an application, model files, or what the data directory holds."""
    from loopline.cli.serving import run

    run(session, targets)


@cli.command("zerorpc-forward")
@click.argument("to", metavar="ENDPOINT")
@click.option("--listen", default="tcp://127.0.0.1:4243", help="Where plain clients call.")
@click.option("--keys", default="zerorpc-keys", help="Folder: server.key, and a pair made here.")
def zerorpc_forward(to: str, listen: str, keys: str) -> None:
    """Let local clients that know no CURVE call the ZeroRPC service at ENDPOINT."""
    from loopline.adapters.zerorpc_socket import forward

    click.echo(f"{listen} leads to {to}, once {keys}/client.key is among its clients' keys")
    forward(listen, to, keys)


# Training.


def _pairs(context: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> Any:
    """Options of the form k=v; a value that is JSON is that, any other is text."""
    from loopline.cli.rows import value_of

    for text in texts:
        if "=" not in text:
            raise click.BadParameter(f"{text!r} is not of the form k=v")
    return {text.partition("=")[0]: value_of(text.partition("=")[2]) for text in texts}


@command(
    "train",
    MODEL,
    click.argument("data", required=False),
    click.option("--target", help="The column to predict."),
    click.option("--estimator", help="An import path, such as lightgbm.LGBMClassifier."),
    click.option("--formula", help='A linear model by formula, such as "Sales ~ TV".'),
    click.option("--model", "built_in", type=click.Choice(["linear", "polynomial"])),
    click.option("--param", "params", multiple=True, metavar="K=V", callback=_pairs),
    click.option("--task", type=click.Choice(["regression", "classification"])),
    click.option("--description", help="For people."),
    click.option("--log", type=click.Choice(["async", "sync", "none"]), help="async otherwise."),
    click.option("--retrain-every", type=click.IntRange(1), help="Retrain after so many outcomes."),
    click.option("--mode", type=click.Choice(["propose", "auto", "always"]), help="propose."),
    click.option("--no-wait", is_flag=True, help="Do not wait for the training's end."),
)
def train(session: Session, model: str, data: str | None, **options: Any) -> None:
    """Train a model: a new one on DATA, or one that is there on everything known now.

    DATA is a file, `sql+URL?query=SELECT …`, or a function as `module:function`. Without
    --estimator, --formula and --model it is gradient boosting.
    """
    from loopline.cli import training

    wait, params = not options.pop("no_wait"), options.pop("params")
    _check_train(data, options)
    if data is not None:
        training.check_table(data)
    client = session.client(create=data is not None)
    before = training.newest(client, model)
    if data is not None:
        client.add(model, training.definition(data, options, params, session.beside))
    job = training.submit(client, model, before, {} if data is not None else params)
    if wait:
        ended = _followed(session, job, f"training {model}")
        training.show(session.console, client, model, ended)
    else:
        told = client.job(job)
        session.console.show(told, ["job", "state"], [told])


def _check_train(data: str | None, options: dict[str, Any]) -> None:
    ways = [name for name in ("estimator", "formula", "built_in") if options[name]]
    if len(ways) > 1:
        raise click.UsageError("give one of --estimator, --formula and --model")
    given = [name for name, value in options.items() if value is not None]
    if data is None and given:
        flag = {"built_in": "model"}.get(given[0], given[0]).replace("_", "-")
        raise click.UsageError(f"--{flag} goes with DATA, which is missing")
    if data is not None and options["target"] is None:
        raise click.UsageError("name the column of DATA to predict with --target")
    if options["mode"] and not options["retrain_every"]:
        raise click.UsageError("--mode goes with --retrain-every")


def _followed(session: Session, job: str, title: str) -> dict[str, Any]:
    """Show a job's progress until it has ended; returns it."""
    client = session.client()
    with session.console.progress(title) as progress:
        for event in client.follow(job):
            if event["kind"] == "progress":
                progress.at(event.get("step", 0), event.get("of"), event.get("message", ""))
    return client.job(job)


# Predictions, outcomes, examples.


@command(
    "predict",
    MODEL,
    click.argument("rows", nargs=-1, required=True),
    click.option("--version", type=click.IntRange(1), help="A version; the champion otherwise."),
    click.option("--alias", type=click.Choice(["champion", "challenger", "previous"])),
    click.option("--id", "id", help="The prediction's id, for one row; made otherwise."),
    click.option("--probabilities", is_flag=True, help="Show the classes' probabilities."),
    click.option("--timeout", type=float, help="Seconds to wait for an answer."),
    click.option("--output", "-o", type=click.Path(dir_okay=False), help="Where a file's go."),
    click.option("--format", "form", type=click.Choice(["jsonl", "csv"]), help="Of a file's."),
)
def predict(session: Session, model: str, rows: tuple[str, ...], **options: Any) -> None:
    """Predict ROWS: JSON, @file.json, - (standard input), name=value pairs, or a table's path."""
    from loopline.cli import predicting
    from loopline.cli.rows import is_table, read_given

    output, form, id = options.pop("output"), options.pop("form"), options.pop("id")
    if id is not None and is_table(rows[0]):
        raise click.UsageError("--id goes with one row, not with a file")
    given = read_given(rows)
    assert given is not None
    if given.path is not None:
        predicting.file(session, model, given.path, output, form, options)
        return
    ids = None if id is None else [id]
    found = session.client().predict(model, given.value, ids=ids, text=given.text, **options)
    predicting.show(session.console, model, found)


@command("learn", MODEL, click.argument("rows", nargs=-1, required=True))
def learn(session: Session, model: str, rows: tuple[str, ...]) -> None:
    """Add labelled ROWS to a model's data set: as for predict, with the target.

    A row can also be a list, in the order of the columns. All rows are taken, or none.
    """
    from loopline.cli import predicting

    told = predicting.learn(session, model, rows)
    summary = [{"column": name, **each} for name, each in (told["summary"] or {}).items()]
    session.console.line(f"accepted {told['accepted']} rows; the data set has {told['rows']}")
    session.console.show(told, ["column", "count", "mean", "std", "min", "max"], summary)


@command(
    "outcome",
    MODEL,
    click.argument("id", metavar="ID|FILE"),
    click.argument("value", required=False),
    click.option("--at", help="When it became true: ISO 8601, or seconds since 1970."),
)
def outcome(session: Session, model: str, id: str, value: str | None, at: str | None) -> None:
    """Tell what became true: of one prediction, or of many by a file with id, outcome and at."""
    from loopline.cli import predicting
    from loopline.cli.rows import is_table

    if (value is None) != is_table(id):
        raise click.UsageError("give an id and the value that became true, or a file of them")
    told = predicting.outcome(session, model, id, value, at)
    counts = {name: count for name, count in told.items() if name != "results" and count}
    session.console.show(told, ["status", "outcomes"], predicting.counted(counts))


# Models and versions.


@command("models", click.argument("model", metavar="[NAME]", required=False))
def models(session: Session, model: str | None) -> None:
    """List the models, or describe one."""
    from loopline.cli.console import moment

    console, client = session.console, session.client()
    if model is not None:
        told = client.describe(model)
        shown = {**told, "created": moment(told["created"])}
        rows = [{"": name, "value": each} for name, each in shown.items() if name != "schema"]
        console.show(told, ["", "value"], rows)
        return
    found = client.models()
    if not found:
        console.line("There are no models yet; `loopline train NAME DATA --target T` makes one.")
    if found or console.json:
        columns = ["name", "ready", "champion", "task", "description"]
        console.show({"models": found}, columns, found)


@command("versions", MODEL)
def versions(session: Session, model: str) -> None:
    """List a model's versions, with their metrics and aliases."""
    from loopline.cli.console import moment

    found = session.client().versions(model)
    rows = [{**each, "created": moment(each["created"])} for each in found]
    columns = ["version", "aliases", "rows", "created", "metrics"]
    session.console.show({"versions": found}, columns, rows)


@command("promote", MODEL, click.argument("version", type=click.IntRange(1)))
def promote(session: Session, model: str, version: int) -> None:
    """Let a version answer."""
    told = session.client().promote(model, version)
    session.console.show(told, ["verdict", "reason"], [told])


@command("rollback", MODEL)
def rollback(session: Session, model: str) -> None:
    """Let the previous champion answer again."""
    told = session.client().rollback(model)
    session.console.show(told, ["verdict", "reason"], [told])


@command("decisions", MODEL)
def decisions(session: Session, model: str) -> None:
    """List why which version answers."""
    from loopline.cli.console import moment

    found = session.client().decisions(model)
    rows = [{**each, "at": moment(each["at"])} for each in found]
    columns = ["number", "at", "verdict", "candidate", "champion", "by", "reason"]
    session.console.show({"decisions": found}, columns, rows)


@command(
    "score",
    MODEL,
    ROWS,
    VERSION,
    click.option("--served", is_flag=True, help="Scores of the answers as they were given."),
)
def score(session: Session, model: str, served: bool, **options: Any) -> None:
    """Score a version on labelled ROWS, or on those that it was not trained on."""
    from loopline.cli import predicting

    if served:
        if options["rows"] or options["version"]:
            raise click.UsageError("--served goes with neither rows nor --version")
        told = session.client().scores(model)
        session.console.show(told, *predicting.served(told))
        return
    told = predicting.score(session, model, **options)
    rows = [{"metric": name, "value": value} for name, value in told["metrics"].items()]
    session.console.line(f"version {told['version']} on {told['rows']} rows ({told['on']})")
    session.console.show(told, ["metric", "value"], rows)


@command("report", MODEL, VERSION, click.option("--html", is_flag=True, help="Write HTML."))
def report(session: Session, model: str, version: int | None, html: bool) -> None:
    """Show what the model itself says of its fit."""
    told = session.client().report(model, version=version)
    if html:
        click.echo(told["html"])
        return
    session.console.show_report(told)


# Jobs, tokens, the installation.


@command(
    "jobs",
    click.argument("job", required=False),
    click.option("--model", help="Only those of a model."),
    click.option(
        "--state", type=click.Choice(["queued", "running", "done", "failed", "cancelled"])
    ),
    click.option("--follow", is_flag=True, help="Follow JOB to its end."),
    click.option("--cancel", is_flag=True, help="Cancel JOB."),
)
def jobs(session: Session, job: str | None, follow: bool, cancel: bool, **options: Any) -> None:
    """List the newest jobs, or show, follow or cancel one."""
    from loopline.cli.console import moment

    if job is None and (follow or cancel):
        raise click.UsageError("--follow and --cancel need the id of a job")
    console, client = session.console, session.client()
    if job is None:
        told = client.jobs(**options)
        rows = [{**each, "created": moment(each["created"])} for each in told["jobs"]]
        columns = ["job", "kind", "model", "state", "created", "reason"]
        console.show(told, columns, rows)
        return
    told = client.cancel(job) if cancel else client.job(job)
    if follow:
        told = _followed(session, job, f"{told['kind']} {told['model']}")
    console.show(told, ["", "value"], [{"": k, "value": v} for k, v in told.items()])


@cli.group()
def token() -> None:
    """Make, list and revoke access tokens."""


@command(
    "create",
    click.argument("name"),
    click.option("--scope", "scopes", multiple=True, required=True, type=click.Choice(SCOPES)),
    group=token,
)
def create_token(session: Session, name: str, scopes: tuple[str, ...]) -> None:
    """Make a token; its text is shown this once."""
    text = session.tokens(create=True).create_token(name, scopes)
    if session.console.json:
        session.console.value({"name": name, "scopes": scopes, "token": text})
    session.console.line(text)


@command("list", group=token)
def list_tokens(session: Session) -> None:
    """List all tokens, without their text."""
    from loopline.cli.console import moment

    found = session.tokens().tokens()
    rows = [{**each, "created": moment(each["created"])} for each in found]
    session.console.show({"tokens": found}, ["name", "created", "revoked", "scopes"], rows)


@command("revoke", click.argument("name"), group=token)
def revoke_token(session: Session, name: str) -> None:
    """Make a token useless, within seconds everywhere."""
    session.tokens().revoke_token(name)
    told = {"name": name, "revoked": True}
    session.console.show(told, ["name", "revoked"], [told])


@command("doctor", click.option("--port", type=click.IntRange(0, 65535), help="8000 otherwise."))
def doctor(session: Session) -> None:
    """Look at the machine, the installation and the data; exits with 1 if something is wrong."""
    from loopline.cli.doctor import examine

    found = examine(session.settings, session.root)
    session.console.show({"checks": found}, ["check", "state", "detail"], found)
    if any(each["state"] == "wrong" for each in found):
        sys.exit(1)


@command(
    "contract",
    click.option("--format", "form", type=click.Choice(FORMS), default=FORMS[0], help="OpenAPI."),
    click.option("--output", type=click.File("wb"), default="-", help="A file to write to."),
)
def contract(session: Session, form: str, output: Any) -> None:
    """Write the contract of the whole service, as of the models that are there."""
    from loopline.adapters.http_routes import fetch

    output.write(fetch(session.client(), form))


@command(
    "demo",
    click.option("--port", type=click.IntRange(0, 65535), help="Port of its server; 8000."),
    click.option("--exit/--stay", "leave", default=None, help="Stop, or leave the server up."),
    click.option("--rows", "most", type=click.IntRange(1), help="Rows to send; all otherwise."),
    click.option("--json", is_flag=True, help="Write JSON for a program."),
)
def demo(session: Session, leave: bool | None, most: int | None) -> None:
    """Send a real data stream through the whole loop, and watch it.

    It has a folder of its own, ./loopline-demo, emptied at the start. In a terminal the server
    stays up at the end.
    """
    from loopline import demo

    stay = sys.stdin.isatty() and sys.stdout.isatty() if leave is None else not leave
    root = session.given["data_dir"] or "loopline-demo"
    demo.run(session.console, Path(root), session.settings.port, stay, most)

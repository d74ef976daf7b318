"""Speaks for the ZeroRPC package, in its own environment: a call per line in, answers per line out.

Usage: python zerorpc_bridge.py ENDPOINT [OPTIONS as JSON: token, heartbeat, timeout].
"""

import json
import sys

import zerorpc


class Middleware:
    """Adds the token to every request, and keeps the header of the last answer."""

    def __init__(self, token):
        self.token = token
        self.header = {}

    def get_task_context(self):
        return {"auth": self.token} if self.token else {}

    def client_after_request(self, request_event, reply_event, exception):
        self.header = reply_event.header if reply_event is not None else {}


def say(**told):
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


def answer(client, middleware, method, args):
    try:
        value = client(method, *args)
        if not hasattr(value, "__next__"):
            say(value=value)
            return
        for item in value:
            say(item=item)
        say(done=True)
    except zerorpc.RemoteError as error:
        header = middleware.header
        more = {"code": header.get("code"), "errors": header.get("errors", [])}
        say(error=error.name, message=error.msg, traceback=error.traceback, **more)
    except (zerorpc.LostRemote, zerorpc.TimeoutExpired) as error:
        say(lost=type(error).__name__)


def main(endpoint, options="{}"):
    options = json.loads(options)
    middleware = Middleware(options.pop("token", None))
    context = zerorpc.Context()
    context.register_middleware(middleware)
    client = zerorpc.Client(endpoint, context=context, **options)
    for line in sys.stdin:
        asked = json.loads(line)
        answer(client, middleware, asked["method"], asked["args"])


main(*sys.argv[1:])

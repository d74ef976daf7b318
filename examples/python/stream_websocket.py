"""Predict a stream of rows over one WebSocket: `pip install websockets`."""

import json
import os

from websockets.sync.client import connect

URL = os.environ.get("URL", "http://127.0.0.1:8000").replace("http", "ws", 1)
ROWS = [{"TV": float(budget)} for budget in range(1000)]
WINDOW = 100  # Requests on their way; the server takes up to 256.

answers = {}
with connect(f"{URL}/v1/models/sales/socket", subprotocols=["loopline.v1"]) as socket:
    for number, row in enumerate(ROWS):
        if number >= WINDOW:
            told = json.loads(socket.recv())
            answers[told["id"]] = told["answer"]
        socket.send(json.dumps({"id": number, "inputs": row}))
    while len(answers) < len(ROWS):
        told = json.loads(socket.recv())
        answers[told["id"]] = told["answer"]
    print(len(answers), "answers; TV=50:", answers[50]["prediction"], "id", answers[50]["id"])

    outcome = {"id": answers[50]["id"], "outcome": 9.4}
    socket.send(json.dumps({"verb": "outcome", "inputs": outcome}))
    print("outcome:", json.loads(socket.recv())["answer"]["results"][0]["status"])

    socket.send(json.dumps({"inputs": {"TV": "abc"}}))
    error = json.loads(socket.recv())["error"]
    print("refused:", error["code"], error["detail"])

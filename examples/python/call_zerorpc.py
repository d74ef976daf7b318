"""Predict over ZeroRPC: `pip install zerorpc`."""

import os

import zerorpc

client = zerorpc.Client(os.environ.get("ZERORPC", "tcp://127.0.0.1:4242"))

print("the default model:", client.predict({"TV": [50]}))
flower = {"sepal_length": 1.1, "sepal_width": 1.2, "petal_length": 1.4, "petal_width": 1.5}
answer = client.iris_predict(flower)
print("iris:", answer["prediction"], "version", answer["version"], "id", answer["id"])

stream = client.iris_predict_stream([flower] * 1000)
print("streamed:", sum(each["prediction"] == "setosa" for each in stream), "setosa")

try:
    client.iris_predict({**flower, "petal_width": "abc"})
except zerorpc.RemoteError as error:
    print("refused:", error.name, error.msg)
client.close()

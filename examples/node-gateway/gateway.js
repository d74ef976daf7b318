// Maps three routes to a model's methods, over ZeroRPC or, with BACKEND=http, over plain HTTP.
const express = require("express");

const backends = { zerorpc: "./over_zerorpc", http: "./over_http" };
const backend = require(backends[process.env.BACKEND || "zerorpc"]);
const app = express();
app.use(express.json(), express.urlencoded({ extended: true }));

// Forms and queries hold text; what is no number goes on as it is, and the model refuses it.
const number = (value) =>
  typeof value === "string" && value.trim() && !isNaN(value) ? Number(value) : value;

// {"data": [TV, Radio, Newspaper, Sales]}, or the same as a form: data[]=…&data[]=…
app.post("/v1/ia/learn", async (request, response) => {
  const row = request.body?.data ?? null;
  const feedback = await backend.learn(Array.isArray(row) ? row.map(number) : row);
  response.status(202).json({ feedback });
});

app.get("/v1/ia/train", async (request, response) => {
  response.type("html").send(await backend.train());
});

app.get("/v1/ia/predict", async (request, response) => {
  response.json({ data: await backend.predict({ TV: number(request.query.TV ?? 50) }) });
});

// Whatever a backend throws comes with the status that the caller should see.
app.use((error, request, response, next) => {
  response.status(error.status ?? 502).json({ error: error.message });
});

const server = app.listen(Number(process.env.PORT || 3000), "127.0.0.1", () => {
  console.log(`The gateway listens on http://127.0.0.1:${server.address().port}`);
});

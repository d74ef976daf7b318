// The same model over HTTP.
const model = `${process.env.URL || "http://127.0.0.1:8000"}/v1/models/sales`;

async function call(path, options) {
  const answer = await fetch(model + path, options);
  if (!answer.ok) {
    const problem = await answer.json();
    throw Object.assign(new Error(problem.detail), { status: answer.status });
  }
  return answer;
}

async function post(path, row) {
  const headers = { "content-type": "application/json" };
  return (await call(path, { method: "POST", headers, body: JSON.stringify(row) })).json();
}

module.exports = {
  learn: async (row) => (await post("/learn", row)).summary,
  train: async () => {
    const job = await post("/train?wait=60");
    if (job.state !== "done") throw new Error(`the training is ${job.state}`);
    return (await call("/report", { headers: { accept: "text/html" } })).text();
  },
  predict: async (row) => (await post("/predict", row)).prediction,
};

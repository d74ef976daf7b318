// The default model's methods over ZeroRPC.
const { promisify } = require("util");
const zerorpc = require("zerorpc");

const client = new zerorpc.Client({ timeout: 60 });
client.on("error", (error) => console.error(error));
client.connect(process.env.ZERORPC || "tcp://127.0.0.1:4242");
const invoke = promisify(client.invoke.bind(client));

// By the name of an error; any other is 502, the service's fault and not the caller's.
const STATUS = {
  InvalidInput: 422,
  NotReady: 503,
  Overloaded: 503,
  TimedOut: 504,
  TimeoutExpired: 504,
  TooLarge: 413,
  Unavailable: 503,
  UnknownModel: 404,
};

async function call(method, ...args) {
  try {
    return await invoke(method, ...args);
  } catch (error) {
    throw Object.assign(error, { status: STATUS[error.name] });
  }
}

module.exports = {
  learn: async (row) => JSON.parse(await call("learn", row)),
  train: () => call("train"),
  predict: (row) => call("predict", row),
};

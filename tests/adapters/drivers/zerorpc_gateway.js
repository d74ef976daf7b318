// A gateway as a back-end developer writes it: each HTTP route calls a method of a ZeroRPC service.
const http = require("http");
const querystring = require("querystring");
const zerorpc = require("zerorpc");

const [, , endpoint, port] = process.argv;
const client = new zerorpc.Client();
client.connect(endpoint);

function reply(response, status, body, kind) {
  response.writeHead(status, { "content-type": kind || "application/json" });
  response.end(kind ? body : JSON.stringify(body));
}

function read(request, done) {
  let text = "";
  request.on("data", (chunk) => { text += chunk; });
  request.on("end", () => {
    if ((request.headers["content-type"] || "").includes("json")) return done(JSON.parse(text));
    const form = querystring.parse(text);
    done({ data: form["data[]"] });
  });
}

const routes = {
  "POST /v1/ia/learn": (request, response) => read(request, (body) => {
    client.invoke("learn", body.data, (err, feedback) => {
      if (err) return reply(response, 400, { name: err.name, message: err.message });
      reply(response, 202, { feedback });
    });
  }),
  "GET /v1/ia/train": (request, response) => client.invoke("train", (err, html) => {
    if (err) return reply(response, 400, { name: err.name, message: err.message });
    reply(response, 200, html, "text/html");
  }),
  "GET /v1/ia/predict": (request, response) => {
    const asked = new URL(request.url, "http://localhost").searchParams.get("TV");
    const tv = asked === "array" ? new Float32Array([50]) : [asked === null ? 50 : asked];
    client.invoke("predict", { TV: tv }, (err, data) => {
      if (err) return reply(response, 400, { name: err.name, message: err.message });
      reply(response, 200, { data });
    });
  },
  // A stream, to its end.
  "GET /stream": (request, response) => {
    const rows = Array.from({ length: 300 }, () => ({ TV: 50.5 }));
    let count = 0;
    client.invoke("sales_predict_stream", rows, (err, item, more) => {
      if (err) return reply(response, 400, { name: err.name, message: err.message });
      if (more) count += 1;
      else reply(response, 200, { count });
    });
  },
  // A model that takes its time.
  "GET /slow": (request, response) => {
    const seconds = Number(new URL(request.url, "http://localhost").searchParams.get("seconds"));
    client.invoke("slow_predict", { seconds }, (err, data) => {
      if (err) return reply(response, 400, { name: err.name, message: err.message });
      reply(response, 200, { data: data.prediction });
    });
  },
};

http.createServer((request, response) => {
  const route = routes[`${request.method} ${request.url.split("?")[0]}`];
  if (route) route(request, response);
  else reply(response, 404, {});
}).listen(Number(port), "127.0.0.1", () => console.log("ready"));

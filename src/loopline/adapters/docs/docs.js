"use strict";

// Renders openapi.json with a form for every operation. Everything is put into the page as text.
let api = null;
let token = "";

function make(tag, text, attributes) {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  return element;
}

function resolve(schema) {
  while (schema && schema.$ref) {
    schema = schema.$ref.split("/").slice(1).reduce((at, step) => at[step], api);
  }
  return schema || {};
}

function example(schema, depth) {
  schema = resolve(schema);
  if (schema.examples && schema.examples.length) return schema.examples[0];
  if ("default" in schema) return schema.default;
  if (schema.enum) return schema.enum[0];
  const choices = schema.anyOf || schema.oneOf;
  if (choices) return example(choices[0], depth + 1);
  const type = Array.isArray(schema.type) ? schema.type[0] : schema.type;
  if (type === "object") {
    const found = {};
    const names = schema.required || Object.keys(schema.properties || {});
    for (const name of depth > 6 ? [] : names) found[name] = example(schema.properties[name], depth + 1);
    return found;
  }
  if (type === "array") return (schema.prefixItems || []).map((each) => example(each, depth + 1));
  return { number: 0, integer: 0, boolean: false, null: null }[type] ?? "";
}

function parameterInput(parameter) {
  const schema = resolve(parameter.schema);
  const label = make("label", parameter.name + (parameter.required ? " * " : " "));
  const input = make("input", "", { name: parameter.name });
  label.append(input);
  const note = parameter.description || schema.description;
  if (note) label.append(make("small", note));
  return { label, input, parameter };
}

function address(path, inputs) {
  const query = new URLSearchParams();
  const headers = {};
  for (const { input, parameter } of inputs) {
    const value = input.value.trim();
    if (parameter.in === "path") path = path.replace(`{${parameter.name}}`, encodeURIComponent(value));
    else if (value && parameter.in === "query") query.append(parameter.name, value);
    else if (value && parameter.in === "header") headers[parameter.name] = value;
  }
  const base = api.servers[0].url.replace(/\/$/, "");
  const text = query.toString();
  return { url: base + path + (text ? `?${text}` : ""), headers };
}

async function send(method, path, inputs, body, output) {
  const { url, headers } = address(path, inputs);
  if (token) headers.Authorization = `Bearer ${token}`;
  const options = { method: method.toUpperCase(), headers };
  if (body && body.value.trim()) {
    options.body = body.value;
    headers["Content-Type"] = "application/json";
  }
  output.textContent = "…";
  try {
    const answer = await fetch(url, options);
    const text = await answer.text();
    let shown = text;
    try { shown = JSON.stringify(JSON.parse(text), null, 2); } catch { /* It is not JSON. */ }
    output.textContent = `${answer.status} ${answer.statusText}\n\n${shown}`;
  } catch (error) {
    output.textContent = String(error);
  }
}

function operation(path, method, told) {
  const box = make("details");
  const head = make("summary");
  head.append(make("span", method.toUpperCase(), { class: "method" }));
  head.append(make("span", path, { class: "path" }), make("span", told.summary || ""));
  box.append(head);
  box.addEventListener("toggle", () => {
    if (box.open && !box.dataset.built) { box.dataset.built = "yes"; build(box, path, method, told); }
  });
  return box;
}

function build(box, path, method, told) {
  if (told.description) box.append(make("p", told.description));
  const inputs = (told.parameters || []).map(parameterInput);
  for (const each of inputs) box.append(each.label);
  let body = null;
  const content = told.requestBody && told.requestBody.content["application/json"];
  if (content) {
    const label = make("label", "Body");
    body = make("textarea", "", { spellcheck: "false" });
    body.value = JSON.stringify(example(content.schema, 0), null, 2);
    label.append(body);
    box.append(label);
  }
  const output = make("pre", "", { "aria-live": "polite" });
  const button = make("button", "Send");
  button.addEventListener("click", () => send(method, path, inputs, body, output));
  const codes = Object.entries(told.responses || {})
    .map(([status, answer]) => `${status}: ${answer.description}`);
  box.append(button, output, make("small", codes.join(" · ")));
}

function group(path, told) {
  if (told.tags && told.tags.length && told.tags[0] !== "default") return `Model ${told.tags[0]}`;
  return path.startsWith("/v1/models") ? "Models" : path.startsWith("/v1/jobs") ? "Jobs" : "Server";
}

function render() {
  const groups = new Map();
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, told] of Object.entries(methods)) {
      const name = group(path, told);
      if (!groups.has(name)) groups.set(name, []);
      groups.get(name).push(operation(path, method, told));
    }
  }
  const main = document.getElementById("operations");
  main.replaceChildren();
  const names = [...groups.keys()].sort((a, b) => b.startsWith("Model ") - a.startsWith("Model "));
  for (const name of names) main.append(make("h2", name), ...groups.get(name));
  document.getElementById("server").textContent = `${api.info.title} ${api.info.version}`;
}

async function load() {
  const trouble = document.getElementById("trouble");
  trouble.textContent = "";
  const answer = await fetch("openapi.json", {
    headers: token ? { Authorization: `Bearer ${token}` } : {},
  });
  if (!answer.ok) {
    trouble.textContent = answer.status === 401 ? "A token is needed." : `Error ${answer.status}`;
    return;
  }
  api = await answer.json();
  render();
}

document.getElementById("access").addEventListener("submit", (event) => {
  event.preventDefault();
  token = document.getElementById("token").value.trim();
  load();
});
load();

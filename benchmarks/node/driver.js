// The child process that times @ruvector/attention inside Node. Protocol: ../sides.py.
//
// setup: {class, args, factory?, method, arguments}: `new class(...args)`, or
// `class[factory](...args)`, then `method(...arguments)`. Without a class, `method` is a
// function of the package.
"use strict";

const fs = require("fs");
const path = require("path");
const readline = require("readline");
const peer = require("@ruvector/attention");

function argument(described) {
  if (!("file" in described)) return described.value;
  const { buffer, byteOffset, byteLength } = fs.readFileSync(described.file);
  const data = new Float32Array(buffer.slice(byteOffset, byteOffset + byteLength));
  if (described.shape.length === 1) return Float32Array.from(data);
  const [rows, columns] = described.shape;
  return Array.from({ length: rows }, (_, i) => data.slice(i * columns, (i + 1) * columns));
}

function result(value) {
  const array = typeof value === "number" ? Float32Array.of(value) : Float32Array.from(value);
  const bytes = Buffer.from(array.buffer, array.byteOffset, array.byteLength);
  const shape = typeof value === "number" ? [] : [array.length];
  return { shape, data: bytes.toString("base64") };
}

function version() {
  const folder = path.dirname(require.resolve("@ruvector/attention"));
  return JSON.parse(fs.readFileSync(path.join(folder, "package.json"), "utf8")).version;
}

const calls = new Map();

const operations = {
  hello: () => ({ version: version() }),
  setup({ handle, class: name, factory, args = [], method, arguments: described }) {
    const inputs = described.map(argument);
    let receiver = peer;
    if (name) receiver = factory ? peer[name][factory](...args) : new peer[name](...args);
    calls.set(handle, () => receiver[method](...inputs));
    return {};
  },
  result: ({ handle }) => ({ results: [result(calls.get(handle)())] }),
  time({ handle, repeats }) {
    const call = calls.get(handle);
    const start = process.hrtime.bigint();
    for (let i = 0; i < repeats; i++) call();
    return { seconds: Number(process.hrtime.bigint() - start) * 1e-9 };
  },
  drop({ handle }) {
    calls.delete(handle);
    return {};
  },
};

readline.createInterface({ input: process.stdin }).on("line", (line) => {
  let answer;
  try {
    const request = JSON.parse(line);
    answer = operations[request.op](request);
  } catch (error) {
    answer = { error: String(error) };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
});

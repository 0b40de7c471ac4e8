// A trained model in the browser: reads a file that `course.web` wrote, once it is asked for, and
// the few operations that all networks share.
"use strict";

const FOREIGN = "this is no file that rnn2gpt export --web wrote";

function headerOf(buffer) {
  try {
    const length = Number(new DataView(buffer).getBigUint64(0, true));
    return { length, header: JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length))) };
  } catch {
    throw new Error(FOREIGN);
  }
}

// Sixteen bits as a number: a sign, five bits of exponent, ten of fraction.
function halfFloat(bits) {
  const [exponent, fraction] = [(bits >> 10) & 31, bits & 1023];
  const size = exponent ? (1024 + fraction) * 2 ** (exponent - 25) : fraction * 2 ** -24;
  return bits >> 15 ? -size : size;
}

const READ = {
  I8: (bytes) => new Int8Array(bytes),
  F16: (bytes) => Float32Array.from(new Uint16Array(bytes), halfFloat),
  F32: (bytes) => new Float32Array(bytes),
};

// A safetensors file: an 8-byte length, a JSON header, the numbers. Eight-bit matrices come as
// NAME.q (O, I) and NAME.scale (O, 1) and are turned back into floats here. `kinds` are the models
// that the caller can run.
function readModel(buffer, ...kinds) {
  const { length, header } = headerOf(buffer);
  const { __metadata__: metadata, ...entries } = header;
  if (!["model", "config", "tokenizer"].every((key) => metadata?.[key])) throw new Error(FOREIGN);
  const kind = JSON.parse(metadata.model);
  if (!kinds.includes(kind)) throw new Error(`it holds the model “${kind}”, which does not run here`);
  const raw = {};
  for (const [name, { dtype, data_offsets: [from, to] }] of Object.entries(entries)) {
    raw[name] = READ[dtype](buffer.slice(8 + length + from, 8 + length + to));
  }
  const weights = {};
  for (const [name, values] of Object.entries(raw)) {
    if (name.endsWith(".scale")) continue;
    if (!name.endsWith(".q")) {
      weights[name] = values;
      continue;
    }
    const [, columns] = entries[name].shape;
    const scale = raw[name.replace(/\.q$/, ".scale")];
    weights[name.replace(/\.q$/, "")] = Float32Array.from(
      values,
      (value, at) => value * scale[Math.floor(at / columns)],
    );
  }
  const [config, info, tokenizer] = ["config", "info", "tokenizer"].map((key) => JSON.parse(metadata[key]));
  return { config, info, weights, tokenizer };
}

// y = W x + b for one vector; W (O, I) row after row.
function linear(W, b, x) {
  const outputs = W.length / x.length;
  const y = new Float32Array(outputs);
  for (let o = 0, at = 0; o < outputs; o++) {
    let sum = b ? b[o] : 0;
    for (let i = 0; i < x.length; i++, at++) sum += W[at] * x[i];
    y[o] = sum;
  }
  return y;
}

// The shares of scores; −∞ gets 0.
function softmax(scores) {
  const most = Math.max(...scores);
  const raised = scores.map((score) => Math.exp(score - most));
  const total = raised.reduce((all, value) => all + value, 0);
  return raised.map((value) => value / total);
}

// The first id of the largest logit, as argmax has it.
const likeliest = (logits) => logits.reduce((best, logit, id) => (logit > logits[best] ? id : best), 0);

// Load a model file of this site once, as a `Network`; later calls share it.
const models = new Map();
function loadModel(Network, url) {
  if (!models.has(url)) {
    const loading = fetch(url).then(async (response) => {
      if (!response.ok) throw new Error(`${url}: ${response.status}`);
      return new Network(await response.arrayBuffer());
    });
    loading.catch(() => models.delete(url)); // one may try again
    models.set(url, loading);
  }
  return models.get(url);
}

// Have an explorer's button fetch its networks: what `load` promises goes to `use`, and what is live
// takes the button's place.
function loadOnRequest(root, what, load, use) {
  const box = root.querySelector(".load");
  const button = box.querySelector("button");
  button.addEventListener("click", async () => {
    button.disabled = true;
    let loaded;
    try {
      loaded = await load();
    } catch (error) {
      button.disabled = false;
      root.querySelector(".reading").textContent = `${what} did not load (${error.message}). From a folder a ` +
        "browser may not read models: serve the site, for instance with python -m http.server.";
      return;
    }
    box.hidden = true;
    root.querySelectorAll(".live").forEach((part) => (part.hidden = false));
    use(loaded);
  });
}

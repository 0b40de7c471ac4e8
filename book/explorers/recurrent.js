// The course's recurrent networks in the browser, number by number as the package runs them: the RNN
// and the LSTM that read characters, with the gradient's way back, and the GRUs that translate.
"use strict";

const sigmoid = (x) => 1 / (1 + Math.exp(-x));
function dot(a, b) {
  let all = 0;
  for (let i = 0; i < a.length; i++) all += a[i] * b[i];
  return all;
}
const length = (a) => Math.sqrt(dot(a, a));

// x = Wᵀ y for one vector: the way back through y = W x.
function transposed(W, y) {
  const inputs = W.length / y.length;
  const x = new Float64Array(inputs);
  for (let o = 0, at = 0; o < y.length; o++) {
    for (let i = 0; i < inputs; i++, at++) x[i] += W[at] * y[o];
  }
  return x;
}

// The squared length of W_ih's, W_hh's and both biases' gradients, Σ α_t x_tᵀ, Σ α_t h_{t−1}ᵀ and Σ α_t,
// which are not made: their inner products suffice.
function squaredLength(alphas, steps) {
  let all = 0;
  for (let t = 0; t < steps.length; t++) {
    for (let s = 0; s <= t; s++) {
      const both = dot(steps[t].x, steps[s].x) + dot(steps[t].before, steps[s].before) + 2;
      all += (s < t ? 2 : 1) * dot(alphas[t], alphas[s]) * both;
    }
  }
  return all;
}

const total = (vectors) => vectors.reduce((all, v) => all.map((value, i) => value + v[i]));

// A `CharRNN` or a `CharLSTM`.
class CharNetwork {
  constructor(buffer) {
    Object.assign(this, readModel(buffer, "rnn", "lstm"));
    this.gated = "lstm.weight_hh_l0" in this.weights;
    this.size = this.config.d_model;
  }

  // Ids of the characters. Throws when the network has never seen one of them.
  encode(text) {
    const ids = [...text].map((character) => this.tokenizer.indexOf(character));
    const unknown = [...text].filter((_, t) => ids[t] < 0);
    if (unknown.length) throw new RangeError(`it knows no ${[...new Set(unknown)].join(" ")}`);
    return ids;
  }

  weight(name) {
    return this.weights[`${this.gated ? "lstm" : "rnn"}.${name}_l0`];
  }

  // What happens at each character: {x, before, h} and, of an LSTM, {i, f, g, o, c, cBefore}. All
  // recurrent weights are `stretch` times what they were trained to.
  read(ids, stretch = 1) {
    const H = this.size;
    let h = new Float32Array(H);
    let c = new Float32Array(H);
    return ids.map((id) => {
      const x = this.weights["embedding.weight"].subarray(id * H, (id + 1) * H);
      const recurrent = linear(this.weight("weight_hh"), null, h);
      const [b_ih, b_hh] = [this.weight("bias_ih"), this.weight("bias_hh")];
      const a = linear(this.weight("weight_ih"), b_ih, x).map((v, i) => v + b_hh[i] + stretch * recurrent[i]);
      const step = { x, before: h };
      if (this.gated) {
        const [i, f, g, o] = [0, 1, 2, 3].map((k) => a.subarray(k * H, (k + 1) * H));
        Object.assign(step, { i: i.map(sigmoid), f: f.map(sigmoid), g: g.map(Math.tanh), o: o.map(sigmoid), cBefore: c });
        c = c.map((value, n) => step.f[n] * value + step.i[n] * step.g[n]);
        h = c.map((value, n) => step.o[n] * Math.tanh(value));
        step.c = c;
      } else h = a.map(Math.tanh);
      step.h = h;
      return step;
    });
  }

  logits(step) {
    return linear(this.weights["head.weight"], this.weights["head.bias"], step.h);
  }

  // The loss of `next` after these steps, back through all of them: {nats, lags, norm}. lags[k] is the
  // length of its gradient at the input k characters back, norm that at all weights together.
  back(steps, ids, next, stretch = 1) {
    const shares = softmax([...this.logits(steps.at(-1))]);
    const error = shares.map((share, id) => share - (id === next));
    let dh = transposed(this.weights["head.weight"], error);
    let dc = new Float64Array(this.size);
    const [alphas, inputs] = [[], []]; // at the sums before the functions, and at x; the last step first
    const backwards = [...steps].reverse();
    for (const step of backwards) {
      const alpha = this.gated ? this.backThroughGates(step, dh, dc) : dh.map((d, n) => d * (1 - step.h[n] ** 2));
      if (this.gated) dc = this.backThroughCell(step, dh, dc).map((d, n) => d * step.f[n]);
      alphas.push(alpha);
      inputs.push(transposed(this.weight("weight_ih"), alpha));
      dh = transposed(this.weight("weight_hh"), alpha).map((d) => stretch * d);
    }
    const rows = new Map(); // of the embedding: each gets what all places of its character send
    inputs.forEach((dx, k) => {
      const id = ids[ids.length - 1 - k];
      rows.set(id, rows.has(id) ? total([rows.get(id), dx]) : dx);
    });
    const squared =
      squaredLength(alphas, backwards) +
      [...rows.values()].reduce((all, row) => all + dot(row, row), 0) +
      dot(error, error) * (1 + dot(backwards[0].h, backwards[0].h)); // the head and its bias
    return { nats: -Math.log(shares[next]), lags: inputs.map(length), norm: Math.sqrt(squared) };
  }

  // The gradient at an LSTM's cell: what came along the cells, and what h = o ⊙ tanh(c) adds.
  backThroughCell({ o, c }, dh, dc) {
    return dc.map((d, n) => d + dh[n] * o[n] * (1 - Math.tanh(c[n]) ** 2));
  }

  // The gradient at an LSTM's four sums, i, f, g and o one after another.
  backThroughGates(step, dh, dc) {
    const { i, f, g, o, c, cBefore } = step;
    const d = this.backThroughCell(step, dh, dc);
    return Float64Array.of(
      ...d.map((at, n) => at * g[n] * i[n] * (1 - i[n])),
      ...d.map((at, n) => at * cBefore[n] * f[n] * (1 - f[n])),
      ...d.map((at, n) => at * i[n] * (1 - g[n] ** 2)),
      ...dh.map((at, n) => at * Math.tanh(c[n]) * o[n] * (1 - o[n])),
    );
  }
}

// A `Seq2Seq` with additive attention or without any.
class Translator {
  constructor(buffer) {
    Object.assign(this, readModel(buffer, "seq2seq", "seq2seq-plain"));
  }

  // The source's tokens, as the package splits it.
  split(text) {
    const words = this.tokenizer.source.level === "words";
    return words ? (text.toLowerCase().match(/[\p{L}\p{N}_]+/gu) ?? []) : [...text];
  }

  // Ids of the source's tokens. Throws when there is none, or the network has never seen one of them.
  encode(text) {
    const tokens = this.split(text);
    const known = this.tokenizer.source.tokens;
    const unknown = tokens.filter((token) => !known.includes(token));
    if (unknown.length) throw new RangeError(`it knows no “${[...new Set(unknown)].join("”, “")}”`);
    if (!tokens.length) throw new RangeError("there is nothing to read");
    return tokens.map((token) => known.indexOf(token));
  }

  embedding(side, id) {
    const D = this.config.d_model;
    return this.weights[`${side}_embedding.weight`].subarray(id * D, (id + 1) * D);
  }

  // One step of a GRU: reset r, update z, candidate n, as PyTorch orders them.
  step(name, suffix, x, h) {
    const part = (what) => this.weights[`${name}.${what}_l0${suffix}`];
    const a = linear(part("weight_ih"), part("bias_ih"), x);
    const b = linear(part("weight_hh"), part("bias_hh"), h);
    const H = h.length;
    return h.map((old, k) => {
      const r = sigmoid(a[k] + b[k]);
      const z = sigmoid(a[H + k] + b[H + k]);
      const n = Math.tanh(a[2 * H + k] + r * b[2 * H + k]);
      return (1 - z) * n + z * old;
    });
  }

  // The encoder's states, one for each token, and the decoder's first state.
  remember(ids) {
    const read = (order, suffix) => {
      let h = new Float32Array(this.config.d_model);
      return order.map((id) => (h = this.step("encoder", suffix, this.embedding("source", id), h)));
    };
    const forward = read(ids, "");
    const backward = read([...ids].reverse(), "_reverse").reverse();
    const memory = forward.map((h, s) => total([h, backward[s]]));
    return { memory, state: total([forward.at(-1), backward[0]]) };
  }

  // What the decoder reads from the memory in `state`: the weights, and the average of the memory.
  attend(state, memory, keys) {
    const query = linear(this.weights["attention.W_q.weight"], null, state);
    const v = this.weights["attention.v.weight"];
    const weights = softmax(keys.map((key) => dot(v, key.map((value, i) => Math.tanh(query[i] + value)))));
    return { weights, context: total(memory.map((h, s) => h.map((value) => weights[s] * value))) };
  }

  // The likeliest answer: {source, target: tokens with the end, weights: a row a token or null, logits}.
  translate(text, most = 64) {
    const names = this.tokenizer.target.tokens;
    const [bos, eos] = ["<bos>", "<eos>"].map((name) => names.indexOf(name));
    let { memory, state } = this.remember(this.encode(text));
    const { attention } = this.config;
    const keys = attention && memory.map((h) => linear(this.weights["attention.W_k.weight"], null, h));
    const [ids, rows, logits] = [[], [], []];
    while (ids.length < most && ids.at(-1) !== eos) {
      state = this.step("decoder", "", this.embedding("target", ids.at(-1) ?? bos), state);
      let read = state;
      if (attention) {
        const { weights, context } = this.attend(state, memory, keys);
        rows.push(weights);
        read = linear(this.weights["W_c.weight"], null, Float32Array.of(...context, ...state)).map(Math.tanh);
      }
      logits.push(linear(this.weights["head.weight"], this.weights["head.bias"], read));
      ids.push(likeliest(logits.at(-1)));
    }
    const target = ids.map((id) => names[id]);
    return { source: this.split(text), target, weights: attention ? rows : null, logits };
  }
}

// The course's GPT in the browser: reads a file of `rnn2gpt export --web` and runs it, number by
// number as `rnn2gpt.gpt` does, with a cache of keys and values and with all that lies between.
"use strict";

const EPS = 1e-5; // of the norms, as in rnn2gpt.transformer

function layerNorm(x, weight, bias) {
  let mean = 0;
  for (const value of x) mean += value / x.length;
  let variance = 0;
  for (const value of x) variance += (value - mean) ** 2 / x.length;
  const scale = 1 / Math.sqrt(variance + EPS);
  return x.map((value, i) => (value - mean) * scale * weight[i] + (bias ? bias[i] : 0));
}

const gelu = (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));

const sum = (a, b) => a.map((value, i) => value + b[i]);

class GPT {
  constructor(buffer) {
    Object.assign(this, readModel(buffer, "gpt"));
    this.tokenizer = new BPETokenizer(this.tokenizer);
    this.d_head = this.config.d_model / this.config.n_heads;
  }

  // Keys and values of the tokens read so far: for each layer, one vector of width d_model a token.
  emptyCache() {
    return Array.from({ length: this.config.n_layers }, () => ({ keys: [], values: [] }));
  }

  // A layer's vector or matrix by its name in the package; undefined where there is none (bias).
  weight(layer, name) {
    return this.weights[`blocks.${layer}.${name}`];
  }

  // Logits (T rows of V) of the token after each of `ids`, which go on after those in `cache`.
  // `causal`, `scaled` and `positions` switch parts off; `ablated` holds "layer head" whose output
  // is replaced by 0. What is computed on the way is pushed to `trace`, one entry a layer, if given.
  forward(ids, options = {}) {
    const { cache = this.emptyCache(), positions = true, trace } = options;
    const { d_model, block_size, n_layers } = this.config;
    const past = cache[0].keys.length;
    if (past + ids.length > block_size) {
      throw new RangeError(`${past + ids.length} tokens are longer than block_size=${block_size}`);
    }
    const row = (table, at) => this.weights[table].subarray(at * d_model, (at + 1) * d_model);
    let xs = ids.map((id, t) => {
      const token = row("token_embedding.weight", id);
      return positions ? sum(token, row("position_embedding.weight", past + t)) : token.slice();
    });
    for (let layer = 0; layer < n_layers; layer++) {
      const normed = xs.map((x) => this.norm(`blocks.${layer}.norm_1`, x));
      const attended = this.attend(layer, normed, cache[layer], options);
      trace?.push({ x: xs, normed, ...attended });
      xs = xs.map((x, t) => sum(x, attended.output[t]));
      xs = xs.map((x) => sum(x, this.feedForward(layer, this.norm(`blocks.${layer}.norm_2`, x))));
    }
    return xs.map((x) => this.read(x));
  }

  norm(name, x) {
    return layerNorm(x, this.weights[`${name}.weight`], this.weights[`${name}.bias`]);
  }

  // Logits from a vector of the residual stream: the final norm, then the tied table.
  read(x) {
    return linear(this.weights["token_embedding.weight"], null, this.norm("norm", x));
  }

  // The logit lens: what the stream before each layer, at place t of a trace, would predict if read.
  lens(trace, t) {
    return trace.map(({ x }) => this.read(x[t]));
  }

  // Bytes that the keys and values of a cache take, four a number.
  cacheBytes(cache) {
    return 8 * cache.length * cache[0].keys.length * this.config.d_model;
  }

  // Bits per character that the model needs for a text of at least two tokens.
  bitsPerCharacter(text) {
    const ids = this.tokenizer.encode(text).slice(0, this.config.block_size);
    const rows = this.forward(ids.slice(0, -1));
    const nats = rows.reduce((all, row, t) => all - Math.log(softmax(row)[ids[t + 1]]), 0);
    const characters = [...this.tokenizer.decode(ids.slice(1))].length;
    return nats / Math.LN2 / characters;
  }

  feedForward(layer, y) {
    const part = (name) => this.weight(layer, `feed_forward.${name}`);
    const hidden = linear(part("W_1.weight"), part("W_1.bias"), y).map(gelu);
    return linear(part("W_2.weight"), part("W_2.bias"), hidden);
  }

  // Multi-head attention of the new tokens `ys` over the cached ones and themselves.
  attend(layer, ys, cache, { causal = true, scaled = true, ablated = new Set() }) {
    const map = (name, y) =>
      linear(this.weight(layer, `attention.${name}.weight`),
        this.weight(layer, `attention.${name}.bias`), y);
    const past = cache.keys.length;
    const queries = ys.map((y) => map("W_q", y));
    cache.keys.push(...ys.map((y) => map("W_k", y)));
    cache.values.push(...ys.map((y) => map("W_v", y)));
    const { keys, values } = cache;
    const d = this.d_head;
    const scores = [], weights = []; // [head][query][key]
    const mixed = ys.map(() => new Float32Array(this.config.d_model)); // heads side by side
    for (let head = 0; head < this.config.n_heads; head++) {
      const [from, to] = [head * d, (head + 1) * d];
      scores.push(queries.map((q, t) => keys.map((k, s) => {
        if (causal && s > past + t) return -Infinity;
        let product = 0;
        for (let i = from; i < to; i++) product += q[i] * k[i];
        return scaled ? product / Math.sqrt(d) : product;
      })));
      weights.push(scores[head].map(softmax));
      if (ablated.has(`${layer} ${head}`)) continue;
      weights[head].forEach((shares, t) => shares.forEach((share, s) => {
        for (let i = from; i < to; i++) mixed[t][i] += share * values[s][i];
      }));
    }
    const output = mixed.map((m) => map("W_o", m));
    return { queries, keys: [...keys], values: [...values], scores, weights, mixed, output };
  }
}

// The likeliest `count` ids with their shares.
function likeliestOf(logits, count) {
  const shares = softmax([...logits]);
  const order = shares.map((_, id) => id).sort((a, b) => shares[b] - shares[a]);
  return order.slice(0, count).map((id) => ({ id, share: shares[id] }));
}

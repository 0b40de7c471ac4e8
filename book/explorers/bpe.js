// Byte-level BPE as `rnn2gpt.tokenizer` has it: an id below 256 is a byte, merge k makes the id
// 256 + k.
"use strict";

const CHUNKS = /'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

class BPETokenizer {
  // What `BPETokenizer.to_json` gives: merges [[left id, right id], ...] in the order in which they
  // were learned, the byte of each of the first 256 ids, and names that are one token each.
  constructor({ merges, byte_order = [...Array(256).keys()], special_tokens = [] }) {
    this.merges = merges;
    this.tokens = byte_order.map((byte) => [byte]); // id → its bytes
    this.idOfByte = new Map(byte_order.map((byte, id) => [byte, id]));
    this.rank = new Map(); // "left right" → which merge it is
    merges.forEach(([left, right], k) => {
      this.tokens.push([...this.tokens[left], ...this.tokens[right]]);
      this.rank.set(`${left} ${right}`, k);
    });
    for (const name of special_tokens) this.tokens.push([...new TextEncoder().encode(name)]);
  }

  // The chunks of a text that merges never cross.
  chunks(text) {
    return text.match(CHUNKS) ?? [];
  }

  // The ids of one chunk with the first `limit` merges, and which of those merges acted.
  encodeChunk(chunk, limit = this.merges.length) {
    let ids = [...new TextEncoder().encode(chunk)].map((byte) => this.idOfByte.get(byte));
    const acted = [];
    for (;;) {
      let best = limit;
      for (let i = 0; i + 1 < ids.length; i++) {
        best = Math.min(best, this.rank.get(`${ids[i]} ${ids[i + 1]}`) ?? limit);
      }
      if (best === limit) return { ids, acted };
      acted.push(best);
      const [left, right] = this.merges[best];
      const merged = [];
      for (let i = 0; i < ids.length; i++) {
        const found = ids[i] === left && ids[i + 1] === right;
        merged.push(found ? 256 + best : ids[i]);
        if (found) i++;
      }
      ids = merged;
    }
  }

  encode(text) {
    return this.chunks(text).flatMap((chunk) => this.encodeChunk(chunk).ids);
  }

  // The text of ids; a character cut in two becomes U+FFFD.
  decode(ids) {
    return new TextDecoder().decode(new Uint8Array(ids.flatMap((id) => this.tokens[id])));
  }

  // A token as it reads: spaces made visible, bytes that are no text in hexadecimal.
  name(id) {
    const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
    try {
      const read = strict.decode(new Uint8Array(this.tokens[id]));
      return read.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥");
    } catch {
      const hexadecimal = (byte) => byte.toString(16).toUpperCase().padStart(2, "0");
      return this.tokens[id].map(hexadecimal).join(" ");
    }
  }
}

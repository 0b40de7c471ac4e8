// One question, two models: the small GPT before and after it was taught to answer. Until they are
// loaded the page's own examples are shown.
//
// data: {examples: [{prompt, wanted, before: [[text, p], ...], after: [...]}], swapped: {at, truth},
//        template, end, bytes}; examples[swapped.at] was told something false on purpose
// needs: weights bpe gpt
// model: small-gpt small-instruct
"use strict";

explorer("answers", (root, data) => {
  const MOST = 24; // tokens of an answer
  root.innerHTML = `
    <p class="controls"><label class="wide">Ask <select></select></label></p>
    <p><label>or in your own words <textarea rows="3"></textarea></label></p>
    <p class="load"><button type="button">Load both models (${(data.bytes / 1e6).toFixed(1)} MB)</button>
      to ask what you like.</p>
    <p class="controls live" hidden><button type="button">Ask</button>
      <label><input type="checkbox" checked> with the template</label></p>
    <p class="label">before tuning</p><p class="tokens before"></p>
    <p class="label">after</p><p class="tokens after"></p>
    <p class="reading" aria-live="polite"></p>`;
  const $ = (selector) => root.querySelector(selector);
  const [select, text] = ["select", "textarea"].map($);
  const visible = (token) => token.replaceAll(" ", "␣").replaceAll("\n", "⏎");
  let models = null;

  // An answer: its tokens, each with its probability where the model was not quite sure.
  function draw(place, tokens) {
    place.replaceChildren(
      ...tokens.map(([token, p]) => {
        const made = document.createElement("span");
        made.textContent = token === null ? "end" : visible(token);
        if (token === null) made.style.fontStyle = "italic";
        if (p < 0.95) made.append(Object.assign(document.createElement("sub"), { textContent: ` ${(100 * p).toFixed(0)} %` }));
        return made;
      }),
    );
  }

  function tell(before, after, wanted) {
    const said = (tokens) => tokens.map(([token]) => token ?? "").join("").trim();
    const ended = (tokens) => (tokens.at(-1)?.[0] === null ? "and ends" : "and does not end");
    const least = Math.min(...after.map(([, p]) => p));
    root.querySelector(".reading").textContent =
      `Before: ${before.length} tokens, ${ended(before)}. After: “${said(after)}”, ${ended(after)}; its ` +
      `least certain token had ${(100 * least).toFixed(0)} %.` +
      (wanted ? ` Wanted: “${wanted}”.` : "");
  }

  function show() {
    const { prompt, wanted, before, after } = data.examples[Number(select.value)];
    text.value = prompt;
    draw($(".before"), before);
    draw($(".after"), after);
    tell(before, after, wanted);
  }

  function answer(gpt, ids) {
    const cache = gpt.emptyCache(), tokens = [];
    let logits = gpt.forward(ids, { cache }).at(-1);
    while (tokens.length < MOST) {
      const p = softmax(Array.from(logits));
      const token = p.indexOf(Math.max(...p));
      tokens.push([token === data.end ? null : gpt.tokenizer.decode([token]), p[token]]);
      if (token === data.end || ids.length + tokens.length >= gpt.config.block_size) break;
      logits = gpt.forward([token], { cache }).at(-1);
    }
    return tokens;
  }

  function ask() {
    const asked = $(".live input").checked ? data.template.replace("{prompt}", () => text.value) : text.value;
    const ids = models[0].tokenizer.encode(asked);
    const room = models[0].config.block_size - MOST;
    if (ids.length === 0 || ids.length > room) {
      $(".reading").textContent = `The question has ${ids.length} tokens; 1 to ${room} fit.`;
      return;
    }
    const [before, after] = models.map((gpt) => answer(gpt, ids));
    draw($(".before"), before);
    draw($(".after"), after);
    const known = data.examples.find(({ prompt }) => prompt === text.value);
    tell(before, after, known?.wanted);
  }

  data.examples.forEach(({ prompt }, i) => select.add(new Option(prompt, i)));
  select.addEventListener("change", show);
  $(".live button").addEventListener("click", ask);
  const both = () => Promise.all(
    ["small-gpt", "small-instruct"].map((name) => loadModel(GPT, asset(`models/${name}.safetensors`))));
  loadOnRequest(root, "The models", both, (loaded) => {
    models = loaded;
    ask();
    text.focus();
  });
  show();

  return {
    bet: {
      ask: "The facts in a prompt say something false about a place that the tuned model knows. What does it answer?",
      options: ["what it was told", "what is true", "something else"],
      check(guess) {
        select.value = data.swapped.at;
        show();
        const { after, wanted } = data.examples[data.swapped.at];
        const said = after.map(([token]) => token ?? "").join("").trim();
        const kind = said === wanted ? 0 : said === data.swapped.truth ? 1 : 2;
        return {
          right: guess === kind,
          why:
            `It answered “${said}”. It was told “${wanted}”, and true is “${data.swapped.truth}”. ` +
            "One answer is one answer: the text counts a hundred of them.",
        };
      },
    },
  };
});

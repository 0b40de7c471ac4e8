// Choose a character; the shade of each earlier one is how much it still moves the prediction.
//
// data: {text, models: [{name, reach: [for each t: [for s = 0 to t: share of the gradient]]}]}. A
// share is the norm of the gradient of the loss at t by the embedding at s, over the sum of the row:
//
//     def reach(model, ids):
//         kept = []
//         hook = model.embedding.register_forward_hook(lambda m, inputs, output: kept.append(output))
//         logits, _ = model(ids[None])  # (1, T, V)
//         hook.remove()
//         rows = []
//         for t in range(len(ids) - 1):
//             loss = -logits[0, t].log_softmax(-1)[ids[t + 1]]
//             gradient = torch.autograd.grad(loss, kept[0], retain_graph=True)[0]  # (1, T, D)
//             size = gradient[0, : t + 1].norm(dim=-1)  # (t + 1,)
//             rows.append([round(share, 3) for share in (size / size.sum()).tolist()])
//         return rows
"use strict";

explorer("reach", (root, data) => {
  const last = data.text.length - 1;
  root.innerHTML = `
    <p class="controls">
      <label>Predict after character
        <input type="range" min="0" max="${last}" value="${Math.floor(0.7 * last)}"> <output></output>
      </label>
    </p>
    <div class="panels"></div>`;
  const position = root.querySelector("input");
  const panels = root.querySelector(".panels");
  for (const model of data.models) {
    const panel = document.createElement("div");
    panel.innerHTML = `<p class="label"></p><p class="shaded"></p><p class="reading"></p>`;
    panel.querySelector(".label").textContent = model.name;
    panel.querySelector(".shaded").append(
      ...[...data.text].map((character, s) => {
        const span = document.createElement("span");
        span.textContent = character;
        span.addEventListener("click", () => {
          position.value = s;
          draw();
        });
        return span;
      }),
    );
    panels.append(panel);
  }

  // How many characters back one must go to have 95 % of the gradient.
  function reachOf(shares) {
    let sum = 0;
    for (let back = 0; back < shares.length; back++) {
      sum += shares[shares.length - 1 - back];
      if (sum >= 0.95) return back + 1;
    }
    return shares.length;
  }

  function draw() {
    const t = Number(position.value);
    root.querySelector("output").textContent = `${t + 1} of ${last + 1}`;
    data.models.forEach((model, i) => {
      const shares = model.reach[t];
      const most = Math.max(...shares);
      const panel = panels.children[i];
      [...panel.querySelector(".shaded").children].forEach((span, s) => {
        const strength = s <= t ? Math.sqrt(shares[s] / most) : 0;
        span.style.background = `color-mix(in srgb, var(--figure-blue) ${(50 * strength).toFixed(0)}%, transparent)`;
        span.classList.toggle("unread", s > t);
        span.classList.toggle("now", s === t);
      });
      const reach = reachOf(shares);
      panel.querySelector(".reading").textContent =
        `95 % of the gradient falls on the last ${reach} character${reach === 1 ? "" : "s"}.`;
    });
  }

  position.addEventListener("input", draw);
  draw();

  return {
    bet: {
      ask: "After the last character, which model needs more characters for 95 % of its gradient?",
      options: [...data.models.map((model) => model.name), "both the same"],
      check(guess) {
        position.value = position.max;
        draw();
        const reaches = data.models.map((model) => reachOf(model.reach[last]));
        const most = Math.max(...reaches);
        const winners = reaches.flatMap((reach, i) => (reach === most ? [i] : []));
        return {
          right: winners.length > 1 ? guess === data.models.length : guess === winners[0],
          why: data.models.map((model, i) => `${model.name}: ${reaches[i]}`).join("; ") + " characters. " +
            "Move on and see where it turns.",
        };
      },
    },
  };
});

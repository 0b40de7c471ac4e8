// What the book's pages do beyond the theme: in-page questions and explorers. Everything here is
// an addition; without it the explanations unfold by hand and an explorer shows its static figure.
"use strict";

// An explorer's script calls explorer("name", (root, data) => { ... }). `root` is its box on the
// page, emptied of the static content; `data` is what the page published under the same name.
function explorer(name, draw) {
  document.addEventListener("DOMContentLoaded", () => {
    const published = document.getElementById(`data-${name}`);
    const data = published ? JSON.parse(published.textContent) : null;
    for (const root of document.querySelectorAll(`[data-explorer="${name}"]`)) {
      root.replaceChildren();
      draw(root, data);
    }
  });
}

function answer(question, input) {
  const chosen = input.closest(".choice");
  for (const choice of question.querySelectorAll(".choice")) {
    const explanation = choice.querySelector("details");
    choice.classList.toggle("chosen", choice === chosen);
    explanation.open = choice === chosen;
  }
  const right = chosen.dataset.right === "true";
  question.classList.toggle("answered-right", right);
  const explanation = chosen.querySelector("details > div").textContent.trim();
  question.querySelector(".verdict").textContent = explanation;
}

document.addEventListener("DOMContentLoaded", () => {
  for (const question of document.querySelectorAll(".question")) {
    question.classList.add("live");
    question.addEventListener("change", (event) => {
      if (event.target.matches("input[type=radio]")) answer(question, event.target);
    });
  }
});

// Paper is white and has no fold to click: print in light mode with everything unfolded.
let folded = [];
let theme = "";
window.addEventListener("beforeprint", () => {
  theme = document.documentElement.dataset.theme;
  document.documentElement.dataset.theme = "light";
  folded = [...document.querySelectorAll("article details:not([open])")];
  folded.forEach((details) => (details.open = true));
});
window.addEventListener("afterprint", () => {
  document.documentElement.dataset.theme = theme;
  folded.forEach((details) => (details.open = false));
});

// What the book's pages do beyond the theme: in-page questions and explorers. Everything here is
// an addition; without it the explanations unfold by hand and an explorer shows its static figure.
"use strict";

// The address of a file of this folder, from any page.
const here = document.currentScript.src;
const asset = (name) => new URL(name, here).href;

// Answers stay in this browser, for a reader who comes back; nothing is sent. A browser may refuse
// to keep anything: then they last as long as the page.
function keep(group, text) {
  try {
    localStorage.setItem(`answer ${group}`, text);
  } catch {}
}

function kept(group) {
  try {
    return localStorage.getItem(`answer ${group}`);
  } catch {
    return null;
  }
}

const textOf = (input) => input.closest("label").textContent.trim();

function answer(question, input) {
  const chosen = input.closest(".choice");
  for (const choice of question.querySelectorAll(".choice")) {
    const explanation = choice.querySelector("details");
    choice.classList.toggle("chosen", choice === chosen);
    explanation.open = choice === chosen;
  }
  const right = chosen.dataset.right === "true";
  question.classList.toggle("answered-right", right);
}

document.addEventListener("DOMContentLoaded", () => {
  for (const question of document.querySelectorAll(".question")) {
    question.classList.add("live");
    question.addEventListener("change", ({ target }) => {
      if (!target.matches("input[type=radio]")) return;
      answer(question, target);
      const explanation = question.querySelector(".chosen details > div").textContent.trim();
      question.querySelector(".verdict").textContent = explanation; // read out by a screen reader
      keep(target.name, textOf(target));
    });
    for (const input of question.querySelectorAll("input[type=radio]")) {
      if (textOf(input) !== kept(input.name)) continue; // a question may have been written anew
      input.checked = true;
      answer(question, input);
    }
  }
});

// A box that scrolls can be scrolled with the keyboard only if it can be reached with it.
const SCROLLERS =
  "article :is(.equation-body, pre, dt.sig, .text_html.output > div, .table-scroll, .pst-scrollable-table-container)";
function reachScrollers() {
  for (const box of document.querySelectorAll(SCROLLERS)) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}
window.addEventListener("load", reachScrollers);
window.addEventListener("resize", reachScrollers);

// Paper is white and has no fold to click: print in light mode with everything unfolded,
// and of an explorer the figure of what it shows.
let folded = [];
let theme = "";
window.addEventListener("beforeprint", () => {
  theme = document.documentElement.dataset.theme;
  document.documentElement.dataset.theme = "light";
  folded = [...document.querySelectorAll("article details:not([open])")];
  folded.forEach((details) => (details.open = true));
  for (const root of document.querySelectorAll("[data-explorer]")) {
    root.insertAdjacentHTML("beforeend", `<div class="on-paper">${root.asFigure?.() ?? ""}</div>`);
  }
});
window.addEventListener("afterprint", () => {
  document.documentElement.dataset.theme = theme;
  folded.forEach((details) => (details.open = false));
  document.querySelectorAll(".on-paper").forEach((figure) => figure.remove());
});

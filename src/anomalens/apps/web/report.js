"use strict";
const $ = (selector, root = document) => root.querySelector(selector);
const cards = [...document.querySelectorAll(".card")];
const dialog = $("dialog");
let verdict = "";

/* Filter and search. */
function visible() {
  return cards.filter((card) => !card.hidden);
}

function sift() {
  const words = $(".search input").value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const card of cards) {
    const name = card.dataset.id.toLowerCase();
    card.hidden = Boolean(verdict && card.dataset.verdict !== verdict) || !words.every((word) => name.includes(word));
  }
  $(".nothing").hidden = visible().length > 0;
}

for (const button of document.querySelectorAll("[data-filter]")) {
  button.addEventListener("click", () => {
    verdict = button.dataset.filter;
    for (const other of document.querySelectorAll("[data-filter]")) {
      other.setAttribute("aria-pressed", String(other === button));
    }
    sift();
  });
}

if (cards.length) {
  const slider = $(".slider input");
  const outlines = $(".check input");
  const paint = () => {
    document.documentElement.style.setProperty("--heat", slider.value);
    document.body.classList.toggle("plain-pictures", !outlines.checked);
  };
  $(".search input").addEventListener("input", sift);
  slider.addEventListener("input", paint);
  outlines.addEventListener("change", paint);
  paint();  // browsers keep the values of a reloaded page
  sift();
}

/* One picture, large: the address says which, so that it can be sent to somebody. */
function asked() {
  if (!location.hash.startsWith("#open=")) return null;
  try {
    const id = decodeURIComponent(location.hash.slice("#open=".length));
    return cards.find((card) => card.dataset.id === id) || null;
  } catch {
    return null;  // an address that somebody has cut
  }
}

function show() {
  const card = asked();
  if (!card) {
    if (dialog.open) dialog.close();
    return;
  }
  const list = card.hidden ? cards : visible();
  const place = list.indexOf(card);
  $(".place").textContent = `${place + 1} of ${list.length}`;
  $(".large").replaceChildren($(".stage svg", card).cloneNode(true));
  const words = $(".words", card).cloneNode(true);
  for (const table of words.querySelectorAll("table")) table.hidden = false;
  $(".aside").replaceChildren(words);
  $(".aside").scrollTop = 0;
  const places = $(".large .outlines")?.children ?? [];
  for (const [k, line] of words.querySelectorAll("tbody tr").entries()) {
    line.addEventListener("mouseenter", () => places[k].classList.add("pointed"));
    line.addEventListener("mouseleave", () => places[k].classList.remove("pointed"));
  }
  dialog.setAttribute("aria-label", card.dataset.id);
  if (!dialog.open) dialog.showModal();
}

function move(by) {
  const card = asked();
  const list = card && card.hidden ? cards : visible();
  const next = list[list.indexOf(card) + by];
  if (next) location.replace($(".stage", next).getAttribute("href"));
}

dialog.addEventListener("close", () => {
  const card = asked();
  if (!card) return;
  history.replaceState(null, "", location.pathname + location.search);
  $(".stage", card).focus();
});

function toggle(layer) {
  const hidden = dialog.classList.toggle(`no-${layer}`);
  $(`[data-do="${layer}"]`).setAttribute("aria-pressed", String(!hidden));
}

const actions = {
  back: () => move(-1),
  next: () => move(1),
  close: () => dialog.close(),
  heat: () => toggle("heat"),
  outlines: () => toggle("outlines"),
};
const keys = { ArrowLeft: "back", ArrowRight: "next", h: "heat", o: "outlines" };

dialog.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (button) actions[button.dataset.do]();
  else if (event.target === dialog) dialog.close();  // the backdrop
});
dialog.addEventListener("keydown", (event) => {
  const action = keys[event.key];
  if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  actions[action]();
});
addEventListener("hashchange", show);
show();

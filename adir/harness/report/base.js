"use strict";
// What the other scripts share. Texts of the data reach the page as text nodes and attributes only, never as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const find = (selector, within = document) => within.querySelector(selector);

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

const SVG = "http://www.w3.org/2000/svg";
function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function fillSelect(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => element("option", { value, textContent: text })));
  if (options.some(([value]) => String(value) === String(chosen))) select.value = chosen;
}

const unique = (values) => [...new Set(values)];

// The colour of a row: by mode for the paper's sampler, and of its own for each other sampler.
const otherSamplers = unique(data.rows.map((row) => row.axes.sampler)).filter((name) => name !== "adir");
function colourOf(row) {
  const place = otherSamplers.indexOf(row.axes.sampler);
  if (place >= 0) return `c-other${(place % 4) + 1}`;
  return ["none", "self", "knn", "pixel", "random"].includes(row.axes.adaptation) ? `c-${row.axes.adaptation}` : "c-none";
}

// Light and dark: what the system asks for, until the button is pressed; the choice is kept where the browser lets it.
const themeButton = document.getElementById("theme");
const systemDark = matchMedia("(prefers-color-scheme: dark)");
let chosenTheme = null;
try {
  chosenTheme = localStorage.getItem("adir-report-theme");
} catch {
  chosenTheme = null; // a browser that keeps nothing for local files
}
function showTheme() {
  const dark = chosenTheme ? chosenTheme === "dark" : systemDark.matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  themeButton.textContent = dark ? "Light" : "Dark";
  themeButton.setAttribute("aria-pressed", String(dark));
  themeButton.setAttribute("aria-label", `${dark ? "Light" : "Dark"} colours`);
}
themeButton.addEventListener("click", () => {
  chosenTheme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  try {
    localStorage.setItem("adir-report-theme", chosenTheme);
  } catch {
    // not kept: the next visit starts with the system's again
  }
  showTheme();
});
systemDark.addEventListener("change", showTheme);
showTheme();

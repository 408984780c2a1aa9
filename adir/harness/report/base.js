"use strict";
// Functions that the other scripts share. They insert texts of the data as text nodes and
// attributes only, never as HTML.

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
  select.replaceChildren(
    ...options.map(([value, text]) => element("option", { value, textContent: text })),
  );
  if (options.some(([value]) => String(value) === String(chosen))) select.value = chosen;
}

const unique = (values) => [...new Set(values)];

// In every drawing, a row has a CSS class for its colour and an outline around (0, 0) as its mark.
const colourOf = (number) => `c${data.rows[number].style.colour}`;
const OUTLINES = {
  circle: "M-1 0A1 1 0 1 1 1 0A1 1 0 1 1 -1 0Z",
  square: "M-.9 -.9H.9V.9H-.9Z",
  triangle: "M0 -1.15L1.1 .85H-1.1Z",
  diamond: "M0 -1.25L1.1 0L0 1.25L-1.1 0Z",
  down: "M0 1.15L1.1 -.85H-1.1Z",
  plus: "M-.4 -1.15H.4V-.4H1.15V.4H.4V1.15H-.4V.4H-1.15V-.4H-.4Z",
  cross:
    "M-1.1 -.55L-.55 -1.1L0 -.55L.55 -1.1L1.1 -.55L.55 0" +
    "L1.1 .55L.55 1.1L0 .55L-.55 1.1L-1.1 .55L-.55 0Z",
  star:
    "M0 -1.35L.32 -.43L1.28 -.42L.51 .17L.79 1.09" +
    "L0 .54L-.79 1.09L-.51 .17L-1.28 -.42L-.32 -.43Z",
};
function mark(number, x, y, size) {
  const { shape, open } = data.rows[number].style;
  return svg("path", {
    d: OUTLINES[shape],
    transform: `translate(${x} ${y}) scale(${size})`,
    class: open ? "mark open" : "mark",
  });
}
const icon = (number) =>
  svg(
    "svg",
    { viewBox: "-8 -8 16 16", "aria-hidden": "true", class: `icon ${colourOf(number)}` },
    mark(number, 0, 0, 5.5),
  );

// The page follows the system's light or dark theme until the button is pressed. The choice is
// saved if the browser allows it.
const themeButton = document.getElementById("theme");
const systemDark = matchMedia("(prefers-color-scheme: dark)");
let chosenTheme = null;
try {
  chosenTheme = localStorage.getItem("adir-report-theme");
} catch {
  chosenTheme = null; // some browsers save nothing for local files
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
    // Not saved: the next visit starts with the system's theme again.
  }
  showTheme();
});
systemDark.addEventListener("change", showTheme);
showTheme();

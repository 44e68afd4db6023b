"use strict";

// Nothing here uses innerHTML: file names and metadata enter the page as text only.

function element(name, content, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(content)) made[key] = value;
  made.append(...children);
  return made;
}

function remembered(key) {
  // Storage may be refused for pages opened from a file.
  try { return localStorage.getItem(key); } catch { return null; }
}

function remember(key, value) {
  try { localStorage.setItem(key, value); } catch { /* it then lasts for this page */ }
}

function applyTheme(theme) {
  const dark = theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  if (theme) document.documentElement.dataset.theme = theme;
  const button = document.getElementById("theme");
  button.textContent = dark ? "Light" : "Dark";
  button.setAttribute("aria-label", `Switch to ${dark ? "light" : "dark"} colours`);
  button.onclick = () => { const next = dark ? "light" : "dark"; remember("theme", next); applyTheme(next); };
  button.hidden = false;
}

applyTheme(remembered("theme"));

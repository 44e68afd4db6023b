const tip = document.getElementById("tip");

// --- sortable tables -----------------------------------------------------------------------------------

function compare(a, b, direction) {
  // Empty cells stay last in both directions: no value is neither good nor bad.
  if (a === "" || b === "") return (a === "") - (b === "");
  const numeric = !Number.isNaN(Number(a)) && !Number.isNaN(Number(b));
  const order = numeric ? Number(a) - Number(b) : a.localeCompare(b);
  return direction === "ascending" ? order : -order;
}

function sortBy(table, header) {
  const current = header.getAttribute("aria-sort");
  const other = { ascending: "descending", descending: "ascending" };
  const direction = current ? other[current] : header.dataset.first;
  for (const cell of header.parentElement.children) cell.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", direction);
  const body = table.tBodies[0];
  // A scorer that was not measured has one wide cell with the reason.
  const value = (row) => row.cells[header.cellIndex]?.dataset.value ?? "";
  body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b), direction)));
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const header of table.tHead.rows[0].cells) {
    const button = header.querySelector("button");
    if (button) button.onclick = () => sortBy(table, header);
  }
}

// --- tabs ----------------------------------------------------------------------------------------------

for (const section of document.querySelectorAll(".tabbed")) {
  const tabs = [...section.querySelectorAll(".tab")];
  if (tabs.length < 2) continue;
  const buttons = tabs.map((tab) => element("button", { type: "button", textContent: tab.dataset.title }));
  const choose = (chosen) => tabs.forEach((tab, index) => {
    tab.hidden = index !== chosen;
    buttons[index].setAttribute("aria-pressed", String(index === chosen));
  });
  buttons.forEach((button, index) => { button.onclick = () => choose(index); });
  const group = element("div", { className: "tabs", role: "group", ariaLabel: "Test" }, ...buttons);
  tabs[0].before(group);
  choose(0);
}

// --- tips ----------------------------------------------------------------------------------------------

function showTip(target, ...content) {
  tip.replaceChildren(...content);
  tip.hidden = false;
  const box = target.getBoundingClientRect();
  const { width, height } = tip.getBoundingClientRect();
  const left = box.right + 12 + width < innerWidth ? box.right + 12 : box.left - 12 - width;
  tip.style.left = `${Math.max(8, Math.min(left, innerWidth - width - 8))}px`;
  tip.style.top = `${Math.max(8, Math.min(box.top - 10, innerHeight - height - 8))}px`;
}

function hideTip() { tip.hidden = true; }

for (const cell of document.querySelectorAll("[data-tip]")) {
  cell.tabIndex = 0;
  const show = () => showTip(cell, cell.dataset.tip);
  cell.addEventListener("mouseenter", show);
  cell.addEventListener("focus", show);
  cell.addEventListener("mouseleave", hideTip);
  cell.addEventListener("blur", hideTip);
}

function onEscape(action) {
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") action(); });
}

onEscape(hideTip);

// --- maps: under the pointer, and M for all ---------------------------------------------------------------

function showMap(image, on) {
  image.dataset.plain ??= image.getAttribute("src");
  image.src = on ? image.dataset.map : image.dataset.plain;
}

let mapping = false;
for (const [event, over] of [["pointerover", true], ["pointerout", false]]) {
  document.addEventListener(event, ({ target }) => { if (target.matches?.("img[data-map]")) showMap(target, over || mapping); });
}
document.addEventListener("keydown", (event) => {
  if (event.key.toLowerCase() !== "m" || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select")) return;
  mapping = !mapping;
  for (const image of document.querySelectorAll("img[data-map]")) showMap(image, mapping);
});

// --- scatter plot --------------------------------------------------------------------------------------

for (const plot of document.querySelectorAll("svg.scatter")) {
  const points = [...plot.querySelectorAll(".points circle")];
  let current = -1;

  const select = (index) => {
    points[current]?.classList.remove("current");
    current = index;
    const point = points[index];
    if (!point) { hideTip(); return; }
    point.classList.add("current");
    const { file, score, opinion, picture } = point.dataset;
    const parts = [element("div", { className: "file", textContent: file }),
      element("div", { textContent: `score ${score}, opinion ${opinion}` })];
    if (picture) {
      const image = element("img", { alt: "" });
      image.onload = () => { if (points[current] === point) showTip(point, image, ...parts); };
      image.src = picture;
    }
    showTip(point, ...parts);
  };

  plot.addEventListener("pointerover", (event) => {
    const index = points.indexOf(event.target);
    if (index >= 0) select(index);
  });
  plot.addEventListener("pointerleave", () => select(-1));
  plot.addEventListener("blur", () => select(-1));
  // Hiding the tip alone would not do: a picture that loads late shows the tip of the current point again.
  onEscape(() => select(-1));
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (!step || !points.length) return;
    event.preventDefault();
    select(Math.max(0, Math.min(points.length - 1, current + step)));
  });
}

// --- gMAD pairs ----------------------------------------------------------------------------------------

function side(title, entry) {
  const figure = element("figure", {});
  if (entry.picture) {
    const image = element("img", { src: entry.picture, alt: entry.file, loading: "lazy" });
    if (entry.map) image.dataset.map = entry.map;
    figure.append(element("a", { href: entry.picture }, image));
  } else {
    figure.append(element("span", { className: "no-picture", textContent: "no picture" }));
  }
  figure.append(element("figcaption", {}, element("strong", { textContent: title }), ` ${entry.file}`));
  return figure;
}

function places(count) {
  return `${count} ${count === 1 ? "place" : "places"}`;
}

function apart(rival, pair) {
  const same = pair.own === 0 ? "gives both the same place"
    : `has the ${pair.own > 0 ? "left" : "right"} one ${places(Math.abs(pair.own))} higher`;
  return `Of ${rival.images} images, ${rival.attacker} has the left one ${places(pair.gap)} higher; ${rival.defender} ${same}.`;
}

function showDuel(rivals, defender, attacker) {
  const rival = rivals.find((r) => r.defender === defender && r.attacker === attacker);
  const names = ["lowest", "middle", "highest"];
  const cards = rival.pairs.map((pair) => element("div", { className: "pair" },
    element("h3", { textContent: `${names[pair.level]} third of ${defender}` }),
    element("div", { className: "side" },
      side(`${attacker} prefers`, pair.preferred), side(`${attacker} rejects`, pair.rejected)),
    element("p", { className: "gap", textContent: apart(rival, pair) })));
  if (!cards.length) cards.push(element("p", { textContent: `${attacker} sees no difference within any third.` }));
  document.getElementById("pairs").replaceChildren(...cards);
}

const duel = document.getElementById("duel");
if (duel) {
  const rivals = JSON.parse(document.getElementById("gmad-data").textContent);
  const [defender, attacker] = ["defender", "attacker"].map((id) => document.getElementById(id));
  const names = [...new Set(rivals.map((r) => r.defender))];
  const choose = () => {
    const others = names.filter((name) => name !== defender.value);
    const kept = others.includes(attacker.value) ? attacker.value : others[0];
    attacker.replaceChildren(...others.map((name) => element("option", { value: name, textContent: name })));
    attacker.value = kept;
    showDuel(rivals, defender.value, kept);
  };
  defender.append(...names.map((name) => element("option", { value: name, textContent: name })));
  defender.onchange = choose;
  attacker.onchange = () => showDuel(rivals, defender.value, attacker.value);
  duel.hidden = false;
  choose();
}

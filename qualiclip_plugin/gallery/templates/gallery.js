"use strict";

// Names enter the page as text only; addresses of pictures are made of row numbers.

const by = (id) => document.getElementById(id);
const { measures, paths, sizes } = TABLE;
const COUNT = paths.length, KEEP = 1, DROP = 2, BINS = 40, STEPS = 1000, SHARD = 1000;
const WORDS = ["not marked", "keep", "drop"];

function pathOf(row) { return TABLE.prefix + paths[row]; }
function shownPath(row) { return TABLE.shown[row] ?? pathOf(row); }
function shownName(row) {
  const path = shownPath(row);
  return path.startsWith(TABLE.prefix) ? path.slice(TABLE.prefix.length) : path;
}
function digits(value, count = 3) { return value.toFixed(count).replace("-", "\u2212"); }
function counted(count, word) { return `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`; }
function picture(size, row) { return `${size}/${Math.floor(row / SHARD)}/${row}.jpg`; }

// --- measures: the score and each attribute --------------------------------------------------------------

for (const measure of measures) {
  // NaN where there is none: it is below and from no threshold.
  measure.values = Float64Array.from(measure.values, (value) => value ?? NaN);
  const known = measure.values.filter((value) => !Number.isNaN(value)).sort();
  measure.low = Math.min(0, known[0] ?? 0);
  measure.high = Math.max(1, known[known.length - 1] ?? 1);
  measure.threshold = onStep(measure, known[Math.floor(known.length / 4)] ?? 0.5);
  measure.side = "";
}

function onStep({ low, high }, value) {
  return low + Math.round((value - low) / (high - low) * STEPS) / STEPS * (high - low);
}

function passes(measure, row) {
  if (!measure.side) return true;
  return measure.side === "below" ? measure.values[row] < measure.threshold : measure.values[row] >= measure.threshold;
}

function worstAttribute(row) {
  let worst = -1;
  for (let i = 1; i < measures.length; i++) {
    const value = measures[i].values[row];
    if (!Number.isNaN(value) && (worst < 0 || value < measures[worst].values[row])) worst = i;
  }
  return worst;
}

// --- marks -----------------------------------------------------------------------------------------------

const STORED = `qualiclip-gallery-${TABLE.key}`;
const earlier = [];
let marks = storedMarks();

function storedMarks() {
  const text = remembered(STORED) ?? "";
  return /^[012]*$/.test(text) && text.length === COUNT ? Uint8Array.from(text) : new Uint8Array(COUNT);
}

function setMarks(rows, mark) {
  if (!rows.length) return;
  earlier.push(marks.slice());
  if (earlier.length > 50) earlier.shift();
  for (const row of rows) marks[row] = mark;
  marksChanged();
}

function undo() {
  if (!earlier.length) return;
  marks = earlier.pop();
  marksChanged();
}

let storing = 0;
function marksChanged() {
  clearTimeout(storing);
  storing = setTimeout(storeMarks, 300);
  for (const [row, tile] of tiles) showMark(tile, row);
  if (viewer.open) showMark(viewer.querySelector(".facts"), view[current]);
  summarize();
}

function storeMarks() { remember(STORED, marks.join("")); }
addEventListener("pagehide", storeMarks);

function showMark(holder, row) {
  if (marks[row]) holder.dataset.mark = marks[row]; else delete holder.dataset.mark;
  if (holder.role === "option") holder.ariaLabel = spoken(row);
}

function save(mark, file) {
  const lines = [];
  // A line holds one name: one with a line break in it is written as it is shown.
  for (let row = 0; row < COUNT; row++) {
    if (marks[row] === mark) lines.push(/[\r\n]/.test(pathOf(row)) ? shownPath(row) : pathOf(row));
  }
  const address = URL.createObjectURL(new Blob([lines.join("\n"), "\n"], { type: "text/plain;charset=utf-8" }));
  element("a", { href: address, download: file }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

// --- which pictures, in which order ----------------------------------------------------------------------

let measure = measures[0], view = [], current = 0, mapping = false;

const orders = new Map();

/** All rows in the chosen order; kept, since a threshold that is dragged asks for it in every frame. */
function ordered() {
  const key = `${by("direction").value} ${measures.indexOf(measure)}`;
  if (!orders.has(key)) orders.set(key, sort(Array.from(paths, (_, row) => row)));
  return orders.get(key);
}

function sort(rows) {
  const { values } = measure, direction = by("direction").value;
  if (direction === "name") return rows.sort((a, b) => (shownPath(a) < shownPath(b) ? -1 : 1));
  const sign = direction === "rising" ? 1 : -1;
  // What has no value is neither good nor bad and stays at the end.
  const none = (row) => Number.isNaN(values[row]);
  return rows.sort((a, b) => none(a) - none(b) || (none(a) ? 0 : sign * (values[a] - values[b])) || a - b);
}

function selected(except) {
  const status = by("status").value, marked = by("marked").value, text = by("name").value.toLowerCase();
  const active = measures.filter((one) => one.side && one !== except);
  return ordered().filter((row) => (!status || (status === "failed") === Number.isNaN(measures[0].values[row]))
    && (!marked || marks[row] === Number(marked))
    && (!text || shownPath(row).toLowerCase().includes(text))
    && active.every((one) => passes(one, row)));
}

function apply({ stay = false } = {}) {
  const row = view[current];
  const others = selected(measure);
  drawHistogram(others);
  view = others.filter((one) => passes(measure, one));
  current = Math.max(0, stay ? view.indexOf(row) : 0);
  showFilters();
  summarize();
  layOut();
  if (!stay) scrollTo(0, Math.min(scrollY, top0()));
}

// --- histogram and threshold -----------------------------------------------------------------------------

let binned = { bars: [], sorted: [] };

function drawHistogram(rows) {
  const { values, low, high } = measure, counts = new Array(BINS).fill(0);
  for (const row of rows) {
    const bin = Math.min(BINS - 1, Math.floor((values[row] - low) / (high - low) * BINS));
    if (!Number.isNaN(bin)) counts[bin] += 1;
  }
  const most = Math.max(1, ...counts), width = 320 / BINS;
  const made = counts.map((count, bin) => {
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    // One picture among thousands is seen too.
    const height = count && Math.max(2, 92 * count / most);
    for (const [key, value] of Object.entries({ x: bin * width, y: 96 - height, width: width - 1, height })) {
      bar.setAttribute(key, value);
    }
    return bar;
  });
  by("bins").replaceChildren(...made);
  binned = { bars: made, sorted: Float64Array.from(rows, (row) => values[row]).filter((v) => !Number.isNaN(v)).sort() };
  showThreshold();
}

function showThreshold() {
  const { threshold, low, high } = measure;
  const { sorted, bars } = binned;
  let below = 0, end = sorted.length;
  while (below < end) {
    const middle = (below + end) >> 1;
    if (sorted[middle] < threshold) below = middle + 1; else end = middle;
  }
  by("below").textContent = below.toLocaleString("en");
  by("from").textContent = (sorted.length - below).toLocaleString("en");
  by("at").textContent = digits(threshold);
  by("low").textContent = digits(low, 1);
  by("high").textContent = digits(high, 1);
  by("threshold").value = Math.round((threshold - low) / (high - low) * STEPS);
  by("threshold").setAttribute("aria-valuetext", `${digits(threshold)}, ${below} below, ${sorted.length - below} from`);
  bars.forEach((bar, bin) => bar.classList.toggle("below", low + (bin + 0.5) / BINS * (high - low) < threshold));
}

let waiting = 0;
function moveThreshold() {
  const { low, high } = measure;
  measure.threshold = low + by("threshold").value / STEPS * (high - low);
  showThreshold();
  if (measure.side && !waiting) waiting = requestAnimationFrame(() => { waiting = 0; apply(); });
}

function setSide(one, side) {
  one.side = side;
  apply();
}

function showFilters() {
  for (const button of by("side").children) button.setAttribute("aria-pressed", String(button.dataset.side === measure.side));
  const others = measures.filter((one) => one.side && one !== measure);
  by("chips").replaceChildren(...others.map((one) => {
    const text = `${one.name} ${one.side} ${digits(one.threshold)} ✕`;
    const button = element("button", { type: "button", textContent: text, title: "Remove this filter" });
    button.onclick = () => setSide(one, "");
    return element("li", {}, button);
  }));
}

function summarize() {
  let keep = 0, drop = 0;
  for (const mark of marks) { keep += mark === KEEP; drop += mark === DROP; }
  by("summary").replaceChildren(element("b", { textContent: view.length.toLocaleString("en") }),
    ` of ${counted(COUNT, "picture")} shown`);
  by("shown-count").textContent = view.length.toLocaleString("en");
  for (const [id, word, count] of [["save-keep", "kept", keep], ["save-drop", "dropped", drop]]) {
    by(id).textContent = `Save ${word} (${count.toLocaleString("en")})`;
    by(id).disabled = !count;
  }
  by("undo").disabled = !earlier.length;
}

// --- tiles: only those in view exist ---------------------------------------------------------------------

const grid = by("grid"), tiles = new Map(), viewer = by("viewer");
let columns = 1, tileWidth = 0, step = 0, gap = 0;

function layOut() {
  const style = getComputedStyle(document.documentElement);
  const wanted = parseFloat(style.getPropertyValue("--tile"));
  gap = parseFloat(style.getPropertyValue("--gap"));
  columns = Math.max(2, Math.floor((grid.clientWidth + gap) / (wanted + gap)));
  tileWidth = (grid.clientWidth - gap * (columns - 1)) / columns;
  step = Math.round(tileWidth * 0.8) + 84 + gap;
  grid.style.height = `${Math.max(0, Math.ceil(view.length / columns) * step - gap)}px`;
  by("empty").hidden = view.length > 0;
  for (const tile of tiles.values()) tile.remove();
  tiles.clear();
  render();
}

function top0() { return grid.getBoundingClientRect().top + scrollY - by("bar").offsetHeight; }

function render() {
  const above = -grid.getBoundingClientRect().top;
  const first = Math.max(0, Math.floor(above / step) - 1) * columns;
  const last = Math.min(view.length, Math.ceil((above + innerHeight) / step + 1) * columns);
  const wanted = new Set(view.slice(first, last));
  for (const [row, tile] of tiles) if (!wanted.has(row)) { tile.remove(); tiles.delete(row); }
  for (let place = first; place < last; place++) {
    const row = view[place];
    if (tiles.has(row)) continue;
    const tile = makeTile(row, place);
    tiles.set(row, tile);
    grid.append(tile);
  }
  markCurrent();
}

function spoken(row) {
  const value = measures[0].values[row];
  return `${shownName(row)}, ${Number.isNaN(value) ? "no score" : `score ${digits(value)}`}, ${WORDS[marks[row]]}`;
}

function makeTile(row, place) {
  const tile = element("div", { className: "tile", role: "option", id: `tile-${row}`, title: shownPath(row) },
    frame(row, "thumbnails"), line(row),
    element("div", { className: "file", dir: "ltr", textContent: shownName(row) }));
  tile.setAttribute("aria-setsize", view.length);
  tile.setAttribute("aria-posinset", place + 1);
  tile.style.width = `${tileWidth}px`;
  tile.style.height = `${step - gap}px`;
  tile.style.transform = `translate(${(place % columns) * (tileWidth + gap)}px, ${Math.floor(place / columns) * step}px)`;
  tile.dataset.row = row;
  showMark(tile, row);
  return tile;
}

function frame(row, size) {
  const why = TABLE.lacking[row];
  if (why !== undefined) {
    const text = TABLE.errors[row] ?? why;
    return element("div", { className: "frame" }, element("div", { className: "reason" },
      element("b", { textContent: TABLE.errors[row] === undefined ? "No picture" : "No score" }), text));
  }
  const image = element("img", { alt: "", decoding: "async", draggable: false, src: picture(size, row) });
  if (size === "thumbnails" && sizes[row]) [image.width, image.height] = sizes[row];
  return element("div", { className: "frame" }, image);
}

function line(row) {
  const value = measures[0].values[row];
  const parts = [Number.isNaN(value) ? element("b", { className: "none", textContent: "no score" })
    : element("b", { textContent: digits(value) })];
  const own = measure.values[row];
  if (measure !== measures[0] && !Number.isNaN(own)) {
    parts.push(element("small", { textContent: digits(own), title: measure.name }));
  } else if (measures.length > 1 && !Number.isNaN(value)) parts.push(bars(row));
  const buttons = [[KEEP, "keep", "✓"], [DROP, "drop", "✕"]].map(([mark, word, sign]) => {
    const button = element("button", { type: "button", className: `mark ${word}`, textContent: sign, title: `${word} (${word[0].toUpperCase()})`, tabIndex: -1 });
    button.dataset.set = mark;
    return button;
  });
  buttons[0].classList.add("spring");
  return element("div", { className: "line" }, ...parts, ...buttons);
}

function bars(row) {
  const worst = worstAttribute(row);
  return element("span", { className: "bars", title: measures.slice(1).map(({ name, values }) => `${name} ${digits(values[row])}`).join("\n") },
    ...measures.slice(1).map(({ values, low, high }, index) => {
      const bar = element("i", { className: index + 1 === worst ? "worst" : "" });
      bar.style.height = `${Math.round(100 * (values[row] - low) / (high - low)) || 0}%`;
      return bar;
    }));
}

function markCurrent() {
  for (const [row, tile] of tiles) {
    const chosen = row === view[current];
    tile.classList.toggle("current", chosen);
    tile.setAttribute("aria-selected", String(chosen));
  }
  const chosen = tiles.get(view[current]);
  if (chosen) grid.setAttribute("aria-activedescendant", chosen.id); else grid.removeAttribute("aria-activedescendant");
}

function go(place) {
  current = Math.max(0, Math.min(view.length - 1, place));
  const top = grid.getBoundingClientRect().top + Math.floor(current / columns) * step;
  const bar = by("bar").offsetHeight;
  if (top < bar) scrollBy(0, top - bar);
  else if (top + step > innerHeight) scrollBy(0, top + step - innerHeight);
  render();
  if (viewer.open) showViewer();
}

// --- one picture, closely --------------------------------------------------------------------------------

function showViewer() {
  const row = view[current];
  if (row === undefined) return;
  const large = row < TABLE.large;
  const shown = frame(row, large ? "large" : "thumbnails");
  if (!large) shown.querySelector("img")?.classList.add("small");
  viewer.replaceChildren(shown, facts(row, large));
  showMark(viewer.querySelector(".facts"), row);
  showMap(viewer, row, large ? "large" : "thumbnails", mapping);
  if (!viewer.open) viewer.showModal();
  viewer.querySelector(".choices .keep").focus({ preventScroll: true });
}

function mapped(row) { return row < TABLE.maps && TABLE.lacking[row] === undefined; }

/** The picture in a frame becomes its map, or the picture again. */
function showMap(holder, row, size, on) {
  const image = holder.querySelector(".frame img");
  if (!image || !mapped(row)) return;
  image.src = picture(on ? "maps" : size, row);
  holder.classList.toggle("mapped", on);
}

function toggleMap() {
  if (!TABLE.maps) return;
  mapping = !mapping;
  if (viewer.open) showViewer();
}

function button(text, action, content = {}) {
  return element("button", { type: "button", textContent: text, onclick: action, ...content });
}

function facts(row, large) {
  const value = measures[0].values[row], worst = worstAttribute(row);
  const text = (className, content) => (content ? [element("p", { className, textContent: content })] : []);
  const attributes = measures.slice(1).filter(({ values }) => !Number.isNaN(values[row])).map((one) => {
    const bar = element("i", {});
    bar.style.setProperty("--share", `${100 * (one.values[row] - one.low) / (one.high - one.low)}%`);
    return element("div", { className: measures[worst] === one ? "worst" : "" }, element("dt", { textContent: one.name }),
      element("dd", { textContent: digits(one.values[row]) }), bar);
  });
  return element("div", { className: "facts" },
    element("div", { className: "top" },
      button("←", () => go(current - 1), { ariaLabel: "Previous", disabled: current === 0 }),
      button("→", () => go(current + 1), { ariaLabel: "Next", disabled: current === view.length - 1 }),
      `${(current + 1).toLocaleString("en")} of ${view.length.toLocaleString("en")}`,
      button("✕", () => viewer.close(), { ariaLabel: "Close" })),
    element("div", { className: "value", textContent: Number.isNaN(value) ? "no score" : digits(value) },
      element("small", { textContent: "score, 0 to 1, higher is better" })),
    element("div", { className: "choices" },
      button("Keep", () => toggle(row, KEEP), { className: "keep" }), button("Drop", () => toggle(row, DROP), { className: "drop" })),
    ...(mapped(row) ? [element("div", { className: "map" },
      button(mapping ? "Picture" : "Map", toggleMap, { title: "Map of where it is bad (M)", ariaPressed: String(mapping) }),
      element("span", { className: "legend", hidden: !mapping }, "0 bad ", element("i", {}), " 1 good"))] : []),
    ...text("error", TABLE.errors[row]),
    ...(attributes.length ? [element("dl", { className: "attributes" }, ...attributes)] : []),
    ...text("file", shownPath(row)),
    ...text("", sizes[row] && `${sizes[row][0]} × ${sizes[row][1]} pixels`),
    ...text("", TABLE.notes[row]),
    ...text("", !large && TABLE.lacking[row] === undefined && `Thumbnail: the worst ${TABLE.large.toLocaleString("en")} pictures are here in a larger size.`));
}

function toggle(row, mark) { setMarks([row], marks[row] === mark ? 0 : mark); }

viewer.addEventListener("close", () => { viewer.replaceChildren(); grid.focus({ preventScroll: true }); });
viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });

// --- what people do --------------------------------------------------------------------------------------

grid.addEventListener("click", (event) => {
  const tile = event.target.closest(".tile");
  if (!tile) return;
  const row = Number(tile.dataset.row), set = event.target.closest("[data-set]");
  current = view.indexOf(row);
  markCurrent();
  if (set) toggle(row, Number(set.dataset.set)); else showViewer();
});

// The tile under the pointer shows its map.
for (const [event, on] of [["pointerover", true], ["pointerout", false]]) {
  grid.addEventListener(event, ({ target, pointerType }) => {
    const frame = target.closest(".frame"), tile = target.closest(".tile");
    if (frame && pointerType === "mouse") showMap(tile, Number(tile.dataset.row), "thumbnails", on);
  });
}

function press(key) {
  const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: viewer.open ? 1 : columns, ArrowUp: viewer.open ? -1 : -columns };
  const mark = { k: KEEP, d: DROP, u: 0 }[key.toLowerCase()];
  if (key in moves) go(current + moves[key]);
  else if (key === "Home") go(0);
  else if (key === "End") go(view.length - 1);
  else if (key.toLowerCase() === "m" && viewer.open) toggleMap();
  else if (mark !== undefined && view.length) setMarks([view[current]], mark);
  else return false;
  return true;
}

document.addEventListener("keydown", (event) => {
  const control = event.ctrlKey || event.metaKey;
  const typing = event.target.matches("input[type=search], select");
  if (event.altKey || typing || by("help").open) return;
  if (control) {
    if (event.key !== "z" || event.shiftKey) return;
    undo();
  } else if (event.key === "/" && !viewer.open) by("name").focus();
  else if (event.key === "?" && !viewer.open) by("help").showModal();
  else if (event.key === "Enter" && event.target === grid) showViewer();
  else if (event.target.matches("input") || !press(event.key)) return;
  event.preventDefault();
});

by("help-button").onclick = () => by("help").showModal();
by("undo").onclick = undo;
by("save-keep").onclick = () => save(KEEP, "keep.txt");
by("save-drop").onclick = () => save(DROP, "drop.txt");
by("threshold").max = STEPS;
by("threshold").oninput = moveThreshold;
by("measure").onchange = (event) => { measure = measures[event.target.value]; apply(); };
for (const id of ["direction", "status", "marked"]) by(id).onchange = () => apply();
by("name").oninput = () => apply();
for (const choice of by("side").children) choice.onclick = () => setSide(measure, choice.dataset.side);
for (const choice of document.querySelectorAll("#controls [data-mark]")) {
  choice.onclick = () => setMarks(view, Number(choice.dataset.mark));
}
by("controls").onsubmit = (event) => event.preventDefault();
by("reset").onclick = () => {
  for (const one of measures) one.side = "";
  for (const id of ["status", "marked", "name"]) by(id).value = "";
  apply();
};

let drawing = 0;
addEventListener("scroll", () => { drawing ||= requestAnimationFrame(() => { drawing = 0; render(); }); }, { passive: true });
new ResizeObserver(() => { if (grid.clientWidth !== Math.round(tileWidth * columns + gap * (columns - 1))) layOut(); }).observe(grid);

by("measure").append(...measures.map(({ name }, index) => element("option", { value: index, textContent: name })));
const failures = measures[0].values.filter(Number.isNaN).length;
by("total").textContent = counted(COUNT, "picture") + (failures ? `, ${failures.toLocaleString("en")} without a score` : "");
apply();

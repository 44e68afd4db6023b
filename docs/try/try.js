"use strict";

// File names enter the page as text only. What computes runs in a worker made of a blob, which has the policy of this
// page; one that were loaded from an address would not.

const by = (id) => document.getElementById(id);
const HERE = new URL(".", location.href).href;
const BOOT = `importScripts("${HERE}ort.wasm.min.js", "${HERE}worker.js"); start("${HERE}");`;
const waiting = [];
let worker = null, model = null, running = null;

function begin() {
  worker = new Worker(URL.createObjectURL(new Blob([BOOT], { type: "text/javascript" })));
  worker.onmessage = ({ data }) => {
    if (data.model) ready(data.model);
    else if (data.fault) by("state").textContent = `The model did not load: ${data.fault}`;
    else if (data.done !== undefined) running.progress(data.done);
    else finish(data);
  };
  worker.onerror = (event) => { by("state").textContent = `The model did not load: ${event.message || "a file is missing"}`; };
}

function ready(description) {
  model = description;
  by("files").disabled = false;
  by("state").textContent = "PNG, JPEG, WebP and other formats of this browser; at least 64 pixels on each side";
  by("examples").replaceChildren(...model.examples.map(({ file, title }) => element("button", {
    type: "button", textContent: title,
    onclick: async () => add(new File([await (await fetch(HERE + file)).blob()], file)),
  })));
}

// --- one job at a time: scores before maps -----------------------------------------------------------------

function ask(job) {
  waiting.push(job);
  waiting.sort((a, b) => (a.task === "map") - (b.task === "map"));
  next();
}

function next() {
  if (running || !waiting.length) return;
  running = waiting.shift();
  const { task, file, part } = running;
  worker.postMessage({ task, file, part });
}

function finish(answer) {
  const job = running;
  running = null;
  job.resolve(answer);
  next();
}

function compute(task, file, part, progress = () => {}) {
  return new Promise((resolve) => ask({ task, file, part, progress, resolve }));
}

// --- one card a picture ------------------------------------------------------------------------------------

function add(file) {
  const picture = element("div", { className: "picture" }), facts = element("div", { className: "facts" });
  facts.append(soft(file.name), element("p", { textContent: "waiting …" }));
  by("cards").prepend(element("article", { className: "card", tabIndex: -1 }, picture, facts));
  by("clear").hidden = false;
  score(file, null, picture, facts);
}

async function score(file, part, picture, facts) {
  const answer = await compute("score", file, part);
  facts.replaceChildren(soft(file.name));
  if (answer.shown) picture.replaceChildren(canvasOf(answer.shown));
  if (answer.error) {
    facts.append(element("p", { className: "error", textContent: answer.error }));
    if (answer.centre) facts.append(centreButton(file, answer.centre, picture, facts));
    return;
  }
  facts.append(
    element("p", { className: "value" }, number("score", answer.score)),
    soft(`0 bad, 1 good. ${part ? "Its centre: " : ""}${answer.width} × ${answer.height} pixels, ${digits(answer.seconds, 1)} s`),
    element("dl", { className: "attributes" }, ...model.attributes.map((name, index) => attribute(name, answer.attributes[index]))));
  facts.append(...mapParts(file, part, picture));
}

function centreButton(file, part, picture, facts) {
  return element("button", {
    type: "button", textContent: `Score its centre, ${part.width} × ${part.height}`,
    onclick: (event) => { event.target.replaceWith("waiting …"); score(file, part, picture, facts); },
  });
}

function mapParts(file, part, picture) {
  const button = element("button", { type: "button", textContent: "Show where", className: "map" });
  const plain = picture.firstChild, legend = element("div", {});
  let drawn = null;
  button.onclick = async () => {
    if (!drawn) {
      button.disabled = true;
      const answer = await compute("map", file, part, (share) => { button.textContent = `${Math.round(100 * share)} %`; });
      button.disabled = false;
      button.textContent = "Show where";
      if (answer.error) { legend.replaceChildren(element("p", { className: "error", textContent: answer.error })); return; }
      drawn = canvasOf(answer.shown);
      legend.replaceChildren(
        element("p", { className: "soft" }, `${answer.rows} × ${answer.columns} windows of ${model.window} pixels, `,
          number("low", answer.low), " to ", number("high", answer.high)),
        element("div", { className: "scale" }, "0 bad", scale(), "1 good"));
    }
    const showing = drawn.isConnected;
    picture.replaceChildren(showing ? plain : drawn);
    legend.hidden = showing;
    button.textContent = showing ? "Show where" : "Show the picture";
  };
  return [element("p", {}, button), legend];
}

function canvasOf(bitmap) {
  const canvas = element("canvas", { width: bitmap.width, height: bitmap.height });
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  return canvas;
}

function scale() {
  const canvas = element("canvas", { width: model.colours.length, height: 1 });
  const context = canvas.getContext("2d");
  model.colours.forEach(([r, g, b], place) => { context.fillStyle = `rgb(${r} ${g} ${b})`; context.fillRect(place, 0, 1, 1); });
  return canvas;
}

function digits(value, count = 3) { return value.toFixed(count); }
function soft(text) { return element("p", { className: "soft", textContent: text }); }
function number(name, value) { return element("data", { className: name, value: String(value), textContent: digits(value) }); }
function attribute(name, value) {
  return element("div", {}, element("dt", { textContent: name.replaceAll("_", " ") }), element("dd", {}, number("attribute", value)),
    element("meter", { value, min: 0, max: 1, ariaLabel: name }));
}

// --- what people do ----------------------------------------------------------------------------------------

const drop = by("drop");
const stop = (event, over) => { event.preventDefault(); drop.classList.toggle("over", over); };
addEventListener("dragover", (event) => stop(event, true));
addEventListener("dragleave", (event) => stop(event, false));
addEventListener("drop", (event) => { stop(event, false); if (model) [...event.dataTransfer.files].forEach(add); });
by("files").onchange = ({ target }) => { [...target.files].forEach(add); target.value = ""; };
by("clear").onclick = () => { waiting.length = 0; by("cards").replaceChildren(); by("clear").hidden = true; };

begin();

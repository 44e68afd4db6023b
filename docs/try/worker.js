"use strict";

// Decodes, scores and maps; the page sends one job at a time. `ort` is onnxruntime-web.

const SHOWN = 960, BATCH = 8, OVERLAY = 0.6;
let session = null, model = null, base = "";

async function start(address) {
  base = address;
  try {
    ort.env.wasm.numThreads = 1;  // more need headers that few servers send
    ort.env.wasm.wasmPaths = base;
    const [description, graph] = await Promise.all([read("model.json"), read("model.onnx")]);
    model = await description.json();
    session = await ort.InferenceSession.create(new Uint8Array(await graph.arrayBuffer()));
    postMessage({ model });
  } catch (error) {
    postMessage({ fault: error.message });
  }
}

async function read(name) {
  const answer = await fetch(base + name);
  if (!answer.ok) throw new Error(`${name}: ${answer.status}`);
  return answer;
}

onmessage = async ({ data }) => {
  try {
    postMessage(await (data.task === "map" ? quality_map : score)(data.file, data.part));
  } catch (error) {
    postMessage({ error: error.message });
  }
};

// --- pixels ------------------------------------------------------------------------------------------------

/** A picture as it is shown: upright, in sRGB, on white. */
async function decode(file) {
  try {
    return await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    throw new Error("This browser cannot read it as a picture.");
  }
}

function drawn(bitmap, { left, top, width, height }, scale = 1) {
  const canvas = new OffscreenCanvas(Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale)));
  const context = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, left, top, width, height, 0, 0, canvas.width, canvas.height);
  return context;
}

function whole(bitmap) { return { left: 0, top: 0, width: bitmap.width, height: bitmap.height }; }

/** A small copy for the page: the shown part is what was scored. */
function small(bitmap, part) {
  const context = drawn(bitmap, part, Math.min(1, SHOWN / Math.max(part.width, part.height)));
  return context;
}

/** Planes of red, green and blue from 0 to 1 of windows (tops and lefts) of an image. */
function planes(pixels, places, width, height) {
  const area = width * height, values = new Float32Array(places.length * 3 * area);
  places.forEach(([top, left], index) => {
    for (let row = 0; row < height; row++) {
      let source = ((top + row) * pixels.width + left) * 4, target = index * 3 * area + row * width;
      for (let column = 0; column < width; column++, source += 4, target++) {
        for (let channel = 0; channel < 3; channel++) values[target + channel * area] = pixels.data[source + channel] / 255;
      }
    }
  });
  return new ort.Tensor("float32", values, [places.length, 3, height, width]);
}

// --- scores ------------------------------------------------------------------------------------------------

async function run(images) {
  const found = await session.run({ images });
  images.dispose();
  return { scores: found.scores.data, attributes: found.attributes.data };
}

function centre({ width, height }) {
  const share = Math.sqrt(model.max_pixels / (width * height));
  const inner = { width: Math.min(width, Math.floor(width * share)), height: Math.min(height, Math.floor(height * share)) };
  return { ...inner, left: (width - inner.width) >> 1, top: (height - inner.height) >> 1 };
}

async function score(file, part) {
  const before = performance.now(), bitmap = await decode(file), area = part ?? whole(bitmap);
  const { width, height } = area, shown = small(bitmap, area).canvas.transferToImageBitmap();
  if (Math.min(width, height) < model.smallest) {
    return { shown, error: `${width} × ${height} pixels: each side needs ${model.smallest} or more.` };
  }
  if (width * height > model.max_pixels) {
    const megapixels = (pixels) => (pixels / 1e6).toFixed(1);
    return { shown, centre: centre(area), error: `${megapixels(width * height)} megapixels: this page has memory for ${megapixels(model.max_pixels)}. `
      + "The command qualiclip score takes the whole picture." };
  }
  const { scores, attributes } = await run(planes(drawn(bitmap, area).getImageData(0, 0, width, height), [[0, 0]], width, height));
  return { shown, width, height, score: scores[0], attributes: Array.from(attributes), seconds: (performance.now() - before) / 1000 };
}

// --- maps: the scores of windows, as quality_map.py lays them ----------------------------------------------

function windowStarts(length, window, stride) {
  const last = Math.max(0, length - window), starts = [];
  for (let start = 0; start < last; start += stride) starts.push(start);
  return [...starts, last];
}

async function quality_map(file, part) {
  const bitmap = await decode(file), area = part ?? whole(bitmap);
  const pixels = drawn(bitmap, area).getImageData(0, 0, area.width, area.height);
  const [height, width] = [area.height, area.width].map((side) => Math.min(side, model.window));
  const tops = windowStarts(area.height, model.window, model.stride), lefts = windowStarts(area.width, model.window, model.stride);
  const places = tops.flatMap((top) => lefts.map((left) => [top, left])), values = [];
  for (let first = 0; first < places.length; first += BATCH) {
    const { scores } = await run(planes(pixels, places.slice(first, first + BATCH), width, height));
    values.push(...scores);
    postMessage({ done: values.length / places.length });
  }
  const shown = overlay(small(bitmap, area), area, places, values, width, height);
  return { shown, rows: tops.length, columns: lefts.length, low: Math.min(...values), high: Math.max(...values) };
}

/** A grey picture under the colours of the mean score of the windows that cover a pixel, those around it most. */
function overlay(context, area, places, values, width, height) {
  const { canvas } = context, scale = canvas.width / area.width;
  const total = new Float32Array(canvas.width * canvas.height), weight = new Float32Array(total.length);
  const tent = (at, length) => 1 - Math.abs(at - (length - 1) / 2) / (length / 2);
  places.forEach(([top, left], index) => {
    for (let y = Math.ceil(top * scale); y < Math.min(canvas.height, (top + height) * scale); y++) {
      const rows = tent(y / scale - top, height);
      for (let x = Math.ceil(left * scale); x < Math.min(canvas.width, (left + width) * scale); x++) {
        const share = Math.max(1e-4, rows * tent(x / scale - left, width)), place = y * canvas.width + x;
        total[place] += share * values[index];
        weight[place] += share;
      }
    }
  });
  const image = context.getImageData(0, 0, canvas.width, canvas.height), { data } = image;
  for (let place = 0; place < total.length; place++) {
    const score = total[place] / weight[place], at = place * 4;
    const colour = model.colours[Math.round(Math.min(1, Math.max(0, score || 0)) * (model.colours.length - 1))];
    const grey = (data[at] + data[at + 1] + data[at + 2]) / 3;
    for (let channel = 0; channel < 3; channel++) data[at + channel] = (1 - OVERLAY) * grey + OVERLAY * colour[channel];
  }
  context.putImageData(image, 0, 0);
  return canvas.transferToImageBitmap();
}

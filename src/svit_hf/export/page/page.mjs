// SPDX-License-Identifier: Apache-2.0
// The page: a picture in, classes and super tokens out. All of it comes from the folder that this file is in.

import * as ort from "./ort.wasm.bundle.min.mjs";
import { Refusal, prepare, readPicture } from "./picture.mjs";
import { assignPixels, drawBoundaries } from "./super_tokens.mjs";

const NUM_CLASSES_SHOWN = 5;
// longer edge of a drawing, in pixels
const EDGE = 560;
// the model runs in a worker, and the page can be scrolled and read meanwhile
ort.env.wasm.proxy = true;

const element = (id) => document.getElementById(id);
let settings, session;
// of the newest picture: what comes later than its successor is not shown
let turn = 0;

function say(text, isError = false) {
  element("message").textContent = text;
  element("message").className = isError ? "error" : "";
}

function made(kind, className, text) {
  const node = document.createElement(kind);
  node.className = className;
  node.textContent = text;
  return node;
}

async function start() {
  settings = await (await fetch("settings.json")).json();
  element("name").textContent = settings.name;
  document.title = `Super tokens: ${settings.name}`;
  const { program, weights, megabytes } = settings.model;
  say(`Loading the model, ${megabytes} MB…`);
  session = await ort.InferenceSession.create(program, { externalData: [{ path: weights, data: weights }] });
  say("The model is here. Choose a picture.");
  element("file").disabled = false;
}

async function answer(file) {
  const own = ++turn;
  for (const id of ["answer", "drawings"]) element(id).replaceChildren();
  element("preview").hidden = element("numbers").hidden = true;
  if (!session) return say("The model is still loading; please wait a moment.", true);
  say("Looking…");
  try {
    const picture = await readPicture(file, settings.limits);
    const { view, pixelValues } = prepare(picture, settings.picture);
    const input = new ort.Tensor("float32", pixelValues, [1, settings.picture.mean.length, view.height, view.width]);
    const started = performance.now();
    const outputs = await session.run({ pixel_values: input }, ["logits", ...settings.stages.map((stage) => stage.output)]);
    const milliseconds = performance.now() - started;
    if (own === turn) show(file, picture, view, outputs, milliseconds);
  } catch (error) {
    if (own !== turn) return;
    if (!(error instanceof Refusal)) console.error(error);
    say(error instanceof Refusal ? error.message : `This browser could not run the model: ${error.message}`, true);
  }
}

function show(file, picture, view, outputs, milliseconds) {
  const logits = [...outputs.logits.data];
  const shares = settings.isMultiLabel ? logits.map((logit) => 1 / (1 + Math.exp(-logit))) : softmax(logits);
  const order = shares.map((_, index) => index).sort((a, b) => shares[b] - shares[a]);
  for (const index of order.slice(0, NUM_CLASSES_SHOWN)) {
    const percent = `${(100 * shares[index]).toFixed(1)}%`;
    const [line, bar] = [made("li", "", ""), made("span", "bar", "")];
    bar.append(made("span", "", ""));
    bar.firstChild.style.width = percent;
    line.append(made("span", "label", settings.labels[index]), made("span", "share", percent), bar);
    element("answer").append(line);
  }
  const superTokens = settings.stages.map((stage) => drawStage(stage, view, outputs[stage.output].data));
  URL.revokeObjectURL(element("preview").src);
  element("preview").src = URL.createObjectURL(file);
  const numbers = { labels: settings.labels, logits, shares, superTokens };
  URL.revokeObjectURL(element("numbers").href);
  element("numbers").href = URL.createObjectURL(new Blob([JSON.stringify(numbers)], { type: "application/json" }));
  element("preview").hidden = element("numbers").hidden = false;
  const note = picture.isBlended ? " Its transparent parts could not be read exactly." : "";
  say(`${Math.round(milliseconds)} ms for this picture, in this browser.${note}`);
}

/** Draw the super tokens of a stage, and return which of them each pixel of what the model sees belongs to. */
function drawStage(stage, view, association) {
  const assigned = assignPixels(association, stage.cell, stage.grid, [view.height, view.width]);
  const [figure, canvas] = [made("figure", "", ""), made("canvas", "", "")];
  drawBoundaries(view, assigned, canvas, EDGE);
  const [rows, columns] = stage.grid.map((length, axis) => Math.ceil(length / stage.cell[axis]));
  const text = `Stage ${stage.stage}: ${stage.grid.join(" x ")} tokens in ${rows} x ${columns} super tokens`;
  figure.append(canvas, made("figcaption", "", text));
  element("drawings").append(figure);
  return { stage: stage.stage, height: view.height, width: view.width, ofPixels: [...assigned] };
}

function softmax(logits) {
  const most = Math.max(...logits);
  const exponentials = logits.map((logit) => Math.exp(logit - most));
  const total = exponentials.reduce((sum, value) => sum + value, 0);
  return exponentials.map((value) => value / total);
}

element("file").addEventListener("change", (event) => {
  if (event.target.files.length) answer(event.target.files[0]);
  // the same file can be chosen again
  event.target.value = "";
});
const drop = element("drop");
for (const kind of ["dragover", "dragleave", "drop"]) {
  // a file dropped beside the frame would otherwise replace the page
  document.addEventListener(kind, (event) => event.preventDefault());
  drop.addEventListener(kind, () => drop.classList.toggle("over", kind === "dragover"));
}
drop.addEventListener("drop", (event) => {
  if (event.dataTransfer.files.length) answer(event.dataTransfer.files[0]);
  else say("What was dropped is no file; save the picture first, then drop it.", true);
});
start().catch((error) => {
  console.error(error);
  say(`The model could not be loaded: ${error.message}`, true);
});

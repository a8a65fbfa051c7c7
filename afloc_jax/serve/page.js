"use strict";
const $ = id => document.getElementById(id), settings = JSON.parse($("settings").textContent);
const state = { file: null, picture: null, width: 0, height: 0, rows: [] };
const colours = settings.colours.map(hex => [1, 3, 5].map(at => parseInt(hex.slice(at, at + 2), 16)));
const token = new URLSearchParams(location.search).get("token");
const LISTED = 12;  // boxes in the table; all of them are drawn and saved
const number = (value, digits = 2) => value.toFixed(digits).replace("-", "−");
// What the model does not understand of a phrase; "" if it knows all of it.
const strange = ({ unknown_words: words, truncated }) => [
  words.length ? `The model does not know ${words.map(word => `“${word}”`).join(", ")}.` : "",
  truncated ? "The end is too long and is not read." : ""].filter(Boolean).join(" ");
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

// The server

async function ask(route, texts, signal) {
  const query = new URLSearchParams(texts), dicom = /\.(dcm|dicom)$/i.test(state.file.name);
  if (state.file.size > settings.largest)
    throw Object.assign(new Error(`the file is too large; at most ${settings.largest >> 20} MiB are read`), { status: 413 });
  let answer;
  try {  // the bytes and nothing else: the name of the file stays in the browser
    answer = await fetch(`${route}?${query}`, { method: "POST", body: state.file, signal,
      headers: { "Content-Type": dicom ? "application/dicom" : "application/octet-stream",
        ...(token && { "Authorization": `Bearer ${token}` }) } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("afloc serve does not answer; is it still running?");
  }
  const content = await answer.json().catch(() => ({ error: `status ${answer.status}` }));
  if (!answer.ok) throw Object.assign(new Error(content.error), { status: answer.status });
  return content;
}

let running = null;
async function during(what, work) {  // one question at a time; a newer one replaces the older
  running?.abort();
  const mine = running = new AbortController();
  $("error").textContent = "";
  $("status").textContent = what;
  document.body.classList.add("busy");
  try {
    const done = await work(mine.signal);
    if (running === mine) $("status").textContent = done ?? "";
  } catch (error) {
    if (running !== mine) return;
    $("status").textContent = "";
    $("error").textContent = sentence(error.message).replace(/^Image(\.dcm)?:/, () => `${state.file.name}:`);
    if (error.unreadable) noImage();
  } finally {
    if (running === mine) document.body.classList.remove("busy");
  }
}
function noImage() {
  state.file = null;
  $("stage").classList.remove("full");
  $("hint").textContent = "Drop an image here";
}
const sentence = text => text.charAt(0).toUpperCase() + text.slice(1);

// Images

function openFile(file) {
  if (!file) return;
  Object.assign(state, { file, picture: null });  // the old picture goes at once: it must not stand under a new name
  state.rows.forEach(forget);
  $("probabilities").hidden = $("view").hidden = true;
  $("classes-note").textContent = $("no-drawing").textContent = "";
  $("hint").textContent = file.name;
  $("size").textContent = "";
  draw();
  if (state.rows.some(row => row.input.value.trim())) return find();
  during("Reading the image …", async signal => {
    await read(signal);
    state.rows[0].input.focus();
    return "Type a phrase and press Enter.";
  });
}

async function read(signal) {  // the picture, where it is not there yet: an earlier question may have been cut short
  if (state.picture) return;
  try {
    await take(await ask("picture", [], signal), signal);
  } catch (error) {
    error.unreadable = [400, 413].includes(error.status);
    throw error;
  }
}

async function pixels(uri) {
  const image = new Image();
  image.src = uri;
  await image.decode();
  const canvas = make("canvas", { width: image.width, height: image.height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const data = context.getImageData(0, 0, image.width, image.height);
  const grey = new Uint8Array(data.width * data.height);
  for (let i = 0; i < grey.length; i++) grey[i] = data.data[4 * i];
  return { width: data.width, height: data.height, grey };
}

async function take(content, signal) {
  const picture = await pixels(content.picture);
  signal.throwIfAborted();  // another file may have been opened meanwhile
  Object.assign(state, { picture, width: content.width, height: content.height });
  Object.assign($("canvas"), { width: picture.width, height: picture.height });
  $("boxes").setAttribute("viewBox", `0 0 ${content.width} ${content.height}`);
  $("no-drawing").textContent = content.warning && `${sentence(content.warning)}.`;
  $("drawings").hidden = !settings.drawings || content.warning;
  $("view").hidden = false;
  $("stage").classList.add("full");
  $("size").textContent = `${content.width} × ${content.height} pixels` +
    (picture.width < content.width ? `, shown at ${picture.width} × ${picture.height}` : "");
  fit();
  draw();
}

// Small images are enlarged and tall ones kept on the screen; the sides keep their ratio.
function fit() {
  if (!state.picture) return;
  const { width, height } = state.picture, room = $("stage").clientWidth;
  const tall = Math.max(320, window.innerHeight - 210);
  $("canvas").style.width = `${Math.floor(Math.min(room, (tall * width) / height, 3 * width))}px`;
}

// Phrases

function addRow() {
  const row = { found: null, map: null };
  row.radio = make("input", { type: "radio", name: "shown", disabled: true, onchange: () => choose(row) });
  row.input = make("input", { type: "text", placeholder: "small left pleural effusion",
    autocomplete: "off", maxLength: settings.longest, oninput: () => { if (row.found) { forget(row); draw(); } } });
  row.remove = make("button", { type: "button", textContent: "×", onclick: () => removeRow(row) });
  row.note = make("p", { className: "found soft", hidden: true });
  row.element = make("div", { className: "row" }, make("div", {}, row.radio, row.input, row.remove), row.note);
  state.rows.push(row);
  $("phrases").append(row.element);
  numberRows();
  return row;
}
function removeRow(row) {
  const at = state.rows.indexOf(row);
  state.rows.splice(at, 1);
  row.element.remove();
  if (!state.rows.length) addRow();
  numberRows();
  const next = state.rows[Math.min(at, state.rows.length - 1)];
  if (shown() === undefined) choose(state.rows.find(other => other.found));
  next.input.focus();
}
function numberRows() {
  state.rows.forEach((row, i) => {
    row.input.setAttribute("aria-label", `Phrase ${i + 1}`);
    row.radio.setAttribute("aria-label", `Show the map of phrase ${i + 1}`);
    row.remove.setAttribute("aria-label", `Remove phrase ${i + 1}`);
  });
  $("add").disabled = state.rows.length >= settings.most;
}
function forget(row) {
  Object.assign(row, { found: null, map: null, limit: null });
  row.radio.disabled = true;
  row.radio.checked = false;
  row.note.hidden = true;
}
const shown = () => state.rows.find(row => row.radio.checked);
function choose(row) {
  if (row) row.radio.checked = true;
  draw();
}

function find() {
  const asked = state.rows.filter(row => row.input.value.trim());
  if (!state.file) return complain("Choose an image first.", $("file"));
  if (!asked.length) return complain("Type what to look for, e.g. small left pleural effusion.", state.rows[0].input);
  const before = shown();
  return during("Looking …", async signal => {
    await read(signal);
    const texts = asked.map(row => row.input.value);
    const content = await ask("localize", texts.map(text => ["prompt", text]), signal);
    const maps = await Promise.all(content.prompts.map(found => pixels(found.heatmap)));
    signal.throwIfAborted();
    asked.forEach((row, i) => {
      if (row.input.value !== texts[i]) return;  // edited meanwhile
      const { threshold, calibrated } = content;
      Object.assign(row, { found: { ...content.prompts[i], threshold, calibrated }, map: maps[i], limit: null });
      row.radio.disabled = false;
    });
    const live = asked.filter(row => row.found && state.rows.includes(row));  // edited and removed ones are not
    choose(live.includes(before) ? before : live[0]);
    if (matchMedia("(max-width: 860px)").matches) $("view").scrollIntoView({ block: "nearest" });  // the phrases are below
    return `${asked.length} ${asked.length === 1 ? "phrase" : "phrases"} done.`;
  });
}
function complain(text, where) {
  $("error").textContent = text;
  where.focus();
}

// The map

const counted = places => `${places.length} ${places.length === 1 ? "box" : "boxes"}`;
const threshold = () => Number($("threshold").value);

// Connected places (along sides) above the threshold, the largest first, in original pixels. At the threshold that the
// server was asked with, its boxes: they are from the map at original size and before rounding to 256 values.
function boxes(row) {
  if (Math.abs(threshold() - row.found.threshold) < 1e-6) return row.found.boxes;
  const { width, height, grey } = row.map, limit = ((threshold() + 1) / 2) * 255;
  const seen = new Uint8Array(grey.length), stack = new Int32Array(grey.length), parts = [];
  const visit = (i, top) => { if (!seen[i] && grey[i] > limit) { seen[i] = 1; stack[top++] = i; } return top; };
  for (let start = 0; start < grey.length; start++) {
    let top = visit(start, 0), size = 0, left = width, right = 0, upper = height, lower = 0;
    if (!top) continue;
    while (top) {
      const i = stack[--top], x = i % width, y = (i - x) / width;
      size++;
      left = Math.min(left, x); right = Math.max(right, x + 1);
      upper = Math.min(upper, y); lower = Math.max(lower, y + 1);
      if (x) top = visit(i - 1, top);
      if (x + 1 < width) top = visit(i + 1, top);
      if (y) top = visit(i - width, top);
      if (y + 1 < height) top = visit(i + width, top);
    }
    parts.push({ size, edges: [left, upper, right, lower] });
  }
  const factors = [state.width / width, state.height / height];
  return parts.sort((a, b) => b.size - a.size).map(({ edges }) => {
    const [x, y, right, lower] = edges.map((edge, i) => Math.round(edge * factors[i % 2]));
    return [x, y, right - x, lower - y];
  });
}

function paint(row) {  // grey * (1 - a) + colour * a with a = opacity * heat, as afloc localize draws it
  const { width, height, grey } = state.picture, image = new ImageData(width, height), out = image.data;
  const opacity = Number($("opacity").value), limit = $("cut").checked ? ((threshold() + 1) / 2) * 255 : -1;
  for (let i = 0; i < grey.length; i++) {
    const heat = row && row.map.grey[i] > limit ? row.map.grey[i] : 0;
    const a = (opacity * heat) / 255, colour = colours[heat];
    for (let c = 0; c < 3; c++) out[4 * i + c] = Math.floor(grey[i] * (1 - a) + colour[c] * a + 0.5);
    out[4 * i + 3] = 255;
  }
  $("canvas").getContext("2d").putImageData(image, 0, 0);
}

const drawn = row => $("draw").checked && !row?.found.absent;  // boxes, as in the overlays of afloc localize
const presence = found => found.present === null
  ? [found.calibrated ? "no presence of a denial, " : "not calibrated, "]
  : [found.absent ? "absent, present " : "present ", make("b", { textContent: number(found.present) }), ", "];

function draw() {
  $("opacity-is").textContent = `${Math.round(100 * $("opacity").value)} %`;
  $("threshold-is").textContent = number(threshold());
  $("mark").style.left = `${50 * (threshold() + 1)}%`;
  const row = shown();
  for (const each of state.rows) {
    each.element.classList.toggle("chosen", each === row);
    if (!each.found) continue;
    if (each.limit !== threshold()) Object.assign(each, { boxes: boxes(each), limit: threshold() });
    each.note.replaceChildren(...presence(each.found),
      "similarity ", make("b", { textContent: number(each.found.similarity, 3) }), `, ${counted(each.boxes)}`,
      each.found.absent ? " not drawn" : "");
    if (each.found.prompt !== each.input.value.trim())
      each.note.append(make("br"), `read as “${each.found.prompt}”`);
    if (strange(each.found)) each.note.append(make("br"), make("span", { className: "warning", textContent: strange(each.found) }));
    each.note.hidden = false;
  }
  $("save").disabled = $("export").disabled = !row;
  $("coldest").textContent = "−1 coldest place" + (row ? ` (${number(row.found.lowest, 3)})` : "");
  $("hottest").textContent = (row ? `(${number(row.found.highest, 3)}) ` : "") + "hottest place 1";
  $("range").textContent = row
    ? "The colours span this phrase's own map (its values in brackets). Some place is always the hottest, even where " +
      "the finding is absent. " + (row.found.calibrated
        ? "Whether it is there is said by “present”, a probability; below 0.5 boxes are not drawn."
        : "The model is not calibrated, so that none of these numbers says whether it is there: a phrase that has " +
          "nothing to do with the image can have a higher similarity.")
    : "The colours span each phrase's own map.";
  const places = row ? row.boxes : [];
  $("places").hidden = !places.length;
  $("places").caption.textContent = row
    ? `Boxes of “${row.found.prompt}” above ${number(threshold())}, in original pixels` : "";
  $("places").tBodies[0].replaceChildren(...places.slice(0, LISTED).map((box, i) => make("tr", {},
    make("th", { scope: "row", textContent: i + 1 }), ...box.map(value => make("td", { textContent: value })))));
  const rectangle = (kind, [x, y, width, height]) =>
    `<rect class="${kind}" x="${x}" y="${y}" width="${width}" height="${height}"/>`;
  $("boxes").innerHTML = drawn(row)
    ? ["under", "over"].map(kind => places.map(box => rectangle(kind, box)).join("")).join("") : "";
  $("canvas").setAttribute("aria-label", row
    ? `The image with the map of “${row.found.prompt}”, ${counted(places)}; a table lists them` : "The image");
  if (state.picture) paint(row);
}

// What can be kept

function download(blob, name) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
const stem = () => state.file.name.replace(/\.[^.]*$/, "") || "image";
function savePicture() {
  const { width, height } = state.picture, canvas = make("canvas", { width, height });
  const context = canvas.getContext("2d");
  context.drawImage($("canvas"), 0, 0);
  context.strokeStyle = "#3ce6dc";
  context.lineWidth = Math.max(1, Math.round(Math.max(width, height) / 400));
  context.scale(width / state.width, height / state.height);
  for (const box of drawn(shown()) ? shown().boxes : []) {
    context.beginPath();
    context.rect(...box);
    context.save();
    context.resetTransform();  // lines of one width whatever the scale
    context.stroke();
    context.restore();
  }
  canvas.toBlob(blob => download(blob, `${stem()}.overlay.png`));
}
function saveNumbers() {
  const prompts = state.rows.filter(row => row.found).map(row => ({ given: row.input.value, prompt: row.found.prompt,
    unknown_words: row.found.unknown_words,
    truncated: row.found.truncated, present: row.found.present, similarity: row.found.similarity, lowest: row.found.lowest, highest: row.found.highest, boxes: row.boxes }));
  const content = { model: settings.model, image: state.file.name, width: state.width, height: state.height,
    threshold: threshold(), prompts };
  download(new Blob([JSON.stringify(content, null, 2) + "\n"], { type: "application/json" }), `${stem()}.json`);
}

function classify() {
  const names = $("classes").value.split(",").map(name => name.trim()).filter(Boolean);
  if (!state.file) return complain("Choose an image first.", $("file"));
  if (!names.length) return complain("Type the names of classes, e.g. pleural effusion, pneumothorax.", $("classes"));
  during("Estimating …", async signal => {
    await read(signal);
    const content = await ask("classify",
      [...names.map(name => ["class", name]), ["prompts", $("sets").value]], signal);
    $("probabilities").tBodies[0].replaceChildren(...content.classes.map(({ class: name, probability, present }) => {
      const bar = make("i");
      bar.style.width = `${100 * probability}%`;
      return make("tr", {}, make("th", { scope: "row", textContent: name }),
        make("td", { className: "bar" }, make("span", {}, bar)), make("td", { textContent: number(probability) }),
        make("td", { textContent: present === null ? "" : `present ${number(present)}` }));
    }));
    $("classes-note").textContent = [...(content.calibrated ? [] : ["The model is not calibrated."]),
      ...content.classes.filter(strange).map(found => `${found.class}: ${strange(found)}`)].join(" ");
    $("probabilities").hidden = false;
  });
}

// Hands

$("model").textContent = settings.model;
$("drawings").hidden = !settings.drawings;
$("sets").append(...settings.sets.filter(name => name !== "plain").map(name =>
  make("option", { value: name, textContent: `the prompt set ${name}` })));
$("sets").value = "chest"; // asks for other classes as the first option does
document.title = `afloc: ${settings.model}`;
$("opacity").value = settings.opacity;
$("threshold").value = settings.threshold;
$("scale").style.background = `linear-gradient(to right, ${settings.colours.filter((_, i) => i % 15 === 0).join(",")})`;
// The address says nothing about where an image goes: a tunnel to another machine has an address of this one.
$("goes").textContent = `It goes to afloc serve on ${settings.machine}, which stores nothing.`;
$("where").textContent = `Images and phrases go to the machine ${settings.machine}, on which afloc serve runs. They ` +
  "are in its memory until they are answered; it writes them to no disk and no log. A tunnel or proxy in between " +
  "sees them too" + (location.protocol.startsWith("https") ? "." : ", for this connection is not encrypted.");
addRow();
draw();
let waiting = 0;
const soon = () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(draw); };
for (const id of ["opacity", "threshold", "draw", "cut"]) $(id).addEventListener("input", soon);
$("file").addEventListener("change", event => { openFile(event.target.files[0]); event.target.value = ""; });
$("add").addEventListener("click", () => addRow().input.focus());
$("ask").addEventListener("submit", event => { event.preventDefault(); find(); });
$("classify").addEventListener("submit", event => { event.preventDefault(); classify(); });
$("save").addEventListener("click", savePicture);
$("export").addEventListener("click", saveNumbers);
window.addEventListener("resize", fit);
const over = on => event => {
  if (!event.dataTransfer.types.includes("Files")) return;  // text that is dragged into a phrase
  event.preventDefault();
  $("stage").classList.toggle("over", on);
  if (event.type === "drop") openFile(event.dataTransfer.files[0]);
};
document.addEventListener("dragover", over(true));
document.addEventListener("dragleave", over(false));
document.addEventListener("drop", over(false));
document.addEventListener("paste", event => openFile(event.clipboardData.files[0]));

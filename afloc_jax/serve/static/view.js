// The film with its map: zoom and place, grey levels, and what is drawn. Two panes share all of it.

const OUTLINE = 60;  // the colour of the bar that lines regions have, as in the overlays of afloc localize
const MOST_ZOOM = 40;
const panes = [0, 1].map(() => {
  const canvas = make("canvas", { className: "film-view", tabIndex: 0 });
  canvas.setAttribute("role", "img");
  const caption = make("figcaption"), element = make("figure", { className: "pane" }, canvas, caption);
  return { canvas, caption, element, scratch: make("canvas"), shows: null };
});

// What each pane shows: a phrase and a model.
function wantedPanes() {
  if (state.mode === "models") return [0, 1].map(model => ({ row: shown(), model }));
  const rows = state.mode === "phrases" ? [shown(), second()] : [shown()];
  return rows.map(row => ({ row, model: state.model }));
}

// Places. A film is fitted into its pane, and enlarged by the zoom.
function geometry(pane) {
  const { film, view } = state, ratio = Math.min(2, window.devicePixelRatio || 1);
  const width = pane.canvas.clientWidth, height = pane.canvas.clientHeight;
  const fitted = Math.min(width / film.width, height / film.height);
  return { width, height, ratio, fitted, scale: fitted * view.zoom };
}
function clamp() {
  const { film, view } = state, { width, height, scale } = geometry(panes[0]);
  view.zoom = Math.min(MOST_ZOOM, Math.max(1, view.zoom));
  for (const [key, side, room] of [["x", film.width, width], ["y", film.height, height]]) {
    const half = Math.min(0.5, room / (2 * side * scale));  // half of what is seen, as a part of the film
    view[key] = Math.min(1 - half, Math.max(half, view[key]));
  }
}
// Zooms so that the place under the pointer stays there; x and y in pixels from the middle of a pane.
function zoom(factor, x = 0, y = 0) {
  if (!state.film?.picture) return;
  const { film, view } = state, before = geometry(panes[0]).scale;
  view.zoom = Math.min(MOST_ZOOM, Math.max(1, view.zoom * factor));
  const after = geometry(panes[0]).scale;
  view.x += (x / before - x / after) / film.width;
  view.y += (y / before - y / after) / film.height;
  soon();
}
function move(x, y) {  // the film, by so many pixels of the screen
  if (!state.film?.picture) return;
  const { film, view } = state, { scale } = geometry(panes[0]);
  view.x -= x / scale / film.width;
  view.y -= y / scale / film.height;
  soon();
}
function fit() {
  Object.assign(state.view, { zoom: 1, x: 0.5, y: 0.5 });
  soon();
}

// Grey values: `level` is shown in the middle between black and white, which are `width` apart.
const blackAndWhite = () => {
  const level = Number($("level").value), width = Number($("width").value);
  return [level - width / 2, level + width / 2];
};
function changeWindow(width, level) {
  for (const [id, by] of [["width", width], ["level", level]]) $(id).value = Number($(id).value) + by;
  soon();
}
const dragging = () => document.querySelector("input[name=drag]:checked").value;
function resetView() {
  $("level").value = 127.5;
  $("width").value = 255;
  fit();
}

// Colours of one map on the scale of all: for each of its 256 values red, green, blue and opacity.
function painted(found, scale) {
  const cut = cutOf(found), strength = Number($("opacity").value), [least, most] = settings.opacities;
  const look = { red: new Float32Array(256), green: new Float32Array(256), blue: new Float32Array(256),
    opacity: new Float32Array(256), over: new Uint8Array(256) };
  for (let i = 0; i < 256; i++) {
    const value = found.lowest + (i / 255) * (found.highest - found.lowest);
    if (value <= cut || state.hidden) continue;
    const share = Math.min(1, Math.max(0, (value - scale.lowest) / (scale.highest - scale.lowest)));
    [look.red[i], look.green[i], look.blue[i]] = colours[Math.floor(255 * share)];
    look.opacity[i] = strength * (least + (most - least) * share);
    look.over[i] = 1;
  }
  return look;
}

function greyCanvas(picture) {
  if (picture.canvas) return picture.canvas;
  const { width, height, grey } = picture, image = new ImageData(width, height), out = image.data;
  for (let i = 0; i < grey.length; i++) {
    out[4 * i] = out[4 * i + 1] = out[4 * i + 2] = grey[i];
    out[4 * i + 3] = 255;
  }
  const canvas = make("canvas", { width, height });
  canvas.getContext("2d").putImageData(image, 0, 0);
  return picture.canvas = canvas;
}

function paint(pane, result, scale) {
  const { film, view } = state, { width, height, ratio, scale: zoomed } = geometry(pane), { canvas, scratch } = pane;
  const wide = Math.max(1, Math.round(width * ratio)), tall = Math.max(1, Math.round(height * ratio));
  if (canvas.width !== wide || canvas.height !== tall) Object.assign(canvas, { width: wide, height: tall });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#000";
  context.fillRect(0, 0, wide, tall);
  // The film in pixels of the canvas, and the part of it that is seen.
  const size = zoomed * ratio;
  const left = wide / 2 - view.x * film.width * size, top = tall / 2 - view.y * film.height * size;
  const x0 = Math.max(0, Math.round(left)), x1 = Math.min(wide, Math.round(left + film.width * size));
  const y0 = Math.max(0, Math.round(top)), y1 = Math.min(tall, Math.round(top + film.height * size));
  if (x1 <= x0 || y1 <= y0) return;
  const across = x1 - x0, down = y1 - y0;
  Object.assign(scratch, { width: across, height: down });
  const draft = scratch.getContext("2d", { willReadFrequently: true });
  const read = source => {
    draft.imageSmoothingQuality = "high";
    draft.drawImage(source, left - x0, top - y0, film.width * size, film.height * size);
    return draft.getImageData(0, 0, across, down);
  };
  const enlarged = size * film.width > 1.05 * film.picture.width;
  if (enlarged) wantFull(film);
  const image = read(enlarged && film.full ? film.full : greyCanvas(film.picture)), out = image.data;
  const [black, white] = blackAndWhite(), shade = new Uint8ClampedArray(256);
  for (let i = 0; i < 256; i++) shade[i] = (255 * (i - black)) / Math.max(1, white - black);
  const look = result?.map && painted(result.found, scale), heat = look && read(greyCanvas(result.map)).data;
  const line = ratio > 1 ? 2 : 1, below = at => !look.over[heat[at]], row = 4 * line * across;
  const lining = colours[OUTLINE], strength = Number($("opacity").value);
  for (let y = 0, i = 0; y < down; y++) {
    for (let x = 0; x < across; x++, i += 4) {
      const grey = shade[out[i]], value = heat ? heat[i] : 0;
      if (!look || !look.over[value]) {
        out[i] = out[i + 1] = out[i + 2] = grey;
        continue;
      }
      const edge = (x >= line && below(i - 4 * line)) || (x + line < across && below(i + 4 * line))
        || (y >= line && below(i - row)) || (y + line < down && below(i + row));
      const a = edge ? strength : look.opacity[value];
      out[i] = grey * (1 - a) + a * (edge ? lining[0] : look.red[value]);
      out[i + 1] = grey * (1 - a) + a * (edge ? lining[1] : look.green[value]);
      out[i + 2] = grey * (1 - a) + a * (edge ? lining[2] : look.blue[value]);
    }
  }
  context.putImageData(image, x0, y0);
  if (!result || result.found.absent || !$("draw").checked || state.hidden) return;
  for (const [colour, thick] of [["rgba(0, 0, 0, 0.6)", 4], [settings.box, 2]]) {
    context.strokeStyle = colour;
    context.lineWidth = thick * ratio;
    for (const [x, y, w, h] of boxesOf(film, result))
      context.strokeRect(left + x * size, top + y * size, w * size, h * size);
  }
}

function captionOf(pane, row, model, result) {
  const by = make("span", { className: "of", textContent: settings.models[model].name });
  const name = settings.models.length > 1 ? [by] : [];
  if (!row) return [make("span", { className: "soft", textContent: "Type a phrase" +
    (state.mode === "phrases" && asked().length ? " to compare with." : ".") })];
  const title = make("b", { textContent: `“${textOf(row)}”` });
  if (!result) return [title, ...name];
  const boxes = boxesOf(state.film, result), told = verdict(result.found);
  told.append(make("span", { textContent: result.found.absent ? "judged absent, no boxes drawn"
    : boxes.length ? counted(boxes.length, "box", "boxes") : "nothing above the threshold" }));
  return [title, ...name, told];
}

// Everything that is seen follows from the state; this draws it again.
function draw() {
  const { film } = state;
  $("main").classList.toggle("full", Boolean(state.films.length));
  $("films").hidden = $("stage").hidden = !state.films.length;
  $("hint").textContent = state.films.length ? "Add films" : "Drop films here";
  $("all").hidden = state.films.length < 2;
  $("all").textContent = `Find in all ${state.films.length}`;
  for (const one of state.films) tell(one);
  drawRows();
  const ready = Boolean(film?.picture), wanted = wantedPanes(), scale = ready ? scaleOf(film) : null;
  const results = wanted.map(({ row, model }) => (ready && row ? answerOf(film, row, model) : null));
  panes.forEach((pane, i) => {
    pane.element.hidden = i >= wanted.length;
    if (i >= wanted.length) return;
    pane.caption.replaceChildren(...(ready ? captionOf(pane, wanted[i].row, wanted[i].model, results[i]) : []));
    pane.canvas.classList.toggle("zoomed", state.view.zoom > 1);
    pane.canvas.classList.toggle("windowed", dragging() === "window");
  });
  $("panes").classList.toggle("two", wanted.length > 1);
  $("panes").classList.toggle("unread", !ready);
  const black = blackAndWhite().map(value => number(value, 0));
  $("threshold-is").textContent = number(threshold());
  $("opacity-is").textContent = `${Math.round(100 * $("opacity").value)} %`;
  $("level-is").textContent = number(Number($("level").value), 0);
  $("width-is").textContent = $("width").value;
  $("level").setAttribute("aria-valuetext", `black ${black[0]}, white ${black[1]} of 255`);
  $("save").disabled = !results.some(one => one?.map);
  $("csv").disabled = $("json").disabled = !state.films.some(one => one.answers.some(answers => answers.size));
  $("bar").classList.toggle("without", !results.some(Boolean));  // its room stays, so that the film does not move
  $("size").textContent = ready ? `${film.name}, ${film.width} × ${film.height} pixels` : "";
  drawScale(scale, results.filter(Boolean));
  drawTables(wanted, results);
  drawWarnings(film);
  if (!ready) return;
  clamp();
  $("zoom").textContent = `${Math.round(100 * geometry(panes[0]).scale)} %`;
  wanted.forEach(({ row, model }, i) => {
    paint(panes[i], results[i], scale);
    panes[i].canvas.setAttribute("aria-label", results[i]
      ? `The film with the map of “${textOf(row)}” by ${settings.models[model].name}, ` +
        `${counted(boxesOf(film, results[i]).length, "box", "boxes")}; the table “Boxes” lists them` : "The film");
  });
}
let waiting = 0;
const soon = () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(draw); };

function drawScale(scale, results) {
  if (!scale) return;
  $("lowest").textContent = short(scale.lowest);
  $("highest").textContent = short(scale.highest);
  const share = value => (100 * (value - scale.lowest)) / (scale.highest - scale.lowest);
  const cuts = results.map(({ found }) => cutOf(found));
  $("scale").replaceChildren(...cuts.map((cut, i) => {
    const mark = make("i", { title: `threshold ${short(cut)}` });
    mark.style.left = `${share(cut)}%`;
    return mark;
  }));
  const marks = cuts.map(short).join(" and ");
  $("scale").setAttribute("aria-label",
    `Colours from ${short(scale.lowest)} to ${short(scale.highest)}; threshold at ${marks}`);
  const calibrated = results.some(({ found }) => found.calibrated);
  $("range").textContent = `One scale for all maps of this film; threshold at ${marks}. Some place is always the `
    + (calibrated ? "highest: whether the finding is there is said by “present”."
      : "highest: without calibration no number says whether the finding is there.") + howMapsAreMade();
}

function howMapsAreMade() {
  const one = settings.models[models()[0]], told = [];
  if (one.sharpen) told.push("sharpened");
  if (one.windows > 1) told.push(`joined from ${one.windows} x ${one.windows} windows`);
  return (told.length ? ` Maps are ${told.join(" and ")}.` : "")
    + (one.prune ? " Prompts are asked without words that do not say what or where." : "");
}

const LISTED = 12;  // boxes in a table; all of them are drawn and saved
function drawTables(wanted, results) {
  const tables = wanted.map(({ row, model }, i) => {
    if (!results[i]) return null;
    const { found } = results[i], boxes = boxesOf(state.film, results[i]), exact = found.threshold === threshold();
    if (!boxes.length) return null;
    const by = settings.models.length > 1 ? `, ${settings.models[model].name}` : "";
    const head = make("tr", {}, ...["Box", "x", "y", "width", "height", "score"].map(name =>
      Object.assign(make("th", { textContent: name }), { scope: "col" })));
    const rows = boxes.slice(0, LISTED).map((box, k) => make("tr", {},
      Object.assign(make("th", { textContent: k + 1 }), { scope: "row" }),
      ...[...box, exact ? short(found.scores[k]) : ""].map(value => make("td", { textContent: value }))));
    const about = `“${found.prompt}”${by}: similarity ${number(found.similarity, 3)}; boxes above `
      + `${short(cutOf(found))} in original pixels${found.absent ? ", not drawn, for it is judged absent" : ""}`;
    return make("table", {}, make("caption", { textContent: about }),
      make("thead", {}, head), make("tbody", {}, ...rows));
  }).filter(Boolean);
  $("places").hidden = !tables.length;
  $("tables").replaceChildren(...tables);
}

function drawWarnings(film) {
  const of = models().map(model => film?.warnings?.[model]).find(Boolean);
  const drawn = models().filter(model => settings.models[model].drawings).length;
  const which = models().length < 2 ? "This model was" : drawn > 1 ? "Both models were" : "One of the models was";
  $("drawings").textContent = of ? `${sentence(of)}.` : drawn
    ? `${which} trained on drawings of chests (phantoms) alone, on no image of a patient.` : "";
}

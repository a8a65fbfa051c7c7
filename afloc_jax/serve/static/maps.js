// What is found: questions for maps, the boxes above a threshold, and the scale that maps share.

// The phrases that a film still lacks, by model. What is needed: a "map", any "answer", or one that is "exact", with
// boxes of the server at this very threshold.
function missing(film, need = "map") {
  const lacks = answer => !answer || (need === "map" && !answer.map)
    || (need === "exact" && answer.found.threshold !== threshold());
  return models().map(model => [model, texts().filter(text => lacks(film.answers[model].get(text)))])
    .filter(([, wanted]) => wanted.length);
}

async function answer(film, signal, need = "map") {
  for (const [model, wanted] of missing(film, need)) {
    const query = [...wanted.map(text => ["prompt", text]), ["threshold", threshold()], ["model", model + 1]];
    let content;
    try {
      content = await ask("localize", query, film, signal);
    } catch (error) {
      throw Object.assign(error, { film });
    }
    if (!film.picture && recent.includes(film)) await take(film, content, signal);
    (film.warnings ??= [])[model] = content.warning;
    film.spacing = content.mm_per_pixel;
    Object.assign(film, { width: content.width, height: content.height });
    const maps = recent.includes(film) ? await Promise.all(content.prompts.map(found => pixels(found.heatmap))) : [];
    signal.throwIfAborted();
    content.prompts.forEach((found, i) => {
      delete found.heatmap;
      const kept = { ...found, threshold: content.threshold, calibrated: content.calibrated };
      film.answers[model].set(wanted[i], { found: kept, map: maps[i] ?? null });
    });
    if (!film.thumbnail) thumbnail(film, await pixels(content.picture));
    film === state.film ? draw() : tell(film);
  }
}

function find() {
  const { film } = state;
  if (!film) return complain("Choose a film first.", $("file"));
  if (!texts().length) return complain("Type what to look for, e.g. small left pleural effusion.", state.rows[0].input);
  if (film.error) return complain(film.error);
  return during("Looking …", async signal => {
    await read(film, signal);
    await answer(film, signal);
    draw();
    const captions = [...document.querySelectorAll("figcaption")].filter(one => one.offsetParent);
    $("said").textContent = captions.map(one => [...one.querySelectorAll(":scope > b, :scope > span, .verdict > span")]
      .map(part => part.textContent).join(", ")).join("; ");
    if (phoneSized()) $("panes").scrollIntoView({ block: "nearest" });  // the phrases are below
    return `${counted(texts().length, "phrase", "phrases")} done.`;
  });
}

// All films, while the visitor looks at one: a question about that one goes before, and the others go on after it.
let allWanted = false;
function findInAll() {
  if (!texts().length) return complain("Type what to look for, e.g. small left pleural effusion.", state.rows[0].input);
  if (!allWanted) background.add(findInNext);
  allWanted = true;
}
async function findInNext(signal) {
  const read = state.films.filter(film => !film.error), left = read.filter(film => missing(film, "answer").length);
  if (left.length) {
    $("status").textContent = `Looking: film ${read.length - left.length + 1} of ${read.length} …`;
    try {
      await answerOrFail(left[0], signal, "answer");
      return background.add(findInNext);
    } catch (error) {
      if (signal.aborted) throw error;  // it is asked again
      complain(named(error, error.film));
    }
  } else $("status").textContent = doneWith(state.films);
  allWanted = false;
  draw();
}
async function answerOrFail(film, signal, need) {
  try {
    await answer(film, signal, need);
  } catch (error) {
    if (!unreadable(error)) throw error;
    fail(film, error);  // the others go on
  }
}
function doneWith(films) {
  const failed = films.filter(film => film.error).length;
  return `${counted(films.length - failed, "film", "films")} done${failed ? `, ${failed} not read` : ""}.`;
}

const cutOf = found => found.lowest + ((threshold() + 1) / 2) * (found.highest - found.lowest);

// One scale for all maps of a film that can be compared: from the lowest threshold to the highest value.
function scaleOf(film) {
  const all = asked().flatMap(row => models().map(model => answerOf(film, row, model)?.found)).filter(Boolean);
  if (!all.length) return null;
  const lowest = Math.min(...all.map(cutOf)), highest = Math.max(...all.map(found => found.highest));
  return { lowest, highest: Math.max(highest, lowest + 1e-6) };
}

// Connected places (along sides) above the threshold, the largest first, in original pixels. At the threshold that the
// server was asked with, its boxes: they are from the map at original size and before rounding to 256 values.
function boxesOf(film, { found, map }) {
  if (found.threshold === threshold() || !map) return found.boxes;
  if (map.limit === threshold()) return map.boxes;
  const { width, height, grey } = map, limit = ((threshold() + 1) / 2) * 255;
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
  const factors = [film.width / width, film.height / height];
  map.limit = threshold();
  return map.boxes = parts.sort((a, b) => b.size - a.size).map(({ edges }) => {
    const [x, y, right, lower] = edges.map((edge, i) => Math.round(edge * factors[i % 2]));
    return [x, y, right - x, lower - y];
  });
}

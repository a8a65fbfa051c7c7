// The list of films. Nothing of them is kept on the server: every question brings the file again.

function openFiles(files) {
  const added = [...files].slice(0, MOST_FILMS - state.films.length).map(file => {
    const film = { file, name: file.name || "image", picture: null, full: null,
      answers: settings.models.map(() => new Map()) };
    film.tile = tileOf(film);
    state.films.push(film);
    $("strip").append(film.tile);
    seen.observe(film.tile);
    return film;
  });
  if (!files.length) return;
  if (!added.length) return complain(`At most ${MOST_FILMS} films are open at a time; close some.`);
  select(added[0]);
}

// The files that are dropped, also those in folders.
async function dropped(transfer) {
  const entries = [...transfer.items].map(item => item.webkitGetAsEntry?.()), files = [];
  if (!entries.some(entry => entry?.isDirectory)) return transfer.files;
  while (entries.length && files.length < MOST_FILMS) {
    const entry = entries.shift();
    if (!entry || entry.name.startsWith(".")) continue;
    if (entry.isFile) {
      files.push(await new Promise((done, failed) => entry.file(done, failed)));
      continue;
    }
    const reader = entry.createReader();
    for (let some = [0]; some.length;) {  // at most 100 at a time
      some = await new Promise((done, failed) => reader.readEntries(done, failed));
      entries.push(...some);
    }
  }
  return files.sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
}

function tileOf(film) {
  const picture = make("canvas", { width: 1, height: 1 });
  const open = make("button", { type: "button", className: "film", onclick: () => select(film) }, picture,
    make("span", { className: "name", textContent: film.name }), make("span", { className: "told" }));
  const close = make("button", { type: "button", className: "close", textContent: "×",
    onclick: () => closeFilm(film) });
  close.setAttribute("aria-label", `Close ${film.name}`);
  return Object.assign(make("li", {}, open, close), { film });
}

// Thumbnails are asked for when they come into sight.
const seen = new IntersectionObserver(entries => entries.forEach(({ isIntersecting, target }) => {
  if (!isIntersecting) return;
  seen.unobserve(target);
  const { film } = target;
  background.add(async signal => {
    if (film.thumbnail || film.error || !state.films.includes(film)) return;
    try {
      const content = await ask("picture", [["side", 192]], film, signal);
      thumbnail(film, await pixels(content.picture));
    } catch (error) {
      if (unreadable(error)) fail(film, error);
    }
  });
}));
function thumbnail(film, { width, height, grey }) {
  const image = new ImageData(width, height), canvas = film.tile.querySelector("canvas");
  for (let i = 0; i < grey.length; i++) image.data.fill(grey[i], 4 * i, 4 * i + 3), image.data[4 * i + 3] = 255;
  const whole = make("canvas", { width, height });
  whole.getContext("2d").putImageData(image, 0, 0);
  const scale = Math.min(1, 192 / Math.max(width, height));
  Object.assign(canvas, { width: Math.max(1, width * scale), height: Math.max(1, height * scale) });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(whole, 0, 0, canvas.width, canvas.height);
  film.thumbnail = true;
}
function fail(film, error) {
  film.error = named(error, film);
  tell(film);
}

// What stands below a thumbnail: presence or score of the phrase that is shown.
function tell(film) {
  const found = shown() && answerOf(film, shown(), state.model)?.found;
  const told = film.error ? "not read" : !found ? "" : found.present === null ? `score ${short(found.highest)}`
    : `present ${number(found.present)}`;
  film.tile.querySelector(".told").textContent = told;
  film.tile.classList.toggle("there", Boolean(found && found.present !== null && !found.absent));
}

function select(film) {
  if (film.error) {
    running?.abort();
    running = null;
    document.body.classList.remove("busy");
  }
  state.film = film;
  Object.assign(state.view, { zoom: 1, x: 0.5, y: 0.5 });
  for (const one of state.films) {
    const button = one.tile.querySelector(".film");
    one === film ? button.setAttribute("aria-current", "true") : button.removeAttribute("aria-current");
  }
  film.tile.scrollIntoView({ block: "nearest", inline: "nearest" });
  $("status").textContent = $("said").textContent = "";
  $("error").textContent = film.error ?? "";
  forgetOthers(film);
  $("probabilities").hidden = true;
  $("classes-note").textContent = "";
  draw();
  if (film.error) return;
  if (texts().length) return find();
  return during("Reading the film …", async signal => {
    await read(film, signal);
    if (!phoneSized()) state.rows[0].input.focus();
    return "Type a phrase and press Enter.";
  });
}
const step = by => {
  const next = state.films[state.films.indexOf(state.film) + by];
  if (next) select(next);
};

// Pictures and maps of few films are kept. Those of the others are asked for again.
const recent = [];
function forgetOthers(film) {
  const at = recent.indexOf(film);
  if (at >= 0) recent.splice(at, 1);
  recent.unshift(film);
  for (const old of recent.splice(KEPT)) {
    old.picture = old.full = null;
    for (const answers of old.answers) for (const answer of answers.values()) answer.map = null;
  }
}

function closeFilm(film) {
  const at = state.films.indexOf(film);
  state.films.splice(at, 1);
  film.tile.remove();
  const left = state.films[Math.min(at, state.films.length - 1)];
  if (state.film === film) {
    running?.abort();
    state.film = null;
    $("error").textContent = $("status").textContent = "";
    if (left) select(left);
  }
  (left ? left.tile.querySelector(".film") : $("file")).focus();
  draw();
}

async function read(film, signal) {
  if (film.picture) return;  // it is not there yet where an earlier question was cut short
  try {
    await take(film, await ask("picture", [["model", state.model + 1]], film, signal), signal);
  } catch (error) {
    if (unreadable(error)) fail(film, error);
    throw Object.assign(error, { film });
  }
}
async function take(film, content, signal) {
  const picture = await pixels(content.picture);
  signal.throwIfAborted();  // another film may have been opened meanwhile
  Object.assign(film, { picture, width: content.width, height: content.height });
  film.warnings ??= [];
  film.warnings[state.model] = content.warning;
  if ("mm_per_pixel" in content) film.spacing = content.mm_per_pixel;
  if (!film.thumbnail) thumbnail(film, picture);
  draw();
}

// The film at its original size, where it is enlarged beyond the picture of 1,024 pixels.
function wantFull(film) {
  if (film.full || film.fullWanted || film.width * film.height <= film.picture.width * film.picture.height) return;
  film.fullWanted = true;
  background.add(async signal => {
    film.fullWanted = false;
    if (film !== state.film || film.full) return;
    const content = await ask("picture", [["side", Math.max(film.width, film.height)]], film, signal);
    const image = new Image();
    image.src = content.picture;
    await image.decode();
    if (recent.includes(film)) film.full = image;
    draw();
  }, true);
}

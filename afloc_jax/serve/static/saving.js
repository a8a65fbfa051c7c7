// What can be kept: pictures at the original size, a table of boxes, and all numbers.

function download(blob, name) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
const stem = film => film.name.replace(/\.[^.]*$/, "") || "image";

// The server draws them, because the page has the film at most 1,024 pixels large. Two maps are put side by side.
function savePicture() {
  const { film } = state, scale = scaleOf(film), [black, white] = blackAndWhite();
  const wanted = wantedPanes().filter(({ row, model }) => row && answerOf(film, row, model));
  const same = wanted.length < 2 ? [] : [["lowest", scale.lowest], ["highest", scale.highest]];
  return during("Drawing the picture at its original size …", async signal => {
    const blobs = [];
    const look = [["threshold", threshold()], ["black", black], ["white", white], ["strength", $("opacity").value],
      ["boxes", $("draw").checked ? 1 : 0], ...same];
    for (const { row, model } of wanted)
      blobs.push(await ask("overlay", [["prompt", textOf(row)], ["model", model + 1], ...look], film, signal, "blob"));
    const name = `${stem(film)}.${wanted.length > 1 ? "compared" : "overlay"}.png`;
    download(blobs.length > 1 ? await sideBySide(blobs) : blobs[0], name);
    return `${name} is saved.`;
  });
}
async function sideBySide(blobs) {
  const pictures = await Promise.all(blobs.map(blob => createImageBitmap(blob)));
  const gap = Math.max(4, Math.round(pictures[0].width / 100));
  const canvas = make("canvas", { height: Math.max(...pictures.map(one => one.height)),
    width: pictures.reduce((sum, one) => sum + one.width + gap, -gap) });
  const context = canvas.getContext("2d");
  context.fillStyle = "#101012";  // the ground of the captions
  context.fillRect(0, 0, canvas.width, canvas.height);
  let left = 0;
  for (const one of pictures) {
    context.drawImage(one, left, 0);
    left += one.width + gap;
  }
  const blob = await new Promise(done => canvas.toBlob(done));
  if (!blob) throw new Error("two pictures of this size are too much for this browser; save each of them alone");
  return blob;
}

// The answers of films that were asked, with the boxes of the server at the threshold of now.
async function exactly(what, write) {
  const films = state.films.filter(film => !film.error && models().some(model => film.answers[model].size));
  if (!texts().length || !films.length) return complain("Look for a phrase first.", state.rows[0].input);
  await during(what, async signal => {
    for (const [i, film] of films.entries()) {
      $("status").textContent = `${what} film ${i + 1} of ${films.length}`;
      await answerOrFail(film, signal, "exact");
    }
    draw();
    return write(films.filter(film => !film.error));
  });
}
function imagesOf(films, model) {  // as localize.json has them
  return films.map(film => ({
    image: film.name, height: film.height, width: film.width,
    ...(film.spacing && { mm_per_pixel: film.spacing }),
    prompts: texts().map(text => {
      const { found } = film.answers[model].get(text);
      return { prompt: found.prompt, similarity: found.similarity, present: found.present, absent: found.absent,
        boxes: found.boxes, scores: found.scores, threshold: found.threshold, given: text,
        unknown_words: found.unknown_words, truncated: found.truncated };
    }),
    ...(film.warnings?.[model] && { warning: film.warnings[model] }),
  }));
}

const saveNumbers = () => exactly("Collecting the numbers …", films => {
  const parts = models().map(model => {
    const { name, weights_sha256, trained_on, calibrated, sharpen, prune, windows } = settings.models[model];
    return { model: { folder: name, weights_sha256, trained_on }, map: "original", compatible: false, sharpen, prune,
      windows, calibrated, images: imagesOf(films, model), failed: state.films.map(film => film.error).filter(Boolean) };
  });
  const content = parts.length > 1 ? { models: parts } : parts[0];
  download(new Blob([`${JSON.stringify(content, null, 2)}\n`], { type: "application/json" }), "localize.json");
  return `localize.json is saved: ${counted(films.length, "film", "films")}.`;
});

const COLUMNS = ["image", "prompt", "present", "x", "y", "width", "height", "score",
  "mm_per_pixel_x", "mm_per_pixel_y"];
const cell = value => (/[",\r\n]/.test(value ?? "") ? `"${String(value).replaceAll('"', '""')}"` : value ?? "");
const saveTable = () => exactly("Collecting the boxes …", films => {
  const two = models().length > 1, rows = [two ? [...COLUMNS, "model"] : COLUMNS];
  for (const model of models())
    for (const film of imagesOf(films, model))
      for (const found of film.prompts.filter(one => !one.absent))
        found.boxes.forEach((box, k) => rows.push([film.image, found.given, found.present, ...box, found.scores[k],
          ...(film.mm_per_pixel ?? ["", ""]), ...(two ? [settings.models[model].name] : [])]));
  download(new Blob([rows.map(row => `${row.map(cell).join(",")}\n`).join("")], { type: "text/csv" }), "boxes.csv");
  const boxes = counted(rows.length - 1, "box", "boxes");
  return `boxes.csv is saved: ${boxes} in ${counted(films.length, "film", "films")}.`;
});

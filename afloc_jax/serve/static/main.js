// Hands: what is clicked, typed, dragged and dropped.

function begin() {
  const names = settings.models.map(({ name }) => name);
  document.title = `afloc: ${names.join(" and ")}`;
  $("model").textContent = names[0];
  $("one-model").hidden = names.length > 1;
  $("which-label").hidden = $("models-mode").hidden = names.length < 2;
  $("models-mode").hidden = names.length < 2;
  $("which").append(...names.map((name, i) => make("option", { value: i, textContent: name })));
  const sets = Object.keys(settings.sets).filter(name => classesOf(name).length);
  $("sets").append(...sets.map(name => make("option", { value: name, textContent: `the prompt set ${name}` })));
  $("sets").value = "chest";  // asks for other classes as the first option does
  options($("pick-set"), sets);
  $("picker").hidden = !sets.length;
  if (sets.length) pickSet();
  showKnown();
  $("sample").hidden = !settings.sample;
  $("threshold").value = settings.threshold;
  const some = settings.colours.filter((_, i) => i % 15 === 0).join(",");
  $("scale").style.background = `linear-gradient(to right, ${some})`;
  $("panes").append(...panes.map(pane => pane.element));
  // The address says nothing about where an image goes: a tunnel to another machine has an address of this one.
  $("goes").textContent = `They go to afloc serve on ${settings.machine}, which stores nothing.`;
  $("where").textContent = `Images and phrases go to the machine ${settings.machine}, on which afloc serve runs. ` +
    "Images are in its memory until they are answered, phrases until it ends; it writes them to no disk and no log. " +
    "A tunnel or proxy in between sees them too" +
    (location.protocol.startsWith("https") ? "." : ", for this connection is not encrypted.");
  addRow();
  draw();
}

const on = (id, kind, work) => $(id).addEventListener(kind, work);
for (const id of ["opacity", "threshold", "draw", "level", "width"]) on(id, "input", soon);
on("file", "change", event => { openFiles(event.target.files); event.target.value = ""; });
on("sample", "click", () => {
  const bytes = Uint8Array.from(atob(settings.sample.split(",")[1]), character => character.charCodeAt(0));
  if (!texts().length) settings.sample_phrases.forEach((phrase, i) => {
    (state.rows[i] ?? addRow()).input.value = phrase;
  });
  openFiles([new File([bytes], "drawing.png", { type: "image/png" })]);
});
on("add", "click", () => addRow().input.focus());
on("all", "click", findInAll);
on("ask", "submit", event => { event.preventDefault(); find(); });
on("classify", "submit", event => { event.preventDefault(); classify(); });
on("sets", "change", showKnown);
on("pick-set", "change", pickSet);
on("pick-class", "change", pickClass);
on("use", "click", usePicked);
on("which", "change", event => {
  state.model = Number(event.target.value);
  $("probabilities").hidden = true;
  change();
});
on("modes", "change", event => {
  state.mode = event.target.value;
  $("which").disabled = state.mode === "models";
  if (state.mode === "phrases" && state.rows.length < 2) addRow().input.focus();
  change();
});
function change() {  // another question about the same film
  draw();
  if (state.film && !state.film.error && missing(state.film).length) find();
}
on("save", "click", savePicture);
on("csv", "click", saveTable);
on("json", "click", saveNumbers);
on("in", "click", () => zoom(1.4));
on("out", "click", () => zoom(1 / 1.4));
on("fit", "click", fit);
on("reset", "click", resetView);
for (const one of document.querySelectorAll("input[name=drag]")) one.addEventListener("change", soon);
window.addEventListener("resize", soon);
new ResizeObserver(soon).observe($("panes"));

// Dragging: one pointer moves the film or changes its grey values, two enlarge it.
const pointers = new Map();
for (const { canvas } of panes) {
  canvas.addEventListener("pointerdown", event => {
    pointers.set(event.pointerId, event);
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", event => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const other = [...pointers.values()].find(one => one.pointerId !== event.pointerId);
    pointers.set(event.pointerId, event);
    const x = event.clientX - before.clientX, y = event.clientY - before.clientY;
    if (other) {
      const apart = one => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
      const { left, top, width, height } = canvas.getBoundingClientRect();
      zoom(apart(event) / Math.max(1, apart(before)), (event.clientX + other.clientX) / 2 - left - width / 2,
        (event.clientY + other.clientY) / 2 - top - height / 2);
      move(x / 2, y / 2);
    } else if (dragging() === "window") changeWindow(x / 2, -y / 2);
    else move(x, y);
  });
  for (const kind of ["pointerup", "pointercancel"])
    canvas.addEventListener(kind, event => pointers.delete(event.pointerId));
  canvas.addEventListener("wheel", event => {
    event.preventDefault();
    const { left, top, width, height } = canvas.getBoundingClientRect();
    zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), event.clientX - left - width / 2,
      event.clientY - top - height / 2);
  }, { passive: false });
  canvas.addEventListener("dblclick", fit);
  canvas.addEventListener("keydown", event => {
    const key = event.key.toLowerCase(), STEP = 60;
    const does = { "+": () => zoom(1.4), "=": () => zoom(1.4), "-": () => zoom(1 / 1.4), 0: fit,
      arrowleft: () => move(STEP, 0), arrowright: () => move(-STEP, 0), arrowup: () => move(0, STEP),
      arrowdown: () => move(0, -STEP), pageup: () => step(-1), pagedown: () => step(1),
      w: () => document.querySelector("input[name=drag]:not(:checked)").click(),
      m: () => { state.hidden = true; soon(); } }[key];
    if (!does || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    does();
  });
  for (const kind of ["keyup", "blur"])
    canvas.addEventListener(kind, () => { if (state.hidden) { state.hidden = false; soon(); } });
}

const over = on => event => {
  if (!event.dataTransfer.types.includes("Files")) return;  // text that is dragged into a phrase
  event.preventDefault();
  document.body.classList.toggle("over", on);
  if (event.type === "drop") dropped(event.dataTransfer).then(openFiles);
};
document.addEventListener("dragover", over(true));
document.addEventListener("dragleave", over(false));
document.addEventListener("drop", over(false));
document.addEventListener("paste", event => openFiles(event.clipboardData.files));

begin();

// The phrases that are looked for, and what is said of each.

function addRow(text = "") {
  const row = {};
  row.radio = make("input", { type: "radio", name: "shown", onchange: () => choose(row) });
  row.second = make("input", { type: "radio", name: "second", className: "second", onchange: draw });
  row.input = make("input", { type: "text", value: text, placeholder: "small left pleural effusion",
    autocomplete: "off", maxLength: settings.longest, oninput: draw });
  row.remove = make("button", { type: "button", textContent: "×", onclick: () => removeRow(row) });
  row.note = make("div", { className: "found", hidden: true });
  row.element = make("div", { className: "row" },
    make("div", {}, row.radio, row.second, row.input, row.remove), row.note);
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
  draw();
  state.rows[Math.min(at, state.rows.length - 1)].input.focus();
}
function numberRows() {
  state.rows.forEach((row, i) => {
    row.input.setAttribute("aria-label", `Phrase ${i + 1}`);
    row.radio.setAttribute("aria-label", `Show the map of phrase ${i + 1}`);
    row.second.setAttribute("aria-label", `Show the map of phrase ${i + 1} at the right`);
    row.remove.setAttribute("aria-label", `Remove phrase ${i + 1}`);
  });
  $("add").disabled = state.rows.length >= settings.most;
}
const asked = () => state.rows.filter(row => textOf(row));
const textOf = row => row.input.value.trim();
const texts = () => [...new Set(asked().map(textOf))];
const shown = () => state.rows.find(row => row.radio.checked && textOf(row)) ?? asked()[0];
const second = () => state.rows.find(row => row.second.checked && textOf(row) && row !== shown())
  ?? asked().find(row => row !== shown());
function choose(row) {
  row.radio.checked = true;
  draw();
}

const models = () => (state.mode === "models" ? [0, 1] : [state.model]);  // those that are asked
const answerOf = (film, row, model) => film?.answers[model].get(textOf(row));

// "present 0.83, score 0.63", with a bar of the probability.
function verdict(found) {
  const told = make("p", { className: "verdict" });
  if (found.present === null) {
    told.append(make("span", { textContent: found.calibrated ? "denial: no presence" : "not calibrated" }));
  } else {
    const bar = make("i", { className: "meter" }, make("i"));
    bar.firstChild.style.width = `${100 * found.present}%`;
    told.append(make("span", {}, "present ", make("b", { textContent: number(found.present) }), bar));
    told.classList.toggle("absent", found.absent);
  }
  told.append(make("span", {}, "score ", make("b", { textContent: short(found.highest) })));
  return told;
}

function drawRows() {
  const left = shown(), right = state.mode === "phrases" ? second() : null;
  for (const row of state.rows) {
    row.radio.disabled = row.second.disabled = !textOf(row);
    row.radio.checked = row === left;
    row.second.checked = row === right;
    row.second.hidden = state.mode !== "phrases";
    row.element.classList.toggle("chosen", row === left || row === right);
    const answers = textOf(row) ? models().map(model => [model, answerOf(state.film, row, model)?.found]) : [];
    const lines = answers.filter(([, found]) => found).map(([model, found]) => {
      const line = verdict(found);
      const by = make("span", { className: "of", textContent: settings.models[model].name });
      if (models().length > 1) line.prepend(by);
      return line;
    });
    const found = answers.find(([, one]) => one)?.[1];
    if (found && found.prompt !== textOf(row))
      lines.push(make("p", { className: "soft", textContent: `read as “${found.prompt}”` }));
    for (const warning of new Set(answers.map(([, one]) => one && strange(one)).filter(Boolean)))
      lines.push(make("p", { className: "warning", textContent: warning }));
    row.note.replaceChildren(...lines);
    row.note.hidden = !lines.length;
  }
}

// Phrases of the prompt sets: a text of a list, or a word of each list.

const WORDS = ["severity", "subtype", "location"];
function classesOf(set) {
  return Object.entries(settings.sets[set] ?? {});
}
function listsOf(given) {
  if (Array.isArray(given) || typeof given === "string") return [["Phrase", [given].flat()]];
  if (given?.positive) return [["Phrase", [given.positive].flat()]];
  return WORDS.filter(key => given?.[key]).map(key => [sentence(key),
    [...new Set([...(key === "subtype" ? [] : [""]), ...[given[key]].flat()])]]);
}
const options = (select, values) => select.replaceChildren(...values.map(value =>
  make("option", { value, textContent: value || "(none)" })));
function pickSet() {
  options($("pick-class"), classesOf($("pick-set").value).map(([name]) => name));
  pickClass();
}
function pickClass() {
  const given = settings.sets[$("pick-set").value][$("pick-class").value];
  $("pick-words").replaceChildren(...listsOf(given).map(([name, values]) => {
    const select = make("select", { onchange: showPicked });
    options(select, values);
    return make("label", {}, `${name} `, select);
  }));
  showPicked();
}
const picked = () => [...$("pick-words").querySelectorAll("select")].map(one => one.value).filter(Boolean).join(" ");
function showPicked() {
  $("picked").textContent = picked();
}
function usePicked() {
  const row = state.rows.find(one => !textOf(one)) ?? (state.rows.length < settings.most ? addRow() : shown());
  row.input.value = picked();
  choose(row);
  if (state.film) find();
}

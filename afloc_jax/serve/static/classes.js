// Zero-shot probabilities of classes.

const knownClasses = () => [...$("known").querySelectorAll("input:checked")].map(one => one.value);
function showKnown() {
  const names = classesOf($("sets").value).map(([name]) => name);
  $("known").replaceChildren($("known").firstElementChild, ...names.map((name, i) => make("label", {},
    make("input", { type: "checkbox", value: name, checked: i < 8 }), ` ${name}`)));
  $("known").hidden = !names.length;
}

function classify() {
  const others = $("classes").value.split(",").map(name => name.trim()).filter(Boolean);
  const names = [...new Set([...knownClasses(), ...others])], { film } = state;
  const { name: model } = settings.models[state.model];
  if (!film) return complain("Choose a film first.", $("file"));
  if (!names.length) return complain("Pick or type classes, e.g. pleural effusion, pneumothorax.", $("classes"));
  return during("Estimating …", async signal => {
    await read(film, signal);
    const found = [];
    let calibrated = true;
    for (let at = 0; at < names.length; at += settings.most) {  // so many are answered at once
      const content = await ask("classify", [...names.slice(at, at + settings.most).map(name => ["class", name]),
        ["prompts", $("sets").value], ["model", state.model + 1]], film, signal);
      found.push(...content.classes);
      calibrated = content.calibrated;
    }
    $("probabilities").caption.textContent = settings.models.length > 1 ? `${film.name}, by ${model}` : film.name;
    $("probabilities").tBodies[0].replaceChildren(...found.map(({ class: name, probability, present }) => {
      const bar = make("i");
      bar.style.width = `${100 * probability}%`;
      return make("tr", {}, make("th", { scope: "row", textContent: name }),
        make("td", { className: "bar" }, make("span", {}, bar)), make("td", { textContent: number(probability) }),
        make("td", { textContent: present === null ? "–" : number(present) }));
    }));
    $("classes-note").textContent = [...(calibrated ? [] : ["Presence is not calibrated."]),
      ...found.filter(strange).map(one => `${one.class}: ${strange(one)}`)].join(" ");
    $("probabilities").hidden = false;
    $("probabilities").scrollIntoView({ block: "nearest" });
  });
}

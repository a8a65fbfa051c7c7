// Questions to the server. One that the visitor waits for goes before pictures that are only nice to have.

async function ask(route, texts, film, signal, as = "json") {
  const query = new URLSearchParams(texts), dicom = /\.(dcm|dicom)$/i.test(film.name);
  if (film.file.size > settings.largest)
    throw Object.assign(new Error(`Image: the file is too large; at most ${settings.largest >> 20} MiB are read`),
      { status: 413 });
  let answer;
  try {  // the bytes and nothing else: the name of the file stays in the browser
    answer = await fetch(`${route}?${query}`, { method: "POST", body: film.file, signal,
      headers: { "Content-Type": dicom ? "application/dicom" : "application/octet-stream",
        ...(token && { "Authorization": `Bearer ${token}` }) } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("afloc serve does not answer; is it still running?");
  }
  if (answer.ok) return as === "json" ? answer.json() : answer.blob();
  const content = await answer.json().catch(() => ({ error: `status ${answer.status}` }));
  throw Object.assign(new Error(content.error), { status: answer.status });
}
// Whether an error is about the file itself, not about a phrase.
const unreadable = error => error.status === 413 || (error.status === 400 && /^image(\.dcm)?:/i.test(error.message));
const named = (error, film) => sentence(error.message).replace(/^Image(\.dcm)?:/, () => `${film.name}:`);

let running = null;
async function during(what, work) {  // one question at a time; a newer one replaces the older
  running?.abort();
  background.pause();
  const mine = running = new AbortController(), { film } = state;
  $("error").textContent = "";
  $("status").textContent = what;
  document.body.classList.add("busy");
  try {
    const done = await work(mine.signal);
    if (running === mine) $("status").textContent = done ?? "";
    return true;
  } catch (error) {
    if (running !== mine) return false;
    $("status").textContent = "";
    $("error").textContent = named(error, error.film ?? film);
    return false;
  } finally {
    if (running === mine) {
      running = null;
      document.body.classList.remove("busy");
      background.next();
    }
  }
}

// What nobody waits for, one at a time: thumbnails, the film at its original size where it is enlarged, all films.
const background = {
  wanted: [], now: null,
  add(work, first = false) {
    first ? this.wanted.unshift(work) : this.wanted.push(work);
    this.next();
  },
  pause() {
    if (!this.now) return;
    this.now.abort.abort();
    this.wanted.unshift(this.now.work);  // again later
    this.now = null;
  },
  async next() {
    if (this.now || running || !this.wanted.length) return;
    const mine = this.now = { work: this.wanted.shift(), abort: new AbortController() };
    await mine.work(mine.abort.signal).catch(() => {});  // who looks at the film will be told why
    if (this.now === mine) {
      this.now = null;
      this.next();
    }
  },
};

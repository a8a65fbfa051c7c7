// Uses the page as a visitor does, in Chromium, and prints what was seen as JSON.
//     node browser.mjs '{"library": ..., "chromium": ..., "profile": ..., "address": ..., "image": ..., ...}'
import fs from "node:fs";
import { createRequire } from "node:module";

const given = JSON.parse(process.argv[2]);
const require = createRequire(`${given.library}/`);
const { chromium } = require("playwright-core");
const axe = fs.readFileSync(require.resolve("axe-core"), "utf8");
const seen = { requests: [], problems: [], violations: [] };
const flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"];
const context = await chromium.launchPersistentContext(given.profile, { executablePath: given.chromium, args: flags,
  acceptDownloads: true, viewport: { width: 1280, height: 860 }, timeout: 60000 });
context.setDefaultTimeout(30000);
setTimeout(() => process.exit(3), given.seconds * 1000).unref();

const text = (page, selector) => page.locator(selector).textContent();
const canvas = page => page.locator(".film-view").first().evaluate(one => one.toDataURL());
const changed = (page, before) => page.waitForFunction(
  old => document.querySelector(".film-view").toDataURL() !== old, before);
const unchanged = (page, before) => page.waitForFunction(
  old => document.querySelector(".film-view").toDataURL() === old, before);
const ready = page => page.locator("#size:not(:empty)").waitFor();
const done = (page, what) => page.waitForFunction(
  wanted => document.getElementById("status").textContent.includes(wanted), what);
const shot = (page, name) => given.pictures
  && page.screenshot({ path: `${given.pictures}/${name}.png`, fullPage: true });
async function open(address = given.address) {
  const page = await context.newPage();
  page.on("request", request => seen.requests.push(request.url()));
  page.on("pageerror", error => seen.problems.push(error.message));
  page.on("console", message => message.type() === "error" && seen.problems.push(message.text()));
  await page.goto(address);
  return page;
}
async function saved(page, start) {
  const [download] = await Promise.all([page.waitForEvent("download"), start()]);
  return { name: download.suggestedFilename(), data: fs.readFileSync(await download.path()).toString("base64") };
}
const drop = (page, data, name) => page.evaluate(([base64, called]) => {
  const bytes = Uint8Array.from(atob(base64), character => character.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], called));
  for (const kind of ["dragover", "drop"])
    document.body.dispatchEvent(new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true }));
}, [data, name]);

// What axe-core finds: wide and on a phone, light and dark.
async function look(page, name) {
  const before = page.viewportSize();
  for (const [width, height] of [[1280, 800], [390, 844]])
    for (const colorScheme of ["light", "dark"]) {
      await page.setViewportSize({ width, height });
      await page.emulateMedia({ colorScheme });
      await shot(page, `${name}_${width}_${colorScheme}`);
      await page.evaluate(axe);
      const found = await page.evaluate(async () => (await axe.run()).violations
        .map(one => `${one.impact}: ${one.id}: ${one.nodes[0].html}`));
      seen.violations.push(...found.map(one => `${name}, ${width}, ${colorScheme}: ${one}`));
    }
  await page.emulateMedia({ colorScheme: "light" });
  await page.setViewportSize(before);
}

async function withMouse() {
  const page = await open(), image = fs.readFileSync(given.image).toString("base64");
  seen.where = await text(page, "#where");
  await look(page, "empty");
  await drop(page, btoa("not an image"), "notes.txt");
  await page.locator("#error:not(:empty)").waitFor();
  seen.refused = await text(page, "#error");
  await drop(page, image, "film.one.png");
  await ready(page);
  seen.size = await text(page, "#size");
  const bare = await canvas(page);
  await page.getByLabel("Phrase 1", { exact: true }).fill("small left effusion");
  await page.getByRole("button", { name: "Find", exact: true }).click();
  await done(page, "1 phrase done");
  const found = await canvas(page);
  await page.locator("#opacity").fill("0");
  await page.locator("#draw").uncheck();
  await unchanged(page, bare);
  await page.locator("#opacity").fill("1");
  await page.locator("#draw").check();
  await unchanged(page, found);
  await page.locator("#threshold").fill("0.9");
  await changed(page, found);
  seen.moved = found !== bare;
  seen.said = await text(page, "#said");
  const before = await canvas(page);
  await page.locator(".film-view").first().hover();
  await page.mouse.wheel(0, -400);
  await changed(page, before);
  await page.mouse.down();
  await page.mouse.move(200, 300);
  await page.mouse.up();
  await page.getByRole("button", { name: "Fit" }).click();
  await unchanged(page, before);
  await page.locator("#width").fill("60");
  await changed(page, before);
  await page.getByRole("button", { name: "Reset" }).click();
  await unchanged(page, before);
  seen.picture = await saved(page, () => page.getByRole("button", { name: "Save picture" }).click());
  seen.numbers = await saved(page, () => page.getByRole("button", { name: "JSON" }).click());
  await page.getByRole("button", { name: "Add a phrase" }).click();
  await page.getByLabel("Phrase 2", { exact: true }).fill("nodule");
  await page.getByLabel("Phrase 2", { exact: true }).press("Enter");
  await done(page, "2 phrases done");
  await page.getByRole("radio", { name: "Two models" }).check();
  await done(page, "2 phrases done");
  seen.captions = await page.locator("figcaption:visible .of").allTextContents();
  await page.getByRole("radio", { name: "Two phrases" }).check();
  await page.waitForFunction(() => document.querySelectorAll("figcaption b").length >= 2);
  seen.compared = await page.locator("figcaption > b").allTextContents();
  seen.table = await saved(page, () => page.getByRole("button", { name: "CSV" }).click());
  seen.pair = await saved(page, () => page.getByRole("button", { name: "Save picture" }).click());
  await page.getByText("Probabilities of classes").click();
  seen.set = await page.getByLabel("Asked by").inputValue();
  await page.getByLabel("pneumonia", { exact: true }).check();
  for (const name of await page.locator("#known input:checked:not([value=pneumonia])").evaluateAll(
    boxes => boxes.map(one => one.value))) await page.getByLabel(name, { exact: true }).uncheck();
  await page.getByLabel("Other classes").fill("edema");
  await page.getByRole("button", { name: "Estimate" }).click();
  await page.locator("#probabilities").waitFor();
  seen.classes = await page.locator("#probabilities tbody th").allTextContents();
  await look(page, "full");
  await page.getByText("Pick a phrase").click();
  await page.getByLabel("Severity").selectOption("mild");
  await page.getByLabel("Location").selectOption("in the right upper lobe");
  seen.picked = await text(page, "#picked");
  await page.getByRole("button", { name: "Look for it" }).click();
  await done(page, "3 phrases done");
}

async function withManyFilms() {
  const page = await open();
  await page.setViewportSize({ width: 1280, height: 800 });
  await page.getByRole("button", { name: "Try it" }).click();
  await done(page, "2 phrases done");
  seen.fold = await page.evaluate(() => ({ height: document.documentElement.scrollHeight,
    below: [".film-view", "#phrases input[type=text]", "figcaption .verdict", "#scale", "#save"].filter(one =>
      document.querySelector(one).getBoundingClientRect().bottom > innerHeight) }));
  await page.locator("#file").setInputFiles([given.image, given.other]);
  await done(page, "2 phrases done");
  await page.getByRole("button", { name: "Find in all 3" }).click();
  await done(page, "3 films done");
  seen.told = await page.locator("#strip .told").allTextContents();
  await page.getByRole("button", { name: "Close drawing.png" }).click();
  seen.films = await page.locator("#strip .name").allTextContents();
  await page.locator(".film-view").first().press("PageDown");
  await page.waitForFunction(() => document.getElementById("size").textContent.startsWith("other"));
}

async function withKeysAlone() {
  const page = await open(), reached = [];
  const step = async () => {
    await page.keyboard.press("Tab");
    reached.push(await page.evaluate(() => document.activeElement.id || document.activeElement.ariaLabel
      || document.activeElement.textContent));
    return page.evaluate(() => { // whether the focus can be seen
      const focus = document.activeElement;
      const besides = focus.id === "file" || focus.closest(".choice");
      const style = getComputedStyle(besides ? focus.nextElementSibling : focus);
      return style.outlineStyle !== "none";
    });
  };
  const to = async name => {
    for (let i = 0; i < 20; i++) {
      const visible = await step();
      seen.hiddenFocus ||= !visible && reached.at(-1);
      if (reached.at(-1) === name) return;
    }
    throw new Error(`the keyboard does not reach ${name}: ${reached}`);
  };
  const chosen = page.waitForEvent("filechooser"); // long before the key: Chromium takes a while to hand choosers over
  chosen.catch(() => {}); // what fails first is told
  await to("file");
  await page.bringToFront();
  await page.keyboard.press("Enter");
  await (await chosen).setFiles(given.image);
  await ready(page);
  await page.waitForFunction(() => document.activeElement.ariaLabel === "Phrase 1");
  await page.keyboard.type("nodule");
  await page.keyboard.press("Enter");
  await done(page, "1 phrase done");
  const before = await canvas(page);
  await to("save");
  seen.byKeys = (await saved(page, () => page.keyboard.press("Enter"))).name;
  await page.keyboard.press("Tab");
  await page.keyboard.press("Tab");
  await step();  // the film itself
  await page.keyboard.press("+");
  await changed(page, before);
  await page.keyboard.press("0");
  await unchanged(page, before);
  await to("opacity");
  for (let i = 0; i < 10; i++) await page.keyboard.press("ArrowLeft");
  await changed(page, before);
}

async function onAPhone() {
  const page = await open();
  await page.setViewportSize({ width: 360, height: 740 });
  await page.locator("#file").setInputFiles(given.image);
  await ready(page);
  await page.getByLabel("Phrase 1", { exact: true }).fill("small left effusion");
  await page.keyboard.press("Enter");
  await done(page, "1 phrase done");
  seen.phone = await page.evaluate(() => {
    const view = document.querySelector(".film-view").getBoundingClientRect();
    const hands = document.querySelectorAll("button, input:not(.unseen), .button");
    const visible = [...hands].filter(one => one.offsetParent), tall = one => one.getBoundingClientRect().height;
    return { width: document.documentElement.scrollWidth, inSight: view.top >= 0 && view.bottom <= innerHeight,
      outside: visible.filter(one => one.getBoundingClientRect().right > innerWidth + 1).map(one => one.id),
      small: visible.filter(one => tall(one.closest("label") ?? one) < 16).map(one => one.id) };
  });
  await shot(page, "phone");
}

try {
  for (const walk of [withMouse, withManyFilms, withKeysAlone, onAPhone]) await walk();
  const stranger = await context.newPage();
  const answer = await stranger.goto(given.address.replace(/\?.*/, ""));
  seen.withoutToken = [answer.status(), await answer.json()];
} catch (error) {
  seen.failed = error.stack;
}
await context.close();
console.log(JSON.stringify(seen));

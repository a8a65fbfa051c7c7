// Uses the page as a visitor does, in Chromium, and prints what was seen as JSON.
//     node browser.mjs '{"library": ..., "chromium": ..., "profile": ..., "address": ..., "image": ..., "pictures": ...}'
import fs from "node:fs";
import { createRequire } from "node:module";

const given = JSON.parse(process.argv[2]);
const { chromium } = createRequire(`${given.library}/`)("playwright-core");
const seen = { requests: [], problems: [] };
const flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"];
const context = await chromium.launchPersistentContext(given.profile, { executablePath: given.chromium, args: flags,
  acceptDownloads: true, viewport: { width: 1280, height: 860 }, timeout: 60000 });
context.setDefaultTimeout(30000);
setTimeout(() => process.exit(3), given.seconds * 1000).unref();

const text = (page, selector) => page.locator(selector).textContent();
const canvas = page => page.evaluate(() => document.getElementById("canvas").toDataURL());
const done = (page, what) => page.waitForFunction(
  wanted => document.getElementById("status").textContent.includes(wanted), what);
const shot = (page, name) => given.pictures && page.screenshot({ path: `${given.pictures}/${name}.png`, fullPage: true });
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

async function withMouse() {
  const page = await open(), image = fs.readFileSync(given.image).toString("base64");
  seen.where = await text(page, "#where");
  await drop(page, btoa("not an image"), "notes.txt");
  await page.locator("#error:not(:empty)").waitFor();
  seen.refused = await text(page, "#error");
  await drop(page, image, "film.one.png");
  await page.locator("#view").waitFor();
  seen.size = await text(page, "#size");
  const bare = await canvas(page);
  await page.getByLabel("Phrase 1", { exact: true }).fill("small left effusion");
  await page.getByRole("button", { name: "Find" }).click();
  await done(page, "1 phrase done");
  const found = await canvas(page), drawn = await page.locator("#boxes").innerHTML();
  await page.locator("#opacity").fill("0");
  await page.waitForFunction(before => document.getElementById("canvas").toDataURL() === before, bare);
  await page.locator("#opacity").fill("0.9");
  await page.waitForFunction(before => document.getElementById("canvas").toDataURL() !== before, bare);
  await page.locator("#threshold").fill("0.9");
  await page.waitForFunction(before => document.getElementById("boxes").innerHTML !== before, drawn);
  seen.moved = found !== bare;
  seen.picture = await saved(page, () => page.getByRole("button", { name: "Save picture" }).click());
  seen.numbers = await saved(page, () => page.getByRole("button", { name: "Save numbers" }).click());
  await page.getByRole("button", { name: "Add a phrase" }).click();
  await page.getByLabel("Phrase 2", { exact: true }).fill("nodule");
  await page.getByLabel("Phrase 2", { exact: true }).press("Enter");
  await done(page, "2 phrases done");
  await page.getByLabel("Probabilities (zero-shot)").fill("pneumonia, edema");
  seen.set = await page.getByLabel("Asked by").inputValue();
  await page.getByRole("button", { name: "Estimate" }).click();
  await page.locator("#probabilities").waitFor();
  seen.classes = await page.locator("#probabilities th").allTextContents();
  await shot(page, "desktop");
}

async function withKeysAlone() {
  const page = await open(), reached = [];
  const step = async () => {
    await page.keyboard.press("Tab");
    reached.push(await page.evaluate(() => document.activeElement.id || document.activeElement.ariaLabel
      || document.activeElement.textContent));
    return page.evaluate(() => { // whether the focus can be seen
      const focus = document.activeElement, style = getComputedStyle(focus.id === "file" ? focus.nextElementSibling : focus);
      return style.outlineStyle !== "none";
    });
  };
  const to = async name => {
    for (let i = 0; i < 12; i++) {
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
  await page.locator("#view").waitFor();
  await page.waitForFunction(() => document.activeElement.ariaLabel === "Phrase 1");
  await page.keyboard.type("nodule");
  await page.keyboard.press("Enter");
  await done(page, "1 phrase done");
  const before = await canvas(page);
  await to("opacity");
  for (let i = 0; i < 10; i++) await page.keyboard.press("ArrowLeft");
  await page.waitForFunction(old => document.getElementById("canvas").toDataURL() !== old, before);
  await to("save");
  seen.byKeys = (await saved(page, () => page.keyboard.press("Enter"))).name;
}

async function onAPhone() {
  const page = await open();
  await page.setViewportSize({ width: 360, height: 740 });
  await page.locator("#file").setInputFiles(given.image);
  await page.locator("#view").waitFor();
  await page.getByLabel("Phrase 1", { exact: true }).fill("small left effusion");
  await page.keyboard.press("Enter");
  await done(page, "1 phrase done");
  seen.phone = await page.evaluate(() => {
    const view = document.getElementById("view").getBoundingClientRect();
    const visible = [...document.querySelectorAll("button, input:not(.unseen), .button")].filter(one => one.offsetParent);
    return { width: document.documentElement.scrollWidth, inSight: view.top >= 0 && view.top < innerHeight / 2,
      outside: visible.filter(one => one.getBoundingClientRect().right > innerWidth + 1).map(one => one.id),
      small: visible.filter(one => (one.closest("label") ?? one).getBoundingClientRect().height < 16).map(one => one.id) };
  });
  await shot(page, "phone");
}

try {
  for (const walk of [withMouse, withKeysAlone, onAPhone]) await walk();
  const stranger = await context.newPage();
  const answer = await stranger.goto(given.address.replace(/\?.*/, ""));
  seen.withoutToken = [answer.status(), await answer.json()];
} catch (error) {
  seen.failed = error.stack;
}
await context.close();
console.log(JSON.stringify(seen));

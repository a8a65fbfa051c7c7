// Looks at pages in Chromium, wide and on a phone, in light and dark, and prints what was seen as JSON.
//     node browser.mjs '{"library": ..., "chromium": ..., "profile": ..., "pages": [...], "pictures": ..., "seconds": ...}'
import fs from "node:fs";
import { createRequire } from "node:module";

const given = JSON.parse(process.argv[2]);
const require = createRequire(`${given.library}/`);
const { chromium } = require("playwright-core");
const axe = fs.readFileSync(require.resolve("axe-core"), "utf8");
const flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"];
const context = await chromium.launchPersistentContext(given.profile, { executablePath: given.chromium, args: flags,
  timeout: 60000 });
context.setDefaultTimeout(30000);
setTimeout(() => process.exit(3), given.seconds * 1000).unref();

const seen = [];
try {
  for (const path of given.pages) {
    const page = await context.newPage(), problems = [];
    page.on("pageerror", error => problems.push(error.message));
    await page.goto(`file://${path}`);
    for (const [width, height, colorScheme] of [[1280, 800, "light"], [1280, 800, "dark"], [360, 740, "light"]]) {
      await page.setViewportSize({ width, height });
      await page.emulateMedia({ colorScheme });
      const name = `${path.split("/").at(-2)}_${width}_${colorScheme}`;
      if (given.pictures) await page.screenshot({ path: `${given.pictures}/${name}.png`, fullPage: true });
      const found = await page.evaluate(() => ({
        width: document.documentElement.scrollWidth,
        height: document.documentElement.scrollHeight,
        tables: [...document.querySelectorAll("table")].map(one => Math.round(one.getBoundingClientRect().width)),
        ground: getComputedStyle(document.body).backgroundColor,
      }));
      await page.evaluate(axe);
      const violations = await page.evaluate(async () => (await axe.run()).violations
        .map(one => `${one.impact}: ${one.id}: ${one.nodes[0].html}`));
      seen.push({ path, wanted: width, colorScheme, ...found, violations, problems });
    }
    if (await page.locator("table.sweep").count()) { // as a reader uses it
      await page.setViewportSize({ width: 1280, height: 800 });
      const first = () => page.locator("table.sweep").first().locator("tbody th").allTextContents();
      const before = await first();
      await page.locator("table.sweep thead button").nth(1).press("Enter");
      await page.locator("table.sweep thead [aria-sort=descending]").waitFor();
      await page.locator("table.sweep thead button").nth(1).click();
      await page.locator("table.sweep thead [aria-sort=ascending]").waitFor();
      const rising = await first();
      await page.locator("table.sweep thead button").nth(1).click();
      await page.locator("table.sweep thead [aria-sort=descending]").waitFor();
      await page.locator("table.sweep tbody tr").first().hover();
      const chosen = await page.locator("path.line.chosen").count();
      const [target] = await Promise.all([page.waitForURL("**/report/index.html").then(() => page.url()),
        page.locator("table.sweep tbody a").first().click()]);
      Object.assign(seen.at(-1), { before, rising, chosen, target });
    }
    await page.close();
  }
} catch (error) {
  console.log(JSON.stringify({ failed: error.stack }));
  process.exit(1);
}
await context.close();
console.log(JSON.stringify(seen));

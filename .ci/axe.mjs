// What axe-core finds on pages, in light and dark: prints serious violations, of which one makes the exit status 1.
//     node .ci/axe.mjs FOLDER_OF_PLAYWRIGHT_AND_AXE CHROMIUM PAGE.html...
import fs from "node:fs";
import path from "node:path";
import { createRequire } from "node:module";

const [library, executablePath, ...pages] = process.argv.slice(2);
const require = createRequire(`${path.resolve(library)}/`);
const axe = fs.readFileSync(require.resolve("axe-core"), "utf8");
const browser = await require("playwright-core").chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu"] });
let found = 0;
for (const colorScheme of ["light", "dark"]) {
  const page = await browser.newPage({ viewport: { width: 1280, height: 800 }, colorScheme });
  for (const name of pages) {
    await page.goto(`file://${path.resolve(name)}`);
    await page.evaluate(axe);
    for (const one of await page.evaluate(async () => (await axe.run()).violations)) {
      if (!["serious", "critical"].includes(one.impact)) continue;
      console.error(`${name}, ${colorScheme}: ${one.impact}: ${one.id}: ${one.nodes[0].html}`);
      found += 1;
    }
  }
  await page.close();
}
await browser.close();
console.log(`axe-core looked at ${pages.length} pages: ${found} serious violations`);
process.exit(pages.length && !found ? 0 : 1);

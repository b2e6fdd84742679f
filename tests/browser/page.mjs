// node page.mjs SITE ADDRESS CHROMIUM PICTURE: what the example's page shows, as JSON.
const [site, address, chromium, picture] = process.argv.slice(2);
const { chromium: driver } = (await import(`${site}/node_modules/playwright-core/index.js`)).default;
const browser = await driver.launch({
  executablePath: chromium,
  args: [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
  ],
});
const page = await browser.newPage();
const errors = [];
page.on("pageerror", (error) => errors.push(String(error)));
await page.goto(address);
await page.waitForSelector("body[data-state]", { timeout: 120000 });

const read = () => page.evaluate(() => {
  const canvas = document.getElementById("weights");
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  return {
    state: document.body.dataset.state,
    status: document.getElementById("status").textContent,
    recalled: [...document.querySelectorAll("#recalled tr")].map((row) => ({
      name: row.cells[0].textContent,
      weight: Number(row.cells[1].textContent),
      right: row.classList.contains("right"),
    })),
    drawn: pixels.filter((value, i) => i % 4 === 3 && value > 0).length,
  };
});

const sharp = await read();
await page.selectOption("#name", { label: "textwrap.dedent" });
const other = await read();
await page.fill("#temperature", "0.2");
const warm = await read();
await page.screenshot({ path: picture });
await browser.close();
console.log(JSON.stringify({ errors, sharp, other, warm }));

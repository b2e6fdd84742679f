// node selftest.mjs SITE WHEEL: the wheel's own self-test, in Pyodide.
import { readFileSync } from "node:fs";

const [site, wheel] = process.argv.slice(2);
const { loadPyodide } = await import(`${site}/pyodide/pyodide.mjs`);
const python = await loadPyodide({ packageCacheDir: `${site}/pyodide` });
await python.loadPackage(["numpy", "threadpoolctl", "micropip"]);
python.FS.writeFile(`/tmp/${wheel}`, new Uint8Array(readFileSync(`${site}/${wheel}`)));
const status = await python.runPythonAsync(`
import micropip
await micropip.install("emfs:/tmp/${wheel}")
import ruvector
from ruvector.cli import main
print("backend", ruvector.backend())
main(["selftest"])
`);
process.exit(status);

// Validates the GLB files named on the command line; prints one JSON report per line.
import { readFile } from "node:fs/promises";
import validator from "gltf-validator";

for (const path of process.argv.slice(2)) {
  const report = await validator.validateBytes(new Uint8Array(await readFile(path)), { uri: path });
  console.log(JSON.stringify(report));
}

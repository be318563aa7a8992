// Report what the Khronos validator finds in a .glb: node gltf_validate.mjs FOLDER FILE, where
// FOLDER is one that `npm install --prefix FOLDER gltf-validator` was run for. Prints its JSON.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";

const [folder, file] = process.argv.slice(2);
const { validateBytes } = createRequire(join(resolve(folder), "x.js"))("gltf-validator");
console.log(JSON.stringify(await validateBytes(new Uint8Array(readFileSync(file)))));

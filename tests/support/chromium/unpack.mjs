// Unpacks the Chromium that travels inside an npm package into a folder: `node unpack.mjs FOLDER`,
// after `npm ci` there. `FOLDER/chromium` then starts it. Linux on x86-64 only.
//
// The package has Amazon Linux's NSS beside the browser, so no system package is needed.
import { execFileSync } from "node:child_process";
import { createReadStream, createWriteStream } from "node:fs";
import { chmod, rename, rm, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { pipeline } from "node:stream/promises";
import { createBrotliDecompress } from "node:zlib";

const folder = resolve(process.argv[2] ?? ".");
const packed = join(folder, "node_modules", "@sparticuz", "chromium", "bin");

const START = `#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
export LD_LIBRARY_PATH="$here/lib:$LD_LIBRARY_PATH" FONTCONFIG_PATH="$here"
exec "$here/headless_shell" "$@"
`;

// The package's own names folders of another system; without any font the browser dies.
const FONTS = `<?xml version="1.0" ?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir prefix="relative">fonts</dir>
  <cachedir prefix="xdg">fontconfig</cachedir>
</fontconfig>
`;

async function unpack(name, target) {
  const source = createReadStream(join(packed, name));
  await pipeline(source, createBrotliDecompress(), createWriteStream(join(folder, target)));
}

await unpack("chromium.br", "headless_shell");
await chmod(join(folder, "headless_shell"), 0o755);
for (const name of ["al2023", "swiftshader", "fonts"]) {
  await unpack(`${name}.tar.br`, `${name}.tar`);
  execFileSync("tar", ["-xf", `${name}.tar`, "--no-same-owner"], { cwd: folder, stdio: "inherit" });
  await rm(join(folder, `${name}.tar`));
}
await writeFile(join(folder, "fonts.conf"), FONTS);
// Last and at once: whoever sees it may start it.
await writeFile(join(folder, "chromium.new"), START, { mode: 0o755 });
await rename(join(folder, "chromium.new"), join(folder, "chromium"));

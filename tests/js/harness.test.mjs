// The harness itself: where it looks for the gateway.

import assert from "node:assert/strict";
import { test } from "node:test";
import { targetDirectory } from "./harness/gateway.mjs";

for (const name of ["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET_DIR"]) {
  test(`the gateway is looked for where ${name} has cargo build it`, () => {
    const { CARGO_TARGET_DIR, CARGO_BUILD_TARGET_DIR, ...rest } = process.env;
    assert.equal(targetDirectory({ ...rest, [name]: "/elsewhere/target" }), "/elsewhere/target");
  });
}

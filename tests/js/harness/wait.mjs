// Waiting for a condition with a deadline. No test sleeps for a fixed time: it waits for what must be true.

// FANFARE_TEST_PATIENCE=3 gives a slow machine three times the time, as in the other tests of this repository.
const patience = Number(process.env.FANFARE_TEST_PATIENCE) || 1;

/** A deadline of `ms`, longer where the machine is slow. A test that passes never waits for one. */
export const patient = (ms) => ms * patience;

/** Resolves to the first true value of `condition`, which may be asynchronous; fails after `ms`. */
export async function until(condition, what, ms = 10_000) {
  const deadline = performance.now() + patient(ms); // some tests mock Date
  for (;;) {
    const value = await Promise.resolve().then(condition).catch(() => false);
    if (value) return value;
    if (performance.now() > deadline) throw new Error(`not within ${patient(ms)} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** Resolves to the next event of `type` that `emitter` emits and `wanted` accepts. */
export function next(emitter, type, wanted = () => true, ms = 10_000) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`no ${type} within ${patient(ms)} ms`)), patient(ms));
    const off = emitter.on(type, (value) => {
      if (!wanted(value)) return;
      clearTimeout(timer);
      off();
      resolve(value);
    });
  });
}

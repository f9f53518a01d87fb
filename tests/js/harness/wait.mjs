// Waiting for a condition with a deadline: no test here sleeps for a time and hopes.

/** Resolves to the first true value of `condition`, which may be asynchronous; fails after `ms`. */
export async function until(condition, what, ms = 10_000) {
  const deadline = Date.now() + ms;
  for (;;) {
    const value = await Promise.resolve().then(condition).catch(() => false);
    if (value) return value;
    if (Date.now() > deadline) throw new Error(`not within ${ms} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** Resolves to the next value that `emitter` gives for `type`, and that `wanted` accepts. */
export function next(emitter, type, wanted = () => true, ms = 10_000) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`no ${type} within ${ms} ms`)), ms);
    const off = emitter.on(type, (value) => {
      if (!wanted(value)) return;
      clearTimeout(timer);
      off();
      resolve(value);
    });
  });
}

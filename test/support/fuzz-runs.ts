/** How many damaged sessions a fuzz test plays. */
export const FUZZ_RUNS = Number(process.env["COLOBUS_FUZZ_RUNS"] ?? (process.env["CI"] === "true" ? 20_000 : 10_000));

/** Where the damage starts from; another seed damages otherwise. */
export const FUZZ_SEED = Number(process.env["COLOBUS_FUZZ_SEED"] ?? 1);

// Says a duration in the unit that keeps the digits which tell two of them apart.

const LONG_UNITS = [["d", 86400000], ["h", 3600000], ["min", 60000]];

export function duration(ms) {
  if (ms == null) return "unknown";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  // Minutes only where tenths of a second no longer matter: an answer that timed out after one is told apart by them.
  if (ms < 600000) return `${(ms / 1000).toFixed(ms < 10000 ? 2 : 1)} s`;
  const [unit, size] = LONG_UNITS.find(([, each]) => ms >= 2 * each);
  return `${(ms / size).toFixed(1)} ${unit}`;
}

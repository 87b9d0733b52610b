// Shares of requests in tenths of a per cent, which add up to 1000.

export const WHOLE = 1000;

/** Weights of any size as shares. What is rounded away goes to the largest, and nothing that has a weight has none. */
export function sharesOf(weights) {
  const total = Object.values(weights).reduce((sum, one) => sum + one, 0);
  const shares = Object.fromEntries(
    Object.entries(weights).map(([target, weight]) => [
      target,
      weight ? Math.max(1, Math.round((weight / total) * WHOLE)) : 0,
    ]),
  );
  return evened(shares, null);
}

/** The shares once `target` has `share`: the others keep their proportions in what is left. */
export function withShare(shares, target, share) {
  const others = Object.keys(shares).filter((one) => one !== target);
  if (others.length === 0) return { [target]: WHOLE };
  const before = others.reduce((sum, one) => sum + shares[one], 0);
  const left = WHOLE - share;
  const changed = { ...shares, [target]: share };
  for (const one of others) changed[one] = Math.round(before ? (shares[one] / before) * left : left / others.length);
  return evened(changed, target);
}

/** Weights for the server: the shares that are not nothing, by their largest common divisor. */
export function weightsOf(shares) {
  const asked = Object.entries(shares).filter(([, share]) => share > 0);
  const divisor = asked.reduce((found, [, share]) => gcd(found, share), 0) || 1;
  return Object.fromEntries(asked.map(([target, share]) => [target, share / divisor]));
}

function evened(shares, fixed) {
  const sum = Object.values(shares).reduce((total, one) => total + one, 0);
  const others = Object.keys(shares).filter((one) => one !== fixed);
  const largest = others.reduce((best, one) => (best === null || shares[one] > shares[best] ? one : best), null);
  if (largest === null) return shares;
  return { ...shares, [largest]: shares[largest] + WHOLE - sum };
}

function gcd(a, b) {
  return b ? gcd(b, a % b) : a;
}

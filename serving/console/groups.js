// Items by what they have in common. `Map.groupBy` does the same, where browsers are new enough.

export function groupsOf(items, keyOf) {
  const groups = new Map();
  for (const one of items) groups.set(keyOf(one), [...(groups.get(keyOf(one)) ?? []), one]);
  return groups;
}

// Patterns of event types, as the dispatcher reads them: `*` as the last segment stands for one or more, anywhere else for exactly one.

/** Whether a pattern wants an event type. */
export function matches(pattern: string, type: string): boolean {
  if (type.startsWith("dispatcher.") && !pattern.startsWith("dispatcher.")) return false;
  const wanted = pattern.split(".");
  const given = type.split(".");
  const open = wanted[wanted.length - 1] === "*";
  if (open ? given.length < wanted.length : given.length !== wanted.length) return false;
  return wanted.every((segment, at) => segment === "*" || segment === given[at]);
}

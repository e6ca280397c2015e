// JSON without loss. `JSON.parse` rounds integers beyond 2^53, sorts keys that look like numbers, and forgets how a number
// was spelt. Offsets and payloads have to be shown as they are.

export type Node =
  | { kind: "object"; members: [string, Node][] }
  | { kind: "array"; items: Node[] }
  | { kind: "string"; value: string }
  | { kind: "number"; text: string }
  | { kind: "word"; text: "true" | "false" | "null" };

const NUMBER = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y;
const SPACE = /[ \t\r\n]*/y;
const DEEPEST = 512;

/** The document as a tree. Raises SyntaxError where it is no JSON, or is nested more than 512 deep. */
export function parseTree(text: string): Node {
  let at = 0;

  const space = () => {
    SPACE.lastIndex = at;
    SPACE.exec(text);
    at = SPACE.lastIndex;
  };
  const wrong = (): never => {
    throw new SyntaxError(`no JSON at character ${at}`);
  };
  const string = (): string => {
    let end = at + 1;
    let escaped = false;
    for (;;) {
      const code = text.charCodeAt(end);
      if (code === 34) break;
      if (code === 92) {
        escaped = true;
        end += 2;
      } else if (code >= 32) end += 1;
      else return wrong(); // a control character, or the end (NaN)
    }
    const raw = text.slice(at, end + 1);
    at = end + 1;
    return escaped ? (JSON.parse(raw) as string) : raw.slice(1, -1);
  };
  const value = (depth: number): Node => {
    if (depth > DEEPEST) wrong();
    space();
    const start = text[at];
    if (start === "{") {
      const members: [string, Node][] = [];
      at += 1;
      space();
      if (text[at] === "}") {
        at += 1;
        return { kind: "object", members };
      }
      for (;;) {
        space();
        if (text[at] !== '"') wrong();
        const key = string();
        space();
        if (text[at] !== ":") wrong();
        at += 1;
        members.push([key, value(depth + 1)]);
        space();
        if (text[at] === ",") at += 1;
        else if (text[at] === "}") break;
        else wrong();
      }
      at += 1;
      return { kind: "object", members };
    }
    if (start === "[") {
      const items: Node[] = [];
      at += 1;
      space();
      if (text[at] === "]") {
        at += 1;
        return { kind: "array", items };
      }
      for (;;) {
        items.push(value(depth + 1));
        space();
        if (text[at] === ",") at += 1;
        else if (text[at] === "]") break;
        else wrong();
      }
      at += 1;
      return { kind: "array", items };
    }
    if (start === '"') return { kind: "string", value: string() };
    for (const word of ["true", "false", "null"] as const) {
      if (text.startsWith(word, at)) {
        at += word.length;
        return { kind: "word", text: word };
      }
    }
    NUMBER.lastIndex = at;
    const found = NUMBER.exec(text);
    if (found === null) return wrong();
    at = NUMBER.lastIndex;
    return { kind: "number", text: found[0] };
  };

  const root = value(0);
  space();
  if (at !== text.length) wrong();
  return root;
}

/** What `JSON.parse` would make of it, but integers that a double can't hold stay text. */
export function readJson(text: string): unknown {
  return /\d{16}/.test(text) ? plain(parseTree(text)) : JSON.parse(text);
}

function plain(node: Node): unknown {
  switch (node.kind) {
    case "object":
      return Object.fromEntries(node.members.map(([key, member]) => [key, plain(member)]));
    case "array":
      return node.items.map(plain);
    case "string":
      return node.value;
    case "number":
      return /^-?\d+$/.test(node.text) && !Number.isSafeInteger(Number(node.text)) ? node.text : Number(node.text);
    case "word":
      return JSON.parse(node.text);
  }
}

/** The tree as text, two spaces a level, numbers as they were spelt. */
export function printTree(node: Node, indent = ""): string {
  const deeper = `${indent}  `;
  switch (node.kind) {
    case "object":
      if (node.members.length === 0) return "{}";
      return `{\n${node.members.map(([key, member]) => `${deeper}${JSON.stringify(key)}: ${printTree(member, deeper)}`).join(",\n")}\n${indent}}`;
    case "array":
      if (node.items.length === 0) return "[]";
      return `[\n${node.items.map((item) => deeper + printTree(item, deeper)).join(",\n")}\n${indent}]`;
    case "string":
      return JSON.stringify(node.value);
    default:
      return node.text;
  }
}

// A body as a tree and as bytes. What is copied or downloaded is what the API sent, byte by byte. A large body is drawn in parts.

import { useEffect, useMemo, useState } from "preact/hooks";
import { request } from "../api/client";
import { parseTree, printTree, type Node } from "../api/json";
import { useLoad } from "../state/load";
import { t } from "../text/text";
import { Bytes, Button, Copy, Fact, Facts } from "./bits";
import { Panel } from "./panel";
import { save } from "./save";

export interface Payload {
  bytes: Uint8Array<ArrayBuffer>;
  type: string;
  masked: boolean;
}

export async function loadPayload(id: string, query: Record<string, string | number | undefined>, signal: AbortSignal): Promise<Payload> {
  const response = await request("GET", "/v1/events/{id}/payload", { path: { id }, query, signal, accept: "*/*" });
  return { bytes: new Uint8Array(await response.arrayBuffer()), type: response.headers.get("Content-Type") ?? "", masked: response.headers.has("X-Payload-Masked") };
}

export function PayloadPanel(props: { id: string; query: Record<string, string>; sha256: string | null | undefined }) {
  const load = useLoad(`payload ${props.id} ${JSON.stringify(props.query)}`, (signal) => loadPayload(props.id, props.query, signal));
  return (
    <Panel title={t.payload.title} load={load} lines={6}>
      {(payload) => <PayloadView payload={payload} sha256={props.sha256} name={props.id} />}
    </Panel>
  );
}

const TREE_LIMIT = 4 << 20; // bytes beyond which a body is shown as bytes only

export function PayloadView(props: { payload: Payload; sha256?: string | null | undefined; name: string }) {
  const { bytes, type } = props.payload;
  const text = useMemo(() => decode(bytes), [bytes]);
  const tree = useMemo(() => {
    if (text === null || bytes.length > TREE_LIMIT) return null;
    try {
      return parseTree(text);
    } catch {
      return null;
    }
  }, [text]);
  const [view, setView] = useState<"tree" | "text" | "bytes">(tree ? "tree" : text !== null ? "text" : "bytes");
  const [digest, setDigest] = useState<string | null>(null);
  useEffect(() => {
    if (!globalThis.crypto?.subtle) return;
    void crypto.subtle.digest("SHA-256", bytes).then((found) => setDigest([...new Uint8Array(found)].map((each) => each.toString(16).padStart(2, "0")).join("")));
  }, [bytes]);
  const download = () => save(bytes, `${props.name}${tree ? ".json" : ".bin"}`);
  return (
    <>
      <Facts>
        <Fact name={t.payload.size}>
          <Bytes of={bytes.length} />
        </Fact>
        <Fact name={t.payload.type}>{type || "–"}</Fact>
        <Fact name="SHA-256" wide>
          {digest ? (
            <span class="id">
              <code class="digest">{digest}</code>
              <Copy text={digest} />
            </span>
          ) : (
            (props.sha256 ?? "–")
          )}{" "}
          {digest && props.sha256 ? digest === props.sha256 ? <span class="good-text">{t.payload.same}</span> : <span class="bad-text">{props.payload.masked ? t.payload.masked : t.payload.differs}</span> : null}
        </Fact>
      </Facts>
      <div class="actions">
        <div class="tabs" role="group" aria-label={t.payload.title}>
          {tree ? <Tab name={t.payload.tree} on={view === "tree"} set={() => setView("tree")} /> : null}
          {text !== null ? <Tab name={t.payload.text} on={view === "text"} set={() => setView("text")} /> : null}
          <Tab name={t.payload.bytes} on={view === "bytes"} set={() => setView("bytes")} />
        </div>
        {text !== null ? <Copy text={text} label={t.copy} /> : null}
        <Button kind="small" onClick={download}>
          {t.download}
        </Button>
      </div>
      {view === "tree" && tree ? <Tree node={tree} /> : view === "text" && text !== null ? <Text text={text} /> : <Hex bytes={bytes} />}
    </>
  );
}

function Tab(props: { name: string; on: boolean; set: () => void }) {
  return (
    <button type="button" aria-pressed={props.on} onClick={props.set}>
      {props.name}
    </button>
  );
}

function decode(bytes: Uint8Array): string | null {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return null;
  }
}

const PART = 65_536; // characters or bytes that are drawn at once

export function Text(props: { text: string; label?: string }) {
  const [shown, setShown] = useState(PART);
  return (
    <>
      <pre class="code" tabIndex={0} aria-label={props.label ?? t.payload.text}>
        {props.text.slice(0, shown)}
      </pre>
      {props.text.length > shown ? (
        <Button kind="small" onClick={() => setShown(shown + 4 * PART)}>
          {t.payload.more(props.text.length - shown)}
        </Button>
      ) : null}
    </>
  );
}

const HEX_PART = 4096;

function Hex(props: { bytes: Uint8Array }) {
  const [shown, setShown] = useState(HEX_PART);
  const lines: string[] = [];
  for (let at = 0; at < Math.min(shown, props.bytes.length); at += 16) {
    const row = [...props.bytes.subarray(at, at + 16)];
    const hex = row.map((each) => each.toString(16).padStart(2, "0"));
    lines.push(`${at.toString(16).padStart(8, "0")}  ${hex.slice(0, 8).join(" ").padEnd(23)}  ${hex.slice(8).join(" ").padEnd(23)}  ${row.map((each) => (each >= 32 && each < 127 ? String.fromCharCode(each) : ".")).join("")}`);
  }
  return (
    <>
      <pre class="code hex" tabIndex={0} aria-label={t.payload.bytes}>
        {lines.join("\n")}
      </pre>
      {props.bytes.length > shown ? (
        <Button kind="small" onClick={() => setShown(shown + 4 * HEX_PART)}>
          {t.payload.more(props.bytes.length - shown)}
        </Button>
      ) : null}
    </>
  );
}

const CHILDREN = 100; // of a node that are drawn at once
const LONG = 2000; // characters of a value

export function Tree(props: { node: Node }) {
  return (
    <div class="tree code" role="group" aria-label={t.payload.tree}>
      <Branch node={props.node} path="" depth={0} />
    </div>
  );
}

function Branch(props: { node: Node; name?: string; path: string; depth: number }) {
  const { node, name, path, depth } = props;
  const [open, setOpen] = useState(depth < 2);
  const [shown, setShown] = useState(CHILDREN);
  const label = name === undefined ? null : <span class="key">{JSON.stringify(name)}: </span>;
  if (node.kind !== "object" && node.kind !== "array") {
    return (
      <div class="leaf" title={path}>
        {label}
        <Value node={node} />
      </div>
    );
  }
  const count = node.kind === "object" ? node.members.length : node.items.length;
  const [left, right] = node.kind === "object" ? ["{", "}"] : ["[", "]"];
  if (count === 0) {
    return (
      <div class="leaf" title={path}>
        {label}
        {left}
        {right}
      </div>
    );
  }
  const children: [string | undefined, string, Node][] =
    node.kind === "object" ? node.members.slice(0, shown).map(([key, member]) => [key, `${path}/${key.replace(/~/g, "~0").replace(/\//g, "~1")}`, member]) : node.items.slice(0, shown).map((item, at) => [undefined, `${path}/${at}`, item]);
  return (
    <details open={open} onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary title={path || "/"}>
        {label}
        {left}
        {open ? null : (
          <span class="faint">
            {" "}
            {t.payload.entries(count)} {right}
          </span>
        )}
        <Copy text={() => printTree(node)} />
      </summary>
      {open ? (
        <div class="children">
          {children.map(([key, where, child], at) => (
            <Branch key={at} node={child} {...(key === undefined ? {} : { name: key })} path={where} depth={depth + 1} />
          ))}
          {count > shown ? (
            <Button kind="small" onClick={() => setShown(shown + 10 * CHILDREN)}>
              {t.payload.more(count - shown)}
            </Button>
          ) : null}
        </div>
      ) : null}
      {open ? <div>{right}</div> : null}
    </details>
  );
}

function Value(props: { node: Node }) {
  const { node } = props;
  const [whole, setWhole] = useState(false);
  if (node.kind === "string") {
    const text = JSON.stringify(node.value);
    return text.length > LONG && !whole ? (
      <span class="string">
        {text.slice(0, LONG)}
        <Button kind="small" onClick={() => setWhole(true)}>
          {t.payload.more(text.length - LONG)}
        </Button>
      </span>
    ) : (
      <span class="string">{text}</span>
    );
  }
  return <span class={node.kind === "number" ? "number" : "word"}>{node.kind === "number" || node.kind === "word" ? node.text : ""}</span>;
}

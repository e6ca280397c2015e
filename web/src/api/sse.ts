// Server-sent events, as the HTML standard writes them.

export interface StreamEvent {
  event: string;
  data: string;
}

/** The events of a stream's text as it comes; what is incomplete is kept for the next call. */
export function eventReader(): (chunk: string) => StreamEvent[] {
  let rest = "";
  return (chunk) => {
    rest += chunk;
    const blocks = rest.split(/\r?\n\r?\n/);
    rest = blocks.pop() ?? "";
    const found: StreamEvent[] = [];
    for (const block of blocks) {
      let event = "message";
      const data: string[] = [];
      for (const line of block.split(/\r?\n/)) {
        const at = line.indexOf(":");
        const name = at < 0 ? line : line.slice(0, at);
        const value = at < 0 ? "" : line.slice(at + 1).replace(/^ /, "");
        if (name === "event") event = value;
        else if (name === "data") data.push(value);
      }
      if (data.length > 0 || event !== "message") found.push({ event, data: data.join("\n") });
    }
    return found;
  };
}

// What a list shows, as a file: all of its pages, for a spreadsheet or a script.

import { useState } from "preact/hooks";
import { Problem, request, type Query } from "../api/client";
import { t } from "../text/text";
import { Button } from "./bits";
import { asProblem, Dialog } from "./dialog";
import { ProblemNote } from "./panel";
import { save } from "./save";

const FORMS = [
  ["csv", "text/csv", "CSV"],
  ["ndjson", "application/x-ndjson", "NDJSON"],
] as const;

export function Export(props: { path: "/v1/deliveries" | "/v1/events"; query: () => Query; name: string }) {
  const [open, setOpen] = useState(false);
  const [busy, setBusy] = useState(false);
  const [problem, setProblem] = useState<Problem | null>(null);
  const take = async (ending: string, type: string) => {
    setBusy(true);
    setProblem(null);
    try {
      const { cursor: _, limit: __, ...query } = props.query();
      const response = await request("GET", props.path, { query, accept: type, timeout: 120_000 });
      save(new Uint8Array(await response.arrayBuffer()), `${props.name}.${ending}`);
      setOpen(false);
    } catch (error) {
      setProblem(asProblem(error));
    }
    setBusy(false);
  };
  return (
    <>
      <Button kind="small" onClick={() => setOpen(true)}>
        {t.export.title}
      </Button>
      {open ? (
        <Dialog title={t.export.title} close={() => setOpen(false)}>
          <p>{t.export.what}</p>
          {problem ? <ProblemNote problem={problem} /> : null}
          <div class="actions end">
            {FORMS.map(([ending, type, text]) => (
              <Button key={ending} kind="main" disabled={busy} onClick={() => void take(ending, type)}>
                {text}
              </Button>
            ))}
          </div>
        </Dialog>
      ) : null}
    </>
  );
}

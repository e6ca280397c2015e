// What people changed through the API, beside the thing that they changed.

import { useState } from "preact/hooks";
import { get } from "../api/client";
import { useLoad } from "../state/load";
import { t } from "../text/text";
import { Time } from "./bits";
import { Panel } from "./panel";
import { Table } from "./table";

/** Who did what to it. */
export function Done(props: { id: string }) {
  const [open, setOpen] = useState(false);
  const load = useLoad(open ? `audit ${props.id}` : null, (signal) => get("/v1/audit", { query: { subject: props.id, limit: 50 }, signal }));
  return (
    <details class="fold" onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>{t.audit.title}</summary>
      {open ? (
        <Panel title={t.audit.title} load={load}>
          {(answer) =>
            answer.records.length === 0 ? (
              <p class="faint">{t.audit.none}</p>
            ) : (
              <Table
                caption={t.audit.title}
                rows={answer.records}
                id={(row) => `${row.at} ${row.action}`}
                columns={[
                  { name: t.columns.time, cell: (row) => <Time at={row.at} /> },
                  { name: t.audit.action, cell: (row) => row.action },
                  { name: t.audit.by, cell: (row) => row.by ?? "–" },
                  { name: t.event.outcome, cell: (row) => row.outcome ?? "–" },
                ]}
              />
            )
          }
        </Panel>
      ) : null}
    </details>
  );
}


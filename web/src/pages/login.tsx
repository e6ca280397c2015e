// Who has no session: operators enter their key, a portal's visitor needs a link from who runs it.

import { useState } from "preact/hooks";
import type { Problem } from "../api/client";
import { APP } from "../state/place";
import { enter, type SessionAnswer } from "../state/session";
import { t } from "../text/text";
import { Button, Note } from "../ui/bits";
import { Input } from "../ui/form";
import { ProblemNote } from "../ui/panel";

export function Login(props: { expired: boolean; answer: SessionAnswer | null; refresh: string | null }) {
  const [key, setKey] = useState("");
  const [problem, setProblem] = useState<Problem | null>(null);
  const [busy, setBusy] = useState(false);
  if (APP === "portal") {
    return (
      <main class="gate">
        <h1>{t.portalName}</h1>
        <Note tone="warn" title={props.expired ? t.login.expired : t.login.noLink}>
          {props.refresh ? null : t.login.askForLink}
        </Note>
        {props.refresh ? (
          <a class="button main" href={props.refresh} data-leave rel="noreferrer">
            {t.login.refresh}
          </a>
        ) : null}
      </main>
    );
  }
  const environment = props.answer?.environment?.name;
  return (
    <main class="gate">
      <h1>webhook-dispatcher{environment ? ` · ${environment}` : ""}</h1>
      {props.expired ? <Note tone="warn">{t.login.expired}</Note> : null}
      <form
        onSubmit={(event) => {
          event.preventDefault();
          setBusy(true);
          void enter(key.trim()).then((found) => {
            setBusy(false);
            setProblem(found);
            if (found === null) setKey("");
          });
        }}
      >
        <Input label={t.login.key} help={t.login.help} value={key} set={setKey} type="password" required autocomplete="current-password" wrong={problem?.status === 401 ? t.login.wrong : undefined} />
        {problem && problem.status !== 401 ? <ProblemNote problem={problem} /> : null}
        <div class="actions end">
          <Button type="submit" kind="main" disabled={busy || key.trim() === ""}>
            {t.login.enter}
          </Button>
        </div>
      </form>
    </main>
  );
}

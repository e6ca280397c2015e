// Dialogs: the browser's own element, so that focus, Escape and the rest of the page behave.

import type { ComponentChildren } from "preact";
import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { Problem } from "../api/client";
import { t } from "../text/text";
import { Button } from "./bits";
import { ProblemNote } from "./panel";

export function Dialog(props: { title: string; close: () => void; children: ComponentChildren }) {
  const element = useRef<HTMLDialogElement>(null);
  const leaving = useRef(false);
  // At once, so that what is typed right after the key that opened it goes into it.
  useLayoutEffect(() => {
    const dialog = element.current;
    if (!dialog || dialog.open) return;
    dialog.showModal();
    // The browser would take the first button, which closes it.
    const first = dialog.querySelector<HTMLElement>("input:not([type=checkbox]), textarea, select, [data-first]");
    first?.focus();
    if (first instanceof HTMLInputElement) first.select();
    // Closed by itself the focus goes back to where it was; a dialog that is only taken away leaves it nowhere.
    return () => {
      leaving.current = true;
      dialog.close();
    };
  }, []);
  return (
    <dialog
      ref={element}
      aria-label={props.title}
      onClose={() => {
        if (!leaving.current) props.close();
      }}
      onClick={(event) => {
        if (event.target === element.current) props.close();
      }}
    >
      <div class="dialog">
        <header>
          <h2>{props.title}</h2>
          <button type="button" class="copy" aria-label={t.close} title={t.close} onClick={props.close}>
            ✕
          </button>
        </header>
        {props.children}
      </div>
    </dialog>
  );
}

/** An action that is asked for once more, with what it does in words. */
export function Confirm(props: { title: string; label: string; danger?: boolean; close: () => void; act: () => Promise<void>; children?: ComponentChildren }) {
  const [busy, setBusy] = useState(false);
  const [problem, setProblem] = useState<Problem | null>(null);
  const act = async () => {
    setBusy(true);
    setProblem(null);
    try {
      await props.act();
      props.close();
    } catch (error) {
      setProblem(asProblem(error));
      setBusy(false);
    }
  };
  return (
    <Dialog title={props.title} close={props.close}>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          void act();
        }}
      >
        {props.children}
        {problem ? <ProblemNote problem={problem} /> : null}
        <div class="actions end">
          <Button data-first={props.danger} onClick={props.close}>
            {t.cancel}
          </Button>
          <Button type="submit" data-first={!props.danger} kind={props.danger ? "danger" : "main"} disabled={busy}>
            {props.label}
          </Button>
        </div>
      </form>
    </Dialog>
  );
}

export function asProblem(error: unknown): Problem {
  return error instanceof Problem ? error : new Problem(0, "broken", "", error instanceof Error ? error.message : String(error));
}

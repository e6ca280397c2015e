// Fields with their label, their help and what is wrong with them.

import type { ComponentChildren } from "preact";
import { useId } from "preact/hooks";

interface FieldProps {
  label: string;
  help?: ComponentChildren;
  wrong?: string | undefined;
}

export function Field(props: FieldProps & { children: (id: string, described: string | undefined) => ComponentChildren }) {
  const id = useId();
  const described = props.wrong ? `${id}-wrong` : props.help ? `${id}-help` : undefined;
  return (
    <div class={`field${props.wrong ? " wrong" : ""}`}>
      <label for={id}>{props.label}</label>
      {props.children(id, described)}
      {props.wrong ? (
        <p id={`${id}-wrong`} class="wrong-text" role="alert">
          {props.wrong}
        </p>
      ) : null}
      {props.help ? (
        <p id={`${id}-help`} class="faint small">
          {props.help}
        </p>
      ) : null}
    </div>
  );
}

interface InputProps extends FieldProps {
  value: string;
  set: (value: string) => void;
  type?: "text" | "password" | "number" | "url";
  required?: boolean;
  placeholder?: string;
  autocomplete?: string;
  list?: string;
  min?: string;
  max?: string;
  step?: string;
  maxLength?: number;
  onKeyDown?: (event: KeyboardEvent) => void;
}

export function Input({ label, help, wrong, value, set, ...rest }: InputProps) {
  return (
    <Field label={label} help={help} wrong={wrong}>
      {(id, described) => <input id={id} value={value} aria-invalid={wrong ? true : undefined} aria-describedby={described} spellcheck={false} autocomplete="off" onInput={(event) => set(event.currentTarget.value)} {...(rest as object)} />}
    </Field>
  );
}

export function Area({ label, help, wrong, value, set, rows = 6 }: FieldProps & { value: string; set: (value: string) => void; rows?: number }) {
  return (
    <Field label={label} help={help} wrong={wrong}>
      {(id, described) => <textarea id={id} rows={rows} value={value} aria-invalid={wrong ? true : undefined} aria-describedby={described} spellcheck={false} onInput={(event) => set(event.currentTarget.value)} />}
    </Field>
  );
}

export function Select({ label, help, wrong, value, set, options }: FieldProps & { value: string; set: (value: string) => void; options: readonly (readonly [string, string])[] }) {
  return (
    <Field label={label} help={help} wrong={wrong}>
      {(id, described) => (
        <select id={id} value={value} aria-describedby={described} onChange={(event) => set(event.currentTarget.value)}>
          {options.map(([name, text]) => (
            <option key={name} value={name} selected={name === value}>
              {text}
            </option>
          ))}
        </select>
      )}
    </Field>
  );
}

export function Check(props: { label: ComponentChildren; checked: boolean; set: (checked: boolean) => void; help?: ComponentChildren }) {
  return (
    <label class="check">
      <input type="checkbox" checked={props.checked} onChange={(event) => props.set(event.currentTarget.checked)} />
      <span>
        {props.label}
        {props.help ? <span class="faint small block">{props.help}</span> : null}
      </span>
    </label>
  );
}

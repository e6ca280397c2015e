// A value that components follow.

import { useEffect, useState } from "preact/hooks";

export interface Store<T> {
  get(): T;
  set(value: T): void;
  follow(call: (value: T) => void): () => void;
  use(): T;
}

export function store<T>(initial: T): Store<T> {
  let value = initial;
  const followers = new Set<(value: T) => void>();
  const follow = (call: (value: T) => void) => {
    followers.add(call);
    return () => void followers.delete(call);
  };
  return {
    get: () => value,
    set: (next) => {
      value = next;
      for (const call of [...followers]) call(next);
    },
    follow,
    use: () => {
      const [, turn] = useState(0);
      const drawn = value;
      useEffect(() => {
        const stop = follow(() => turn((n) => n + 1));
        // Effects run a frame after the drawing: what was set in between has told nobody.
        if (value !== drawn) turn((n) => n + 1);
        return stop;
      }, []);
      return value;
    },
  };
}

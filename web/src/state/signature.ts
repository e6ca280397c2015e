// Why a signature verifies or not, in words. Pure: the texts are an argument.

import type { ReceivedRequest } from "../api/types";
import { durationText } from "../format/time";
import type { Texts } from "../text/en";

export function whyNot(signature: ReceivedRequest["signature"], texts: Texts): string {
  const { why } = texts.inspect;
  switch (signature.verdict) {
    case "valid":
      return why.valid;
    case "missing":
      return why.missing(signature.missing.join(", "));
    case "stale": {
      const off = signature.off_seconds;
      if (off === null) return why.noTime;
      const size = durationText(Math.abs(off) * 1000);
      return off < 0 ? why.late(size) : why.early(size);
    }
    case "wrong":
      if (!signature.schemes.includes("v1")) return why.scheme([...new Set(signature.schemes)].join(", "));
      return why.wrong(signature.schemes.length);
  }
}

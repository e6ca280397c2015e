// Bytes as a file of the reader's.

export function save(bytes: Uint8Array<ArrayBuffer>, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type: "application/octet-stream" }));
  link.download = name.replace(/[^\w.-]/g, "_").slice(0, 80);
  link.dataset["leave"] = "";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// Which pages may hold the portal in a frame: origins, or all below a domain (`https://*.example.com`).

export function originAllowed(patterns: readonly string[], origin: string): boolean {
  return patterns.some((pattern) => {
    const wild = /^(https?:\/\/)\*(\.[^/*]+)$/.exec(pattern);
    if (!wild) return pattern === origin;
    return origin.startsWith(wild[1]!) && origin.endsWith(wild[2]!) && origin.length > wild[1]!.length + wild[2]!.length && !origin.slice(wild[1]!.length).includes("/");
  });
}

// The addresses of the service. Pure.

/** The addresses of the service for a URL such as `wss://…/v1/ws`, `https://…` or `/`. */
export function addresses(
  url: string,
  base: string | undefined,
  device: string | undefined,
): { ws: string; http: string } {
  const root = new URL(url, base);
  root.protocol = root.protocol.replace(/^http/, "ws");
  if (root.protocol !== "ws:" && root.protocol !== "wss:")
    throw new TypeError(`url must be http(s) or ws(s): ${url}`);
  root.hash = "";
  root.pathname = `${root.pathname.replace(/\/+$/, "").replace(/\/v1\/ws$/, "")}/v1/ws`;
  if (device !== undefined) root.searchParams.set("device", device);
  const http = new URL(root);
  http.protocol = http.protocol.replace(/^ws/, "http");
  return { ws: root.href, http: http.origin + http.pathname.replace(/\/v1\/ws$/, "") };
}

// Buttons of the demo, for a service that has the demo's paths.

import { button, h } from "./dom.js";
import { texts } from "./texts.js";

const ACTIONS: { testid: string; label: string; path: string; body: Record<string, number> }[] = [
  { testid: "demo-order", label: texts.demoOrder, path: "/demo/orders", body: { count: 1 } },
  { testid: "demo-orders", label: texts.demoOrders, path: "/demo/orders", body: { count: 20 } },
  {
    testid: "demo-import",
    label: texts.demoImport,
    path: "/demo/imports",
    body: { items: 500, failed: 7 },
  },
  { testid: "demo-cut", label: texts.demoCut, path: "/demo/cut", body: { seconds: 10, orders: 5 } },
];

export function showDemo(
  root: HTMLElement,
  token: () => Promise<string>,
  failed: (message: string) => void,
): void {
  const act = async (at: HTMLButtonElement, path: string, body: Record<string, number>) => {
    if (at.getAttribute("aria-disabled") === "true") return;
    at.setAttribute("aria-disabled", "true");
    try {
      const headers = {
        authorization: `Bearer ${await token()}`,
        "content-type": "application/json",
      };
      const response = await fetch(path, { method: "POST", headers, body: JSON.stringify(body) });
      if (!response.ok) throw new Error(`${response.status} ${response.statusText}`.trim());
    } catch (error) {
      failed(texts.demoFailed((error as Error).message));
    } finally {
      at.setAttribute("aria-disabled", "false");
    }
  };
  const buttons = ACTIONS.map(({ testid, label, path, body }) => {
    const one: HTMLButtonElement = button(
      label,
      { class: "secondary", testid },
      () => void act(one, path, body),
    );
    return one;
  });
  root.replaceChildren(
    h("h2", { attributes: { id: "demo-heading" } }, texts.demoHeading),
    h("div", { class: "demo-buttons" }, ...buttons),
  );
  root.hidden = false;
}

// Elements of the dashboard by their `data-testid`; see web/dashboard/README.md.

export const toasts = (page) => page.getByTestId("toast");
export const orders = (page) => page.getByTestId("order");
export const order = (page, seq) => page.locator(`[data-testid="order"][data-seq="${seq}"]`);
export const accept = (page, seq) => order(page, seq).getByTestId("accept");
export const bell = (page) => page.getByTestId("bell");
export const badge = (page) => page.getByTestId("badge");
export const imports = (page) => page.getByTestId("import");

/** Numbers of the listed orders, newest first. */
export async function seqs(page) {
  return orders(page).evaluateAll((rows) => rows.map((row) => Number(row.dataset.seq)));
}

/** Records every toast; `await shown(page)` returns their texts. */
export async function watchToasts(profile) {
  await profile.addInitScript(() => {
    window.shownToasts = [];
    const look = (node) => {
      if (!(node instanceof Element)) return;
      const toasts = [...node.querySelectorAll('[data-testid="toast"]')];
      if (node.matches('[data-testid="toast"]')) toasts.push(node);
      for (const toast of toasts) {
        window.shownToasts.push({
          toast,
          kind: toast.dataset.kind,
          at: performance.timeOrigin + performance.now(),
        });
      }
    };
    new MutationObserver((changes) => {
      for (const { addedNodes } of changes) addedNodes.forEach(look);
    }).observe(document, { childList: true, subtree: true });
  });
}

export async function shown(page) {
  return page.evaluate(() =>
    window.shownToasts.map(({ toast, kind, at }) => {
      const isOrder = toast.querySelector('[data-testid="toast-accept"]') !== null;
      return { text: toast.innerText, kind, isOrder, at };
    }),
  );
}

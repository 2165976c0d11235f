// For React 18 and later: the client's status and counts as state.

import { useCallback, useSyncExternalStore } from "react";
import type { Client, Snapshot } from "./client.js";

/**
 * Renders anew when the client's status or a count changes. Make the client outside of components, and register its handlers
 * there: a notification does not wait for a component to mount.
 */
export function useShopbell(client: Client): Snapshot {
  const subscribe = useCallback(
    (changed: () => void) => {
      const ends = [client.watch("status", changed), client.watch("counts", changed)];
      return () => ends.forEach((end) => end());
    },
    [client],
  );
  const snapshot = () => client.snapshot;
  return useSyncExternalStore(subscribe, snapshot, snapshot);
}

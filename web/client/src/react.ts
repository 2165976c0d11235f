// Status and counts as state of React 18 and later.

import { useCallback, useSyncExternalStore } from "react";
import type { Client } from "./client.js";
import type { Snapshot } from "./status.js";

/**
 * Renders again when the status or a count changes. Create the client and register its handlers
 * outside of components, because notifications do not wait until a component is mounted.
 */
export function useShopbell(client: Client): Snapshot {
  const subscribe = useCallback(
    (onChange: () => void) => {
      const ends = [client.watch("status", onChange), client.watch("counts", onChange)];
      return () => ends.forEach((end) => end());
    },
    [client],
  );
  const snapshot = () => client.snapshot;
  return useSyncExternalStore(subscribe, snapshot, snapshot);
}

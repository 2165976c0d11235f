// Events with known data, and notifications. Types, and two functions on them.

/** A merchant's new order. */
export interface OrderCreated {
  order_id: string;
  /** A decimal string, "12.50": binary floating point cannot represent every amount. */
  total: string;
  /** ISO 4217. */
  currency: string;
  /** Number of pieces. */
  items: number;
  customer?: unknown;
  /** RFC 3339. */
  placed_at?: string;
}

/** A catalogue import began. */
export interface ImportStarted {
  import_id: string;
  /** Number of items that will follow. */
  total: number;
}

/** One item of an import succeeded or failed. */
export interface ImportItem {
  import_id: string;
  /** From 1. */
  index: number;
  sku: string;
  status: "imported" | "failed";
  /** The reason; set if the item failed. */
  error?: string;
}

/** An import ended. */
export interface ImportFinished {
  import_id: string;
  status: "finished" | "aborted";
}

/**
 * Event types with known data. Apps add their own by declaration merging (`declare module
 * "@shopbell/client"`).
 */
export interface Events {
  "order.created": OrderCreated;
  "import.started": ImportStarted;
  "import.item": ImportItem;
  "import.finished": ImportFinished;
}

/** The exact totals of an import so far. */
export interface Progress {
  /** Number of items, imported or failed. */
  done: number;
  /** Number of failed items. */
  failed: number;
  /** Absent if the import sent no `import.started`. */
  total?: number;
}

/** One event, stored for one feed. */
export interface Notification<Type extends string = string> {
  type: "notification";
  feed: string;
  /** Its number in the feed: 1, 2, 3 … */
  seq: number;
  /** The CloudEvents id; `id` and `source` identify the event. */
  id: string;
  source: string;
  /** The CloudEvents type. */
  event: Type;
  /** RFC 3339; absent if the publisher set none. */
  time?: string;
  data: Type extends keyof Events ? Events[Type] : unknown;
  collapse_key?: string;
  progress?: Progress;
  /** RFC 3339: time when a person read it. */
  read_at?: string;
  /** RFC 3339: time when a person handled it. */
  handled_at?: string;
  handled_by?: string;
}

/** Narrows the type of a notification: `if (isEvent(n, "order.created")) n.data.total`. */
export function isEvent<Type extends keyof Events>(
  notification: Notification,
  type: Type,
): notification is Notification<Type> {
  return notification.event === type;
}

/** Returns whether `pattern` (a type, `prefix.*`, or `*`) matches the type. */
export function matches(pattern: string, type: string): boolean {
  return (
    pattern === "*" ||
    pattern === type ||
    (pattern.endsWith(".*") && type.startsWith(pattern.slice(0, -1)))
  );
}

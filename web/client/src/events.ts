// The events of the contract with their data, and what a notification of one is. Types, and two functions on them.

/** A merchant's new order. */
export interface OrderCreated {
  order_id: string;
  /** A decimal string, "12.50": binary floating point cannot hold money. */
  total: string;
  /** ISO 4217. */
  currency: string;
  /** How many pieces. */
  items: number;
  customer?: unknown;
  /** RFC 3339. */
  placed_at?: string;
}

/** A catalogue import began. */
export interface ImportStarted {
  import_id: string;
  /** How many items will follow. */
  total: number;
}

/** One item of an import is through. */
export interface ImportItem {
  import_id: string;
  /** From 1. */
  index: number;
  sku: string;
  status: "imported" | "failed";
  /** Why; set where it failed. */
  error?: string;
}

/** An import ended. */
export interface ImportFinished {
  import_id: string;
  status: "finished" | "aborted";
}

/** Event types with known data. Apps add their own by declaration merging (`declare module "@shopbell/client"`). */
export interface Events {
  "order.created": OrderCreated;
  "import.started": ImportStarted;
  "import.item": ImportItem;
  "import.finished": ImportFinished;
}

/** An import's exact running totals. */
export interface Progress {
  /** Items through, imported or failed. */
  done: number;
  /** Of these, failed. */
  failed: number;
  /** Absent where no `import.started` came. */
  total?: number;
}

/** One event, stored for one feed. */
export interface Notification<Type extends string = string> {
  type: "notification";
  feed: string;
  /** Its number in the feed: 1, 2, 3 … */
  seq: number;
  /** The CloudEvents id: with `source`, the same event on every way it comes. */
  id: string;
  source: string;
  /** The CloudEvents type. */
  event: Type;
  /** RFC 3339; absent where the publisher set none. */
  time?: string;
  data: Type extends keyof Events ? Events[Type] : unknown;
  collapse_key?: string;
  progress?: Progress;
  /** RFC 3339: a person saw it. */
  read_at?: string;
  /** RFC 3339: a person took it. */
  handled_at?: string;
  handled_by?: string;
}

/** Narrows a notification that a pattern brought: `if (isEvent(n, "order.created")) n.data.total`. */
export function isEvent<Type extends keyof Events>(
  notification: Notification,
  type: Type,
): notification is Notification<Type> {
  return notification.event === type;
}

/** Whether `pattern` (a type, `prefix.*`, or `*`) means events of this type. */
export function matches(pattern: string, type: string): boolean {
  return (
    pattern === "*" ||
    pattern === type ||
    (pattern.endsWith(".*") && type.startsWith(pattern.slice(0, -1)))
  );
}

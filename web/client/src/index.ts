/**
 * The browser client of Shopbell: notifications with acks, replay, and one socket for all tabs.
 *
 * @packageDocumentation
 */

import { Client, type ConnectOptions } from "./client.js";
import { browser } from "./platform.js";

/**
 * Connects, and reconnects until {@link Client.close}.
 *
 * @throws TypeError if `url` is not a valid address.
 */
export function connect(options: ConnectOptions): Client {
  return new Client(options, browser());
}

export type { Client, ConnectOptions } from "./client.js";
export { ShopbellError, type ErrorCode, type Problem } from "./errors.js";
export { isEvent } from "./events.js";
export type {
  Events,
  ImportFinished,
  ImportItem,
  ImportStarted,
  Notification,
  OrderCreated,
  Progress,
} from "./events.js";
export type { Count, Counts } from "./feeds.js";
export type { Handler } from "./handlers.js";
export type { HistoryPage, HistoryQuery } from "./history.js";
export type { Store } from "./platform.js";
export type { State } from "./protocol.js";
export type { TokenSource, Transport } from "./socket.js";
export type { Snapshot, Status } from "./status.js";
export type { Watched } from "./watchers.js";

// Publishes events like a user of the CloudEvents SDK for JavaScript and amqplib, in each form of the SDK.
//
// usage: AMQP_URL=... node publish.mjs EXCHANGE RECIPIENT JSON
//
// Prints a line of JSON for each event that RabbitMQ has confirmed; `body` has the published bytes in base64.

import amqplib from "amqplib";
import { CloudEvent, HTTP } from "cloudevents";

// The text unchanged, because JavaScript's own parser would round its numbers.
const [exchange, recipient, raw] = process.argv.slice(2);
// The data that the SDK itself converts to JSON.
const object = { z: Number.MAX_SAFE_INTEGER, a: "\0", é: [1.1, true, null] };

const DAY_MS = 24 * 60 * 60 * 1000;

const event = (id, data) =>
  new CloudEvent({
    id,
    source: "/sdk/node",
    type: "order.paid",
    time: "2026-01-02T03:04:05Z",
    datacontenttype: "application/json",
    recipient,
    collapsekey: id,
    expirytime: new Date(Date.now() + DAY_MS),
    data,
  });

// The SDK has no binding for AMQP: this makes one of that for HTTP, whose attributes are headers `ce-NAME`.
const toAmqp = (message, prefix = "cloudEvents_") => {
  const { "content-type": contentType, ...attributes } = message.headers;
  const headers = Object.entries(attributes).map(([name, value]) => [name.replace(/^ce-/, prefix), toField(value)]);
  return { contentType, headers: Object.fromEntries(headers), body: Buffer.from(message.body) };
};

// amqplib would make a table of a Date; AMQP's timestamps count seconds.
const toField = (value) =>
  value instanceof Date ? { "!": "timestamp", value: Math.floor(value.getTime() / 1000) } : value;

const events = [
  [event("structured-object", object), (event) => toAmqp(HTTP.structured(event))],
  [event("structured-bytes", Buffer.from(raw)), (event) => toAmqp(HTTP.structured(event))],
  [event("binary-object", object), (event) => toAmqp(HTTP.binary(event))],
  [event("binary-bytes", Buffer.from(raw)), (event) => toAmqp(HTTP.binary(event))],
  [event("binary-text", raw), (event) => toAmqp(HTTP.binary(event))],
  [event("binary-colons", raw), (event) => toAmqp(HTTP.binary(event), "cloudEvents:")],
];

const connection = await amqplib.connect(process.env.AMQP_URL);
const channel = await connection.createConfirmChannel();
channel.on("return", (message) => {
  throw new Error(`unroutable: ${message.fields.routingKey}`);
});
for (const [event, toMessage] of events) {
  const { contentType, headers, body } = toMessage(event);
  channel.publish(exchange, event.type, body, { contentType, headers, persistent: true, mandatory: true });
  await channel.waitForConfirms();
  console.log(JSON.stringify({ id: event.id, content_type: contentType, body: body.toString("base64") }));
}
await connection.close();

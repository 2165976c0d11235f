// Publishes events over HTTP like a user of the CloudEvents SDK for JavaScript, in each form of the SDK.
//
// usage: SHOPBELL_TOKEN=... node publish_http.mjs URL RECIPIENT JSON
//
// Prints a line of JSON for each event that was accepted; `body` has the sent bytes in base64.

import { CloudEvent, HTTP } from "cloudevents";

const [url, recipient, raw] = process.argv.slice(2);
const authorization = `Bearer ${process.env.SHOPBELL_TOKEN}`;

const event = (id) =>
  new CloudEvent({
    id,
    source: "/sdk/node",
    type: "order.paid",
    datacontenttype: "application/json",
    recipient,
    collapsekey: "a key",
    data: Buffer.from(raw),
  });

for (const [id, toMessage] of [
  ["structured", HTTP.structured],
  ["binary", HTTP.binary],
]) {
  const { headers, body } = toMessage(event(id));
  const response = await fetch(url, { method: "POST", headers: { ...headers, authorization }, body });
  const verdict = await response.json();
  if (!response.ok || verdict.verdict !== "accepted" || verdict.id !== id) throw new Error(JSON.stringify(verdict));
  const sent = { id, content_type: headers["content-type"], body: Buffer.from(body).toString("base64") };
  console.log(JSON.stringify(sent));
}

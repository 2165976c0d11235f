"""Publishes events over HTTP like a user of the CloudEvents SDK for Python, in each form of the SDK.

usage: SHOPBELL_TOKEN=... publish_http.py URL RECIPIENT JSON

Prints a line of JSON for each event that was accepted; `body` has the sent bytes in base64.
"""

import base64
import json
import os
import sys
from urllib.request import Request, urlopen

from cloudevents.core.bindings import http
from cloudevents.core.v1.event import CloudEvent

URL, RECIPIENT = sys.argv[1:3]
RAW = os.fsencode(sys.argv[3])
TOKEN = os.environ["SHOPBELL_TOKEN"]


def event(id):
    attributes = {
        "id": id,
        "source": "/sdk/python",
        "type": "order.paid",
        "datacontenttype": "application/json",
        "recipient": RECIPIENT,
        "collapsekey": "a key with spaces, é and 100 %",
    }
    return CloudEvent(attributes=attributes, data=RAW)


for id, to_message in [("structured", http.to_structured_event), ("binary", http.to_binary_event)]:
    message = to_message(event(id))
    headers = {**message.headers, "Authorization": f"Bearer {TOKEN}"}
    # Raises if the status is not 2xx.
    with urlopen(Request(URL, data=message.body, headers=headers)) as response:
        verdict = json.load(response)
    assert verdict["verdict"] == "accepted" and verdict["id"] == id, verdict
    content_type = {name.lower(): value for name, value in message.headers.items()}["content-type"]
    body = base64.b64encode(message.body).decode()
    print(json.dumps({"id": id, "content_type": content_type, "body": body}))

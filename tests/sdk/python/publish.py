"""Publishes events like a user of the CloudEvents SDK for Python and pika, in each form of the SDK.

usage: AMQP_URL=... publish.py EXCHANGE RECIPIENT JSON

Prints a line of JSON for each event that RabbitMQ has confirmed; `body` has the published bytes in base64.
"""

import base64
import json
import os
import sys
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pika
from cloudevents.core.bindings import amqp, rabbitmq
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

EXCHANGE, RECIPIENT = sys.argv[1:3]
# The bytes unchanged, because Python's own parser would turn 1e400 into infinity.
RAW = os.fsencode(sys.argv[3])
# The data that the SDK itself converts to JSON.
OBJECT = {"z": 123456789012345678901234567890, "a": "\0", "é": [1.10, True, None]}


def event(id, data):
    return CloudEvent(
        attributes={
            "id": id,
            "source": "/sdk/python",
            "type": "order.paid",
            "time": datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
            "datacontenttype": "application/json",
            "recipient": RECIPIENT,
            "collapsekey": id,
            "expirytime": datetime.now(timezone.utc) + timedelta(days=1),
        },
        data=data,
    )


def with_colons(event):
    """The binding's other prefix, and its times as AMQP's own timestamps (pika makes them of a datetime)."""
    attributes = event.get_attributes().items()
    headers = {f"cloudEvents:{name}": value for name, value in attributes if name != "datacontenttype"}
    return replace(amqp.to_binary_event(event), application_properties=headers)


def by_rabbitmq(event):
    """The SDK's binding for AMQP 0-9-1, which pika uses."""
    message = rabbitmq.to_binary(event, JSONFormat())
    return amqp.AMQPMessage({"content-type": message.content_type}, message.headers, message.body)


EVENTS = [
    (event("structured-object", OBJECT), amqp.to_structured_event),
    (event("structured-bytes", RAW), amqp.to_structured_event),
    (event("binary-object", OBJECT), amqp.to_binary_event),
    (event("binary-bytes", RAW), amqp.to_binary_event),
    (event("binary-colons", RAW), with_colons),
    (event("binary-rabbitmq", RAW), by_rabbitmq),
]

with pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"])) as connection:
    channel = connection.channel()
    channel.confirm_delivery()
    for event, to_message in EVENTS:
        message = to_message(event)
        content_type = message.properties["content-type"]
        properties = pika.BasicProperties(
            content_type=content_type,
            headers=message.application_properties,
            delivery_mode=pika.DeliveryMode.Persistent,
        )
        body = message.application_data
        # Returns when RabbitMQ has confirmed it. Raises if it is refused or unroutable.
        channel.basic_publish(EXCHANGE, event.get_type(), body, properties, mandatory=True)
        published = {"id": event.get_id(), "content_type": content_type, "body": base64.b64encode(body).decode()}
        print(json.dumps(published))

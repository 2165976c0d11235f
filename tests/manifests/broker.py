"""Declares the topology of the manifests and of the program in two virtual hosts of the private RabbitMQ, to compare them."""

import json
import re
import subprocess
from urllib.parse import urlsplit

SERVICES = "scripts/services"
# Some exchanges and bindings exist in every virtual host.
LISTS = {
    "queues": ["name", "durable", "auto_delete", "exclusive", "arguments"],
    "exchanges": ["name", "type", "durable", "auto_delete", "internal", "arguments"],
    "bindings": ["source_name", "destination_kind", "destination_name", "routing_key", "arguments"],
}


class Broker:
    """The private RabbitMQ. Its test users and virtual hosts are deleted at the end."""

    def __init__(self, url, run):
        # Part of all names, so that parallel runs do not collide.
        self.run = run
        self.place = urlsplit(url).netloc.rpartition("@")[2]
        self.admin = urlsplit(url).username
        self.admin_password = urlsplit(url).password
        self.vhosts, self.users = [], []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for vhost in self.vhosts:
            self.control("delete_vhost", vhost)
        for user in self.users:
            self.control("delete_user", user)

    def control(self, *arguments):
        result = subprocess.run([SERVICES, "rabbitmqctl", "-q", *arguments], capture_output=True, text=True)
        if result.returncode != 0:
            raise SystemExit(f"manifests: rabbitmqctl {' '.join(arguments)}:\n{result.stdout}{result.stderr}")
        return result.stdout

    def vhost(self, name):
        """Creates a virtual host, with all permissions for the administrator. Returns its name."""
        vhost = f"{name}-{self.run}"
        self.control("add_vhost", vhost)
        self.vhosts.append(vhost)
        self.control("set_permissions", "-p", vhost, self.admin, ".*", ".*", ".*")
        return vhost

    def user(self, name, password, vhost, permissions):
        """Creates a user with exactly these permissions. Returns its URL."""
        user = f"{name}-{self.run}"
        self.control("add_user", user, password)
        self.users.append(user)
        rights = [permissions[right] for right in ("configure", "write", "read")]
        self.control("set_permissions", "-p", vhost, user, *rights)
        return self.url(vhost, user, password)

    def url(self, vhost, user=None, password=None):
        return f"amqp://{user or self.admin}:{password or self.admin_password}@{self.place}/{vhost}"

    def apply(self, objects, vhost, file):
        """Declares the resources as the Topology Operator does, from the same fields."""
        (declared,) = objects.of("Vhost")
        for item in objects.of("Exchange", "Queue", "Binding"):
            if item["spec"]["vhost"] != declared["spec"]["name"]:
                raise SystemExit(f"manifests: {item['metadata']['name']} is in another vhost than {declared['spec']['name']}")
        definitions = {
            "exchanges": [exchange(item["spec"], vhost) for item in objects.of("Exchange")],
            "queues": [queue(item["spec"], vhost) for item in objects.of("Queue")],
            "bindings": [binding(item["spec"], vhost) for item in objects.of("Binding")],
        }
        file.write_text(json.dumps(definitions))
        self.control("import_definitions", str(file.resolve()))

    def content(self, vhost):
        """The queues, exchanges and bindings of a virtual host, in a form that can be compared."""
        return {
            (kind, normal(line))
            for kind, columns in LISTS.items()
            for line in self.control(f"list_{kind}", "-p", vhost, "--no-table-headers", *columns).splitlines()
        }


def exchange(spec, vhost):
    return {
        "vhost": vhost,
        "name": spec["name"],
        "type": spec["type"],
        "durable": spec.get("durable", False),
        "auto_delete": spec.get("autoDelete", False),
        "internal": False,
        "arguments": spec.get("arguments", {}),
    }


def queue(spec, vhost):
    return {
        "vhost": vhost,
        "name": spec["name"],
        "durable": spec.get("durable", False),
        "auto_delete": spec.get("autoDelete", False),
        "arguments": {**spec.get("arguments", {}), "x-queue-type": spec["type"]},
    }


def binding(spec, vhost):
    return {
        "vhost": vhost,
        "source": spec["source"],
        "destination": spec["destination"],
        "destination_type": spec["destinationType"],
        "routing_key": spec["routingKey"],
        "arguments": spec.get("arguments", {}),
    }


def normal(line):
    """A line without differences that RabbitMQ ignores: integer types, and the order of arguments."""
    line = re.sub(r"\b(signedint|long|short|byte)\b", "number", line)
    return re.sub(r"\[(.*)\]", lambda list: str(sorted(re.findall(r"\{.*?\}", list[1]))), line)

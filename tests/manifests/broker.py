"""What the manifests declare in RabbitMQ, against what the program declares: in a virtual host each of the private RabbitMQ."""

import json
import re
import subprocess
from urllib.parse import urlsplit

SERVICES = "scripts/services"
# Of these RabbitMQ makes some itself in every virtual host.
LISTS = {
    "queues": ["name", "durable", "auto_delete", "exclusive", "arguments"],
    "exchanges": ["name", "type", "durable", "auto_delete", "internal", "arguments"],
    "bindings": ["source_name", "destination_kind", "destination_name", "routing_key", "arguments"],
}


class Broker:
    """The private RabbitMQ, whose users and virtual hosts are removed at the end."""

    def __init__(self, url, run):
        # Side by side with other runs: nothing of ours is called as another's.
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
        """A new virtual host for the user that may do all."""
        vhost = f"{name}-{self.run}"
        self.control("add_vhost", vhost)
        self.vhosts.append(vhost)
        self.control("set_permissions", "-p", vhost, self.admin, ".*", ".*", ".*")
        return vhost

    def user(self, name, password, vhost, permissions):
        """A user with just these permissions; its URL."""
        user = f"{name}-{self.run}"
        self.control("add_user", user, password)
        self.users.append(user)
        rights = [permissions[right] for right in ("configure", "write", "read")]
        self.control("set_permissions", "-p", vhost, user, *rights)
        return self.url(vhost, user, password)

    def url(self, vhost, user=None, password=None):
        return f"amqp://{user or self.admin}:{password or self.admin_password}@{self.place}/{vhost}"

    def apply(self, objects, vhost, file):
        """Declares what the Topology Operator would, from the same fields."""
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
        """Everything in a virtual host, so that two can be compared."""
        return {
            (what, normal(line))
            for what, columns in LISTS.items()
            for line in self.control(f"list_{what}", "-p", vhost, "--no-table-headers", *columns).splitlines()
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
    """How many bits a number came with is nothing to RabbitMQ, nor is the order of arguments."""
    line = re.sub(r"\b(signedint|long|short|byte)\b", "number", line)
    return re.sub(r"\[(.*)\]", lambda list: str(sorted(re.findall(r"\{.*?\}", list[1]))), line)

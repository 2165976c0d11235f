"""Renders every supported kustomization of k8s/ and checks it: against schemas, the rules among its objects, and the real binary
with the settings, secrets, users and queues of the manifests. On failure, prints all complaints and exits with 1.

usage: check.py KUBECTL BINARY FOLDER      in the checkout, with DATABASE_URL and AMQP_URL of the private services
"""

import json
import os
import re
import sys
import tomllib
from pathlib import Path

import yaml

import broker
import objects
import rendering
import running
from services import ask, eventually, new_database

OVERLAYS = {name: Path("k8s/overlays") / name for name in ("development", "production")}
# The overlays alone, and each component that they do not have. KEDA is only in production, whose settings its threshold needs.
COMBINATIONS = [
    ("development", []),
    ("development", ["gateway-api"]),
    ("development", ["ingress"]),
    ("development", ["monitoring"]),
    ("development", ["traces"]),
    ("development", ["jwks"]),
    ("development", ["public-keys"]),
    ("development", ["postgres-roles"]),
    ("development", ["rabbitmq"]),
    ("development", ["cloudnative-pg"]),
    ("development", ["rabbitmq", "partitions"]),
    ("development", ["relay", "monitoring"]),
    ("production", []),
    ("production", ["partitions", "traces"]),
    ("production", ["relay"]),
    ("production", ["postgres-roles"]),
]


def main(kubectl, binary, folder):
    schemas, program = rendering.Schemas(), running.Program(str(Path(binary).resolve()))
    documentation = Path("docs/kubernetes.md").read_text()
    documented = {name: names_in(keys) for name, keys in rows(documentation, "## Secrets")}
    version = tomllib.loads(Path("Cargo.toml").read_text())["package"]["version"]
    directories = {name: (directory, version) for name, directory in combinations(folder)}
    directories["docs/kubernetes.md"] = of_documentation(documentation, folder / "documentation")
    complaints, whole = [], {}
    for name, (directory, version) in directories.items():
        rendered = objects.Objects(rendering.render(kubectl, directory))
        whole[name] = rendered
        found = [(item, text) for item in rendered.items for text in schemas.complaints(item)]
        # The other checks expect objects that match their schema.
        if not found:
            found = list(objects.check(rendered, documented, version))
            found += [(item, text) for item in rendered.of("Deployment") for text in settings(program, rendered, item, folder)]
        complaints += [f"{name}: {item['kind']} {item['metadata']['name']}: {text}" for item, text in found]
        report(f"{name}: {len(rendered.items)} objects")
    for name in ("development+postgres-roles", "production+postgres-roles"):
        complaints += [f"{name}: {text}" for text in roles(whole[name])]
    complaints += [*every_component_is_rendered(), *undocumented(whole.values(), documentation), *undocumented_cluster()]
    for item in whole["docs/kubernetes.md"].of("PodMonitor", "PrometheusRule"):
        if "release" not in item["metadata"]["labels"]:
            complaints.append(f"docs/kubernetes.md: {item['kind']} {item['metadata']['name']} has no label `release`")
    if not complaints:
        for name in ("production", "production+partitions+traces"):
            complaints += [f"{name}: {text}" for text in other_permissions(whole[name])]
            complaints += [f"{name}: {text}" for text in against_services(program, whole[name], folder / name)]
            report(f"{name}: declared in RabbitMQ, and served with it")
    if complaints:
        sys.exit("\n".join(f"manifests: {complaint}" for complaint in complaints))


def combinations(folder):
    for overlay, components in COMBINATIONS:
        name = "+".join([overlay, *components])
        yield name, rendering.compose(OVERLAYS[overlay], components, folder / name) if components else OVERLAYS[overlay]


def of_documentation(documentation, to):
    """Writes the overlay that docs/kubernetes.md shows, with the later parts. Returns its folder and the tag that it sets."""
    text, *parts = re.findall(r"^```yaml\n(.*?)^```$", documentation, re.MULTILINE | re.DOTALL)
    shown = yaml.safe_load(text)
    for part in parts:
        for name, items in yaml.safe_load(part).items():
            shown[name] = shown.get(name, []) + items
    (image,) = shown["images"]
    return rendering.write(shown, OVERLAYS["production"].parent / "shown", to), image["newTag"]


def every_component_is_rendered():
    """Complains about components and overlays that no combination renders."""
    known = {name for _, components in COMBINATIONS for name in components}
    known |= {name for overlay in OVERLAYS.values() for name in rendering.components_of(overlay)}
    found = {path.name for path in Path("k8s/components").iterdir()}
    untested = found - known | {path.name for path in Path("k8s/overlays").iterdir()} - OVERLAYS.keys()
    return [f"k8s/: {name} is in no combination of tests/manifests/check.py" for name in sorted(untested)]


def undocumented(rendered, documentation):
    """Complains if the tables of docs/kubernetes.md do not list exactly the components and NetworkPolicies of k8s/."""
    policies = {item["metadata"]["name"] for whole in rendered for item in whole.of("NetworkPolicy")}
    policies.remove("shopbell-default-deny")
    components = {path.name for path in Path("k8s/components").iterdir()}
    for kind, existing, documented in (
        ("the NetworkPolicy", policies, rows(documentation, "## Network policies")),
        ("the component", components, rows(documentation, "# Kubernetes")),
    ):
        names = {name for name, _ in documented if not name.startswith("k8s/")}
        differing = sorted(existing ^ names)
        yield from (f"{kind} {name} is only in k8s/ or only in docs/kubernetes.md" for name in differing)


def undocumented_cluster():
    """Complains if the table of docs/backup.md does not list exactly the files that contain the name of the Cluster."""
    section = Path("docs/backup.md").read_text().partition("### On Kubernetes\n")[2].partition("\n## ")[0]
    documented = {Path("k8s/components", name) for name in re.findall(r"^\| `([\w/.-]+)` \|", section, re.MULTILINE)}
    existing = {path for path in Path("k8s").rglob("*.yaml") if "shopbell-postgres" in path.read_text()}
    differing = sorted(documented ^ existing)
    return [f"docs/backup.md: the table and {path} disagree about the name of the Cluster" for path in differing]


def rows(documentation, heading):
    """The first two cells of each row in the tables of a section: a name and the cell beside it."""
    section = documentation.partition(f"{heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `([\w/-]+)`[^|]*\| ([^|]*) \|", section, re.MULTILINE)


def names_in(cell):
    return set(re.findall(r"`([\w.-]+)`", cell))


def settings(program, rendered, deployment, folder):
    pod = running.Pod(rendered, deployment, folder / "files")
    if pod.container["args"] == ["relay"]:
        yield from running.relay_complaints(program, pod, folder / "relay.log")
        return
    pod.give(
        DATABASE_URL="postgresql://shopbell:secret@postgres.example:5432/shopbell",
        AMQP_URL="amqp://shopbell:secret@rabbitmq.example:5672/shopbell",
    )
    # Each kind of key must be enough.
    if "SHOPBELL_JWT_PUBLIC_KEY_FILE" in pod.environment:
        pod.give(SHOPBELL_JWT_PUBLIC_KEY=running.new_public_key())
    elif "SHOPBELL_JWKS_URL" not in pod.environment:
        pod.give(SHOPBELL_JWT_HS256_SECRET=running.new_secret())
    elif "SHOPBELL_JWT_HS256_SECRET_FILE" in pod.environment and not pod.has_optional_secret:
        yield "does not start without the secret shopbell-jwt, although the issuer has the keys"
    yield from running.settings_complaints(program, pod)


def roles(rendered):
    """Complains if a replica gets the URL of the owner, or the migration that of the app."""
    for item in rendered.workloads():
        volumes = item["spec"]["template"]["spec"]["volumes"]
        (secret,) = [volume["secret"]["secretName"] for volume in volumes if volume["name"] == "database"]
        wanted = "shopbell-database-owner" if item["kind"] == "Job" else "shopbell-database"
        if secret != wanted:
            yield f"{item['metadata']['name']} has the secret {secret}, not {wanted}"


def other_permissions(rendered):
    """Compares the permissions of the manifests with privileges/rabbitmq.json, whose users the stories of tests/it have."""
    names = {"shopbell": "shopbell-service", "shopbell-publisher": "shopbell-publisher"}
    wanted = json.loads(Path("privileges/rabbitmq.json").read_text())["permissions"]
    wanted = {item["user"]: {right: item[right] for right in ("configure", "write", "read")} for item in wanted}
    for item in rendered.of("Permission"):
        user = names[item["metadata"]["name"]]
        if item["spec"]["permissions"] != wanted[user]:
            yield f"the permissions of {item['metadata']['name']} differ from those of {user} in privileges/rabbitmq.json"


def against_services(program, rendered, folder):
    """Compares the topology of the manifests with that of the program, then serves with the users of the manifests."""
    folder.mkdir(parents=True, exist_ok=True)
    with broker.Broker(os.environ["AMQP_URL"], os.getpid()) as rabbitmq:
        theirs, ours = rabbitmq.vhost("manifests"), rabbitmq.vhost("program")
        rabbitmq.apply(rendered, theirs, folder / "definitions.json")
        partitions = {"SHOPBELL_INGEST_PARTITIONS": rendered.settings()["SHOPBELL_INGEST_PARTITIONS"]}
        program.must("a new virtual host", "declare", AMQP_URL=rabbitmq.url(ours), **partitions)
        manifests, declared = rabbitmq.content(theirs), rabbitmq.content(ours)
        if manifests != declared:
            yield from (f"only the program declares {kind} {line}" for kind, line in sorted(declared - manifests))
            yield from (f"only the manifests declare {kind} {line}" for kind, line in sorted(manifests - declared))
            return
        # RabbitMQ itself refuses a declaration that differs from an existing exchange or queue.
        program.must("over the manifests' topology", "declare", AMQP_URL=rabbitmq.url(theirs), **partitions)

        urls = {
            item["metadata"]["name"]: rabbitmq.user(
                item["metadata"]["name"], running.new_secret(), theirs, item["spec"]["permissions"]
            )
            for item in rendered.of("Permission")
        }
        with new_database("manifests") as database:
            yield from serve(program, rendered, folder, database, urls["shopbell"], urls["shopbell-publisher"], partitions)


def serve(program, rendered, folder, database, amqp_url, publisher_url, partitions):
    """Sends an order and a dead letter through the pods, which run as the manifests configure them."""
    secret = running.new_secret()
    pods = {item["metadata"]["name"]: running.Pod(rendered, item, folder / "files") for item in rendered.workloads()}
    for pod in pods.values():
        pod.give(DATABASE_URL=database, AMQP_URL=amqp_url, SHOPBELL_JWT_HS256_SECRET=secret)
    (migrate,) = [pod for name, pod in pods.items() if name.startswith("shopbell-migrate-")]
    program.must(migrate.name, *migrate.container["args"], **migrate.environment)
    gateway, ingest = pods["shopbell-gateway"], pods["shopbell-ingest"]
    # A drain of 60 s would only slow the test.
    gateway.environment["SHOPBELL_DRAIN_SECONDS"] = "0"
    with (
        program.serving(ingest, folder / "ingest.log") as (_, ingest_operations),
        program.serving(gateway, folder / "gateway.log") as (public, gateway_operations),
    ):
        for pod, operations in ((ingest, ingest_operations), (gateway, gateway_operations)):
            yield from running.probe_complaints(pod, operations)
            # The status 200 alone is not enough, because a missing permission leads to `degraded`, also with 200.
            state = f"{pod.name} is ready with the permissions of the user shopbell (see {folder}/*.log)"
            eventually(state, is_ready, operations)
        order = ["publish", "--recipient", "merchant-42"]
        publisher = {"AMQP_URL": publisher_url, "SHOPBELL_AMQP_DECLARE": "false", **partitions}
        program.must("as the publisher", *order, **publisher)
        token = program.must("a token", "token", "--subscriber", "merchant-42", SHOPBELL_JWT_HS256_SECRET=secret).strip()
        tail = ["tail", "--url", f"ws://127.0.0.1:{public}/v1/ws", "--count", "1", "--output", "json"]
        received = program.must("as the merchant", *tail, SHOPBELL_TOKEN=token)
        if "order.created" not in received:
            yield f"the merchant received no order, but: {received}"
        bad = [*order, "--type", "order.created", "--data", "{}", "--unchecked"]
        program.must("as the publisher", *bad, **publisher)
        letters = {**publisher, "AMQP_URL": amqp_url, "DATABASE_URL": database}
        eventually("the dead letter is listed", has_dead_letter, program, letters)
        if "ACCESS_REFUSED" not in program.run("dead-letters", "list", **letters | publisher).stderr:
            yield "the user shopbell-publisher may read from RabbitMQ"


def is_ready(operations):
    answer = ask(operations, "/readyz")
    return answer and json.loads(answer[1])["status"] == "ready"


def has_dead_letter(program, environment):
    return "invalid_data" in program.must("as shopbell", "dead-letters", "list", **environment)


def report(text):
    print(f"manifests: {text}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
